"""What all tables share: how they are drawn, and how numbers are written in them."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgecompress.benchmark.measurement import Measurement
from edgecompress.passes.base import PassResult
from edgecompress.verify.metrics import Scores
from edgecompress.verify.verification import Verified

_WIDTH_OF_FILES = 120


def new_console() -> Console:
    # In a file or a pipe the tables keep one width, so that they do not depend on a terminal.
    return Console(
        file=sys.stdout, highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else _WIDTH_OF_FILES
    )


def new_table(*columns: str, right: Iterable[int] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    aligned = set(right)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in aligned else "left", overflow="fold")
    return table


def in_bytes(size: int) -> str:
    """Kilobytes of 1,000 bytes, as file managers and app stores count."""
    return f"{size:,} B" if size < 1000 else f"{size / 1000:,.1f} kB" if size < 10_000_000 else f"{size / 1e6:,.1f} MB"  # noqa: PLR2004 (units)


def in_count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def in_ms(measurement: Measurement, milliseconds: float) -> str:
    """Writes a time, and that it is one of a single step if it is."""
    return f"{milliseconds:.3f} ms{'' if measurement.steps_per_run is None else ' a step'}"


def counted(number: int, noun: str) -> str:
    """Writes a number of things, whose plural has an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def in_ratio(before: float | None, after: float | None) -> str:
    return "" if not before or after is None else f"{after / before:.2f} x"


def score_rows(scores: Scores) -> Iterable[tuple[str, str]]:
    if scores.accuracy is not None:
        yield "accuracy (top-1)", f"{scores.accuracy:.2%}"
    if scores.top5_accuracy is not None:
        yield "top-5", f"{scores.top5_accuracy:.2%}"
    if scores.mse is not None and scores.mae is not None:
        yield "mean squared error", f"{scores.mse:.6g}"
        yield "mean absolute error", f"{scores.mae:.6g}"


def score_change(name: str, before: Scores, after: Scores) -> str:
    if name.startswith("accuracy") and before.accuracy is not None and after.accuracy is not None:
        return f"{100 * (after.accuracy - before.accuracy):+.2f} points"
    return ""


def headline(scores: Scores) -> str:
    return f"{scores.accuracy:.2%}" if scores.accuracy is not None else f"MAE {scores.mae:.4g}"


def verified_line(verified: Verified, passes: Iterable[PassResult]) -> str:
    """Says how alike the answers are to those of the model as it was, or of the teachers in its place."""
    parts = []
    for output in verified.outputs:
        snr = "identical" if output.snr_db is None else f"{output.snr_db:.1f} dB SNR"
        same = "" if output.top1_agreement is None else f", {output.top1_agreement:.2%} same answers"
        parts.append(f"{escape(output.name)} {snr}{same}")
    samples = counted(verified.samples, f"{verified.kind} sample")
    teachers = [name for one in passes if one.distilled is not None for name in one.distilled.teachers]
    against = escape(" and ".join(teachers)) or "the float model"
    return f"verified against {against} on {samples}: {'; '.join(parts)}"
