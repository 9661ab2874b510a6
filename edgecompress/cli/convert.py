"""`edgecompress convert`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecompress.cli.options import (
    MODEL_PATH,
    ProfileName,
    load_custom_objects,
    model_options,
    output_options,
    quantization_options,
    verification_options,
)
from edgecompress.cli.passes import pass_options, recipe_of


@click.command("convert")
@click.argument("model", type=MODEL_PATH)
@click.option("--profile", type=ProfileName(), default="host", show_default=True, help="Device name, or a TOML file.")
@click.option("--data", help="Samples: .npz, .npy, an image folder, or python:module:function.")
@click.option("-o", "--output", type=MODEL_PATH, help="Folder to write. Default: MODEL-PROFILE, here.")
@quantization_options
@verification_options
@pass_options
@click.option("--no-benchmark", is_flag=True, help="Do not measure latency.")
@model_options
@output_options
def command(
    model: Path,
    profile: str,
    data: str | None,
    output: Path | None,
    recipe: Path | None,
    train: str | None,
    resume: bool,
    no_benchmark: bool,
    input_shape: tuple[tuple[str, tuple[int, ...]], ...],
    input_range: tuple[float, float] | None,
    custom_objects: tuple[str, ...],
    unsafe: bool,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> int:
    """Turn MODEL (.keras, .h5 or a SavedModel folder) into a verified .tflite file for a device.

    \b
    Writes a folder with the .tflite file, report.json and golden.npz.
    Example: edgecompress convert model.keras --profile pixel --data samples.npz
    Example: edgecompress convert model.keras --prune 0.8 --qat --train train.npz
    Example: edgecompress convert model.keras --low-rank energy=0.95 --fuse --data samples.npz
    """  # noqa: D301 (click wants the character itself)
    from edgecompress.cli.progress import show_progress
    from edgecompress.pipeline import convert
    from edgecompress.report.terminal import print_report

    with show_progress(quiet=quiet) as progress:
        report = convert(
            model,
            profile,
            output=output,
            data=data,
            train=train,
            resume=resume,
            recipe=recipe_of(recipe, settings),
            input_shape=dict(input_shape),
            input_range=input_range,
            custom_objects=load_custom_objects(custom_objects),
            unsafe=unsafe,
            benchmark=not no_benchmark,
            progress=progress,
        )
    if as_json:
        click.echo(report.to_json(), nl=False)
    elif not quiet:
        print_report(report)
    return 1 if report.failed else 0
