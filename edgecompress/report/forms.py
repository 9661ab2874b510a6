"""Prints the files that were compared with each other, and why one of them was kept."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from edgecompress.report.model import Attempt
from edgecompress.report.tables import in_bytes, new_table


def print_forms(console: Console, attempts: Sequence[Attempt]) -> None:
    """Prints a line for each file; nothing, if there was nothing to compare."""
    compared = [one for one in attempts if one.size_bytes is not None]
    if not compared:
        return
    table = new_table("form", "file", "a sequence", "lost", "", right=(1, 2, 3))
    for one in compared:
        chosen = one.outcome == "chosen"
        table.add_row(
            f"[bold]{one.name}[/]" if chosen else one.name,
            in_bytes(one.size_bytes or 0),
            "" if one.latency_ms is None else f"{one.latency_ms:.3f} ms",
            "" if one.accuracy_drop is None else f"{100 * one.accuracy_drop:+.2f} points",
            f"{'chosen: ' if chosen else ''}{escape(one.reason)}",
        )
    console.print(table)
