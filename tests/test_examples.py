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
    for name in ("digits_cnn", "digits_gru"):
        assert (tmp_path / "demo" / f"{name}-pixel" / f"{name}.tflite").is_file()
