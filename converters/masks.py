"""Writes which steps of a sequence count, and what does not change at those that do not."""

from __future__ import annotations

import numpy as np

from edgecompress.converters.graph_writer import GraphWriter, Value
from edgecompress.recurrent.scales import Scale

# Of a mask in int8. Nobody takes notice of it, but LiteRT aborts when it compares values of 1 or more.
_FLAG = Scale(2.0**-7, 0)


def find_mask(graph: GraphWriter, name: str, x: Value, value: float) -> Value:
    """Writes what a Masking layer looks for.

    Integers are compared as such: kernels that compare quantized numbers round them once more, and find alike what is
    not. So a step does not count if all its features are rounded to the integer of `value`.

    Args:
        graph: Where to.
        name: What the tensors are called.
        x: (1, steps, features), quantized or float.
        value: What features are where there is nothing.

    Returns:
        Whether each step counts, bool (1, steps).
    """
    wanted = np.float32(value) if x.scale is None else x.scale.integer(value)
    if x.dtype != "float32":
        integers = graph.tensor(f"{name}/integers", x.shape, "int32")
        graph.operator("CAST", [x], [integers], version=3 if x.dtype == "int8" else 1)
        x = integers
    alike, empty, counts = (
        graph.tensor(f"{name}/{what}", shape, "bool")
        for what, shape in (("alike", x.shape), ("empty", x.shape[:2]), ("counts", x.shape[:2]))
    )
    nothing = graph.constant(f"{name}/value", np.full((1, 1, 1), wanted, x.dtype))
    graph.operator("EQUAL", [x, nothing], [alike], {})
    axis = graph.constant("mask/features", np.asarray([2], np.int32))
    graph.operator("REDUCE_ALL", [alike, axis], [empty], {"keepDims": False})
    graph.operator("LOGICAL_NOT", [empty], [counts], {})
    return counts


def as_flags(graph: GraphWriter, name: str, mask: Value, shape: tuple[int, ...]) -> Value:
    """Returns a mask as int8, 0 or 1, in another shape: as such it can be cut and looked up like other values."""
    one, zero = (graph.constant(f"mask/{flag}", np.full((1, 1), flag, np.int8), scale=_FLAG) for flag in (1, 0))
    flags = graph.tensor(f"{name}/flags", mask.shape, "int8", _FLAG)
    graph.operator("SELECT_V2", [mask, one, zero], [flags])
    return graph.reshape(f"{name}/flags/steps", flags, shape)


def is_set(graph: GraphWriter, name: str, flag: Value) -> Value:
    """Returns whether a flag (1, 1, 1, 1) is 1, as bool."""
    result = graph.tensor(f"{name}/counts", flag.shape, "bool")
    zero = graph.constant("mask/zero", np.zeros((1, 1, 1, 1), np.int8), scale=_FLAG)
    graph.operator("NOT_EQUAL", [flag, zero], [result], {}, version=2)
    return result


def choose(graph: GraphWriter, name: str, counts: Value, new: Value, old: Value) -> Value:
    """Returns the new values if the step counts, the old ones if not."""
    result = graph.tensor(name, new.shape, new.dtype, new.scale)
    graph.operator("SELECT_V2", [counts, new, old], [result])
    return result
