from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgecompress.artifacts import Artifact, read_artifact
from edgecompress.check import check_limits
from edgecompress.profiles import Profile
from edgecompress.tiny import tiny_model


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """One ADD of two float vectors."""
    file = tmp_path / "model.tflite"
    file.write_bytes(tiny_model())
    return read_artifact(file)


def profile(schemes: tuple[str, ...] = ("int8", "float32"), **limits: Any) -> Profile:
    return Profile.model_validate(
        {
            "name": "mine", "title": "Mine", "limits": limits,
            "chip": {"name": "C", "isa": "armv7e-m", "cpu": "one"},
            "runtime": {"name": "litert", "targets": ["cpu"]},
            "quantization": {"schemes": schemes},
            "check": {"rules": ["litert-cpu"]},
        }
    )  # fmt: skip


def test_without_limits_all_is_well(artifact: Artifact) -> None:
    assert check_limits(artifact, profile(), latency_ms=1e9) == ()


def test_a_limit_may_be_met_exactly(artifact: Artifact) -> None:
    assert check_limits(artifact, profile(file_bytes=artifact.size_bytes, latency_ms=5.0), latency_ms=5.0) == ()


def test_a_file_that_is_too_large(artifact: Artifact) -> None:
    large = artifact.model_copy(update={"size_bytes": 2_000_001})
    (violation,) = check_limits(large, profile(file_bytes=2_000_000))
    assert violation.rule == "limits.file_bytes"
    assert str(violation) == (
        "limits.file_bytes: model.tflite is 2,000,001 bytes, allowed is 2,000,000 bytes. "
        "Fix: make the model smaller, or choose a larger device"
    )


def test_a_run_that_is_too_long(artifact: Artifact) -> None:
    (violation,) = check_limits(artifact, profile(latency_ms=2.5), latency_ms=2.5009)
    assert str(violation).startswith("limits.latency_ms: model.tflite is 2.501 ms, allowed is 2.5 ms. Fix: ")


def test_a_latency_that_was_not_measured_there_is_not_checked(artifact: Artifact) -> None:
    assert check_limits(artifact, profile(latency_ms=0.001)) == ()


@pytest.mark.parametrize("schemes", [("int8",), ("int8", "int16x8")])
def test_float_arithmetic_on_an_integer_device(artifact: Artifact, schemes: tuple[str, ...]) -> None:
    (violation,) = check_limits(artifact, profile(schemes))
    assert str(violation) == (
        "quantization.schemes: ADD (operator 0) is computed in float (1 operators), allowed is integer arithmetic "
        "only. Fix: replace the layers these operators come from, or choose a profile that takes float"
    )


def test_the_first_float_operators_are_named(artifact: Artifact) -> None:
    (op,) = artifact.ops
    ops = tuple(
        op.model_copy(update={"index": index, "float_arithmetic": index % 2 == 1}) for index in range(14)
    )  # fmt: skip
    (violation,) = check_limits(artifact.model_copy(update={"ops": ops}), profile(("int8",)))
    assert violation.where == ", ".join(f"ADD (operator {index})" for index in (1, 3, 5, 7, 9))
    assert violation.found == "computed in float (7 operators)"


def test_float_arithmetic_where_it_is_allowed(artifact: Artifact) -> None:
    for scheme in ("float32", "float16", "dynamic", "int4_weights"):
        assert check_limits(artifact, profile(("int8", scheme))) == ()


def test_integers_on_an_integer_device(artifact: Artifact) -> None:
    (op,) = artifact.ops
    integer = artifact.model_copy(update={"ops": (op.model_copy(update={"float_arithmetic": False}),)})
    assert check_limits(integer, profile(("int8",))) == ()


def test_all_violations_are_found(artifact: Artifact) -> None:
    found = check_limits(artifact, profile(("int8",), file_bytes=1, latency_ms=1.0, arena_bytes=1), latency_ms=2.0)
    assert [violation.rule for violation in found] == [
        "limits.file_bytes",
        "limits.latency_ms",
        "quantization.schemes",
    ]
    assert all("\n" not in str(violation) for violation in found)
