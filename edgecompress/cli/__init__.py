"""The `edgecompress` command. Each sub-command is one file here, imported when it is used."""

from __future__ import annotations

import importlib
import sys

import click

from edgecompress.cli.lifecycle import run

_COMMANDS = {
    "benchmark": "Measure latency and memory of .tflite files on this machine's CPU.",
    "compare": "Put two or more models side by side: size, accuracy, latency.",
    "compress": "Distill, factorize, fuse, prune and cluster a Keras model, and write it as a .keras file.",
    "convert": "Turn a Keras model into a verified .tflite file for a device.",
    "distill": "Train a smaller Keras model by the answers of a larger one.",
    "doctor": "Show what is installed and usable here, and how to get the rest.",
    "evaluate": "Measure the accuracy of a .keras or .tflite model on labelled data.",
    "inspect": "Show layers or operators, shapes, types, parameters, MACs and bytes.",
    "plan": "Show what each technique would do with each layer, before any training.",
    "profiles": "List, show and validate device profiles.",
    "ranks": "Show what low-rank decomposition would save and cost, layer by layer.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run, so that --help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"edgecompress.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from edgecompress.versions import own_version

        click.echo(f"edgecompress {own_version()}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
@click.option("--verbose", is_flag=True, help="Show what libraries print, and tracebacks.")
@click.pass_context
def cli(ctx: click.Context, verbose: bool) -> None:
    """Take a Keras model to the smallest and fastest file that a named device can run.

    \b
    Exit codes: 0 done; 1 done, but a check or threshold failed; 2 wrong usage or bad input;
    3 not available here; 4 internal error.
    """  # noqa: D301 (click wants the character itself)
    ctx.obj = {"verbose": verbose}


def main() -> None:
    """Runs the command line and exits with the code of what happened."""
    sys.exit(run(cli))
