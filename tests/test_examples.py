import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_demo_converts_both_networks(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "demo.py", "1"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "digits_cnn.keras" in done.stdout
    assert "for pixel: int8" in done.stdout
    assert "for pixel: dynamic" in done.stdout
    assert "16 distinct values" in done.stdout
    for folder, name in (
        ("digits_cnn-pixel", "digits_cnn"),
        ("digits_gru-pixel", "digits_gru"),
        ("digits_cnn-small", "digits_cnn"),
    ):
        assert (tmp_path / "demo" / folder / f"{name}.tflite").is_file()


def test_compression_from_python(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "compression.py", "1"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "80 % of conv_2 are zero" in done.stdout
    assert (tmp_path / "digits_cnn-host" / "digits_cnn.tflite").is_file()
