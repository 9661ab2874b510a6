"""Times .tflite files, and predicts with them. This one file can be copied to a device and run there.

It needs Python 3.9 or newer, NumPy, and one runtime: ai-edge-litert, tflite-runtime or tensorflow, looked for in that
order.

    python runner.py benchmark float.tflite int8.tflite --threads 2
    python runner.py predict int8.tflite --inputs samples.npz --outputs predictions.npz
    python runner.py predict step.tflite --inputs samples.npz --outputs predictions.npz --stream '{"inputs": ["audio"],
        "outputs": [], "states": [{"input": "gru_state_0", "output": "gru_next_state_0"}]}'

Exactly one JSON document goes to stdout; whatever libraries print goes to stderr. Exit code 0, or 2 with a document
that has the key "error". Several models are timed in turns, run by run, so that all of them meet the same noise.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import platform
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

# In the order in which they are looked for: name -> (distribution, the module that holds the interpreter).
RUNTIMES = {
    "litert": ("ai-edge-litert", "ai_edge_litert.interpreter"),
    "tflite-runtime": ("tflite-runtime", "tflite_runtime.interpreter"),
    "tensorflow": ("tensorflow", "tensorflow"),
}
NO_DELEGATE = "none (built-in kernels)"
Array = np.ndarray  # of any type and shape: this file has to run where numpy.typing does not exist


class RunnerError(Exception):
    """A fault to be reported as JSON; `kind` is data, execution, model, unavailable or usage."""

    def __init__(self, error: str, kind: str = "execution", **details: object) -> None:
        super().__init__(error)
        self.document = {"error": error, "kind": kind, **{key: str(value) for key, value in details.items()}}


class Runtime(NamedTuple):
    """An importable runtime."""

    name: str
    version: str
    interpreter: Any
    resolver: Any


class Port(NamedTuple):
    """An input or output of a model; scale is 0 where it is not quantized."""

    tensor: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: float
    zero_point: int


def find_runtime(choice: str) -> Runtime:
    """Returns the chosen runtime, or the first that can be imported if the choice is 'auto'."""
    reasons = []
    for name in RUNTIMES if choice == "auto" else [choice]:
        distribution, module_name = RUNTIMES[name]
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            reasons.append(f"{name}: {error}")
            continue
        lite = module.lite if name == "tensorflow" else module
        resolver = lite.experimental.OpResolverType if name == "tensorflow" else lite.OpResolverType
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:  # the same module from another distribution, e.g. tensorflow-cpu
            version = getattr(module, "__version__", "unknown")
        return Runtime(name, version, lite.Interpreter, resolver)
    distribution = RUNTIMES["litert" if choice == "auto" else choice][0]
    raise RunnerError(
        f"no TFLite runtime can be imported ({'; '.join(reasons)})", "unavailable", fix=f"pip install {distribution}"
    )


@contextlib.contextmanager
def runtime_errors(path: str) -> Iterator[None]:
    """Makes each error about a file a RunnerError that names the file."""
    try:
        yield
    except RunnerError as error:
        error.document["where"] = ": ".join(filter(None, (path, error.document.get("where"))))
        raise
    except (ValueError, RuntimeError, TypeError, MemoryError) as error:
        raise RunnerError(f"the runtime refused it: {error or type(error).__name__}", where=path) from error


def require_file(path: str) -> None:
    if not os.path.isfile(path):  # noqa: PTH113 (a plain string, as the runtimes take it)
        raise RunnerError("no such file", "model", fix="check the path")


def open_interpreter(path: str, runtime: Runtime, threads: int, *, xnnpack: bool = True) -> Any:
    """Returns an interpreter that is ready to run."""
    require_file(path)
    types = runtime.resolver
    interpreter = runtime.interpreter(
        model_path=path,
        num_threads=threads,
        experimental_op_resolver_type=types.AUTO if xnnpack else types.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    return interpreter


def random_values(rng: np.random.Generator, shape: Sequence[int], dtype: Any, *, quantized: bool) -> Array:
    """Returns values that any model takes.

    Floats lie in [-1, 1) and quantized integers in their whole range. Other integers are 0 or 1: they may be indices
    into an embedding of unknown size.
    """
    dtype = np.dtype(dtype)
    if dtype.kind in "fc":
        return rng.uniform(-1, 1, shape).astype(dtype)
    if dtype.kind in "iu" and quantized:
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    raise RunnerError(f"an input of type {dtype} cannot be filled with random values", "data")


class ClassicModel:
    """A file opened with `Interpreter`."""

    def __init__(self, path: str, runtime: Runtime, options: argparse.Namespace) -> None:
        self._interpreter = open_interpreter(path, runtime, options.threads, xnnpack=options.xnnpack)
        self.invoke: Callable[[], None] = self._interpreter.invoke

    def fill(self, rng: np.random.Generator) -> None:
        for detail in self._interpreter.get_input_details():
            port = port_of(detail)
            values = random_values(rng, port.shape, port.dtype, quantized=port.scale != 0)
            self._interpreter.set_tensor(port.tensor, values)

    def placement(self) -> dict[str, object]:
        """Says what really executed, as the interpreter lists it; the main subgraph only."""
        partitions, total = delegated_partitions(self._interpreter._get_ops_details())  # noqa: SLF001 (no public way)
        # No delegate was passed in, so only the runtime's default ones can be there: XNNPACK, and TensorFlow's Flex.
        names = {"Flex" if "Flex" in {name[:4] for name in partition} else "XNNPACK" for partition in partitions}
        return {
            "delegate": " + ".join(sorted(names)) or NO_DELEGATE,
            "delegated_ops": sum(len(partition) for partition in partitions),
            "total_ops": total,
            "partitions": len(partitions),
        }


class CompiledModel:
    """A file opened with LiteRT's `CompiledModel`, on its CPU accelerator."""

    def __init__(self, path: str, runtime: Runtime, options: argparse.Namespace) -> None:
        if runtime.name != "litert":
            raise RunnerError(f"{runtime.name} has no CompiledModel", "unavailable", fix="pip install ai-edge-litert")
        require_file(path)
        module = importlib.import_module("ai_edge_litert.compiled_model")
        self._xnnpack = options.xnnpack
        kernels = module.CpuKernelMode.DELEGATE if options.xnnpack else module.CpuKernelMode.BUILTIN
        cpu_options = module.CpuOptions(num_threads=options.threads, kernel_mode=kernels)
        self._model = module.CompiledModel.from_file(path, options=module.Options(cpu_options=cpu_options))
        self._inputs = self._model.create_input_buffers(0)
        self._outputs = self._model.create_output_buffers(0)

    def invoke(self) -> None:
        self._model.run_by_index(0, self._inputs, self._outputs)

    def fill(self, rng: np.random.Generator) -> None:
        for buffer in self._inputs:
            detail = buffer.get_tensor_details()
            values = random_values(
                rng, detail["shape"], detail["dtype"], quantized=detail["dtype"] in ("int8", "uint8")
            )
            buffer.write(np.atleast_1d(values).view(np.int8))  # bytes: `write` itself knows no int16 and no int64

    def placement(self) -> dict[str, object]:
        """CompiledModel does not tell which ops its delegate took."""
        delegate = "XNNPACK requested (CompiledModel does not report what ran)" if self._xnnpack else NO_DELEGATE
        return {"delegate": delegate, "delegated_ops": None, "total_ops": None, "partitions": None}


