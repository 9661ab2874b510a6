"""Models as they were loaded: names, order, answers; subclassed ones are traced."""

from collections import OrderedDict

import numpy as np
import pytest

from edgecompress.data import InputSpec
from edgecompress.functional import as_functional
from edgecompress.models import load_model
from tests.loading import RNG, A, B, both_ways, check_answers, mixed, names, refusal, sequential, two_inputs

keras = pytest.importorskip("keras")

pytestmark = [
    # Keras warns whoever writes an .h5 file, as these tests must.
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    # Keras warns whoever names a dict's keys differently from its tensors.
    pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict"),
]

layers = keras.layers


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_sequential_model(tmp_path, suffix) -> None:
    model = sequential(layers.Dense(4, activation="relu"), layers.Dense(2, name="y"))
    for loaded in both_ways(model, tmp_path / f"m.{suffix}"):
        assert loaded.framework == "keras"
        assert loaded.inputs[0].shape == (None, 3)
        assert loaded.inputs[0].dtype == "float32"
        assert names(loaded) == (["x"], ["y"])
        check_answers(loaded, {"x": A}, {"y": model.predict(A, verbose=0)})


@pytest.mark.parametrize("sequence", [list, tuple])
def test_a_list_of_inputs_keeps_its_order(tmp_path, sequence) -> None:
    a, b = two_inputs()
    model = keras.Model(sequence((a, b)), mixed(a, b))
    for loaded in both_ways(model, tmp_path / "m.keras"):
        assert names(loaded) == (["zeta", "alpha"], ["both"])
        check_answers(loaded, {"zeta": A, "alpha": B}, {"both": model.predict([A, B], verbose=0)})


@pytest.mark.parametrize("mapping", [dict, OrderedDict])
def test_a_dict_of_inputs_is_named_by_its_keys(tmp_path, mapping) -> None:
    """Keras flattens a dict in the order of its keys, an OrderedDict in its own."""
    a, b = two_inputs()
    model = keras.Model(mapping(zeta=a, alpha=b), a * 10 + b)
    for loaded in both_ways(model, tmp_path / "m.keras"):
        assert set(names(loaded)[0]) == {"zeta", "alpha"}
        check_answers(loaded, {"zeta": A, "alpha": B}, {loaded.outputs[0]: A * 10 + B})


def test_keys_go_before_the_names_of_tensors() -> None:
    a, b = two_inputs()
    model = keras.Model({"right": a, "left": b}, {"sum": a + b, "difference": a - b})
    loaded = load_model(model)
    assert names(loaded) == (["left", "right"], ["difference", "sum"])
    check_answers(loaded, {"right": A, "left": B}, {"sum": A + B, "difference": A - B})


def test_inputs_in_a_dict_in_a_list() -> None:
    a, b = two_inputs()
    loaded = load_model(keras.Model([a, {"inner": b}], {"out": [a - b, a]}))
    assert names(loaded)[0] == ["zeta", "alpha"]
    first, second = loaded.outputs
    check_answers(loaded, {"zeta": A, "alpha": B}, {first: A - B, second: A})


def test_several_outputs(tmp_path) -> None:
    a, b = two_inputs()
    model = keras.Model([a, b], [layers.Dense(1, name="z")(a), layers.Dense(2, name="a")(b)])
    z, y = model.predict([A, B], verbose=0)
    for loaded in both_ways(model, tmp_path / "m.keras"):
        assert names(loaded)[1] == ["z", "a"]
        check_answers(loaded, {"zeta": A, "alpha": B}, {"z": z, "a": y})


def test_an_output_given_twice_and_an_input_as_output() -> None:
    a, _ = two_inputs()
    y = layers.Dense(2, name="y")(a)
    model = keras.Model(a, [y, y, a])
    loaded = load_model(model)
    assert names(loaded) == (["zeta"], ["y", "y_1", "zeta"])
    expected = model.predict(A, verbose=0)
    check_answers(loaded, {"zeta": A}, dict(zip(loaded.outputs, expected, strict=True)))


def test_nested_models_and_shared_layers(tmp_path) -> None:
    a, b = two_inputs()
    inner = keras.Model([a, b], mixed(a, b), name="inner")
    shared = layers.Dense(3, name="shared")
    p, q = keras.Input((3,), name="p"), keras.Input((3,), name="q")
    model = keras.Model([q, p], inner([shared(p), shared(q)]))
    for loaded in both_ways(model, tmp_path / "m.keras"):
        assert names(loaded) == (["q", "p"], ["inner"])
        check_answers(loaded, {"q": A, "p": B}, {"inner": model.predict([A, B], verbose=0)})


def test_an_unnamed_input_has_one_name_in_memory_and_in_files(tmp_path) -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    in_memory, from_file = both_ways(model, tmp_path / "m.keras")
    assert names(in_memory) == names(from_file)


def test_a_fixed_batch_takes_any_number_of_samples() -> None:
    x = keras.Input(batch_shape=(1, 3), name="x")
    model = keras.Model(x, keras.ops.reshape(x, (1, 3)) * 2)
    loaded = load_model(model)
    assert loaded.inputs[0].shape == (1, 3)
    check_answers(loaded, {"x": A}, {loaded.outputs[0]: A * 2})


