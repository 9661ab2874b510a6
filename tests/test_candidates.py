"""Which of several files is kept: no worse than the best, then the fastest, then what the profile prefers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from edgecompress import candidates
from edgecompress.candidates import Candidate, Task, pick
from edgecompress.errors import ExecutionError
from edgecompress.profiles import RecurrentLowering, load_profile
from edgecompress.recipes import Recipe
from edgecompress.report.model import Attempt
from edgecompress.schemes import QuantizationScheme
from edgecompress.streaming import Stream
from edgecompress.verify.verification import Verified, verify

LOOP, STEP, UNROLLED = RecurrentLowering.LOOP, RecurrentLowering.STEP, RecurrentLowering.UNROLLED
STEPS = 10
STREAM = Stream(steps=STEPS, inputs=("x",), states=({"input": "state", "output": "next"},))
LABELS = np.arange(200) % 4
RIGHT = np.eye(4, dtype=np.float32)[LABELS]
NUMBERS = np.linspace(-1, 1, 200, dtype=np.float32)[:, None]


class File(NamedTuple):
    """A candidate, and what is found out about it: wrong answers of 200, or noise, and the time of one run."""

    form: RecurrentLowering | None
    wrong: int = 0
    run_ms: float | None = 1.0
    per_turn: int = 1
    scheme: QuantizationScheme = QuantizationScheme.INT8
    noise: float = 0.0


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A function from a device's name and files to the place of the chosen one, and what became of each."""

    def call(device: str, *files: File, labels: np.ndarray | None = LABELS, measure: bool = True, **facts: object):
        made = [_write(tmp_path / f"{place}.tflite", file) for place, file in enumerate(files)]
        known = {one.file: file for one, file in zip(made, files, strict=True)}

        def benchmark(paths: Sequence[Path], **_options: object) -> list[SimpleNamespace]:
            times = [known[path].run_ms for path in paths]
            if None in times:
                raise ExecutionError("the runtime crashed")
            return [SimpleNamespace(latency=SimpleNamespace(median_ms=time)) for time in times]

        monkeypatch.setattr(candidates, "benchmark_cpu", benchmark)
        profile = load_profile(device)
        quantization = profile.quantization.model_copy(update=facts)
        task = Task(
            None, profile.model_copy(update={"quantization": quantization}), Recipe(), None,
            lambda path: _judge(known[path], labels), lambda *_step: None, measure=measure,
        )  # fmt: skip
        best, attempts = pick(task, made)
        assert [one.outcome for one in attempts].count("chosen") == 1
        assert attempts[made.index(best)].outcome == "chosen"
        return made.index(best), attempts

    return call


def _write(path: Path, file: File) -> Candidate:
    path.write_bytes(bytes(100 + len(path.name)))
    return Candidate(path, file.scheme, file.form, file.per_turn, STREAM if file.form is STEP else None)


def _judge(file: File, labels: np.ndarray | None) -> Verified:
    if file.noise:
        return verify({"y": NUMBERS}, {"y": NUMBERS + file.noise}, None, "held-out")
    answers = RIGHT.copy()
    answers[: file.wrong] = np.roll(answers[: file.wrong], 1, axis=1)
    return verify({"y": RIGHT}, {"y": answers}, labels, "held-out")


def reasons(attempts: Sequence[Attempt]) -> list[str]:
    return [one.reason for one in attempts]


def test_the_fastest_is_kept_and_all_are_reported(choose) -> None:
    best, attempts = choose("host", File(LOOP, run_ms=3.0), File(LOOP, run_ms=1.0, per_turn=5), File(UNROLLED))
    assert best == 1  # as fast as the unrolled one, which the profile likes less
    assert reasons(attempts) == [
        "3.0 times as slow", "the fastest on this machine's CPU", "later in the profile's order",
    ]  # fmt: skip
    assert [one.latency_ms for one in attempts] == [3.0, 1.0, 1.0]
    assert {one.size_bytes for one in attempts} == {108}
    assert {one.accuracy_drop for one in attempts} == {0.0}
    assert [one.name for one in attempts] == ["int8 (loop)", "int8 (loop, 5 steps a turn)", "int8 (unrolled)"]


@pytest.mark.parametrize(("first_ms", "best"), [(1.0, 0), (1.09, 0), (1.11, 1)])
def test_within_a_tenth_the_order_decides(choose, first_ms, best) -> None:
    assert choose("host", File(LOOP, run_ms=first_ms), File(UNROLLED, run_ms=1.0))[0] == best


