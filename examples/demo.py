"""Trains a small CNN and a small GRU on handwritten digits and converts both for a phone. Run by `make demo`.

usage: demo.py [epochs]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EPOCHS = sys.argv[1] if len(sys.argv) > 1 else "30"
FOLDER = Path("demo")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    print("Training a CNN and a GRU on 1,200 handwritten digits ...", flush=True)
    script = Path(__file__).with_name("digits.py")
    # TensorFlow's start-up messages are kept back; if the training fails they are shown.
    training = subprocess.run([sys.executable, script, FOLDER, EPOCHS], capture_output=True, text=True, check=False)
    if training.returncode != 0:
        raise SystemExit(training.stderr)
    program = Path(sys.executable).with_name("edgecompress").absolute()
    for name in ("digits_cnn", "digits_gru"):
        options = ["convert", f"{name}.keras", "--profile", "pixel", "--data", f"{name}.npz"]
        print(f"\n$ edgecompress {' '.join(options)}", flush=True)
        subprocess.run([program, *options], cwd=FOLDER, check=True)


if __name__ == "__main__":
    main()
