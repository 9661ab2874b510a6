"""The options that say what is done to a model: passes, their training, and the recipe file that says the same."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgecompress.cli.options import MODEL_PATH

if TYPE_CHECKING:
    from pydantic import BaseModel

    from edgecompress.recipes import Recipe

Command = TypeVar("Command", bound=Callable[..., Any])
Model = TypeVar("Model", bound="BaseModel")

# A comma before `key=`, outside of brackets.
_BETWEEN_FIELDS = re.compile(r",(?![^\[{]*[\]}])(?=\s*[\w-]+\s*=)")
_FIELD = re.compile(r"\s*([\w-]+)\s*=\s*(.*)", re.DOTALL)
# Where the settings live in a recipe, whose keys have these names; the others are keys of [quantization].
_HOMES = {
    "verify_samples": ("verification", "samples"),
    "max_accuracy_drop": ("verification", "max_accuracy_drop"),
    **{key: ("training", key) for key in ("epochs", "batch_size", "learning_rate", "validation", "early_stopping")},
}


class PassFields(click.ParamType[dict[str, Any]]):
    """The fields of a pass: its main one alone, `key=value` pairs, or a TOML inline table.

    Args:
        read_main: Turns a value without a key into fields, or returns None.
        example: What the error for anything else shows.
    """

    name = "value"

    def __init__(self, read_main: Callable[[str], dict[str, Any] | None], example: str) -> None:
        self._read_main = read_main
        self._example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        fields = self._read(value.strip())
        if fields is None:
            self.fail(f"{value!r} is not a value such as {self._example}", param, ctx)
        return fields

    def _read(self, text: str) -> dict[str, Any] | None:
        if text.startswith("{"):
            table = _toml(text)
            return table if isinstance(table, dict) else None
        fields: dict[str, Any] = {}
        for number, part in enumerate(_BETWEEN_FIELDS.split(text)):
            pair = _FIELD.fullmatch(part)
            if pair is not None:
                value = _toml(pair[2])
                fields[pair[1]] = pair[2].strip() if value is None else value
                continue
            main = self._read_main(part) if number == 0 else None
            if main is None:
                return None
            fields |= main
        return fields


def _toml(text: str) -> Any:
    """Returns a TOML value, or None for what is none: a bare word."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _read_low_rank(text: str) -> dict[str, Any] | None:
    if text.strip() == "evbmf":
        return {"evbmf": True}
    value = _toml(text)
    return {"rank" if isinstance(value, int) else "ratio": value} if _is_number(value) else None


def _read_prune(text: str) -> dict[str, Any] | None:
    if re.fullmatch(r"\d+:\d+", text):
        return {"pattern": text}
    value = _toml(text)
    return {"sparsity": value} if _is_number(value) else None


def _read_cluster(text: str) -> dict[str, Any] | None:
    value = _toml(text)
    return {"clusters": value} if _is_number(value) else None


_LOW_RANK = PassFields(
    _read_low_rank, "energy=0.95, rank=16, ratio=0.25, evbmf, 16, 0.25 or {energy=0.95, layers={'conv.*'=0}}"
)
_DISTILL = PassFields(lambda _text: None, "width=0.5, width=0.5,alpha=0.9 or {teacher='big.keras', temperature=2.0}")
_FUSE = PassFields(lambda _text: None, "embedding=speed or {linear=false}")
_PRUNE = PassFields(_read_prune, "0.8, 2:4, sparsity=0.8,schedule=constant or {sparsity=0.8, layers={'conv.*'=0.9}}")
_CLUSTER = PassFields(_read_cluster, "16, clusters=16,centroids=linear or {clusters=16, layers={'conv.*'=8}}")
_QAT = PassFields(lambda _text: None, "preserve_sparsity=false or {exclude=['head']}")


low_rank_option = click.option(
    "--low-rank", type=_LOW_RANK,
    help="Factorize kernels: energy=0.95, rank=16, ratio=0.25, params_budget=0.5, flops_budget=0.5, evbmf, key=value,…",
)  # fmt: skip


def pass_options(command: Command) -> Command:
    """Adds the passes, how they train, on what, and the recipe file; `recipe_of` makes a recipe of their values."""
    command = training_options(command)
    for decorate in reversed((
        click.option("--recipe", type=MODEL_PATH, help="TOML file that says all this; options given here overrule it."),
        click.option(
            "--distill", type=_DISTILL,
            help="Train a student of the model in its place: width=0.5, depth=0.5, key=value,…",
        ),
        low_rank_option,
        click.option("--fuse", is_flag=True, help="Merge layers that can be one, where nothing is lost."),
        click.option("--fuse-options", type=_FUSE, help="Fields of the --fuse pass, key=value,… Implies --fuse."),
        click.option(
            "--prune", type=_PRUNE, help="Set weights to zero: a share such as 0.8, a pattern such as 2:4, key=value,…"
        ),
        click.option(
            "--cluster", type=_CLUSTER, help="Let the weights of a kernel share so many values, e.g. 16, or key=value,…"
        ),
        click.option("--qat", is_flag=True, help="Train with quantization simulated; the last pass."),
        click.option("--qat-options", type=_QAT, help="Fields of the --qat pass, key=value,… Implies --qat."),
    )):  # fmt: skip
        command = decorate(command)
    return command


