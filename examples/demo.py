"""Trains a small CNN and a small GRU on handwritten digits and converts both for a phone, the CNN also compressed.

Run by `make demo`.

usage: demo.py [epochs]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EPOCHS = sys.argv[1] if len(sys.argv) > 1 else "30"
EPOCHS_A_PASS = str(max(1, int(EPOCHS) // 4))
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
    train = ["--train", "digits_cnn-train.npz", "--prune", "0.6", "--cluster", "16", "--qat", "--epochs", EPOCHS_A_PASS]
    for name, more in (
        ("digits_cnn", []),
        ("digits_gru", []),
        ("digits_cnn", [*train, "--output", "digits_cnn-small"]),
    ):
        options = ["convert", f"{name}.keras", "--profile", "pixel", "--data", f"{name}.npz", *more]
        print(f"\n$ edgecompress {' '.join(options)}", flush=True)
        subprocess.run([program, *options], cwd=FOLDER, check=True)


if __name__ == "__main__":
    main()
