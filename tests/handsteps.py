"""Files of one time step, built by hand, whose arithmetic is exact: NumPy can say what they answer to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgecompress.flatbuffer import Signature, with_metadata
from edgecompress.streaming import Stream, with_stream
from tests.handmade import Model, tensor

SCALE, ZERO, FEATURES = 0.125, 3, 4
SUM = Stream(steps=10, inputs=("x",), outputs=("sums",), states=({"input": "sum", "output": "next_sum"},))


def clamped_sum(path: Path, *, batch: int = 1, next_scale: float = SCALE, stream: Stream | None = SUM) -> Path:
    """Adds up int8 steps (samples, steps, 4), and stays within the limits of int8.

    "sums" has what is reached at each step, "doubled" twice what is reached at the last.
    """
    model = Model()
    one, many = (batch, FEATURES), (batch, 1, FEATURES)
    tensors = [
        tensor("x", many, "INT8", scale=SCALE), tensor("sum", one, "INT8", scale=SCALE),
        tensor("row", one, "INT8", scale=SCALE), tensor("next", one, "INT8", scale=next_scale),
        tensor("step", many, "INT8", scale=SCALE), tensor("twice", one, "INT8", scale=2 * SCALE),
        tensor("one", (2,), "INT32", model.constant(one, "int32")),
        tensor("many", (3,), "INT32", model.constant(many, "int32")),
    ]  # fmt: skip
    ops = [
        _reshape(model, 0, 6, 2), _add(model, 1, 2, 3), _reshape(model, 3, 7, 4), _add(model, 3, 3, 5),
    ]  # fmt: skip
    model.graph(tensors, [0, 1], [4, 5, 3], ops)
    return _write(path, model, ["x", "sum"], ["sums", "doubled", "next_sum"], stream)


def sum_steps(x: np.ndarray) -> np.ndarray:
    """What `clamped_sum` reaches at each step of int8 (samples, steps, 4), in its integers."""
    sums = np.empty_like(x)
    now = np.full(x[:, 0].shape, ZERO)
    for i in range(x.shape[1]):
        now = np.clip(now + x[:, i].astype(int) - ZERO, -128, 127)
        sums[:, i] = now
    return sums


def shifted_sum(path: Path) -> Path:
    """Adds up float steps "a" and "b" (samples, steps, 2) and, at each step, the whole of "offset" (samples, 2)."""
    model = Model()
    one, many = (1, 2), (1, 1, 2)
    tensors = [
        tensor("a", many), tensor("b", many), tensor("offset", one), tensor("sum", one),
        tensor("a+b", many), tensor("row", one), tensor("shifted", one), tensor("next", one), tensor("copy", one),
        tensor("one", (2,), "INT32", model.constant(one, "int32")),
    ]  # fmt: skip
    ops = [
        _add(model, 0, 1, 4), _reshape(model, 4, 9, 5), _add(model, 5, 2, 6), _add(model, 3, 6, 7),
        _reshape(model, 7, 9, 8),
    ]  # fmt: skip
    model.graph(tensors, [0, 1, 2, 3], [8, 7], ops)
    states = ({"input": "sum", "output": "next"},)
    stream = Stream(inputs=("a", "b"), states=states)
    return _write(path, model, ["a", "b", "offset", "sum"], ["total", "next"], stream)


def counted_tokens(path: Path) -> Path:
    """Adds up rows of a table, [[0, 1], [10, 11], [20, 21]], by their numbers (samples, steps)."""
    model = Model()
    table = model.constant([[0, 1], [10, 11], [20, 21]], "float32")
    tensors = [
        tensor("ids", (1, 1), "INT32"), tensor("sum", (1, 1, 2)), tensor("table", (3, 2), buffer=table),
        tensor("row", (1, 1, 2)), tensor("next", (1, 1, 2)), tensor("copy", (1, 1, 2)),
        tensor("shape", (3,), "INT32", model.constant((1, 1, 2), "int32")),
    ]  # fmt: skip
    gather = model.op("GATHER", [2, 0], [3], options_type="GatherOptions", options=schema.GatherOptionsT())
    model.graph(tensors, [0, 1], [5, 4], [gather, _add(model, 1, 3, 4), _reshape(model, 4, 6, 5)])
    stream = Stream(inputs=("ids",), outputs=("sums",), states=({"input": "sum", "output": "next"},))
    return _write(path, model, ["ids", "sum"], ["sums", "next"], stream)


def delay_line(path: Path) -> Path:
    """Gives the float steps (samples, steps, 2) two steps later; the input of one state is the output of the other."""
    model = Model()
    tensors = [tensor(name, (1, 1, 2)) for name in ("x", "newer", "older", "y", "next")]
    tensors.append(tensor("shape", (3,), "INT32", model.constant((1, 1, 2), "int32")))
    model.graph(tensors, [0, 1, 2], [3, 4, 1], [_reshape(model, 2, 5, 3), _reshape(model, 0, 5, 4)])
    states = ({"input": "newer", "output": "x_before"}, {"input": "older", "output": "newer_before"})
    stream = Stream(inputs=("x",), outputs=("y",), states=states)
    return _write(path, model, ["x", "newer", "older"], ["y", "x_before", "newer_before"], stream)


def _add(model: Model, a: int, b: int, total: int) -> Any:
    return model.op("ADD", [a, b], [total], options_type="AddOptions", options=schema.AddOptionsT())


def _reshape(model: Model, values: int, shape: int, result: int) -> Any:
    return model.op("RESHAPE", [values, shape], [result])


def _write(path: Path, model: Model, inputs: Sequence[str], outputs: Sequence[str], stream: Stream | None) -> Path:
    content = with_metadata(model.pack(), metadata={}, signature=Signature("serving_default", inputs, outputs))
    path.write_bytes(content if stream is None else with_stream(content, stream))
    return path
