"""Files of one model that the device would take, compared with each other: which is kept, and why."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecompress.benchmark.cpu import benchmark_cpu
from edgecompress.errors import ExecutionError
from edgecompress.loaded import LoadedModel
from edgecompress.passes.base import Progress
from edgecompress.profiles import Profile, RecurrentLowering, Runtime, Target
from edgecompress.recipes import Recipe
from edgecompress.report.model import Attempt
from edgecompress.samples import Samples
from edgecompress.schemes import QuantizationScheme
from edgecompress.streaming import Stream
from edgecompress.verify.verification import Verified

_RUNS = 20
_MIN_SECONDS = 0.2
_WORSE = 0.01 + 1e-9  # more accuracy lost than that, against the best of the candidates, rules one out
_WORSE_DB = 6.0  # likewise, where the outputs have no classes: twice the error
_AS_SMALL = 1.25  # times the smallest file: larger ones are left where the device prefers size
_AS_FAST = 1.1  # within that, the order of the profile decides: what it prefers, and the smaller of two loops


@dataclass(frozen=True)
class Task:
    """A model whose file is to be made, and what decides how.

    Attributes:
        source: The model.
        device: What the file is for.
        recipe: What is asked for.
        samples: Those that set ranges among them.
        judge: Compares a file with the float model on held-out samples.
        say: Called with (step, done, total).
        measure: Candidates may be timed on this machine's CPU.
    """

    source: LoadedModel
    device: Profile
    recipe: Recipe
    samples: Samples
    judge: Callable[[Path], Verified]
    say: Progress
    measure: bool = True

    @property
    def measured_here(self) -> bool:
        """Whether times on this machine's CPU say something of the device: it has no accelerator but a GPU."""
        of_its_kind = self.device.runtime.name in (Runtime.LITERT, Runtime.TFLITE_RUNTIME)
        return self.measure and of_its_kind and set(self.device.runtime.targets) <= {Target.CPU, Target.GPU}


@dataclass(frozen=True)
class Candidate:
    """A file.

    Attributes:
        file: Its path.
        scheme: Its number types.
        recurrent: The form of its recurrent layers, if it is one of several.
        per_turn: Steps in one turn of its loop.
        stream: How it is run, if it is that of one step.
    """

    file: Path
    scheme: QuantizationScheme
    recurrent: RecurrentLowering | None = None
    per_turn: int = 1
    stream: Stream | None = None


@dataclass(frozen=True)
class _Judged:
    candidate: Candidate
    verified: Verified
    latency_ms: float | None  # of a whole sequence

    @property
    def drop(self) -> float | None:
        return self.verified.accuracy_drop

    @property
    def size_bytes(self) -> int:
        return self.candidate.file.stat().st_size

    @property
    def snr_db(self) -> float:
        return min((output.snr_db for output in self.verified.outputs if output.snr_db is not None), default=200.0)


def pick(task: Task, candidates: Sequence[Candidate]) -> tuple[Candidate, tuple[Attempt, ...]]:
    """Keeps the best of several files, which come in the order of the profile's preference.

    Every one is run on held-out samples, and timed where that says something. Those that answer worse than the best are
    left. Where files are timed, of the others the fastest is kept, but none that is much larger than the smallest if
    the device prefers size; elsewhere the first.
    """
    judged = _judge(task, candidates)
    able = [one for one in judged if not _is_worse(one, judged)]
    # A file of single steps is called in another way than the model was, so that it is not put in its place unasked.
    whole = [one for one in able if one.candidate.stream is None]
    prefers_steps = task.device.quantization.recurrent[:1] == (RecurrentLowering.STEP,)
    able = able if prefers_steps or not whole else whole
    small = able
    if task.measured_here and task.device.kernels.prefers == "size":
        smallest = min(one.size_bytes for one in able)
        small = [one for one in able if one.size_bytes <= smallest * _AS_SMALL]
    best, reason = _fastest(task, small)
    if len(small) < len(able):
        reason += ", of the smaller files"
    bulky = [one for one in able if one not in small]
    reasons = (reason if one is best else _why_not(one, best, judged, bulky) for one in judged)
    return best.candidate, tuple(_attempt(one, best, why) for one, why in zip(judged, reasons, strict=True))


def _judge(task: Task, candidates: Sequence[Candidate]) -> list[_Judged]:
    task.say("compare forms", 0, len(candidates))
    latencies: list[float | None] = [None] * len(candidates)
    if task.measured_here and len(candidates) > 1:
        with contextlib.suppress(ExecutionError):  # a file that cannot be timed is still a verified file
            latencies = list(_latencies(candidates, threads=task.device.runtime.threads_here))
    verified = []
    for done, candidate in enumerate(candidates):
        task.say("compare forms", done, len(candidates))
        verified.append(task.judge(candidate.file))
    return [_Judged(*each) for each in zip(candidates, verified, latencies, strict=True)]


def _latencies(candidates: Sequence[Candidate], *, threads: int) -> Iterator[float | None]:
    measured = benchmark_cpu([one.file for one in candidates], threads=threads, runs=_RUNS, min_seconds=_MIN_SECONDS)
    for candidate, one in zip(candidates, measured, strict=True):
        runs = 1 if candidate.stream is None else candidate.stream.steps or 1
        yield None if one.latency is None else one.latency.median_ms * runs


def _is_worse(one: _Judged, judged: Sequence[_Judged]) -> bool:
    drops = [each.drop for each in judged if each.drop is not None]
    if one.drop is not None and drops:
        return one.drop > min(drops) + _WORSE
    return one.snr_db < max(each.snr_db for each in judged) - _WORSE_DB


def _fastest(task: Task, able: Sequence[_Judged]) -> tuple[_Judged, str]:
    timed = [one.latency_ms for one in able if one.latency_ms is not None]
    if len(able) == 1 or len(timed) < len(able):
        asked = task.recipe.quantization.recurrent != "auto"
        return able[0], "asked for" if asked else f"the first that {task.device.name} prefers and the model takes"
    best = next(one for one in able if one.latency_ms is not None and one.latency_ms <= min(timed) * _AS_FAST)
    return best, "the fastest on this machine's CPU"


def _why_not(one: _Judged, best: _Judged, judged: Sequence[_Judged], bulky: Sequence[_Judged]) -> str:
    """Says why a file was passed over."""
    if _is_worse(one, judged):
        return "answers worse"
    if one.candidate.stream is not None:
        return "single steps, which the caller has to loop over; --recurrent step asks for them"
    if one in bulky:
        return f"{one.size_bytes / best.size_bytes:.1f} times the size"
    if one.latency_ms is not None and best.latency_ms is not None and one.latency_ms > best.latency_ms:
        return f"{one.latency_ms / best.latency_ms:.1f} times as slow"
    return "later in the profile's order"


def _attempt(one: _Judged, best: _Judged, reason: str) -> Attempt:
    candidate = one.candidate
    return Attempt(
        scheme=candidate.scheme, outcome="chosen" if one is best else "passed over", reason=reason,
        recurrent=candidate.recurrent, per_turn=candidate.per_turn, size_bytes=one.size_bytes,
        latency_ms=one.latency_ms, accuracy_drop=one.drop,
    )  # fmt: skip
