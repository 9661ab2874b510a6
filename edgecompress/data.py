"""Data sets: .npz, .npy, image folders and Python functions, checked against a model's inputs, split by a seed."""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import DataError, UnavailableError

Array = npt.NDArray[Any]

_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff"})
_LABEL_KEYS = ("y", "labels", "label")
_CLASS_NAMES_KEY = "class_names"
_FORMATS = "an .npz or .npy file, a folder of images, or python:module:function"


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: Its name in the model's signature.
        shape: Its shape, batch first; None where it varies.
        dtype: Its NumPy type name.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    @property
    def sample_shape(self) -> tuple[int | None, ...]:
        return self.shape[1:]


@dataclass(frozen=True)
class Dataset:
    """Samples, and labels where there are any.

    Attributes:
        inputs: Arrays of shape (samples, …), by input name; the single key "" stands for a model's only input.
        labels: Array of shape (samples, …), or None.
        class_names: What the integers in `labels` mean, or empty.
        source: Where the samples come from, for reports.
    """

    inputs: Mapping[str, Array]
    labels: Array | None = None
    class_names: tuple[str, ...] = ()
    source: str = "memory"

    def __len__(self) -> int:
        return min((len(array) for array in self.inputs.values()), default=0)

    def select(self, indices: Array) -> Dataset:
        """Returns the samples at `indices`, in that order."""
        inputs = {name: np.ascontiguousarray(array[indices]) for name, array in self.inputs.items()}
        return replace(self, inputs=inputs, labels=None if self.labels is None else self.labels[indices])


def load_data(
    source: object,
    specs: Sequence[InputSpec],
    *,
    input_range: tuple[float, float] | None = None,
    max_samples: int | None = None,
    seed: int = 0,
    unsafe: bool = False,
) -> Dataset:
    """Reads samples and makes them fit a model's inputs.

    Args:
        source: A path, `python:module:function`, a Dataset, an array, a tuple (x, y), or a dict of arrays.
        specs: The model's inputs.
        input_range: The range that 8-bit samples (0 to 255) are mapped to; None leaves them as they are.
        max_samples: Read no more than this many images, chosen by `seed`, the same share of each class.
        seed: Seed of that choice.
        unsafe: Accept pickled arrays, which can run code.

    Raises:
        DataError: There is nothing there, it cannot be read, or it does not fit the model.
    """
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        raw = _load_source(text, specs, max_samples=max_samples, seed=seed, unsafe=unsafe)
        dataset = replace(raw, source=text)
    else:
        dataset = _from_object(source)
    return _fit(dataset, specs, input_range)


def apply_shapes(specs: Sequence[InputSpec], given: Mapping[str, Sequence[int]]) -> tuple[InputSpec, ...]:
    """Returns the inputs with the dimensions that a user gave.

    Args:
        specs: The model's inputs, with None where a dimension varies.
        given: Shapes by input name ("" for a model's only input), with or without the batch.

    Raises:
        DataError: A shape names no input, or contradicts the model.
    """
    unknown = set(given) - {spec.name for spec in specs} - {""}
    if unknown or ("" in given and len(specs) != 1):
        wanted = ", ".join(f"{spec.name}=…" for spec in specs)
        received = ", ".join(name or "a shape without a name" for name in given)
        raise DataError("--input-shape names no input of the model", expected=wanted, received=received)
    return tuple(_apply_shape(spec, given.get(spec.name, given.get(""))) for spec in specs)


def _apply_shape(spec: InputSpec, given: Sequence[int] | None) -> InputSpec:
    if given is None:
        return spec
    sample = tuple(given[1:]) if len(given) == len(spec.shape) else tuple(given)
    if not _shape_fits(sample, spec.sample_shape):
        raise DataError(
            "--input-shape contradicts the model", where=spec.name, expected=spec.shape, received=tuple(given)
        )
    return replace(spec, shape=(spec.shape[0], *sample))


def fix_shapes(specs: Sequence[InputSpec], dataset: Dataset | None) -> tuple[InputSpec, ...]:
    """Returns the inputs with batch 1 and the varying dimensions that are left fixed by the data.

    Raises:
        DataError: A dimension stays unknown.
    """
    return tuple(_fix_shape(spec, dataset) for spec in specs)


