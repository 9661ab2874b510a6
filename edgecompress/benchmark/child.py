"""Runs `runner.py` in a process of its own, and turns its crash, hang or report of an error into a named error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgecompress.errors import DataError, EdgeCompressError, ExecutionError, ModelError, UnavailableError, UsageError
from edgecompress.isolate import Outcome, run_command

RUNNER = Path(__file__).with_name("runner.py")
ERRORS: dict[str, type[EdgeCompressError]] = {
    "data": DataError,
    "execution": ExecutionError,
    "model": ModelError,
    "unavailable": UnavailableError,
    "usage": UsageError,
}


class CrashError(ExecutionError):
    """The process was ended by a signal that nobody sent it: a fault in native code."""


def run_runner(arguments: Sequence[str | Path], *, where: str, time_limit_s: float) -> dict[str, Any]:
    """Runs `runner.py` with these arguments and returns the document that it prints.

    Args:
        arguments: The runner's sub-command and its options.
        where: The file or files at fault, if the process ends without saying so.
        time_limit_s: Seconds after which the process is ended.

    Raises:
        CrashError: The process crashed.
        ExecutionError: The process was ended at its time limit, or the runtime refused the file.
        DataError, ModelError, UnavailableError, UsageError: What the runner reported.
    """
    # -P: the folder of runner.py must not become a place to import from.
    outcome = run_command([sys.executable, "-P", RUNNER, *arguments], time_limit_s=time_limit_s)
    document = read_document(outcome)
    if document is None:
        raise (CrashError if outcome.crashed else ExecutionError)(
            f"the runtime {outcome.how_it_ended} while it ran the file",
            where=where,
            received=None if outcome.last_words.startswith("INFO: ") else outcome.last_words or None,
            fix="use more --threads or fewer samples"
            if outcome.timed_out
            else "check that the file is intact and made for this runtime",
        )
    if "error" in document:
        raise _reported(document, outcome)
    return document


def _reported(document: dict[str, Any], outcome: Outcome) -> EdgeCompressError:
    received = document.get("received")
    if document["kind"] == "execution" and received is None:
        received = first_complaint(outcome)
    details = {key: document.get(key) for key in ("where", "expected", "fix")}
    return ERRORS[document["kind"]](document["error"], received=received, **details)


def first_complaint(outcome: Outcome) -> str | None:
    """Returns the first line that a runtime's native code marked as an error, which its exceptions often leave out."""
    return next((line for line in outcome.stderr.splitlines() if line.startswith("ERROR: ")), None)


def read_document(outcome: Outcome) -> dict[str, Any] | None:
    """Returns the one JSON document on stdout, or None if the process ended without it or ended badly."""
    if outcome.timed_out or outcome.crashed:
        return None
    try:
        document: dict[str, Any] = json.loads(outcome.stdout)
    except json.JSONDecodeError:
        return None
    return document
