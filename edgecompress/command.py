"""The command lines that repeat a conversion or a compression, written into their reports."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgecompress.profiles import Profile, list_profiles, load_profile
from edgecompress.recipes import Quantization, Recipe
from edgecompress.techniques import LowRank, Technique

_RECIPE_OPTIONS = {
    ("seed",): "--seed",
    ("quantization", "scheme"): "--scheme",
    ("quantization", "algorithm"): "--algorithm",
    ("quantization", "input_type"): "--input-type",
    ("quantization", "output_type"): "--output-type",
    ("quantization", "recurrent"): "--recurrent",
    ("quantization", "observer"): "--observer",
    ("quantization", "calibration_samples"): "--calibration-samples",
    ("training", "epochs"): "--epochs",
    ("training", "batch_size"): "--batch-size",
    ("training", "learning_rate"): "--learning-rate",
    ("training", "validation"): "--validation",
    ("training", "early_stopping"): "--early-stopping",
    ("verification", "samples"): "--verify-samples",
    ("verification", "max_accuracy_drop"): "--max-accuracy-drop",
}
# The option of each kind of pass, in the order that options have.
_PASS_OPTIONS = {
    "distill": "--distill",
    "low_rank": "--low-rank",
    "fuse": "--fuse",
    "prune": "--prune",
    "cluster": "--cluster",
    "qat": "--qat",
}
_MAIN_FIELDS = {"prune": "sparsity", "cluster": "clusters"}  # said first, and without a key
_FLAGS = ("fuse", "qat")  # whose fields have an option of their own
# What stays a word when an option is read: no number, date, true, inf or the like, no comma, quote or bracket.
_WORD = re.compile(r"(?!(?:true|false|inf|nan)$)[A-Za-z_./][\w./-]*|\d+:\d+", re.ASCII)


def command_line(  # noqa: PLR0913 (each is one option of the command line)
    model: object,
    profile: object,
    *,
    data: object,
    train: object,
    output: object,
    recipe: Recipe,
    input_shape: Mapping[str, Sequence[int]],
    input_range: tuple[float, float] | None,
    custom_objects: Mapping[str, Any] | None,
    unsafe: bool,
    benchmark: bool,
) -> tuple[str, ...]:
    """Returns the words of an `edgecompress convert` command; what is only in memory is shown in angle brackets."""
    words = ["edgecompress", "convert", _path(model, "model"), "--profile", _profile(profile)]
    words += _data_options(data, train, output)
    words += recipe_options(recipe)
    words += _reading_options(input_shape, input_range, custom_objects, unsafe=unsafe)
    words += [] if benchmark else ["--no-benchmark"]
    return tuple(words)


def compress_command_line(  # noqa: PLR0913 (each is one option of the command line)
    model: object,
    profile: object,
    *,
    data: object,
    train: object,
    output: object,
    recipe: Recipe,
    input_shape: Mapping[str, Sequence[int]],
    input_range: tuple[float, float] | None,
    custom_objects: Mapping[str, Any] | None,
    unsafe: bool,
) -> tuple[str, ...]:
    """Returns the words of an `edgecompress compress` command, likewise; what only `convert` uses is left out."""
    samples = {"calibration_samples"} if any(isinstance(each, LowRank) for each in recipe.passes) else set()
    used = recipe.model_copy(update={"quantization": Quantization(**recipe.quantization.model_dump(include=samples))})
    words = ["edgecompress", "compress", _path(model, "model")]
    words += [] if profile is None else ["--profile", _profile(profile)]
    words += _data_options(data, train, output)
    words += recipe_options(used)
    words += _reading_options(input_shape, input_range, custom_objects, unsafe=unsafe)
    return tuple(words)


def recipe_options(recipe: Recipe) -> list[str]:
    """Returns the options that say what a recipe says, the defaults left out.

    Options have one order, and one of a kind; passes in another order, or twice, cannot be said with them.
    """
    kinds = [each.kind for each in recipe.passes]
    if kinds != [kind for kind in _PASS_OPTIONS if kind in kinds]:
        return ["--recipe", "<recipe in memory>"]
    words = [word for each in recipe.passes for word in _pass_options(each)]
    said, default = recipe.model_dump(mode="json"), Recipe().model_dump(mode="json")
    for path, option in _RECIPE_OPTIONS.items():
        value, usual = _at(said, path), _at(default, path)
        if value != usual:
            words += [option, str(value)]
    return words


def _pass_options(technique: Technique) -> list[str]:
    """Returns the option of a pass: its main value alone, that and `key=value` pairs, or a TOML inline table."""
    option, main = _PASS_OPTIONS[technique.kind], _MAIN_FIELDS.get(technique.kind)
    fields = technique.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    if technique.kind in _FLAGS:
        return [option, *([f"{option}-options", _inline(fields)] if fields else [])]
    if fields.keys() == {"pattern"}:
        return [option, fields["pattern"]]
    if main is not None:
        fields = {main: getattr(technique, main), **fields}
    if not fields or not all(map(_is_plain, fields.values())):
        return [option, _inline(fields)]
    pairs = {key: value if isinstance(value, str) else _toml(value) for key, value in fields.items()}
    return [option, ",".join(value if key == main else f"{key}={value}" for key, value in pairs.items())]


def _is_plain(value: Any) -> bool:
    """Whether a value can stand in `key=value` pairs, where words have no quotes."""
    return not isinstance(value, (dict, list)) and (not isinstance(value, str) or _WORD.fullmatch(value) is not None)


def _inline(fields: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key} = {_toml(value)}" for key, value in fields.items()) + "}"


def _toml(value: Any) -> str:
    """Writes a value as TOML, whose strings, numbers and lists are those of JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _data_options(data: object, train: object, output: object) -> list[str]:
    given = {"--data": (data, "data"), "--train": (train, "training data"), "--output": (output, "output")}
    return [word for option, (item, kind) in given.items() if item is not None for word in (option, _path(item, kind))]


def _reading_options(
    input_shape: Mapping[str, Sequence[int]],
    input_range: tuple[float, float] | None,
    custom_objects: Mapping[str, Any] | None,
    *,
    unsafe: bool,
) -> list[str]:
    words: list[str] = []
    for name, shape in input_shape.items():
        sizes = ",".join(str(size) for size in shape)
        words += ["--input-shape", f"{name}={sizes}" if name else sizes]
    if input_range is not None:
        words += ["--input-range", ",".join(str(bound) for bound in input_range)]
    for name, item in (custom_objects or {}).items():
        words += ["--custom-objects", f"{item.__module__}:{name}"]
    return [*words, "--unsafe"] if unsafe else words


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def _path(item: object, kind: str) -> str:
    return os.fspath(item) if isinstance(item, (str, os.PathLike)) else f"<{kind} in memory>"


def _profile(profile: object) -> str:
    if not isinstance(profile, Profile):
        return str(profile)
    bundled = profile.name in list_profiles() and load_profile(profile.name) == profile
    return profile.name if bundled else f"<profile {profile.name} in memory>"
