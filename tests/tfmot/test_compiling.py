from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgecompress.data import Dataset
from edgecompress.errors import DataError
from edgecompress.objectives.optimizers import build_optimizer
from edgecompress.passes.base import PassContext
from edgecompress.techniques import Training
from edgecompress.tfmot.compiling import choose_objective, input_arrays, output_keys

X = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
CLASSES = np.arange(40) % 3
ONE_HOT = np.eye(3)[CLASSES]


@pytest.fixture(scope="module")
def tf_keras():
    return pytest.importorskip("tf_keras")


@pytest.fixture(scope="module")
def keras():
    return pytest.importorskip("keras")


def net(framework, *outputs, names=None):
    """Returns a model with one Dense output for each (units, activation)."""
    x = framework.Input((5,), name="x")
    made = [
        framework.layers.Dense(units, activation, name=(names or {}).get(number, f"out_{number}"))(x)
        for number, (units, activation) in enumerate(outputs)
    ]
    return framework.Model(x, made)


def objective(framework, labels, *outputs, config=None, source=None, **training):
    context = PassContext(
        data=Dataset({"x": X[: len(labels)]}, np.asarray(labels), source="train.npz"),
        compile_config=config,
        training=Training(**training),
    )
    return choose_objective(net(framework, *outputs), context, source)


@pytest.mark.parametrize(
    ("labels", "output", "loss"),
    [
        (CLASSES, (3, "softmax"), "SparseCategoricalCrossentropy"),
        (CLASSES, (3, None), "SparseCategoricalCrossentropy from logits"),
        (CLASSES.astype(np.float32), (3, None), "SparseCategoricalCrossentropy from logits"),
        (CLASSES[:, None], (3, "softmax"), "SparseCategoricalCrossentropy"),
        (CLASSES.astype(np.uint8), (7, "softmax"), "SparseCategoricalCrossentropy"),
        (ONE_HOT, (3, "softmax"), "CategoricalCrossentropy"),
        (ONE_HOT.astype(bool), (3, None), "CategoricalCrossentropy from logits"),
        (CLASSES % 2, (1, "sigmoid"), "BinaryCrossentropy"),
        ((CLASSES % 2).astype(bool), (1, None), "BinaryCrossentropy from logits"),
        (CLASSES[:, None] % 2, (1, "sigmoid"), "BinaryCrossentropy"),
        (X[:, 0], (1, None), "MeanSquaredError"),
        (X[:, :2], (2, None), "MeanSquaredError"),
        (CLASSES, (1, None), "MeanSquaredError"),
    ],
)
def test_the_loss_is_inferred_from_labels_and_outputs(tf_keras, labels, output, loss):
    found = objective(tf_keras, labels, output)
    assert found.loss_text == loss
    assert found.notes == (f"the loss {loss} was inferred from the labels: the model was saved without one",)
    assert found.metrics == (() if loss == "MeanSquaredError" else ("accuracy",))
    model = net(tf_keras, output)
    found.compile(model)
    assert np.isfinite(model.train_on_batch(X, found.targets(model, np.arange(40)))).all()


def test_whether_outputs_are_logits_is_seen_in_the_last_layer_of_the_source(tf_keras, keras):
    keras_input = keras.Input((5,))
    inner = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3), keras.layers.Softmax()])
    for source, loss in (
        (net(keras, (3, "softmax")), "SparseCategoricalCrossentropy"),
        (net(keras, (3, "linear")), "SparseCategoricalCrossentropy from logits"),
        (keras.Model(keras_input, keras.layers.Activation("softmax")(keras_input)), "SparseCategoricalCrossentropy"),
        (keras.Model(keras_input, inner(keras_input)), "SparseCategoricalCrossentropy"),
    ):
        for activation in ("softmax", None):  # of the model itself, which then does not matter
            assert objective(tf_keras, CLASSES, (3, activation), source=source).loss_text == loss
    softmax = keras.Model(keras_input, keras.ops.softmax(keras_input))
    assert objective(tf_keras, CLASSES, (3, None), source=softmax).loss_text == "SparseCategoricalCrossentropy"
    unknown = keras.Model(keras_input, keras_input * 1.0)  # then the answers tell
    assert objective(tf_keras, CLASSES, (3, "softmax"), source=unknown).loss_text == "SparseCategoricalCrossentropy"
    assert objective(tf_keras, CLASSES, (3, None), source=unknown).loss_text.endswith("from logits")


