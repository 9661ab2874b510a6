"""Files written operator by operator: each constant once, each name once, nothing converted that fits, and they run."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgecompress.converters.graph_writer import GraphWriter, TreeWriter
from edgecompress.flatbuffer import read_tree, text
from edgecompress.recurrent.scales import Scale, scale_of
from tests.handmade import dense_model
from tests.integer_files import Runner, finish, integers, new_graph, numbers

SCALE, OTHER = Scale(0.5, 3), Scale(0.25, -7)


def names(graph: GraphWriter) -> list[str]:
    return [text(tensor.name) for tensor in graph.graph.tensors]


def operators(graph: GraphWriter) -> list[tuple[str, int]]:
    known = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    codes = graph.file.tree.operatorCodes
    return [
        (known[codes[each.opcodeIndex].builtinCode], codes[each.opcodeIndex].version) for each in graph.graph.operators
    ]


# Constants and names


def test_equal_constants_are_stored_once_in_the_whole_file() -> None:
    graph = new_graph()
    other = graph.file.new_graph("other")
    values = np.arange(6, dtype=np.int8)
    first, again = (graph.constant("kernel", values) for _ in range(2))
    assert first is again
    renamed, elsewhere, reshaped = (
        graph.constant("weights", values), other.constant("kernel", values),
        graph.constant("kernel", values.reshape(2, 3)),
    )  # fmt: skip
    assert len({first.index, renamed.index, reshaped.index}) == 3
    assert elsewhere.index == 0
    buffers = {tensor.buffer for each in (graph, other) for tensor in each.graph.tensors}
    assert buffers == {1}
    graph.constant("kernel", values + 1)
    assert len(graph.file.tree.buffers) == 3
    assert reshaped.shape == (2, 3)


def test_constants_of_another_type_are_others() -> None:
    graph = new_graph()
    constants = [graph.constant("zero", np.zeros(4, kind)) for kind in (np.int8, np.int32, np.float32)]
    assert [each.dtype for each in constants] == ["int8", "int32", "float32"]
    assert len({each.index for each in constants}) == 3


def test_names_are_given_once() -> None:
    graph = new_graph()
    for _ in range(3):
        graph.tensor("row", (1, 2), "int8", SCALE)
    graph.constant("row", np.zeros(2, np.int8))
    assert names(graph) == ["row", "row_2", "row_3", "row_4"]
    other = graph.file.new_graph("other")
    other.tensor("row", (1, 2), "int8", SCALE)
    assert names(other) == ["row"]


def test_names_of_a_file_that_is_added_to() -> None:
    tree = read_tree(dense_model().pack())
    graph = GraphWriter(TreeWriter(tree), 0)
    known = names(graph)
    graph.tensor("x", (1, 4), "float32")
    assert names(graph) == [*known, "x_2"]


def test_scales_of_kernels_and_of_results() -> None:
    graph = new_graph()
    graph.constant("kernel", np.zeros((2, 3), np.int8), scales=np.float32([0.5, 0.25]))
    graph.tensor("result", (1, 2), "int8", SCALE)
    graph.tensor("index", (1,), "int32")
    kernel, result, index = graph.graph.tensors
    assert (kernel.quantization.scale.tolist(), kernel.quantization.zeroPoint.tolist()) == ([0.5, 0.25], [0, 0])
    assert (result.quantization.scale.tolist(), result.quantization.zeroPoint.tolist()) == ([0.5], [3])
    assert index.quantization is None


def test_operators_share_their_codes_and_have_the_version_of_their_type() -> None:
    graph = new_graph()
    for dtype in ("int8", "int16", "int8", "int32"):
        a = graph.tensor("a", (1, 2), dtype)
        graph.operator("ADD", [a, a], [graph.tensor("b", (1, 2), dtype)], {})
    assert operators(graph) == [("ADD", 2), ("ADD", 3), ("ADD", 2), ("ADD", 1)]
    assert len(graph.file.tree.operatorCodes) == 3


def test_old_readers_find_the_code_of_old_operators_where_they_look() -> None:
    graph = new_graph()
    a = graph.tensor("a", (1, 2), "int8", SCALE)
    graph.operator("TANH", [a], [a])
    graph.operator("BROADCAST_TO", [a], [a])
    tanh, broadcast = graph.file.tree.operatorCodes
    assert tanh.deprecatedBuiltinCode == tanh.builtinCode
    assert broadcast.deprecatedBuiltinCode == 127 < broadcast.builtinCode


# Shapes, scales and types


def test_what_fits_is_left_as_it_is() -> None:
    graph = new_graph()
    x = graph.tensor("x", (1, 4), "int8", SCALE)
    assert graph.reshape("same", x, (1, 4)) is x
    assert graph.requantize("same", x, "int8", Scale(0.5, 3)) is x
    assert graph.graph.operators == []
    assert len(graph.graph.tensors) == 1


@pytest.mark.parametrize(
    ("source", "target", "operator"),
    [
        (("int8", SCALE), ("int8", OTHER), ("QUANTIZE", 2)),
        (("int8", SCALE), ("int16", Scale(2.0**-8, 0, 16)), ("QUANTIZE", 2)),
        (("float32", None), ("int8", SCALE), ("QUANTIZE", 1)),
        (("int8", SCALE), ("float32", None), ("DEQUANTIZE", 2)),
        (("int16", Scale(2.0**-8, 0, 16)), ("float32", None), ("DEQUANTIZE", 3)),
    ],
    ids=lambda each: each[0],
)
def test_other_scales_and_types(source, target, operator) -> None:
    graph, wanted = new_graph(), np.float32([[-3.5, 0, 1.5, 10]])
    x = graph.tensor("x", (1, 4), *source)
    result = graph.requantize("y", x, *target)
    assert operators(graph) == [operator]
    assert (result.dtype, result.scale) == target
    (found,) = Runner(finish(graph, [x], [result]))(wanted if source[1] is None else integers(wanted, source[1]))
    assert found.dtype == target[0]
    np.testing.assert_array_equal(found if target[1] is None else numbers(found, target[1]), wanted)


def test_files_run() -> None:
    """(a + b) * a, joined with a - b, turned round."""
    scale = scale_of(-4, 4, 8)
    graph = new_graph()
    a, b = (graph.tensor(name, (1, 3), "int8", scale) for name in "ab")
    total, difference = (graph.tensor(name, (1, 3), "int8", scale_of(-8, 8, 8)) for name in ("sum", "difference"))
    product = graph.tensor("product", (1, 3), "int8", scale_of(-32, 32, 8))
    graph.binary("ADD", a, b, total)
    graph.binary("MUL", total, a, product)
    graph.binary("SUB", a, b, difference)
    rounded = graph.requantize("product", product, "int8", difference.scale)
    joined = graph.reshape("turned", graph.concatenate("joined", [rounded, difference], axis=0), (3, 2))
    assert joined.shape == (3, 2)
    values = np.float32([[1, -2, 0.5]]), np.float32([[2, 1, -3]])
    (found,) = Runner(finish(graph, [a, b], [joined]))(*(integers(each, scale) for each in values))
    wanted = np.concatenate([(values[0] + values[1]) * values[0], values[0] - values[1]]).reshape(3, 2)
    np.testing.assert_allclose(numbers(found, joined.scale), wanted, atol=0.25)


def test_subgraphs_take_what_the_tensors_elsewhere_are() -> None:
    graph = new_graph()
    values = graph.tensor("x", (1, 4), "int8", SCALE), graph.tensor("index", (1,), "int32")
    other = graph.file.new_graph("body")
    inputs = other.take_inputs(values)
    other.give_outputs(inputs[::-1])
    assert [(each.shape, each.dtype, each.scale) for each in inputs] == [((1, 4), "int8", SCALE), ((1,), "int32", None)]
    assert (other.number, other.graph.inputs, other.graph.outputs) == (1, [0, 1], [1, 0])
