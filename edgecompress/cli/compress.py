"""`edgecompress compress`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecompress.cli.options import (
    MODEL_PATH,
    ProfileName,
    calibration_option,
    load_custom_objects,
    model_options,
    output_options,
    verification_options,
)
from edgecompress.cli.passes import pass_options, recipe_of

if TYPE_CHECKING:
    from edgecompress.recipes import Recipe


@click.command("compress")
@click.argument("model", type=MODEL_PATH)
@click.option("-o", "--output", type=MODEL_PATH, help="File to write. Default: MODEL-compressed.keras, here.")
@click.option("--profile", type=ProfileName(), help="Device whose kernels --low-rank and --fuse go by. Default: any.")
@pass_options
@click.option("--data", help="Samples to verify on. Default: some of --train, which are then not trained on.")
@calibration_option
@verification_options
@model_options
@output_options
def command(
    model: Path,
    output: Path | None,
    profile: str | None,
    recipe: Path | None,
    train: str | None,
    data: str | None,
    resume: bool,
    input_shape: tuple[tuple[str, tuple[int, ...]], ...],
    input_range: tuple[float, float] | None,
    custom_objects: tuple[str, ...],
    unsafe: bool,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> int:
    """Distill, factorize, fuse, prune and cluster MODEL (of Keras 3), train it again, and write it as a .keras file.

    \b
    Example: edgecompress compress model.keras --prune 0.8 --epochs 8 --train train.npz
    Example: edgecompress compress model.keras --low-rank energy=0.95 --train train.npz
    """  # noqa: D301 (click wants the character itself)
    return compress_and_print(
        model, output, recipe_of(recipe, settings), profile=profile, train=train, data=data, resume=resume,
        input_shape=input_shape, input_range=input_range, custom_objects=custom_objects, unsafe=unsafe,
        as_json=as_json, quiet=quiet,
    )  # fmt: skip


def compress_and_print(
    model: Path,
    output: Path | None,
    recipe: Recipe,
    *,
    input_shape: tuple[tuple[str, tuple[int, ...]], ...],
    custom_objects: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Runs `compress` with what the options say, and prints its report; returns the exit code."""
    from edgecompress.cli.progress import show_progress
    from edgecompress.pipeline import compress
    from edgecompress.report.compression import print_compression

    with show_progress(quiet=quiet) as progress:
        report = compress(
            model, output, recipe=recipe, input_shape=dict(input_shape),
            custom_objects=load_custom_objects(custom_objects), progress=progress, **options,
        )  # fmt: skip
    if as_json:
        click.echo(report.to_json(), nl=False)
    elif not quiet:
        print_compression(report)
    return 1 if report.failed else 0
