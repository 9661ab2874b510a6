"""The quantized rest of a network and its recurrent layers in one file: names, types, order, and what it computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecompress.artifacts import Artifact, read_artifact
from edgecompress.benchmark.execute import run_tflite
from edgecompress.converters.cut import Cut, Masking, Site
from edgecompress.converters.graph_writer import Value
from edgecompress.converters.integer_cells import IntegerLayer
from edgecompress.converters.integer_forms import write_loop, write_step, write_unrolled
from edgecompress.converters.joining import Border, Joined, join, plan_names
from edgecompress.converters.tflite import FrozenGraph
from edgecompress.data import InputSpec
from edgecompress.errors import InternalError
from edgecompress.flatbuffer import Signature, read_metadata, read_tree, with_metadata
from edgecompress.recurrent.cells import Matrix, RecurrentLayer
from edgecompress.recurrent.observing import observe, run
from edgecompress.recurrent.scales import Scale, activation_scales
from edgecompress.schemes import IoType
from tests.integer_files import finish, integers, new_graph, numbers

STEPS, FEATURES, UNITS, SAMPLES = 6, 4, 5, 12
X = InputSpec("x", (1, STEPS, FEATURES), "float32")
FLOATS, BYTES = Border(IoType.FLOAT32, IoType.FLOAT32), Border(IoType.INT8, IoType.INT8)


def layer(name: str = "gru", features: int = FEATURES, **options: bool) -> RecurrentLayer:
    random = np.random.default_rng(len(name))
    sizes = {"x": features, "h": UNITS}
    matrices = {
        f"{side}_{group}": Matrix(random.normal(0, 0.4, (rows, count * UNITS)).astype(np.float32))
        for side, rows in sizes.items() for group, count in (("gates", 2), ("candidate", 1))
    }  # fmt: skip
    return RecurrentLayer(name, "gru", UNITS, features, matrices, {each: ((each,),) for each in matrices}, **options)


def sequences(features: int = FEATURES) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(SAMPLES, STEPS, features)).astype(np.float32)


def site(of: RecurrentLayer, number: int = 0, **options: str | None) -> Site:
    inputs = tuple(f"in_{number}_{place}" for place in range(1))
    outputs = tuple(f"out_{number}_{place}" for place in range(2 if of.return_state else 1))
    return Site(of, inputs, outputs, STEPS, **options)


def plan_for(of: RecurrentLayer, x: np.ndarray, bits: int = 8, name: str | None = None) -> IntegerLayer:
    return IntegerLayer(of, activation_scales(of, observe(of, x), bits), bits, True, name or of.name)


def alone(of: RecurrentLayer) -> Cut:
    """A network of one layer."""
    return Cut((X,), ("y",), (site(of),), (), None, {"in_0_0": "x", "y": "out_0_0"})


def save(joined: Joined, folder: Path) -> Artifact:
    file = folder / "model.tflite"
    file.write_bytes(joined.content)
    return read_artifact(file)


def require_order(content: bytes) -> None:
    """Each operator comes after those whose results it takes."""
    for graph in read_tree(content).subgraphs:
        known = {*(int(index) for index in graph.inputs), -1}
        known |= {index for index, tensor in enumerate(graph.tensors) if tensor.buffer}
        for operator in graph.operators:
            assert {int(index) for index in operator.inputs} <= known
            known |= {int(index) for index in operator.outputs}
        assert {int(index) for index in graph.outputs} <= known


# Borders


@pytest.mark.parametrize("given", [IoType.FLOAT32, IoType.INT8, IoType.UINT8])
@pytest.mark.parametrize("taken", [IoType.FLOAT32, IoType.INT8, IoType.UINT8])
def test_the_types_of_inputs_and_outputs(taken, given, tmp_path) -> None:
    gru, x = layer(return_sequences=True), sequences()
    artifact = save(join(alone(gru), None, [plan_for(gru, x)], write_loop, Border(taken, given)), tmp_path)
    (source,), (result,) = artifact.signature.inputs.values(), artifact.signature.outputs.values()
    assert (source.dtype, result.dtype) == (str(taken), str(given))
    assert (source.shape, result.shape) == ((1, STEPS, FEATURES), (1, STEPS, UNITS))
    assert {op.name for op in artifact.ops} >= {"WHILE"}
    answers = run_tflite(artifact.path, {"x": x})["y"]
    assert np.abs(answers - run(gru, x)[0]).max() < 0.05


def test_16_bits_outside_and_inside(tmp_path) -> None:
    gru, x = layer(), sequences()
    border = Border(IoType.INT16, IoType.INT16)
    artifact = save(join(alone(gru), None, [plan_for(gru, x, 16)], write_loop, border), tmp_path)
    assert {each.dtype for each in (*artifact.signature.inputs.values(), *artifact.signature.outputs.values())} == {
        "int16"
    }
    assert np.abs(run_tflite(artifact.path, {"x": x})["y"] - run(gru, x)[0]).max() < 0.005


def test_the_oldest_runtime_is_told_of_8_bits() -> None:
    gru, x = layer(), sequences()
    contents = [join(alone(gru), None, [plan_for(gru, x, bits)], write_loop, FLOATS).content for bits in (8, 16)]
    assert [read_metadata(content).get("min_runtime_version") for content in contents] == [b"2.14.0", None]


# Names


def test_names_are_those_of_the_network(tmp_path) -> None:
    first, second = layer("first", return_sequences=True, return_state=True), layer("second", UNITS)
    x = sequences()
    parts = Cut(
        (X,), ("states", "last", "all"), (site(first), site(second, 1)), (), None,
        {"in_0_0": "x", "in_1_0": "out_0_0", "states": "out_0_1", "last": "out_1_0", "all": "out_0_0"},
    )  # fmt: skip
    plans = [plan_for(first, x), plan_for(second, run(first, x)[0])]
    joined = join(parts, None, plans, write_loop, FLOATS)
    assert joined.states == ()
    require_order(joined.content)
    artifact = save(joined, tmp_path)
    assert artifact.signature.key == "serving_default"
    assert list(artifact.signature.inputs) == ["x"]
    assert list(artifact.signature.outputs) == ["states", "last", "all"]
    found = run_tflite(artifact.path, {"x": x})
    sequence, state = run(first, x)
    for name, wanted in (("states", state), ("all", sequence), ("last", run(second, sequence)[0])):
        assert np.abs(found[name] - wanted).max() < 0.05


def test_one_step_takes_and_gives_states_in_pairs(tmp_path) -> None:
    gru, x = layer(), sequences()
    plan = plan_for(gru, x, name="gru_2")
    parts = replace(alone(gru), inputs=(replace(X, shape=(1, 1, FEATURES)),))
    joined = join(parts, None, [plan], write_step, FLOATS, one_step=True)
    assert joined.states == (("gru_2_state_0", "gru_2_next_state_0"),)
    signature = save(joined, tmp_path).signature
    assert list(signature.inputs) == ["x", "gru_2_state_0"]
    assert list(signature.outputs) == ["y", "gru_2_next_state_0"]
    before, after = signature.inputs["gru_2_state_0"], signature.outputs["gru_2_next_state_0"]
    assert before.dtype == "int8"  # whatever the border is
    assert (before.dtype, before.scale, before.zero_point) == (after.dtype, after.scale, after.zero_point)


@pytest.mark.parametrize(
    ("names", "port", "wanted"),
    [
        (("a", "b", "a", "a"), "x", ["a", "b", "a_2", "a_3"]),
        (("gru", "gru", "gru_2"), "x", ["gru", "gru_3", "gru_2"]),
        (("gru",), "gru_state_0", ["gru_2"]),
    ],
)
def test_layers_are_numbered_where_another_layer_or_a_port_has_the_name(names, port, wanted) -> None:
    sites = tuple(site(layer(name), place) for place, name in enumerate(names))
    assert plan_names(Cut((replace(X, name=port),), ("y",), sites, (), None)) == wanted


def test_a_state_that_the_network_is_given_is_an_integer_where_its_inputs_are(tmp_path) -> None:
    gru, x = layer(), sequences()
    begins = replace(site(gru), inputs=("in_0_0", "in_0_1"))
    inputs = (X, InputSpec("h", (1, UNITS), "float32"))
    parts = Cut(inputs, ("y",), (begins,), (), None, {"in_0_0": "x", "in_0_1": "h", "y": "out_0_0"})
    plan = plan_for(gru, x)
    signature = save(join(parts, None, [plan], write_loop, BYTES), tmp_path).signature
    assert [tensor.dtype for tensor in signature.inputs.values()] == ["int8", "int8"]
    assert signature.inputs["h"].scale == pytest.approx(plan.state_scale("state_0").step)


# With the rest of a network

GIVEN, HALF = Scale(1 / 32, 0), Scale(1 / 64, 3)


def rest(state: Scale, x: Scale = GIVEN, *, taken: Scale = HALF) -> bytes:
    """Doubles the inputs for the layer, and halves what it gives."""
    graph = new_graph()
    source = graph.tensor("serving_x", (1, STEPS, FEATURES), "int8", x)
    result = graph.tensor("serving_out", (1, UNITS), "int8", state)
    doubled = graph.tensor("doubled", (1, STEPS, FEATURES), "int8", taken)
    halved = graph.tensor("halved", (1, UNITS), "int8", HALF)
    half = graph.constant("half", np.full((1, 1), 64, np.int8), scale=Scale(1 / 128, 0))
    graph.binary("MUL", result, half, halved)
    graph.binary("ADD", source, source, doubled)
    content = finish(graph, [source, result], [halved, doubled])
    names = Signature("serving_default", {"x": "serving_x", "out_0_0": "serving_out"}, {
        "y": "halved", "in_0_0": "doubled"
    })  # fmt: skip
    return with_metadata(content, signature=names, metadata={"min_runtime_version": b"9.9.9", "kept": b"1"})


def with_rest(of: RecurrentLayer) -> Cut:
    return Cut((X,), ("y",), (site(of),), (), FrozenGraph(b"", {}, {}, "model"), {})


@pytest.mark.parametrize("write", [write_loop, write_unrolled])
def test_the_rest_and_a_layer(write, tmp_path) -> None:
    gru, x = layer(), np.clip(sequences(), -1, 0.9)
    plan = plan_for(gru, 2 * x)
    joined = join(with_rest(gru), rest(plan.state_scale("state_0")), [plan], write, FLOATS)
    require_order(joined.content)
    artifact = save(joined, tmp_path)
    found = run_tflite(artifact.path, {"x": x})["y"]
    assert np.abs(found - run(gru, 2 * x)[0] / 2).max() < 0.06
    assert list(artifact.signature.inputs) == ["x"]
    assert list(artifact.signature.outputs) == ["y"]
    assert artifact.float_ops == ()


def test_what_the_converter_says_of_its_own_operators_is_replaced() -> None:
    gru, x = layer(), sequences()
    plan = plan_for(gru, x)
    outer = rest(plan.state_scale("state_0"))
    metadata = read_metadata(join(with_rest(gru), outer, [plan], write_loop, FLOATS).content)
    assert metadata == {"kept": b"1", "min_runtime_version": b"2.14.0"}


def quantizes(content: bytes) -> int:
    """How many operators only change a scale in the main graph."""
    tree = read_tree(content)
    return sum(
        tree.operatorCodes[each.opcodeIndex].builtinCode == 114 for each in tree.subgraphs[0].operators
    )  # fmt: skip


def test_scales_that_are_meant_to_be_the_same_need_no_operator() -> None:
    gru, x = layer(), sequences()
    plan = plan_for(gru, x)
    state = plan.state_scale("state_0")
    plan = replace(plan, scales={**plan.scales, "x": HALF})
    near, far = (Scale(state.step * factor, state.zero_point) for factor in (1.00001, 1.1))
    same, other = (join(with_rest(gru), rest(each), [plan], write_loop, BYTES).content for each in (near, far))
    assert (quantizes(same), quantizes(other)) == (0, 1)


def test_the_layer_takes_the_scale_of_what_it_is_given() -> None:
    """Its kernels are rounded for it: nothing has to be converted in between."""
    gru, x = layer(), sequences()
    plan = plan_for(gru, x)
    content = join(with_rest(gru), rest(plan.state_scale("state_0")), [plan], write_loop, BYTES).content
    assert quantizes(content) == 0


def test_a_state_to_begin_with_comes_in_any_scale(tmp_path) -> None:
    gru, x = layer(), sequences()
    begin = np.random.default_rng(4).uniform(-1, 1, (SAMPLES, UNITS)).astype(np.float32)
    plan = replace(plan_for(gru, x), scales=activation_scales(gru, observe(gru, x, [begin]), 8))
    graph = new_graph()
    state = graph.tensor("state", (1, UNITS), "int8", Scale(1 / 100, 11))
    names = Signature("serving_default", {"state": "state"}, {"begin": "state"})
    outer = with_metadata(finish(graph, [state], [state]), signature=names, metadata={})
    parts = replace(
        with_rest(gru), inputs=(X, InputSpec("state", (1, UNITS), "float32")),
        sites=(replace(site(gru), inputs=("in_0_0", "begin")),), links={"in_0_0": "x", "y": "out_0_0"},
    )  # fmt: skip
    artifact = save(join(parts, outer, [plan], write_loop, FLOATS), tmp_path)
    found = run_tflite(artifact.path, {"x": x, "state": begin})["y"]
    assert np.abs(found - run(gru, x, [begin])[0]).max() < 0.05


def test_layers_that_wait_for_each_other() -> None:
    own, x = layer(features=UNITS, return_sequences=True), sequences(UNITS)
    graph = new_graph()
    a, b = (graph.tensor(name, (1, STEPS, UNITS), "int8", GIVEN) for name in "ab")
    sums: list[Value] = []
    for name, source in (("c", a), ("d", b)):
        sums.append(graph.tensor(name, (1, STEPS, UNITS), "int8", GIVEN))
        graph.binary("ADD", source, source, sums[-1])
    names = Signature("serving_default", {"out_0_0": "a", "out_1_0": "b"}, {"in_1_0": "c", "in_0_0": "d"})
    outer = with_metadata(finish(graph, [a, b], sums), signature=names, metadata={})
    parts = Cut((), ("y",), (site(own), site(own, 1)), (), None, {"y": "out_0_0"})
    plans = [plan_for(own, x)] * 2
    with pytest.raises(InternalError, match="depend on each other in a circle"):
        join(parts, outer, plans, write_loop, FLOATS)


# Masks


@pytest.mark.parametrize(
    "border", [FLOATS, BYTES, Border(IoType.UINT8, IoType.FLOAT32)], ids=["float", "int8", "uint8"]
)
def test_a_mask_is_found_in_what_the_file_is_given(border, tmp_path) -> None:
    """In float, numbers near the value of the mask are told from it; in integers they cannot be."""
    gru, x = layer(), sequences()
    x[:4, 4:], x[4:8, 4:] = 0, 1e-3
    masked = x.any(-1)
    parts = replace(
        alone(gru), sites=(site(gru, mask="mask"),), masks=(Masking(0.0, "given", "found"),),
        links={"in_0_0": "x", "given": "x", "mask": "found", "y": "out_0_0"},
    )  # fmt: skip
    plan = plan_for(gru, x)
    joined = join(parts, None, [plan], write_loop, border)
    require_order(joined.content)
    found = run_tflite(save(joined, tmp_path).path, {"x": x})["y"]
    if border is not FLOATS:
        rounded = numbers(integers(x, plan.scales["x"]), plan.scales["x"])
        masked = (integers(x, plan.scales["x"]) != plan.scales["x"].integer(0.0)).any(-1)
        x = rounded
        assert not masked[4:8, 4:].any()
    assert np.abs(found - run(gru, x, mask=masked)[0]).max() < 0.05
