"""The calibration audit on real digits: it speaks up when samples differ from the training data, and only then."""

import numpy as np
import pytest

from edgecompress.calibration import activation_mismatch, audit_calibration
from edgecompress.data import load_data
from edgecompress.models import load_model

keras = pytest.importorskip("keras")
tf_keras = pytest.importorskip("tf_keras")

layers = keras.layers


@pytest.fixture(scope="module")
def training(digits):
    return digits.digits(as_rows=False)[0][0]


@pytest.fixture(scope="module")
def images(digits):
    """Images and labels that no model was trained on."""
    x, y = digits.digits(as_rows=False)[1]
    return x[:200], y[:200]


def audit(model, x, y=None):
    loaded = load_model(model)
    return audit_calibration(loaded, load_data(x if y is None else (x, y), loaded.inputs))


def warnings_of(result) -> str:
    return " | ".join(f"{finding.text}. {finding.fix}" for finding in result.findings if finding.level == "warning")


def settle(model, x):
    """Lets batch normalization see training images, as training would, without the time that it takes."""
    model(x, training=True)
    return model


def network(*parts, shape=(8, 8, 1), dtype="float32", framework=keras):
    end = [framework.layers.Flatten(), framework.layers.Dense(10, activation="softmax")]
    return framework.Sequential([framework.Input(shape, dtype=dtype, name="x"), *parts, *end])


def normalization(framework=keras, **options):
    return framework.layers.BatchNormalization(momentum=0.0, **options)  # one call decides


# A network with batch normalization says itself what its inputs looked like


def test_the_right_range(digits_cnn, images) -> None:
    result = audit(digits_cnn.model, *images)
    assert result.findings == ()
    assert result.samples == 200
    assert result.mismatch is not None
    assert result.mismatch < 0.5
    assert result.labels == {int(digit): int((images[1] == digit).sum()) for digit in range(10)}
    (image,) = result.inputs
    assert (image.name, image.minimum, image.maximum, image.constant_channels) == ("image", 0.0, 1.0, 0)
    assert image.mean == pytest.approx(images[0].mean(), rel=1e-5)
    assert image.std == pytest.approx(images[0].std(), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda x: x * 255, "divide by 255 before saving, or pass --input-range 0,1 with 8-bit samples"),
        (lambda x: (x * 255).astype(np.uint8), "divide by 255 before saving, or pass --input-range 0,1"),
        (lambda x: x / 255, "multiply by 255 before saving"),
        (lambda x: x * 2 - 1, "add 1 and divide by 2 before saving"),
        (lambda x: x * 16, "check that samples are preprocessed as in training"),
    ],
    ids=["0-255", "8-bit", "divided twice", "-1-1", "0-16"],
)
def test_another_range(digits_cnn, images, change, remedy) -> None:
    result = audit(digits_cnn.model, change(images[0]), images[1])
    assert result.findings[0].level == "warning"
    assert "BatchNormalization statistics" in result.findings[0].text
    assert remedy in warnings_of(result)


@pytest.mark.parametrize(
    ("trained_on", "given", "remedy"),
    [
        (lambda x: x * 2 - 1, lambda x: x, "multiply by 2 and subtract 1 before"),
        (
            lambda x: x * 2 - 1,
            lambda x: x * 255,
            "divide by 127.5 and subtract 1 before saving, or pass --input-range -1,1",
        ),
        (lambda x: x * 255, lambda x: x, "multiply by 255 before"),
    ],
    ids=["0-1 for -1-1", "0-255 for -1-1", "0-1 for 0-255"],
)
def test_networks_of_other_ranges(training, images, trained_on, given, remedy) -> None:
    model = settle(network(layers.Conv2D(16, 3, use_bias=False), normalization(), layers.ReLU()), trained_on(training))
    assert audit(model, trained_on(images[0])).findings == ()
    assert remedy in warnings_of(audit(model, given(images[0])))


def test_a_network_that_scales_its_input(training, images) -> None:
    scaling = layers.Rescaling(1 / 255)
    model = settle(network(scaling, layers.Conv2D(16, 3, use_bias=False), normalization()), training * 255)
    assert audit(model, images[0] * 255).findings == ()
    assert "multiply by 255" in warnings_of(audit(model, images[0]))
    without_statistics = network(layers.Rescaling(1 / 255), layers.Conv2D(4, 3))
    assert audit(without_statistics, images[0] * 255).findings == ()


