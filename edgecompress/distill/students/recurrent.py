"""How the widths of tensors go through recurrent layers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from edgecompress.distill.students.calls import Call, agree, keep_all
from edgecompress.distill.students.widths import Axes, Width, hold, scaled


def _simple(call: Call) -> list[Axes]:
    """Of a GRU, an LSTM, a SimpleRNN, and a ConvLSTM: states and outputs have the same width."""
    layer = call.operation
    width = _width_of(call, layer)
    if width is None:
        return keep_all(call)
    axis = _axis(layer)
    for state in call.inputs[1:]:
        call.widths.join(state.widths[axis if len(state.shape) >= -axis else -1], width)
    hold(call.x.widths[:axis] if axis == -1 else ())
    return [call.output({axis: width}, number) for number in range(len(call.shapes))]


def _axis(layer: Any) -> int:
    first = getattr(layer.cell, "data_format", None) == "channels_first"
    return -1 - int(layer.cell.rank) if first else -1


def _width_of(call: Call, layer: Any) -> Width | None:
    """Returns the width of what a recurrent layer returns; None if it is not known."""
    cell = layer.cell
    if not getattr(cell, "project_inputs", True):
        return None  # it has as many units as its inputs say
    key = "filters" if hasattr(cell, "filters") else "units"
    if hasattr(cell, key) and hasattr(layer, key) and key in layer.get_config():
        width = call.widths.own(layer, key, getattr(cell, key))
        _lower_ranks(call, layer, width)
        return width
    cells = list(getattr(cell, "cells", [cell]))
    if not all(type(each).__module__.startswith("keras.src.layers.") and hasattr(each, "units") for each in cells):
        return None
    widths = [call.widths.own(each, "units", each.units) for each in cells]
    if len(cells) > 1 and (len(call.shapes) > 1 or len(call.inputs) > 1):
        hold(widths)  # its states have many sizes
    return widths[-1]


def _lower_ranks(call: Call, layer: Any, width: Width) -> None:
    """Has the ranks of a LowRankGRU or LowRankLSTM shrink with it."""
    cell, x = layer.cell, call.x
    for key in ("input_rank", "recurrent_rank"):
        rank = getattr(cell, key, None)
        if rank is None:
            continue

        def new(rank: int = rank, *, is_input: bool = key == "input_rank") -> int:
            columns = width.new * (cell.gate_count if cell.gates == "joint" else 1)
            rows = x.new_shape[-1] if is_input else width.new
            return min(scaled(rank, call.share), rows or columns, columns)

        call.widths.set(layer, key, new)


def _bidirectional(call: Call) -> list[Axes]:
    layer = call.operation
    both = [_width_of(call, each) for each in (layer.forward_layer, layer.backward_layer)]
    forward, backward = both
    if forward is None or backward is None or len(call.inputs) > 1 or _axis(layer.forward_layer) != -1:
        hold(both)
        return keep_all(call)
    agree(call.widths, both)
    hold(call.x.widths[:-1])
    merged = call.widths.times(Fraction(2), forward) if layer.merge_mode == "concat" else forward
    outputs = [call.output({-1: forward}, number) for number in range(len(call.shapes))]
    return [call.output({-1: merged}), *outputs[1:]]


RULES = {"RNN": _simple, "Bidirectional": _bidirectional}
