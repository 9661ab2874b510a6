from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgecompress.cli import compress, distill
from edgecompress.cli.convert import command
from edgecompress.cli.passes import recipe_of as recipe_of_options
from edgecompress.command import command_line, compress_command_line, recipe_options
from edgecompress.profiles import RecurrentLowering, load_profile
from edgecompress.recipes import Quantization, Recipe, Verification
from edgecompress.schemes import Algorithm, IoType, Observer, QuantizationScheme
from edgecompress.techniques import Distill, Fuse, LowRank, Prune, Qat, Term, Training

OTHER = {
    "seed": 3,
    "scheme": QuantizationScheme.INT8,
    "algorithm": Algorithm.OCTAV,
    "input_type": IoType.INT8,
    "output_type": IoType.UINT8,
    "recurrent": RecurrentLowering.STEP,
    "observer": Observer.MSE,
    "calibration_samples": 17,
    "samples": 19,
    "max_accuracy_drop": 0.012345678901234567,
    "epochs": 8,
    "batch_size": 16,
    "learning_rate": 3e-05,
    "validation": 0.25,
    "early_stopping": 2,
}


def recipe_with(**changes: Any) -> Recipe:
    parts: dict[str, dict[str, Any]] = {"quantization": {}, "verification": {}, "training": {}}
    for name, value in changes.items():
        for part, model in (("quantization", Quantization), ("verification", Verification), ("training", Training)):
            if name in model.model_fields:
                parts[part][name] = value
    return Recipe(
        seed=changes.get("seed", 0),
        quantization=Quantization(**parts["quantization"]),
        verification=Verification(**parts["verification"]),
        training=Training(**parts["training"]),
    )


def parsed(words: list[str]) -> dict[str, Any]:
    """What the command line makes of these words."""
    return command.make_context("convert", list(words)).params


def recipe_of(params: dict[str, Any]) -> Recipe:
    other = (
        "model profile data train output recipe resume no_benchmark input_shape input_range custom_objects unsafe "
        "as_json quiet"
    )
    settings = {name: value for name, value in params.items() if name not in other.split()}
    recipe = recipe_of_options(params["recipe"], settings)
    assert isinstance(recipe, Recipe)
    return recipe