@pytest.mark.parametrize(("wrong", "best"), [(1, 1), (3, 0)])
def test_a_point_of_accuracy_is_worth_more_than_time(choose, wrong, best) -> None:
    found, attempts = choose("host", File(LOOP, run_ms=9.0), File(UNROLLED, wrong=wrong))
    assert found == best
    assert attempts[1].accuracy_drop == pytest.approx(wrong / 200)
    if best == 0:
        assert reasons(attempts)[1] == "answers worse"


def test_worse_than_the_best_of_the_files_not_than_the_float_model(choose) -> None:
    best, _ = choose("host", File(LOOP, wrong=20, run_ms=2.0), File(UNROLLED, wrong=21))
    assert best == 1


def test_without_labels_changed_answers_count(choose) -> None:
    best, attempts = choose("host", File(LOOP, run_ms=9.0), File(UNROLLED, wrong=3), labels=None)
    assert best == 0
    assert attempts[1].accuracy_drop == pytest.approx(3 / 200)


@pytest.mark.parametrize(("noise", "best"), [(0.0019, 1), (0.0021, 0)])
def test_without_classes_twice_the_error_is_worse(choose, noise, best) -> None:
    found, attempts = choose("host", File(LOOP, run_ms=9.0, noise=0.001), File(UNROLLED, noise=noise))
    assert found == best
    assert attempts[0].accuracy_drop is None


def test_single_steps_count_as_often_as_they_are_run(choose) -> None:
    _, attempts = choose("host", File(LOOP, run_ms=2.0), File(STEP, run_ms=0.3))
    assert attempts[1].latency_ms == pytest.approx(0.3 * STEPS)


def test_single_steps_are_not_chosen_unasked(choose) -> None:
    best, attempts = choose("host", File(LOOP, run_ms=2.0), File(STEP, run_ms=0.01))
    assert best == 0
    assert reasons(attempts)[1].startswith("single steps, which the caller has to loop over; --recurrent step asks")
    best, attempts = choose("host", File(STEP, run_ms=0.01), File(LOOP, wrong=9))
    assert best == 0  # all that is good enough
    assert reasons(attempts)[1] == "answers worse"


def test_single_steps_are_chosen_where_the_profile_prefers_them(choose) -> None:
    files = File(STEP, run_ms=0.1), File(LOOP, run_ms=2.0)
    assert choose("host", *files, recurrent=(STEP, LOOP))[0] == 0
    assert choose("host", *files, recurrent=(LOOP, STEP))[0] == 1
    assert choose("ethos-u55-128", File(STEP), File(UNROLLED))[0] == 0


@pytest.mark.parametrize("device", ["cortex-m4", "coral-usb"])
def test_times_on_this_machine_say_nothing_of_other_kinds_of_devices(choose, device) -> None:
    best, attempts = choose(device, File(LOOP, run_ms=9.0), File(UNROLLED))
    assert best == 0
    assert reasons(attempts) == [f"the first that {device} prefers and the model takes", "later in the profile's order"]
    assert [one.latency_ms for one in attempts] == [None, None]


@pytest.mark.parametrize("options", [{"measure": False}, {}])
def test_without_times_the_order_decides(choose, options) -> None:
    """They are not wanted, or a file ends the runtime that times them."""
    files = File(LOOP, run_ms=9.0), File(UNROLLED, run_ms=1.0 if options else None)
    best, attempts = choose("pixel", *files, **options)
    assert best == 0
    assert reasons(attempts)[0] == "the first that pixel prefers and the model takes"
    assert [one.latency_ms for one in attempts] == [None, None]


def test_dynamic_range_beside_a_loop(choose) -> None:
    dynamic = File(None, run_ms=0.5, scheme=QuantizationScheme.DYNAMIC)
    best, attempts = choose("pixel", File(LOOP), dynamic)
    assert best == 1
    assert [one.name for one in attempts] == ["int8 (loop)", "dynamic"]
    assert reasons(attempts)[0] == "2.0 times as slow"


def test_a_file_alone(choose) -> None:
    best, (attempt,) = choose("host", File(STEP, wrong=50))
    assert best == 0
    assert attempt.reason == "the first that host prefers and the model takes"
    assert attempt.latency_ms is None  # there is nothing to compare it with
