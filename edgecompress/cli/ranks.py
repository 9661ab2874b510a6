"""`edgecompress ranks`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecompress.cli.options import (
    MODEL_PATH,
    ProfileName,
    calibration_option,
    load_custom_objects,
    model_options,
    output_options,
)
from edgecompress.cli.passes import low_rank_option, technique_of


@click.command("ranks")
@click.argument("model", type=MODEL_PATH)
@click.option(
    "--data", "--train", help="Samples whose activations count, as `convert` takes them; labels are not used."
)
@calibration_option
@click.option("--profile", type=ProfileName(), help="Device whose kernels ranks should suit. Default: any.")
@low_rank_option
@click.option("--plot", type=MODEL_PATH, help="Draw energy and output error over the rank: a .png or .svg file.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the choice of samples.")
@model_options
@output_options
def command(
    model: Path,
    data: str | None,
    calibration_samples: int | None,
    profile: str | None,
    low_rank: dict[str, Any] | None,
    plot: Path | None,
    seed: int,
    input_shape: tuple[tuple[str, tuple[int, ...]], ...],
    input_range: tuple[float, float] | None,
    custom_objects: tuple[str, ...],
    unsafe: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show what low-rank decomposition would keep, save and cost in each layer of MODEL, and which ranks it would take.

    With --data ranks are judged by the outputs of the layers on these samples, without by the weights alone.

    \b
    Example: edgecompress ranks model.keras --data samples.npz --low-rank energy=0.95
    Example: edgecompress ranks model.keras --data samples.npz --plot ranks.svg
    """  # noqa: D301 (click wants the character itself)
    from edgecompress.cli.progress import show_progress
    from edgecompress.ranking import ranks
    from edgecompress.recipes import CALIBRATION_SAMPLES
    from edgecompress.report.plots import check_plot, plot_ranks
    from edgecompress.report.ranks import print_ranks
    from edgecompress.techniques import LowRank

    if plot is not None:
        check_plot(plot)
    with show_progress(quiet=quiet) as progress:
        found = ranks(
            model,
            data,
            technique=technique_of(LowRank, "--low-rank", low_rank),
            profile=profile,
            input_shape=dict(input_shape),
            input_range=input_range,
            custom_objects=load_custom_objects(custom_objects),
            unsafe=unsafe,
            samples=calibration_samples or CALIBRATION_SAMPLES,
            seed=seed,
            progress=progress,
        )
    if plot is not None:
        plot_ranks(found, plot)
    if as_json:
        click.echo(found.model_dump_json(by_alias=True, indent=2))
    elif not quiet:
        print_ranks(found)