@pytest.mark.parametrize(
    ("stored", "labels", "output", "loss", "words"),
    [
        ("mse", X[:, :2], (2, None), "MeanSquaredError", None),
        ("mae", X[:, :2], (2, None), "MeanAbsoluteError", None),
        ("mse", ONE_HOT, (3, "softmax"), "MeanSquaredError", None),
        ("sparse_categorical_crossentropy", CLASSES, (3, "softmax"), "SparseCategoricalCrossentropy", None),
        ("binary_crossentropy", CLASSES % 2, (1, "sigmoid"), "BinaryCrossentropy", None),
        ("binary_crossentropy", ONE_HOT * 0 + 1, (3, "sigmoid"), "BinaryCrossentropy", None),
        ("categorical_crossentropy", ONE_HOT, (3, "softmax"), "CategoricalCrossentropy", None),
        ("categorical_crossentropy", CLASSES, (3, "softmax"), "SparseCategoricalCrossentropy", "form of the labels"),
        ("sparse_categorical_crossentropy", ONE_HOT, (3, "softmax"), "CategoricalCrossentropy", "form of the labels"),
        ("mse", CLASSES, (3, "softmax"), "SparseCategoricalCrossentropy", "MeanSquaredError does not fit"),
        (
            "my_loss",
            CLASSES,
            (3, "softmax"),
            "SparseCategoricalCrossentropy",
            "WARNING: the model's own loss 'my_loss' was not used (it is unknown here: pass it with --custom-objects)",
        ),
        ("sparse_categorical_crossentropy", CLASSES % 2, (1, "sigmoid"), "BinaryCrossentropy", "does not fit"),
    ],
)
def test_the_models_own_loss_is_used_where_the_labels_fit_it(tf_keras, stored, labels, output, loss, words):
    found = objective(tf_keras, labels, output, config={"loss": stored})
    assert found.loss_text == loss
    assert [words in note for note in found.notes] == ([] if words is None else [True])


def halved(y_true, y_pred):
    import keras

    return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1) / 2


def test_the_users_own_loss_is_called(tf_keras, keras):
    class Own(keras.losses.Loss):
        def call(self, y_true, y_pred):
            assert y_true.dtype == y_pred.dtype == "float32"
            return keras.ops.sparse_categorical_crossentropy(y_true, y_pred) * 3

    found = objective(tf_keras, X[:, 0], (1, None), config={"loss": halved})
    assert (found.loss_text, found.notes) == ("halved", ())
    assert float(found.loss(X[:, :1], np.zeros((40, 1), np.float32))) == pytest.approx(np.mean(X[:, 0] ** 2) / 2)
    found = objective(tf_keras, CLASSES, (3, "softmax"), config={"loss": Own(reduction="sum"), "metrics": ["mae"]})
    assert (found.loss_text, found.metrics) == ("Own", ("mae", "accuracy"))
    model = net(tf_keras, (3, "softmax"))
    found.compile(model)
    expected = Own(reduction="sum")(CLASSES, model.predict(X, verbose=0))
    assert model.train_on_batch(X, found.targets(model, np.arange(40)))[0] == pytest.approx(float(expected), rel=1e-5)


def test_losses_that_only_keras_3_has_are_called(tf_keras):
    for stored in ("huber", "dice", {"class_name": "Tversky", "config": {"alpha": 0.3, "name": "tversky"}}):
        found = objective(tf_keras, ONE_HOT, (3, "softmax"), config={"loss": stored})
        assert found.loss_text == (stored if isinstance(stored, str) else "Tversky")
        assert found.notes == ()


def test_an_own_loss_that_fails_on_the_labels_is_replaced_with_a_warning(tf_keras):
    def picky(y_true, _y_pred):
        raise TypeError(f"no such labels: {y_true.dtype.name}")

    def endless(_y_true, y_pred):
        return y_pred / 0

    for own, why in (
        (picky, "it fails on the labels: TypeError: no such labels: float32"),
        (endless, "on the labels it is nan"),
    ):
        found = objective(tf_keras, CLASSES, (3, None), config={"loss": own, "optimizer": {"class_name": "Muon"}})
        assert found.notes[0] == (
            f"WARNING: the model's own loss {own.__name__!r} was not used ({why}); "
            "SparseCategoricalCrossentropy from logits, inferred from the labels, was used instead"
        )


