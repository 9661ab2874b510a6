"""What results are held against, and which files may teach."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from edgecompress.data import Dataset, fix_shapes
from edgecompress.errors import ModelError, OutputError, UsageError
from edgecompress.models import load_model
from edgecompress.recipes import Recipe
from edgecompress.reference import open_reference, opener, refuse_teachers
from edgecompress.techniques import Distill, Prune

RNG = np.random.default_rng(0)
DATA = Dataset({name: RNG.normal(size=(6, size)).astype(np.float32) for name, size in (("a", 3), ("b", 5))})


def net(order="ab", *, seed=0, outputs=("wide", "flat")):
    """A model of two inputs, in some order, with an output for each name, of 4 values and 1."""
    keras.utils.set_random_seed(seed)
    inputs = {name: keras.Input((size,), name=name) for name, size in (("a", 3), ("b", 5))}
    x = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    made = [keras.layers.Dense({"wide": 4, "flat": 1}[name], name=name)(x) for name in outputs]
    return keras.Model([inputs[name] for name in order], made)


def learning_from(*paths):
    return Recipe(passes=(Distill(teacher=tuple(map(str, paths))),))


def answers(source, recipe):
    reference = open_reference(source, recipe, fix_shapes(source.inputs, DATA), opener(None, unsafe=False))
    return reference.answers(DATA), reference.files


def predictions(model):
    return [np.asarray(array) for array in model([DATA.inputs[tensor.name] for tensor in model.inputs])]


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(passes=(Distill(width=0.5),)), Recipe(passes=(Prune(),))])
def test_the_model_itself_where_no_file_teaches(recipe) -> None:
    model = net()
    found, files = answers(load_model(model), recipe)
    assert files == ()
    for name, expected in zip(("wide", "flat"), predictions(model), strict=True):
        np.testing.assert_allclose(found[name], expected, atol=1e-6)


def test_the_mean_of_files_that_teach_under_the_models_names(tmp_path) -> None:
    teachers = net("ba", seed=1), net("ab", seed=2)
    paths = [tmp_path / f"{number}.keras" for number in range(2)]
    for teacher, path in zip(teachers, paths, strict=True):
        teacher.save(path)
    found, files = answers(load_model(net(seed=3)), learning_from(*paths))
    assert files == tuple(paths)
    for number, name in enumerate(("wide", "flat")):
        expected = np.mean([predictions(teacher)[number] for teacher in teachers], axis=0)
        np.testing.assert_allclose(found[name], expected, atol=1e-6)


def test_inputs_of_other_names_are_taken_in_their_order(tmp_path) -> None:
    inputs = [keras.Input((3,), name="left"), keras.Input((5,), name="right")]
    teacher = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Concatenate()(inputs)))
    teacher.save(tmp_path / "t.keras")
    found, _ = answers(load_model(net(outputs=("wide",))), learning_from(tmp_path / "t.keras"))
    expected = np.asarray(teacher([DATA.inputs["a"], DATA.inputs["b"]]))
    np.testing.assert_allclose(found["wide"], expected, atol=1e-6)


def test_teachers_with_other_inputs_or_outputs_are_refused(tmp_path) -> None:
    net(outputs=("wide",)).save(tmp_path / "one.keras")
    with pytest.raises(ModelError, match=r"one\.keras: teacher and student give different answers"):
        answers(load_model(net()), learning_from(tmp_path / "one.keras"))
    x = keras.Input((3,), name="a")
    keras.Model(x, [keras.layers.Dense(4)(x), keras.layers.Dense(1)(x)]).save(tmp_path / "less.keras")
    with pytest.raises(ModelError, match=r"less\.keras: the teacher takes something else.*received a\(None, 3\)\."):
        answers(load_model(net()), learning_from(tmp_path / "less.keras"))


# Which files may teach


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("big.keras", "small.keras", "out/old.tflite", "saved/saved_model.pb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link.keras").symlink_to("big.keras")
    return tmp_path


@pytest.mark.parametrize(
    ("teacher", "destination"),
    [
        ("big.keras", "big.keras"),
        ("big.keras", "./out/../big.keras"),
        ("big.keras", "link.keras"),
        ("link.keras", "big.keras"),
        ("out/old.tflite", "out"),
        ("saved", "saved/student.keras"),
    ],
)
@pytest.mark.usefixtures("files")
def test_nothing_is_written_over_a_teacher(teacher, destination) -> None:
    recipe = learning_from("other.keras", teacher)
    with pytest.raises(OutputError, match=rf"would change {teacher}, which teaches. Fix: choose another name with -o"):
        refuse_teachers(recipe, Path("small.keras"), Path(destination))


@pytest.mark.usefixtures("files")
def test_no_model_teaches_itself() -> None:
    for model in ("big.keras", "link.keras"):
        with pytest.raises(UsageError, match=r"a model cannot teach itself\. Fix: .*width=1"):
            refuse_teachers(learning_from("big.keras"), Path(model), Path("s.keras"))
    made = Recipe(passes=(Distill(teacher=("big.keras", "other.keras"), width=0.5),))
    refuse_teachers(made, Path("big.keras"), Path("s.keras"))


@pytest.mark.usefixtures("files")
def test_what_may_teach() -> None:
    for destination in ("s.keras", "new/s.keras", "out2", "big"):
        refuse_teachers(learning_from("big.keras", "out/old.tflite", "saved"), Path("small.keras"), Path(destination))
    refuse_teachers(learning_from("big.keras"), None, Path("s.keras"))
    refuse_teachers(Recipe(passes=(Prune(),)), Path("big.keras"), Path("big.keras"))


def test_a_teachers_outputs_are_known_by_name_and_several_answer_as_they_teach(tmp_path) -> None:
    net(outputs=("flat", "wide")).save(tmp_path / "turned.keras")
    source = load_model(net())
    found, _ = answers(source, learning_from(tmp_path / "turned.keras"))
    expected = predictions(net(outputs=("flat", "wide")))
    np.testing.assert_allclose(found["wide"], expected[1], rtol=1e-5)

    def classes(name, activation, seed):
        keras.utils.set_random_seed(seed)
        x = keras.Input((3,), name="a")
        keras.Model(x, keras.layers.Dense(4, activation=activation, name="digit")(x)).save(tmp_path / name)
        return load_model(tmp_path / name)

    probable, logits = classes("probable.keras", "softmax", 0), classes("logits.keras", None, 1)
    data = Dataset({"a": DATA.inputs["a"]})
    fixed = fix_shapes(probable.inputs, data)
    recipe = learning_from(tmp_path / "probable.keras", tmp_path / "logits.keras")
    reference = open_reference(probable, recipe, fixed, opener(None, unsafe=False))
    p, z = (np.asarray(one.model(data.inputs["a"])) for one in (probable, logits))
    mean = np.exp((np.log(p) + z) / 2)
    np.testing.assert_allclose(reference.answers(data)["digit"], mean / mean.sum(-1, keepdims=True), rtol=1e-4)
