from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from edgecompress.errors import RecipeError
from edgecompress.recipes import Quantization, Recipe, Verification, load_recipe
from edgecompress.schemes import Algorithm, IoType, QuantizationScheme
from edgecompress.techniques import Prune, Qat, Training

WHOLE = """
schema_version = 1
seed = 7
[[passes]]
kind = "prune"
sparsity = 0.8
layers = { "conv.*" = 0.9 }
[[passes]]
kind = "qat"
exclude = ["head"]
[training]
epochs = 8
learning_rate = 1e-4
[quantization]
scheme = "int16x8"
algorithm = "mse"
input_type = "int16"
output_type = "float32"
calibration_samples = 50
[verification]
samples = 60
max_accuracy_drop = 0.01
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


def refusal(path: str | Path) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


def test_a_whole_recipe(tmp_path: Path) -> None:
    assert load_recipe(str(write(tmp_path, WHOLE))) == Recipe(
        seed=7,
        passes=(Prune(sparsity=0.8, layers={"conv.*": 0.9}), Qat(exclude=("head",))),
        training=Training(epochs=8, learning_rate=1e-4),
        quantization=Quantization(
            scheme=QuantizationScheme.INT16X8,
            algorithm=Algorithm.MSE,
            input_type=IoType.INT16,
            output_type=IoType.FLOAT32,
            calibration_samples=50,
        ),
        verification=Verification(samples=60, max_accuracy_drop=0.01),
    )


@pytest.mark.parametrize("text", ["", "[quantization]\n[verification]\n", '[quantization]\nscheme = "auto"\n'])
def test_what_is_left_out_gets_the_defaults(tmp_path: Path, text: str) -> None:
    recipe = load_recipe(write(tmp_path, text))
    assert recipe == Recipe()
    assert recipe.quantization.scheme == "auto"
    assert recipe.quantization.algorithm is Algorithm.MIN_MAX
    assert recipe.verification.max_accuracy_drop is None


def test_the_ends_of_the_ranges(tmp_path: Path) -> None:
    text = "seed = 0\n[quantization]\ncalibration_samples = 1\n[verification]\nmax_accuracy_drop = {}\n"
    assert load_recipe(write(tmp_path, text.format(0))).verification.max_accuracy_drop == 0
    assert load_recipe(write(tmp_path, text.format(1.0))).verification.max_accuracy_drop == 1


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(WHOLE, "utf-8-sig")
    assert load_recipe(path).seed == 7


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().seed = 1  # type: ignore[misc]


def test_a_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nothing.toml").endswith("no such file. Fix: check the path given to --recipe")


def test_a_folder(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert "cannot be read: Is a directory. Fix: give the path of a .toml file" in message


def test_a_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"TFL3\xff\xfe\x00\x80")
    assert "is not a text file. Fix: give a .toml file" in refusal(path)


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, WHOLE.replace("seed = 7", "seed: 7")))
    assert "not valid TOML" in message
    assert "line 3" in message
    assert "Fix: correct that line" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("seed = 7", "sede = 7"), ["unknown key 'sede'", "did you mean 'seed'?"]),
        (("[quantization]", "[quantisation]"), ["unknown key 'quantisation'", "did you mean 'quantization'?"]),
        (("algorithm", "algoritm"), ["unknown key 'quantization.algoritm'", "did you mean 'algorithm'?"]),
        (("max_accuracy_drop", "max_drop"), ["unknown key 'verification.max_drop'", "Allowed: max_accuracy_drop"]),
        (('"int16x8"', '"int9"'), ["'quantization.scheme'", "unknown value 'int9'", "did you mean 'int8'?", "auto"]),
        (('"int16x8"', "8"), ["'quantization.scheme' has the unknown value 8", "Allowed: auto, dynamic"]),
        (('"mse"', '"msse"'), ["'quantization.algorithm'", "did you mean 'mse'?"]),
        (('"int16"', '"int4"'), ["'quantization.input_type'", "'int4'", "Allowed: float32, int16, int8, uint8"]),
        (("seed = 7", 'seed = "7"'), ["'seed'", "valid integer; received '7' (str)"]),
        (("seed = 7", "seed = true"), ["'seed'", "valid integer; received True (bool)"]),
        (("seed = 7", "seed = 7.0"), ["'seed'", "valid integer; received 7.0 (float)"]),
        (("seed = 7", "seed = -1"), ["'seed'", "greater than or equal to 0; received -1 (int)"]),
        (("= 50", '= "200"'), ["'quantization.calibration_samples'", "valid integer; received '200' (str)"]),
        (("= 50", "= true"), ["'quantization.calibration_samples'", "valid integer; received True (bool)"]),
        (("= 50", "= 0"), ["'quantization.calibration_samples'", "greater than 0; received 0 (int)"]),
        (("= 60", "= 60.5"), ["'verification.samples'", "valid integer; received 60.5 (float)"]),
        (("= 0.01", "= 1.5"), ["'verification.max_accuracy_drop'", "less than or equal to 1; received 1.5 (float)"]),
        (("= 0.01", "= -0.1"), ["'verification.max_accuracy_drop'", "greater than or equal to 0"]),
        (("= 0.01", '= "1%"'), ["'verification.max_accuracy_drop'", "valid number; received '1%' (str)"]),
        (("= 0.01", "= true"), ["'verification.max_accuracy_drop'", "valid number; received True (bool)"]),
        (("= 0.01", "= nan"), ["'verification.max_accuracy_drop'", "received nan (float)"]),
        (("sparsity = 0.8", "sparsty = 0.8"), ["unknown key 'passes.0.sparsty'", "did you mean 'sparsity'?"]),
        (("sparsity = 0.8", "sparsity = 1.0"), ["'passes.0.sparsity'", "less than 1; received 1.0 (float)"]),
        (('kind = "prune"', 'kind = "prun"'), ["key 'passes.0.kind'", "'prun'", "did you mean 'prune'?"]),
        (('kind = "prune"\n', ""), ["key 'passes.0.kind' is missing"]),
        (("epochs = 8", "epochs = 0"), ["'training.epochs'", "greater than 0; received 0 (int)"]),
        (("epochs = 8", "epoch = 8"), ["unknown key 'training.epoch'", "did you mean 'epochs'?"]),
        (("= 1e-4", "= 0"), ["'training.learning_rate'", "greater than 0"]),
        (('["head"]', '["("]'), ["'passes.1.exclude'", "'(' is not a regular expression"]),
        (("schema_version = 1", "schema_version = 2"), ["'schema_version' has the unknown value 2", "Allowed: 1"]),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_is_named_with_its_remedy(
    tmp_path: Path, change: tuple[str, str], words: list[str]
) -> None:
    assert WHOLE.count(change[0]) == 1
    message = refusal(write(tmp_path, WHOLE.replace(*change)))
    for word in words:
        assert word in message


def test_qat_must_be_the_last_pass(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, '[[passes]]\nkind = "qat"\n[[passes]]\nkind = "prune"\n'))
    assert "key 'passes': 'qat' must be the last pass" in message
    assert Recipe(passes=(Prune(), Qat())).qat == Qat()
    assert Recipe(passes=(Prune(),)).qat is None


def test_a_part_that_is_no_table(tmp_path: Path) -> None:
    assert "key 'quantization' must be a table; received 8 (int)" in refusal(write(tmp_path, "quantization = 8"))
