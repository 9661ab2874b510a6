"""Prints results in the terminal: one table each, and plain words under it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape

from edgecompress.artifacts import Artifact
from edgecompress.benchmark.measurement import Measurement
from edgecompress.calibration import CalibrationAudit
from edgecompress.comparison import Comparison
from edgecompress.doctor import Diagnoses
from edgecompress.inspection import ModelSummary
from edgecompress.profiles import Profile, RecurrentLowering
from edgecompress.report.compression import print_passes
from edgecompress.report.forms import print_forms
from edgecompress.report.model import Report, Variant
from edgecompress.report.tables import (
    headline,
    in_bytes,
    in_count,
    in_ms,
    in_ratio,
    new_console,
    new_table,
    score_change,
    score_rows,
    verified_line,
)
from edgecompress.verify.evaluation import Evaluation

_MAX_CLASSES = 20


def print_report(report: Report) -> None:
    """Prints what a conversion did: before and after, proof, audit, notes."""
    console = new_console()
    table = new_table("", "float32", str(report.scheme), "change", right=(1, 2, 3))
    per_step = any(one.recurrent is RecurrentLowering.STEP and one.outcome == "chosen" for one in report.attempts)
    for row in _before_after(report.before, report.after, per_step=per_step):
        table.add_row(*row)
    source = report.source
    console.print(
        f"[bold]{escape(source.name)}[/] ({source.format}{_size_of(source.size_bytes)}) for [bold]{report.profile}[/]: "
        f"{report.scheme}, written to [bold]{escape(report.output)}[/]"
    )
    console.print(table)
    print_passes(console, report.passes)
    print_forms(console, report.attempts)
    console.print(verified_line(report.verified, report.passes))
    if report.audit is not None:
        _print_audit(console, report.audit)
    for note in report.notes:
        console.print(f"- {escape(note)}")
    for failure in report.failed:
        console.print(f"[bold red]FAILED[/] {escape(failure)}")
    console.print(f"[dim]again: {escape(shlex.join(report.command))}[/]")


def print_inspection(found: Artifact | ModelSummary) -> None:
    """Prints the operators of a .tflite file, or the layers of a Keras model."""
    if isinstance(found, Artifact):
        _print_artifact(new_console(), found)
    else:
        _print_summary(new_console(), found)


def print_evaluation(found: Evaluation) -> None:
    """Prints accuracy, and the confusion matrix where it fits."""
    console = new_console()
    console.print(f"[bold]{escape(found.model)}[/] on {escape(found.data)}, {found.scores.samples:,} labels")
    table = new_table("figure", "value", right=(1,))
    for name, value in score_rows(found.scores):
        table.add_row(name, value)
    console.print(table)
    confusion = found.scores.confusion
    if confusion is not None and len(confusion) <= _MAX_CLASSES:
        names = found.class_names or tuple(str(index) for index in range(len(confusion)))
        matrix = new_table("label \\ predicted", *map(escape, names), right=range(1, len(names) + 1))
        for name, row in zip(names, confusion, strict=False):
            matrix.add_row(escape(name), *(str(count) if count else "·" for count in row))
        console.print(matrix)


def print_measurements(names: Sequence[str], measurements: Iterable[Measurement]) -> None:
    """Prints latencies in milliseconds, where they were measured, and operators where asked for."""
    console = new_console()
    found = list(measurements)
    table = new_table("model", "median", "p90", "p95", "min", "std", "load", "memory", "runs", right=range(1, 9))
    for name, one in zip(names, found, strict=True):
        times = one.latency
        if times is None:
            table.add_row(escape(name), f"unavailable: {escape(one.unavailable_because or '')}", *[""] * 7)
            continue
        spread = (times.p90_ms, times.p95_ms, times.min_ms, times.std_ms, one.load_ms or 0.0)
        table.add_row(
            escape(name), in_ms(one, times.median_ms), *(f"{ms:.3f} ms" for ms in spread),
            "" if one.peak_memory_bytes is None else in_bytes(one.peak_memory_bytes), str(one.runs),
        )  # fmt: skip
    console.print(table)
    for name, one in zip(names, found, strict=True):
        console.print(f"[dim]{escape(name)}: {escape(_where(one))}[/]")
        if one.per_op_unavailable_because:
            console.print(f"- {escape(one.per_op_unavailable_because)}")
        if one.per_op:
            profile = new_table("operator", "µs", "share", right=(1, 2))
            for op in one.per_op:
                profile.add_row(escape(op.name), f"{op.mean_us:.1f}", f"{op.share:.1%}")
            console.print(profile)


def print_comparison(found: Comparison) -> None:
    """Prints models side by side; changes are against the first one."""
    console = new_console()
    labelled = any(row.scores for row in found.rows)
    table = new_table(
        "model", "parameters", "MACs", "file", "gzip", *(["score"] if labelled else []), "median", "against first",
        right=range(1, 8),
    )  # fmt: skip
    first = found.rows[0].measurement.latency
    for row in found.rows:
        times = row.measurement.latency
        alike = row.measurement.steps_per_run == found.rows[0].measurement.steps_per_run
        speed = (
            f"{times.median_ms / first.median_ms:.2f} x" if times is not None and first is not None and alike else ""
        )
        score = [headline(row.scores) if row.scores else ""] if labelled else []
        name = f"{row.model} (as float32 .tflite)" if row.as_float_tflite else row.model
        table.add_row(
            escape(name), f"{row.parameters:,}", in_count(row.macs), in_bytes(row.size_bytes), in_bytes(row.gzip_bytes),
            *score, "unavailable" if times is None else in_ms(row.measurement, times.median_ms), speed,
        )  # fmt: skip
    console.print(table)
    console.print(f"[dim]{escape(found.machine)}; {escape(_where(found.rows[0].measurement))}; runs took turns[/]")


def print_diagnoses(found: Diagnoses) -> None:
    """Prints what works here, and the fix for what does not."""
    console = new_console()
    console.print(f"[dim]{escape(found.machine)}[/]")
    table = new_table("", "what", "found", "for", "fix")
    table.columns[1].no_wrap = True
    for one in found.found:
        mark = "[green]yes[/]" if one.usable else "[yellow]no[/]"
        table.add_row(mark, one.name, escape(one.detail), one.needed_for, escape(one.fix or ""))
    console.print(table)


def print_profiles(found: Iterable[Profile]) -> None:
    """Prints one line a profile."""
    table = new_table("name", "device", "runs on", "schemes, best first")
    for profile in found:
        targets, schemes = ", ".join(profile.runtime.targets), ", ".join(profile.quantization.schemes)
        table.add_row(profile.name, escape(profile.title), targets, schemes)
    new_console().print(table)


def print_profile(profile: Profile) -> None:
    """Prints all that a profile says."""
    console = new_console()
    console.print(f"[bold]{profile.name}[/]: {escape(profile.title)}")
    if profile.description:
        console.print(escape(profile.description))
    table = new_table("field", "value")
    for part in ("chip", "runtime", "quantization", "kernels", "check", "limits", "package"):
        for name, value in getattr(profile, part).model_dump(mode="json", exclude_none=True).items():
            shown = ", ".join(value) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else value
            table.add_row(f"{part}.{name}", escape(str(shown)))
    console.print(table)
    for source in profile.sources:
        console.print(f"[dim]{escape(source.fact)}: {source.url}[/]")


def _before_after(before: Variant, after: Variant, *, per_step: bool) -> Iterable[tuple[str, str, str, str]]:
    yield "parameters", f"{before.parameters:,}", f"{after.parameters:,}", in_ratio(before.parameters, after.parameters)
    if per_step:
        yield "MACs", in_count(before.macs), f"{in_count(after.macs)} a step", ""
    else:
        yield "MACs", in_count(before.macs), in_count(after.macs), in_ratio(before.macs, after.macs)
    yield "file", in_bytes(before.size_bytes), in_bytes(after.size_bytes), in_ratio(before.size_bytes, after.size_bytes)
    yield "gzip", in_bytes(before.gzip_bytes), in_bytes(after.gzip_bytes), in_ratio(before.gzip_bytes, after.gzip_bytes)
    if before.vela_flash_bytes is not None or after.vela_flash_bytes is not None:
        old, new = (
            "" if size is None else in_bytes(size) for size in (before.vela_flash_bytes, after.vela_flash_bytes)
        )
        yield "Vela flash", old, new, in_ratio(before.vela_flash_bytes, after.vela_flash_bytes)
    if before.scores is not None and after.scores is not None:
        after_rows = dict(score_rows(after.scores))
        for name, value in score_rows(before.scores):
            yield name, value, after_rows[name], score_change(name, before.scores, after.scores)
    first, second = before.measurement, after.measurement
    if first is not None and second is not None and first.latency is not None and second.latency is not None:
        old_ms, new_ms = first.latency.median_ms, second.latency.median_ms
        change = in_ratio(old_ms, new_ms) if first.steps_per_run == second.steps_per_run else ""
        yield f"latency, {first.threads} thread(s)", in_ms(first, old_ms), in_ms(second, new_ms), change


def _print_audit(console: Console, audit: CalibrationAudit) -> None:
    ranges = "; ".join(
        f"{escape(one.name)} {one.minimum:g} to {one.maximum:g}, mean {one.mean:.3g}" for one in audit.inputs
    )
    labels = f", {len(audit.labels)} classes" if audit.labels else ""
    fit = (
        "" if audit.mismatch is None else f"; distance from training statistics {audit.mismatch:.2f} (below 1 is usual)"
    )
    console.print(f"calibrated on {audit.samples} samples{labels}: {ranges}{fit}")
    for finding in audit.findings:
        mark = "[bold yellow]WARNING[/]" if finding.level == "warning" else "-"
        fix = f" [bold]Fix:[/] {escape(finding.fix)}" if finding.fix else ""
        console.print(f"{mark} {escape(finding.text)}.{fix}")


def _print_artifact(console: Console, found: Artifact) -> None:
    console.print(
        f"[bold]{escape(found.path.name)}[/]: {in_bytes(found.size_bytes)}, {in_bytes(found.gzip_bytes)} as gzip"
    )
    for side, tensors in (("input", found.signature.inputs), ("output", found.signature.outputs)):
        for name, tensor in tensors.items():
            scale = "" if tensor.scale is None else f", scale {tensor.scale:g}, zero point {tensor.zero_point}"
            console.print(f"{side} {escape(name)}: {tensor.dtype} {list(tensor.shape)}{scale}")
    table = new_table("", "operator", "output", "type", "parameters", "MACs", "bytes", right=(0, 4, 5, 6))
    many = len({op.subgraph for op in found.ops}) > 1
    for op in found.ops:
        number = f"{op.subgraph}.{op.index}" if many else str(op.index)
        shape = "" if op.output_shape is None else str(list(op.output_shape))
        table.add_row(
            number, escape(op.name), escape(shape), op.output_dtype or "", f"{op.parameters:,}", in_count(op.macs),
            f"{op.weight_bytes:,}",
        )  # fmt: skip
    console.print(table)
    note = f" ({escape(found.macs_note)})" if found.macs_note else ""
    console.print(f"total: {found.parameters:,} parameters, {in_count(found.macs)} MACs{note}")
    if found.min_runtime_version:
        console.print(f"needs TensorFlow Lite {escape(found.min_runtime_version)} or later")


def _print_summary(console: Console, found: ModelSummary) -> None:
    console.print(f"[bold]{escape(found.name)}[/] ({found.format})")
    for side, tensors in (("input", found.inputs), ("output", found.outputs)):
        for name, tensor in tensors.items():
            console.print(f"{side} {escape(name)}: {tensor.dtype} {_shape(tensor.shape)}")
    table = new_table("layer", "kind", "output", "type", "parameters", "MACs", "bytes", right=(4, 5, 6))
    for layer in found.layers:
        table.add_row(
            escape(layer.name), layer.kind, _shape(layer.output_shape), layer.dtype,
            f"{layer.parameters:,}", in_count(layer.macs), f"{layer.bytes:,}",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"total: {found.parameters:,} parameters, {in_count(found.macs)} MACs, {in_bytes(found.bytes)} of weights"
    )
    for name in found.not_counted:
        console.print(f"- MACs not counted: {escape(name)}")


def _shape(shape: Sequence[int | None]) -> str:
    return escape("[" + ", ".join("?" if size is None else str(size) for size in shape) + "]")


def _where(measurement: Measurement) -> str:
    ran = measurement.ran_on
    if ran is None:
        return f"{measurement.kind}"
    runtime = f"{ran.runtime} {ran.runtime_version or ''}".strip()
    return f"{measurement.kind} on {ran.processor}: {runtime}, {ran.delegate}, {measurement.threads} thread(s)"


def _size_of(size: int | None) -> str:
    return "" if size is None else f", {in_bytes(size)}"
