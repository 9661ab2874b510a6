"""Models that could run code or touch files are refused before anything is built from them."""

import base64
import json
import marshal
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgecompress.errors import ModelError
from edgecompress.models import load_model

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
tf_keras = pytest.importorskip("tf_keras")
h5py = pytest.importorskip("h5py")

# Keras warns whoever writes an .h5 file, as these tests must.
pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")

layers = keras.layers
A = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 500
    return line


def save(module, folder: Path, function) -> Path:
    tf.saved_model.save(module, str(folder), signatures={"serving_default": function})
    return folder


@pytest.fixture
def evil(tmp_path):
    """The path of a file that the code in a malicious model would create."""
    path = tmp_path / "evil"
    yield path
    assert not path.exists(), "code of the model file has run"


def touching_lambda(path: Path, *, framework=keras):
    code = f"lambda x: (__import__('pathlib').Path({str(path)!r}).touch(), x)[1]"
    return framework.layers.Lambda(eval(code), output_shape=(3,), name="innocent")  # noqa: S307 (our own text)


def in_time(framework, part):
    sequence = framework.Sequential([framework.Input((4, 3)), part])
    return framework.Sequential([framework.Input((2, 4, 3)), framework.layers.TimeDistributed(sequence)])


LAMBDA_PLACES = {
    "plain": lambda f, part: f.Sequential([f.Input((3,)), part]),
    "nested model": lambda f, part: f.Sequential([f.Input((3,)), f.Sequential([f.Input((3,)), part])]),
    "TimeDistributed": lambda f, part: f.Sequential([f.Input((4, 3)), f.layers.TimeDistributed(part)]),
    "nested in TimeDistributed": in_time,
}


@pytest.mark.parametrize("place", LAMBDA_PLACES)
@pytest.mark.parametrize(
    ("framework", "suffix"), [(keras, "keras"), (keras, "h5"), (tf_keras, "h5"), (tf_keras, "keras")]
)
def test_a_lambda_is_refused_wherever_it_is(tmp_path, evil, place, framework, suffix) -> None:
    path = tmp_path / f"m.{suffix}"
    LAMBDA_PLACES[place](framework, touching_lambda(evil, framework=framework)).save(path)
    evil.unlink(missing_ok=True)  # building the model may have run the code
    line = refusal(path)
    assert "layer 'innocent' is a Lambda, which runs Python code stored in the file" in line
    assert "--unsafe" in line


def test_a_lambda_in_a_bidirectional_wrapper(tmp_path, evil) -> None:
    path = tmp_path / "m.keras"
    recurrent = layers.Bidirectional(layers.GRU(2), name="ways")
    keras.Sequential([keras.Input((4, 3)), recurrent]).save(path)
    code = marshal.dumps(compile(f"open({str(evil)!r}, 'w')", "model", "exec"))
    function = {"class_name": "__lambda__", "config": {"value": [base64.b64encode(code).decode(), None, None]}}
    edit_config(path, lambda config: config["config"]["layers"][1]["config"].update(merge_mode=function))
    assert "is a Lambda" in refusal(path)


def edit_config(path: Path, edit) -> None:
    """Changes the configuration inside a .keras file."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    edit(config)
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(("framework", "suffix"), [(keras, "keras"), (keras, "h5"), (tf_keras, "h5")])
def test_a_lambda_runs_from_a_trusted_file(tmp_path, framework, suffix) -> None:
    path, trace = tmp_path / f"m.{suffix}", tmp_path / "trace"
    LAMBDA_PLACES["plain"](framework, touching_lambda(trace, framework=framework)).save(path)
    trace.unlink(missing_ok=True)
    loaded = load_model(path, unsafe=True)
    answers = loaded.predict({loaded.inputs[0].name: A}, fixed=loaded.inputs)
    np.testing.assert_array_equal(answers[loaded.outputs[0]], A)
    assert trace.exists()


def test_a_lambda_behind_an_innocent_model_of_another_format(tmp_path, evil) -> None:
    """What is read to judge the file must be what Keras reads to build the model."""
    path = tmp_path / "m.keras"
    innocent = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    innocent.save(tmp_path / "innocent.h5")
    LAMBDA_PLACES["plain"](keras, touching_lambda(evil)).save(path)
    evil.unlink(missing_ok=True)
    path.write_bytes((tmp_path / "innocent.h5").read_bytes() + path.read_bytes())
    assert zipfile.is_zipfile(path)
    assert "is a Lambda" in refusal(path)


def test_a_class_of_any_other_module_is_refused(tmp_path, evil) -> None:
    path = tmp_path / "m.keras"
    keras.Sequential([keras.Input((3,)), layers.Dense(2)]).save(path)
    call = {"module": "os", "class_name": "system", "config": f"touch {evil}", "registered_name": None}
    edit_config(path, lambda config: config["config"]["layers"].append(call))
    assert "custom class 'system'" in refusal(path)


@pytest.mark.parametrize("function", ["io.write_file", "compat.v1.write_file", "keras.utils.get_file"])
def test_a_call_of_tensorflow_that_touches_files_is_refused(tmp_path, evil, function) -> None:
    path = tmp_path / "m.h5"
    x = tf_keras.Input((3,), name="x")
    tf_keras.Model(x, x * 2.0).save(path)
    with h5py.File(path, "a") as file:
        text = file.attrs["model_config"].replace('"math.multiply"', json.dumps(function))
        assert function in text
        file.attrs["model_config"] = text
    line = refusal(path)
    assert "may do more than compute" in line
    assert function.removeprefix("compat.v1.") in line
    assert not evil.exists()


class Writer(tf.Module):
    """Writes a file when it is called; the operation is in a function inside a function."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = str(path)

    @tf.function(autograph=False)
    def inner(self, x):
        with tf.control_dependencies([tf.io.write_file(self.path, "x")]):
            return tf.identity(x)

    @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32, name="x")], autograph=False)
    def __call__(self, x):
        return {"y": tf.cond(tf.reduce_sum(x) > 0, lambda: self.inner(x), lambda: x)}


