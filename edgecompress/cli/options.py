"""Options that several commands share, and the types of their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from edgecompress.schemes import Algorithm, IoType, Observer, QuantizationScheme

Command = TypeVar("Command", bound=Callable[..., Any])

# Their values: given an enum, click would show and take the names of its members.
_SCHEMES = ["auto", *(scheme.value for scheme in QuantizationScheme)]
_ALGORITHMS = [algorithm.value for algorithm in Algorithm]
_FORMS = ["auto", "loop", "step", "unrolled", "fused"]  # profiles.RecurrentLowering, whose module is slow to import
_OBSERVERS = [observer.value for observer in Observer]
_IO_TYPES = [kind.value for kind in IoType]


class ProfileName(click.ParamType[str]):
    """A bundled profile's name, completed by the shell, or the path of a TOML file."""

    name = "profile"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        del ctx, param
        from edgecompress.profiles import list_profiles

        return [CompletionItem(name) for name in list_profiles() if name.startswith(incomplete)]


class Shape(click.ParamType[tuple[str, tuple[int, ...]]]):
    """[name=]224,224,3"""

    name = "[name=]shape"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        name, _, sizes = value.rpartition("=")
        try:
            shape = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1:
            self.fail(f"{value!r} is not a shape such as 224,224,3 or image=224,224,3", param, ctx)
        return name, shape


class Range(click.ParamType[tuple[float, float]]):
    """low,high"""

    name = "low,high"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        parts = value.split(",")
        try:
            low, high = (float(part) for part in parts)
        except ValueError:
            self.fail(f"{value!r} is not a range such as 0,1 or -1,1", param, ctx)
        if not low < high:
            self.fail(f"{value!r}: the first number must be the smaller one", param, ctx)
        return low, high


def output_options(command: Command) -> Command:
    """Adds --json, --quiet and --verbose; the last is seen by `lifecycle.run` before any command is."""
    command = click.option(
        "--verbose", is_flag=True, expose_value=False, help="Show what libraries print, and tracebacks."
    )(command)
    command = click.option("--quiet", is_flag=True, help="Print nothing but errors.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")(command)


def model_options(command: Command) -> Command:
    """Adds what says how to read a model and its data."""
    for decorate in (
        click.option("--unsafe", is_flag=True, help="Accept Lambda layers and pickled arrays, which run code."),
        click.option(
            "--custom-objects", multiple=True, metavar="MODULE:NAME", help="A custom layer or function. Repeatable."
        ),
        click.option(
            "--input-range", type=Range(), help="Map 8-bit samples (0 to 255) to this range, e.g. 0,1 or -1,1."
        ),
        click.option(
            "--input-shape", type=Shape(), multiple=True, help="Fix dimensions that vary, e.g. 224,224,3. Repeatable."
        ),
    ):
        command = decorate(command)
    return command


calibration_option = click.option(
    "--calibration-samples", type=click.IntRange(min=1), help="Samples whose activations are looked at. Default: 200."
)


def quantization_options(command: Command) -> Command:
    """Adds what says how the numbers of a .tflite file are stored: the keys of a recipe's [quantization]."""
    for decorate in reversed(
        (
            click.option("--scheme", type=click.Choice(_SCHEMES), help="Number types. Default: the profile's best."),
            click.option(
                "--algorithm", type=click.Choice(_ALGORITHMS), help="How weight scales are found. Default: min_max."
            ),
            click.option(
                "--input-type", type=click.Choice(_IO_TYPES), help="Type of the inputs. Default: the profile's."
            ),
            click.option(
                "--output-type", type=click.Choice(_IO_TYPES), help="Type of the outputs. Default: the profile's."
            ),
            click.option(
                "--recurrent",
                type=click.Choice(_FORMS),
                help="Form of GRU, LSTM and SimpleRNN in int8 files. Default: the profile's best.",
            ),
            click.option(
                "--observer", type=click.Choice(_OBSERVERS), help="How ranges inside them are found. Default: min_max."
            ),
            calibration_option,
        )
    ):
        command = decorate(command)
    return command


def verification_options(command: Command) -> Command:
    """Adds how the result is compared with the float model: the keys of a recipe's [verification]."""
    command = click.option(
        "--max-accuracy-drop", type=click.FloatRange(0, 1), help="Exit with 1 if accuracy falls by more, e.g. 0.01."
    )(command)
    return click.option(
        "--verify-samples", type=click.IntRange(min=1), help="Held-out samples, at most. Default: 500."
    )(command)


def load_custom_objects(names: Sequence[str]) -> dict[str, Any]:
    if not names:
        return {}
    from edgecompress.models import import_custom_objects

    return import_custom_objects(names)


def threads_option(default: int | None = 1) -> Callable[[Command], Command]:
    return click.option(
        "--threads", type=click.IntRange(min=1), default=default, show_default=default is not None,
        help="Threads of the CPU kernels.",
    )  # fmt: skip


MODEL_PATH = click.Path(path_type=Path)
