"""Conversion to float .tflite: the model's own answers and names, and a named error for all that fails."""

import os
import subprocess
import sys

import numpy as np
import pytest

from edgecompress.artifacts import read_artifact
from edgecompress.benchmark.execute import run_tflite
from edgecompress.converters import tflite
from edgecompress.converters.tflite import FloatConverter, FrozenGraph, freeze_graph
from edgecompress.data import InputSpec, fix_shapes
from edgecompress.errors import ConversionError
from edgecompress.isolate import Child
from edgecompress.models import load_model

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

layers = keras.layers
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(4, 6, 5)).astype(np.float32)
IMAGES = RNG.normal(size=(4, 8, 8, 3)).astype(np.float32)


@pytest.fixture
def convert(to_tflite, tmp_path):
    return lambda model: to_tflite(model, tmp_path)


@pytest.fixture
def refusal(convert):
    def ask(model) -> str:
        with pytest.raises(ConversionError) as caught:
            convert(model)
        line = str(caught.value)
        assert "\n" not in line
        assert len(line) < 600
        return line

    return ask


def sequence(*parts, shape=(6, 5), dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype, name="x"), *parts], name="m")


def attention():
    x = keras.Input((6, 5), name="x")
    attended = layers.MultiHeadAttention(2, 4)(x, x)
    return keras.Model(x, layers.Dense(3)(layers.LayerNormalization()(layers.Add()([x, attended]))))


def settled(model, x):
    """Gives batch normalization statistics other than 0 and 1."""
    model(x, training=True)
    return model


