import io

import pytest

from edgecompress.cli import progress
from edgecompress.cli.progress import show_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    stream = Terminal()
    monkeypatch.setattr(progress, "console_stream", lambda: stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return stream


def test_detail_after_the_colon_changes_within_one_bar(terminal, monkeypatch) -> None:
    added = []
    original = progress.Progress.add_task
    monkeypatch.setattr(
        progress.Progress, "add_task", lambda self, step, **kw: added.append(step) or original(self, step, **kw)
    )
    with show_progress(quiet=False) as say:
        say("load", 0, 1)
        say("prune: loss 0.5000", 1, 10)
        say("prune: loss 0.2500", 2, 10)
        say("verify", 0, 1)
        say("prune: loss 0.1250", 3, 10)
    assert added == ["load", "prune: loss 0.5000", "verify"]
    assert "loss 0.1250" in terminal.getvalue()


def test_nothing_without_a_terminal(monkeypatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(progress, "console_stream", lambda: stream)
    with show_progress(quiet=False) as say:
        say("prune: loss 0.5", 1, 10)
    assert stream.getvalue() == ""


def test_nothing_where_quiet_was_asked_for(terminal) -> None:
    with show_progress(quiet=True) as say:
        say("prune: loss 0.5", 1, 10)
    assert terminal.getvalue() == ""
