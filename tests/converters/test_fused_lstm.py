"""An LSTM as one integer operator: near to float, forgetful when told to, alike in other runtimes, and its limits."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgecompress.artifacts import read_artifact
from edgecompress.benchmark.execute import run_tflite
from edgecompress.converters.fused_lstm import write_fused
from edgecompress.converters.graph_writer import TreeWriter
from edgecompress.converters.integer_cells import IntegerLayer
from edgecompress.converters.integer_forms import write_unrolled
from edgecompress.data import Dataset, InputSpec
from edgecompress.errors import ConversionError
from edgecompress.flatbuffer import read_tree, write_tree
from edgecompress.recurrent.cells import Matrix, RecurrentLayer
from edgecompress.recurrent.observing import observe, run
from edgecompress.recurrent.scales import Scale, activation_scales, scale_of

UNITS, STEPS, FEATURES = 16, 8, 8
OPERATOR = "UNIDIRECTIONAL_SEQUENCE_LSTM"


@pytest.fixture(scope="module")
def rows(digits):
    (x, _), _ = digits.digits(as_rows=True)
    return x[:30]


@pytest.fixture(scope="module")
def layer() -> RecurrentLayer:
    """An LSTM with weights that saturate some of its gates."""
    random = np.random.default_rng(0)

    def matrix(inputs: int, gates: int, *, bias: bool) -> Matrix:
        values = random.normal(0, 0.5, (inputs, gates * UNITS)).astype(np.float32)
        return Matrix(values, random.normal(0, 0.5, gates * UNITS).astype(np.float32) if bias else None)

    names = ("x_gates", "x_candidate", "h_gates", "h_candidate")
    sizes = ((FEATURES, 3), (FEATURES, 1), (UNITS, 3), (UNITS, 1))
    matrices = {name: matrix(*size, bias=name.startswith("x")) for name, size in zip(names, sizes, strict=True)}
    return RecurrentLayer("lstm", "lstm", UNITS, FEATURES, matrices, {name: ((name,),) for name in names})


def make(layer, x, write=write_fused):
    """Returns a file of one layer, and its plan."""
    plan = IntegerLayer(layer, activation_scales(layer, observe(layer, x), 8), 8, True, layer.name)
    graph = new_graph()
    given = graph.tensor("x", (1, *x.shape[1:]), "int8", plan.scales["x"])
    output, *_ = write(graph, plan, given)
    graph.graph.inputs = [given.index]
    graph.give_outputs([output])
    return write_tree(graph.file.tree), plan


def new_graph():
    return TreeWriter(schema.ModelT(version=3, operatorCodes=[], subgraphs=[], buffers=[schema.BufferT()])).new_graph(
        ""
    )


def integers(x, scale: Scale):
    return np.clip(np.rint(x / scale.step) + scale.zero_point, -128, 127).astype(np.int8)


def numbers(x, scale: Scale):
    return (x.astype(np.float32) - scale.zero_point) * scale.step


class Runner:
    """LiteRT with its reference kernels."""

    def __init__(self, content: bytes) -> None:
        self._interpreter = Interpreter(
            model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF, num_threads=1
        )
        self._interpreter.allocate_tensors()

    def reset(self) -> None:
        self._interpreter.reset_all_variables()

    def __call__(self, x):
        self._interpreter.set_tensor(self._interpreter.get_input_details()[0]["index"], x)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._interpreter.get_output_details()[0]["index"])


def answers(content: bytes, plan: IntegerLayer, x):
    runner, found = Runner(content), []
    for sample in integers(x, plan.scales["x"]):
        runner.reset()
        found.append(runner(sample[None]))
    return np.concatenate(found)


@pytest.mark.parametrize("return_sequences", [False, True])
def test_nearer_to_float_than_8_bits_at_each_step(layer, rows, return_sequences) -> None:
    layer = replace(layer, return_sequences=return_sequences)
    (wanted,) = run(layer, rows)
    errors = []
    for write in (write_fused, write_unrolled):
        content, plan = make(layer, rows, write)
        found = numbers(answers(content, plan, rows), plan.state_scale("state_0"))
        assert found.shape == wanted.shape
        errors.append(float(np.sqrt(np.mean((found - wanted) ** 2))))
    assert errors[0] < 0.7 * errors[1]
    assert errors[0] < 0.01


def test_one_operator_however_many_steps(layer, rows) -> None:
    short, _ = make(layer, rows)
    long, _ = make(layer, np.tile(rows, (1, 100, 1)))
    assert len(long) == len(short)
    tree = read_tree(long)
    codes = [tree.operatorCodes[each.opcodeIndex].builtinCode for each in tree.subgraphs[0].operators]
    assert codes == [schema.BuiltinOperator.UNIDIRECTIONAL_SEQUENCE_LSTM, schema.BuiltinOperator.STRIDED_SLICE]


def test_remembers_until_it_is_reset(layer, rows) -> None:
    content, plan = make(layer, rows)
    runner, (first, *_) = Runner(content), integers(rows, plan.scales["x"])
    fresh = runner(first[None])
    assert (runner(first[None]) != fresh).any()
    runner.reset()
    assert (runner(first[None]) == fresh).all()


def test_a_layer_without_biases(layer, rows) -> None:
    matrices = {name: replace(matrix, bias=None) for name, matrix in layer.matrices.items()}
    layer = replace(layer, matrices=matrices)
    content, plan = make(layer, rows)
    found = numbers(answers(content, plan, rows), plan.state_scale("state_0"))
    assert np.abs(found - run(layer, rows)[0]).max() < 0.04


@pytest.mark.parametrize(
    ("largest", "power"), [(0.001, 0), (0.9, 0), (1.1, 1), (3.9, 2), (30.0, 5), (64.0, 6), (1000.0, 6)]
)
def test_the_carry_has_a_power_of_two_that_reaches_its_range(layer, rows, largest, power) -> None:
    scales = activation_scales(layer, observe(layer, rows), 8)
    scales["state_1"] = scale_of(-largest / 2, largest * 0.999, 8)
    graph = new_graph()
    write_fused(
        graph,
        IntegerLayer(layer, scales, 8, True, "lstm"),
        graph.tensor("x", (1, STEPS, FEATURES), "int8", scales["x"]),
    )
    (carry,) = (each for each in graph.graph.tensors if each.type == schema.TensorType.INT16)
    assert carry.isVariable
    assert carry.quantization.scale.tolist() == [2.0 ** (power - 15)]


def test_a_carry_beyond_its_range_stays_at_the_end_of_it(layer) -> None:
    """Sums up to 100, where tanh is 1 long since."""
    biases = {"x_gates": np.repeat([9.0, 9.0, 9.0], UNITS), "x_candidate": np.full(UNITS, 9.0)}
    matrices = {
        name: Matrix(matrix.values * 0, biases[name].astype(np.float32) if name in biases else None)
        for name, matrix in layer.matrices.items()
    }
    layer, x = replace(layer, matrices=matrices), np.ones((1, 100, FEATURES), np.float32)
    content, plan = make(layer, x)
    found = numbers(answers(content, plan, x), plan.state_scale("state_0"))
    assert np.abs(found - 1).max() < 0.02


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "gru"}, "kind 'gru'"),
        ({"products": {"x_gates": (("x_factor", "x_gates"),)}}, "factorized"),
        ({"activation": "relu"}, "relu and sigmoid"),
        ({"recurrent_activation": "hard_sigmoid"}, "tanh and hard_sigmoid"),
        ({"go_backwards": True}, "backwards"),
        ({"return_state": True}, "returns its last states"),
    ],
)
def test_refuses_other_layers(layer, change, reason) -> None:
    with pytest.raises(ConversionError, match=f"'lstm' does not fit .*{reason}.*use --recurrent loop"):
        write_fused(new_graph(), IntegerLayer(replace(layer, **change), {}, 8, True, "lstm"), None)


def test_refuses_16_bits_and_states_to_begin_with(layer) -> None:
    graph = new_graph()
    state = graph.tensor("state", (1, UNITS), "int8", scale_of(-1, 1, 8))
    with pytest.raises(ConversionError, match="16-bit activations"):
        write_fused(graph, IntegerLayer(layer, {}, 16, True, "lstm"), None)
    with pytest.raises(ConversionError, match="the states that it begins with"):
        write_fused(graph, IntegerLayer(layer, {}, 8, True, "lstm"), None, [state, state])


@pytest.mark.parametrize("return_sequences", [False, True])
def test_tensorflow_lite_micro_is_at_most_a_step_away(layer, rows, return_sequences) -> None:
    pytest.importorskip("tflite_micro")
    from tflite_micro.python.tflite_micro import runtime

    content, plan = make(replace(layer, return_sequences=return_sequences), rows)
    micro, found = runtime.Interpreter.from_bytes(content, arena_size=100_000), []
    for sample in integers(rows, plan.scales["x"]):
        micro.reset()
        micro.set_input(sample[None], 0)
        micro.invoke()
        found.append(micro.get_output(0).copy())
    differences = np.abs(answers(content, plan, rows).astype(int) - np.concatenate(found))
    assert differences.max() <= 1  # its sigmoid and tanh are tables
    assert differences.mean() < 0.1


def test_vela_leaves_nothing_to_the_cpu(layer, rows, tmp_path) -> None:
    pytest.importorskip("ethosu.vela")
    file = tmp_path / "lstm.tflite"
    file.write_bytes(make(layer, rows)[0])
    command = [sys.executable, "-P", "-m", "ethosu.vela", file, "--accelerator-config", "ethos-u55-128"]
    said = subprocess.run([*command, "--output-dir", tmp_path], check=True, capture_output=True, text=True).stdout
    assert "CPU operators = 0 (0.0%)" in said


def test_a_network_of_lstms(rows, in_process, tmp_path) -> None:
    import keras

    from edgecompress.converters.ptq import QuantizationJob
    from edgecompress.converters.recurrent import RecurrentNetwork
    from edgecompress.models import load_model
    from edgecompress.profiles import RecurrentLowering
    from edgecompress.schemes import Observer, QuantizationScheme

    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((STEPS, FEATURES), name="rows"), keras.layers.LSTM(12, return_sequences=True), keras.layers.LSTM(8),
        keras.layers.Dense(4, name="answer"),
    ])  # fmt: skip
    source, samples = load_model(model), Dataset({"rows": rows})
    with in_process():
        network = RecurrentNetwork(
            source, [InputSpec("rows", (1, STEPS, FEATURES), "float32")], QuantizationJob(QuantizationScheme.INT8),
            samples=samples, observer=Observer.MIN_MAX, folder=tmp_path,
        )  # fmt: skip
        file = network.write(RecurrentLowering.FUSED).path
    names = [op.name for op in read_artifact(file).ops]
    assert names.count(OPERATOR) == 2
    assert "WHILE" not in names
    wanted = model.predict(rows, verbose=0)
    assert np.abs(run_tflite(file, {"rows": rows})["answer"] - wanted).max() < 0.05 * np.abs(wanted).max()
