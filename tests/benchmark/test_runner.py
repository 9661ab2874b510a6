"""runner.py as a device sees it: one file, started as a program."""

from __future__ import annotations

import ast
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.benchmark import runner
from edgecompress.benchmark.runner import delegated_partitions, random_values, summarize, time_in_turns
from tests.handsteps import sum_steps

SOURCE = Path(runner.__file__)
QUICK = ["--runs", "3", "--warmup", "2", "--min-seconds", "0"]


def run(*arguments: object, python: tuple[str, ...] = (sys.executable, "-P")) -> tuple[int, dict[str, Any], str]:
    """Runs runner.py and returns its exit code, the JSON document on its stdout, and its stderr."""
    command = [*python, str(SOURCE), *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, json.loads(done.stdout), done.stderr


class FakeClock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0
        self.order: list[str] = []

    def __call__(self) -> int:
        return self.now

    def work(self, name: str, duration_ns: int) -> None:
        self.order.append(name)
        self.now += duration_ns


def test_the_file_is_self_contained_and_python_3_9() -> None:
    tree = ast.parse(SOURCE.read_text("utf-8"), feature_version=(3, 9))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy"}


def test_a_lone_copy_runs_in_an_isolated_interpreter(models: dict[str, Path], tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere" / "bench.py"
    alone.parent.mkdir()
    shutil.copy(SOURCE, alone)
    command = [sys.executable, "-I", "-X", "importtime", str(alone), "benchmark", str(models["dense"]), *QUICK]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, timeout=60)
    assert json.loads(done.stdout)["models"][0]["runs"] == 3
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert {"numpy", "ai_edge_litert"} <= imported
    assert "edgecompress" not in imported


def test_the_report_of_one_model(models: dict[str, Path]) -> None:
    code, report, _ = run("benchmark", models["dense"], *QUICK, "--threads", 2)
    assert code == 0
    assert (report["runtime"], report["api"], report["threads"]) == ("litert", "interpreter", 2)
    assert report["runtime_version"]
    assert report["host"]["cpu"]
    (one,) = report["models"]
    assert (one["model"], one["warmups"], one["runs"]) == (str(models["dense"]), 2, 3)
    assert (one["delegate"], one["delegated_ops"], one["total_ops"], one["partitions"]) == ("XNNPACK", 1, 1, 1)
    assert one["load_ms"] > 0
    assert len(one["latencies_ms"]) == 3
    assert one["latency_ms"]["median"] == pytest.approx(sorted(one["latencies_ms"])[1], abs=1e-6)
    assert one["latency_ms"]["first"] > 0


def test_without_xnnpack_no_delegate_is_claimed(models: dict[str, Path]) -> None:
    _, report, _ = run("benchmark", models["dense"], *QUICK, "--no-xnnpack")
    (one,) = report["models"]
    assert (one["delegate"], one["delegated_ops"], one["partitions"]) == (runner.NO_DELEGATE, 0, 0)


def test_compiled_models_claim_no_more_than_is_known(models: dict[str, Path]) -> None:
    _, report, _ = run("benchmark", models["int8"], models["embedding"], *QUICK, "--api", "compiled")
    for one in report["models"]:
        assert "does not report" in one["delegate"]
        assert one["delegated_ops"] is None
        assert one["runs"] == 3


def test_memory_is_that_of_the_model_and_not_of_the_parent(models: dict[str, Path]) -> None:
    parents = np.ones(30_000_000)  # 240 MB, which ru_maxrss of a child would start with
    code, report, _ = run("benchmark", models["wide"], *QUICK)
    assert code == 0
    assert 16e6 < report["peak_memory"]["growth_bytes"] < 60e6
    assert report["peak_memory"]["growth_bytes"] < report["peak_memory"]["process_bytes"] < parents.nbytes


def test_memory_is_not_divided_among_models_in_one_process(models: dict[str, Path]) -> None:
    _, report, _ = run("benchmark", models["dense"], models["int8"], *QUICK)
    assert report["peak_memory"] is None
    assert [one["model"] for one in report["models"]] == [str(models["dense"]), str(models["int8"])]


def test_min_seconds_adds_runs_and_max_seconds_stops_them(models: dict[str, Path]) -> None:
    _, report, _ = run("benchmark", models["wide"], "--runs", 1, "--min-seconds", 0.05)
    assert sum(report["models"][0]["latencies_ms"]) >= 50
    _, report, _ = run("benchmark", models["wide"], "--runs", 10**9, "--max-seconds", 0.5)
    assert 1 <= report["models"][0]["runs"] < 10**6


def test_stdout_is_one_document_whatever_libraries_print(models: dict[str, Path], noisy_runtime: str) -> None:
    code, report, stderr = run("benchmark", models["dense"], *QUICK, "--runtime", noisy_runtime)
    assert code == 0
    assert (report["runtime"], report["runtime_version"]) == ("tflite-runtime", "0.0-test")
    assert "noise from Python" in stderr
    assert "noise from native code" in stderr


@pytest.mark.usefixtures("no_runtime")
def test_a_missing_runtime_names_the_remedy(models: dict[str, Path]) -> None:
    code, report, _ = run("benchmark", models["dense"])
    assert code == 2
    assert report["kind"] == "unavailable"
    assert "no tensorflow here" in report["error"]
    assert report["fix"] == "pip install ai-edge-litert"


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (["benchmark", "missing.tflite"], "model", "no such file"),
        (["benchmark", "missing.tflite", "--threads", "0"], "usage", "--threads"),
        (["benchmark", "missing.tflite", "--runtime", "onnx"], "usage", "--runtime"),
        (["predict", "missing.tflite"], "usage", "--inputs"),
        (["predict", "missing.tflite", "--inputs", "none.npz", "--outputs", "o.npz"], "data", "none.npz"),
    ],
)
def test_usage_errors_are_json_too(arguments: list[str], kind: str, words: str) -> None:
    code, report, _ = run(*arguments)
    assert code == 2
    assert report["kind"] == kind
    assert words in report["error"]


