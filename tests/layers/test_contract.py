"""What every layer here must do as any layer of Keras does."""

from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from edgecompress.artifacts import read_artifact
from edgecompress.layers import FactorizedDense, LowRankDense, LowRankGRU, LowRankLSTM
from edgecompress.models import load_model

VECTOR, ROWS = (6,), (4, 6)
# A layer, the shape of a sample and of the answer to it.
LAYERS = {
    "LowRankDense": (lambda **o: LowRankDense(5, 2, "relu", **o), VECTOR, (5,)),
    "LowRankDense of rows, without a bias": (lambda **o: LowRankDense(5, 2, use_bias=False, **o), ROWS, (4, 5)),
    "LowRankDense with all options": (
        lambda **o: LowRankDense(
            5, 2, "tanh", kernel_initializer="he_normal", bias_initializer="ones", kernel_regularizer="l2",
            bias_regularizer="l1", activity_regularizer="l2", **o,
        ), VECTOR, (5,),
    ),
    "FactorizedDense": (lambda **o: FactorizedDense(5, 2, 0.3, "relu", seed=3, **o), VECTOR, (5,)),
    "FactorizedDense of rows, without a residual": (lambda **o: FactorizedDense(5, 2, 0, **o), ROWS, (4, 5)),
    "LowRankGRU whole": (lambda **o: LowRankGRU(5, **o), ROWS, (5,)),
    "LowRankGRU": (lambda **o: LowRankGRU(5, input_rank=2, recurrent_rank=3, **o), ROWS, (5,)),
    "LowRankGRU separate, reset before": (
        lambda **o: LowRankGRU(5, input_rank=2, recurrent_rank=3, gates="separate", reset_after=False, **o), ROWS, (5,),
    ),
    "LowRankGRU without an input kernel": (lambda **o: LowRankGRU(2, project_inputs=False, **o), ROWS, (2,)),
    "LowRankGRU with all options": (
        lambda **o: LowRankGRU(
            5, recurrent_rank=2, activation="relu", recurrent_activation="hard_sigmoid", use_bias=False,
            kernel_initializer="he_normal", recurrent_initializer="normal", kernel_regularizer="l2",
            recurrent_regularizer="l1", activity_regularizer="l2", kernel_constraint="max_norm",
            recurrent_constraint="unit_norm", dropout=0.2, recurrent_dropout=0.1, seed=1, return_sequences=True,
            go_backwards=True, zero_output_for_mask=True, **o,
        ), ROWS, (4, 5),
    ),
    "LowRankLSTM": (lambda **o: LowRankLSTM(5, input_rank=2, recurrent_rank=3, **o), ROWS, (5,)),
    "LowRankLSTM separate, unrolled": (
        lambda **o: LowRankLSTM(
            5, input_rank=2, recurrent_rank=3, gates="separate", unroll=True, unit_forget_bias=False,
            return_sequences=True, **o,
        ), ROWS, (4, 5),
    ),
}  # fmt: skip
each = pytest.mark.parametrize("name", LAYERS)


def sample(shape, batch=2):
    return np.random.default_rng(0).normal(size=(batch, *shape)).astype("float32")


def model_of(name, **options):
    keras.utils.set_random_seed(0)
    make, shape, _ = LAYERS[name]
    x = keras.Input(shape, name="x")
    model = keras.Model(x, make(**options, name="tested")(x))
    # Zeros, with which a residual starts, would hide that it is forgotten.
    model.set_weights([w if w.dtype == "int32" else w + 0.1 * np.sin(np.arange(w.size)).reshape(w.shape)
                       for w in model.get_weights()])  # fmt: skip
    return model


@each
def test_shapes(name):
    make, shape, output = LAYERS[name]
    layer = make()
    assert layer(sample(shape)).shape == (2, *output)
    assert tuple(layer.compute_output_shape((None, *shape))) == (None, *output)
    assert make()(keras.Input(shape)).shape == (None, *output)
    if len(shape) == 2:
        varying = make()
        if not getattr(varying, "unroll", False):
            assert varying(keras.Input((None, shape[1]))).shape[-1] == output[-1]


