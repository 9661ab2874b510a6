"""Puts the integer file of a network without its recurrent layers, and these layers, together into one file."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgecompress.converters.cut import Cut
from edgecompress.converters.graph_writer import GraphWriter, TreeWriter, Value
from edgecompress.converters.integer_cells import IntegerLayer
from edgecompress.converters.masks import find_mask
from edgecompress.errors import InternalError
from edgecompress.flatbuffer import Signature, read_tree, text, with_metadata, write_tree
from edgecompress.recurrent.scales import Scale
from edgecompress.schemes import IoType

SIGNATURE_KEY = "serving_default"
_NAMES = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
_BYTE = 8
_RUNTIME_KEY = "min_runtime_version"
_OLDEST_RUNTIME = b"2.14.0"  # the oldest that was tried, with files of 8 bits
_SAME = 1e-4  # relative: scales that differ by less were meant to be the same
# Writes a layer: where to, what, its sequence, the states that it begins with, and its mask; returns its output and its
# last states.
Write = Callable[[GraphWriter, IntegerLayer, Value, Sequence[Value], Value | None], list[Value]]


@dataclass(frozen=True)
class Border:
    """What the file takes and gives.

    Attributes:
        inputs: The type of its inputs, as far as they are quantized.
        outputs: Of its outputs.
    """

    inputs: IoType
    outputs: IoType


@dataclass(frozen=True)
class Joined:
    """A file of one step has the states as further inputs and outputs, in pairs.

    Attributes:
        content: The file.
        states: (input, output) names; empty if the file is that of whole sequences.
    """

    content: bytes
    states: tuple[tuple[str, str], ...] = ()


def join(
    parts: Cut, outer: bytes | None, plans: Sequence[IntegerLayer], write: Write, border: Border, *,
    one_step: bool = False,
) -> Joined:  # fmt: skip
    """Writes the file.

    Args:
        parts: The network.
        outer: The quantized file of `parts.outer`, whose inputs and outputs are integers.
        plans: One for each of its recurrent layers.
        write: Writes a layer.
        border: What the file takes and gives.
        one_step: The states become inputs and outputs of the file.
    """
    return _Joining(parts, outer, border).run(plans, write, one_step=one_step)


class _Joining:
    def __init__(self, parts: Cut, outer: bytes | None, border: Border) -> None:
        self._parts = parts
        self._border = border
        tree = _empty_tree() if outer is None else read_tree(outer)
        self._file = TreeWriter(tree)
        self._graph = GraphWriter(self._file, 0) if outer is not None else self._file.new_graph("main")
        taken, given = ({}, {}) if outer is None else (
            {text(each.name): self._value(each.tensorIndex) for each in maps}
            for maps in (tree.signatureDefs[0].inputs, tree.signatureDefs[0].outputs)
        )  # fmt: skip
        self._placeholders: dict[str, Value] = taken
        self._given: dict[str, Value] = given
        self._sources: dict[str, Value] = {}
        self._unrounded: dict[int, Value] = {}

    def run(self, plans: Sequence[IntegerLayer], write: Write, *, one_step: bool) -> Joined:
        """Writes everything."""
        graph = self._graph
        inputs = [self._add_input(spec.name, spec.shape, spec.dtype, plans) for spec in self._parts.inputs]
        states: list[tuple[Value, Value]] = []
        for site, plan in zip(self._parts.sites, plans, strict=True):
            x, *begin = (self._sink(name) for name in site.inputs)
            x = graph.requantize(
                f"{plan.name}/x", x, f"int{plan.bits}", plan.scales["x"] if x.scale is None else x.scale
            )
            if one_step:
                begin = [self._state_input(plan, name) for name in plan.layer.states]
            begin = [self._fit(plan, state, name) for state, name in zip(begin, plan.layer.states, strict=False)]
            output, *last = write(graph, plan, x, begin, None if site.mask is None else self._sink(site.mask))
            states += zip(begin, last, strict=True) if one_step else ()
            for name, value in zip(site.outputs, (output, *last), strict=False):
                self._replace(name, value)
        for mask in self._parts.masks:
            self._source(mask.output)
        outputs = [self._add_output(name) for name in self._parts.outputs]
        graph.graph.inputs = [value.index for value in (*inputs, *(state for state, _ in states))]
        graph.give_outputs([*outputs, *(state for _, state in states)])
        self._sort()
        return self._finish(plans, one_step=one_step)

    def _finish(self, plans: Sequence[IntegerLayer], *, one_step: bool) -> Joined:
        pairs = tuple(
            state_ports(plan.name, state)
            for plan in (plans if one_step else ()) for state in plan.layer.states
        )  # fmt: skip
        self._file.tree.signatureDefs = []
        signature = Signature(
            SIGNATURE_KEY,
            [*(spec.name for spec in self._parts.inputs), *(name for name, _ in pairs)],
            [*self._parts.outputs, *(name for _, name in pairs)],
        )
        # What the converter says of the runtime that is needed holds for its own operators.
        tree = self._file.tree
        tree.metadata = [each for each in tree.metadata or [] if text(each.name) != _RUNTIME_KEY]
        known = {_RUNTIME_KEY: _OLDEST_RUNTIME} if all(plan.bits == _BYTE for plan in plans) else {}
        return Joined(with_metadata(write_tree(tree), signature=signature, metadata=known), pairs)

    def _add_input(self, name: str, shape: Sequence[Any], dtype: str, plans: Sequence[IntegerLayer]) -> Value:
        """Adds an input of the network, in the type that the file is to take."""
        inner = self._placeholders.get(name)
        if inner is None:
            scale = next(self._wanted_scales(name, plans), None) if dtype.startswith("float") else None
            inner = self._graph.tensor(name, shape, dtype if scale is None else scale.dtype, scale)
        self._sources[name] = inner
        if inner.scale is None or self._border.inputs.value == inner.dtype:
            return inner
        outer = self._graph.tensor(f"{name}/given", shape, *_outside(self._border.inputs, inner.scale))
        self._graph.convert(outer, inner)
        if outer.scale is None:
            self._unrounded[inner.index] = outer
        return outer

    def _wanted_scales(self, name: str, plans: Sequence[IntegerLayer]) -> Iterator[Scale]:
        """Yields the scales that layers want of an input of the network that they take as it is."""
        for site, plan in zip(self._parts.sites, plans, strict=True):
            wanted = (plan.scales["x"], *(plan.state_scale(state) for state in plan.layer.states))
            yield from (
                scale for sink, scale in zip(site.inputs, wanted, strict=False) if self._parts.links.get(sink) == name
            )

    def _add_output(self, name: str) -> Value:
        inner = self._sink(name)
        if inner.scale is None or self._border.outputs.value == inner.dtype:
            return inner
        outer = self._graph.tensor(f"{name}/result", inner.shape, *_outside(self._border.outputs, inner.scale))
        self._graph.convert(inner, outer)
        return outer

    def _sink(self, name: str) -> Value:
        """Returns the tensor that an output, or what a layer takes, is the same as."""
        link = self._parts.links.get(name)
        return self._given[name] if link is None else self._source(link)

    def _source(self, name: str) -> Value:
        """Returns what a layer gives; masks are written when the first asks for them."""
        if name not in self._sources:
            mask = next(mask for mask in self._parts.masks if mask.output == name)
            x = self._sink(mask.input)
            # As it is given to the file: rounded, numbers near the value of the mask could not be told from it.
            x = self._unrounded.get(x.index, x)
            self._replace(name, find_mask(self._graph, name, x, mask.value))
        return self._sources[name]

    def _state_input(self, plan: IntegerLayer, name: str) -> Value:
        scale = plan.state_scale(name)
        return self._graph.tensor(state_ports(plan.name, name)[0], (1, plan.layer.units), scale.dtype, scale)

    def _fit(self, plan: IntegerLayer, state: Value, name: str) -> Value:
        scale = plan.state_scale(name)
        return self._graph.requantize(f"{plan.name}/{name}/begin", state, scale.dtype, scale)

    def _replace(self, name: str, value: Value) -> None:
        """Gives what a layer gives to those who wait for it."""
        self._sources[name] = value
        placeholder = self._placeholders.get(name)
        if placeholder is None:
            return
        if value.dtype == placeholder.dtype and _alike(value.scale, placeholder.scale):
            for operator in self._graph.graph.operators:
                operator.inputs = [value.index if i == placeholder.index else i for i in operator.inputs]
            for sink, given in self._given.items():
                if given.index == placeholder.index:
                    self._given[sink] = value
        else:
            self._graph.convert(value, placeholder)

    def _value(self, index: int) -> Value:
        tensor = self._file.tree.subgraphs[0].tensors[index]
        dtype, quantization = _NAMES[tensor.type], tensor.quantization
        scale = None
        if quantization is not None and quantization.scale is not None and len(quantization.scale) == 1:
            bits = 16 if dtype == "int16" else 8
            scale = Scale(float(np.float32(quantization.scale[0])), int(quantization.zeroPoint[0]), bits)
        return Value(index, tuple(int(size) for size in tensor.shape), dtype, scale)

    def _sort(self) -> None:
        """Brings the operators into an order in which each comes after those whose results it takes."""
        graph = self._graph.graph
        producers = {int(index): place for place, each in enumerate(graph.operators) for index in each.outputs}
        before = [{producers[int(i)] for i in each.inputs if int(i) in producers} for each in graph.operators]
        after: dict[int, list[int]] = {}
        for place, needed in enumerate(before):
            for each in needed:
                after.setdefault(each, []).append(place)
        ready = [place for place, needed in enumerate(before) if not needed]
        order = []
        while ready:
            place = heapq.heappop(ready)
            order.append(place)
            for each in after.get(place, ()):
                before[each].discard(place)
                if not before[each]:
                    heapq.heappush(ready, each)
        if len(order) < len(before):
            raise InternalError("the recurrent layers of this network depend on each other in a circle")
        graph.operators = [graph.operators[place] for place in order]


def _empty_tree() -> Any:
    tree = schema.ModelT()
    tree.version, tree.operatorCodes, tree.subgraphs, tree.buffers = 3, [], [], [schema.BufferT()]
    return tree


def _outside(kind: IoType, scale: Scale) -> tuple[str, Scale | None]:
    """Returns the type and the scale at the border of a tensor with this scale inside."""
    if kind is IoType.FLOAT32:
        return "float32", None
    if kind is IoType.UINT8 and scale.bits == 8:  # noqa: PLR2004
        return "uint8", Scale(scale.step, scale.zero_point + 128)
    return scale.dtype, scale


def _alike(a: Scale | None, b: Scale | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.zero_point == b.zero_point and abs(a.step - b.step) <= _SAME * b.step


def plan_names(parts: Cut) -> list[str]:
    """Returns a name for each recurrent layer: its own, numbered where another layer or a port has it."""
    ports = {spec.name for spec in parts.inputs} | set(parts.outputs)
    names: list[str] = []
    for site in parts.sites:
        own = site.layer.name
        tried = itertools.chain([own], (f"{own}_{number}" for number in itertools.count(2)))
        others = {*names, *(each.layer.name for each in parts.sites if each.layer.name != own)}
        names.append(next(name for name in tried if name not in others and not _taken(name, site.layer.states, ports)))
    return names


def _taken(name: str, states: Sequence[str], ports: Iterable[str]) -> bool:
    return any(port in ports for state in states for port in state_ports(name, state))


def state_ports(name: str, state: str) -> tuple[str, str]:
    """Returns the names of a state among the inputs and the outputs of a file of one step."""
    return f"{name}_{state}", f"{name}_next_{state}"
