from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from edgecompress.benchmark import litert_c
from edgecompress.benchmark.litert_c import Event
from edgecompress.benchmark.per_op import mean_times, profile_ops
from edgecompress.errors import UnavailableError


def test_a_real_profile(models: dict[str, Path]) -> None:
    ops = profile_ops(models["wide"], runs=5)
    assert [op.index for op in ops] == list(range(len(ops)))
    largest = max(ops, key=lambda op: op.mean_us)
    assert largest.name.startswith("Fully Connected (NC, F32)")
    assert largest.delegated
    assert largest.mean_us > 10
    assert sum(op.share for op in ops) == pytest.approx(1.0)


def test_built_in_operators_are_told_from_delegated_ones(models: dict[str, Path]) -> None:
    ops = profile_ops(models["embedding"], runs=2)
    assert [(op.name, op.delegated) for op in ops] == [("GATHER", False)]


def test_a_file_that_the_profiler_cannot_load_says_why(models: dict[str, Path]) -> None:
    with pytest.raises(UnavailableError, match="Variable tensors not yet supported") as caught:
        profile_ops(models["stateful"])
    assert caught.value.where == models["stateful"]


def test_a_crash_of_the_profiler_is_a_reason(models: dict[str, Path]) -> None:
    with pytest.raises(UnavailableError, match=r"LiteRT's profiler crashed \(SIGABRT\)"):
        profile_ops(models["crashing"])


@pytest.mark.usefixtures("no_runtime")
def test_a_wheel_without_the_library_is_a_reason(models: dict[str, Path]) -> None:
    with pytest.raises(UnavailableError, match="LiteRT's C library cannot be loaded"):
        profile_ops(models["dense"])


def test_a_function_that_a_version_lacks_is_a_reason(models: dict[str, Path]) -> None:
    profiler = litert_c.Profiler(models["dense"], threads=1)
    with pytest.raises(UnavailableError, match="this version of LiteRT has no LiteRtMakeCoffee"):
        profiler._call("MakeCoffee")


@pytest.mark.parametrize(("kind", "source"), [(3, 0), (0, 0), (-(2**31), 0), (2, 7)])
def test_events_of_another_form_are_not_followed(kind: int, source: int) -> None:
    raw = (litert_c._RawEvent * 1)()
    raw[0].tag, raw[0].kind, raw[0].source = 0xDEAD, kind, source  # an address that would crash
    with pytest.raises(UnavailableError, match="another form"):
        list(litert_c._checked(raw))


def test_the_layout_of_events_is_that_of_version_2_3() -> None:
    assert ctypes.sizeof(litert_c._TensorType) == 72
    assert ctypes.sizeof(litert_c._RawEvent) == 104


def _loop(steps: int, conv_us: int, add_us: int) -> list[Event]:
    body = [Event("Invoke", 1, 99, 2), Event("ADD", 2, add_us, 2), Event("Add (ND)", 8, 1, 2)]
    return [
        Event("LiteRT::Run[buffer registration]", 1, 5, 0),
        Event("Invoke", 1, 1000, 0),
        Event("Convolution", 8, conv_us, 0),
        Event("WHILE", 2, 60, 0),
        *(body * steps),
        Event("Convolution", 8, 10, 0),
        Event("Invoke", 32, 2**32, 0),
    ]


def test_times_are_added_up_by_position() -> None:
    ops = mean_times([*_loop(3, 20, 4), *_loop(2, 40, 4)], runs=2)
    assert [(op.subgraph, op.name, op.delegated, op.mean_us) for op in ops] == [
        (0, "Convolution", True, 30.0),
        (0, "WHILE", False, 60.0),
        (0, "Convolution", True, 10.0),
        (2, "ADD", False, 10.0),
        (2, "Add (ND)", True, 2.5),
    ]
    assert [op.share for op in ops] == pytest.approx([0.3, 0.6, 0.1, 0.8, 0.2])


def test_a_log_that_lost_runs_is_refused() -> None:
    with pytest.raises(UnavailableError, match="holds 1 runs of 2"):
        mean_times(_loop(1, 1, 1), runs=2)
