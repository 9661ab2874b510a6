"""Runs in tflite-micro: the integers of LiteRT's reference kernels, its memory, and every way it refuses a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgecompress.benchmark import micro
from edgecompress.benchmark.micro import run_micro
from edgecompress.converters.fused_lstm import write_fused
from edgecompress.converters.graph_writer import GraphWriter, TreeWriter, Value
from edgecompress.converters.integer_cells import IntegerLayer
from edgecompress.errors import DataError, ExecutionError, ModelError, UnavailableError
from edgecompress.flatbuffer import Signature, with_metadata, write_tree
from edgecompress.recurrent.cells import Matrix, RecurrentLayer
from edgecompress.recurrent.scales import Scale
from tests.tflm_rounding import fully_connected

RNG = np.random.default_rng(4)
SIZE = 64
SCALE = Scale(0.03, 5)
KERNEL = RNG.integers(-127, 128, (SIZE, SIZE)).astype(np.int8)
KERNEL_SCALES = RNG.uniform(0.001, 0.008, SIZE).astype(np.float32)
BIAS = RNG.integers(-20_000, 20_000, SIZE).astype(np.int32)
SUM = Scale(0.02, -9)


def new_graph() -> GraphWriter:
    tree = schema.ModelT(version=3, operatorCodes=[], subgraphs=[], buffers=[schema.BufferT()])
    return TreeWriter(tree).new_graph("main")


def write(file: Path, graph: GraphWriter, inputs: dict[str, Value], outputs: dict[str, Value]) -> Path:
    graph.graph.inputs = [value.index for value in inputs.values()]
    graph.give_outputs(list(outputs.values()))
    signature = Signature("serving_default", list(inputs), list(outputs))
    file.write_bytes(with_metadata(write_tree(graph.file.tree), metadata={}, signature=signature))
    return file


def integers(*shape: int) -> np.ndarray:
    return RNG.integers(-128, 128, shape).astype(np.int8)


def litert(file: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What LiteRT's reference kernels give."""
    interpreter = Interpreter(str(file), experimental_op_resolver_type=OpResolverType.BUILTIN_REF, num_threads=1)
    interpreter.allocate_tensors()
    run, found = interpreter.get_signature_runner(), []
    for index in range(len(next(iter(inputs.values())))):
        interpreter.reset_all_variables()
        found.append(run(**{name: values[index : index + 1] for name, values in inputs.items()}))
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


def product(graph: GraphWriter, operator: str) -> tuple[Value, Value]:
    """Adds a product with a kernel; of CONV_2D, one of a single pixel."""
    pixel = (1, 1) if operator == "CONV_2D" else ()
    x = graph.tensor("x", (1, *pixel, SIZE), "int8", SCALE)
    kernel = graph.constant("kernel", KERNEL.reshape(SIZE, *pixel, SIZE), scales=KERNEL_SCALES)
    bias = graph.constant("bias", BIAS, scales=(np.float64(SCALE.step) * KERNEL_SCALES).astype(np.float32))
    result = graph.tensor("result", (1, *pixel, SIZE), "int8", SUM)
    graph.operator(operator, [x, kernel, bias], [result], version=4 if operator == "FULLY_CONNECTED" else 3)
    options = schema.FullyConnectedOptionsT() if operator == "FULLY_CONNECTED" else schema.Conv2DOptionsT()
    if operator == "CONV_2D":
        options.strideW = options.strideH = 1
    graph.graph.operators[-1].builtinOptions = options
    graph.graph.operators[-1].builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__[:-1])
    return x, result


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    """result = x * kernel + bias (a convolution); y = sigmoid(result) * state; `copy` is y once more."""
    graph = new_graph()
    x, result = product(graph, "CONV_2D")
    state = graph.tensor("h", (1, 1, 1, SIZE), "int8", Scale(0.01, 3))
    gate = graph.tensor("gate", result.shape, "int8", Scale(1 / 256, -128))
    y = graph.tensor("product", result.shape, "int8", Scale(0.006, 7))
    graph.operator("LOGISTIC", [result], [gate])
    graph.binary("MUL", gate, state, y)
    file = tmp_path_factory.mktemp("micro") / "network.tflite"
    return write(file, graph, {"state": state, "x": x}, {"y": y, "copy": y, "result": result})


@pytest.fixture(scope="module")
def samples() -> dict[str, np.ndarray]:
    return {"x": integers(40, 1, 1, SIZE), "state": integers(40, 1, 1, SIZE)}


def test_the_integers_of_the_reference_kernels(network, samples) -> None:
    found, wanted = run_micro(network, samples).outputs, litert(network, samples)
    assert list(found) == ["y", "copy", "result"]
    for name, values in found.items():
        assert values.dtype == np.int8
        assert np.ptp(values[:, 0, 0].astype(int)) > 100
        np.testing.assert_array_equal(values, wanted[name])


def test_fully_connected_differs_by_its_rounding_and_nothing_else(tmp_path) -> None:
    graph = new_graph()
    x, result = product(graph, "FULLY_CONNECTED")
    file = write(tmp_path / "dense.tflite", graph, {"x": x}, {"y": result})
    given = integers(500, SIZE)
    once, twice = fully_connected(file, "result", given)
    differ = once != twice
    assert 0 < differ.sum() < 1e-2 * differ.size
    np.testing.assert_array_equal(litert(file, {"x": given})["y"], once)
    np.testing.assert_array_equal(run_micro(file, {"x": given}).outputs["y"], twice)