def test_a_stateful_layer_gets_batches_of_its_own_size() -> None:
    x = keras.Input(batch_shape=(2, 4, 3), name="x")
    model = keras.Model(x, layers.LSTM(2, stateful=True, name="memory")(x))
    many = RNG.normal(size=(5, 4, 3)).astype(np.float32)
    loaded = load_model(model)
    model(many[:2])
    remembered = [np.asarray(state).copy() for state in model.get_layer("memory").states]
    received = loaded.predict({"x": many}, fixed=loaded.inputs)["memory"]
    np.testing.assert_array_equal(model.get_layer("memory").states, remembered)
    model.get_layer("memory").reset_states()
    expected = [np.asarray(model(many[rows])) for rows in ([0, 1], [2, 3], [4, 4])]
    np.testing.assert_allclose(received, np.concatenate(expected)[:5], atol=1e-6)


def test_more_samples_than_one_batch() -> None:
    many = RNG.normal(size=(70, 3)).astype(np.float32)
    model = sequential(layers.Dense(2, name="y"))
    check_answers(load_model(model), {"x": many}, {"y": model.predict(many, verbose=0)})


def test_recurrent_layers_are_named() -> None:
    x = keras.Input((4, 3))
    inner = keras.Sequential([keras.Input((4, 3)), layers.LSTM(2, name="memory", return_sequences=True)])
    y = layers.Bidirectional(layers.GRU(2), name="both_ways")(layers.Dense(2)(inner(x)))
    assert load_model(keras.Model(x, y)).recurrent_layers() == ("memory", "both_ways")


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.dense = layers.Dense(2, name="dense")

    def call(self, x, training=False):  # noqa: ARG002 (as Keras's tutorials have it)
        return keras.ops.relu(self.dense(x)) + 1


def test_a_model_without_inputs() -> None:
    assert "mine: the model has no fixed inputs" in refusal(Subclassed(name="mine"))
    line = refusal(keras.Sequential([layers.Dense(2)]))
    assert "was never built" in line
    assert "keras.Model(x, model(x))" in line


def test_a_subclassed_model_is_traced(tmp_path) -> None:
    model = Subclassed(name="mine")
    model(A)
    expected = model.predict(A, verbose=0)
    for loaded in both_ways(model, tmp_path / "m.keras"):
        assert names(loaded)[0] == ["x"]
        assert loaded.inputs[0].shape == (None, 3)
        check_answers(loaded, {"x": A}, {loaded.outputs[0]: expected})
    assert load_model(model).name == "mine"
    assert load_model(model).model.get_layer("dense") is model.dense


def test_a_subclassed_model_of_several_inputs(tmp_path) -> None:
    @keras.saving.register_keras_serializable(package="tests")
    class Two(Subclassed):
        def call(self, both):
            y = self.dense(both["left"])
            return {"sum": y + both["right"][0], "difference": y - both["right"][1]}

    model = Two()
    right = [A[:, :2], B[:, :2]]
    expected = {key: value.numpy() for key, value in model({"left": A, "right": right}).items()}
    for loaded in both_ways(model, tmp_path / "m.keras"):
        assert names(loaded) == (["left", "right_0", "right_1"], ["difference", "sum"])
        check_answers(loaded, {"left": A, "right_0": right[0], "right_1": right[1]}, expected)


def test_a_subclassed_model_of_several_arguments() -> None:
    class Two(Subclassed):
        def call(self, left, right):
            return self.dense(left) + right

    model = Two(name="two")
    model(A, A[:, :2])
    assert "two: a subclassed model of which Keras stored only the shape of the first argument" in refusal(model)
    specs = [InputSpec("left", (None, 3), "float32"), InputSpec("right", (None, 2), "float32")]
    loaded = load_model(as_functional(model, specs))
    check_answers(loaded, {"left": A, "right": A[:, :2]}, {loaded.outputs[0]: model(A, A[:, :2]).numpy()})


def branches(self, x):
    return self.dense(x) if keras.ops.sum(x) > 0 else self.dense(-x)


def numbers(self, x):
    return self.dense(x) * float(np.sum(x))


def otherwise(self, x):
    return self.dense(x) * (2 if isinstance(x, keras.KerasTensor) else 1)


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (branches, "cannot be turned into a graph of layers"),
        (numbers, "cannot be turned into a graph of layers"),
        (otherwise, "does something else on symbolic tensors"),
    ],
)
def test_a_subclassed_model_that_cannot_be_traced(call, why) -> None:
    def build(self, shape):
        self.dense.build(shape)

    model = type("Stubborn", (Subclassed,), {"call": call, "build": build})(name="mine")
    model(A)
    line = refusal(model)
    assert f"mine: its `call` {why}" in line
    assert "Fix: use layers and keras.ops in `call`" in line


def test_a_subclassed_model_with_weights_of_its_own() -> None:
    class Own(Subclassed):
        def build(self, shape):
            self.dense.build(shape)
            self.gain = self.add_weight(shape=(2,), name="gain")

        def call(self, x):
            return self.dense(x) * self.gain

    model = Own(name="own")
    model(A)
    assert "own: a subclassed model with weights of its own, outside layers; received own/gain" in refusal(model)


def test_a_model_that_computes_in_16_bits_answers_in_32() -> None:
    for dtype in ("mixed_float16", "mixed_bfloat16"):
        loaded = load_model(sequential(layers.Dense(2, dtype=dtype, name="y")))
        assert loaded.predict({"x": A}, fixed=loaded.inputs)["y"].dtype == np.float32
