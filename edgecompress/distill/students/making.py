"""Makes a smaller model of a teacher: the same kinds of layers, but fewer, narrower, and of lower rank."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from edgecompress.distill.students.blocks import leave_out_blocks
from edgecompress.distill.students.ranks import Ranks
from edgecompress.distill.students.sizing import Sizing
from edgecompress.distill.students.views import View
from edgecompress.distill.students.writer import BY_HAND, Writer
from edgecompress.errors import UsageError
from edgecompress.functional import as_functional


def make_student(teacher: Any, *, width: float = 1.0, depth: float = 1.0, rank: float | None = None) -> Any:
    """Returns a new Keras 3 model that does what `teacher` does with less, for it to teach.

    Its inputs and outputs have the names, shapes and structure of the teacher's. Weights are drawn by the layers'
    initializers, so that `keras.utils.set_random_seed` decides them; all layers may learn, also those that are frozen
    in the teacher. Layers that learn nothing but were adapted to data, as `keras.layers.Normalization`, keep what they
    know. With nothing asked it is the teacher's architecture anew, for self-distillation in the way of born-again
    networks (Furlanello et al. 2018, arXiv:1805.04770).

    Args:
        teacher: A functional or Sequential model, models nested in it or not, or a subclassed one that can be traced.
        width: What hidden sizes are multiplied by: filters, units, heads, sizes of embeddings. Above 0, at most 1.
            Sizes that reach an output stay, and those that are added to an input, or go into a layer of which it is
            not known what it does with them. Weights become about the square of it.
        depth: Share of repeated blocks that stay, at least one of each run: layers, residual blocks or whole encoder
            blocks that follow their like, with the same shape before and after. Above 0, at most 1.
        rank: Makes Dense, GRU and LSTM layers LowRankDense, LowRankGRU and LowRankLSTM where that saves weights. From
            1: their rank; below 1: a share of the smaller side of each kernel.

    Raises:
        UsageError: A number is out of its range, or nothing becomes smaller by it.
        ModelError: The model is no graph of layers, or layers do not fit together at other sizes.
    """
    _check(width=width, depth=depth)
    _check_rank(rank)
    graph = as_functional(teacher)
    view = View()
    flat = view.graph(graph)
    if depth < 1 and not leave_out_blocks(view, flat, depth):
        raise _nothing(
            "depth", depth, teacher, "no block is repeated often enough, with the same shape before and after"
        )
    sizing = Sizing(view, flat, width)
    if width < 1 and not sizing.narrower:
        raise _nothing("width", width, teacher, "all sizes are those of inputs or outputs, or round to what they are")
    ranks = Ranks(rank, sizing)
    student = Writer(view, sizing, ranks).student(graph)
    if rank is not None and not ranks.used:
        raise _nothing("rank", rank, teacher, "no Dense, GRU or LSTM layer would have fewer weights")
    return student


def _check(**shares: object) -> None:
    for name, share in shares.items():
        if not _is_number(share) or not 0 < share <= 1:  # type: ignore[operator]
            raise UsageError(
                f"{name} is not a share", where="make_student", expected="a number above 0, at most 1",
                received=repr(share), fix=f"give a {name} such as 0.5",
            )  # fmt: skip


def _check_rank(rank: object) -> None:
    if rank is None:
        return
    if not _is_number(rank) or rank <= 0 or (rank >= 1 and rank != int(rank)):  # type: ignore[operator,call-overload]
        raise UsageError(
            "rank is not a rank", where="make_student", expected="a share between 0 and 1, or a whole number from 1",
            received=repr(rank), fix="give a rank such as 0.25 or 16",
        )  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _nothing(name: str, value: float, teacher: Any, why: str) -> UsageError:
    return UsageError(
        f"nothing becomes smaller with {name} {value:g}: {why}", where=teacher.name,
        fix=f"give another {name}, or leave it out, or {BY_HAND}",
    )  # fmt: skip