def _fix_shape(spec: InputSpec, dataset: Dataset | None) -> InputSpec:
    shape = spec.sample_shape
    if dataset is not None:
        shape = dataset.inputs[spec.name].shape[1:]
    if None in shape:
        wanted = ",".join("?" if size is None else str(size) for size in shape)
        raise DataError(
            f"input {spec.name!r} has dimensions that vary: {spec.shape}",
            fix=f"pass --input-shape {spec.name}={wanted} with numbers for the ?, or --data of one shape",
        )
    return replace(spec, shape=(1, *shape))


def split_samples(dataset: Dataset, *, calibration: int, held_out: int, seed: int) -> tuple[Dataset, Dataset]:
    """Divides a data set into calibration samples and held-out samples that never meet.

    At least a fifth of the samples is held out, unless there is only one. With integer labels each class keeps its
    share of the calibration samples.

    Returns:
        At most `calibration` and at most `held_out` samples.
    """
    total = len(dataset)
    if total == 1:
        only = dataset.select(np.zeros(1, np.int64))
        return only, only
    size = min(calibration, total - max(1, total // 5))
    chosen = _choose(total, size, dataset.labels, np.random.default_rng(seed))
    rest = np.setdiff1d(np.arange(total), chosen)
    if len(rest) > held_out:
        labels = None if dataset.labels is None else dataset.labels[rest]
        rest = rest[_choose(len(rest), held_out, labels, np.random.default_rng(seed))]
    return dataset.select(chosen), dataset.select(rest)


def _choose(total: int, size: int, labels: Array | None, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    order = rng.permutation(total)
    if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iub":
        # Taking the k-th sample of every class before any (k+1)-th keeps the classes' shares for every size.
        classes = labels[order]
        position = np.empty(total, np.float64)
        for label in np.unique(classes):
            members = np.flatnonzero(classes == label)
            position[members] = (np.arange(len(members)) + 0.5) / len(members)
        order = order[np.argsort(position, kind="stable")]
    return np.sort(order[:size])


def _load_source(
    text: str, specs: Sequence[InputSpec], *, max_samples: int | None, seed: int, unsafe: bool
) -> Dataset:
    if text.startswith("python:"):
        return _from_object(_call_python(text))
    name, _, part = text.partition("#")
    path = Path(name)
    if not path.exists():
        raise DataError("no such file or folder", where=name, fix=f"--data takes {_FORMATS}")
    if path.is_dir():
        return _load_images(path, specs, max_samples, seed)
    if path.suffix == ".npz":
        return _load_npz(path, part, unsafe)
    if path.suffix == ".npy":
        return Dataset({"": _load_array_file(path, unsafe)})
    raise DataError("data of this kind cannot be read", where=name, expected=_FORMATS)


def _load_array_file(path: Path, unsafe: bool) -> Any:
    try:
        # mmap keeps a large .npy out of memory; NumPy cannot map pickled objects.
        return np.load(path, allow_pickle=unsafe, mmap_mode="r" if path.suffix == ".npy" and not unsafe else None)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None


def _unreadable(where: object, error: Exception) -> DataError:
    if "pickle" in str(error):
        return DataError(
            "holds pickled objects, which can run code when they are read",
            where=where,
            fix="save plain number arrays (np.savez with numeric dtypes), or pass --unsafe if you trust the file",
        )
    return DataError(f"cannot be read ({error})", where=where, fix="save it again with np.save or np.savez")


def _load_npz(path: Path, part: str, unsafe: bool) -> Dataset:
    archive = _load_array_file(path, unsafe)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError("not an .npz archive", where=path, fix="save it with np.savez")
    arrays = {}
    with archive:
        for key in archive.files:
            try:
                arrays[key] = archive[key]
            except (ValueError, OSError, EOFError, zipfile.BadZipFile, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
                raise _unreadable(f"{path}[{key}]", error) from None
    if part:
        return _named_part(path, arrays, part)
    if "x_train" in arrays or "x_test" in arrays:
        raise DataError(
            "holds a training and a test set", where=path, received=", ".join(arrays), fix=f"write {path}#test or #train"
        )
    return _from_mapping(arrays)


def _named_part(path: Path, arrays: Mapping[str, Array], part: str) -> Dataset:
    suffix = f"_{part}"
    chosen = {key.removesuffix(suffix): array for key, array in arrays.items() if key.endswith(suffix)}
    if not chosen:
        raise DataError(f"has no arrays that end in {suffix!r}", where=path, received=", ".join(arrays))
    return _from_mapping(chosen)


def _call_python(text: str) -> object:
    parts = text.split(":")
    if len(parts) != 3:  # noqa: PLR2004 (python, module, function)
        raise DataError("not of the form python:module:function", where=text)
    _, module_name, function_name = parts
    # A user's own script lies in the current folder, which an installed command does not search.
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ImportError as error:
        raise DataError(f"module {module_name!r} cannot be imported ({error})", where=text) from None
    except AttributeError:
        raise DataError(f"module {module_name!r} has no function {function_name!r}", where=text) from None
    finally:
        sys.path.pop(0)
    try:
        return function()
    except Exception as error:  # noqa: BLE001 (the user's own function may raise anything)
        raise DataError(f"the function raised {type(error).__name__}: {error}", where=text) from error


def _from_object(source: object) -> Dataset:
    if isinstance(source, Dataset):
        return source
    if isinstance(source, Mapping):
        return _from_mapping({str(key): np.asarray(value) for key, value in source.items()})
    if isinstance(source, (tuple, list)) and len(source) == 2:  # noqa: PLR2004 (samples and labels)
        inputs, labels = source
        inner = _from_object(inputs)
        return replace(inner, labels=np.asarray(labels))
    array = np.asarray(source)
    if array.dtype == object:
        raise DataError("not an array of numbers", expected="an array, a tuple (x, y), or a dict of arrays")
    return Dataset({"": array})


def _from_mapping(arrays: Mapping[str, Array]) -> Dataset:
    rest = dict(arrays)
    names = rest.pop(_CLASS_NAMES_KEY, None)
    label_keys = [key for key in _LABEL_KEYS if key in rest]
    labels = rest.pop(label_keys[0]) if label_keys else None
    if set(rest) == {"x"}:
        rest = {"": rest["x"]}
    return Dataset(rest, labels, () if names is None else tuple(str(name) for name in names))


def _load_images(folder: Path, specs: Sequence[InputSpec], max_samples: int | None, seed: int) -> Dataset:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise UnavailableError("image folders need Pillow", fix='pip install "edgecompress[images]"') from None
    if len(specs) != 1 or len(specs[0].shape) != 4:  # noqa: PLR2004 (batch, height, width, channels)
        raise DataError(
            "a folder of images fits only a model with one image input",
            where=folder,
            expected=", ".join(f"{spec.name}{spec.shape}" for spec in specs),
        )
    _, height, width, channels = specs[0].shape
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if height is None or width is None or channels not in modes:
        raise DataError(
            "the model does not say which size of image it takes", where=specs[0].name, received=specs[0].shape,
            fix="give --input-shape height,width,channels with 1, 3 or 4 channels",
        )  # fmt: skip
    files, labels, class_names = _list_images(folder)
    chosen = np.arange(len(files))
    if max_samples is not None and len(files) > max_samples:
        chosen = _choose(len(files), max_samples, labels, np.random.default_rng(seed))
    images = np.empty((len(chosen), height, width, channels), np.uint8)
    for row, index in enumerate(chosen):
        try:
            with Image.open(files[index]) as image:
                pixels = image.convert(modes[channels]).resize((width, height), Image.Resampling.BILINEAR)
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"not an image ({error})", where=files[index], fix="remove it or repair it") from None
        images[row] = np.asarray(pixels, np.uint8).reshape(height, width, channels)
    return Dataset({"": images}, None if labels is None else labels[chosen], class_names)


def _list_images(folder: Path) -> tuple[list[Path], Array | None, tuple[str, ...]]:
    def images_in(place: Path) -> list[Path]:
        return sorted(file for file in place.iterdir() if file.suffix.lower() in _IMAGE_SUFFIXES)

    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and images_in(entry))
    if not classes:
        files = images_in(folder)
        if not files:
            raise DataError("no images in this folder", where=folder, expected="class/image.png or image.png")
        return files, None, ()
    files = [file for place in classes for file in images_in(place)]
    labels = np.repeat(np.arange(len(classes)), [len(images_in(place)) for place in classes])
    return files, labels, tuple(place.name for place in classes)


def _fit(dataset: Dataset, specs: Sequence[InputSpec], input_range: tuple[float, float] | None) -> Dataset:
    """Names, checks and converts a data set's arrays after a model's inputs."""
    arrays = dict(dataset.inputs)
    names = [spec.name for spec in specs]
    if len(arrays) == 1 and len(names) == 1:
        # One array and one input can only mean each other, whatever they are called.
        arrays = {names[0]: next(iter(arrays.values()))}
    if set(arrays) != set(names):
        received = ", ".join(key or "x" for key in arrays) or "no arrays"
        raise DataError(
            "the arrays are not the model's inputs", where=dataset.source,
            expected=f"one array for each input: {', '.join(names)} (and y for labels)", received=received,
        )  # fmt: skip
    fitted = {spec.name: _fit_array(arrays[spec.name], spec, input_range) for spec in specs}
    lengths = {name: len(array) for name, array in fitted.items()}
    if dataset.labels is not None:
        lengths["labels"] = len(dataset.labels) if dataset.labels.ndim else 0
        if dataset.labels.dtype.kind not in "iubf":
            raise DataError("labels are not numbers", where=dataset.source, received=dataset.labels.dtype)
    if len(set(lengths.values())) != 1:
        received = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise DataError("arrays of different lengths", where=dataset.source, expected="one length", received=received)
    return replace(dataset, inputs=fitted)


def _fit_array(array: Array, spec: InputSpec, input_range: tuple[float, float] | None) -> Array:
    if array.dtype.kind not in "iubf":
        raise DataError("not an array of numbers", where=spec.name, expected=spec.dtype, received=array.dtype)
    if array.ndim == 0 or array.size == 0:
        raise DataError("there are no samples", where=spec.name, received=f"an array of shape {array.shape}")
    sample = array.shape[1:]
    if not _shape_fits(sample, spec.sample_shape) and _shape_fits((*sample, 1), spec.sample_shape):
        array = array[..., None]  # grey images are often stored without their channel
    elif not _shape_fits(sample, spec.sample_shape):
        fix = "the first axis counts the samples"
        if _shape_fits(array.shape, spec.sample_shape):
            fix = "this is one sample without the samples axis: add it with x[None]"
        expected = ("samples", *spec.sample_shape)
        raise DataError("wrong shape", where=spec.name, expected=expected, received=array.shape, fix=fix)
    if array.dtype.kind == "f":
        bad = ~np.isfinite(array)
        if bad.any():
            first = int(np.argwhere(bad)[0][0])
            raise DataError(
                f"{int(bad.sum())} values are NaN or infinite, the first in sample {first}",
                where=spec.name, fix="remove or repair these samples",
            )  # fmt: skip
    return _cast(array, spec, input_range)


def _cast(array: Array, spec: InputSpec, input_range: tuple[float, float] | None) -> Array:
    wanted = np.dtype(spec.dtype)
    if input_range is not None:
        if array.dtype != np.uint8:
            raise DataError("--input-range maps 8-bit samples", where=spec.name, expected="uint8", received=array.dtype)
        low, high = input_range
        return (low + array.astype(np.float32) * ((high - low) / 255)).astype(wanted)
    if wanted.kind in "iu" and array.dtype.kind == "f" and not np.array_equal(array, np.round(array)):
        raise DataError("wrong dtype", where=spec.name, expected=f"integers ({wanted})", received=array.dtype)
    if array.dtype == wanted:
        return array
    return array.astype(wanted)


def _shape_fits(shape: Sequence[int | None], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(w is None or s == w for s, w in zip(shape, wanted, strict=True))
