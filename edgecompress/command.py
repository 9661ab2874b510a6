"""The command line that repeats a conversion, written into its report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from edgecompress.profiles import Profile, list_profiles, load_profile
from edgecompress.recipes import Recipe

_RECIPE_OPTIONS = {
    ("seed",): "--seed",
    ("quantization", "scheme"): "--scheme",
    ("quantization", "algorithm"): "--algorithm",
    ("quantization", "input_type"): "--input-type",
    ("quantization", "output_type"): "--output-type",
    ("quantization", "calibration_samples"): "--calibration-samples",
    ("verification", "samples"): "--verify-samples",
    ("verification", "max_accuracy_drop"): "--max-accuracy-drop",
}


def command_line(  # noqa: PLR0913 (each is one option of the command line)
    model: object,
    profile: object,
    *,
    data: object,
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
    if data is not None:
        words += ["--data", _path(data, "data")]
    if output is not None:
        words += ["--output", _path(output, "output")]
    words += recipe_options(recipe)
    for name, shape in input_shape.items():
        sizes = ",".join(str(size) for size in shape)
        words += ["--input-shape", f"{name}={sizes}" if name else sizes]
    if input_range is not None:
        words += ["--input-range", ",".join(str(bound) for bound in input_range)]
    for name, item in (custom_objects or {}).items():
        words += ["--custom-objects", f"{item.__module__}:{name}"]
    words += ["--unsafe"] if unsafe else []
    words += [] if benchmark else ["--no-benchmark"]
    return tuple(words)


def recipe_options(recipe: Recipe) -> list[str]:
    """Returns the options that say what a recipe says, the defaults left out."""
    said, default = recipe.model_dump(mode="json"), Recipe().model_dump(mode="json")
    words: list[str] = []
    for path, option in _RECIPE_OPTIONS.items():
        value, usual = _at(said, path), _at(default, path)
        if value != usual:
            words += [option, str(value)]
    return words


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
