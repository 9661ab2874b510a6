"""Sizes of layers that may change, and which of them have to stay alike for a graph of layers to fit together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any


def scaled(size: int, share: float) -> int:
    """Returns a share of a size, rounded, at least 1."""
    return max(1, math.floor(size * share + 0.5))


class Width:
    """A size that all axes of tensors share that have to agree.

    Attributes:
        size: What it is in the teacher.
        new: What it is in the student, once that is worked out.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._same: Width | None = None
        self._new = size
        self.held = False
        self.multiple = 1
        self.sums: list[Sum] = []

    @property
    def root(self) -> Width:
        """The one that stands for all that were joined."""
        root = self
        while root._same is not None:
            root = root._same
        return root

    @property
    def new(self) -> int:
        return self.root._new  # noqa: SLF001

    def settle(self, new: int) -> None:
        self._new = new

    def join(self, other: Width) -> None:
        """Makes two the same."""
        one, two = self.root, other.root
        if one is two:
            return
        one._same = two  # noqa: SLF001
        two.held |= one.held or one.size != two.size
        two.multiple = math.lcm(one.multiple, two.multiple)
        two.sums += one.sums


@dataclass(frozen=True)
class Sum:
    """A width as others times numbers, and what is fixed: of a concatenation, or of a tensor that was flattened."""

    parts: tuple[tuple[Fraction, Width], ...]
    fixed: int = 0


@dataclass(frozen=True)
class Axes:
    """A tensor's shape in the teacher, and the widths that axes of it have; None where a size does not change."""

    shape: tuple[int | None, ...]
    widths: tuple[Width | None, ...]

    @classmethod
    def fixed(cls, shape: Sequence[int | None]) -> Axes:
        return cls(tuple(shape), (None,) * len(shape))

    def having(self, widths: dict[int, Width | None]) -> Axes:
        """Returns the same with some widths replaced, by their axes, which may be negative."""
        new = list(self.widths)
        for axis, width in widths.items():
            new[axis] = width
        return Axes(self.shape, tuple(new))

    def without(self, axis: int) -> Axes:
        return Axes(self.shape[:axis] + self.shape[axis + 1 :], self.widths[:axis] + self.widths[axis + 1 :])

    @property
    def new_shape(self) -> tuple[int | None, ...]:
        """The shape in the student."""
        pairs = zip(self.shape, self.widths, strict=True)
        return tuple(size if width is None else width.new for size, width in pairs)


@dataclass
class Widths:
    """All widths of a model, and the settings of layers that follow from them.

    Attributes:
        settings: By the id of a layer, then by the key in its configuration: what gives the new value.
    """

    settings: dict[int, dict[str, Callable[[], Any]]] = field(default_factory=dict)
    _all: list[Width] = field(default_factory=list)
    _own: dict[tuple[int, str], Width] = field(default_factory=dict)

    def make(self, size: int) -> Width:
        self._all.append(Width(size))
        return self._all[-1]

    def of(self, layer: Any, key: str, size: int) -> Width:
        """Returns a width that belongs to a layer, the same one for each call of the layer."""
        if (id(layer), key) not in self._own:
            self._own[id(layer), key] = self.make(size)
        return self._own[id(layer), key]

    def own(self, layer: Any, key: str, size: int) -> Width:
        """Returns the width that a setting of a layer is."""
        width = self.of(layer, key, size)
        self.set(layer, key, lambda: width.new)
        return width

    def set(self, layer: Any, key: str, value: Callable[[], Any]) -> None:
        self.settings.setdefault(id(layer), {})[key] = value

    def join(self, first: Width | None, second: Width | None) -> Width | None:
        """Makes two the same; what is the same as a size that does not change is held."""
        if first is None or second is None:
            hold([first, second])
            return None
        first.join(second)
        return first

    def times(self, ratio: Fraction, width: Width | None) -> Width | None:
        """Returns what is always so many times a width."""
        if width is None or ratio == 1:
            return width
        product = self.make(int(ratio * width.size))
        product.sums.append(Sum(((ratio, width),)))
        return product

    def part(self, count: int, width: Width) -> Width | None:
        """Returns one of so many equal parts of a width, which is made a multiple of their number."""
        common_multiple(width, count)
        return self.times(Fraction(1, count), width)

    def follow(self, width: Width, ratio: Fraction, leader: Width) -> None:
        """Has a width always be so many times another."""
        if ratio == 1:
            width.join(leader)
        else:
            width.root.sums.append(Sum(((ratio, leader),)))

    def total(self, parts: Sequence[tuple[int, Width | None]]) -> Width | None:
        """Returns the sum of widths, each given with its size."""
        moving = tuple((Fraction(1), width) for _, width in parts if width is not None)
        if len(parts) == 1 or not moving:
            return parts[0][1] if len(parts) == 1 else None
        total = self.make(sum(size for size, _ in parts))
        total.sums.append(Sum(moving, sum(size for size, width in parts if width is None)))
        return total

    def solve(self, share: float) -> bool:
        """Works out all new sizes; returns whether any is smaller.

        A width that cannot meet all that it has to agree with is held at its size in the teacher.
        """
        roots = [width for width in self._all if width.root is width]
        while True:
            _spread_holds(roots)
            known: dict[int, int] = {}
            if all(_settle(width, share, known, set()) for width in roots):
                return any(width.new != width.size for width in roots)


def common_multiple(width: Width, number: int) -> None:
    """Has a width be a multiple of a number, where it is free to be."""
    width.root.multiple = math.lcm(width.root.multiple, number)


def hold(widths: Iterable[Width | None]) -> None:
    """Keeps widths as they are."""
    for width in widths:
        if width is not None:
            width.root.held = True


def _spread_holds(roots: Sequence[Width]) -> None:
    """Holds the parts of sums that are held, and their parts."""
    todo = [width for width in roots if width.held]
    while todo:
        for one in todo.pop().sums:
            free = [part.root for _, part in one.parts if not part.root.held]
            hold(free)
            todo += free


def _settle(width: Width, share: float, known: dict[int, int], asked: set[int]) -> bool:
    """Works out one width, and before it those that it is made of; False if it, or one of them, had to be held."""
    if id(width) in known:
        return True
    if id(width) in asked:
        width.held = True  # it is made of itself
        return False
    asked.add(id(width))
    parts = [part.root for one in width.sums for _, part in one.parts]
    if not width.held and not all(_settle(part, share, known, asked) for part in parts):
        return False
    if width.held:
        new = {Fraction(width.size)}
    elif width.sums:
        new = {sum((ratio * part.new for ratio, part in one.parts), Fraction(one.fixed)) for one in width.sums}
    else:
        new = {Fraction(width.multiple * scaled(width.size // width.multiple, share))}
    value = new.pop()
    if not width.held and (new or value.denominator > 1 or value % width.multiple):
        width.held = True
        return False
    known[id(width)] = int(value)
    width.settle(int(value))
    return True
