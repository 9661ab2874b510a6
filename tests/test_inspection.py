from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
import tf_keras

from edgecompress.artifacts import Artifact, read_artifact
from edgecompress.errors import ModelError
from edgecompress.inspection import LayerInfo, ModelSummary, inspect, summarize_keras
from edgecompress.layers import FactorizedDense, LowRankDense, LowRankGRU, LowRankLSTM
from tests.handmade import dense_model

both = pytest.mark.parametrize("framework", [keras, tf_keras], ids=["keras", "tf_keras"])


def sequential(framework: Any, shape: tuple[int | None, ...], *layers: Any) -> ModelSummary:
    return summarize_keras(framework.Sequential([framework.Input(shape), *layers]))


def only(summary: ModelSummary) -> LayerInfo:
    (layer,) = summary.layers
    return layer


def test_importing_imports_no_keras() -> None:
    code = "import sys, edgecompress.inspection; print({'tensorflow', 'keras', 'tf_keras'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@both
def test_a_summary(framework: Any) -> None:
    layers = framework.layers
    model = framework.Sequential(
        [
            framework.Input((8, 8, 3), name="image"),
            layers.Conv2D(4, 3, padding="same", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.Flatten(name="flat"),
            layers.Dense(5, name="scores"),
        ]
    )
    model.get_layer("conv").trainable = False
    summary = summarize_keras(model)

    assert summary.format == framework.__name__
    assert summary.inputs["image"].shape == (None, 8, 8, 3)
    assert summary.outputs == {"scores": ((None, 5), "float32")}
    assert [(layer.name, layer.kind) for layer in summary.layers] == [
        ("conv", "Conv2D"), ("norm", "BatchNormalization"), ("flat", "Flatten"), ("scores", "Dense"),
    ]  # fmt: skip
    conv, norm, flat, scores = summary.layers
    assert (conv.output_shape, conv.dtype) == ((None, 8, 8, 4), "float32")
    assert (conv.parameters, conv.trainable_parameters, conv.macs, conv.bytes) == (112, 0, 8 * 8 * 4 * 27, 448)
    assert (norm.parameters, norm.trainable_parameters, norm.macs) == (16, 8, 0)
    assert (flat.parameters, flat.macs) == (0, 0)
    assert scores.macs == 256 * 5
    assert summary.parameters == model.count_params()
    assert summary.bytes == 4 * model.count_params()
    assert summary.macs == 8 * 8 * 4 * 27 + 256 * 5
    assert summary.not_counted == ()


@both
@pytest.mark.parametrize(
    ("shape", "make", "macs"),
    [
        ((12, 6), lambda n: n.Dense(5), 12 * 6 * 5),
        ((12, 6), lambda n: n.EinsumDense("abc,cde->abde", output_shape=(12, 2, 3)), 12 * 6 * 6),
        ((12, 6), lambda n: n.EinsumDense("...x,xy->...y", output_shape=5), 12 * 6 * 5),
        ((12, 6), lambda n: n.Conv1D(4, 3), 10 * 4 * 18),
        ((8, 8, 6), lambda n: n.Conv2D(4, (3, 5), strides=2, groups=2, padding="same"), 16 * 4 * 15 * 3),
        ((4, 4, 4, 2), lambda n: n.Conv3D(3, 2), 27 * 3 * 16),
        ((12, 6), lambda n: n.DepthwiseConv1D(3, depth_multiplier=2), 10 * 12 * 3),
        ((8, 8, 3), lambda n: n.DepthwiseConv2D(3, depth_multiplier=2), 36 * 6 * 9),
        ((12, 6), lambda n: n.SeparableConv1D(4, 3), 10 * (6 * 3 + 6 * 4)),
        ((8, 8, 3), lambda n: n.SeparableConv2D(4, 3, depth_multiplier=2), 36 * (6 * 9 + 6 * 4)),
        ((12, 6), lambda n: n.Conv1DTranspose(4, 3, strides=2), 12 * 6 * 3 * 4),
        ((4, 4, 2), lambda n: n.Conv2DTranspose(5, 3, strides=2, padding="same"), 16 * 2 * 9 * 5),
        ((4, 4, 4, 2), lambda n: n.Conv3DTranspose(3, 2), 64 * 2 * 8 * 3),
        ((12, 6), lambda n: n.GRU(5), 12 * 3 * 5 * 11),
        ((12, 6), lambda n: n.LSTM(5, return_sequences=True), 12 * 4 * 5 * 11),
        ((12, 6), lambda n: n.SimpleRNN(5), 12 * 5 * 11),
        ((12, 6), lambda n: n.Bidirectional(n.GRU(5)), 2 * 12 * 3 * 5 * 11),
        ((12, 6), lambda n: n.TimeDistributed(n.Dense(5)), 12 * 6 * 5),
        ((6, 8, 8, 3), lambda n: n.TimeDistributed(n.Conv2D(4, 3)), 6 * 36 * 4 * 27),
        ((12,), lambda n: n.Embedding(10, 4), 0),
        ((12, 6), lambda n: n.LayerNormalization(), 0),
        ((12, 6), lambda n: n.PReLU(), 0),
    ],
)
def test_one_layer(framework: Any, shape: tuple[int, ...], make: Any, macs: int) -> None:
    assert only(sequential(framework, shape, make(framework.layers))).macs == macs


@both
@pytest.mark.parametrize("keys", [12, 7])
def test_attention(framework: Any, keys: int) -> None:
    query, value = framework.Input((12, 8)), framework.Input((keys, 10))
    attention = framework.layers.MultiHeadAttention(num_heads=3, key_dim=4, value_dim=5)
    (layer,) = summarize_keras(framework.Model([query, value], attention(query, value))).layers
    projections = 12 * 8 * 12 + keys * 10 * 12 + keys * 10 * 15 + 12 * 15 * 8
    assert layer.macs == projections + 3 * 12 * keys * (4 + 5)


@both
def test_nested_models_and_shared_layers(framework: Any) -> None:
    layers = framework.layers
    block = framework.Sequential([framework.Input((6,)), layers.Dense(6, name="inner")], name="block")
    shared = layers.Dense(6, name="shared")
    x = framework.Input((6,))
    model = framework.Model(x, layers.add([block(block(x)), shared(shared(shared(x)))], name="sum"))
    summary = summarize_keras(model)

    found = {layer.name: (layer.parameters, layer.macs) for layer in summary.layers}
    assert found == {"block/inner": (42, 2 * 36), "shared": (42, 3 * 36), "sum": (0, 0)}
    assert (summary.parameters, summary.macs) == (84, 5 * 36)
    assert model.count_params() == 84


@both
def test_time_distributed_models_count_each_step(framework: Any) -> None:
    inner = framework.Sequential([framework.Input((6,)), framework.layers.Dense(4), framework.layers.Dense(2)])
    summary = sequential(framework, (5, 6), framework.layers.TimeDistributed(inner))
    assert only(summary).macs == 5 * (24 + 8)


@both
def test_layers_used_outside_the_model_do_not_count(framework: Any) -> None:
    x = framework.Input((6,))
    first, second = framework.layers.Dense(5), framework.layers.Dense(4)
    middle = first(x)
    framework.Model(x, second(middle))
    summary = summarize_keras(framework.Model(x, middle))
    assert (only(summary).kind, summary.macs) == ("Dense", 30)


@both
def test_subclasses_count_as_their_base(framework: Any) -> None:
    class Projection(framework.layers.Dense):  # type: ignore[name-defined,misc]
        pass

    layer = only(sequential(framework, (6,), Projection(5)))
    assert (layer.kind, layer.macs) == ("Projection", 30)


@both
def test_a_class_that_only_shares_a_name_does_not_count(framework: Any) -> None:
    class Dense(framework.layers.Layer):  # type: ignore[name-defined,misc]
        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(shape=(shape[-1], 3), name="kernel")
            self.built = True

        def call(self, x: Any) -> Any:
            return x * 2

    summary = sequential(framework, (6,), Dense(name="mine"))
    assert only(summary).macs is None
    assert summary.macs is None
    assert summary.not_counted == ("mine: unknown layer class Dense",)


@both
def test_unknown_sizes_are_named(framework: Any) -> None:
    layers = framework.layers
    steps = sequential(framework, (None, 6), layers.GRU(5, name="gru"), layers.Dense(2))
    assert steps.not_counted == ("gru: unknown sequence length",)
    assert [layer.macs for layer in steps.layers] == [None, 10]
    assert steps.macs is None
    image = sequential(framework, (None, None, 3), layers.Conv2D(4, 3, name="conv"))
    assert image.not_counted == ("conv: unknown input size",)


def test_products_without_weights_are_named() -> None:
    x = keras.Input((6, 4))
    product = summarize_keras(keras.Model(x, keras.ops.matmul(x, keras.ops.transpose(x, (0, 2, 1)))))
    assert product.not_counted == ("matmul: Matmul is not counted",)
    y = tf_keras.Input((6, 4))
    product = summarize_keras(tf_keras.Model(y, tf.matmul(y, y, transpose_b=True) * 2))
    assert product.not_counted == ("tf.linalg.matmul: TFOpLambda is not counted",)
    attention = summarize_keras(keras.Model(x, keras.layers.Attention(name="attend")([x, x])))
    assert attention.not_counted == ("attend: Attention is not counted",)


def test_half_precision() -> None:
    layer = only(sequential(keras, (6,), keras.layers.Dense(5, dtype="float16")))
    assert (layer.dtype, layer.bytes) == ("float16", 2 * 35)


def test_inputs_and_outputs_of_the_same_name() -> None:
    x = keras.Input((4,), name="x")
    y = keras.layers.Dense(2, name="y")(x)
    assert list(summarize_keras(keras.Model(x, [y, y])).outputs) == ["y", "y_1"]


def test_a_model_without_a_graph_is_refused() -> None:
    with pytest.raises(ModelError, match="no graph of layers"):
        summarize_keras(keras.Sequential([keras.layers.Dense(3)]))


def networks() -> dict[str, Any]:
    layers = keras.layers
    x = keras.Input((12, 8), batch_size=1)
    return {
        "mlp": keras.Sequential([keras.Input((20,)), layers.Dense(16, activation="relu"), layers.Dense(4)]),
        "cnn": keras.Sequential(
            [
                keras.Input((16, 16, 3)),
                layers.Conv2D(8, 3, strides=2, padding="same"),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.DepthwiseConv2D(3, padding="same"),
                layers.SeparableConv2D(8, 3),
                layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(5),
            ]
        ),
        "gru": keras.Sequential([keras.Input((12, 6), batch_size=1), layers.GRU(8), layers.Dense(3)]),
        "lstm": keras.Sequential([keras.Input((12, 6), batch_size=1), layers.LSTM(8)]),
        "steps": keras.Sequential([keras.Input((12, 6)), layers.Dense(8), layers.Conv1D(4, 3)]),
        "attention": keras.Model(x, layers.MultiHeadAttention(2, 4)(x, x)),
    }


@pytest.mark.parametrize("name", ["mlp", "cnn", "gru", "lstm", "steps", "attention"])
def test_a_keras_model_and_its_file_count_the_same(name: str, tmp_path: Path) -> None:
    model = networks()[name]
    file = tmp_path / "model.tflite"
    file.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())

    found = inspect(file)
    assert isinstance(found, Artifact)
    assert found == read_artifact(file)
    assert found.macs is not None
    assert found.macs == summarize_keras(model).macs