@pytest.mark.parametrize("name", ["truncated", "text"])
@pytest.mark.parametrize("api", ["interpreter", "compiled"])
def test_what_is_not_a_model_is_named(models: dict[str, Path], name: str, api: str) -> None:
    code, report, _ = run("benchmark", models["dense"], models[name], "--api", api)
    assert (code, report["kind"], report["where"]) == (2, "execution", str(models[name]))


def test_predict_refuses_pickled_arrays(models: dict[str, Path], tmp_path: Path) -> None:
    samples = tmp_path / "pickled.npz"
    np.savez(samples, x=np.array([object()]))
    code, report, _ = run("predict", models["dense"], "--inputs", samples, "--outputs", tmp_path / "out.npz")
    assert (code, report["kind"]) == (2, "data")
    assert "allow_pickle=False" in report["error"]


def test_raw_predictions_are_the_integers_behind_the_others(models: dict[str, Path], tmp_path: Path) -> None:
    samples, outputs = tmp_path / "in.npz", tmp_path / "out.npz"
    np.savez(samples, x=np.array([[10, -20, 30, 40]], np.int8))
    results = []
    for flags in (["--raw"], []):
        code, report, _ = run("predict", models["int8"], "--inputs", samples, "--outputs", outputs, *flags)
        assert code == 0
        with np.load(outputs) as file:
            results.append(file["y"])
        assert report["outputs"]["y"] == {"shape": [1, 3], "dtype": str(results[-1].dtype)}
    raw, real = results
    assert raw.dtype == np.int8
    np.testing.assert_allclose(real, (raw.astype(float) + 7) * 0.05, rtol=1e-6)


def test_steps_are_run_over_raw_sequences(step_files: dict[str, Path], tmp_path: Path) -> None:
    samples, outputs = tmp_path / "in.npz", tmp_path / "out.npz"
    x = np.random.default_rng(0).integers(-40, 46, (2, 30, 4)).astype(np.int8)
    np.savez(samples, x=x)
    stream = '{"inputs": ["x"], "outputs": ["sums"], "states": [{"input": "sum", "output": "next_sum"}]}'
    files = ["--inputs", samples, "--outputs", outputs]
    code, report, _ = run("predict", step_files["sum"], *files, "--raw", "--stream", stream)
    assert code == 0
    assert report["outputs"]["sums"] == {"shape": [2, 30, 4], "dtype": "int8"}
    with np.load(outputs) as file:
        np.testing.assert_array_equal(file["sums"], sum_steps(x))