def backbone(framework):
    """A nested model, as transfer learning has them."""
    parts = [framework.layers.Conv2D(8, 3, use_bias=False), normalization(framework), framework.layers.ReLU()]
    return framework.Sequential([framework.Input((8, 8, 1)), *parts], name="backbone")


@pytest.mark.parametrize("framework", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_a_normalization_in_a_nested_model(training, images, framework) -> None:
    scaling = framework.layers.Rescaling(2.0, offset=-1.0)
    model = settle(network(scaling, backbone(framework), framework=framework), training)
    right = audit(model, images[0])
    assert right.findings == ()
    assert right.mismatch is not None
    assert "divide by 255" in warnings_of(audit(model, images[0] * 255))


def test_a_normalization_after_masking(training, images) -> None:
    x = keras.Input((8, 8))
    model = settle(keras.Model(x, layers.GRU(4)(normalization()(layers.Masking()(x)))), training[..., 0])
    assert audit(model, images[0][..., 0]).findings == ()
    assert "divide by 255" in warnings_of(audit(model, images[0][..., 0] * 255))


def test_the_first_of_several_normalizations_in_a_graph_with_branches(training, images) -> None:
    x = keras.Input((8, 8, 1), name="x")
    left = layers.Conv2D(4, 3, use_bias=False)(x)
    right = layers.MaxPooling2D(3, strides=1)(x)
    both = normalization()(layers.Concatenate()([normalization()(left), right]))
    model = settle(keras.Model(x, layers.GlobalAveragePooling2D()(both)), training)
    assert audit(model, images[0]).findings == ()
    assert "divide by 255" in warnings_of(audit(model, images[0] * 255))


def test_a_layer_that_two_models_share(training, images) -> None:
    """Wrapping a model gives its layers a second place in another graph."""
    inner = network(layers.Conv2D(8, 3, use_bias=False), normalization())
    settle(inner, training)
    x = keras.Input((8, 8, 1))
    wrapped = keras.Model(x, inner(x / 255.0))
    assert audit(inner, images[0]).findings == ()
    assert audit(wrapped, images[0] * 255).findings == ()
    assert "multiply by 255" in warnings_of(audit(wrapped, images[0]))


def test_several_inputs(training, images) -> None:
    zeta, alpha = keras.Input((8, 8, 1), name="zeta"), keras.Input((8, 8, 1), name="alpha")
    merged = normalization()(layers.Concatenate()([layers.Conv2D(4, 3)(zeta), layers.Conv2D(4, 3)(alpha)]))
    model = settle(keras.Model({"zeta": zeta, "alpha": alpha}, merged), {"zeta": training, "alpha": training})
    assert audit(model, {"zeta": images[0], "alpha": images[0]}).findings == ()
    wrong = audit(model, {"zeta": images[0] * 255, "alpha": images[0] * 255})
    assert "divide by 255" in warnings_of(wrong)
    assert [described.maximum for described in wrong.inputs] == [255.0, 255.0]


# Without such statistics only the values themselves say something


def test_untrained_statistics_say_nothing(images) -> None:
    model = network(layers.Conv2D(4, 3), layers.BatchNormalization())
    result = audit(model, images[0])
    assert result.mismatch is None
    assert result.findings == ()


def test_statistics_of_another_axis_are_left_out(training, images) -> None:
    model = settle(network(layers.Permute((3, 1, 2)), normalization(axis=1)), training)
    result = audit(model, images[0])
    assert result.mismatch is None
    assert result.findings == ()


def test_a_network_without_normalization(images) -> None:
    model = network(layers.Conv2D(4, 3))
    assert audit(model, images[0]).findings == ()
    text = warnings_of(audit(model, images[0] * 255))
    assert "input 'x' has values up to 255" in text
    assert "--input-range 0,1" in text


def test_large_values_that_are_no_images(images) -> None:
    signals = images[0][..., 0] * 1000
    assert audit(network(layers.Conv1D(4, 3), shape=(8, 8)), signals).findings == ()


def test_integer_inputs(training, images) -> None:
    tokens, few = ((values[:, 3, :, 0] * 16).astype(np.int32) for values in (training, images[0]))
    plain = network(layers.Embedding(17, 4), shape=(8,), dtype="int32")
    assert audit(plain, few).findings == ()
    normalized = settle(network(layers.Embedding(17, 4), normalization(), shape=(8,), dtype="int32"), tokens)
    result = audit(normalized, few)
    assert result.mismatch is not None
    assert result.findings == ()
    padded = few.copy()
    padded[:, -1] = 0  # the same token at the end of every sample is no dead channel
    assert audit(plain, padded).findings == ()


def test_a_saved_model(tmp_path, images) -> None:
    network(layers.Conv2D(4, 3)).export(tmp_path / "saved", verbose=False)
    result = audit(tmp_path / "saved", images[0])
    assert result.mismatch is None
    assert result.findings == ()


# The samples themselves


def test_dead_channels(images) -> None:
    two = np.concatenate([images[0], np.full_like(images[0], 0.5)], axis=-1)
    result = audit(network(layers.Conv2D(4, 3), shape=(8, 8, 2)), two)
    assert "1 of 2 channels never change" in warnings_of(result)
    assert result.inputs[0].constant_channels == 1


def test_the_same_value_everywhere(images) -> None:
    result = audit(network(layers.Conv2D(4, 3)), np.zeros_like(images[0]))
    assert [finding.text for finding in result.findings] == ["input 'x' has the same value everywhere (0)"]


def test_outliers(images) -> None:
    spoiled = images[0].copy()
    spoiled[3, 4, 4] = 30.0
    text = warnings_of(audit(network(layers.Conv2D(4, 3)), spoiled))
    assert "a few outliers set its range (0 to 30, but 99.8 % of the values lie in 0 to 1)" in text


def test_few_samples(images) -> None:
    result = audit(network(layers.Conv2D(4, 3)), images[0][:20])
    assert [(finding.level, finding.text) for finding in result.findings] == [("note", "only 20 samples")]
    assert audit(network(layers.Conv2D(4, 3)), images[0][:50]).findings == ()


def test_one_sample(digits_cnn, images) -> None:
    assert [finding.text for finding in audit(digits_cnn.model, images[0][:1]).findings] == ["only 1 samples"]


def test_unbalanced_labels(images) -> None:
    x, _ = images
    y = np.array([7] * 190 + [2] * 10)
    result = audit(network(layers.Conv2D(4, 3)), x, y)
    assert [finding.text for finding in result.findings] == ["unbalanced labels: 190 samples of class 7, 10 of class 2"]
    assert result.labels == {2: 10, 7: 190}
    assert audit(network(layers.Conv2D(4, 3)), x, np.arange(200) % 10).findings == ()


def test_values_are_no_classes(images) -> None:
    x, _ = images
    assert audit(network(layers.Conv2D(4, 3)), x, x.mean((1, 2, 3))).labels is None


def test_warnings_come_first(images) -> None:
    result = audit(network(layers.Conv2D(4, 3)), images[0][:20] * 255)
    assert [finding.level for finding in result.findings] == ["warning", "note"]


# The measure


def test_activation_mismatch_of_known_numbers() -> None:
    rng = np.random.default_rng(0)
    activations = rng.normal(2.0, 3.0, (20_000, 4))
    assert activation_mismatch(activations, np.full(4, 2.0), np.full(4, 9.0)) < 0.05
    # Half a standard deviation away; a third of the variance.
    assert activation_mismatch(activations, np.full(4, 0.5), np.full(4, 9.0)) == pytest.approx(0.5, abs=0.05)
    assert activation_mismatch(activations, np.full(4, 2.0), np.full(4, 27.0)) == pytest.approx(np.log(3), abs=0.05)


def test_one_odd_channel_does_not_decide() -> None:
    activations = np.random.default_rng(0).normal(size=(20_000, 5))
    activations[:, 0] *= 100
    assert activation_mismatch(activations, np.zeros(5), np.ones(5)) < 0.05


def test_dead_activations_do_not_divide_by_zero() -> None:
    assert activation_mismatch(np.zeros((10, 3)), np.zeros(3), np.zeros(3)) == 0.0
