"""`edgecompress inspect`"""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgecompress.cli.options import MODEL_PATH, load_custom_objects, output_options


@click.command("inspect")
@click.argument("model", type=MODEL_PATH)
@click.option("--custom-objects", multiple=True, metavar="MODULE:NAME", help="A custom layer. Repeatable.")
@click.option("--unsafe", is_flag=True, help="Accept Lambda layers, which run code.")
@output_options
def command(model: Path, custom_objects: tuple[str, ...], unsafe: bool, as_json: bool, quiet: bool) -> None:
    """Show what is in MODEL: layers of a Keras model, or operators of a .tflite file."""
    from edgecompress.inspection import inspect
    from edgecompress.report.terminal import print_inspection

    found = inspect(model, custom_objects=load_custom_objects(custom_objects), unsafe=unsafe)
    if as_json:
        click.echo(json.dumps({"schema": "edgecompress.inspect/1", **found.model_dump(mode="json")}, indent=2))
    elif not quiet:
        print_inspection(found)
