from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgecompress.data import Dataset, InputSpec, apply_shapes, fix_shapes, load_data, split_samples
from edgecompress.errors import DataError, UnavailableError

VECTOR = (InputSpec("features", (None, 3), "float32"),)
PICTURE = (InputSpec("image", (None, 4, 6, 1), "float32"),)
COLOUR = (InputSpec("image", (None, 4, 6, 3), "float32"),)
TOKENS = (InputSpec("tokens", (None, 3), "int32"),)
PAIR = (InputSpec("left", (None, 2), "float32"), InputSpec("right", (None, 3), "float32"))
X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 1, 0])


def refusal(call: Callable[..., object], *arguments: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments, **options)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


def save(folder: Path, **arrays: object) -> Path:
    path = folder / "samples.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


# NumPy files


def test_an_archive_with_samples_labels_and_class_names(tmp_path: Path) -> None:
    path = save(tmp_path, x=X, y=Y, class_names=np.array(["cat", "dog"]))
    data = load_data(path, VECTOR)
    np.testing.assert_array_equal(data.inputs["features"], X)
    np.testing.assert_array_equal(data.labels, Y)
    assert data.class_names == ("cat", "dog")
    assert data.source == str(path)
    assert len(data) == 4


@pytest.mark.parametrize("key", ["y", "label", "labels"])
def test_labels_go_by_three_names(tmp_path: Path, key: str) -> None:
    np.testing.assert_array_equal(load_data(save(tmp_path, x=X, **{key: Y}), VECTOR).labels, Y)


def test_samples_without_labels(tmp_path: Path) -> None:
    data = load_data(save(tmp_path, x=X), VECTOR)
    assert data.labels is None
    assert data.class_names == ()


def test_class_names_may_be_bytes(tmp_path: Path) -> None:
    assert load_data(save(tmp_path, x=X, class_names=np.array([b"cat", b"dog"])), VECTOR).class_names == ("cat", "dog")


def test_one_array_for_one_input_may_have_any_name(tmp_path: Path) -> None:
    assert list(load_data(save(tmp_path, pictures=X), VECTOR).inputs) == ["features"]


def test_one_array_for_each_input(tmp_path: Path) -> None:
    data = load_data(save(tmp_path, right=X, left=X[:, :2], y=Y), PAIR)
    assert list(data.inputs) == ["left", "right"]
    np.testing.assert_array_equal(data.inputs["left"], X[:, :2])


def test_arrays_that_are_not_the_inputs(tmp_path: Path) -> None:
    message = refusal(load_data, save(tmp_path, left=X, middle=X, y=Y), PAIR)
    assert "samples.npz: the arrays are not the model's inputs" in message
    assert "left, right (and y for labels)" in message
    assert "received left, middle" in message


def test_one_array_for_two_inputs() -> None:
    assert "received x" in refusal(load_data, X, PAIR)


def test_an_archive_without_arrays(tmp_path: Path) -> None:
    message = refusal(load_data, save(tmp_path), VECTOR)
    assert "samples.npz: holds no arrays. Fix: name them x and y" in message


def parts(folder: Path) -> Path:
    return save(folder, x_train=X, y_train=Y, x_test=X[:2] + 1, y_test=Y[:2], class_names=np.array(["no", "yes"]))


def test_a_part_of_an_archive(tmp_path: Path) -> None:
    path = parts(tmp_path)
    data = load_data(f"{path}#test", VECTOR)
    np.testing.assert_array_equal(data.inputs["features"], X[:2] + 1)
    np.testing.assert_array_equal(data.labels, Y[:2])
    assert data.class_names == ("no", "yes")
    assert data.source == f"{path}#test"
    assert len(load_data(f"{path}#train", VECTOR)) == 4


def test_a_part_of_an_archive_for_two_inputs(tmp_path: Path) -> None:
    path = save(tmp_path, left_test=X[:, :2], right_test=X, y_test=Y)
    assert list(load_data(f"{path}#test", PAIR).inputs) == ["left", "right"]