def words_for(**changes: Any) -> list[str]:
    options: dict[str, Any] = {
        "data": None, "train": None, "output": None, "recipe": Recipe(), "input_shape": {}, "input_range": None,
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
    fields = {"seed", *Quantization.model_fields, *Verification.model_fields, *Training.model_fields}
    assert fields == set(OTHER)
    parts = {"passes", "training", "quantization", "verification"}  # how passes are said: tests/cli/test_passes.py
    assert {*Recipe.model_fields} == {"schema_version", "seed", *parts}


def test_options_overrule_a_recipe_file(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('seed = 5\n[quantization]\nscheme = "int8"\nalgorithm = "mse"\n')
    words = ["model.keras", "--recipe", str(tmp_path / "recipe.toml"), "--scheme", "dynamic", "--verify-samples", "9"]
    expected = recipe_with(seed=5, scheme=QuantizationScheme.DYNAMIC, algorithm=Algorithm.MSE, samples=9)
    assert recipe_of(parsed(words)) == expected


def test_all_that_is_said_is_read_back() -> None:
    words = words_for(
        data="python:samples:load",
        train=Path("train.npz"),
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
    assert params["train"] == "train.npz"
    assert not params["resume"]
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
            Path("models/a.keras"), Path("boards/mine.toml"), data=Path("d.npz"), train=None, output="o",
            recipe=Recipe(), input_shape={}, input_range=None, custom_objects={}, unsafe=False, benchmark=True,
        )
    )  # fmt: skip
    assert words[2:] == ["models/a.keras", "--profile", "boards/mine.toml", "--data", "d.npz", "--output", "o"]


def test_what_is_only_in_memory_is_in_angle_brackets() -> None:
    options: dict[str, Any] = {
        "data": ([1], [2]), "train": None, "output": None, "recipe": Recipe(), "input_shape": {}, "input_range": None,
        "custom_objects": None, "unsafe": False, "benchmark": True,
    }  # fmt: skip
    pixel = load_profile("pixel")
    words = command_line(object(), pixel.model_copy(update={"title": "Mine"}), **options)
    assert words[2:] == ("<model in memory>", "--profile", "<profile pixel in memory>", "--data", "<data in memory>")
    assert command_line(object(), pixel.model_copy(update={"name": "mine"}), **options)[4] == "<profile mine in memory>"
    assert command_line(object(), pixel, **options)[4] == "pixel"


def test_a_compression_says_nothing_of_what_only_a_conversion_uses() -> None:
    recipe = Recipe(
        passes=(Prune(sparsity=0.8),), training=Training(epochs=2), quantization=Quantization(calibration_samples=9)
    )
    words = compress_command_line(
        "model.keras", None, data=None, train="train.npz", output="small.keras", recipe=recipe, input_shape={"": (8,)},
        input_range=None, custom_objects=None, unsafe=True,
    )  # fmt: skip
    said = "compress model.keras --train train.npz --output small.keras --prune 0.8 --epochs 2 --input-shape 8 --unsafe"
    assert list(words) == ["edgecompress", *said.split()]
    assert compress.command.make_context("compress", list(words[2:])).params["train"] == "train.npz"


def test_a_compression_says_its_device_and_how_many_samples_low_rank_looked_at() -> None:
    recipe = Recipe(passes=(LowRank(energy=0.9), Fuse()), quantization=Quantization(calibration_samples=9))
    words = compress_command_line(
        "model.keras", "pixel", data="data.npz", train=None, output=None, recipe=recipe, input_shape={},
        input_range=None, custom_objects=None, unsafe=False,
    )  # fmt: skip
    said = "compress model.keras --profile pixel --data data.npz --low-rank energy=0.9 --fuse --calibration-samples 9"
    assert list(words) == ["edgecompress", *said.split()]
    params = compress.command.make_context("compress", list(words[2:])).params
    assert (params["profile"], params["calibration_samples"], params["fuse"]) == ("pixel", 9, True)


@pytest.mark.parametrize(
    ("words", "student"),
    [
        (["--student", "width=0.5"], None),
        (["--student", "width=0.5,depth=0.5", "--teacher", "other.tflite", "--alpha", "1", "--no-cache"], None),
        (["--student", "small.keras", "--temperature", "2", "--epochs", "3", "--seed", "4"], "small.keras"),
        (["--student", "small.keras", "--loss", "logits", "--loss", "hard_labels,weight=0.5"], "small.keras"),
    ],
)
def test_a_distillation_is_repeated_by_what_it_prints(monkeypatch, words, student) -> None:
    seen: list[tuple[Any, Recipe]] = []
    for module in (distill, compress):
        monkeypatch.setattr(
            module, "compress_and_print", lambda model, _output, recipe, **_: seen.append((model, recipe)) or 0
        )
    distill.command.main(["--teacher", "big.keras", *words, "--train", "t.npz"], standalone_mode=False)
    model, recipe = seen[0]
    assert model == Path(student or "big.keras")
    printed = compress_command_line(
        model, None, data=None, train="t.npz", output="s.keras", recipe=recipe, input_shape={}, input_range=None,
        custom_objects=None, unsafe=False,
    )  # fmt: skip
    compress.command.main(list(printed[2:]), standalone_mode=False)
    assert seen[1] == seen[0]


def test_the_words_of_a_distillation() -> None:
    assert recipe_options(Recipe(passes=(Distill(width=0.5),))) == ["--distill", "width=0.5"]
    assert recipe_options(Recipe(passes=(Distill(teacher="a/big.keras", alpha=1),))) == [
        "--distill", "teacher=a/big.keras,alpha=1.0",
    ]  # fmt: skip
    several = Distill(teacher=("a b.keras", "c.keras"), losses=(Term(kind="logits"),))
    assert recipe_options(Recipe(passes=(several,))) == [
        "--distill", '{teacher = ["a b.keras", "c.keras"], losses = [{"kind" = "logits"}]}',
    ]  # fmt: skip


def test_passes_are_said_in_a_conversion() -> None:
    recipe = Recipe(passes=(Prune(sparsity=0.8), Qat()), training=Training(epochs=2))
    words = words_for(recipe=recipe, train="train.npz")
    assert words[4:] == ["pixel", "--train", "train.npz", "--prune", "0.8", "--qat", "--epochs", "2"]
    assert recipe_of(parsed(words[2:])) == recipe
