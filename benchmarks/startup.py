"""How long `edgecompress --help` and the other quick commands take to answer; medians of fresh processes.

usage: startup.py [--runs 15] [--save FILE]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from results import save_results

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "edgecompress --help": ["--help"],
    "edgecompress convert --help": ["convert", "--help"],
    "edgecompress profiles list": ["profiles", "list"],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    program = str(Path(sys.executable).with_name("edgecompress"))
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.runs):
        for name, words in COMMANDS.items():
            command = [program, *words] if name.startswith("edgecompress") else words
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            found[name].append(time.perf_counter() - start)
    rows = {name: statistics.median(seconds) for name, seconds in found.items()}
    for name, seconds in rows.items():
        print(f"{name:32}{seconds * 1000:8.0f} ms")
    save_results(options.save, {"median_seconds": rows})


if __name__ == "__main__":
    main()