def test_an_archive_of_parts_without_a_part(tmp_path: Path) -> None:
    path = parts(tmp_path)
    assert refusal(load_data, path, VECTOR).endswith(f"Fix: write {path}#train or {path}#test")


def test_a_part_that_is_not_there(tmp_path: Path) -> None:
    message = refusal(load_data, f"{parts(tmp_path)}#dev", VECTOR)
    assert "no arrays that end in '_dev'" in message
    assert "x_train, y_train, x_test" in message


def test_a_part_of_something_without_parts(tmp_path: Path) -> None:
    np.save(tmp_path / "samples.npy", X)
    assert "only .npz files have parts" in refusal(load_data, f"{tmp_path}/samples.npy#test", VECTOR)


def test_a_hash_sign_in_a_name(tmp_path: Path) -> None:
    folder = tmp_path / "take #1"
    folder.mkdir()
    assert len(load_data(save(folder, x=X), VECTOR)) == 4


def test_an_array_file_is_mapped_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "samples.npy", X)
    data = load_data(tmp_path / "samples.npy", VECTOR)
    assert isinstance(data.inputs["features"].base, np.memmap)
    chosen = data.select(np.array([2, 0])).inputs["features"]
    assert chosen.base is None
    np.testing.assert_array_equal(chosen, X[[2, 0]])


@pytest.mark.parametrize("name", ["samples.npz", "samples.npy"])
def test_pickled_arrays_are_refused_unless_trusted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    pickled = X.astype(object)
    if name.endswith("npz"):
        save(tmp_path, x=pickled)
    else:
        np.save(path, pickled, allow_pickle=True)
    message = refusal(load_data, path, VECTOR)
    assert name in message
    assert "holds pickled objects, which can run code" in message
    assert "--unsafe" in message
    data = load_data(path, VECTOR, unsafe=True)
    assert data.inputs["features"].dtype == np.float32
    np.testing.assert_array_equal(data.inputs["features"], X)


def test_pickled_objects_that_are_no_numbers(tmp_path: Path) -> None:
    ragged = np.array([np.zeros(2), np.zeros(3)], dtype=object)
    message = refusal(load_data, save(tmp_path, x=ragged), VECTOR, unsafe=True)
    assert "samples.npz[x]: not an array of numbers" in message


def test_a_plain_file_is_the_same_when_trusted(tmp_path: Path) -> None:
    np.save(tmp_path / "samples.npy", X)
    np.testing.assert_array_equal(load_data(tmp_path / "samples.npy", VECTOR, unsafe=True).inputs["features"], X)


@pytest.mark.parametrize("unsafe", [False, True])
@pytest.mark.parametrize("keep", [0, 5, 40, -20])
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_a_truncated_file(tmp_path: Path, suffix: str, keep: int, unsafe: bool) -> None:
    path = tmp_path / f"samples{suffix}"
    with path.open("wb") as file:
        (np.savez if suffix == ".npz" else np.save)(file, X)
    path.write_bytes(path.read_bytes()[:keep])
    message = refusal(load_data, path, VECTOR, unsafe=unsafe)
    assert f"samples{suffix}: cannot be read (" in message
    assert "Fix: save it again" in message


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.zeros((1000, 3), np.float32))
    content = bytearray(path.read_bytes())
    content[3000] ^= 255
    path.write_bytes(content)
    assert "samples.npz[x]: cannot be read (Bad CRC-32" in refusal(load_data, path, VECTOR)


@pytest.mark.parametrize("unsafe", [False, True])
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_some_other_file_of_that_name(tmp_path: Path, suffix: str, unsafe: bool) -> None:
    path = tmp_path / f"notes{suffix}"
    path.write_text("not an array at all")
    message = refusal(load_data, path, VECTOR, unsafe=unsafe)
    assert "cannot be read (not a NumPy file)" in message


