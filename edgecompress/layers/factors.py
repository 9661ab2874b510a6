"""What the layers share: how the factors of a kernel start, and what ranks are refused."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from keras import ops

from edgecompress.errors import UsageError


def wrong_value(what: str, **facts: Any) -> ValueError:
    """Returns the error that Keras users expect, in the words of EdgeCompress; see `EdgeCompressError` for `facts`."""
    return ValueError(str(UsageError(what, **facts)))


def check_rank(rank: object, name: str = "rank") -> int:
    """Returns a rank, and refuses what is none.

    Raises:
        ValueError: It is not a whole number from 1.
    """
    if not isinstance(rank, (int, np.integer)) or isinstance(rank, bool) or rank < 1:
        raise wrong_value(f"{name} is not a rank", expected="a whole number from 1", received=repr(rank))
    return int(rank)


def check_fits(rank: int, rows: int, columns: int, *, where: str, name: str = "rank") -> None:
    """Refuses ranks that a matrix cannot have.

    Raises:
        ValueError: The rank is larger than the smaller side of the matrix.
    """
    if rank > min(rows, columns):
        raise wrong_value(
            f"{name} is larger than its kernel ({rows}, {columns}) allows", where=where,
            expected=f"at most {min(rows, columns)}", received=rank,
            fix=f"give a smaller {name}; it saves weights below {rows * columns / (rows + columns):.4g}",
        )  # fmt: skip


def check_source(layer: Any, kind: type[Any]) -> None:
    """Refuses what a layer cannot be made of.

    Raises:
        ValueError: It is no built layer of this kind.
    """
    if not isinstance(layer, kind):
        raise wrong_value(
            "not the layer to make this one of", expected=f"keras.layers.{kind.__name__}", received=type(layer).__name__
        )
    if not layer.built:
        raise wrong_value(
            "the layer has no weights yet", where=layer.name, fix="build it first, or call the model that it is in"
        )


def factor_initializers(initializer: Any, rows: int, columns: int, rank: int, parts: int = 1) -> tuple[Any, Any]:
    """Returns the initializers of U (rows, rank) and V (rank, columns).

    The entries of U V have the variance that `initializer` gives a whole kernel, so that signals go through the layer
    as through the one that it stands for.

    Args:
        initializer: Of a whole kernel.
        rows: Rows of it.
        columns: Columns of it, or of each of its parts.
        rank: Of the product.
        parts: How many kernels there are side by side. If several, U is (rows, parts * rank) and V (parts, rank,
            columns).
    """

    def draw(_shape: Any, dtype: Any = None, *, first: bool) -> Any:
        wanted = ops.mean(ops.square(initializer((rows, parts * columns), dtype=dtype)))
        # All at once, because each call of an initializer gives the same numbers.
        both = initializer((parts * (rows + columns), rank), dtype=dtype)
        drawn = ops.mean(ops.square(both))
        both = both * ops.where(drawn > 0, (wanted / rank) ** 0.25 / ops.sqrt(ops.maximum(drawn, 1e-30)), 0)
        if first:
            of_parts = ops.reshape(both[: parts * rows], (parts, rows, rank))
            return ops.reshape(ops.transpose(of_parts, (1, 0, 2)), (rows, parts * rank))
        v = ops.transpose(ops.reshape(both[parts * rows :], (parts, columns, rank)), (0, 2, 1))
        return v if parts > 1 else v[0]

    return functools.partial(draw, first=True), functools.partial(draw, first=False)
