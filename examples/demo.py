"""Trains a small CNN and a small GRU on handwritten digits and converts both for a phone. Run by `make demo`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before Keras starts TensorFlow

from digits import make_cnn, make_gru, train

EPOCHS = 30


def main() -> None:
    folder = Path("demo")
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    for build, as_rows in ((make_cnn, False), (make_gru, True)):
        model = build()
        print(f"training {model.name} ...", flush=True)
        model_file, data_file = train(model, as_rows=as_rows, epochs=EPOCHS, folder=Path())
        command = ["edgecompress", "convert", str(model_file), "--profile", "pixel", "--data", str(data_file)]
        print(f"\n$ {' '.join(command)}", flush=True)
        subprocess.run([Path(sys.executable).with_name("edgecompress"), *command[1:]], check=True)
        print()


if __name__ == "__main__":
    main()
