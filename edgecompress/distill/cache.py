"""The teacher's answers on disk: each sample is asked once, and a run that was killed goes on where it stood."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import numpy as np

from edgecompress.data import Array
from edgecompress.errors import DataError, InternalError, OutputError
from edgecompress.passes.base import Progress

Ask = Callable[[list[Array]], list[Array]]

_SCHEMA = "edgecompress.answers/1"
_STATE_FILE = "rows.json"
_HASHED_AT_ONCE = 4 << 20  # bytes
_BETWEEN_COMMITS_S = 1.0  # waiting for the disk after each batch would cost more than a second of answers is worth


@dataclass(frozen=True)
class AnswerSpec:
    """One of the answers that a teacher gives for a sample.

    Attributes:
        name: The name of its file, without .npy.
        shape: Its shape, without the batch.
        dtype: The NumPy type that it is stored as.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    def header(self, samples: int) -> bytes:
        """Returns how a .npy file of the answers for all samples begins."""
        content = io.BytesIO()
        facts = {"descr": np.dtype(self.dtype).str, "fortran_order": False, "shape": (samples, *self.shape)}
        np.lib.format.write_array_header_1_0(content, facts)
        return content.getvalue()

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class AnswerCache:
    """Keeps what teachers answer, by what was asked: a folder of .npy files for each teacher and each set of samples.

    Processes may share a cache: one that wants what another is being answered waits for it.

    Args:
        folder: Where the answers are kept; made when it is needed.
        store: How floating-point answers are stored; float16 takes half the space and keeps three digits.
    """

    def __init__(self, folder: str | Path, *, store: Literal["float32", "float16"] = "float32") -> None:
        self._folder = Path(folder)
        self._store = store

    def answers(
        self, *, teacher: str, inputs: Sequence[Array], ask: Ask, batch_size: int = 64, say: Progress | None = None
    ) -> list[Array]:
        """Returns a teacher's answers for all samples, and asks for those that are not on disk yet.

        Args:
            teacher: What tells this teacher, and the outputs that are asked of it, from all others.
            inputs: The samples: arrays of shape (samples, …). Memory-mapped ones are never read as a whole.
            ask: Takes the inputs of a batch, and returns the teacher's answers: arrays of shape (batch, …).
            batch_size: Samples that are asked for at once.
            say: Told how many samples are answered.

        Returns:
            Read-only arrays of shape (samples, …), mapped from the disk, in the order of `ask`.

        Raises:
            DataError: The inputs are not arrays of one length; an answer is NaN or infinite as it is stored; the
                answers are not one for each sample, or not of one shape.
            OutputError: The folder cannot be written, or the disk is full; what was answered so far is kept.
        """
        samples = count_samples(inputs)
        folder = self._folder / self._key(teacher, inputs)
        with _alone_in(folder, lambda: _report(say, "waiting for another run, which asks the teacher", 0, samples)):
            with _Rows(folder, samples, self._store) as rows:
                while rows.whole < samples:
                    batch = [np.asarray(array[rows.whole : rows.whole + batch_size]) for array in inputs]
                    rows.append(ask(batch), expected=len(batch[0]))
                    _report(say, "teacher", rows.whole, samples)
            return [np.load(folder / f"{spec.name}.npy", mmap_mode="r") for spec in rows.specs]

    def _key(self, teacher: str, inputs: Sequence[Array]) -> str:
        facts = [teacher, self._store, [(array.dtype.str, array.shape) for array in inputs]]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for array in inputs:
            at_once = max(1, _HASHED_AT_ONCE * len(array) // max(1, array.nbytes))
            for start in range(0, len(array), at_once):
                part = np.ascontiguousarray(array[start : start + at_once])
                digest.update(part.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


class _Rows:
    """The answers for the first samples; those that are whole on disk outlive the process.

    A state beside the files says how many rows are whole. It is replaced only after they have reached the disk, so
    whatever lies behind them is the rest of a run that was killed, and is cut off.
    """

    def __init__(self, folder: Path, samples: int, store: str) -> None:
        self._folder = folder
        self._samples = samples
        self._store = store
        self.specs, self.whole = _read_state(folder, samples)
        self._committed = self.whole
        self._committed_at = time.monotonic()
        self._files: list[BinaryIO] = []

    def __enter__(self) -> Self:
        with _explained(self._folder):
            if not self.specs:
                for entry in self._folder.iterdir():
                    entry.unlink()  # not written over: another process may have mapped it
            elif self.whole < self._samples:
                self._open("r+b")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # of an error that is on its way
            self._commit()
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()

    def append(self, answers: Sequence[Array], *, expected: int) -> None:
        """Writes the answers for the next samples.

        Raises:
            DataError: They are not one for each sample, not like those before, NaN or infinite.
            OutputError: They cannot be written.
        """
        specs = _describe(answers, expected, self._store)
        if not self.specs:
            _refuse_if_too_large(self._folder, specs, self._samples)
        if self.specs and specs != self.specs:
            raise DataError(
                f"the teacher's answers changed their form at sample {self.whole}", expected=_in_words(self.specs),
                received=_in_words(specs), fix="give it samples of one shape, and ask for outputs of one shape",
            )  # fmt: skip
        stored = [_as_stored(answer, spec, self.whole) for answer, spec in zip(answers, specs, strict=True)]
        with _explained(self._folder, sum(spec.row_bytes for spec in specs) * self._samples):
            if not self.specs:
                self.specs = specs
                self._open("w+b")
            for file, array in zip(self._files, stored, strict=True):
                file.write(array.data)
            self.whole += expected
            if self.whole == self._samples or time.monotonic() - self._committed_at >= _BETWEEN_COMMITS_S:
                self._commit()

    def _open(self, mode: Literal["r+b", "w+b"]) -> None:
        for spec in self.specs:
            file = (self._folder / f"{spec.name}.npy").open(mode)
            self._files.append(file)
            file.write(spec.header(self._samples))
            file.truncate(file.tell() + self.whole * spec.row_bytes)
            file.seek(0, os.SEEK_END)

    def _commit(self) -> None:
        if self.whole == self._committed:
            return
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        state = {"schema": _SCHEMA, "rows": self.whole, "answers": [asdict(spec) for spec in self.specs]}
        temporary = self._folder / f".{_STATE_FILE}"
        with temporary.open("wb") as written:
            written.write(json.dumps(state).encode())
            written.flush()
            os.fsync(written.fileno())
        temporary.replace(self._folder / _STATE_FILE)
        self._committed, self._committed_at = self.whole, time.monotonic()


def _report(say: Progress | None, step: str, done: int, total: int) -> None:
    if say is not None:
        say(step, done, total)


def count_samples(arrays: Sequence[Any]) -> int:
    """Returns the length that all arrays have.

    Raises:
        DataError: They have not one, or are no arrays of numbers.
    """
    lengths = {len(array) if isinstance(array, np.ndarray) and array.ndim else None for array in arrays}
    if len(lengths) != 1 or lengths & {None, 0} or any(array.dtype.hasobject for array in arrays):
        raise DataError(
            "the samples, and what belongs to them, must be arrays of numbers of one length, which is not 0",
            received=", ".join(f"{getattr(array, 'dtype', type(array).__name__)}{np.shape(array)}" for array in arrays),
            fix="give each array a row for each sample",
        )
    return len(arrays[0])


def _describe(answers: Sequence[Array], samples: int, store: str) -> list[AnswerSpec]:
    if not answers:
        raise InternalError("the teacher was asked for nothing")
    specs = []
    for number, answer in enumerate(answers):
        if answer.shape[:1] != (samples,):
            raise DataError(
                f"answer {number} of the teacher does not have a row for each sample", expected=f"({samples}, …)",
                received=answer.shape, fix="ask for outputs whose first axis is the batch",
            )  # fmt: skip
        is_float = answer.dtype.kind == "f" or answer.dtype.name == "bfloat16"
        if not is_float and answer.dtype.kind not in "biu":
            raise DataError(
                f"answer {number} of the teacher is not of numbers", expected="floating-point numbers or integers",
                received=answer.dtype,
            )  # fmt: skip
        dtype = store if is_float else answer.dtype.name
        specs.append(AnswerSpec(f"answer_{number}", answer.shape[1:], dtype))
    return specs


def _refuse_if_too_large(folder: Path, specs: Sequence[AnswerSpec], samples: int) -> None:
    needed, free = samples * sum(spec.row_bytes for spec in specs), shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"the teacher's answers to {samples:,} samples take {needed / 1e6:,.0f} MB", where=folder,
            expected=f"at most {free / 1e6:,.0f} MB, which are free", received=_in_words(specs),
            fix="make room, run the teacher in each step (--no-cache, or plain fit), or compare smaller layers",
        )  # fmt: skip


def _in_words(specs: Sequence[AnswerSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype}{spec.shape}" for spec in specs)


def _as_stored(answer: Array, spec: AnswerSpec, first: int) -> Array:
    with np.errstate(over="ignore"):  # seen below
        stored = np.ascontiguousarray(answer, dtype=spec.dtype)
    bad = np.flatnonzero(~np.isfinite(stored).reshape(len(stored), -1).all(axis=1))
    if bad.size == 0:
        return stored
    where = f"{spec.name} of the teacher to sample {first + bad[0]}"
    if np.isfinite(answer[bad[0]].astype(np.float64)).all():
        raise DataError(
            f"a number is too large for {spec.dtype}", where=where, received=np.abs(answer[bad[0]]).max(),
            fix='store="float32"',
        )  # fmt: skip
    raise DataError(
        "a number is NaN or infinite, which teaches nothing", where=where,
        fix="check this sample, and the teacher on it",
    )  # fmt: skip


def _read_state(folder: Path, samples: int) -> tuple[list[AnswerSpec], int]:
    """Returns what the files hold and how many rows of it are whole; nothing, where anything does not agree."""
    try:
        state = json.loads((folder / _STATE_FILE).read_text("utf-8"))
        whole = int(state["rows"])
        specs = [AnswerSpec(str(each["name"]), tuple(each["shape"]), str(each["dtype"])) for each in state["answers"]]
        known = state["schema"] == _SCHEMA and 0 < whole <= samples
        if known and specs and all(_agrees(folder, spec, samples, whole) for spec in specs):
            return specs, whole
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return [], 0


def _agrees(folder: Path, spec: AnswerSpec, samples: int, whole: int) -> bool:
    header = spec.header(samples)
    path = folder / f"{spec.name}.npy"
    with path.open("rb") as file:
        begins_so = file.read(len(header)) == header
    size, needed = path.stat().st_size, len(header) + whole * spec.row_bytes
    return begins_so and (size == needed if whole == samples else size >= needed)


@contextlib.contextmanager
def _alone_in(folder: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Makes a folder and locks it, for as long as the block takes; `wait` is called if another process has it."""
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    try:
        with _explained(folder):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def _explained(folder: Path, total_bytes: int = 0) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        need = f", all of which take {total_bytes / 1e6:.1f} MB" if total_bytes else ""
        raise OutputError(
            f"the teacher's answers{need} cannot be written ({error.strerror})", where=folder,
            fix="make room and repeat the command, which goes on from here; or choose another folder",
        ) from None  # fmt: skip