@pytest.mark.parametrize(
    ("stream", "kind", "words"),
    [
        ("{", "usage", "--stream: not what --help describes: {"),
        ("[]", "usage", "--stream: not what --help describes"),
        ('{"inputs": [], "outputs": [], "states": []}', "usage", "--stream: not what --help describes"),
        ('{"inputs": ["x"], "outputs": [], "states": [{"input": "sum"}]}', "usage", "--stream: not what --help"),
        ('{"inputs": ["y"], "outputs": [], "states": []}', "model", "there is no input 'y'"),
        ('{"inputs": ["x"], "outputs": ["y"], "states": []}', "model", "there is no output 'y'"),
        (
            '{"inputs": ["x"], "outputs": [], "states": [{"input": "sum", "output": "y"}]}',
            "model",
            "there is no output 'y'",
        ),
    ],
)
def test_steps_that_the_file_does_not_have(
    step_files: dict[str, Path], tmp_path: Path, stream: str, kind: str, words: str
) -> None:
    samples = tmp_path / "in.npz"
    np.savez(samples, x=np.zeros((1, 2, 4)))
    files = ["--inputs", samples, "--outputs", tmp_path / "out.npz"]
    code, report, _ = run("predict", step_files["sum"], *files, "--stream", stream)
    assert (code, report["kind"]) == (2, kind)
    assert words in report["error"]


def test_models_take_turns() -> None:
    clock = FakeClock()
    calls = [lambda: clock.work("a", 10), lambda: clock.work("b", 1000)]
    times = time_in_turns(calls, runs=2, seconds=40e-9, deadline_ns=10**9, clock=clock)
    assert clock.order == ["a", "b", "a", "b", "a", "a"]  # b has had its two runs; a needs four for its 40 ns
    assert times == [[10, 10, 10, 10], [1000, 1000]]


def test_each_model_runs_once_however_late_it_is() -> None:
    clock = FakeClock()
    calls = [lambda: clock.work("a", 50), lambda: clock.work("b", 50)]
    times = time_in_turns(calls, runs=5, seconds=0, deadline_ns=0, clock=clock)
    assert times == [[50], [50]]


def test_the_harness_adds_less_than_20_us_to_a_run() -> None:
    start = time.perf_counter_ns()
    (times,) = time_in_turns([lambda: None], runs=2000, seconds=0, deadline_ns=start + 10**10)
    around = (time.perf_counter_ns() - start - sum(times)) / len(times)
    assert np.median(times) < 20_000
    assert around < 20_000


def test_statistics_of_known_numbers() -> None:
    values = summarize(7_000_000, [1_000_000 * n for n in range(100, 0, -1)])
    assert values == pytest.approx(
        {
            "first": 7.0,
            "min": 1.0,
            "median": 50.5,
            "mean": 50.5,
            "p90": 90.1,
            "p95": 95.05,
            "max": 100.0,
            "std": math.sqrt((100**2 - 1) / 12),
        }
    )


def _op(index: int, name: str, inputs: list[int], outputs: list[int]) -> dict[str, Any]:
    return {"index": index, "op_name": name, "inputs": inputs, "outputs": outputs}


def test_the_ops_behind_a_delegate_are_found_in_the_graph() -> None:
    ops = [
        _op(0, "CONV_2D", [0, 10, -1], [1]),
        _op(1, "ADD", [1, 0], [2]),
        _op(2, "ARG_MAX", [2], [3]),
        _op(3, "FlexErf", [3], [4]),
        _op(4, "DELEGATE", [0, 10], [2]),
        _op(5, "DELEGATE", [3], [4]),
    ]
    partitions, total = delegated_partitions(ops)
    assert [sorted(names) for names in partitions] == [["ADD", "CONV_2D"], ["FlexErf"]]
    assert total == 4


@pytest.mark.parametrize(
    ("dtype", "quantized", "low", "high"),
    [
        ("float32", False, -1, 1),
        ("int8", True, -128, 127),
        ("uint8", True, 0, 255),
        ("int16", True, -32768, 32767),
        ("int8", False, 0, 1),
        ("int32", False, 0, 1),
        ("int64", False, 0, 1),
        ("bool", False, 0, 1),
    ],
)
def test_random_inputs_are_of_their_type_and_range(dtype: str, quantized: bool, low: int, high: int) -> None:
    values = random_values(np.random.default_rng(0), (2000, 5), dtype, quantized=quantized)
    assert values.dtype == dtype
    assert values.shape == (2000, 5)
    spread = high - low
    assert low <= values.min() < low + 0.1 * spread + 1e-9
    assert high - 0.1 * spread - 1e-9 < values.max() <= high
