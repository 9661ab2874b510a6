"""Prints what low-rank decomposition would make of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.markup import escape

from edgecompress.passes.base import LayerRank, RankPoint
from edgecompress.ranking import RankReport
from edgecompress.report.low_rank import (
    error_of,
    not_replaced,
    print_left_alone,
    rank_of,
    ranks_of,
    shown_points,
    sparkline,
)
from edgecompress.report.tables import counted, in_bytes, in_count, in_ratio, new_console, new_table

_SHARES = (0.25, 0.5, 0.75)  # of the full rank: where the energy is shown in numbers
_BYTES = 4  # a weight in float32


def print_ranks(found: RankReport) -> None:
    """Prints a row a layer: energy over the rank, weights, bytes and MACs before and after, error, chosen ranks."""
    console = new_console()
    device = f" for [bold]{found.profile}[/]" if found.profile is not None else ""
    way, value = found.technique.choice
    how = way if way == "evbmf" else f"{way} {value:g}"
    console.print(f"[bold]{escape(found.model)}[/]{device}: ranks by {how}, in multiples of {found.multiple}")
    columns = ("layer", "kernel", "energy over the rank", "weights", "float32", "MACs", "error", "ranks")
    table = new_table(*columns, right=(3, 4, 5, 6))
    for one in found.layers:
        if one.points or one.chosen is not None:
            table.add_row(*_row(one))
    if table.row_count:
        console.print(table)
    print_left_alone(console, not_replaced(found.layers))
    if not table.row_count:
        console.print("[bold]no layer can be factorized[/]")
        return
    console.print(_totals(found))
    if found.data is None:
        what = "without samples: energy and error are those of the weights. Pass --data for those of the outputs."
    else:
        what = f"error: of the layer's outputs on {counted(found.samples, 'sample')} of {found.data}"
    console.print(f"[dim]{escape(what)}[/]")


def _row(one: LayerRank) -> Iterator[str]:
    new = one.chosen if one.accepted else None
    points = shown_points(one)
    yield f"{escape(one.layer)}\n[dim]{escape(one.kind)}[/]"
    yield "\n".join(" x ".join(map(str, shape)) for shape in one.shapes)
    yield f"{sparkline(point.energy for point in points)}\n{_energies(points, one.full_ranks)}"
    yield _before_after(f"{one.params:,}", None if new is None else f"{new.params:,}")
    yield _before_after(in_bytes(_BYTES * one.params), None if new is None else in_bytes(_BYTES * new.params))
    yield _before_after(in_count(one.macs), None if new is None else in_count(new.macs))
    yield "" if one.chosen is None else error_of(one.chosen)
    yield "left alone" if new is None else f"[bold]{ranks_of(new, one.full_ranks)}[/]"


def _before_after(before: str, after: str | None) -> str:
    return before if after is None else f"{before}\n-> {after}"


def _energies(points: Sequence[RankPoint], full: Sequence[int]) -> str:
    """Says the energy at the ranks nearest to a quarter, a half and three quarters of the full rank."""
    if not points or not full:
        return ""
    near = [min(points, key=lambda point: abs(max(point.ranks) - share * max(full))) for share in _SHARES]
    return ", ".join(f"{rank_of(point)}: {point.energy:.0%}" for point in dict.fromkeys(near))


def _totals(found: RankReport) -> str:
    before, after = found.params_before, found.params_after
    weights = (
        f"[bold]total[/]: {before:,} -> {after:,} weights ({in_ratio(before, after)}), "
        f"{in_bytes(_BYTES * before)} -> {in_bytes(_BYTES * after)} as float32"
    )
    if found.macs_before is None or found.macs_after is None:
        return f"{weights}; MACs are not known"
    macs = f"{found.macs_before:,} -> {found.macs_after:,} MACs of these layers"
    ratio = in_ratio(found.macs_before, found.macs_after)
    return f"{weights}; {macs} ({ratio})" if ratio else f"{weights}; {macs}"
