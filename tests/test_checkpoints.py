from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecompress.checkpoints import Progress, hash_run, read_checkpoint, write_checkpoint
from edgecompress.errors import UsageError


class KilledError(Exception):
    """Stands for a killed process."""


class Variable:
    def __init__(self, *values):
        self.values = np.float32(values)

    def numpy(self):
        return self.values


def test_a_checkpoint_gives_back_all_that_was_written(tmp_path):
    written = Progress(
        epoch=3,
        weights=[np.ones(3), np.arange(4)],
        slots=[np.int64(7)],
        logs=[{"loss": 0.5}, {"loss": 0.4}, {"loss": 0.3}],
        best=[np.zeros(3), np.arange(4) * 2],
        best_epoch=2,
        best_loss=0.25,
        waited=1,
        stopped="early",
    )
    write_checkpoint(tmp_path / "new", "key", written)
    found = read_checkpoint(tmp_path / "new", "key")
    for group in ("weights", "slots", "best"):
        for one, other in zip(getattr(found, group), getattr(written, group), strict=True):
            np.testing.assert_array_equal(one, other)
    facts = ("epoch", "logs", "best_epoch", "best_loss", "waited", "stopped", "kept_epoch")
    assert [getattr(found, name) for name in facts] == [getattr(written, name) for name in facts]


def test_nothing_was_kept(tmp_path):
    assert read_checkpoint(tmp_path, "key") is None


def test_without_a_best_epoch_the_last_is_kept():
    assert Progress(epoch=4).kept_epoch == 4
    assert Progress(epoch=4, best=[np.ones(1)], best_epoch=0).kept_epoch == 0


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    write_checkpoint(tmp_path, "key", Progress())
    with pytest.raises(UsageError, match=r"of another run.*Fix: .*--resume"):
        read_checkpoint(tmp_path, "another")


@pytest.mark.parametrize("content", [b"", b"PK damaged", None])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    file = tmp_path / "training.npz"
    if content is None:
        np.savez(file, other=np.zeros(1))
    else:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=r"not a checkpoint, or damaged.*Fix: leave --resume out"):
        read_checkpoint(tmp_path, "key")


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(monkeypatch, tmp_path):
    write_checkpoint(tmp_path, "key", Progress(epoch=1, weights=[np.ones(3)], best_loss=0.5))

    def killed(_self, _target):
        raise KilledError

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KilledError):
        write_checkpoint(tmp_path, "key", Progress(epoch=2, weights=[np.zeros(3)]))
    assert [file.name for file in tmp_path.iterdir()] == ["training.npz"]
    found = read_checkpoint(tmp_path, "key")
    assert (found.epoch, found.best_loss, found.weights[0].tolist()) == (1, 0.5, [1, 1, 1])


def test_weights_and_facts_tell_runs_apart():
    one = hash_run([Variable(1, 2)], "prune", 3)
    assert one == hash_run([Variable(1, 2)], "prune", 3)
    assert len({one, hash_run([Variable(1, 3)], "prune", 3), hash_run([Variable(1, 2)], "prune", 4)}) == 3
