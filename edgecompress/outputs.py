"""Output folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgecompress.errors import OutputError

REPORT_FILE = "report.json"
REPORT_SCHEMA = "edgecompress.report/1"


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
        missing = [folder for folder in destination.parents if not folder.exists()]
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
        for folder in missing:  # those made for nothing; one that holds something stays
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
