from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.distill import cache as module
from edgecompress.distill.cache import AnswerCache
from edgecompress.errors import DataError, InternalError, OutputError

SAMPLES = 50
BATCH = 8

# Asks a slow teacher; with a third argument it is killed at that batch.
CHILD = """
import os, signal, sys, time
import numpy as np
from edgecompress.distill import cache

cache._BETWEEN_COMMITS_S = 0
folder, samples, kill_at = sys.argv[1], np.load(sys.argv[2], mmap_mode="r"), int(sys.argv[3])
asked = 0

def ask(batch):
    global asked
    if asked == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    asked += 1
    print(len(batch[0]), flush=True)
    time.sleep(0.02)
    return [batch[0] * np.float32(2), batch[0].argmax(axis=1)]

cache.AnswerCache(folder).answers(teacher="t", inputs=[samples], ask=ask, batch_size=8)
"""


class Teacher:
    """Doubles the samples, says where each is largest, and counts the rows that it was asked for."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, batch: list[Any]) -> list[Any]:
        self.rows += len(batch[0])
        return [batch[0] * np.float32(2), batch[0].argmax(axis=1)]


@pytest.fixture
def samples() -> Any:
    return np.random.default_rng(0).normal(size=(SAMPLES, 5)).astype(np.float32)


@pytest.fixture
def commit_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BETWEEN_COMMITS_S", 0)


def ask_all(folder: Path, samples: Any, ask: Callable[..., Any], teacher: str = "t", **options: Any) -> list[Any]:
    return AnswerCache(folder, **options).answers(teacher=teacher, inputs=[samples], ask=ask, batch_size=BATCH)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def child(folder: Path, samples: Path, kill_at: int = -1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(folder), str(samples), str(kill_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_answers_are_the_teachers_and_asked_once(tmp_path: Path, samples: Any) -> None:
    teacher, said = Teacher(), []
    cache = AnswerCache(tmp_path / "deep" / "cache")
    for _ in range(2):
        doubled, largest = cache.answers(
            teacher="t", inputs=[samples], ask=teacher, batch_size=BATCH, say=lambda *step: said.append(step)
        )
        np.testing.assert_array_equal(doubled, samples * 2)
        np.testing.assert_array_equal(largest, samples.argmax(axis=1))
        assert (doubled.dtype, largest.dtype) == (np.float32, np.int64)
        assert isinstance(doubled, np.memmap)
        assert not doubled.flags.writeable
    assert teacher.rows == SAMPLES
    assert said == [("teacher", min(SAMPLES, done + BATCH), SAMPLES) for done in range(0, SAMPLES, BATCH)]


def test_several_inputs_go_to_the_teacher_together(tmp_path: Path, samples: Any) -> None:
    other = np.arange(SAMPLES, dtype=np.int32)
    (answers,) = AnswerCache(tmp_path).answers(
        teacher="t", inputs=[samples, other], ask=lambda batch: [batch[0].sum(axis=1) + batch[1]]
    )
    np.testing.assert_array_equal(answers, (samples.sum(axis=1) + other).astype(np.float32))


def test_float16_takes_half_the_space(tmp_path: Path, samples: Any) -> None:
    doubled, largest = ask_all(tmp_path, samples, Teacher(), store="float16")
    assert (doubled.dtype, largest.dtype) == (np.float16, np.int64)
    np.testing.assert_array_equal(doubled, (samples * 2).astype(np.float16))


@pytest.mark.parametrize("change", ["teacher", "value", "dtype", "shape", "store"])
def test_what_is_asked_differently_is_asked_again(tmp_path: Path, samples: Any, change: str) -> None:
    ask_all(tmp_path, samples, Teacher())
    other = samples.copy()
    if change == "value":
        other[-1, -1] += 1
    other = {"dtype": samples.view(np.int32), "shape": samples.reshape(25, 10)}.get(change, other)
    teacher = Teacher()
    options = {"teacher": {"teacher": "u"}, "store": {"store": "float16"}}.get(change, {})
    ask_all(tmp_path, other, teacher, **options)
    assert teacher.rows == len(other)


def test_the_key_is_of_the_values_wherever_they_lie(
    tmp_path: Path, samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_all(tmp_path / "cache", samples, Teacher())
    np.save(tmp_path / "samples.npy", samples)
    monkeypatch.setattr(module, "_HASHED_AT_ONCE", 70)  # three rows
    for same in (np.load(tmp_path / "samples.npy", mmap_mode="r"), np.asfortranarray(samples)):
        teacher = Teacher()
        ask_all(tmp_path / "cache", same, teacher)
        assert teacher.rows == 0


def test_a_killed_run_goes_on(tmp_path: Path, samples: Any) -> None:
    file = tmp_path / "samples.npy"
    np.save(file, samples)
    asked = 0
    for kill_at in (2, 3):
        with child(tmp_path / "killed", file, kill_at) as process:
            asked += sum(map(int, process.communicate()[0].split()))
        assert process.returncode == -signal.SIGKILL
    teacher = Teacher()
    ask_all(tmp_path / "killed", samples, teacher)
    assert asked + teacher.rows == SAMPLES  # all that was answered had reached the disk
    ask_all(tmp_path / "whole", samples, Teacher())
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_answers_behind_the_whole_rows_are_cut_off(tmp_path: Path, samples: Any) -> None:
    ask_all(tmp_path / "whole", samples, Teacher())
    ask_all(tmp_path / "cut", samples, Teacher())
    (state,) = (tmp_path / "cut").rglob("rows.json")
    state.write_text(json.dumps(json.loads(state.read_text()) | {"rows": 2 * BATCH}))
    with next(state.parent.glob("*.npy")).open("r+b") as file:
        file.seek(-4 * (SAMPLES - 2 * BATCH), os.SEEK_END)
        file.write(b"half a batch")
        file.truncate()
    teacher = Teacher()
    ask_all(tmp_path / "cut", samples, teacher)
    assert teacher.rows == SAMPLES - 2 * BATCH
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("commit_each_batch")
def test_an_error_of_the_teacher_keeps_what_was_answered(tmp_path: Path, samples: Any) -> None:
    teacher = Teacher()

    def fail_at_the_end(batch: list[Any]) -> list[Any]:
        if teacher.rows == 3 * BATCH:
            raise FileNotFoundError("the teacher's own trouble")
        return teacher(batch)

    with pytest.raises(FileNotFoundError, match="own trouble"):
        ask_all(tmp_path, samples, fail_at_the_end)
    ask_all(tmp_path, samples, teacher)
    assert teacher.rows == SAMPLES


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "answer_0.npy").write_bytes((folder / "answer_0.npy").read_bytes()[:-1]),
        lambda folder: (folder / "answer_0.npy").write_bytes((folder / "answer_0.npy").read_bytes() + b"more"),
        lambda folder: (folder / "answer_0.npy").write_bytes(b"\0" * (folder / "answer_0.npy").stat().st_size),
        lambda folder: (folder / "answer_1.npy").unlink(),
        lambda folder: (folder / "rows.json").unlink(),
        lambda folder: (folder / "rows.json").write_text((folder / "rows.json").read_text()[:-3]),
        lambda folder: (folder / "rows.json").write_text("[]"),
        lambda folder: (folder / "rows.json").write_text('{"rows": 50, "answers": []}'),
        lambda folder: (folder / "rows.json").write_text(
            (folder / "rows.json").read_text().replace('"rows": 50', '"rows": 51')
        ),
    ],
)
def test_damaged_answers_are_asked_again(tmp_path: Path, samples: Any, damage: Callable[[Path], Any]) -> None:
    ask_all(tmp_path, samples, Teacher())
    before = contents(tmp_path)
    (folder,) = tmp_path.iterdir()
    damage(folder)
    teacher = Teacher()
    ask_all(tmp_path, samples, teacher)
    assert teacher.rows == SAMPLES
    assert contents(tmp_path) == before


def test_new_answers_leave_alone_what_is_mapped(tmp_path: Path, samples: Any) -> None:
    doubled, _ = ask_all(tmp_path, samples, Teacher())
    next(tmp_path.rglob("rows.json")).unlink()
    ask_all(tmp_path, samples, lambda batch: [-batch[0]])
    np.testing.assert_array_equal(doubled, samples * 2)


def test_the_second_process_waits_for_the_first(tmp_path: Path, samples: Any) -> None:
    file = tmp_path / "samples.npy"
    np.save(file, samples)
    with child(tmp_path / "cache", file) as first, child(tmp_path / "cache", file) as second:
        asked = [int(row) for process in (first, second) for row in process.communicate()[0].split()]
    assert (first.returncode, second.returncode) == (0, 0)
    assert sum(asked) == SAMPLES


def test_who_waits_says_so(tmp_path: Path, samples: Any) -> None:
    waiting, answers, said = threading.Event(), [], []

    def slow(batch: list[Any]) -> list[Any]:
        assert waiting.wait(20)
        return [batch[0]]

    def say(*step: Any) -> None:
        said.append(step)
        waiting.set()

    first = threading.Thread(target=lambda: answers.append(ask_all(tmp_path, samples, slow)))
    first.start()
    while not any(tmp_path.iterdir()):
        time.sleep(0.01)
    time.sleep(0.1)
    second = Teacher()
    found = AnswerCache(tmp_path).answers(teacher="t", inputs=[samples], ask=second, say=say)
    first.join()
    assert said == [("waiting for another run, which asks the teacher", 0, SAMPLES)]
    assert second.rows == 0
    np.testing.assert_array_equal(found[0], answers[0][0])


@pytest.mark.usefixtures("commit_each_batch")
def test_a_full_disk_keeps_what_was_answered(tmp_path: Path, samples: Any) -> None:
    teacher = Teacher()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (128 + 20 * 5 * 4, before[1]))  # of a file, which refuses in the same way
    try:
        with pytest.raises(OutputError, match=r"all of which take 0\.0 MB cannot be written \(File too large\)"):
            ask_all(tmp_path, samples, teacher)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert teacher.rows == 3 * BATCH
    ask_all(tmp_path, samples, teacher)
    assert teacher.rows == SAMPLES + BATCH  # the batch that did not fit was asked twice


def test_a_folder_that_cannot_be_written(tmp_path: Path, samples: Any) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written") as caught:
        ask_all(tmp_path / "file" / "cache", samples, Teacher())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_teacher_that_answers_nan_is_refused(tmp_path: Path, samples: Any, value: float) -> None:
    samples[19, 2] = value
    with pytest.raises(DataError, match="answer_0 of the teacher to sample 19: a number is NaN or infinite"):
        ask_all(tmp_path, samples, Teacher())


def test_numbers_too_large_for_float16_are_refused(tmp_path: Path, samples: Any) -> None:
    samples[19, 2] = 40_000
    with pytest.raises(DataError, match=r'sample 19: a number is too large for float16; received 80000.*"float32"'):
        ask_all(tmp_path, samples, Teacher(), store="float16")
    doubled, _ = ask_all(tmp_path, samples, Teacher())
    assert doubled[19, 2] == 80_000


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda batch, _: [batch[:1]], DataError, r"answer 0 .* a row for each sample; expected \(8, …\)"),
        (lambda batch, _: [batch, np.float32(1)], DataError, r"answer 1 .* a row for each sample"),
        (lambda batch, number: [batch[:, : 5 - number]], DataError, r"changed their form at sample 8; .*\(4,\)"),
        (lambda batch, number: [batch] * (1 + number), DataError, "changed their form at sample 8"),
        (lambda batch, number: [batch.astype([float, int][number])], DataError, "expected answer_0 float32.*int64"),
        (lambda batch, _: [batch.astype(complex)], DataError, "answer 0 .* not of numbers; .* received complex128"),
        (lambda _, __: [], InternalError, "asked for nothing"),
    ],
)
def test_answers_that_do_not_fit_are_refused(
    tmp_path: Path, samples: Any, answer: Callable[..., Any], error: type[Exception], message: str
) -> None:
    numbers = itertools.count()
    with pytest.raises(error, match=message):
        ask_all(tmp_path, samples, lambda batch: answer(batch[0], next(numbers)))


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [np.zeros((0, 3))],
        [np.zeros(3), np.zeros(4)],
        [np.float32(1)],
        [[1, 2, 3]],
        [np.asarray(["a", None], object)],
    ],
)
def test_samples_must_be_arrays_of_one_length(tmp_path: Path, inputs: Any) -> None:
    with pytest.raises(DataError, match="arrays of numbers of one length"):
        AnswerCache(tmp_path).answers(teacher="t", inputs=inputs, ask=Teacher())


def test_answers_that_no_disk_can_hold_are_refused_at_once(tmp_path: Path, monkeypatch) -> None:
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _folder: usage._replace(free=1000))
    x = np.zeros((SAMPLES, 4), np.float32)
    asked = []

    def ask(batch: list[np.ndarray]) -> list[np.ndarray]:
        asked.append(len(batch[0]))
        return [np.zeros((len(batch[0]), 100), np.float32)]

    with pytest.raises(OutputError, match="answers to 50 samples take 0 MB; expected at most 0 MB, which are free"):
        AnswerCache(tmp_path).answers(teacher="t", inputs=[x], ask=ask, batch_size=BATCH)
    assert asked == [BATCH]
