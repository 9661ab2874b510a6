"""How the widths of tensors go through the operations of keras.ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgecompress.distill.students.calls import Call, concatenate, keep_all, match_all, regroup, set_shape
from edgecompress.distill.students.widths import Axes, Width, hold


def rule_for(operation: Any) -> Callable[[Call], list[Axes]]:
    """Returns the rule of an operation."""
    return _RULES.get(type(operation).__name__, _elementwise)


def _elementwise(call: Call) -> list[Axes]:
    """Of operations that have no rule: they are elementwise if the shapes say so."""
    if not call.inputs or len(call.shapes) != 1 or call.has_constants:
        return keep_all(call)
    shape = call.shapes[0]
    for each in call.inputs:
        sizes = zip(each.shape[::-1], shape[::-1], strict=False)
        if len(each.shape) > len(shape) or any(size not in (1, None, of_output) for size, of_output in sizes):
            return keep_all(call)
    return match_all(call)


def _reduce(call: Call) -> list[Axes]:
    operation, rank = call.operation, len(call.x.shape)
    axes = operation.axis
    gone = set(range(rank)) if axes is None else {axis % rank for axis in ([axes] if isinstance(axes, int) else axes)}
    kept = [axis for axis in range(rank) if axis not in gone]
    return [call.output({to if not operation.keepdims else axis: call.x.widths[axis] for to, axis in enumerate(kept)})]


def _reshape(call: Call) -> list[Axes]:
    output = regroup(call)
    target = call.operation.newshape
    set_shape(call, "newshape", [target] if isinstance(target, int) else target, output)
    return [output]


def _reshaped(call: Call) -> list[Axes]:
    return [regroup(call)]


def _transpose(call: Call) -> list[Axes]:
    axes = call.operation.axes or range(len(call.x.shape))[::-1]
    return call.carry(dict(enumerate(axes)))


def _split(call: Call) -> list[Axes]:
    axis, count = call.operation.axis, call.operation.indices_or_sections
    width = call.x.widths[axis]
    part: Width | None = None
    if width is not None and isinstance(count, int):
        part = call.widths.part(count, width)
    else:
        hold([width])
    rank = len(call.x.shape)
    widths = {number: part if number == axis % rank else known for number, known in enumerate(call.x.widths)}
    return [call.output(widths, number) for number in range(len(call.shapes))]


def _get_item(call: Call) -> list[Axes]:
    key = call.argument(1, "key")
    parts = list(key) if isinstance(key, (tuple, list)) else [key]
    if not all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in parts):
        return keep_all(call)
    missing = len(call.x.shape) - sum(part is not None and part is not Ellipsis for part in parts)
    place = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    parts[place : place + 1] = [slice(None)] * missing
    axes, source = {}, 0
    returned = 0
    for part in parts:
        if part == slice(None):
            axes[returned] = source
        returned += not isinstance(part, int)
        source += part is not None
    return call.carry(axes)


def _matmul(call: Call) -> list[Axes]:
    if len(call.inputs) != 2 or call.has_constants or min(len(each.shape) for each in call.inputs) < 2:  # noqa: PLR2004
        return keep_all(call)
    first, second = call.inputs
    call.widths.join(first.widths[-1], second.widths[-2])
    hold([*first.widths[:-2], *second.widths[:-2]])
    return [call.output({-2: first.widths[-2], -1: second.widths[-1]})]


_RULES = {
    **dict.fromkeys(("Mean", "Sum", "Max", "Min", "Var", "Std", "Prod", "Any", "All"), _reduce),
    **dict.fromkeys(("ExpandDims", "Squeeze"), _reshaped),
    **dict.fromkeys(("BroadcastTo", "Pad", "Einsum", "Roll", "Tile", "Dot", "Tensordot"), keep_all),
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Concatenate": concatenate,
    "Split": _split,
    "GetItem": _get_item,
    "Matmul": _matmul,
}
