"""`edgecompress benchmark`"""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgecompress.cli.options import MODEL_PATH, ProfileName, output_options, threads_option


@click.command("benchmark")
@click.argument("models", type=MODEL_PATH, nargs=-1, required=True)
@click.option("--profile", type=ProfileName(), help="Take the number of threads from this device.")
@click.option("--runs", type=click.IntRange(min=1), default=50, show_default=True, help="Timed runs, at least.")
@click.option("--warmup", type=click.IntRange(min=1), default=5, show_default=True, help="Runs before timing.")
@click.option("--runtime", type=click.Choice(["auto", "litert", "tflite-runtime", "tensorflow"]), default="auto")
@click.option("--api", type=click.Choice(["interpreter", "compiled"]), default="interpreter", show_default=True)
@click.option("--per-op", is_flag=True, help="Time each operator, too.")
@threads_option(default=None)
@output_options
def command(
    models: tuple[Path, ...],
    profile: str | None,
    runs: int,
    warmup: int,
    runtime: str,
    api: str,
    per_op: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure MODELS (.tflite) on this machine's CPU, in a child process that a bad file cannot take down."""
    from edgecompress.benchmark.cpu import benchmark_cpu
    from edgecompress.profiles import load_profile
    from edgecompress.report.terminal import print_measurements

    if threads is None:
        threads = load_profile(profile).runtime.threads if profile is not None else 1
    found = benchmark_cpu(models, threads=threads, runs=runs, warmup=warmup, runtime=runtime, api=api, per_op=per_op)
    names = [str(model) for model in models]
    if as_json:
        rows = [{"model": name, **one.model_dump(mode="json")} for name, one in zip(names, found, strict=True)]
        click.echo(json.dumps({"schema": "edgecompress.benchmark/1", "measurements": rows}, indent=2))
    elif not quiet:
        print_measurements(names, found)
