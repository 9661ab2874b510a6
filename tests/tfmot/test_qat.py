"""Quantization-aware training as the pipeline uses it: what it refuses, what it keeps, what each scheme gets."""

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.data import Dataset, fix_shapes, load_data
from edgecompress.errors import ConversionError, DataError, ModelError, UsageError
from edgecompress.loaded import LoadedModel
from edgecompress.models import load_model
from edgecompress.passes.base import PassContext
from edgecompress.schemes import QuantizationScheme
from edgecompress.techniques import Qat, Training
from edgecompress.tfmot.qat import plan_qat, train_quantized
from edgecompress.verify.kernels import check_kernels, kernels_in

INT8 = QuantizationScheme.INT8


def network() -> keras.Model:
    x = keras.Input((8, 8, 1), name="digit")
    y = layers.Conv2D(16, 3, use_bias=False, name="conv")(x)
    y = layers.ReLU(name="relu")(layers.BatchNormalization(momentum=0.8, name="norm")(y))
    y = layers.Dropout(0.2, name="dropout")(layers.Flatten(name="flat")(y))
    return keras.Model(x, layers.Dense(10, activation="softmax", name="answer")(y), name="network")


@pytest.fixture
def source(digit_samples) -> tuple[LoadedModel, Dataset]:
    keras.utils.set_random_seed(0)
    model = network()
    x, y = digit_samples(model)
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=3, verbose=0)
    loaded = load_model(model)
    return loaded, load_data((x, y), loaded.inputs)


def train(source: tuple[LoadedModel, Dataset], spec: Qat | None = None, scheme: QuantizationScheme = INT8):
    loaded, data = source
    context = PassContext(training=Training(epochs=1, learning_rate=1e-3), data=data)
    return train_quantized(loaded, spec or Qat(), fixed=fix_shapes(loaded.inputs, data), scheme=scheme, context=context)


def test_the_users_model_stays_as_it_is(source) -> None:
    before = [weight.numpy() for weight in source[0].model.weights]
    trained, result = train(source)
    for weight, old in zip(source[0].model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)
    assert trained.framework == "tf_keras"
    assert (trained.outputs, trained.sha256) == (source[0].outputs, source[0].sha256)
    assert result.trained is not None
    assert result.trained.kept_epoch == 1


def test_the_same_seed_gives_the_same_weights(source) -> None:
    first, second = (train(source)[0].model.get_weights() for _ in range(2))
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_plan_names_every_layer(source) -> None:
    loaded, data = source
    plan = {one.layer: one for one in plan_qat(loaded.model, Qat(exclude=("ans",)), fix_shapes(loaded.inputs, data))}
    assert list(plan) == ["conv", "norm", "relu", "flat", "dropout", "answer"]
    assert plan["conv"].detail == "quantized as conv"
    assert plan["norm"].detail == "folded into the layer before"
    assert plan["dropout"].detail == "nothing in inference"
    assert plan["answer"].detail == "excluded: stays in float"
    assert not any(one.refused for one in plan.values())


def test_an_excluded_layer_is_float_in_the_file(trained_quantized) -> None:
    found = trained_quantized(network(), Qat(exclude=("answer",)))
    assert {op.name for op in found.artifact.float_ops} == {"FULLY_CONNECTED", "SOFTMAX"}
    assert found.artifact.op_counts["CONV_2D"] == 1
    assert found.agreement >= 0.99


def test_a_taught_model_answers_as_others_do(trained_quantized) -> None:
    found = trained_quantized(network(), Qat(distill=0.5))
    assert found.result.trained.loss == "0.5 x SparseCategoricalCrossentropy + 0.5 x distillation (KL, T = 2)"
    assert (found.artifact.op_counts["SOFTMAX"], len(found.artifact.signature.outputs)) == (1, 1)
    assert found.agreement >= 0.99


