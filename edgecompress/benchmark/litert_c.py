"""The part of LiteRT's C interface that profiles operators, which its Python interface lacks; reached with ctypes.

The signatures and structures are those of the wheel `ai-edge-litert` 2.3. A wrong guess about another version can end
the process, so `per_op.py` uses this module in a child process only.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterator
from ctypes import byref, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import UnavailableError

_CPU = 1  # a bit of LiteRtHwAccelerators
_LOCK_FOR_WRITING = 1
_FLOAT32, _UINT8, _INT8 = 1, 3, 9  # LiteRtElementType
_LIBRARY = "libLiteRt.dylib" if sys.platform == "darwin" else "libLiteRt.so"


class _Layout(ctypes.Structure):
    _fields_ = [("rank", c_uint32), ("dimensions", c_int32 * 8), ("strides", c_uint32 * 8)]


class _TensorType(ctypes.Structure):
    _fields_ = [("element_type", c_int32), ("layout", _Layout)]


class _RawEvent(ctypes.Structure):
    _fields_ = [
        ("tag", c_void_p),
        ("kind", c_int),
        ("start_us", c_uint64),
        ("elapsed_us", c_uint64),
        ("memory_before", c_size_t * 3),
        ("memory_after", c_size_t * 3),
        ("node", c_uint64),
        ("subgraph", c_uint64),
        ("source", c_int),
    ]


@dataclass(frozen=True)
class Event:
    """One entry of the profiler's log.

    Attributes:
        name: Kernel, operator, or step of the runtime.
        kind: 1 a step of the runtime, 2 an operator's built-in kernel, 8 a delegate's kernel.
        elapsed_us: Its time, in whole microseconds.
        subgraph: The subgraph it belongs to, if it is a kernel or the runtime's step "Invoke".
    """

    name: str
    kind: int
    elapsed_us: int
    subgraph: int


class Profiler:
    """A file, compiled for the CPU with the profiler on. Nothing is freed: its process ends with it.

    Raises:
        UnavailableError: LiteRT is missing, is another version than this module understands, or refuses the file.
    """

    def __init__(self, model: Path, *, threads: int) -> None:
        self._library = _load()
        self._environment, self._model = c_void_p(), c_void_p()
        self._call("CreateEnvironment", 0, None, byref(self._environment))
        self._call("CreateModelFromFile", self._environment, str(model).encode(), byref(self._model))
        self._compiled = c_void_p()
        self._call("CreateCompiledModel", self._environment, self._model, self._options(threads), byref(self._compiled))
        self._signature = c_void_p()
        self._call("GetModelSignature", self._model, c_size_t(0), byref(self._signature))
        self._inputs, self._outputs = self._buffers("Input"), self._buffers("Output")
        self._profiler = c_void_p()
        self._call("CompiledModelGetProfiler", self._compiled, byref(self._profiler))

    def run(self, times: int) -> None:
        """Runs the file on the random values that its inputs were filled with."""
        inputs, outputs = ((c_void_p * len(side))(*side) for side in (self._inputs, self._outputs))
        for _ in range(times):
            count_in, count_out = c_size_t(len(inputs)), c_size_t(len(outputs))
            self._call("RunCompiledModel", self._compiled, c_size_t(0), count_in, inputs, count_out, outputs)

    def record(self, runs: int) -> list[Event]:
        """Runs the file with the profiler on and returns its log."""
        self._call("StartProfiler", self._profiler)
        self.run(runs)
        self._call("StopProfiler", self._profiler)
        count = c_int()
        self._call("GetNumProfilerEvents", self._profiler, byref(count))
        raw = (_RawEvent * count.value)()
        self._call("GetProfilerEvents", self._profiler, count, raw)
        return list(_checked(raw))

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._library, f"LiteRt{name}", None)
        if function is None:
            raise UnavailableError(f"this version of LiteRT has no LiteRt{name}")
        status = function(*arguments)
        if status != 0:
            raise UnavailableError(f"LiteRt{name} failed with status {status}")

    def _options(self, threads: int) -> c_void_p:
        options = c_void_p()
        self._call("CreateOptions", byref(options))
        self._call("SetOptionsHardwareAccelerators", options, _CPU)
        for identifier, text in (
            ("runtime_options_string", "enable_profiling = true\n"),
            ("xnnpack", f"num_threads = {threads}\n"),
        ):
            libc = ctypes.CDLL(None)
            libc.strdup.restype = c_void_p
            # LiteRT frees the text with the function that comes with it.
            owned, free, opaque = c_void_p(libc.strdup(text.encode())), ctypes.cast(libc.free, c_void_p), c_void_p()
            self._call("CreateOpaqueOptions", c_char_p(identifier.encode()), owned, free, byref(opaque))
            self._call("AddOpaqueOptions", options, opaque)
        return options

    def _buffers(self, side: str) -> list[c_void_p]:
        count = c_size_t()
        self._call(f"GetNumSignature{side}s", self._signature, byref(count))
        shapes = (_Layout * count.value)()
        first = c_size_t(0)
        if side == "Output":
            unchanged = ctypes.c_bool(False)
            self._call("GetCompiledModelOutputTensorLayouts", self._compiled, first, count, shapes, unchanged)
        else:
            for i, shape in enumerate(shapes):
                self._call("GetCompiledModelInputTensorLayout", self._compiled, first, c_size_t(i), byref(shape))
        return [self._buffer(side, c_size_t(i), shapes[i]) for i in range(count.value)]

    def _buffer(self, side: str, index: c_size_t, shape: _Layout) -> c_void_p:
        tensor, kind, needs, buffer = c_void_p(), _TensorType(), c_void_p(), c_void_p()
        self._call(f"GetSignature{side}TensorByIndex", self._signature, index, byref(tensor))
        self._call("GetRankedTensorType", tensor, byref(kind))
        kind.layout = shape  # the file's own may have unknown dimensions
        self._call(f"GetCompiledModel{side}BufferRequirements", self._compiled, c_size_t(0), index, byref(needs))
        self._call("CreateManagedTensorBufferFromRequirements", self._environment, byref(kind), needs, byref(buffer))
        if side == "Input":
            self._fill(buffer, kind.element_type)
        return buffer

    def _fill(self, buffer: c_void_p, element_type: int) -> None:
        size, address = c_size_t(), c_void_p()
        self._call("GetTensorBufferPackedSize", buffer, byref(size))
        rng = np.random.default_rng(0)
        values: dict[int, npt.NDArray[Any]] = {
            _FLOAT32: rng.uniform(-1, 1, size.value // 4).astype(np.float32),
            _INT8: rng.integers(-128, 128, size.value).astype(np.int8),
            _UINT8: rng.integers(0, 256, size.value).astype(np.uint8),
        }
        data = values.get(element_type, np.zeros(size.value, np.uint8)).tobytes()
        self._call("LockTensorBuffer", buffer, byref(address), _LOCK_FOR_WRITING)
        ctypes.memmove(address, data, size.value)
        self._call("UnlockTensorBuffer", buffer)


def _load() -> ctypes.CDLL:
    package = importlib.util.find_spec("ai_edge_litert")
    if package is None or package.origin is None:
        raise UnavailableError("ai-edge-litert is not installed", fix="pip install ai-edge-litert")
    path = Path(package.origin).with_name(_LIBRARY)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise UnavailableError(f"LiteRT's C library cannot be loaded ({error})") from None


def _checked(raw: ctypes.Array[_RawEvent]) -> Iterator[Event]:
    """Yields the events, unless they show that the structure is not that of this version."""
    for event in raw:
        # Kinds are single bits. What is no event must not be followed as a pointer.
        if not event.tag or event.kind < 1 or event.kind.bit_count() != 1 or event.source not in (0, 1, 2):
            raise UnavailableError("the profiler's events have another form than in LiteRT 2.3")
        name = ctypes.string_at(event.tag).decode("utf-8", "replace")
        yield Event(name, event.kind, event.elapsed_us, event.subgraph)
