from collections.abc import Callable
from typing import NamedTuple

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