def test_archive_and_array_mixed_up(tmp_path: Path) -> None:
    archive, array = save(tmp_path, x=X), tmp_path / "array.npy"
    np.save(array, X)
    assert "an .npz archive" in refusal(load_data, archive.rename(tmp_path / "a.npy"), VECTOR)
    assert "not an .npz archive" in refusal(load_data, array.rename(tmp_path / "b.npz"), VECTOR)


def test_a_zip_file_without_arrays_in_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("x.txt", "hello")
    assert "features: not an array of numbers" in refusal(load_data, tmp_path / "other.npz", VECTOR)


def test_a_missing_file() -> None:
    message = refusal(load_data, "nothing.npz", VECTOR)
    assert message.startswith("nothing.npz: no such file or folder. Fix: --data takes an .npz or .npy file")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "samples.csv").write_text("1,2,3")
    message = refusal(load_data, tmp_path / "samples.csv", VECTOR)
    assert "samples.csv: data of this kind cannot be read" in message
    assert "python:module:function" in message


def test_a_name_that_no_file_can_have() -> None:
    assert "cannot be read (File name too long)" in refusal(load_data, "a" * 300 + ".npz", VECTOR)


# Folders of images


def paint(path: Path, value: int | tuple[int, ...], mode: str = "L", size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def test_subfolders_are_classes(tmp_path: Path) -> None:
    paint(tmp_path / "dog" / "2.png", 20)
    paint(tmp_path / "cat" / "b.png", 11)
    paint(tmp_path / "cat" / "a.PNG", 10)
    data = load_data(tmp_path, PICTURE)
    assert data.inputs["image"].shape == (3, 4, 6, 1)
    assert data.inputs["image"].dtype == np.float32
    np.testing.assert_array_equal(data.inputs["image"][:, 0, 0, 0], [10, 11, 20])
    np.testing.assert_array_equal(data.labels, [0, 0, 1])
    assert data.class_names == ("cat", "dog")


def test_an_empty_subfolder_keeps_its_class_number(tmp_path: Path) -> None:
    paint(tmp_path / "cat" / "1.png", 0)
    paint(tmp_path / "fox" / "1.png", 0)
    for name in ("dog", ".cache"):
        (tmp_path / name).mkdir()
    data = load_data(tmp_path, PICTURE)
    assert data.class_names == ("cat", "dog", "fox")
    np.testing.assert_array_equal(data.labels, [0, 2])


def test_images_without_subfolders_have_no_labels(tmp_path: Path) -> None:
    paint(tmp_path / "2.png", 2)
    paint(tmp_path / "1.png", 1)
    (tmp_path / "notes.txt").write_text("about them")
    (tmp_path / "empty").mkdir()
    data = load_data(tmp_path, PICTURE)
    np.testing.assert_array_equal(data.inputs["image"][:, 0, 0, 0], [1, 2])
    assert data.labels is None
    assert data.class_names == ()


def test_images_get_the_channels_of_the_input(tmp_path: Path) -> None:
    paint(tmp_path / "grey" / "1.png", 50)
    paint(tmp_path / "red" / "1.png", (255, 0, 0), "RGB")
    paint(tmp_path / "see-through" / "1.png", (0, 0, 255, 7), "RGBA")
    colour = load_data(tmp_path, COLOUR).inputs["image"]
    np.testing.assert_array_equal(colour[:, 3, 5], [[50, 50, 50], [255, 0, 0], [0, 0, 255]])
    grey = load_data(tmp_path, PICTURE).inputs["image"]
    # ITU-R 601-2: 0.299 R + 0.587 G + 0.114 B
    np.testing.assert_array_equal(grey[:, 3, 5, 0], [50, 76, 29])
    alpha = load_data(tmp_path, (InputSpec("image", (None, 4, 6, 4), "uint8"),)).inputs["image"]
    np.testing.assert_array_equal(alpha[:, 3, 5, 3], [255, 255, 7])


def test_images_are_resized(tmp_path: Path) -> None:
    picture = np.zeros((40, 60), np.uint8)
    picture[:, 30:] = 200
    Image.fromarray(picture).save(tmp_path / "1.png")
    image = load_data(tmp_path, PICTURE).inputs["image"][0, :, :, 0]
    assert image.shape == (4, 6)
    np.testing.assert_array_equal(image[:, [0, 5]], [[0, 200]] * 4)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    paint(tmp_path / "cat" / "1.png", 0, size=(60, 60))
    broken = tmp_path / "cat" / "2.png"
    for content in (b"hello", (tmp_path / "cat" / "1.png").read_bytes()[:-30], b""):
        broken.write_bytes(content)
        message = refusal(load_data, tmp_path, PICTURE)
        assert message.startswith(f"{broken}: not an image (")
        assert message.endswith("Fix: remove it or repair it")


def test_an_image_that_8_bits_cannot_hold(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 4096, np.uint16)).save(tmp_path / "scan.png")
    message = refusal(load_data, tmp_path, PICTURE)
    assert "scan.png: an image of more than 8 bits a channel" in message
    assert "scale such images to 8 bits" in message


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    message = refusal(load_data, tmp_path, PICTURE)
    assert "no images in this folder; expected class/image.png or image.png" in message