def test_a_saved_model_that_writes_files_is_refused(tmp_path, evil) -> None:
    module = Writer(evil)
    folder = save(module, tmp_path / "saved", module.__call__)
    line = refusal(folder)
    assert "(WriteFile) reads or writes files or runs Python" in line
    assert "--unsafe" in line
    assert load_model(folder, unsafe=True).outputs == ("y",)


def test_the_name_of_a_function_protects_nothing(tmp_path, evil) -> None:
    """The functions that save a SavedModel may write files, but no signature may call one that is named like them."""
    module = Writer(evil)
    folder = save(module, tmp_path / "saved", module.__call__)
    edit_saved_model(folder, lambda meta: rename_functions(meta, "__inference_inner", "__inference__traced_save"))
    assert "(WriteFile)" in refusal(folder)


def rename_functions(meta, old: str, new: str) -> None:
    content = meta.SerializeToString()
    assert old.encode() in content
    library = meta.graph_def.library.function
    renamed = {f.signature.name: f.signature.name.replace(old, new) for f in library}
    for function in library:
        function.signature.name = renamed[function.signature.name]
        for node in function.node_def:
            for value in node.attr.values():
                value.func.name = renamed.get(value.func.name, value.func.name) if value.func.name else ""


def edit_saved_model(folder: Path, edit) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    file = folder / "saved_model.pb"
    description = saved_model_pb2.SavedModel()
    description.ParseFromString(file.read_bytes())
    for meta in description.meta_graphs:
        edit(meta)
    file.write_bytes(description.SerializeToString())


def write_old_saved_model(folder: Path, build) -> Path:
    """A SavedModel of TensorFlow 1: no functions, all operations in the main graph."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 3), name="x")
        scale = v1.get_variable("scale", initializer=3.0)
        y, start = build(x * scale)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(folder), {"x": x}, {"y": y}, legacy_init_op=start)
    return folder


def test_an_old_saved_model(tmp_path) -> None:
    loaded = load_model(write_old_saved_model(tmp_path / "saved", lambda y: (y + 1, None)))
    np.testing.assert_allclose(loaded.predict({"x": A}, fixed=loaded.inputs)["y"], A * 3 + 1, rtol=1e-6)


def write_file(path: Path):
    return tf.io.write_file(str(path), "x")


def test_an_old_saved_model_that_writes_files_is_refused(tmp_path, evil) -> None:
    def in_the_output(y):
        with tf.control_dependencies([write_file(evil)]):
            return tf.identity(y), None

    def while_loading(y):
        return y, tf.group(write_file(evil))

    for number, build in enumerate((in_the_output, while_loading)):
        assert "(WriteFile)" in refusal(write_old_saved_model(tmp_path / f"saved{number}", build))


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda x, _path: tf.py_function(lambda v: v, [x], tf.float32), "EagerPyFunc"),
        (lambda x, path: x * tf.strings.to_number(tf.io.read_file(path)), "ReadFile"),
        (lambda x, path: printed(x, f"file://{path}"), "PrintV2"),
    ],
)
def test_other_operations_that_are_refused(tmp_path, evil, operation, name) -> None:
    @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32, name="x")], autograph=False)
    def call(x):
        return {"y": operation(x, str(evil))}

    assert f"({name})" in refusal(save(tf.Module(), tmp_path / "saved", call))


def printed(x, stream):
    with tf.control_dependencies([tf.print(x, output_stream=stream)]):
        return tf.identity(x)


def test_printing_and_tables_are_harmless(tmp_path) -> None:
    class Table(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            pairs = tf.lookup.KeyValueTensorInitializer(tf.constant([0, 1]), tf.constant([5.0, 7.0]))
            self.table = tf.lookup.StaticHashTable(pairs, -1.0)

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32, name="x")], autograph=False)
        def __call__(self, x):
            return {"y": printed(self.table.lookup(x), sys.stderr)}

    module = Table()
    loaded = load_model(save(module, tmp_path / "saved", module.__call__))
    answers = loaded.predict({"x": np.array([1, 0, 9], np.int32)}, fixed=loaded.inputs)
    np.testing.assert_array_equal(answers["y"], [7.0, 5.0, -1.0])
