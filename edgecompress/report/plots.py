"""Draws what low-rank decomposition would keep and lose in each layer, with matplotlib: the extra `plot`."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

from edgecompress.errors import OutputError, UnavailableError, UsageError
from edgecompress.passes.base import LayerRank, RankPoint
from edgecompress.ranking import RankReport
from edgecompress.report.low_rank import shown_points

_SUFFIXES = (".png", ".svg")
_COLUMNS = 3
_WIDTH, _HEIGHT = 4.0, 2.8  # inches a layer
# No time in the file, and the same names inside: the same report gives the same bytes.
_TIMELESS: dict[str, dict[str, str | None]] = {".png": {"Software": None}, ".svg": {"Date": None}}


def check_plot(destination: Path) -> None:
    """Refuses, before any work, what cannot be drawn.

    Raises:
        UsageError: The file's name ends in neither .png nor .svg.
        OutputError: It is a folder, or in a folder that does not exist.
        UnavailableError: matplotlib is not installed.
    """
    if destination.suffix.lower() not in _SUFFIXES:
        other = destination.with_suffix(".svg") if destination.name else destination / "ranks.svg"
        raise UsageError(
            "--plot writes .png and .svg files", where=destination, received=destination.suffix or "no suffix",
            fix=f"--plot {other}",
        )  # fmt: skip
    if destination.is_dir():
        raise _unwritable(destination, os.strerror(errno.EISDIR))
    if not destination.parent.is_dir():
        raise _unwritable(destination, os.strerror(errno.ENOENT))
    _figure_class()


def plot_ranks(found: RankReport, destination: Path) -> None:
    """Draws energy and output error over the rank, one small plot a layer, with the chosen rank marked.

    Where a layer has several matrices, the largest of their ranks counts. The file is written whole or not at all.

    Args:
        found: What `edgecompress.ranking.ranks` returned.
        destination: A .png or .svg file; a file of that name is replaced.

    Raises:
        UsageError: The name ends otherwise, or no layer can be factorized.
        UnavailableError: matplotlib is not installed.
        OutputError: The file cannot be written.
    """
    check_plot(destination)
    layers = [one for one in found.layers if one.points]
    if not layers:
        raise UsageError("there is nothing to plot: no layer can be factorized", where=found.model)
    columns = min(_COLUMNS, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure = _figure_class()(figsize=(_WIDTH * columns, _HEIGHT * rows + 0.4), layout="constrained")
    figure.suptitle(f"{found.model}: what ranks keep and lose", parse_math=False)
    for number, one in enumerate(layers):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw(axes, one)
        if number == 0:
            axes.legend(fontsize="x-small")
    _write(figure, destination)


def _unwritable(destination: Path, reason: str | None) -> OutputError:
    return OutputError(f"cannot be written ({reason})", where=destination, fix="choose another file with --plot")


def _draw(axes: Any, one: LayerRank) -> None:
    points = shown_points(one)
    ranks = [_rank(point) for point in points]
    axes.plot(ranks, [point.energy for point in points], marker=".", color="tab:blue", label="energy")
    known = [(_rank(point), point.output_error) for point in points if point.output_error is not None]
    if known:
        axes.plot(*zip(*known, strict=True), marker=".", color="tab:red", label="output error")
    if one.chosen is not None:
        style = "-" if one.accepted else ":"
        name = "chosen" if one.accepted else "chosen, but left alone"
        axes.axvline(_rank(one.chosen), color="black", linestyle=style, linewidth=1, label=name)
    axes.set_title(f"{one.layer} ({one.kind}, {points[0].method})", fontsize="small", parse_math=False)
    axes.set_xlabel("rank", fontsize="small")
    axes.set_ylim(0, 1.02)
    axes.tick_params(labelsize="x-small")


def _rank(point: RankPoint) -> int:
    return max(point.ranks)


def _figure_class() -> Any:
    try:
        # Without pyplot: no window, and no state that other plots of the process would see.
        from matplotlib.figure import Figure
    except ImportError:
        raise UnavailableError(
            "--plot needs matplotlib, which is not installed", fix='pip install "edgecompress[plot]"'
        ) from None
    return Figure


def _write(figure: Any, destination: Path) -> None:
    import matplotlib as mpl

    suffix = destination.suffix.lower()
    part = destination.with_name(f".{destination.stem}.{os.getpid()}{suffix}")
    try:
        with mpl.rc_context({"svg.hashsalt": "edgecompress"}):
            figure.savefig(part, metadata=_TIMELESS[suffix])
        part.replace(destination)
    except OSError as error:
        raise _unwritable(destination, error.strerror) from None
    finally:
        if part.exists():
            part.unlink()