def test_settings_of_the_loss_are_kept(tf_keras, keras):
    model = net(keras, (3, None))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1))
    found = objective(tf_keras, CLASSES, (3, "softmax"), config=model.get_compile_config())
    assert found.loss_text == "SparseCategoricalCrossentropy from logits"
    assert found.loss.get_config()["ignore_class"] == 1
    other = objective(tf_keras, ONE_HOT, (3, "softmax"), config=model.get_compile_config())
    assert other.loss_text == "CategoricalCrossentropy from logits"
    model.compile("adam", keras.losses.mean_absolute_error)
    assert objective(tf_keras, X[:, :3], (3, None), config=model.get_compile_config()).loss_text == "MeanAbsoluteError"


def test_metrics_are_carried_over_with_the_loss(tf_keras, keras):
    model = net(keras, (3, "softmax"))
    metrics = [
        keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2"),
        keras.metrics.SparseCategoricalAccuracy("acc"),
    ]
    model.compile("adam", "sparse_categorical_crossentropy", metrics=metrics)
    config = model.get_compile_config()
    found = objective(tf_keras, CLASSES, (3, "softmax"), config=config)
    assert [metric.name for metric in found.metrics] == ["top2", "acc"]
    assert found.metrics[0].get_config()["k"] == 2
    assert objective(tf_keras, ONE_HOT, (3, "softmax"), config=config).metrics == ("accuracy",)
    config["metrics"] = [{"class_name": "MyMetric", "config": {}}, "mae"]
    assert objective(tf_keras, CLASSES, (3, "softmax"), config=config).metrics == ("mae", "accuracy")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(40), "labels out of range; expected 0 to 2 .* received 3"),
        (CLASSES - 1, "labels out of range; .* received -1"),
        (
            np.zeros((40, 4)),
            r"train.npz: the labels fit no output .*expected out_0\(40, 3\).*labels of shape \(40, 4\)",
        ),
        (np.zeros((40, 3, 3)), "fit no output"),
        (X[:, 0], "fit no output"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tf_keras, labels, words):
    with pytest.raises(DataError, match=words):
        objective(tf_keras, labels, (3, "softmax"))


def test_samples_that_do_not_fit_are_refused(tf_keras):
    model = net(tf_keras, (3, None))
    for inputs, words in (
        ({"x": X[:, :4]}, r"do not fit the model; received arrays of shape \(32, 4\)"),
        ({"a": X, "b": X}, "do not fit the model; expected x; received a, b"),
    ):
        with pytest.raises(DataError, match=words):
            choose_objective(model, PassContext(data=Dataset(inputs, CLASSES)))
    for data in (None, Dataset({"x": X})):
        with pytest.raises(DataError, match="needs samples with labels"):
            choose_objective(model, PassContext(data=data))


@pytest.mark.parametrize(
    ("labels", "output", "loss"),
    [
        (CLASSES, 1, "SparseCategoricalCrossentropy"),
        (ONE_HOT, 1, "CategoricalCrossentropy"),
        (X[:, :2], 0, "MeanSquaredError"),
        (X[:, :3], 1, "MeanSquaredError"),
    ],
)
def test_of_several_outputs_the_one_that_the_labels_fit_is_trained(tf_keras, labels, output, loss):
    outputs = (2, None), (3, "softmax"), (1, None)
    found = objective(tf_keras, labels, *outputs)
    assert (found.output, found.loss_text) == (output, loss)
    model = net(tf_keras, *outputs)
    before = [layer.kernel.numpy() for layer in model.layers[1:]]
    found.compile(model)
    model.train_on_batch(X, found.targets(model, np.arange(40)))
    moved = [not np.array_equal(b, layer.kernel) for b, layer in zip(before, model.layers[1:], strict=True)]
    assert moved == [number == output for number in range(3)]


@pytest.mark.parametrize("stored", [{"cls": "mae", "reg": "mse"}, ["mse", "mae"]])
def test_each_output_has_its_own_loss(tf_keras, keras, stored):
    names = {0: "reg", 1: "cls"}
    source = net(keras, (2, None), (3, None), names=names)
    found = objective(tf_keras, X[:, :3], (2, None), (3, None), config={"loss": stored}, source=source)
    assert (found.output, found.loss_text) == (1, "MeanAbsoluteError")
    partly = objective(tf_keras, X[:, :2], (2, None), (3, None), config={"loss": {"cls": "mae"}}, source=source)
    assert partly.loss_text == "MeanSquaredError"
    x = keras.Input((5,), name="x")
    by_key = keras.Model(x, {"b": keras.layers.Dense(3, name="one")(x), "a": keras.layers.Dense(2, name="two")(x)})
    keyed = objective(
        tf_keras, X[:, :3], (2, None), (3, None), config={"loss": {"b": "mae", "a": "mse"}}, source=by_key
    )
    assert (keyed.names, keyed.output, keyed.loss_text) == (("a", "b"), 1, "MeanAbsoluteError")
    assert len(partly.notes) == 1


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "RMSprop", "Nadam", "Adamax", "Adagrad", "Adadelta", "Lion"])
def test_optimizers_of_keras_3_are_carried_over(tf_keras, keras, name):
    model = net(keras, (3, None))
    model.compile(getattr(keras.optimizers, name)(0.02, clipnorm=2.0, use_ema=True), "mse")
    optimizer, notes = build_optimizer(tf_keras, model.get_compile_config(), None)
    assert type(optimizer) is getattr(tf_keras.optimizers, name)
    assert notes == ()
    config = optimizer.get_config()
    assert (config["learning_rate"], config["clipnorm"], config["use_ema"]) == (pytest.approx(0.02), 2.0, False)
    assert float(build_optimizer(tf_keras, model.get_compile_config(), 0.5)[0].learning_rate) == 0.5


