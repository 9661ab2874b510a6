from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from edgecompress.cli import cli
from edgecompress.cli.lifecycle import run


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def edgecompress(capfd, monkeypatch, tmp_path) -> Callable[..., Done]:
    """Runs a command line in an empty folder, in this process, down to its exit code and both streams."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Done:
        capfd.readouterr()
        code = run(cli, [str(word) for word in words])
        captured = capfd.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def train_file(digits, tmp_path_factory) -> Path:
    """The first 400 of the digits that `digits_cnn` was trained on, with their labels."""
    (x, y), _ = digits.digits(as_rows=False)
    path = tmp_path_factory.mktemp("train") / "train.npz"
    np.savez(path, x=x[:400], y=y[:400])
    return path


@pytest.fixture
def refused(edgecompress, tmp_path) -> Callable[..., str]:
    """Runs a command that must fail: one line on stderr, nothing on stdout, no new file; returns the line."""

    def call(*words: object, code: int = 2) -> str:
        before = sorted(tmp_path.rglob("*"))
        done = edgecompress(*words)
        assert done.code == code, done
        assert done.out == ""
        assert done.err.startswith("Error: ")
        assert done.err.count("\n") == 1
        assert "Traceback" not in done.err
        assert sorted(tmp_path.rglob("*")) == before
        return done.err

    return call