def test_a_limited_number_of_images_keeps_the_shares_of_the_classes(tmp_path: Path) -> None:
    for index in range(20):
        paint(tmp_path / ("many" if index < 15 else "few") / f"{index:02}.png", index)
    data = load_data(tmp_path, PICTURE, max_samples=8, seed=3)
    assert len(data) == 8
    assert data.labels is not None
    np.testing.assert_array_equal(np.bincount(data.labels), [2, 6])  # few, many
    pixels = data.inputs["image"][:, 0, 0, 0]
    np.testing.assert_array_equal(data.labels, pixels < 15)
    again, other = (load_data(tmp_path, PICTURE, max_samples=8, seed=seed).inputs["image"] for seed in (3, 4))
    np.testing.assert_array_equal(again[:, 0, 0, 0], pixels)
    assert set(other[:, 0, 0, 0]) != set(pixels)
    assert len(load_data(tmp_path, PICTURE, max_samples=100)) == 20


@pytest.mark.parametrize("specs", [VECTOR, PAIR])
def test_images_for_a_model_that_takes_none(tmp_path: Path, specs: tuple[InputSpec, ...]) -> None:
    paint(tmp_path / "1.png", 0)
    message = refusal(load_data, tmp_path, specs)
    assert "fits only a model with one image input" in message
    assert specs[0].name in message


@pytest.mark.parametrize("shape", [(None, None, None, 3), (None, 4, 6, None), (None, 4, 6, 2)])
def test_images_of_unknown_size(tmp_path: Path, shape: tuple[int | None, ...]) -> None:
    paint(tmp_path / "1.png", 0)
    message = refusal(load_data, tmp_path, (InputSpec("image", shape, "float32"),))
    assert "image: the model does not say which size" in message
    assert "--input-shape" in message


def test_images_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "1.png", 0)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UnavailableError) as caught:
        load_data(tmp_path, PICTURE)
    assert caught.value.exit_code == 3
    assert str(caught.value) == 'image folders need Pillow. Fix: pip install "edgecompress[images]"'


# Python functions


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes samples_script.py into the current folder, which is on no search path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])

    def write(text: str) -> None:
        (tmp_path / "samples_script.py").write_text(text)
        monkeypatch.delitem(sys.modules, "samples_script", raising=False)

    return write


