"""Outputs that appear whole or not at all, and the checkpoints beside them that outlive a killed run."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgecompress.errors import OutputError, UsageError

REPORT_FILE = "report.json"
REPORT_SCHEMA = "edgecompress.report/1"
_RUN_FILE = "run.json"


@contextlib.contextmanager
def whole_folder(destination: Path) -> Iterator[Path]:
    """Gives a hidden folder to write into, which becomes `destination` if the block ends without an error.

    An earlier output of EdgeCompress at `destination` is replaced; anything else there is refused.

    Raises:
        OutputError: The destination holds something else, or its parent cannot be written.
    """
    try:
        _refuse_foreign(destination)
        destination = destination.resolve()  # absolute; a link stays one, and what it points to is replaced
        missing = _missing_parents(destination)
        workspace, lock = _make_workspace(destination)
    except OSError as error:
        raise _unwritable(destination, error) from None
    try:
        yield workspace
        try:
            _publish(workspace, destination)
        except OSError as error:
            raise _unwritable(destination, error) from None
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
        os.close(lock)
        _remove_empty(missing)


@contextlib.contextmanager
def whole_file(destination: Path, *, source: Path | None) -> Iterator[Path]:
    """Gives a hidden place to write a .keras file at, which becomes `destination` if the block ends without an error.

    Args:
        destination: The file's name; a file of that name is replaced, anything else is refused.
        source: The file that is read, which must not be replaced.

    Raises:
        OutputError: The destination is something else, or its folder cannot be written.
    """
    if destination.suffix != ".keras":
        raise OutputError(
            "does not end in .keras", where=destination, fix=f"-o {destination.with_name(destination.name + '.keras')}"
        )
    try:
        if destination.is_dir():
            raise OutputError(
                "is a folder, but a file is written", where=destination, fix=f"-o {destination / 'compressed.keras'}"
            )
        if source is not None and destination.exists() and source.exists() and destination.samefile(source):
            raise OutputError("is the model itself", where=destination, fix="choose another name with -o")
        destination = destination.resolve()
        missing = _missing_parents(destination)
        workspace, lock = _make_workspace(destination)
    except OSError as error:
        raise _unwritable(destination, error) from None
    try:
        yield workspace / destination.name
        try:
            (workspace / destination.name).replace(destination)
        except OSError as error:
            raise _unwritable(destination, error) from None
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
        os.close(lock)
        _remove_empty(missing)


class TrainingFolder:
    """The hidden folder of a run's checkpoints beside what the run writes: `.NAME.training`.

    It is made when something trains, goes when the block ends well, and stays when the run fails or is killed.

    Args:
        destination: What the run writes.

    Attributes:
        removed_earlier: Whether `open` removed the checkpoints of an earlier run.
    """

    def __init__(self, destination: Path) -> None:
        self._destination = destination
        self._lock: int | None = None
        self.removed_earlier = False
        try:
            self._missing = _missing_parents(destination.absolute())
        except OSError as error:
            raise _unwritable(destination, error) from None

    @property
    def path(self) -> Path:
        """Where the folder is, or would be."""
        resolved = self._destination.resolve()  # as the output itself: beside what a link points to
        return resolved.with_name(f".{resolved.name}.training")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is None:
            return
        if kind is None or not self._holds_something():
            shutil.rmtree(self.path, ignore_errors=True)
            _remove_empty(self._missing)
        os.close(self._lock)

    def open(self, run: Mapping[str, Any], *, resume: bool) -> bool:
        """Makes the folder ready.

        Args:
            run: What decides the trained weights, as JSON can say it; kept, and compared on resuming.
            resume: Keep the checkpoints of an earlier run.

        Returns:
            Whether there are checkpoints to go on from.

        Raises:
            UsageError: They are those of a run that differs in something.
            OutputError: The folder cannot be written, or another run is using it.
        """
        try:
            self.path.mkdir(exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        if not _try_lock(self._lock):
            os.close(self._lock)
            self._lock = None
            raise OutputError(
                "another run is training there", where=self.path, fix="wait for its end, or choose another name with -o"
            )
        holds_something = self._holds_something()
        earlier = self._earlier_run() if holds_something else None
        if resume and earlier is not None:
            self._refuse_other(earlier, run)
            return True
        self.removed_earlier = holds_something
        for entry in self.path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        (self.path / _RUN_FILE).write_text(json.dumps(run, indent=2), "utf-8")
        return False

    def _holds_something(self) -> bool:
        return any(file.is_file() and file.name != _RUN_FILE for file in self.path.rglob("*"))

    def _earlier_run(self) -> dict[str, Any] | None:
        try:
            run = json.loads((self.path / _RUN_FILE).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return run if isinstance(run, dict) else None

    def _refuse_other(self, earlier: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps(run))
        different = sorted(key for key in {*earlier, *now} if earlier.get(key) != now.get(key))
        if different:
            raise UsageError(
                f"--resume: the checkpoints there are of a run with another {', '.join(different)}", where=self.path,
                fix="repeat the command that was ended, or leave --resume out to train from the beginning",
            )  # fmt: skip


def _missing_parents(path: Path) -> list[Path]:
    return [folder for folder in path.parents if not folder.exists()]


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:  # those made for nothing; one that holds something stays
        with contextlib.suppress(OSError):
            folder.rmdir()


def _unwritable(destination: Path, error: OSError) -> OutputError:
    not_a_folder = isinstance(error, (FileExistsError, NotADirectoryError))
    reason = "what it should lie in is not a folder" if not_a_folder else error.strerror
    return OutputError(f"cannot be written ({reason})", where=destination, fix="choose another folder with -o")


def _refuse_foreign(destination: Path) -> None:
    if destination.suffix in (".tflite", ".keras", ".json"):
        raise OutputError(
            "names a file, but a folder is written (the model, its report and golden vectors)",
            where=destination, fix=f"-o {destination.with_suffix('')}",
        )  # fmt: skip
    if destination.is_mount():
        raise OutputError(
            "is a mount point, which cannot be replaced as a whole", where=destination,
            fix=f"choose a folder inside it: -o {destination / 'out'}",
        )  # fmt: skip
    if destination.is_dir():
        strangers = sorted({entry.name for entry in destination.iterdir()} - _own_files(destination))
        if strangers:
            raise OutputError(
                "the folder holds something else", where=destination, received=", ".join(strangers[:3]),
                fix="choose another folder with -o, or empty this one",
            )  # fmt: skip
    elif destination.exists() or destination.is_symlink():
        raise OutputError("exists and is not a folder", where=destination, fix="choose another name with -o")


def _own_files(folder: Path) -> set[str]:
    """Returns the names of the files that an earlier run wrote, as its report lists them."""
    try:
        report = json.loads((folder / REPORT_FILE).read_text("utf-8"))
        return {REPORT_FILE, *report["files"]} if report["schema"] == REPORT_SCHEMA else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _make_workspace(destination: Path) -> tuple[Path, int]:
    """Makes the hidden folder, and opens it with a lock that says it is in use for as long as this process lives."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(destination)
    workspace = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.partial")
    workspace.mkdir()
    lock = os.open(workspace, os.O_RDONLY)
    _try_lock(lock)
    return workspace, lock


def _remove_leftovers(destination: Path) -> None:
    """Removes the workspaces of runs that were killed: nobody holds their locks."""
    for leftover in destination.parent.glob(f".{glob.escape(destination.name)}.*.partial"):
        with contextlib.suppress(OSError):
            lock = os.open(leftover, os.O_RDONLY)
            try:
                if _try_lock(lock):
                    shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(lock)


def _try_lock(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # in use, or on a file system without locks
        return False
    return True


def _publish(workspace: Path, destination: Path) -> None:
    _refuse_foreign(destination)  # a run takes minutes: much can appear in the meantime
    old = workspace.with_suffix(".old.partial")
    if destination.exists():
        destination.rename(old)
    workspace.rename(destination)
    shutil.rmtree(old, ignore_errors=True)
