"""Latency on this machine's CPU, measured in a child process that a bad file cannot take down with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgecompress.benchmark.child import CrashError, run_runner
from edgecompress.benchmark.measurement import Latency, Measurement, MeasurementKind, OpTiming, RanOn
from edgecompress.benchmark.per_op import profile_ops
from edgecompress.errors import UnavailableError
from edgecompress.profiles import Target
from edgecompress.streaming import read_stream


def benchmark_cpu(  # noqa: PLR0913 (each is one of the benchmark's conditions, all but the first by name)
    models: Sequence[Path],
    *,
    threads: int = 1,
    runs: int = 50,
    warmup: int = 5,
    min_seconds: float = 1.0,
    runtime: str = "auto",
    api: str = "interpreter",
    per_op: bool = False,
    time_limit_s: float = 300.0,
) -> tuple[Measurement, ...]:
    """Times files on this machine's CPU, run by run in turns, so that all of them meet the same noise.

    Of a file of single steps one step is timed, and the measurement says so.

    Args:
        models: The .tflite files.
        threads: Threads for the CPU kernels.
        runs: The least number of timed runs of each file.
        warmup: Runs of each file before timing, at least 1.
        min_seconds: The least time spent on the timed runs of each file.
        runtime: "litert", "tflite-runtime", "tensorflow", or "auto" for the first of them that is installed.
        api: "interpreter", or "compiled" for LiteRT's CompiledModel.
        per_op: Whether to profile each operator as well, in a further process.
        time_limit_s: Seconds for all of it; slow files get fewer runs rather than none.

    Returns:
        One measurement for each file, in the same order.

    Raises:
        ExecutionError: The runtime crashed, hung or refused a file; the error names the file.
        ModelError: There is no such file, or what it says of single steps does not fit it.
        UnavailableError: The runtime is not installed.
        UsageError: An option is out of range.
    """
    options = ["--threads", str(threads), "--runtime", runtime, "--api", api]
    budget = ["--max-seconds", str(time_limit_s / 2)]
    counts = ["--runs", str(runs), "--warmup", str(warmup), "--min-seconds", str(min_seconds)]
    where = ", ".join(str(model) for model in models)
    try:
        report = run_runner(["benchmark", *models, *options, *counts, *budget], where=where, time_limit_s=time_limit_s)
    except CrashError:
        if len(models) > 1:
            _run_each_alone(models, options, time_limit_s)
        raise
    measurements = tuple(_measurement(report, one) for one in report["models"])
    if not per_op:
        return measurements
    return tuple(
        one.model_copy(update=_profile(model, threads, report["runtime"], time_limit_s))
        for model, one in zip(models, measurements, strict=True)
    )


def _run_each_alone(models: Sequence[Path], options: Sequence[str], time_limit_s: float) -> None:
    """Raises the error of the file that crashes by itself, if one does."""
    once = ["--runs", "1", "--warmup", "1", "--min-seconds", "0"]
    for model in models:
        run_runner(["benchmark", model, *options, *once], where=str(model), time_limit_s=time_limit_s)


def _measurement(report: dict[str, Any], one: dict[str, Any]) -> Measurement:
    memory = report["peak_memory"]
    return Measurement(
        target=Target.CPU,
        kind=MeasurementKind.MEASURED,
        ran_on=RanOn(
            runtime=report["runtime"],
            runtime_version=report["runtime_version"],
            api=report["api"],
            delegate=one["delegate"],
            processor=report["host"]["cpu"],
            machine=report["host"]["machine"],
        ),
        threads=report["threads"],
        steps_per_run=None if read_stream(one["model"]) is None else 1,
        warmups=one["warmups"],
        runs=one["runs"],
        latency=Latency(**{f"{name}_ms": value for name, value in one["latency_ms"].items()}),
        load_ms=one["load_ms"],
        peak_memory_bytes=memory["growth_bytes"] if memory else None,
        delegated_ops=one["delegated_ops"],
        total_ops=one["total_ops"],
        partitions=one["partitions"],
    )


def _profile(model: Path, threads: int, runtime: str, time_limit_s: float) -> dict[str, tuple[OpTiming, ...] | str]:
    """Returns the fields of a Measurement that a profile fills: the times, or why there are none."""
    if runtime != "litert":
        return {"per_op_unavailable_because": f"only LiteRT has an operator profiler, and {runtime} ran the file"}
    try:
        return {"per_op": profile_ops(model, threads=threads, time_limit_s=time_limit_s)}
    except UnavailableError as error:
        return {"per_op_unavailable_because": str(error)}