def test_a_function_in_the_current_folder(script: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "samples_helper.py").write_text("def make():\n    return [[1, 2, 3], [4, 5, 6]]\n")
    script("def load():\n    from samples_helper import make\n    return make(), [0, 1]\n")
    before = list(sys.path)
    data = load_data("python:samples_script:load", VECTOR)
    np.testing.assert_array_equal(data.inputs["features"], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(data.labels, [0, 1])
    assert data.source == "python:samples_script:load"
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "function", "words"),
    [
        ("def load(): raise KeyError('no\\nfile')", "load", ["the function raised KeyError", "--verbose"]),
        ("def load(): raise SystemExit('usage: …')", "load", ["the function raised SystemExit: usage: …"]),
        ("def load(size): return size", "load", ["the function raised TypeError", "'size'"]),
        ("def load(): return 'samples.npz'", "load", ["not an array of numbers", "received <U11"]),
        ("def load(): yield 1", "load", ["not an array of numbers", "received generator"]),
        ("def load(): return None", "load", ["python:samples_script:load: not an array of numbers"]),
        ("def load(): return [1, 2, 3], [0]\nlaod = 1", "laod", ["no function 'laod'", "did you mean 'load'?"]),
        ("import no_such_module", "load", ["'samples_script' cannot be imported", "'no_such_module'", "install it"]),
        ("def load(:", "load", ["'samples_script' cannot be imported (SyntaxError"]),
        ("None.attribute", "load", ["'samples_script' cannot be imported (AttributeError"]),
        ("raise SystemExit(2)", "load", ["'samples_script' cannot be imported (SystemExit: 2)"]),
    ],
)  # fmt: skip
def test_a_function_that_does_not_work(
    script: Callable[[str], None], text: str, function: str, words: list[str]
) -> None:
    script(text)
    message = refusal(load_data, f"python:samples_script:{function}", VECTOR)
    for word in words:
        assert word in message


def test_a_module_that_is_not_there() -> None:
    message = refusal(load_data, "python:no_such_samples:load", VECTOR)
    assert "python:no_such_samples:load: module 'no_such_samples' cannot be imported" in message
    assert "start in the folder of the module" in message


@pytest.mark.parametrize("text", ["python:", "python:module", "python:module:", "python::load", "python:a:b:c"])
def test_a_malformed_function_name(text: str) -> None:
    message = refusal(load_data, text, VECTOR)
    assert f"{text}: not of the form python:module:function" in message
    assert "e.g. python:samples:load" in message


# Objects


@pytest.mark.parametrize(
    "source",
    [
        X,
        X.tolist(),
        (X, Y),
        (X, None),
        ({"features": X}, Y),
        {"x": X},
        {"features": X.tolist(), "y": Y.tolist()},
        Dataset({"": X}, Y),
    ],
    ids=["array", "list", "tuple", "no labels", "dict in tuple", "x", "dict", "Dataset"],
)
def test_data_in_memory(source: object) -> None:
    data = load_data(source, VECTOR)
    np.testing.assert_array_equal(data.inputs["features"], X)
    if data.labels is not None:
        np.testing.assert_array_equal(data.labels, Y)
    assert data.source == "memory"


def test_a_list_of_two_samples_is_not_samples_and_labels() -> None:
    data = load_data([[1, 2, 3], [4, 5, 6]], VECTOR)
    assert len(data) == 2
    assert data.labels is None


def test_a_dataset_keeps_its_names() -> None:
    data = load_data(Dataset({"features": X}, Y, ("no", "yes"), "the archive"), VECTOR)
    assert data.class_names == ("no", "yes")
    assert data.source == "the archive"


@pytest.mark.parametrize(
    "source", [None, object(), [[1, 2, 3], [4]], [X, Y], (X, Y, Y), ((X, X), Y), {"x": [[1], [1, 2]]}, (X, [[1], []])]
)
def test_objects_that_are_no_arrays(source: object) -> None:
    message = refusal(load_data, source, VECTOR)
    assert "not an array of numbers" in message
    assert "expected an array, a tuple (x, y), or a dict of arrays" in message