def test_inspect_takes_files_and_models(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="tiny")
    model.save(tmp_path / "tiny.keras")
    from_file, from_memory = inspect(tmp_path / "tiny.keras"), inspect(model)
    assert isinstance(from_file, ModelSummary)
    assert isinstance(from_memory, ModelSummary)
    assert (from_file.path, from_memory.path) == (tmp_path / "tiny.keras", None)
    assert (from_file.name, from_file.macs) == (from_memory.name, from_memory.macs) == ("tiny", 12)

    nameless = tmp_path / "model.bin"
    nameless.write_bytes(dense_model().pack())
    assert isinstance(inspect(nameless), Artifact)

    model.export(tmp_path / "saved", verbose=False)
    with pytest.raises(ModelError, match="a SavedModel has no layers"):
        inspect(tmp_path / "saved")


@pytest.mark.parametrize(
    ("shape", "make", "macs"),
    [
        ((12, 6), lambda: LowRankDense(5, 2), 12 * 2 * (6 + 5)),
        ((12, 6), lambda: FactorizedDense(5, 2, 0.1), 12 * (2 * (6 + 5) + 6 * 5)),
        ((12, 6), lambda: FactorizedDense(5, 2, 0), 12 * 2 * (6 + 5)),
        ((12, 6), lambda: LowRankGRU(5), 12 * 3 * 5 * (6 + 5)),
        ((12, 6), lambda: LowRankGRU(5, input_rank=2, recurrent_rank=3), 12 * (2 * (6 + 15) + 3 * (5 + 15))),
        ((12, 6), lambda: LowRankGRU(5, recurrent_rank=3, reset_after=False), 12 * (6 * 15 + 3 * (2 * 5 + 15))),
        (
            (12, 6),
            lambda: LowRankGRU(5, recurrent_rank=3, gates="separate", reset_after=False),
            12 * (6 * 15 + 3 * 3 * (5 + 5)),
        ),
        ((12, 15), lambda: LowRankGRU(5, project_inputs=False), 12 * 5 * 15),
        ((12, 6), lambda: LowRankLSTM(5, input_rank=2, recurrent_rank=3), 12 * (2 * (6 + 20) + 3 * (5 + 20))),
        ((12, 6), lambda: keras.layers.Bidirectional(LowRankLSTM(5)), 2 * 12 * 4 * 5 * (6 + 5)),
        ((3, 12, 6), lambda: keras.layers.TimeDistributed(LowRankGRU(5)), 3 * 12 * 3 * 5 * (6 + 5)),
    ],
)
def test_macs_of_our_layers(shape: tuple[int, ...], make: Any, macs: int, to_tflite: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input(shape, batch_size=1), make()])
    assert only(summarize_keras(model)).macs == macs
    if len(shape) == 2:  # the converter takes no loop in a loop
        assert read_artifact(to_tflite(model, tmp_path)).macs == macs


def test_an_unknown_sequence_length_is_named_for_our_layers() -> None:
    steps = sequential(keras, (None, 6), LowRankGRU(5, name="gru"), LowRankDense(2, 1))
    assert steps.not_counted == ("gru: unknown sequence length",)
    assert [layer.macs for layer in steps.layers] == [None, 7]