@each
def test_the_configuration_makes_it_again(name):
    model = model_of(name)
    layer = model.get_layer("tested")
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()
    if not again.built:
        again.build((None, *LAYERS[name][1]))
    assert [w.path.split("/", 1)[1] for w in again.weights] == [w.path.split("/", 1)[1] for w in layer.weights]
    again.set_weights(layer.get_weights())
    x = sample(LAYERS[name][1])
    np.testing.assert_array_equal(again(x), layer(x))


@each
def test_a_saved_model_answers_the_same(name, tmp_path):
    model, x = model_of(name), sample(LAYERS[name][1])
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(x), model(x))


@pytest.mark.filterwarnings("ignore:.*HDF5 file:UserWarning")
def test_files_load_where_nothing_of_ours_is_imported(tmp_path):
    """No custom objects have to be named."""
    x, files = sample(ROWS), []
    for name in ("FactorizedDense of rows, without a residual", "LowRankGRU", "LowRankLSTM"):
        model = model_of(name)
        for suffix in (".keras", ".h5"):
            files.append(str(tmp_path / f"{name}{suffix}"))
            model.save(files[-1])
        np.save(f"{files[-1]}.npy", model(x))
        np.save(f"{files[-2]}.npy", model(x))
    code = (
        "import sys, numpy as np\n"
        "from edgecompress.models import load_model\n"
        "assert 'edgecompress.layers' not in sys.modules\n"
        "for file in sys.argv[2:]:\n"
        "    np.testing.assert_allclose(load_model(file).model(np.load(sys.argv[1])), np.load(file + '.npy'), 1e-5)\n"
    )
    np.save(tmp_path / "x.npy", x)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.npy"), *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@each
def test_mixed_precision(name):
    model, x = model_of(name, dtype="mixed_float16"), sample(LAYERS[name][1])
    layer = model.get_layer("tested")
    assert {w.dtype for w in layer.weights} <= {"float32", "int32"}
    answer = layer(x)
    assert answer.dtype == "float16"
    whole = model_of(name)
    np.testing.assert_allclose(np.asarray(answer, "float32"), whole(x), atol=2e-2)


@each
def test_every_weight_is_trained(name):
    model, x = model_of(name), tf.constant(sample(LAYERS[name][1], batch=8))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x, training=True) ** 2)
    trained = model.trainable_weights
    for weight, gradient in zip(trained, tape.gradient(loss, [w.value for w in trained]), strict=True):
        assert np.any(gradient), weight.path
    assert {w.name for w in model.non_trainable_weights} <= {"residual_indices", "seed_generator_state"}


@each
def test_it_trains(name):
    model, x = model_of(name), sample(LAYERS[name][1], batch=16)
    before = model.get_weights()
    model.compile("sgd", "mse")
    history = model.fit(x, np.zeros((16, *LAYERS[name][2])), epochs=3, batch_size=8, verbose=0).history["loss"]
    assert history[-1] < history[0]
    for weight, old in zip(model.weights, before, strict=True):
        assert np.array_equal(weight, old) == (not weight.trainable and "seed" not in weight.name)


@each
def test_its_file_answers_the_same(name, to_tflite, answer_of_file, tmp_path):
    model, x = model_of(name), sample(LAYERS[name][1], batch=1)
    file = to_tflite(model, tmp_path)
    np.testing.assert_allclose(answer_of_file(file, x), model(x), atol=1e-5)
    assert not {op for op in read_artifact(file).op_counts if op.startswith(("Flex", "SCATTER"))}


@pytest.mark.parametrize("name", ["FactorizedDense", "LowRankGRU", "LowRankLSTM"])
def test_a_file_of_a_mixed_precision_model(name, to_tflite, answer_of_file, tmp_path):
    """It computes in float32."""
    model, x = model_of(name, dtype="mixed_float16"), sample(LAYERS[name][1], batch=1)
    np.testing.assert_allclose(answer_of_file(to_tflite(model, tmp_path), x), model_of(name)(x), atol=1e-5)


@each
def test_what_passes_may_compress(name):
    layer = model_of(name).get_layer("tested")
    names = [weight.name for weight in layer.get_prunable_weights()]
    whole = {"kernel", "recurrent_kernel", "kernel_u", "kernel_v", "recurrent_u", "recurrent_v", "u", "v"}
    assert names == [weight.name for weight in layer.weights if weight.name in whole]
    assert names


def test_load_model_knows_them(tmp_path):
    model = model_of("LowRankGRU")
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert loaded.recurrent_layers() == ("tested",)
