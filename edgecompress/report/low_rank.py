"""Prints what low-rank decomposition made of each layer, and why it left others alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.markup import escape

from edgecompress.passes.base import LayerRank, RankPoint
from edgecompress.report.tables import in_count, new_table

_BARS = "▁▂▃▄▅▆▇█"


def print_low_rank(console: Console, layers: Sequence[LayerRank]) -> None:
    """Prints a row for each layer that was replaced by factors, then the layers that were left alone, by reason."""
    table = new_table("layer", "kind", "ranks", "weights", "MACs", "error", right=(3, 4, 5))
    for one in layers:
        if one.accepted and one.chosen is not None:
            new = one.chosen
            table.add_row(
                escape(one.layer), escape(one.kind), ranks_of(new, one.full_ranks),
                f"{one.params:,} -> {new.params:,}", f"{in_count(one.macs)} -> {in_count(new.macs)}", error_of(new),
            )  # fmt: skip
    if table.row_count:
        console.print(table)
    print_left_alone(console, not_replaced(layers))


def print_left_alone(console: Console, layers: Iterable[tuple[str, str]]) -> None:
    for line in left_alone(layers):
        console.print(f"[dim]- {escape(line)}[/]")


def not_replaced(layers: Iterable[LayerRank]) -> Iterator[tuple[str, str]]:
    """Yields the names of the layers that are no factors, and why."""
    return ((one.layer, one.reason) for one in layers if not one.accepted)


def left_alone(layers: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Says which layers are left alone and why, with the numbers; layers of the same reason are in one line."""
    reasons: dict[str, list[str]] = {}
    for name, reason in layers:
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        yield f"left alone: {', '.join(names)}: {reason}"


def sparkline(values: Iterable[float]) -> str:
    """Draws shares from 0 to 1 as bars, one character each."""
    return "".join(_BARS[round(max(0.0, min(1.0, value)) * (len(_BARS) - 1))] for value in values)


def shown_points(one: LayerRank) -> tuple[RankPoint, ...]:
    """Returns the points of one way of factorizing a layer: the chosen one's, or else the first."""
    method = one.chosen.method if one.chosen is not None else one.points[0].method if one.points else None
    return tuple(point for point in one.points if point.method == method)


def rank_of(point: RankPoint) -> str:
    """Writes the rank of each matrix."""
    return "+".join(map(str, point.ranks))


def ranks_of(point: RankPoint, full: Sequence[int]) -> str:
    return f"{rank_of(point)} of {'+'.join(map(str, full))} ({point.method})"


def error_of(point: RankPoint) -> str:
    """Writes the relative error of the outputs, or of the weights where there were no samples."""
    return f"{point.weight_error:.1%} (weights)" if point.output_error is None else f"{point.output_error:.1%}"
