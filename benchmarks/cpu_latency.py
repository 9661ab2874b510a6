"""Our CPU latency beside that of LiteRT's own benchmark tool, on the same files, in turns.

    python benchmarks/cpu_latency.py float.tflite int8.tflite --repetitions 5

Every figure is the median, over the repetitions, of each tool's median latency; each tool starts a fresh process for
each repetition. LiteRT's tool uses CompiledModel and reports hundredths of a millisecond, so a file should take more
than a millisecond or so for its ratio to mean something.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from results import save_results

from edgecompress.benchmark.child import run_runner
from edgecompress.benchmark.runner import describe_host, time_in_turns
from edgecompress.isolate import run_command

TIME_LIMIT_S = 300.0


def ours(model: Path, api: str, *, runs: int, threads: int) -> float:
    """Returns our median latency in ms, for the same number of runs as LiteRT's tool makes."""
    options = [f"--api={api}", f"--runs={runs}", f"--threads={threads}", "--min-seconds=0", "--runtime=litert"]
    report = run_runner(["benchmark", model, *options], where=str(model), time_limit_s=TIME_LIMIT_S)
    median: float = report["models"][0]["latency_ms"]["median"]
    return median


def theirs(model: Path, *, runs: int, threads: int) -> float:
    """Returns the median latency in ms that LiteRT's tool reports."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        options = [f"--num_runs={runs}", f"--num_threads={threads}", f"--result_json={result}"]
        tool = [sys.executable, "-m", "ai_edge_litert.tools.benchmark_litert_model", f"--model={model}"]
        outcome = run_command([*tool, *options], time_limit_s=TIME_LIMIT_S)
        if outcome.returncode != 0:
            raise SystemExit(f"LiteRT's tool {outcome.how_it_ended}: {outcome.last_words}")
        median: float = json.loads(result.read_text("utf-8"))["latency"]["median_ms"]
        return median


def compare(model: Path, *, repetitions: int, runs: int, threads: int) -> dict[str, float]:
    """Returns the median of each tool's medians, in ms; the tools take turns and each starts first equally often."""
    tools: dict[str, Callable[[], float]] = {
        "litert": lambda: theirs(model, runs=runs, threads=threads),
        "compiled": lambda: ours(model, "compiled", runs=runs, threads=threads),
        "interpreter": lambda: ours(model, "interpreter", runs=runs, threads=threads),
    }
    names = list(tools)
    medians: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(repetitions):
        for turn in range(len(names)):
            name = names[(repetition + turn) % len(names)]
            medians[name].append(tools[name]())
    return {name: statistics.median(values) for name, values in medians.items()}


def harness_overhead_us(runs: int = 10_000) -> tuple[float, float]:
    """Times a function that does nothing.

    Returns:
        What the harness adds to a measured latency, and what one run costs around the measured part, in µs.
    """
    start = time.perf_counter_ns()
    (times,) = time_in_turns([lambda: None], runs=runs, seconds=0, deadline_ns=start + 10**10)
    wall = time.perf_counter_ns() - start
    return statistics.median(times) / 1e3, (wall - sum(times)) / runs / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help=".tflite files")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    host = describe_host()
    print(f"{host['cpu']}, {host['machine']}, ai-edge-litert {metadata.version('ai-edge-litert')}")
    print(f"{options.repetitions} repetitions of {options.runs} runs, {options.threads} thread(s), median ms")
    added, around = harness_overhead_us()
    print(f"harness: adds {added:.2f} µs to a latency, costs {around:.2f} µs around each run\n")
    print(f"{'file':40} {'litert-benchmark':>16} {'compiled':>10} {'ratio':>7} {'interpreter':>12} {'ratio':>7}")
    rows = {}
    for model in options.models:
        ms = rows[model.name] = compare(
            model, repetitions=options.repetitions, runs=options.runs, threads=options.threads
        )
        ratios = {name: ms[name] / ms["litert"] for name in ms}
        print(
            f"{model.name:40} {ms['litert']:16.3f} {ms['compiled']:10.3f} {ratios['compiled']:7.3f}"
            f" {ms['interpreter']:12.3f} {ratios['interpreter']:7.3f}"
        )
    save_results(options.save, {"median_ms": rows, "harness_us": {"added": added, "around": around}})


if __name__ == "__main__":
    main()