# What must fit the model


@pytest.mark.parametrize(
    ("array", "specs", "words"),
    [
        (np.zeros((4, 5)), VECTOR, ["features: wrong shape", "('samples', 3)", "(4, 5)", "first axis counts"]),
        (np.zeros((4, 3, 1)), VECTOR, ["wrong shape", "first axis counts the samples"]),
        (np.zeros(3), VECTOR, ["(3,)", "one sample without the samples axis: add it with x[None]"]),
        (np.zeros((4, 6, 1)), PICTURE, ["(4, 6, 1)", "x[None]"]),
        (np.zeros((4, 6, 3)), COLOUR, ["(4, 6, 3)", "x[None]"]),
        (np.zeros(7), (InputSpec("ids", (None, None), "float32"),), ["('samples', None)", "x[None]"]),
        (np.float32(1), VECTOR, ["features: there are no samples", "received ()"]),
        (np.zeros((0, 3)), VECTOR, ["there are no samples", "('samples', 3)", "(0, 3)"]),
        (np.full((4, 3), "a"), VECTOR, ["features: not an array of numbers", "float32", "<U1"]),
        (np.zeros((4, 3), complex), VECTOR, ["not an array of numbers", "complex128"]),
        (np.full((4, 3), 0.5), TOKENS, ["tokens: wrong dtype", "int32", "float64, 0.5 in sample 0", "round"]),
        (np.full((4, 3), 2**40), TOKENS, ["tokens: wrong dtype", f"int64, {2**40} in sample 0"]),
        (np.full((4, 3), 3e30), TOKENS, ["tokens: wrong dtype", "3e+30"]),
        (np.array([[0, 0, 0], [0, 1e39, 0]]), VECTOR, ["values that it cannot hold", "1e+39 in sample 1"]),
    ],
)
def test_an_array_that_does_not_fit(array: Any, specs: tuple[InputSpec, ...], words: list[str]) -> None:
    message = refusal(load_data, array, specs)
    for word in words:
        assert word in message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("specs", [VECTOR, TOKENS])
def test_values_that_are_not_finite(bad: float, specs: tuple[InputSpec, ...]) -> None:
    array = X.copy()
    array[2, 1] = array[3, 0] = bad
    message = refusal(load_data, array, specs)
    assert f"{specs[0].name}: 2 values are NaN or infinite, the first in sample 2" in message
    assert "remove or repair" in message


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (Y[:3], ["memory: arrays of different lengths", "features: 4, labels: 3"]),
        (np.int64(3), ["features: 4, labels: 0"]),
        (np.array(["a", "b", "c", "d"]), ["memory: labels are not numbers", "<U1", "class_names"]),
        (np.array([0, 1, np.nan, 0]), ["labels: 1 values are NaN or infinite, the first in sample 2"]),
    ],
)
def test_labels_that_do_not_fit(labels: Any, words: list[str]) -> None:
    message = refusal(load_data, (X, labels), VECTOR)
    for word in words:
        assert word in message


def test_inputs_of_different_lengths() -> None:
    message = refusal(load_data, {"left": X[:2, :2], "right": X}, PAIR)
    assert "arrays of different lengths; expected one length; received left: 2, right: 4" in message


@pytest.mark.parametrize(
    ("array", "specs"),
    [
        (X.astype(np.float64), VECTOR),
        (X.astype(np.uint8), VECTOR),
        (X.astype(np.int64), TOKENS),
        (X, TOKENS),
        (X > 3, VECTOR),
    ],
)
def test_values_that_fit_are_cast(array: Any, specs: tuple[InputSpec, ...]) -> None:
    fitted = load_data(array, specs).inputs[specs[0].name]
    assert fitted.dtype == specs[0].dtype
    np.testing.assert_array_equal(fitted, array)


