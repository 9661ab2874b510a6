"""`edgecompress profiles`"""

from __future__ import annotations

import json

import click

from edgecompress.cli.options import ProfileName, output_options


@click.group("profiles")
def command() -> None:
    """List, show and validate device profiles."""


@command.command("list")
@output_options
def list_command(as_json: bool, quiet: bool) -> None:
    """List the bundled profiles."""
    from edgecompress.profiles import list_profiles, load_profile
    from edgecompress.report.terminal import print_profiles

    found = [load_profile(name) for name in list_profiles()]
    if as_json:
        rows = [{"name": profile.name, "title": profile.title} for profile in found]
        click.echo(json.dumps({"schema": "edgecompress.profiles/1", "profiles": rows}, indent=2))
    elif not quiet:
        print_profiles(found)


@command.command("show")
@click.argument("profile", type=ProfileName())
@output_options
def show_command(profile: str, as_json: bool, quiet: bool) -> None:
    """Show one profile: a bundled name, or a TOML file."""
    from edgecompress.profiles import load_profile
    from edgecompress.report.terminal import print_profile

    found = load_profile(profile)
    if as_json:
        click.echo(json.dumps({"schema": "edgecompress.profile/1", **found.model_dump(mode="json")}, indent=2))
    elif not quiet:
        print_profile(found)


@command.command("validate")
@click.argument("profile", nargs=-1, required=True, type=ProfileName())
@output_options
def validate_command(profile: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Check TOML files against the schema of profiles."""
    from edgecompress.profiles import load_profile

    names = [load_profile(item).name for item in profile]
    if as_json:
        click.echo(json.dumps({"schema": "edgecompress.validation/1", "valid": names}, indent=2))
    elif not quiet:
        for item, name in zip(profile, names, strict=True):
            click.echo(f"{item}: valid (profile {name})")


@command.command("schema")
@output_options
def schema_command(as_json: bool, quiet: bool) -> None:
    """Print the JSON schema of a profile, for editors; it is JSON with and without --json."""
    from edgecompress.profiles import profile_schema

    if as_json or not quiet:
        click.echo(json.dumps(profile_schema(), indent=2))
