from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgecompress.cli.convert import _recipe, command
from edgecompress.command import command_line, recipe_options
from edgecompress.profiles import load_profile
from edgecompress.recipes import Quantization, Recipe, Verification
from edgecompress.schemes import Algorithm, IoType, QuantizationScheme

OTHER = {
    "seed": 3,
    "scheme": QuantizationScheme.INT8,
    "algorithm": Algorithm.OCTAV,
    "input_type": IoType.INT8,
    "output_type": IoType.UINT8,
    "calibration_samples": 17,
    "samples": 19,
    "max_accuracy_drop": 0.012345678901234567,
}


def recipe_with(**changes: Any) -> Recipe:
    parts: dict[str, dict[str, Any]] = {"quantization": {}, "verification": {}}
    for name, value in changes.items():
        for part, model in (("quantization", Quantization), ("verification", Verification)):
            if name in model.model_fields:
                parts[part][name] = value
    return Recipe(
        seed=changes.get("seed", 0),
        quantization=Quantization(**parts["quantization"]),
        verification=Verification(**parts["verification"]),
    )


def parsed(words: list[str]) -> dict[str, Any]:
    """What the command line makes of these words."""
    return command.make_context("convert", list(words)).params


def recipe_of(params: dict[str, Any]) -> Recipe:
    other = "model profile data output recipe no_benchmark input_shape input_range custom_objects unsafe as_json quiet"
    recipe = _recipe(params["recipe"], {name: value for name, value in params.items() if name not in other.split()})
    assert isinstance(recipe, Recipe)
    return recipe


def words_for(**changes: Any) -> list[str]:
    options: dict[str, Any] = {
        "data": None, "output": None, "recipe": Recipe(), "input_shape": {}, "input_range": None,
        "custom_objects": None, "unsafe": False, "benchmark": True,
    }  # fmt: skip
    return list(command_line("model.keras", "pixel", **{**options, **changes}))


def test_defaults_are_not_said() -> None:
    assert recipe_options(Recipe()) == []
    assert words_for() == ["edgecompress", "convert", "model.keras", "--profile", "pixel"]


@pytest.mark.parametrize("changes", [{}, *({name: value} for name, value in OTHER.items()), OTHER])
def test_a_recipe_survives_being_said_and_read(changes: dict[str, Any]) -> None:
    recipe = recipe_with(**changes)
    words = recipe_options(recipe)
    assert len(words) == 2 * len(changes)
    assert recipe_of(parsed(["model.keras", *words])) == recipe


def test_each_field_of_a_recipe_can_be_said() -> None:
    fields = {"seed", *Quantization.model_fields, *Verification.model_fields}
    assert fields == set(OTHER)
    assert {*Recipe.model_fields} == {"schema_version", "seed", "quantization", "verification"}


def test_options_overrule_a_recipe_file(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('seed = 5\n[quantization]\nscheme = "int8"\nalgorithm = "mse"\n')
    words = ["model.keras", "--recipe", str(tmp_path / "recipe.toml"), "--scheme", "dynamic", "--verify-samples", "9"]
    expected = recipe_with(seed=5, scheme=QuantizationScheme.DYNAMIC, algorithm=Algorithm.MSE, samples=9)
    assert recipe_of(parsed(words)) == expected


def test_all_that_is_said_is_read_back() -> None:
    words = words_for(
        data="python:samples:load",
        output=Path("out"),
        recipe=recipe_with(**OTHER),
        input_shape={"image": (224, 224, 3), "steps": [5]},
        input_range=(-2.1179039, 1),
        custom_objects={"dedent": __import__("textwrap").dedent},
        unsafe=True,
        benchmark=False,
    )
    params = parsed(words[2:])
    assert params["model"] == Path("model.keras")
    assert params["profile"] == "pixel"
    assert params["data"] == "python:samples:load"
    assert params["output"] == Path("out")
    assert dict(params["input_shape"]) == {"image": (224, 224, 3), "steps": (5,)}
    assert params["input_range"] == (-2.1179039, 1)
    assert params["custom_objects"] == ("textwrap:dedent",)
    assert params["unsafe"]
    assert params["no_benchmark"]
    assert recipe_of(params) == recipe_with(**OTHER)


def test_a_shape_without_a_name() -> None:
    words = words_for(input_shape={"": (8, 8, 1)})
    assert words[-2:] == ["--input-shape", "8,8,1"]
    assert parsed(words[2:])["input_shape"] == (("", (8, 8, 1)),)


def test_paths_are_written_as_they_were_given() -> None:
    words = list(
        command_line(
            Path("models/a.keras"), Path("boards/mine.toml"), data=Path("d.npz"), output="o", recipe=Recipe(),
            input_shape={}, input_range=None, custom_objects={}, unsafe=False, benchmark=True,
        )
    )  # fmt: skip
    assert words[2:] == ["models/a.keras", "--profile", "boards/mine.toml", "--data", "d.npz", "--output", "o"]


def test_what_is_only_in_memory_is_in_angle_brackets() -> None:
    options: dict[str, Any] = {
        "data": ([1], [2]), "output": None, "recipe": Recipe(), "input_shape": {}, "input_range": None,
        "custom_objects": None, "unsafe": False, "benchmark": True,
    }  # fmt: skip
    pixel = load_profile("pixel")
    words = command_line(object(), pixel.model_copy(update={"title": "Mine"}), **options)
    assert words[2:] == ("<model in memory>", "--profile", "<profile pixel in memory>", "--data", "<data in memory>")
    assert command_line(object(), pixel.model_copy(update={"name": "mine"}), **options)[4] == "<profile mine in memory>"
    assert command_line(object(), pixel, **options)[4] == "pixel"