def test_grey_images_without_their_channel() -> None:
    assert load_data(np.zeros((5, 4, 6)), PICTURE).inputs["image"].shape == (5, 4, 6, 1)
    assert load_data(np.zeros(5), (InputSpec("x", (None, 1), "float32"),)).inputs["x"].shape == (5, 1)


# --input-range


@pytest.mark.parametrize("bounds", [(0, 1), (-1, 1), (0.1, 0.7), (-2.1179, 2.64)])
def test_8_bit_samples_are_mapped_to_exact_end_points(bounds: tuple[float, float]) -> None:
    values = np.array([[0, 51, 255]], np.uint8)
    mapped = load_data(values, VECTOR, input_range=bounds).inputs["features"]
    assert mapped.dtype == np.float32
    assert mapped[0, 0] == np.float32(bounds[0])
    assert mapped[0, 2] == np.float32(bounds[1])
    assert mapped[0, 1] == pytest.approx(bounds[0] + (bounds[1] - bounds[0]) / 5)


def test_without_a_range_8_bit_samples_stay_as_they_are() -> None:
    assert load_data(np.array([[0, 51, 255]], np.uint8), VECTOR).inputs["features"].tolist() == [[0, 51, 255]]


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int8])
def test_a_range_for_other_samples(dtype: type) -> None:
    message = refusal(load_data, X.astype(dtype), VECTOR, input_range=(0, 1))
    assert "features: --input-range maps 8-bit samples; expected uint8" in message
    assert f"received {np.dtype(dtype)}" in message
    assert "Fix: leave it out" in message


def test_a_range_for_an_input_of_integers() -> None:
    message = refusal(load_data, X.astype(np.uint8), TOKENS, input_range=(0, 1))
    assert "tokens: --input-range maps to fractions" in message
    assert "Fix: leave it out" in message


# Shapes

ANY_PICTURE = (InputSpec("image", (None, None, None, 3), "float32"),)


@pytest.mark.parametrize("given", [(4, 6, 3), [4, 6, 3], (1, 4, 6, 3), (None, 4, 6, 3)])
@pytest.mark.parametrize("name", ["", "image"])
def test_a_shape_fixes_dimensions_with_or_without_the_batch(name: str, given: Any) -> None:
    (spec,) = apply_shapes(ANY_PICTURE, {name: given})
    assert spec == InputSpec("image", (None, 4, 6, 3), "float32")


def test_inputs_without_a_shape_stay_as_they_are() -> None:
    specs = (*ANY_PICTURE, *VECTOR)
    assert apply_shapes(specs, {}) == specs
    assert apply_shapes(specs, {"image": (4, 6, 3)})[1] is VECTOR[0]


@pytest.mark.parametrize(
    ("specs", "given", "words"),
    [
        (ANY_PICTURE, {"": (4, 6, 1)}, ["image: --input-shape contradicts", "(None, None, None, 3)", "(4, 6, 1)"]),
        (ANY_PICTURE, {"": (4, 6)}, ["contradicts the model"]),
        (ANY_PICTURE, {"": (0, 6, 3)}, ["contradicts the model", "(0, 6, 3)"]),
        (ANY_PICTURE, {"": ()}, ["contradicts the model"]),
        (ANY_PICTURE, {"": (8, 4, 6, 3)}, ["image: --input-shape has a batch", "Fix: leave the 8 out"]),
        (ANY_PICTURE, {"picture": (4, 6, 3)}, ["names no input of the model", "expected image=…", "received picture"]),
        (PAIR, {"": (2,)}, ["names no input of the model", "left=…, right=…", "a shape without a name"]),
    ],
)
def test_a_shape_that_does_not_fit(specs: Any, given: Mapping[str, Any], words: list[str]) -> None:
    message = refusal(apply_shapes, specs, given)
    for word in words:
        assert word in message