def delegated_partitions(ops: Sequence[dict[str, Any]]) -> tuple[list[list[str]], int]:
    """Finds what each delegate took over.

    A delegate's node is appended to the list and the ops that it replaced stay in it, so they are found by walking
    from its outputs back to its inputs.

    Args:
        ops: What `_get_ops_details()` returns.

    Returns:
        The names of the replaced ops, one list for each delegate node, and the number of ops of the model.
    """
    own = [op for op in ops if op["op_name"] != "DELEGATE"]
    producers = {int(tensor): op for op in own for tensor in op["outputs"] if tensor >= 0}
    partitions = []
    for delegate in (op for op in ops if op["op_name"] == "DELEGATE"):
        outside = {int(tensor) for tensor in delegate["inputs"]}
        inside: dict[int, str] = {}
        todo = [int(tensor) for tensor in delegate["outputs"]]
        while todo:
            tensor = todo.pop()
            op = producers.get(tensor)
            if op is not None and tensor not in outside and op["index"] not in inside:
                inside[op["index"]] = op["op_name"]
                todo.extend(int(tensor) for tensor in op["inputs"])
        partitions.append(list(inside.values()))
    return partitions, len(own)


def time_in_turns(
    calls: Sequence[Callable[[], object]],
    *,
    runs: int,
    seconds: float,
    deadline_ns: int,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[list[int]]:
    """Calls each of the functions in turn until each has had enough runs and enough time, or time is up.

    Args:
        calls: What is timed; nothing else lies between the two readings of the clock.
        runs: The least number of runs of each.
        seconds: The least time spent in the runs of each.
        deadline_ns: Reading of the clock at which to stop all the same; each runs at least once (if `runs` > 0).
        clock: A clock in nanoseconds.

    Returns:
        The time of each run in nanoseconds, in order, one list for each function.
    """
    times: list[list[int]] = [[] for _ in calls]
    left = [round(seconds * 1e9)] * len(calls)
    turn = list(range(len(calls)))
    while True:
        turn = [i for i in turn if len(times[i]) < runs or left[i] > 0]
        if not turn or (times[0] and clock() >= deadline_ns):
            return times
        for i in turn:
            call = calls[i]
            start = clock()
            call()
            elapsed = clock() - start
            times[i].append(elapsed)
            left[i] -= elapsed


def summarize(first_ns: int, times_ns: Sequence[int]) -> dict[str, float]:
    """Returns the statistics of the timed runs, in ms; `first` is the very first run, normally a warm-up.

    Percentiles interpolate linearly; `std` is that of the population.
    """
    times = np.asarray(times_ns, dtype=np.float64) / 1e6
    median, p90, p95 = np.percentile(times, [50, 90, 95])
    values = {
        "first": first_ns / 1e6,
        "min": times.min(),
        "median": median,
        "mean": times.mean(),
        "p90": p90,
        "p95": p95,
        "max": times.max(),
        "std": times.std(),
    }
    return {name: round(float(value), 6) for name, value in values.items()}


def peak_memory_bytes() -> int | None:
    """Returns the highest resident size of this process so far, or None where /proc does not say.

    Not `ru_maxrss`: a child process starts with that of its parent.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def reset_peak_memory() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        return False
    return True


def describe_host() -> dict[str, str]:
    """Names the machine: the CPU model where the system knows it (on ARM boards, the board)."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    cpu = facts.get("model name") or facts.get("Model") or facts.get("Hardware") or platform.processor() or "unknown"
    return {"cpu": cpu, "machine": platform.machine(), "system": platform.platform()}


def benchmark(options: argparse.Namespace) -> dict[str, object]:
    """Loads the models, times them in turns and returns the report."""
    deadline_ns = time.perf_counter_ns() + round(options.max_seconds * 1e9)
    runtime = find_runtime(options.runtime)
    can_reset = reset_peak_memory()
    before = peak_memory_bytes()
    models, load_ms, first_ns = [], [], []
    for path in options.models:
        with runtime_errors(path):
            start = time.perf_counter_ns()
            model = (CompiledModel if options.api == "compiled" else ClassicModel)(path, runtime, options)
            load_ms.append(round((time.perf_counter_ns() - start) / 1e6, 6))
            model.fill(np.random.default_rng(options.seed))
            first_ns += time_in_turns([model.invoke], runs=1, seconds=0, deadline_ns=deadline_ns)[0]
            models.append(model)
    calls = [model.invoke for model in models]
    gc.collect()
    gc.disable()
    warmups = time_in_turns(calls, runs=options.warmup - 1, seconds=0, deadline_ns=deadline_ns)
    after = peak_memory_bytes()  # before the list of latencies grows
    times = time_in_turns(calls, runs=options.runs, seconds=options.min_seconds, deadline_ns=deadline_ns)
    gc.enable()
    growth = after - before if can_reset and after is not None and before is not None else None
    return {
        "runtime": runtime.name,
        "runtime_version": runtime.version,
        "api": options.api,
        "threads": options.threads,
        "host": describe_host(),
        # Memory belongs to the process, so it says something about a model only if there is no other.
        "peak_memory": {"growth_bytes": growth, "process_bytes": after} if len(models) == 1 else None,
        "models": [
            {
                "model": path,
                "load_ms": load_ms[i],
                **models[i].placement(),
                "warmups": 1 + len(warmups[i]),
                "runs": len(times[i]),
                "latency_ms": summarize(first_ns[i], times[i]),
                "latencies_ms": [nanoseconds / 1e6 for nanoseconds in times[i]],
            }
            for i, path in enumerate(options.models)
        ],
    }


def port_of(detail: dict[str, Any]) -> Port:
    scale, zero_point = detail["quantization"]
    shape = tuple(int(size) for size in detail["shape"])
    return Port(int(detail["index"]), shape, np.dtype(detail["dtype"]), float(scale), int(zero_point))


def is_quantized(port: Port) -> bool:
    return port.scale != 0 and port.dtype in (np.int8, np.uint8, np.int16)


def to_model(name: str, values: Array, port: Port, *, raw: bool) -> Array:
    """Returns samples in the model's own type.

    An array of that type is taken as it is; any other holds numbers of the user's domain, and is quantized if the
    input is. What would change a value without saying so is refused.
    """
    if values.dtype == port.dtype:
        return values
    if values.dtype.kind in "fiub":
        if is_quantized(port) and not raw and not np.isnan(values).any():
            limits = np.iinfo(port.dtype)
            steps = np.round(values.astype(np.float64) / port.scale) + port.zero_point
            return np.clip(steps, limits.min, limits.max).astype(port.dtype)
        with np.errstate(invalid="ignore"):
            cast = values.astype(port.dtype)
        if port.dtype.kind in "fc" or np.array_equal(cast, values):
            return cast
    raise RunnerError(
        "the values do not fit the type of the input",
        "data",
        where=f"input {name!r}",
        expected=port.dtype,
        received=f"{values.dtype} such as {values.reshape(-1)[:3].tolist()}",
    )


def from_model(values: Array, port: Port, *, raw: bool) -> Array:
    """Returns a quantized output as float32, and any other output as it is."""
    if raw or not is_quantized(port):
        return values
    return ((values.astype(np.int64) - port.zero_point) * port.scale).astype(np.float32)


class Predictor:
    """Runs a model on named arrays: by its signature if it has one, otherwise by the names of its tensors."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        signatures = interpreter.get_signature_list()
        self._run_signature = None
        if signatures:
            key = "serving_default" if "serving_default" in signatures else next(iter(signatures))
            self._run_signature = interpreter.get_signature_runner(key)
            inputs, outputs = self._run_signature.get_input_details(), self._run_signature.get_output_details()
        else:
            inputs, outputs = _by_name(interpreter.get_input_details()), _by_name(interpreter.get_output_details())
        self.inputs = {name: port_of(detail) for name, detail in inputs.items()}
        self.outputs = {name: port_of(detail) for name, detail in outputs.items()}

    def __call__(self, feed: dict[str, Array]) -> dict[str, Array]:
        self._interpreter.reset_all_variables()  # or an LSTM would go on from where the last sample left it
        if self._run_signature is not None:
            result: dict[str, Array] = self._run_signature(**feed)
            return result
        for name, values in feed.items():
            self._interpreter.set_tensor(self.inputs[name].tensor, values)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(port.tensor) for name, port in self.outputs.items()}


def _by_name(details: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    named = {detail["name"]: detail for detail in details}
    if len(named) != len(details):
        raise RunnerError("two inputs or outputs have the same name, and there is no signature to tell them apart")
    return named


class StepLoop:
    """Runs a model of one time step over sequences; its states go from output to input as they are.

    Like a `Predictor`, it has ports and is called with named arrays, those of the whole network: no states among them,
    and -1 for the number of steps, axis 1 of sequences.

    Args:
        interpreter: Ready to run.
        stream: "inputs", the names of those that are cut into steps; "outputs", of those whose steps are joined; and
            "states", a list of {"input": name, "output": name}.
    """

    def __init__(self, interpreter: Any, stream: Mapping[str, Any]) -> None:
        self._interpreter = interpreter
        step = Predictor(interpreter)
        self.inputs, self.outputs = step.inputs, step.outputs
        self._states = [_take_state(step, state["input"], state["output"]) for state in stream["states"]]
        self._sequences, self._joined = list(stream["inputs"]), list(stream["outputs"])
        for ports, names, kind in ((self.inputs, self._sequences, "input"), (self.outputs, self._joined, "output")):
            for name in names:
                ports[name] = _any_number_of_steps(ports, name, kind)

    def reset(self) -> None:
        """Begins a new sequence."""
        self._interpreter.reset_all_variables()
        for port, _ in self._states:
            self._interpreter.set_tensor(port.tensor, np.full(port.shape, port.zero_point, port.dtype))

    def advance(self, feed: Mapping[str, Array]) -> None:
        """Runs one step: of sequences, the feed has one step, (batch, 1, ...)."""
        for name, values in feed.items():
            self._interpreter.set_tensor(self.inputs[name].tensor, values)
        self._interpreter.invoke()
        # All are read before any is written: one state's output may be another one's input.
        states = {before.tensor: self._interpreter.get_tensor(after.tensor) for before, after in self._states}
        for tensor, values in states.items():
            self._interpreter.set_tensor(tensor, values)

    def read(self, name: str) -> Array:
        """Returns an output of the last step."""
        values: Array = self._interpreter.get_tensor(self.outputs[name].tensor)
        return values

    def __call__(self, feed: dict[str, Array]) -> dict[str, Array]:
        lengths = {name: feed[name].shape[1] for name in self._sequences}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise RunnerError("each sequence needs the same number of steps, at least one", "data", received=lengths)
        count = lengths.popitem()[1]
        # Steps first, so that each is a view of memory in one piece.
        steps = {name: np.ascontiguousarray(feed[name].swapaxes(0, 1))[:, :, None] for name in self._sequences}
        whole = {name: values for name, values in feed.items() if name not in steps}
        joined = {name: self._room(name, count) for name in self._joined}
        self.reset()
        for i in range(count):
            self.advance({**whole, **{name: values[i] for name, values in steps.items()}})
            for name, room in joined.items():
                room[:, i] = self.read(name)[:, 0]
        return {name: joined[name] if name in joined else self.read(name) for name in self.outputs}

    def _room(self, name: str, count: int) -> Array:
        port = self.outputs[name]
        return np.empty((port.shape[0], count, *port.shape[2:]), port.dtype)


def _take_state(step: Predictor, taken: str, given: str) -> tuple[Port, Port]:
    """Takes a state from the ports of a model of one time step."""
    before, after = _port(step.inputs, taken, "input"), _port(step.outputs, given, "output")
    if before[1:] != after[1:]:
        what = f"the state's input {taken!r} and its output {given!r} differ in shape, type, scale or zero point"
        raise RunnerError(what, "model", expected=_describe(before), received=_describe(after))
    del step.inputs[taken], step.outputs[given]
    return before, after


def _describe(port: Port) -> str:
    return f"{port.dtype} {port.shape}, scale {port.scale:g}, zero point {port.zero_point}"


def _port(ports: Mapping[str, Port], name: str, kind: str) -> Port:
    if name not in ports:
        raise RunnerError(f"there is no {kind} {name!r} to run single steps with", "model", expected=sorted(ports))
    return ports[name]


def _any_number_of_steps(ports: Mapping[str, Port], name: str, kind: str) -> Port:
    port = _port(ports, name, kind)
    if port.shape[1:2] != (1,):
        what = f"the {kind} {name!r} has not one time step along axis 1"
        raise RunnerError(what, "model", expected="(batch, 1, ...)", received=port.shape)
    return port._replace(shape=(port.shape[0], -1, *port.shape[2:]))


def check_samples(inputs: dict[str, Port], samples: dict[str, Array]) -> tuple[int, int]:
    """Checks names and shapes, and returns the number of samples and the model's batch size.

    A size of -1 takes any.
    """
    if set(samples) != set(inputs):
        raise RunnerError("the input names differ", "data", expected=sorted(inputs), received=sorted(samples))
    for name, port in inputs.items():
        if not port.shape:
            raise RunnerError("the model takes a single number here, no samples", "data", where=f"input {name!r}")
        shape = samples[name].shape
        if len(shape) != len(port.shape) or any(
            size not in (-1, shape[axis]) for axis, size in enumerate(port.shape) if axis > 0
        ):
            sizes = ("steps" if size < 0 else size for size in port.shape[1:])
            expected = str(("samples", *sizes)).replace("'", "")
            raise RunnerError("the shape differs", "data", where=f"input {name!r}", expected=expected, received=shape)
    counts = {name: len(samples[name]) for name in inputs}
    batches = {name: port.shape[0] for name, port in inputs.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise RunnerError("each input needs the same number of samples, at least one", "data", received=counts)
    if len(set(batches.values())) != 1:
        raise RunnerError("the model's inputs differ in their batch size", "data", received=batches)
    return counts.popitem()[1], batches.popitem()[1]


def predict_samples(model: Predictor | StepLoop, samples: dict[str, Array], *, raw: bool) -> dict[str, Array]:
    """Runs all samples, in chunks of the model's batch size; the last one is filled up with its last sample.

    Args:
        model: The model.
        samples: Arrays of shape (samples, ...), one for each input.
        raw: Whether integers go in and come out as they are.

    Returns:
        Arrays of shape (samples, ...), one for each output.
    """
    count, batch = check_samples(model.inputs, samples)
    chunks: dict[str, list[Array]] = {name: [] for name in model.outputs}
    for start in range(0, count, batch):
        rows = np.minimum(np.arange(start, start + batch), count - 1)
        feed = {name: to_model(name, samples[name][rows], port, raw=raw) for name, port in model.inputs.items()}
        for name, values in model(feed).items():
            if values.shape[:1] != (batch,):
                raise RunnerError(f"output {name!r} has no batch dimension", expected=batch, received=values.shape)
            chunks[name].append(values)
    return {
        name: from_model(np.concatenate(parts)[:count], model.outputs[name], raw=raw) for name, parts in chunks.items()
    }


def load_samples(path: str) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RunnerError(f"cannot be read as .npz: {error}", "data", where=path) from error


def save_arrays(path: str, arrays: Mapping[str, Array]) -> None:
    """Writes an .npz file; `np.savez` would take a tensor called 'file' for its own argument."""
    partial = f"{path}.partial"
    try:
        with zipfile.ZipFile(partial, "w", allowZip64=True) as archive:
            for name, values in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.ascontiguousarray(values), allow_pickle=False)
        os.replace(partial, path)  # noqa: PTH105 (a plain string)
    except OSError as error:
        raise RunnerError(f"cannot be written: {error}", "usage", where=path) from error


def predict(options: argparse.Namespace) -> dict[str, object]:
    """Runs a model on the samples of one file, and writes what comes out to another."""
    runtime = find_runtime(options.runtime)
    samples = load_samples(options.inputs)
    with runtime_errors(options.model):
        interpreter = open_interpreter(options.model, runtime, options.threads)
        model = Predictor(interpreter) if options.stream is None else StepLoop(interpreter, options.stream)
        results = predict_samples(model, samples, raw=options.raw)
    save_arrays(options.outputs, results)
    return {
        "runtime": runtime.name,
        "runtime_version": runtime.version,
        "threads": options.threads,
        "outputs": {name: {"shape": values.shape, "dtype": str(values.dtype)} for name, values in results.items()},
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RunnerError(message, "usage", fix=f"{self.prog} --help")


def _at_least(least: float, kind: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return value

    return parse


def _stream(text: str) -> dict[str, Any]:
    try:
        stream: dict[str, Any] = json.loads(text)
        wanted = all(isinstance(name, str) for key in ("inputs", "outputs") for name in stream[key])
        wanted = wanted and all(
            isinstance(state[key], str) for state in stream["states"] for key in ("input", "output")
        )
    except (ValueError, LookupError, TypeError):
        wanted = False
    if not wanted or not stream["inputs"]:
        raise argparse.ArgumentTypeError(f"not what --help describes: {text}")
    return stream


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="runner.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    timing = commands.add_parser("benchmark", help="time models")
    timing.add_argument("models", nargs="+", help=".tflite files")
    timing.add_argument("--runs", type=_at_least(1, int), default=50, help="least number of timed runs of each model")
    timing.add_argument("--warmup", type=_at_least(1, int), default=5, help="runs of each model before timing")
    timing.add_argument("--min-seconds", type=_at_least(0, float), default=1.0, help="least time in each model's runs")
    timing.add_argument("--max-seconds", type=_at_least(0, float), default=120.0, help="stop after this time")
    timing.add_argument("--api", choices=["interpreter", "compiled"], default="interpreter", help="LiteRT's two APIs")
    timing.add_argument("--no-xnnpack", dest="xnnpack", action="store_false", help="use the built-in kernels")
    timing.add_argument("--seed", type=_at_least(0, int), default=0, help="of the random inputs")
    timing.set_defaults(run=benchmark)
    prediction = commands.add_parser("predict", help="run a model on samples")
    prediction.add_argument("model", help=".tflite file")
    prediction.add_argument("--inputs", required=True, help=".npz file: one array (samples, ...) for each input")
    prediction.add_argument("--outputs", required=True, help=".npz file to write")
    prediction.add_argument(
        "--stream", type=_stream, help="of a model of one time step, which is then run over sequences: JSON with the "
        'names of "inputs" that are cut along axis 1, of "outputs" that are joined, and "states": a list of '
        '{"input": name, "output": name}',
    )  # fmt: skip
    prediction.add_argument("--raw", action="store_true", help="neither quantize inputs nor dequantize outputs")
    prediction.set_defaults(run=predict)
    for command in (timing, prediction):
        command.add_argument("--threads", type=_at_least(1, int), default=1, help="for the CPU kernels")
        command.add_argument("--runtime", choices=["auto", *RUNTIMES], default="auto", help="default: the first found")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    code = 0
    result = os.fdopen(os.dup(1), "w", encoding="utf-8")
    try:
        options = build_parser().parse_args(arguments)
        os.dup2(2, 1)  # native code prints to file descriptor 1
        document = options.run(options)
    except RunnerError as error:
        document, code = error.document, 2
    with result:
        result.write(json.dumps(document) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
