from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from edgecompress.benchmark import child
from edgecompress.benchmark.cpu import benchmark_cpu
from edgecompress.benchmark.measurement import Latency, Measurement, MeasurementKind
from edgecompress.errors import ExecutionError, ModelError, UnavailableError, UsageError
from edgecompress.profiles import Target


def test_a_measurement_says_what_ran_where(models: dict[str, Path]) -> None:
    (one,) = benchmark_cpu([models["dense"]], runs=10, warmup=2)
    assert (one.target, one.kind, one.threads, one.warmups) == (Target.CPU, MeasurementKind.MEASURED, 1, 2)
    assert one.runs >= 10
    assert one.latency is not None
    assert one.latency.min_ms <= one.latency.median_ms <= one.latency.p90_ms <= one.latency.p95_ms
    assert one.latency.p95_ms <= one.latency.max_ms
    assert one.ran_on is not None
    assert (one.ran_on.runtime, one.ran_on.delegate, one.ran_on.api) == ("litert", "XNNPACK", "interpreter")
    assert one.ran_on.processor
    assert one.ran_on.machine
    assert (one.delegated_ops, one.total_ops, one.partitions) == (1, 1, 1)
    assert one.peak_memory_bytes is not None
    assert one.unavailable_because is None


def test_several_files_keep_their_order_and_get_a_profile_each(models: dict[str, Path]) -> None:
    wide, dense = benchmark_cpu([models["wide"], models["dense"]], runs=5, per_op=True)
    assert wide.latency is not None
    assert dense.latency is not None
    assert wide.latency.median_ms > 10 * dense.latency.median_ms
    assert wide.peak_memory_bytes is None
    for one in (wide, dense):
        assert one.per_op is not None
        assert any(op.name.startswith("Fully Connected") and op.delegated for op in one.per_op)


def test_a_profile_that_cannot_be_made_says_why(models: dict[str, Path], noisy_runtime: str) -> None:
    (one,) = benchmark_cpu([models["dense"]], runs=1, runtime=noisy_runtime, per_op=True)
    assert one.latency is not None
    assert one.per_op is None
    assert one.per_op_unavailable_because == "only LiteRT has an operator profiler, and tflite-runtime ran the file"


def test_of_several_files_the_one_that_crashes_the_runtime_is_named(models: dict[str, Path]) -> None:
    with pytest.raises(ExecutionError, match=r"crashed \(SIGABRT\)") as caught:
        benchmark_cpu([models["dense"], models["crashing"], models["int8"]])
    assert caught.value.where == str(models["crashing"])


def test_a_file_that_the_runtime_refuses_is_named(models: dict[str, Path]) -> None:
    with pytest.raises(ExecutionError, match="refused") as caught:
        benchmark_cpu([models["dense"], models["truncated"]])
    assert caught.value.where == str(models["truncated"])


def test_a_reason_that_only_native_code_printed_is_passed_on(models: dict[str, Path]) -> None:
    with pytest.raises(ExecutionError, match="Variable tensors not yet supported"):
        benchmark_cpu([models["stateful"]], api="compiled")


def test_a_hanging_runtime_is_ended(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = tmp_path / "stuck.py"
    stuck.write_text("import time; time.sleep(60)", "utf-8")
    monkeypatch.setattr(child, "RUNNER", stuck)
    with pytest.raises(ExecutionError, match="was ended at its time limit") as caught:
        benchmark_cpu([models["dense"]], time_limit_s=0.5)
    assert caught.value.where == str(models["dense"])


def test_a_runner_that_dies_without_a_word_is_an_error(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = tmp_path / "silent.py"
    silent.write_text("raise SystemExit('the last word')", "utf-8")
    monkeypatch.setattr(child, "RUNNER", silent)
    with pytest.raises(ExecutionError, match=r"ended with exit code 1.*the last word"):
        benchmark_cpu([models["dense"]])


@pytest.mark.usefixtures("no_runtime")
def test_a_missing_runtime_is_unavailable(models: dict[str, Path]) -> None:
    with pytest.raises(UnavailableError, match="pip install ai-edge-litert"):
        benchmark_cpu([models["dense"]])


def test_a_missing_file_and_a_wrong_option() -> None:
    with pytest.raises(ModelError, match="no such file"):
        benchmark_cpu([Path("missing.tflite")])
    with pytest.raises(UsageError, match="--threads: 0 is less than 1"):
        benchmark_cpu([Path("missing.tflite")], threads=0)


def test_a_measurement_has_a_latency_or_a_reason() -> None:
    zeros = dict.fromkeys(Latency.model_fields, 0.0)
    with pytest.raises(ValidationError, match="either a latency or the reason"):
        Measurement(target=Target.GPU, kind=MeasurementKind.MEASURED)
    with pytest.raises(ValidationError, match="either a latency or the reason"):
        Measurement(
            target=Target.GPU,
            kind=MeasurementKind.MEASURED,
            latency=Latency(**zeros),
            unavailable_because="no adapter found",
        )
    with pytest.raises(ValidationError, match="says where it ran"):
        Measurement(target=Target.GPU, kind=MeasurementKind.MEASURED, latency=Latency(**zeros))
    absent = Measurement(target=Target.GPU, kind=MeasurementKind.MEASURED, unavailable_because="no adapter found")
    assert absent.latency is None


def test_one_step_of_a_file_of_steps_is_timed(models: dict[str, Path], step_files: dict[str, Path]) -> None:
    whole, step = benchmark_cpu([models["dense"], step_files["sum"]], runs=2, min_seconds=0)
    assert (whole.steps_per_run, step.steps_per_run) == (None, 1)
