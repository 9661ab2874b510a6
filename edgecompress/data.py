"""Data sets: .npz, .npy, image folders and Python functions, checked against a model's inputs, split by a seed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import DataError
from edgecompress.sources import (
    CLASS_NAMES_KEY,
    IMAGE_MODES,
    call_python,
    list_images,
    plain_array,
    read_image,
    read_npy,
    read_npz,
)

Array = npt.NDArray[Any]

_LABEL_KEYS = ("y", "labels", "label")
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


def hash_samples(*datasets: Dataset) -> str:
    """Returns the SHA-256 of samples and labels, in order."""
    digest = hashlib.sha256()
    for dataset in datasets:
        for name, array in [*sorted(dataset.inputs.items()), ("labels", dataset.labels)]:
            if array is not None:
                digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


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
        try:
            raw = _load_source(text, specs, max_samples=max_samples, seed=seed, unsafe=unsafe)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", where=text, fix=f"--data takes {_FORMATS}") from None
        dataset = replace(raw, source=text)
    else:
        dataset = _from_object(source, "the data")
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
    batch, sample = (given[0], tuple(given[1:])) if len(given) == len(spec.shape) else (1, tuple(given))
    if not _shape_fits(sample, spec.sample_shape) or any(size is not None and size < 1 for size in sample):
        raise DataError(
            "--input-shape contradicts the model", where=spec.name, expected=spec.shape, received=tuple(given)
        )
    if batch not in (1, None):
        raise DataError(
            "--input-shape has a batch, but a file runs one sample at a time", where=spec.name, received=tuple(given),
            fix=f"leave the {batch} out",
        )  # fmt: skip
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
    if labels is not None and labels.size == total and labels.dtype.kind in "iub":
        # With each class spread evenly over the order, whatever is cut off its front has the classes' shares.
        _, classes, counts = np.unique(labels.reshape(-1)[order], return_inverse=True, return_counts=True)
        rank = np.empty(total, np.int64)
        rank[np.argsort(classes, kind="stable")] = np.concatenate([np.arange(count) for count in counts])
        order = order[np.argsort((rank + 0.5) / counts[classes], kind="stable")]
    return np.sort(order[:size])


def _load_source(text: str, specs: Sequence[InputSpec], *, max_samples: int | None, seed: int, unsafe: bool) -> Dataset:
    if text.startswith("python:"):
        return _from_object(call_python(text), text)
    name, _, part = (text, "", "") if Path(text).exists() else text.partition("#")
    path = Path(name)
    if not path.exists():
        raise DataError("no such file or folder", where=name, fix=f"--data takes {_FORMATS}")
    if part and path.suffix != ".npz":
        raise DataError("only .npz files have parts", where=text, fix=f"write {name}")
    if path.is_dir():
        return _load_images(path, specs, max_samples, seed)
    if path.suffix == ".npz":
        return _from_mapping(read_npz(path, part, unsafe=unsafe))
    if path.suffix == ".npy":
        return Dataset({"": read_npy(path, unsafe=unsafe)})
    raise DataError("data of this kind cannot be read", where=name, expected=_FORMATS)


def _from_object(source: object, where: str) -> Dataset:
    if isinstance(source, Dataset):
        return source
    if isinstance(source, Mapping):
        return _from_mapping({str(key): plain_array(value, f"{where}[{key}]") for key, value in source.items()})
    if isinstance(source, tuple) and len(source) == 2 and not isinstance(source[0], tuple):  # noqa: PLR2004 (x and y)
        inputs, labels = source
        return replace(
            _from_object(inputs, where), labels=None if labels is None else plain_array(labels, f"{where}[y]")
        )
    return Dataset({"": plain_array(source, where)})


def _from_mapping(arrays: Mapping[str, Array]) -> Dataset:
    rest = dict(arrays)
    names = rest.pop(CLASS_NAMES_KEY, np.asarray([], str))
    label_keys = [key for key in _LABEL_KEYS if key in rest]
    labels = rest.pop(label_keys[0]) if label_keys else None
    if set(rest) == {"x"}:
        rest = {"": rest["x"]}
    return Dataset(rest, labels, tuple(names.astype(str).reshape(-1).tolist()))


def _load_images(folder: Path, specs: Sequence[InputSpec], max_samples: int | None, seed: int) -> Dataset:
    height, width, channels = _image_size(folder, specs)
    files, labels, class_names = list_images(folder)
    chosen = np.arange(len(files))
    if max_samples is not None and len(files) > max_samples:
        chosen = _choose(len(files), max_samples, labels, np.random.default_rng(seed))
    images = np.empty((len(chosen), height, width, channels), np.uint8)
    for row, index in enumerate(chosen):
        images[row] = read_image(files[index], (width, height), channels)
    return Dataset({"": images}, None if labels is None else labels[chosen], class_names)


def _image_size(folder: Path, specs: Sequence[InputSpec]) -> tuple[int, int, int]:
    if len(specs) != 1 or len(specs[0].shape) != 4:  # noqa: PLR2004 (batch, height, width, channels)
        raise DataError(
            "a folder of images fits only a model with one image input",
            where=folder,
            expected=", ".join(f"{spec.name}{spec.shape}" for spec in specs),
        )
    height, width, channels = specs[0].sample_shape
    if height is None or width is None or channels not in IMAGE_MODES:
        raise DataError(
            "the model does not say which size of image it takes", where=specs[0].name, received=specs[0].shape,
            fix="give --input-shape height,width,channels with 1, 3 or 4 channels",
        )  # fmt: skip
    return height, width, channels


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
        if dataset.labels.dtype.kind not in "iubf":
            raise DataError(
                "labels are not numbers", where=dataset.source, received=dataset.labels.dtype,
                fix="number the classes from 0, and save their names as class_names",
            )  # fmt: skip
        _refuse_not_finite(dataset.labels, "labels")
        lengths["labels"] = len(dataset.labels) if dataset.labels.ndim else 0
    if len(set(lengths.values())) != 1:
        received = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise DataError("arrays of different lengths", where=dataset.source, expected="one length", received=received)
    return replace(dataset, inputs=fitted)


def _fit_array(array: Array, spec: InputSpec, input_range: tuple[float, float] | None) -> Array:
    if array.dtype.kind not in "iubf":
        raise DataError("not an array of numbers", where=spec.name, expected=spec.dtype, received=array.dtype)
    sample, wanted = array.shape[1:], spec.sample_shape
    if array.ndim == 0 or array.size == 0:
        raise DataError("there are no samples", where=spec.name, expected=("samples", *wanted), received=array.shape)
    if wanted[-1:] == (1,) and _shape_fits(sample, wanted[:-1]):
        array = array[..., None]  # grey images are often stored without their channel
    elif not _shape_fits(sample, wanted):
        fix = "the first axis counts the samples"
        if _shape_fits(array.shape, wanted):
            fix = "this is one sample without the samples axis: add it with x[None]"
        raise DataError("wrong shape", where=spec.name, expected=("samples", *wanted), received=array.shape, fix=fix)
    _refuse_not_finite(array, spec.name)
    return _cast(array, spec) if input_range is None else _map_range(array, spec, input_range)


def _refuse_not_finite(array: Array, name: str) -> None:
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        first = int(np.argwhere(~finite)[0][0]) if array.ndim else 0
        raise DataError(
            f"{int((~finite).sum())} values are NaN or infinite, the first in sample {first}",
            where=name, fix="remove or repair these samples",
        )  # fmt: skip


def _cast(array: Array, spec: InputSpec) -> Array:
    wanted = np.dtype(spec.dtype)
    if array.dtype == wanted:
        return array
    with np.errstate(invalid="ignore", over="ignore"):  # looked at below
        cast = array.astype(wanted)
    lost = cast != array if wanted.kind in "iub" else ~np.isfinite(cast)
    if lost.any():
        raise DataError(
            "wrong dtype, or values that it cannot hold", where=spec.name, expected=wanted,
            received=f"{array.dtype}, {array[lost][0]!s} in sample {int(np.argwhere(lost)[0][0])}",
            fix="round, scale or clip the samples",
        )  # fmt: skip
    return cast


def _map_range(array: Array, spec: InputSpec, input_range: tuple[float, float]) -> Array:
    wanted = np.dtype(spec.dtype)
    if array.dtype != np.uint8:
        raise DataError(
            "--input-range maps 8-bit samples", where=spec.name, expected="uint8", received=array.dtype,
            fix="leave it out, or save the samples as they were before scaling",
        )  # fmt: skip
    if wanted.kind in "iub":
        raise DataError(
            "--input-range maps to fractions", where=spec.name, expected="an input of floats", received=wanted,
            fix="leave it out: this input takes the samples as they are",
        )  # fmt: skip
    return np.linspace(*input_range, 256, dtype=wanted)[array]


def _shape_fits(shape: Sequence[int | None], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(w is None or s == w for s, w in zip(shape, wanted, strict=True))
