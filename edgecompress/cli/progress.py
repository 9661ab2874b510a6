"""Progress on stderr: a spinner and a bar in a terminal, nothing elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from edgecompress.cli.lifecycle import console_stream
from edgecompress.passes.base import Progress as Callback


@contextlib.contextmanager
def show_progress(*, quiet: bool) -> Iterator[Callback]:
    """Gives a function (step, done, total) that draws; the lines vanish at the end.

    Text after the first ": " of a step is detail that changes, such as the loss: the bar stays the same one.
    """
    console = Console(file=console_stream())
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def say(step: str, done: int, total: int) -> None:
            name = step.partition(": ")[0]
            for other, task in tasks.items():
                if other != name:
                    bar.update(task, visible=False)
            if name not in tasks:
                tasks[name] = bar.add_task(step, total=total)
            bar.update(tasks[name], description=step, completed=done, total=total, visible=True)

        yield say
