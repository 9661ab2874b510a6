"""Child process: runs a .tflite file in tflite-micro. Started by `run_micro`."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgecompress.benchmark.runner import save_arrays
from edgecompress.isolate import Progress, serve_one_job


def run_file(job: dict[str, Any], _progress: Progress) -> dict[str, Any]:
    """Runs `job["file"]` on `count` samples in the .npz file `samples` and writes the outputs to `results`, another.

    `inputs` and `outputs` say at which place of the file's own each name is. Allocations are printed to stderr, by
    native code; a refusal comes back as {"error": text}, its reason on stderr, too.
    """
    from tflite_micro.python.tflite_micro import runtime

    with np.load(job["samples"]) as file:
        samples = {place: file[name] for name, place in job["inputs"].items()}
    results: dict[str, list[Any]] = {name: [] for name in job["outputs"]}
    try:
        interpreter = runtime.Interpreter.from_file(job["file"], arena_size=job["arena_bytes"])
        for index in range(job["count"]):
            interpreter.reset()  # what variable tensors remember
            for place, values in samples.items():
                interpreter.set_input(values[index : index + 1], place)
            interpreter.invoke()
            for name, place in job["outputs"].items():
                results[name].append(interpreter.get_output(place))
    except RuntimeError as error:
        return {"error": str(error)}
    interpreter.print_allocations()
    save_arrays(job["results"], {name: np.concatenate(values) for name, values in results.items()})
    return {}


if __name__ == "__main__":
    serve_one_job(run_file)
