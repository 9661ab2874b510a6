"""Time of each operator, from LiteRT's own profiler, run in a child process.

The profiler counts whole microseconds, so a kernel that takes less shows as 0 in that run. It also costs time at each
event, which loops of small operators feel most: their WHILE can take many times as long as it does without it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from edgecompress.benchmark.child import first_complaint, read_document
from edgecompress.benchmark.litert_c import Event, Profiler
from edgecompress.benchmark.measurement import OpTiming
from edgecompress.errors import UnavailableError
from edgecompress.isolate import run_command

_STEP, _BUILTIN, _DELEGATE = 1, 2, 8  # kinds of events
_WARMUPS = 3


def profile_ops(model: Path, *, threads: int = 1, runs: int = 20, time_limit_s: float = 300.0) -> tuple[OpTiming, ...]:
    """Returns the mean time of each operator on this machine's CPU.

    The file runs through LiteRT's CompiledModel with XNNPACK, on random inputs.

    Args:
        model: The .tflite file.
        threads: Threads for the CPU kernels.
        runs: Runs to take the mean of, after three warm-ups.
        time_limit_s: Seconds after which the process is ended.

    Returns:
        The operators in the order of execution; those of loops and branches after those of the model itself.

    Raises:
        UnavailableError: LiteRT is missing or another version than expected, or cannot profile this file.
    """
    command = [sys.executable, "-P", "-m", __name__, str(model), "--threads", str(threads), "--runs", str(runs)]
    outcome = run_command(command, time_limit_s=time_limit_s)
    document = read_document(outcome)
    if document is None:
        reason = f"LiteRT's profiler {outcome.how_it_ended}"
    elif "ops" in document:
        return tuple(OpTiming.model_validate(op) for op in document["ops"])
    else:
        reason = document["unavailable"]
    raise UnavailableError(f"no operator profile: {reason}", where=model, received=first_complaint(outcome))


def mean_times(events: Iterable[Event], runs: int) -> list[OpTiming]:
    """Adds up what one operator took in all runs.

    Each run begins with the event "Invoke" of subgraph 0, and each turn of a loop with that of the loop's subgraph;
    the operators that follow come in the same order every time, which tells equal ones apart.

    Args:
        events: The profiler's log.
        runs: The number of runs in it.

    Raises:
        UnavailableError: The log holds another number of runs.
    """
    position: dict[int, int] = {}
    total_us: dict[tuple[int, int], int] = {}
    kinds: dict[tuple[int, int], Event] = {}
    seen = 0
    for event in events:
        if event.name == "Invoke" and event.kind == _STEP:
            seen += event.subgraph == 0
            position[event.subgraph] = 0
        elif event.kind in (_BUILTIN, _DELEGATE):
            key = (event.subgraph, position[event.subgraph])
            position[event.subgraph] += 1
            total_us[key] = total_us.get(key, 0) + event.elapsed_us
            kinds.setdefault(key, event)
    if seen != runs:
        raise UnavailableError(f"the profiler's log holds {seen} runs of {runs}")
    whole: dict[int, int] = {}
    for (subgraph, _), time in total_us.items():
        whole[subgraph] = whole.get(subgraph, 0) + time
    return [
        OpTiming(
            index=index,
            subgraph=key[0],
            name=kinds[key].name,
            delegated=kinds[key].kind == _DELEGATE,
            mean_us=total_us[key] / runs,
            share=total_us[key] / max(whole[key[0]], 1),
        )
        for index, key in enumerate(sorted(total_us))
    ]


def main() -> int:
    """The child's side: prints one JSON document, {"ops": [...]} or {"unavailable": reason}."""
    result = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # native code prints to file descriptor 1
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    document: dict[str, object]
    try:
        profiler = Profiler(options.model, threads=options.threads)
        profiler.run(_WARMUPS)
        document = {"ops": [op.model_dump() for op in mean_times(profiler.record(options.runs), options.runs)]}
    except UnavailableError as error:
        document = {"unavailable": str(error)}
    with result:
        result.write(json.dumps(document) + "\n")
    return 0 if "ops" in document else UnavailableError.exit_code


if __name__ == "__main__":
    sys.exit(main())