def training_options(command: Command) -> Command:
    """Adds how passes train, and on what."""
    for decorate in reversed((
        click.option("--train", metavar="DATA", help="Labelled samples to train on, as --data takes them."),
        click.option("--epochs", type=click.IntRange(min=1), help="Of each pass that trains. Default: 5."),
        click.option("--batch-size", type=click.IntRange(min=1), help="Samples a training step. Default: 32."),
        click.option(
            "--learning-rate", type=click.FloatRange(min=0, min_open=True), help="Default: the model's, or 0.001."
        ),
        click.option(
            "--validation", type=click.FloatRange(0, 0.5),
            help="Share of the training samples that judges the epochs, at most 0.5. Default: 0.1.",
        ),
        click.option(
            "--early-stopping", type=click.IntRange(min=1), help="Stop after so many epochs without a better loss."
        ),
        click.option("--resume", is_flag=True, help="Go on from the checkpoints of a run that was ended."),
        click.option("--seed", type=click.IntRange(min=0), help="Seed of every random choice. Default: 0."),
    )):  # fmt: skip
        command = decorate(command)
    return command


def recipe_of(path: Path | None, settings: dict[str, Any]) -> Recipe:
    """Returns the recipe file's recipe, or the default one, with what the options say in its place.

    Args:
        path: The recipe file, or None.
        settings: Values of the options by their names, None for those that were not given.

    Raises:
        RecipeError: The file is no recipe.
        UsageError: An option has a wrong field or value, or one that does not go with the others or the file.
    """
    from pydantic import ValidationError

    from edgecompress.errors import UsageError
    from edgecompress.recipes import Recipe, load_recipe
    from edgecompress.schemas import explain_validation_error

    given = {key: value for key, value in settings.items() if value is not None}
    recipe = (load_recipe(path) if path is not None else Recipe()).model_dump()
    recipe["passes"] = _passes(recipe["passes"], given)
    for key, value in given.items():
        if key == "seed":
            recipe["seed"] = value
        else:
            part, name = _HOMES.get(key, ("quantization", key))
            recipe[part][name] = value
    try:
        return Recipe.model_validate(recipe)
    except ValidationError as error:
        where = "the options" if path is None else f"{path} with the options"
        raise UsageError(explain_validation_error(error, Recipe), where=where) from None


def _passes(passes: tuple[dict[str, Any], ...], given: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the recipe's passes with those of the options, which are taken out of `given`."""
    from edgecompress.techniques import Cluster, Distill, Fuse, LowRank, Prune, Qat

    options: tuple[tuple[type[BaseModel], str, dict[str, Any] | None], ...] = (
        (Distill, "--distill", given.pop("distill", None)),
        (LowRank, "--low-rank", given.pop("low_rank", None)),
        (Fuse, "--fuse-options", _flag(given, "fuse")),
        (Prune, "--prune", given.pop("prune", None)),
        (Cluster, "--cluster", given.pop("cluster", None)),
        (Qat, "--qat-options", _flag(given, "qat")),
    )
    order = [technique.model_fields["kind"].default for technique, _, _ in options]
    result = list(passes)
    for technique, option, fields in options:
        if fields is not None:
            _overrule(result, order, technique, option, fields)
    return result


def _flag(given: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Takes a flag and the option of its fields out of `given`; returns the fields, None if neither was given."""
    is_given, fields = given.pop(name, False), given.pop(f"{name}_options", None)
    return {} if is_given and fields is None else fields


def _overrule(
    passes: list[dict[str, Any]], order: list[str], technique: type[BaseModel], option: str, fields: dict[str, Any]
) -> None:
    """Replaces fields of the recipe's pass of this kind; without one, adds the pass at its place in the order."""
    from edgecompress.errors import UsageError
    from edgecompress.techniques import RANK_CHOICES

    kind = technique.model_fields["kind"].default
    same = [index for index, each in enumerate(passes) if each["kind"] == kind]
    if len(same) > 1:
        raise UsageError(
            f"the recipe has {len(same)} passes of the kind {kind!r}, and {option} does not say which it means",
            fix="change it in the recipe file",
        )
    base = passes[same[0]] if same else {}
    if kind == "low_rank" and fields.keys() & set(RANK_CHOICES):
        # A pass has one way of choosing ranks: an option's takes the place of the recipe's.
        base = {key: value for key, value in base.items() if key not in RANK_CHOICES}
    checked = technique_of(technique, option, {**base, **fields}).model_dump()
    if same:
        passes[same[0]] = checked
        return
    later = (index for index, each in enumerate(passes) if order.index(each["kind"]) > order.index(kind))
    passes.insert(next(later, len(passes)), checked)


def technique_of(technique: type[Model], option: str, fields: dict[str, Any] | None) -> Model:
    """Returns the pass of an option's fields; None stands for its defaults.

    Raises:
        UsageError: A field or value is wrong.
    """
    from pydantic import ValidationError

    from edgecompress.errors import UsageError
    from edgecompress.schemas import explain_validation_error

    try:
        return technique.model_validate(fields or {})
    except ValidationError as error:
        raise UsageError(explain_validation_error(error, technique), where=option) from None
