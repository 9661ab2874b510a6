import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
WHEELS = Path(os.environ.get("EDGECOMPRESS_TEST_WHEELS", ROOT / ".venv" / "wheels"))


def run(example, folder, *arguments):
    """Runs an example with one epoch in a folder, and returns what it printed."""
    command = [sys.executable, EXAMPLES / example, "1", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers_after(words, text):
    """Returns the numbers in the rest of the line in which some words stand."""
    (rest,) = re.findall(f"{re.escape(words)}(.*)", text)
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", rest)]


def test_the_demo_converts_both_networks(tmp_path: Path) -> None:
    printed = run("demo.py", tmp_path)
    assert "digits_cnn.keras" in printed
    assert "for pixel: int8" in printed
    assert "digits_gru.keras" in printed
    assert "int8 (loop)" in printed
    assert "16 distinct values" in printed
    for folder, name in (
        ("digits_cnn-pixel", "digits_cnn"),
        ("digits_gru-pixel", "digits_gru"),
        ("digits_cnn-small", "digits_cnn"),
    ):
        assert (tmp_path / "demo" / folder / f"{name}.tflite").is_file()


def test_compression_from_python(tmp_path: Path) -> None:
    assert "80 % of conv_2 are zero" in run("compression.py", tmp_path)
    assert (tmp_path / "digits_cnn-host" / "digits_cnn.tflite").is_file()


def test_a_low_rank_linear_layer_loses_less_if_it_knows_its_inputs(tmp_path: Path) -> None:
    printed = run("low_rank_linear.py", tmp_path)
    for rank in (8, 32):
        (aware, _), (plain, _) = (
            numbers_after(f"rank {rank}, {how}: output error", printed) for how in ("activation-aware", "plain SVD")
        )
        assert 0 < aware < plain
    sizes = [numbers_after(f"rank {rank}: ", printed)[0] for rank in (8, 32)]
    assert sizes == sorted(sizes)
    assert sizes[-1] < numbers_after("% right,", printed)[0] / 4


def test_a_factorized_layer_is_nearer_with_its_residual(tmp_path: Path) -> None:
    printed = run("factorized.py", tmp_path)
    dense, *_, packed_dense = numbers_after("dense: ", printed)
    alone, residual = (numbers_after(f"rank {how}: ", printed) for how in ("21, residual of 0%", "16, residual of 2%"))
    assert alone[0] == residual[0] < dense / 10
    assert residual[1] < alone[1]
    assert max(alone[-1], residual[-1]) < packed_dense / 3


def test_a_gru_that_judges_sentences_becomes_small(tmp_path: Path) -> None:
    package = WHEELS / "vaderSentiment-0.5.zip"
    if not package.is_file():
        pytest.skip(f"no {package}: run `make setup`, or set EDGECOMPRESS_TEST_WHEELS")
    printed = run("sentiment.py", tmp_path, package)
    weights, whole = numbers_after("gru: joint, rank 16 of 64 and rank 16 of 128: ", printed)[:2]
    assert weights < whole / 4
    assert "meaning + gru: partial" in printed
    before, after = numbers_after("int8: ", printed)
    assert after < before / 10
    (samples,) = numbers_after("accuracy on", printed.partition(" other sentences")[0])
    assert samples >= 1500
    assert min(numbers_after("other sentences: ", printed)) > 65
    assert (tmp_path / "sentiment-host" / "sentiment.tflite").is_file()


def test_a_gru_reads_digits_row_by_row(tmp_path: Path) -> None:
    printed = run("streaming.py", tmp_path)
    (loop, whole), (step, _) = (numbers_after(f"{form}: ", printed) for form in ("loop", "step"))
    assert step < loop < 0.4 * whole
    assert len(re.findall(r"\d \(\d+%\)", printed)) == 8
    same, answers = numbers_after("the whole sequence: ", printed)
    assert same == answers > 1


def test_a_tflite_file_teaches_without_labels(tmp_path: Path) -> None:
    printed = run("distillation.py", tmp_path)
    assert 0 < numbers_after("student: ", printed)[0] < 12.5
    assert numbers_after("shipped int8 file: ", printed)[0] > 50
    assert numbers_after("1,200 answers of the file: ", printed)[0] > 15  # after one epoch; chance is 10
    assert (tmp_path / "shipped" / "digits_teacher.tflite").is_file()


def test_without_the_sentences_the_example_says_where_to_get_them(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "sentiment.py", "1", tmp_path / "absent.zip"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "absent.zip is missing: run `make setup`, or `pip download" in done.stderr
