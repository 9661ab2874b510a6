"""`edgecompress plan`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecompress.cli.options import MODEL_PATH, ProfileName, Shape, load_custom_objects, output_options
from edgecompress.cli.passes import pass_options, recipe_of


@click.command("plan")
@click.argument("model", type=MODEL_PATH)
@click.option("--profile", type=ProfileName(), help="The device, where it matters.")
@pass_options
@click.option("--input-shape", type=Shape(), multiple=True, help="Fix dimensions that vary, which qat must know.")
@click.option("--custom-objects", multiple=True, metavar="MODULE:NAME", help="A custom layer. Repeatable.")
@click.option("--unsafe", is_flag=True, help="Accept Lambda layers, which run code.")
@output_options
def command(
    model: Path,
    profile: str | None,
    recipe: Path | None,
    train: str | None,
    resume: bool,
    input_shape: tuple[tuple[str, tuple[int, ...]], ...],
    custom_objects: tuple[str, ...],
    unsafe: bool,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> int:
    """Show what each pass would do with each layer of MODEL, what it would leave alone and why. Nothing is trained.

    Takes the passes as `convert` and `compress` do; without any, shows what each could do with its defaults.
    Exit code 0: the run can go on; 2: a layer would end it with an error, and the plan says which and what to do.

    \b
    Example: edgecompress plan model.keras --prune 0.8 --qat --profile pixel
    """  # noqa: D301 (click wants the character itself)
    del train, resume  # taken so that the options of a run can be given as they are
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
