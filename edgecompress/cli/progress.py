"""Progress on stderr: a spinner and a bar in a terminal, nothing elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from edgecompress.cli.lifecycle import console_stream
from edgecompress.pipeline import Progress as Callback


@contextlib.contextmanager
def show_progress(*, quiet: bool) -> Iterator[Callback]:
    """Gives a function (step, done, total) that draws; the lines vanish at the end."""
    console = Console(file=console_stream())
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        tasks: dict[str, object] = {}

        def say(step: str, done: int, total: int) -> None:
            for other, task in tasks.items():
                if other != step:
                    bar.update(task, visible=False)  # type: ignore[arg-type]
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=total)
            bar.update(tasks[step], completed=done, total=total)  # type: ignore[arg-type]

        yield say
