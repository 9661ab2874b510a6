"""`edgecompress doctor`"""

from __future__ import annotations

import click

from edgecompress.cli.options import output_options


@click.command("doctor")
@output_options
def command(as_json: bool, quiet: bool) -> None:
    """Show what is installed and usable on this machine, and how to get the rest."""
    from edgecompress.doctor import diagnose
    from edgecompress.report.terminal import print_diagnoses

    found = diagnose()
    if as_json:
        click.echo(found.model_dump_json(by_alias=True, indent=2))
    elif not quiet:
        print_diagnoses(found)
