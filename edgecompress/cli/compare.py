"""`edgecompress compare`"""

from __future__ import annotations

from pathlib import Path

import click

from edgecompress.cli.options import MODEL_PATH, load_custom_objects, model_options, output_options, threads_option


@click.command("compare")
@click.argument("models", type=MODEL_PATH, nargs=-1, required=True)
@click.option("--data", help="Labelled samples; without them accuracy is left out.")
@click.option("--runs", type=click.IntRange(min=1), default=50, show_default=True, help="Timed runs of each model.")
@threads_option()
@model_options
@output_options
def command(
    models: tuple[Path, ...],
    data: str | None,
    runs: int,
    threads: int,
    input_shape: tuple[tuple[str, tuple[int, ...]], ...],
    input_range: tuple[float, float] | None,
    custom_objects: tuple[str, ...],
    unsafe: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Put MODELS side by side on the same data and machine; their latency runs take turns."""
    from edgecompress.comparison import compare
    from edgecompress.report.terminal import print_comparison

    found = compare(
        models, data, input_shape=dict(input_shape), input_range=input_range,
        custom_objects=load_custom_objects(custom_objects), unsafe=unsafe, threads=threads, runs=runs,
    )  # fmt: skip
    if as_json:
        click.echo(found.model_dump_json(by_alias=True, indent=2))
    elif not quiet:
        print_comparison(found)