@pytest.mark.parametrize("scheme", ["int16x8", "dynamic", "int4_weights"])
def test_other_schemes_get_a_float_model_with_trained_weights(source, scheme: str) -> None:
    trained, _ = train(source, scheme=QuantizationScheme(scheme))
    x, y = source[1].inputs["digit"], source[1].labels
    wanted = source[0].model(x).numpy()
    answers = trained.predict({"digit": x}, fixed=fix_shapes(source[0].inputs, source[1]))["answer"]
    assert np.abs(answers - wanted).max() > 0
    assert np.mean(answers.argmax(-1) == y) > np.mean(wanted.argmax(-1) == y) - 0.03
    assert not any("quant" in layer.name for layer in trained.model.layers)


def test_zeros_and_shared_values_are_in_the_file(trained_quantized) -> None:
    model = network()
    values = np.array([0, 0, 0, 0.5, -0.4, 0.2], np.float32)
    zeros = {}
    for name in ("conv", "answer"):
        kernel, *rest = model.get_layer(name).get_weights()
        kernel = np.random.default_rng(0).choice(values, size=kernel.shape)
        model.get_layer(name).set_weights([kernel, *rest])
        zeros[name] = np.mean(kernel == 0)
    found = trained_quantized(model, epochs=0)
    proof = {one.layer: one for one in found.result.proof}
    for name in ("conv", "answer"):
        assert proof[name].sparsity >= zeros[name]
        assert proof[name].distinct <= 4
    in_file = kernels_in(found.artifact.path)
    assert check_kernels([found.result], in_file) == ((), ())
    assert sorted(one.sparsity for one in in_file) == pytest.approx(sorted(one.sparsity for one in proof.values()))
    assert max(one.distinct for one in in_file) <= 4


def test_what_was_not_to_be_kept_is_free(source) -> None:
    loaded, _ = source
    kernel, *rest = loaded.model.get_layer("answer").get_weights()
    kernel[::2] = 0
    loaded.model.get_layer("answer").set_weights([kernel, *rest])
    (kept,) = [one for one in train(source)[1].proof if one.layer == "answer"]
    (free,) = [one for one in train(source, Qat(preserve_sparsity=False))[1].proof if one.layer == "answer"]
    assert kept.sparsity >= 0.5
    assert free.sparsity < 0.4


def test_a_layer_that_cannot_be_quantized_is_named_before_any_training(digit_samples) -> None:
    x = keras.Input((8, 8), name="rows")
    model = keras.Model(x, layers.Dense(10)(layers.GRU(8, activation="softsign", name="gru")(x)))
    loaded = load_model(model)
    data = load_data(digit_samples(model), loaded.inputs)
    with pytest.raises(
        ConversionError, match=r"gru: GRU cannot be trained quantized: its activation softsign .* Fix: use one of tanh"
    ):
        train((loaded, data))


def test_a_pattern_that_matches_nothing_is_refused(source) -> None:
    with pytest.raises(UsageError, match="exclude 'dense' matches no layer; received conv, norm"):
        train(source, Qat(exclude=("dense",)))


def test_without_samples_there_is_nothing_to_train_on(source) -> None:
    loaded, data = source
    with pytest.raises(DataError, match=r"needs training samples\. Fix: pass --train"):
        train_quantized(
            loaded, Qat(), fixed=fix_shapes(loaded.inputs, data), scheme=INT8, context=PassContext(data=None)
        )


@pytest.mark.parametrize("scheme", ["float16", "float32"])
def test_a_scheme_that_rounds_nothing_is_refused(source, scheme: str) -> None:
    with pytest.raises(UsageError, match=f"{scheme} rounds nothing that training could get used to"):
        train(source, scheme=QuantizationScheme(scheme))


def test_a_model_that_answers_nan_is_refused(source) -> None:
    loaded, _ = source
    kernel, *rest = loaded.model.get_layer("answer").get_weights()
    loaded.model.get_layer("answer").set_weights([kernel * np.nan, *rest])
    with pytest.raises(ModelError, match="the model answers NaN"):
        train(source)
