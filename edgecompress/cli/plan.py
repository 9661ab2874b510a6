"""`edgecompress plan`"""

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


@click.command("plan")
@click.argument("model", type=MODEL_PATH)
@click.option("--profile", type=ProfileName(), help="The device. Default with --qat: host.")
@pass_options
@quantization_options
@verification_options
@click.option("--data", hidden=True)
@click.option("-o", "--output", type=MODEL_PATH, hidden=True)
@click.option("--no-benchmark", is_flag=True, hidden=True)
@model_options
@output_options
def command(
    model: Path,
    profile: str | None,
    recipe: Path | None,
    train: str | None,
    data: str | None,
    output: Path | None,
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
    """Show what each pass would do with each layer of MODEL, what it would leave alone and why. Nothing is trained.

    Takes a line of `convert` or `compress` as it is; without passes, shows what each could do with its defaults.
    The passes, --profile, --scheme and --input-shape decide the plan. No samples are read: --train, --data, --output,
    and how to train, calibrate and verify are taken, but change nothing.
    Exit code 0: the run can go on; 2: a layer would end it with an error, and the plan says which and what to do.

    \b
    Example: edgecompress plan model.keras --prune 0.8 --qat --profile pixel
    """  # noqa: D301 (click wants the character itself)
    del train, data, output, resume, no_benchmark, input_range  # a plan has no use for them
    from edgecompress.planning import plan
    from edgecompress.report.compression import print_plan

    found = plan(
        model, recipe_of(recipe, settings), profile, input_shape=dict(input_shape),
        custom_objects=load_custom_objects(custom_objects), unsafe=unsafe,
    )  # fmt: skip
    if as_json:
        click.echo(found.model_dump_json(by_alias=True, indent=2))
    elif not quiet:
        print_plan(found)
    return 2 if found.asked and found.refused is not None else 0
