"""Where samples come from: NumPy files, folders of images, and Python functions. `data.load_data` makes them fit."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import DataError, UnavailableError, did_you_mean

Array = npt.NDArray[Any]

CLASS_NAMES_KEY = "class_names"
IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names, by the number of channels
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff"})


def read_npy(path: Path, *, unsafe: bool) -> Array:
    """Returns the array in an .npy file, mapped rather than read where that is possible.

    Raises:
        DataError: Not an .npy file, damaged, or pickled and not `unsafe`.
    """
    try:
        # Mapped, a large file stays out of memory; NumPy cannot map pickled objects.
        array = np.load(path, allow_pickle=unsafe, mmap_mode=None if unsafe else "r")
    except Exception as error:  # noqa: BLE001 (a damaged file makes NumPy raise almost anything)
        raise _unreadable(path, error) from None
    if isinstance(array, np.lib.npyio.NpzFile):
        array.close()
        raise DataError("an .npz archive", where=path, expected="one array, as np.save writes it", fix="name it .npz")
    return plain_array(array, path)


def read_npz(path: Path, part: str, *, unsafe: bool) -> dict[str, Array]:
    """Returns the arrays of an .npz archive, or those of one part: x_test is x in the part "test".

    Raises:
        DataError: Not an archive, damaged, without that part, or pickled and not `unsafe`.
    """
    with path.open("rb") as file:  # NumPy would leave a damaged archive open
        try:
            archive = np.load(file, allow_pickle=unsafe)
        except Exception as error:  # noqa: BLE001 (as above)
            raise _unreadable(path, error) from None
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError("not an .npz archive", where=path, fix="save it with np.savez")
        keys = _keys_of_part(path, archive.files, part)
        return {name: _read_member(path, archive, key) for name, key in keys.items()}


def _keys_of_part(path: Path, keys: Sequence[str], part: str) -> dict[str, str]:
    suffix = f"_{part}" if part else ""
    chosen = {key.removesuffix(suffix): key for key in keys if key.endswith(suffix)}
    parts = [f"{path}#{name}" for name in ("train", "test") if f"x_{name}" in keys]
    if parts and not part:
        raise DataError(
            "holds the parts of a data set", where=path, received=", ".join(keys), fix=f"write {' or '.join(parts)}"
        )
    if not chosen:
        raise DataError(
            f"has no arrays that end in {suffix!r}" if part else "holds no arrays", where=path,
            received=", ".join(keys) or None, fix="name them x and y, or x_test and y_test for #test",
        )  # fmt: skip
    return chosen | {key: key for key in keys if key == CLASS_NAMES_KEY}


def _read_member(path: Path, archive: Mapping[str, Array], key: str) -> Array:
    try:
        array = archive[key]
    except Exception as error:  # noqa: BLE001 (as above)
        raise _unreadable(f"{path}[{key}]", error) from None
    return plain_array(array, f"{path}[{key}]")


def _unreadable(where: object, error: Exception) -> DataError:
    said = str(error)
    if "Object arrays" in said or "Python objects" in said:
        return DataError(
            "holds pickled objects, which can run code when they are read", where=where,
            fix="save plain number arrays (np.savez with numeric dtypes), or pass --unsafe if you trust the file",
        )  # fmt: skip
    # NumPy takes a file that is none of its own for a pickle.
    reason = "not a NumPy file" if "pickle" in said else said
    return DataError(f"cannot be read ({reason})", where=where, fix="save it again with np.save or np.savez")


def plain_array(values: object, where: object) -> Array:
    """Makes an array of anything that is one: lists, tensors, and arrays of objects that are numbers.

    Raises:
        DataError: It is not an array.
    """
    try:
        array = np.asarray(values)
        if array.dtype == object:
            array = np.asarray(array.tolist())
    except (TypeError, ValueError):  # lists of different lengths, or a tensor on another device
        array = np.asarray(None)
    if array.dtype == object:
        raise DataError(
            "not an array of numbers", where=where, received=type(values).__name__,
            expected="an array, a tuple (x, y), or a dict of arrays by input name (and y)",
        )  # fmt: skip
    return array


def list_images(folder: Path) -> tuple[list[Path], Array | None, tuple[str, ...]]:
    """Returns the images in a folder, and where they lie in subfolders, the number and the names of their classes.

    Raises:
        DataError: There are none.
    """

    def images_in(place: Path) -> list[Path]:
        return sorted(file for file in place.iterdir() if file.suffix.lower() in _IMAGE_SUFFIXES)

    places = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    # An empty subfolder is a class too, or the classes after it would not have the numbers they were trained with.
    classes = {place.name: images_in(place) for place in places}
    files = [file for images in classes.values() for file in images]
    if files:
        return files, np.repeat(np.arange(len(classes)), [len(images) for images in classes.values()]), tuple(classes)
    files = images_in(folder)
    if not files:
        raise DataError("no images in this folder", where=folder, expected="class/image.png or image.png")
    return files, None, ()


def read_image(file: Path, size: tuple[int, int], channels: int) -> Array:
    """Returns an image's 8-bit pixels, of shape (height, width, channels).

    Args:
        file: The image.
        size: Width and height to stretch it to.
        channels: 1 for grey, 3 for RGB, 4 for RGBA.

    Raises:
        DataError: Not an image, damaged, or of more than 8 bits a channel.
        UnavailableError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise UnavailableError("image folders need Pillow", fix='pip install "edgecompress[images]"') from None
    try:
        with Image.open(file) as image:
            stored = image.mode
            pixels = image.convert(IMAGE_MODES[channels]).resize(size, Image.Resampling.BILINEAR)
    except Exception as error:  # noqa: BLE001 (a damaged file makes Pillow raise almost anything)
        raise DataError(f"not an image ({error})", where=file, fix="remove it or repair it") from None
    if stored[0] in "IF":  # Pillow cuts these off at 255
        raise DataError(
            "an image of more than 8 bits a channel", where=file, received=f"Pillow mode {stored}",
            fix="scale such images to 8 bits, or save them as an .npz",
        )  # fmt: skip
    return np.asarray(pixels, np.uint8).reshape(size[1], size[0], channels)


def call_python(text: str) -> object:
    """Returns what the function of `python:module:function` returns.

    Raises:
        DataError: It cannot be imported, or it raised.
    """
    module_name, _, function_name = text.removeprefix("python:").partition(":")
    if not module_name or not function_name.isidentifier():
        raise DataError("not of the form python:module:function", where=text, fix="e.g. python:samples:load")
    with users_code():
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            raise DataError(
                f"module {module_name!r} cannot be imported ({type(error).__name__}: {error})", where=text,
                fix="start in the folder of the module, or install it",
            ) from error  # fmt: skip
        function = getattr(module, function_name, None)
        if not callable(function):
            functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise DataError(
                f"module {module_name!r} has no function {function_name!r}", where=text,
                fix=did_you_mean(function_name, functions),
            )  # fmt: skip
        try:
            return function()
        except (Exception, SystemExit) as error:
            raise DataError(
                f"the function raised {type(error).__name__}: {error}", where=text, fix="--verbose shows where"
            ) from error


@contextlib.contextmanager
def users_code() -> Iterator[None]:
    """Lets a user's own code be found in the current folder, and keeps what it prints out of our output."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
