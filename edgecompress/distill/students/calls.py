"""What a call of a layer does to the widths of its tensors, whatever the layer is: what the rules are written with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from edgecompress.distill.students.widths import Axes, Width, Widths, hold


@dataclass(frozen=True)
class Call:
    """One call of a layer or operation.

    Attributes:
        operation: It.
        args: Positional arguments, `Axes` in the place of tensors.
        kwargs: Keyword arguments, likewise.
        shapes: Those of what it returns in the teacher.
        widths: All widths of the model.
        share: What hidden widths are multiplied by.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: tuple[tuple[int | None, ...], ...]
    widths: Widths = field(repr=False)
    share: float

    @property
    def inputs(self) -> list[Axes]:
        """All tensors that it is given."""
        import keras

        return [leaf for leaf in keras.tree.flatten((self.args, self.kwargs)) if isinstance(leaf, Axes)]

    @property
    def x(self) -> Axes:
        """The first of them."""
        return self.inputs[0]

    @property
    def has_constants(self) -> bool:
        """Whether it is given arrays, which have sizes of their own."""
        import keras

        leaves = keras.tree.flatten((self.args, self.kwargs))
        return any(not isinstance(leaf, Axes) and len(getattr(leaf, "shape", ())) > 0 for leaf in leaves)

    def argument(self, position: int, name: str) -> Any:
        """Returns an argument, however it was given, or None."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name)

    def output(self, widths: dict[int, Width | None], number: int = 0) -> Axes:
        """Returns an output that has these widths, by axes, which may be negative."""
        return Axes.fixed(self.shapes[number]).having(widths)

    def carry(self, axes: dict[int, int]) -> list[Axes]:
        """Returns the only output, with axes of the first input, which are given by its own; others are held."""
        rank = len(self.x.shape)
        kept = {axis % rank for axis in axes.values()}
        hold(width for axis, width in enumerate(self.x.widths) if axis not in kept)
        return [self.output({to: self.x.widths[from_] for to, from_ in axes.items()})]

    def config(self) -> dict[str, Any]:
        """Returns the configuration of the layer; empty if it has none."""
        try:
            return dict(self.operation.get_config())
        except Exception:  # noqa: BLE001 (a custom layer may raise anything)
            return {}


def keep_all(call: Call) -> list[Axes]:
    """Of layers that nothing is known of: they get what they get in the teacher, and so give the same."""
    for each in call.inputs:
        hold(each.widths)
    return [Axes.fixed(shape) for shape in call.shapes]


def match_all(call: Call) -> list[Axes]:
    """Of elementwise arithmetic: sizes on the same axis, from the right, agree, but for those of 1."""
    shape = call.shapes[0]
    outputs: dict[int, Width | None] = {}
    for axis in range(-1, -len(shape) - 1, -1):
        reaching = [each for each in call.inputs if len(each.shape) >= -axis]
        own = [each.widths[axis] for each in reaching if each.shape[axis] in (shape[axis], None)]
        outputs[axis] = agree(call.widths, own)
    return [call.output(outputs, number) for number in range(len(call.shapes))]


def agree(widths: Widths, these: Sequence[Width | None]) -> Width | None:
    """Makes widths the same, and returns the one that they are."""
    found = these[0] if these else None
    for each in these[1:]:
        found = widths.join(found, each)
    return found


def concatenate(call: Call) -> list[Axes]:
    """Of Concatenate: on one axis widths are added up."""
    tensors, shape = call.inputs, call.shapes[0]
    joined = call.operation.axis % len(shape)
    outputs: dict[int, Width | None] = {}
    for axis in range(len(shape)):
        own = [each.widths[axis] for each in tensors]
        if axis != joined:
            outputs[axis] = agree(call.widths, own)
        elif None not in (sizes := [each.shape[axis] for each in tensors]):
            outputs[axis] = call.widths.total(list(zip(sizes, own, strict=True)))  # type: ignore[arg-type]
    return [call.output(outputs)]


def regroup(call: Call) -> Axes:
    """Of Reshape, Flatten and the like: a width that is split or merged stays a multiple of what it is made of.

    Of a width that is split, the last part changes, and the others stay.
    """
    x, shape, widths = call.x, call.shapes[0], call.widths
    old = [axis for axis, size in enumerate(x.shape) if size != 1]
    new = [axis for axis, size in enumerate(shape) if size != 1]
    found: dict[int, Width | None] = {}
    for end in (0, -1):
        while old and new and x.shape[old[end]] == shape[new[end]]:
            found[new.pop(end)] = x.widths[old.pop(end)]
    moving = [width for axis in old if (width := x.widths[axis]) is not None]
    if len(moving) == 1 and len(new) == 1 and (whole := shape[new[0]]) is not None:
        found[new[0]] = widths.times(Fraction(whole, moving[0].size), moving[0])
    elif len(moving) == 1 and len(old) == 1 and new and (part := shape[new[-1]]) is not None:
        found[new[-1]] = widths.part(moving[0].size // part, moving[0])
    else:
        hold(moving)
    return call.output(found)


def set_shape(call: Call, key: str, target: Sequence[int | None], output: Axes) -> None:
    """Has the shape in a layer's configuration be that of its output in the student; -1 and None stay."""
    known = len(output.shape) - len(target)

    def new() -> tuple[int | None, ...]:
        sizes = zip(target, output.new_shape[known:], strict=True)
        return tuple(old if old in (-1, None) else size for old, size in sizes)

    if any(width is not None for width in output.widths):
        call.widths.set(call.operation, key, new)


def divisor(size: int, most: int) -> int:
    """Returns the largest number up to `most` that divides a size."""
    return next(number for number in range(min(size, most), 0, -1) if size % number == 0)
