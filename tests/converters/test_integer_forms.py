"""Recurrent layers in integer operators: all forms give the same integers, near to float, in files that do not grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgecompress.converters.integer_cells import IntegerLayer
from edgecompress.converters.integer_forms import write_loop, write_step, write_unrolled
from edgecompress.flatbuffer import read_tree
from edgecompress.layers import LowRankGRU, LowRankLSTM
from edgecompress.recurrent.cells import RecurrentLayer
from edgecompress.recurrent.observing import observe, run
from edgecompress.recurrent.reading import read_recurrent
from edgecompress.recurrent.scales import activation_scales
from tests.integer_files import Runner, finish, integers, new_graph, numbers

keras = pytest.importorskip("keras")
layers = keras.layers

SAMPLES, STEPS, FEATURES, UNITS = 3, 12, 5, 16
RANKS = {"input_rank": 3, "recurrent_rank": 2}
LIMITS = {8: 0.05, 16: 0.01}  # of errors: the states are within -1 and 1
FORMS: dict[str, Callable[..., Any]] = {
    "loop": write_loop,
    "several steps a turn": lambda *given: write_loop(*given, per_turn=3),
    "inputs multiplied in the loop": lambda *given: write_loop(*given, hoist=False),
    "both": lambda *given: write_loop(*given, per_turn=4, hoist=False),
    "one turn": lambda *given: write_loop(*given, per_turn=STEPS),
    "unrolled": write_unrolled,
}
LAYERS: dict[str, Callable[[], Any]] = {
    "gru": lambda: layers.GRU(UNITS),
    "gru, reset before": lambda: layers.GRU(
        UNITS, reset_after=False, go_backwards=True, return_sequences=True, return_state=True
    ),
    "gru, hard gates": lambda: layers.GRU(UNITS, recurrent_activation="hard_sigmoid", return_sequences=True),
    "lstm": lambda: layers.LSTM(UNITS, return_state=True, return_sequences=True),
    "lstm, relu": lambda: layers.LSTM(UNITS, activation="relu", go_backwards=True),
    "simple": lambda: layers.SimpleRNN(UNITS, return_sequences=True, use_bias=False),
    "simple, relu": lambda: layers.SimpleRNN(UNITS, activation="relu"),
    "simple, linear": lambda: layers.SimpleRNN(UNITS, activation="linear", return_state=True),
    "low rank": lambda: LowRankGRU(UNITS, **RANKS),
    "low rank by gate": lambda: LowRankGRU(UNITS, **RANKS, gates="separate", return_sequences=True),
    "low rank lstm": lambda: LowRankLSTM(UNITS, **RANKS, gates="separate"),
    "multiplied already": lambda: LowRankGRU(UNITS, recurrent_rank=4, project_inputs=False),
    "zeros where nothing is": lambda: layers.RNN(
        layers.GRUCell(UNITS), return_sequences=True, return_state=True, zero_output_for_mask=True
    ),
}  # fmt: skip


def make(name: str, **options: Any) -> RecurrentLayer:
    layer = LAYERS[name]()
    features = 3 * UNITS if name == "multiplied already" else FEATURES
    layer.build((None, STEPS, features))
    random = np.random.default_rng(1)
    layer.set_weights([random.normal(0, 0.2, weight.shape) for weight in layer.get_weights()])
    return read_recurrent(layer, **options)


def sequences(layer: RecurrentLayer, samples: int = 40, steps: int = STEPS) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(samples, steps, layer.features)).astype(np.float32)


def mask_for(x: np.ndarray) -> np.ndarray:
    """Padding in front, in between and behind."""
    mask = np.random.default_rng(2).uniform(size=x.shape[:2]) < 0.8
    mask[::2, :3], mask[1::3, -4:] = False, False
    return mask


def plan_of(layer: RecurrentLayer, bits: int = 8, *, per_channel: bool = True, mask=None, states=()) -> IntegerLayer:
    ranges = observe(layer, sequences(layer), states, mask)
    return IntegerLayer(layer, activation_scales(layer, ranges, bits), bits, per_channel, layer.name)


def write(
    plan: IntegerLayer, form: Callable[..., Any], steps: int = STEPS, *, mask: bool = False, states: bool = False
) -> bytes:  # fmt: skip
    """Writes a file that takes a sequence, the states that it begins with and a mask."""
    graph, layer = new_graph(), plan.layer
    x = graph.tensor("x", (1, steps, layer.features), f"int{plan.bits}", plan.scales["x"])
    scales = [plan.state_scale(name) for name in layer.states if states]
    begin = [graph.tensor("begin", (1, layer.units), scale.dtype, scale) for scale in scales]
    counts = [graph.tensor("mask", (1, steps), "bool")] if mask else []
    outputs = form(graph, plan, x, begin, *counts)
    shown = len(outputs) if layer.return_state or form is write_step else 1
    return finish(graph, [x, *begin, *counts], outputs[:shown])


def answers(content: bytes, plan: IntegerLayer, x, mask=None, states=(), **options: Any) -> list[np.ndarray]:
    """Returns the outputs of a file of whole sequences, for each sample."""
    runner, given = Runner(content, **options), integers(x, plan.scales["x"])
    begin = [integers(state, plan.state_scale(name)) for name, state in zip(plan.layer.states, states, strict=False)]
    masks = [] if mask is None else [mask]
    rows = (slice(sample, sample + 1) for sample in range(len(x)))
    found = [runner(*(each[row] for each in (given, *begin, *masks))) for row in rows]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def step_by_step(content: bytes, plan: IntegerLayer, x, mask=None, **options: Any) -> list[np.ndarray]:
    """Returns the same from a file of one step."""
    layer, runner, given = plan.layer, Runner(content, **options), integers(x, plan.scales["x"])
    places = range(x.shape[1])[:: -1 if layer.go_backwards else 1]
    found = []
    for sample in range(len(x)):
        states = [integers(np.zeros((1, layer.units)), plan.state_scale(name)) for name in layer.states]
        sequence = []
        for place in places:
            flag = [] if mask is None else [mask[sample : sample + 1, place : place + 1]]
            output, *states = runner(given[sample : sample + 1, place : place + 1], *states, *flag)
            sequence.append(output)
        if layer.in_order and layer.go_backwards:
            sequence.reverse()
        whole = np.concatenate(sequence, 1) if layer.return_sequences else sequence[-1]
        found.append([whole, *(states if layer.return_state else [])])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def in_numbers(outputs: list[np.ndarray], plan: IntegerLayer) -> list[np.ndarray]:
    names = ("state_0", *plan.layer.states)
    return [numbers(each, plan.state_scale(name)) for each, name in zip(outputs, names, strict=False)]


@pytest.mark.parametrize("masked", [False, True], ids=["all steps", "masked"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", LAYERS)
def test_all_forms_give_the_same_integers(name, bits, masked) -> None:
    layer = make(name)
    x = sequences(layer, SAMPLES)
    mask = mask_for(x) if masked else None
    plan = plan_of(layer, bits, mask=mask_for(sequences(layer)) if masked else None)
    files = {name: write(plan, form, mask=masked) for name, form in FORMS.items()}
    step = write(plan, write_step, 1, mask=masked, states=True)
    for reference in (True, False):
        expected = answers(files["loop"], plan, x, mask, reference=reference)
        for form, file in files.items():
            for found, wanted in zip(answers(file, plan, x, mask, reference=reference), expected, strict=True):
                np.testing.assert_array_equal(found, wanted, form)
        for found, wanted in zip(step_by_step(step, plan, x, mask, reference=reference), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        for found, wanted in zip(in_numbers(expected, plan), run(layer, x, mask=mask), strict=True):
            size = max(1.0, float(np.abs(wanted).max()))
            assert np.abs(found - wanted).max() < LIMITS[bits] * size
            assert np.ptp(found) > 0.2


@pytest.mark.parametrize("masked", [False, True], ids=["all steps", "masked"])
@pytest.mark.parametrize("form", ["loop", "several steps a turn", "unrolled"])
@pytest.mark.parametrize("name", ["gru, reset before", "gru, hard gates", "lstm", "zeros where nothing is"])
def test_states_to_begin_with(name, form, masked) -> None:
    """Before the first step that counts a sequence has zeros, whatever it begins with."""
    layer = make(name)
    x, states = sequences(layer), np.random.default_rng(3).uniform(-1, 1, (2, 40, UNITS)).astype(np.float32)
    states = list(states[: len(layer.states)])
    mask = mask_for(x) if masked else None
    plan = plan_of(layer, states=states, mask=mask)
    file = write(plan, FORMS[form], mask=masked, states=True)
    few, begin, some = x[:SAMPLES], [each[:SAMPLES] for each in states], None if mask is None else mask[:SAMPLES]
    found = in_numbers(answers(file, plan, few, some, begin), plan)
    for mine, wanted in zip(found, run(layer, few, begin, some), strict=True):
        assert np.abs(mine - wanted).max() < 0.06
    zeros = [np.zeros_like(each) for each in begin]
    assert (found[0] != in_numbers(answers(file, plan, few, some, zeros), plan)[0]).any()


@pytest.mark.parametrize("masked", [False, True], ids=["all steps", "masked"])
@pytest.mark.parametrize("form", ["loop", "several steps a turn", "unrolled"])
def test_a_sequence_in_the_order_of_the_inputs(form, masked) -> None:
    turned, plain = (make("gru, reset before", in_order=each) for each in (True, False))
    x = sequences(plain, SAMPLES)
    mask = mask_for(x) if masked else None
    plans = [plan_of(layer) for layer in (turned, plain)]
    files = [write(plan, FORMS[form], mask=masked) for plan in plans]
    (mine, state), (other, same) = (
        answers(file, plan, x, mask) for file, plan in zip(files, plans, strict=True)
    )  # fmt: skip
    np.testing.assert_array_equal(mine, other[:, ::-1])
    np.testing.assert_array_equal(state, same)


# Files


@pytest.mark.parametrize("masked", [False, True], ids=["all steps", "masked"])
@pytest.mark.parametrize("return_sequences", [False, True], ids=["last", "sequence"])
@pytest.mark.parametrize("name", ["gru", "lstm", "simple"])
def test_loops_do_not_grow_with_the_steps(name, return_sequences, masked) -> None:
    plan = plan_of(replace(make(name), return_sequences=return_sequences))
    sizes = {steps: len(write(plan, write_loop, steps, mask=masked)) for steps in (10, 1000)}
    assert abs(sizes[1000] - sizes[10]) <= 256
    assert len(write(plan, write_unrolled, 20)) > len(write(plan, write_unrolled, 10)) + 2000


def test_a_loop_of_many_steps_runs() -> None:
    layer = make("gru, hard gates")
    plan, x = plan_of(layer), sequences(layer, 1, 300)
    found = in_numbers(answers(write(plan, write_loop, 300), plan, x), plan)[0]
    assert np.abs(found - run(layer, x)[0]).max() < 0.06


def operators(content: bytes, graph: int = 0) -> Counter[str]:
    tree = read_tree(content)
    known = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    return Counter(known[tree.operatorCodes[each.opcodeIndex].builtinCode] for each in tree.subgraphs[graph].operators)


def test_a_turn_of_a_gru_has_few_operators() -> None:
    content = write(plan_of(make("gru")), write_loop)
    main, condition, turn = (operators(content, graph) for graph in range(3))
    assert turn == {
        "GATHER": 2, "CONV_2D": 2, "ADD": 4, "LOGISTIC": 1, "SPLIT": 1, "MUL": 2, "TANH": 1, "SUB": 1,
    }  # fmt: skip
    assert condition == {"LESS": 1}
    assert main["CONV_2D"] == 2
    assert main["WHILE"] == 1


@pytest.mark.parametrize("name", ["lstm", "lstm, relu", "low rank by gate", "gru, reset before"])
def test_one_operator_serves_all_gates(name) -> None:
    assert operators(write(plan_of(make(name)), write_loop), 2)["LOGISTIC"] == 1


def test_hard_gates_are_clipped_by_their_integers() -> None:
    turn = operators(write(plan_of(make("gru, hard gates")), write_loop), 2)
    assert turn["QUANTIZE"] == 1
    assert turn["LOGISTIC"] == 0


@pytest.mark.parametrize("name", ["gru", "low rank", "low rank by gate"])
def test_no_operator_is_left_in_float(name) -> None:
    tree = read_tree(write(plan_of(make(name)), write_loop))
    types = {tensor.type for graph in tree.subgraphs for tensor in graph.tensors}
    assert schema.TensorType.FLOAT32 not in types


def kernel_scales(content: bytes) -> set[int]:
    """How many scales kernels have."""
    tree = read_tree(content)
    return {
        len(tensor.quantization.scale) for graph in tree.subgraphs for tensor in graph.tensors
        if len(tensor.shape) == 4 and tensor.buffer and tensor.shape[0] >= UNITS and tensor.quantization is not None
    }  # fmt: skip


def test_scales_for_each_column_where_they_pay_and_are_taken() -> None:
    layer = make("simple")
    wide = replace(layer, matrices={name: replace(each, per_channel=True) for name, each in layer.matrices.items()})
    assert kernel_scales(write(plan_of(layer), write_loop)) == {1}
    assert kernel_scales(write(plan_of(wide), write_loop)) == {UNITS}
    assert kernel_scales(write(plan_of(wide, per_channel=False), write_loop)) == {1}
    assert kernel_scales(write(plan_of(layer, 16), write_loop)) == {UNITS}
    assert kernel_scales(write(plan_of(layer, 16, per_channel=False), write_loop)) == {1}


def test_kernels_are_in_the_file_once() -> None:
    """However many steps use them."""
    layer = make("gru")
    content = write(plan_of(layer), write_unrolled)
    weights = sum(matrix.values.size for matrix in layer.matrices.values())
    tree = read_tree(content)
    stored = Counter(bytes(each.data) for each in tree.buffers if each.data is not None and len(each.data))
    assert set(stored.values()) == {1}
    assert sum(len(data) for data in stored) < weights + 2000


def test_unrolled_sequences_are_joined_in_parts_that_small_runtimes_take() -> None:
    plan = plan_of(make("gru, hard gates"))
    content = write(plan, write_unrolled, 105)
    codes = read_tree(content).operatorCodes
    joins = [
        each for each in read_tree(content).subgraphs[0].operators
        if codes[each.opcodeIndex].builtinCode == schema.BuiltinOperator.CONCATENATION
    ]  # fmt: skip
    assert len(joins) == 11 + 2
    assert max(len(each.inputs) for each in joins) == 10
    x = sequences(plan.layer, 1, 105)
    loop = answers(write(plan, write_loop, 105), plan, x)[0]
    np.testing.assert_array_equal(answers(content, plan, x)[0], loop)


@pytest.mark.parametrize("form", ["loop", "several steps a turn", "unrolled"])
@pytest.mark.parametrize("name", ["gru", "lstm", "zeros where nothing is"])
def test_tflite_micro_leaves_out_the_same_steps(name, form) -> None:
    runtime = pytest.importorskip("tflite_micro.python.tflite_micro.runtime")
    layer = make(name)
    plan, x = plan_of(layer), sequences(layer, SAMPLES)
    mask, content = mask_for(x), write(plan, FORMS[form], mask=True)
    micro = runtime.Interpreter.from_bytes(content, arena_size=200_000)
    expected = answers(content, plan, x, mask)
    for sample, given in enumerate(integers(x, plan.scales["x"])):
        micro.set_input(given[None], 0)
        micro.set_input(mask[sample : sample + 1], 1)
        micro.invoke()
        for place, wanted in enumerate(expected):
            np.testing.assert_array_equal(micro.get_output(place)[0], wanted[sample])