MODELS = {
    "convolution": lambda: settled(
        sequence(
            layers.Conv2D(8, 3, use_bias=False), layers.BatchNormalization(momentum=0.0), layers.ReLU(6.0),
            layers.DepthwiseConv2D(3, padding="same"), layers.MaxPooling2D(), layers.Flatten(), layers.Dense(4),
            layers.Softmax(), shape=(8, 8, 3),
        ),
        IMAGES,
    ),
    "GRU": lambda: sequence(layers.GRU(7)),
    "LSTM": lambda: sequence(layers.LSTM(7, return_sequences=True), layers.LSTM(3)),
    "SimpleRNN": lambda: sequence(layers.SimpleRNN(7, go_backwards=True)),
    "masked and bidirectional": lambda: sequence(layers.Masking(), layers.Bidirectional(layers.GRU(4))),
    "attention": attention,
    "Conv1D": lambda: sequence(layers.Conv1D(4, 3, dilation_rate=2), layers.GlobalMaxPooling1D(), layers.LeakyReLU()),
    "SeparableConv": lambda: sequence(layers.SeparableConv2D(4, 3, activation="gelu"), shape=(8, 8, 3)),
    "upwards": lambda: sequence(
        layers.Conv2DTranspose(4, 3, strides=2), layers.UpSampling2D(interpolation="bilinear"), layers.ZeroPadding2D(),
        layers.PReLU(shared_axes=(1, 2)), shape=(8, 8, 3),
    ),
    "TimeDistributed": lambda: sequence(layers.TimeDistributed(layers.Dense(3)), layers.GaussianNoise(1.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_float_files_answer_like_the_model(convert, name) -> None:
    model = MODELS[name]()
    x = IMAGES if len(model.inputs[0].shape) == 4 else ROWS.copy()
    if "masked" in name:
        x[1, 3:] = 0
    file = convert(model)
    (answer,) = run_tflite(file, {"x": x}).values()
    np.testing.assert_allclose(answer, model.predict(x, verbose=0), atol=1e-5)
    artifact = read_artifact(file)
    assert artifact.flex_ops == artifact.custom_ops == ()
    assert next(iter(artifact.signature.inputs.values())).shape == (1, *x.shape[1:])


def test_integer_inputs(convert) -> None:
    model = sequence(layers.Embedding(20, 4, mask_zero=True), layers.GRU(3), shape=(6,), dtype="int32")
    tokens = RNG.integers(0, 20, (5, 6)).astype(np.int32)
    file = convert(model)
    assert read_artifact(file).signature.inputs["x"].dtype == "int32"
    (answer,) = run_tflite(file, {"x": tokens}).values()
    np.testing.assert_allclose(answer, model.predict(tokens, verbose=0), atol=1e-5)


def test_several_inputs_and_outputs_keep_their_names_and_order(convert) -> None:
    zeta, alpha = keras.Input((5,), name="zeta"), keras.Input((5,), name="alpha")
    outputs = [layers.Dense(2, name="second")(zeta), layers.Dense(3, name="first")(alpha), zeta]
    model = keras.Model([zeta, alpha], [*outputs, outputs[0]])
    file = convert(model)
    signature = read_artifact(file).signature
    assert list(signature.inputs) == ["zeta", "alpha"]
    assert list(signature.outputs) == ["second", "first", "zeta", "second_1"]
    x = {"zeta": ROWS[:, 0], "alpha": ROWS[:, 1]}
    answers = run_tflite(file, x)
    expected = model.predict([x["zeta"], x["alpha"]], verbose=0)
    for name, values in zip(signature.outputs, expected, strict=True):
        np.testing.assert_allclose(answers[name], values, atol=1e-5)


def test_dicts_of_inputs_and_outputs(convert) -> None:
    zeta, alpha = keras.Input((5,), name="zeta"), keras.Input((5,), name="alpha")
    file = convert(keras.Model({"zeta": zeta, "alpha": alpha}, {"b": zeta - alpha, "a": zeta + alpha}))
    x = {"zeta": ROWS[:, 0], "alpha": ROWS[:, 1]}
    answers = run_tflite(file, x)
    np.testing.assert_allclose(answers["b"], x["zeta"] - x["alpha"], atol=1e-5)
    np.testing.assert_allclose(answers["a"], x["zeta"] + x["alpha"], atol=1e-5)


def test_an_input_without_use_stays(convert) -> None:
    zeta, alpha = keras.Input((5,), name="zeta"), keras.Input((5,), name="alpha")
    file = convert(keras.Model([zeta, alpha], layers.Dense(2, name="y")(zeta)))
    assert list(read_artifact(file).signature.inputs) == ["zeta", "alpha"]
    assert run_tflite(file, {"zeta": ROWS[:, 0], "alpha": ROWS[:, 1]})["y"].shape == (4, 2)


def test_a_larger_fixed_batch_becomes_one(convert) -> None:
    x = keras.Input(batch_shape=(8, 6, 5), name="x")
    file = convert(keras.Model(x, layers.GRU(3, name="y")(x)))
    assert read_artifact(file).signature.inputs["x"].shape == (1, 6, 5)


# Refusals


class Svd(keras.layers.Layer):
    def call(self, x):
        return keras.ops.svd(x, compute_uv=False)


class Inverse(keras.layers.Layer):
    def call(self, x):
        return keras.ops.inv(x)


class Digits(keras.layers.Layer):
    def call(self, x):
        return tf.strings.length(tf.strings.as_string(x))


@pytest.mark.parametrize(
    ("layer", "operator"), [(Svd, "Svd"), (Inverse, "MatrixInverse"), (Digits, "AsString, StringLength")]
)
def test_an_operator_that_tensorflow_lite_lacks(refusal, layer, operator) -> None:
    """MatrixInverse and AsString would be Flex operators, if those were allowed."""
    line = refusal(sequence(layers.Dense(6), layer(name="culprit")))
    assert f"TensorFlow Lite has no operator for {operator} (in culprit)" in line


def test_a_layer_that_keeps_its_state(refusal) -> None:
    x = keras.Input(batch_shape=(1, 6, 5))
    line = refusal(keras.Model(x, layers.Dense(2)(layers.GRU(4, stateful=True, name="memory")(x))))
    assert "the model changes its own variables while it runs (in memory)" in line
    assert "stateful=False" in line


def test_a_model_that_cannot_be_traced(refusal) -> None:
    class Picky(keras.layers.Layer):
        def call(self, x):
            if x.shape[0] is not None:
                raise ValueError("only for batches\nof any size")
            return x

    assert "m: the model cannot be traced at fixed shapes: only for batches of any size" in refusal(sequence(Picky()))


# The child process


def test_a_trained_network_through_the_child(digits_gru, tmp_path) -> None:
    loaded = load_model(digits_gru.model)
    with np.load(digits_gru.data) as data:
        x = data["x"][:50]
    graph = freeze_graph(loaded, fix_shapes(loaded.inputs, None))
    assert graph.recurrent_layers == ("gru",)
    assert graph.layers == ("gru", "digit")
    with FloatConverter() as converter:
        file = converter.convert(graph, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["float.tflite"]
    expected = loaded.predict({"rows": x}, fixed=loaded.inputs)["digit"]
    np.testing.assert_allclose(run_tflite(file, {"rows": x})["digit"], expected, atol=1e-5)


GRAPH = FrozenGraph(b"", {"x": "x:0"}, {"y": "y:0"}, "m.keras", ("gru", "dense"), ("gru",))


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Lets another module do the child's work, and returns the error that a user sees."""

    def convert_with(source: str, graph: FrozenGraph = GRAPH) -> str:
        (tmp_path / "stand_in.py").write_text(source)
        environment = {"PYTHONPATH": str(tmp_path)}
        monkeypatch.setattr(tflite, "Child", lambda *_args, **_options: Child("stand_in", environment=environment))
        with FloatConverter() as converter, pytest.raises(ConversionError) as caught:
            converter.convert(graph, tmp_path)
        assert not (tmp_path / "float.tflite").exists()
        return str(caught.value)

    return convert_with


def test_a_crash_is_named(stand_in) -> None:
    line = stand_in("import os, signal, sys\nsys.stdin.readline()\nos.kill(os.getpid(), signal.SIGSEGV)")
    assert line.startswith("m.keras: the TensorFlow Lite converter crashed (SIGSEGV)")
    assert "its recurrent layers (gru) are the likeliest cause" in line
    assert "\n" not in line


def test_a_hang_is_named(stand_in, monkeypatch) -> None:
    monkeypatch.setattr(tflite, "_TIME_LIMIT_S", 0.5)
    assert "the TensorFlow Lite converter was ended at its time limit" in stand_in("import time\ntime.sleep(60)")


def test_an_early_end_is_named(stand_in) -> None:
    line = stand_in("import sys\nsys.exit('No space left on device')")
    assert "ended with exit code 1" in line
    assert "No space left on device" in line


CRASH = """
import numpy as np
import keras
import tensorflow as tf
from edgecompress.isolate import serve_one_job

def convert(job, progress):
    model = keras.Sequential([keras.Input((8, 8)), keras.layers.LSTM(4)])
    model.export(job["folder"], input_signature=[keras.InputSpec(shape=(1, 8, 8), dtype="float32")], verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(job["folder"])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.representative_dataset = lambda: ([np.ones((1, 8, 8), np.float32)] for _ in range(2))
    return {"size": len(converter.convert())}

serve_one_job(convert)
"""


def test_a_real_crash_of_the_converter_leaves_this_process_alive(tmp_path) -> None:
    """TensorFlow's own full int8 conversion of a looped LSTM ends its process; here it is a value."""
    (tmp_path / "crashing.py").write_text(CRASH)
    environment = {"PYTHONPATH": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    with Child("crashing", environment=environment) as child:
        outcome, result = child.run({"folder": str(tmp_path / "saved")}, time_limit_s=120)
    assert result is None
    assert outcome.crashed
    assert outcome.how_it_ended == "crashed (SIGSEGV)"


FRESH = """
import hashlib, sys, tempfile
from pathlib import Path
from edgecompress.converters.graph_child import convert_graph
from edgecompress.converters.tflite import freeze_graph
from edgecompress.data import InputSpec, fix_shapes
from edgecompress.models import load_model

loaded = load_model(sys.argv[1])
graph = freeze_graph(loaded, fix_shapes(loaded.inputs, None))
with tempfile.TemporaryDirectory() as folder:
    source, destination = Path(folder, "graph.pb"), Path(folder, "m.tflite")
    source.write_bytes(graph.graph_def)
    inputs, outputs = list(graph.inputs.values()), list(graph.outputs.values())
    job = {"graph": source, "inputs": inputs, "outputs": outputs, "destination": destination}
    assert convert_graph(job, None) == {}
    print(hashlib.sha256(destination.read_bytes()).hexdigest())
"""


def test_two_fresh_processes_write_the_same_bytes(digits_gru) -> None:
    def start(seed: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", FRESH, digits_gru.model]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    digests = [process.communicate(timeout=300)[0].strip() for process in [start("1"), start("2")]]
    assert len(digests[0]) == 64
    assert digests[0] == digests[1]


def test_dropout_inside_of_recurrent_layers_is_left_out_and_stays_in_the_model() -> None:
    model = keras.Sequential([keras.Input((5, 3)), layers.Bidirectional(layers.GRU(4, dropout=0.3))])
    graph = freeze_graph(load_model(model), [InputSpec("x", (1, 5, 3), "float32")])
    assert b"Assign" not in graph.graph_def
    assert model.layers[0].forward_layer.cell.dropout == model.layers[0].backward_layer.cell.dropout == 0.3