def test_each_sample_starts_afresh(tmp_path) -> None:
    names = ("x_gates", "x_candidate", "h_gates", "h_candidate")
    matrices = {
        name: Matrix(RNG.normal(0, 0.7, (4, columns)), np.zeros(columns) if name[0] == "x" else None)
        for name, columns in zip(names, (12, 4, 12, 4), strict=True)
    }
    layer = RecurrentLayer("lstm", "lstm", 4, 4, matrices, {name: ((name,),) for name in names})
    graph = new_graph()
    x = graph.tensor("sequence", (1, 6, 4), "int8", SCALE)
    plan = IntegerLayer(layer, {"state_0": Scale(1 / 128, 0), "state_1": Scale(4 / 128, 0)}, 8, False, "lstm")
    file = write(tmp_path / "lstm.tflite", graph, {"x": x}, {"y": write_fused(graph, plan, x)[0]})
    one = integers(1, 6, 4)
    first, _, third = run_micro(file, {"x": np.concatenate([one, integers(1, 6, 4), one])}).outputs["y"]
    np.testing.assert_array_equal(first, third)
    assert np.ptp(first.astype(int)) > 0


def test_how_much_memory_it_takes(network, samples) -> None:
    needed = run_micro(network, samples).arena_bytes
    assert 1_000 < needed < 10_000
    enough = run_micro(network, samples, arena_bytes=needed + 4_096)
    assert enough.arena_bytes == needed
    with pytest.raises(ExecutionError, match=rf"the arena is too small; expected more than {needed:,} bytes") as caught:
        run_micro(network, samples, arena_bytes=needed // 2)
    assert f"received {needed // 2:,} bytes" in str(caught.value)


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        ("GELU", "has no operator GELU"),
        ("CUSTOM", "has no operator my-op"),
        ("SIN", r"refuses the operator SIN \(operator 0 .*INT8 != FLOAT32"),
    ],
)
def test_an_operator_that_it_does_not_have_or_take(tmp_path, operator, words) -> None:
    graph = new_graph()
    x, y = (graph.tensor(name, (1, 8), "int8", SCALE) for name in "xy")
    graph.operator(operator, [x], [y])
    graph.file.tree.operatorCodes[0].customCode = "my-op" if operator == "CUSTOM" else None
    file = write(tmp_path / "model.tflite", graph, {"x": x}, {"y": y})
    with pytest.raises(ExecutionError, match=words):
        run_micro(file, {"x": np.zeros((1, 8), np.int8)})


def test_integer_weights_with_float_activations(tmp_path) -> None:
    graph = new_graph()
    x, y = (graph.tensor(name, (1, 8), "float32") for name in "xy")
    kernel = graph.constant("kernel", np.ones((8, 8), np.int8), scales=np.float32([0.1]))
    graph.operator("FULLY_CONNECTED", [x, kernel, None], [y], {}, version=3)
    file = write(tmp_path / "dynamic.tflite", graph, {"x": x}, {"y": y})
    with pytest.raises(ExecutionError, match=r"no kernels for the file's number types.*--scheme int8"):
        run_micro(file, {"x": np.zeros((1, 8), np.float32)})


def test_a_crash_is_an_error(models) -> None:
    with pytest.raises(ExecutionError, match=r"crashed \(SIGABRT\)"):
        run_micro(models["crashing"], {"x": np.zeros((1, 4), np.int8)})


def test_a_run_that_takes_too_long(network, samples) -> None:
    with pytest.raises(ExecutionError, match=r"time limit.*use fewer samples"):
        run_micro(network, samples, arena_bytes=10_000, time_limit_s=0.01)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"z": np.zeros((1, 4), np.int8)}, "the input names differ"),
        ({}, "the input names differ"),
        ({"x": np.zeros((1, 4), np.float32)}, r"expected int8 \(1, 4\); received float32 \(1, 4\)"),
        ({"x": np.zeros((2, 5), np.int8)}, r"expected int8 \(2, 4\); received int8 \(2, 5\)"),
        ({"x": np.zeros((0, 4), np.int8)}, r"expected int8 \(samples, 4\)"),
    ],
)
def test_samples_that_do_not_fit(models, inputs, words) -> None:
    with pytest.raises(DataError, match=words):
        run_micro(models["int8"], inputs)


def test_a_file_for_several_samples_at_once(models) -> None:
    with pytest.raises(DataError, match=r"'x': takes or gives no single samples; received \(4, 4\)"):
        run_micro(models["batch4"], {"x": np.zeros((4, 4), np.float32)})


def test_without_tflite_micro(monkeypatch, network, samples) -> None:
    monkeypatch.setattr(micro, "version_of", lambda _name: None)
    with pytest.raises(UnavailableError, match=r'pip install "edgecompress\[micro\]"'):
        run_micro(network, samples)


def test_no_such_file(tmp_path, samples) -> None:
    with pytest.raises(ModelError, match="no such file"):
        run_micro(tmp_path / "none.tflite", samples)
