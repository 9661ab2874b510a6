"""The checks that every profile has: size, integer-only arithmetic, and latency where it was measured on the device."""

from __future__ import annotations

from collections.abc import Iterator

from edgecompress.artifacts import Artifact
from edgecompress.check.violation import Violation
from edgecompress.profiles import Profile


def check_limits(artifact: Artifact, profile: Profile, *, latency_ms: float | None = None) -> tuple[Violation, ...]:
    """Returns what in a file breaks the profile's limits.

    Args:
        artifact: The finished file.
        profile: The device.
        latency_ms: Median latency in milliseconds, measured on that device; None leaves the limit unchecked.
    """
    return tuple(_violations(artifact, profile, latency_ms))


def _violations(artifact: Artifact, profile: Profile, latency_ms: float | None) -> Iterator[Violation]:
    limits = profile.limits
    name = artifact.path.name
    if limits.file_bytes is not None and artifact.size_bytes > limits.file_bytes:
        yield Violation(
            rule="limits.file_bytes", where=name, expected=f"{limits.file_bytes:,} bytes",
            found=f"{artifact.size_bytes:,} bytes", fix="make the model smaller, or choose a larger device",
        )  # fmt: skip
    if limits.latency_ms is not None and latency_ms is not None and latency_ms > limits.latency_ms:
        yield Violation(
            rule="limits.latency_ms", where=name, expected=f"{limits.latency_ms:g} ms", found=f"{latency_ms:.3f} ms",
            fix="make the model smaller, or use more threads",
        )  # fmt: skip
    if profile.integer_only and artifact.float_ops:
        names = ", ".join(f"{op.name} (operator {op.index})" for op in artifact.float_ops[:5])
        yield Violation(
            rule="quantization.schemes", where=names, expected="integer arithmetic only",
            found=f"computed in float ({len(artifact.float_ops)} operators)",
            fix="replace the layers these operators come from, or choose a profile that takes float",
        )  # fmt: skip
