"""Output folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
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
    destination = destination.absolute()
    _refuse_foreign(destination)
    workspace = _make_workspace(destination)
    try:
        yield workspace
        _publish(workspace, destination)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _refuse_foreign(destination: Path) -> None:
    if destination.suffix in (".tflite", ".keras", ".json"):
        raise OutputError(
            "names a file, but a folder is written (the model, its report and golden vectors)",
            where=destination, fix=f"-o {destination.with_suffix('')}",
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


def _make_workspace(destination: Path) -> Path:
    parent = destination.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(parent, destination.name)
        workspace = parent / f".{destination.name}.{os.getpid()}.partial"
        workspace.mkdir()
    except OSError as error:
        raise OutputError(
            f"cannot be written ({error.strerror})", where=destination, fix="choose another folder with -o"
        ) from None
    return workspace


def _remove_leftovers(parent: Path, name: str) -> None:
    """Removes the workspaces of runs that were killed."""
    for leftover in parent.glob(f".{name}.*.partial"):
        owner = leftover.name.split(".")[-2]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(leftover, ignore_errors=True)


def _publish(workspace: Path, destination: Path) -> None:
    if destination.exists():
        old = workspace.with_suffix(".old")
        destination.rename(old)
        workspace.rename(destination)
        shutil.rmtree(old, ignore_errors=True)
    else:
        workspace.rename(destination)
