"""What is printed of the forms of a network's recurrent layers."""

import io

import pytest
from rich.console import Console

from edgecompress.profiles import RecurrentLowering
from edgecompress.report.forms import print_forms
from edgecompress.report.model import Attempt
from edgecompress.schemes import QuantizationScheme


def printed(*attempts: Attempt) -> list[list[str]]:
    """The cells of each line."""
    stream = io.StringIO()
    print_forms(Console(file=stream, width=160), attempts)
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in stream.getvalue().splitlines()]


def attempt(form: RecurrentLowering | None, outcome: str, reason: str, **facts: object) -> Attempt:
    scheme = QuantizationScheme.DYNAMIC if form is None else QuantizationScheme.INT8
    return Attempt(scheme=scheme, recurrent=form, outcome=outcome, reason=reason, **facts)


def test_a_line_for_each_file() -> None:
    reason = "the fastest on this machine's CPU"
    figures = {"size_bytes": 23_456, "latency_ms": 0.0567, "accuracy_drop": 0.0025}
    lines = printed(
        attempt(RecurrentLowering.LOOP, "chosen", reason, per_turn=5, **figures),
        attempt(
            RecurrentLowering.STEP,
            "passed over",
            "answers [worse]",
            size_bytes=900,
            latency_ms=1.0,
            accuracy_drop=-0.01,
        ),
        attempt(None, "passed over", "2.1 times as slow", size_bytes=12_000_000, latency_ms=12.0, accuracy_drop=0.0),
    )
    assert ["form", "file", "a sequence", "lost"] in lines
    assert lines[-3:] == [
        ["int8 (loop, 5 steps a turn)", "23.5 kB", "0.057 ms", "+0.25 points", f"chosen: {reason}"],
        ["int8 (step)", "900 B", "1.000 ms", "-1.00 points", "answers [worse]"],
        ["dynamic", "12.0 MB", "12.000 ms", "+0.00 points", "2.1 times as slow"],
    ]  # fmt: skip


def test_what_was_not_found_out_is_left_empty() -> None:
    reason = "the first that cortex-m4 prefers and the model takes"
    lines = printed(attempt(RecurrentLowering.LOOP, "chosen", reason, size_bytes=900))
    assert lines[-1] == ["int8 (loop)", "900 B", f"chosen: {reason}"]


@pytest.mark.parametrize(
    "attempts",
    [(), (attempt(RecurrentLowering.FUSED, "refused", "it is factorized"),), (attempt(None, "chosen", "asked for"),)],
)
def test_nothing_to_compare(attempts) -> None:
    """Notes tell of what was refused, and the headline of a scheme that had no forms."""
    assert printed(*attempts) == []
