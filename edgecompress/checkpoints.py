"""Checkpoints of a training: one file, replaced whole after each epoch, that a killed run goes on from."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.errors import UsageError

_FILE = "training.npz"
_NEVER_BEST = float("inf")


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        epoch: The last whole epoch, from 1; 0 before the first.
        weights: All of the model's variables after that epoch.
        slots: All of the optimizer's variables, likewise.
        logs: The figures of each epoch.
        best: The variables of the best epoch so far, empty if none counts yet.
        best_epoch: That epoch, or 0: none, or the weights that the training began with.
        best_loss: Its validation loss.
        waited: Epochs since then.
        stopped: Why the training ended early, or None.
    """

    epoch: int = 0
    weights: list[Array] = field(default_factory=list)
    slots: list[Array] = field(default_factory=list)
    logs: list[dict[str, float]] = field(default_factory=list)
    best: list[Array] = field(default_factory=list)
    best_epoch: int = 0
    best_loss: float = _NEVER_BEST
    waited: int = 0
    stopped: str | None = None

    @property
    def kept_epoch(self) -> int:
        """The epoch whose weights stay in the model if the training ends now."""
        return self.best_epoch if self.best else self.epoch


def hash_run(variables: Sequence[Any], *facts: object) -> str:
    """Returns what tells one training from another: the SHA-256 of its first weights and of all that decides it."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for variable in variables:
        digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return digest.hexdigest()


def write_checkpoint(folder: Path, key: str, progress: Progress) -> None:
    """Writes the checkpoint of a training; a run that is killed meanwhile leaves the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        name: getattr(progress, name) for name in ("epoch", "logs", "best_epoch", "best_loss", "waited", "stopped")
    }
    groups = {"weights": progress.weights, "slots": progress.slots, "best": progress.best}
    arrays: dict[str, Any] = {
        f"{group}_{i}": array for group, members in groups.items() for i, array in enumerate(members)
    }
    temporary = folder / f".{_FILE}.{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            np.savez(file, facts=np.frombuffer(json.dumps({"key": key, **facts}).encode(), np.uint8), **arrays)
        temporary.replace(folder / _FILE)
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(folder: Path, key: str) -> Progress | None:
    """Returns the progress of the training that `key` stands for, or None if nothing was kept.

    Raises:
        UsageError: The checkpoint is damaged, or of another training.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        with np.load(path) as file:
            facts = json.loads(file["facts"].tobytes())
            groups: dict[str, Any] = {
                group: [file[f"{group}_{i}"] for i in range(sum(name.startswith(f"{group}_") for name in file.files))]
                for group in ("weights", "slots", "best")
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"not a checkpoint, or damaged ({error})", where=path, fix="leave --resume out to train from the start"
        ) from None
    if facts.pop("key") != key:
        raise UsageError(
            "this checkpoint is of another run: the model, the training samples, the seed or a setting was different",
            where=path,
            fix="repeat the command that wrote it, or leave --resume out to train from the start",
        )
    return Progress(**facts, **groups)