def test_other_optimizers_become_adam_and_are_noted(tf_keras, keras):
    model = net(keras, (3, None))
    model.compile(keras.optimizers.Muon(0.02), "mse")
    optimizer, notes = build_optimizer(tf_keras, model.get_compile_config(), None)
    assert (type(optimizer).__name__, float(optimizer.learning_rate)) == ("Adam", pytest.approx(0.02))
    assert notes == ("the model's optimizer 'Muon' is not in tf_keras: Adam was used",)
    assert float(build_optimizer(tf_keras, {}, None)[0].learning_rate) == pytest.approx(0.001)
    assert type(build_optimizer(tf_keras, {"optimizer": "sgd"}, None)[0]).__name__ == "SGD"


def test_the_optimizer_inside_loss_scaling_is_taken(tf_keras, keras):
    model = net(keras, (3, None))
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.25, momentum=0.5)), "mse")
    optimizer, _ = build_optimizer(tf_keras, model.get_compile_config(), None)
    assert (type(optimizer).__name__, optimizer.get_config()["momentum"]) == ("SGD", 0.5)


def test_a_learning_rate_schedule_is_carried_over(tf_keras, keras):
    model = net(keras, (3, None))
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.02, 100)), "mse")
    config = model.get_compile_config()
    found = objective(tf_keras, X[:, :3], (3, None), config=config)
    assert found.optimizer_text == "Adam, learning rate by CosineDecay"
    fixed = objective(tf_keras, X[:, :3], (3, None), config=config, learning_rate=0.5)
    assert fixed.optimizer_text == "Adam, learning rate 0.5"
    config["optimizer"]["config"]["learning_rate"] = {"class_name": "MySchedule", "config": {}}
    assert objective(tf_keras, X[:, :3], (3, None), config=config).optimizer_text == "Adam, learning rate 0.001"


def test_what_keras_2_stored_is_understood(tf_keras):
    config = {
        "optimizer_config": {"class_name": "Custom>RMSprop", "config": {"learning_rate": 0.03, "rho": 0.8}},
        "loss": {"class_name": "CategoricalCrossentropy", "config": {"reduction": "auto", "from_logits": True}},
        "metrics": [["accuracy"]],
    }
    found = objective(tf_keras, ONE_HOT, (3, None), config=config)
    assert found.optimizer_text == "RMSprop, learning rate 0.03"
    assert found.loss_text == "CategoricalCrossentropy from logits"


def test_outputs_and_inputs_in_dicts(tf_keras):
    x = {name: tf_keras.Input((5,), name=name) for name in ("b", "a")}
    outputs = {"reg": tf_keras.layers.Dense(2)(x["a"]), "cls": tf_keras.layers.Dense(3)(x["b"])}
    model = tf_keras.Model(x, outputs)
    data = Dataset({"b": X, "a": X + 1}, CLASSES)
    assert output_keys(model) == ["cls", "reg"]
    assert {array[0, 0] for array in input_arrays(model, data)} == {X[0, 0], X[0, 0] + 1}
    found = choose_objective(model, PassContext(data=data))
    assert found.output == 0
    found.compile(model)
    assert list(found.targets(model, np.arange(40))) == ["cls"]
    assert np.isfinite(model.train_on_batch([X, X], found.targets(model, np.arange(40)))).all()


def test_a_model_without_names_gets_its_inputs_in_their_order():
    model = SimpleNamespace(input_names=["p", "q"])
    first, second = input_arrays(model, Dataset({"one": X, "two": X + 1}))
    assert (first[0, 0], second[0, 0]) == (X[0, 0], X[0, 0] + 1)
