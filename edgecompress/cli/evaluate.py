"""`edgecompress evaluate`"""

from __future__ import annotations

from pathlib import Path

import click

from edgecompress.cli.options import MODEL_PATH, load_custom_objects, model_options, output_options, threads_option


@click.command("evaluate")
@click.argument("model", type=MODEL_PATH)
@click.option("--data", required=True, help="Labelled samples: .npz, an image folder, or python:module:function.")
@threads_option()
@model_options
@output_options
def command(
    model: Path,
    data: str,
    threads: int,
    input_shape: tuple[tuple[str, tuple[int, ...]], ...],
    input_range: tuple[float, float] | None,
    custom_objects: tuple[str, ...],
    unsafe: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure how accurate MODEL (.keras, .h5, SavedModel or .tflite) is on labelled data."""
    from edgecompress.report.terminal import print_evaluation
    from edgecompress.verify.evaluation import evaluate

    found = evaluate(
        model, data, input_shape=dict(input_shape), input_range=input_range,
        custom_objects=load_custom_objects(custom_objects), unsafe=unsafe, threads=threads,
    )  # fmt: skip
    if as_json:
        click.echo(found.model_dump_json(by_alias=True, indent=2))
    elif not quiet:
        print_evaluation(found)