def test_fixed_shapes_have_batch_1() -> None:
    assert fix_shapes((*VECTOR, *PICTURE), None) == (
        InputSpec("features", (1, 3), "float32"),
        InputSpec("image", (1, 4, 6, 1), "float32"),
    )


def test_the_data_fixes_what_varies() -> None:
    data = load_data(np.zeros((5, 4, 6, 3)), ANY_PICTURE)
    assert fix_shapes(ANY_PICTURE, data) == (InputSpec("image", (1, 4, 6, 3), "float32"),)


def test_chosen_samples_are_contiguous() -> None:
    chosen = Dataset({"x": np.asfortranarray(X)}).select(np.array([3, 1])).inputs["x"]
    np.testing.assert_array_equal(chosen, X[[3, 1]])
    assert chosen.flags.c_contiguous


def test_dimensions_that_stay_unknown() -> None:
    message = refusal(fix_shapes, ANY_PICTURE, None)
    assert "input 'image' has dimensions that vary: (None, None, None, 3)" in message
    assert "--input-shape image=?,?,3 with numbers for the ?" in message


# Splitting


def numbered(total: int, labels: Any = None) -> Dataset:
    return Dataset({"x": np.arange(total), "twice": 2 * np.arange(total)}, labels, ("a", "b"), "here")


def members(data: Dataset) -> list[int]:
    np.testing.assert_array_equal(data.inputs["twice"], 2 * data.inputs["x"])
    return [int(number) for number in data.inputs["x"]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("total", [2, 3, 4, 9, 10, 50])
@pytest.mark.parametrize(("calibration", "held_out"), [(1, 1), (5, 3), (200, 500)])
def test_the_two_sides_never_meet_and_are_never_empty(total: int, calibration: int, held_out: int, seed: int) -> None:
    for labels in (None, np.arange(total) % 3, np.zeros(total, int)):
        left, right = split_samples(numbered(total, labels), calibration=calibration, held_out=held_out, seed=seed)
        assert not set(members(left)) & set(members(right))
        assert 1 <= len(left) <= calibration
        assert 1 <= len(right) <= held_out
        # A fifth is kept back; what is left of the rest calibrates.
        assert len(left) == min(calibration, total - max(1, total // 5))
        assert len(right) == min(held_out, total - len(left))
        assert (left.class_names, left.source) == (("a", "b"), "here")


def test_one_sample_is_both() -> None:
    left, right = split_samples(numbered(1, np.array([1])), calibration=200, held_out=500, seed=0)
    assert members(left) == members(right) == [0]
    assert left.labels is not None
    assert left.labels.tolist() == [1]


def test_the_seed_decides() -> None:
    first, again, other = (
        split_samples(numbered(100), calibration=40, held_out=30, seed=seed) for seed in (7, 7, 8)
    )  # fmt: skip
    assert [members(side) for side in first] == [members(side) for side in again]
    assert members(first[0]) != members(other[0])
    assert members(first[1]) != members(other[1])


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("size", [1, 7, 20, 60])
def test_each_class_keeps_its_share(size: int, column: bool) -> None:
    labels = np.repeat([3, 5, 9], [70, 20, 10])
    dataset = numbered(100, labels[:, None] if column else labels)
    sides = split_samples(dataset, calibration=size, held_out=20, seed=1)
    for side, count in zip(sides, (size, 20), strict=True):
        assert side.labels is not None
        np.testing.assert_array_equal(side.labels.reshape(-1), labels[members(side)])
        for label, share in ((3, 0.7), (5, 0.2), (9, 0.1)):
            assert abs(int((side.labels == label).sum()) - share * count) <= 1


def test_labels_that_are_no_classes_do_not_matter() -> None:
    plain = split_samples(numbered(50), calibration=20, held_out=10, seed=0)
    values = split_samples(numbered(50, np.linspace(0, 1, 50)), calibration=20, held_out=10, seed=0)
    assert [members(side) for side in plain] == [members(side) for side in values]
