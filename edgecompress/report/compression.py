"""Prints what passes will do (a plan), and what they did."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.markup import escape

from edgecompress.passes.base import Distilled, EpochLog, Fusion, LayerPlan, LayerProof, PassResult, Trained
from edgecompress.planning import Plan
from edgecompress.report.low_rank import print_left_alone, print_low_rank
from edgecompress.report.model import CompressReport
from edgecompress.report.tables import (
    counted,
    in_bytes,
    in_ratio,
    new_console,
    new_table,
    score_change,
    score_rows,
    verified_line,
)


def print_plan(found: Plan) -> None:
    """Prints one line a layer, one column a pass."""
    console = new_console()
    device = f" for [bold]{found.profile}[/]" if found.profile is not None else ""
    what = "what these passes will do" if found.asked else "what each technique would do, with its defaults"
    trains = f"; qat trains for {found.scheme}" if found.scheme is not None else ""
    console.print(f"[bold]{escape(found.model)}[/]{device}: {what}{trains}")
    table = new_table("layer", "kind", *(one.technique.kind for one in found.passes))
    rows: dict[str, dict[int, LayerPlan]] = {}
    # The pass that says something of the most layers gives the order, which is the model's.
    for column, one in sorted(enumerate(found.passes), key=lambda item: -len(item[1].layers)):
        for layer in one.layers:
            rows.setdefault(layer.layer, {})[column] = layer
    for name, cells in rows.items():
        kind = next(iter(cells.values())).kind
        table.add_row(escape(name), escape(kind), *(_cell(cells.get(column)) for column in range(len(found.passes))))
    console.print(table)
    console.print("[dim]-: the layer is left alone, and why[/]")
    for note in found.notes:
        console.print(f"- {escape(note)}")
    if found.refused is not None:
        layer = found.refused
        console.print(
            f"[bold red]REFUSED[/] {layer.technique} would end with an error at layer {escape(layer.layer)!r}"
        )


def print_compression(report: CompressReport) -> None:
    """Prints what passes made of a model: sizes, accuracy, proof of each layer, notes."""
    console = new_console()
    source = report.source
    kinds = ", ".join(one.kind for one in report.passes)
    console.print(f"[bold]{escape(source.name)}[/]: {kinds}, written to [bold]{escape(report.output)}[/]")
    table = new_table("", "before", "after", "change", right=(1, 2, 3))
    before, after = report.before, report.after
    taught = any(one.distilled is not None and one.distilled.teachers for one in report.passes)
    for name, old, new in (
        ("teacher's file, .keras file" if taught else ".keras file", before.size_bytes, after.size_bytes),
        ("gzip", before.gzip_bytes, after.gzip_bytes),
    ):
        table.add_row(name, in_bytes(old), in_bytes(new), in_ratio(old, new))
    old_scores, new_scores = report.verified.float_scores, report.verified.scores
    if old_scores is not None and new_scores is not None:
        new_rows = dict(score_rows(new_scores))
        for name, value in score_rows(old_scores):
            table.add_row(name, value, new_rows[name], score_change(name, old_scores, new_scores))
    console.print(table)
    _print_proof(console, report.passes)
    print_passes(console, report.passes)
    console.print(verified_line(report.verified, report.passes))
    for note in report.notes:
        console.print(f"- {escape(note)}")
    for failure in report.failed:
        console.print(f"[bold red]FAILED[/] {escape(failure)}")
    console.print(f"[dim]again: {escape(shlex.join(report.command))}[/]")


def print_passes(console: Console, passes: Iterable[PassResult]) -> None:
    """Prints of each pass how many layers it changed, what was reached, and how it trained."""
    for one in passes:
        applied = sum(layer.applies for layer in one.plan)
        left = f", {len(one.plan) - applied} left alone" if applied < len(one.plan) else ""
        console.print(f"[bold]{one.kind}[/]: {counted(applied, 'layer')}{left}{_reached(one.proof)}")
        if one.distilled is not None:
            console.print(f"  {escape(_taught(one.distilled))}")
        print_low_rank(console, one.ranks)
        for fusion in one.fusions:
            console.print(f"  {escape(_in_words(fusion))}")
        if one.fusions:  # where there are none, a note of the report has the reasons
            print_left_alone(console, ((layer.layer, layer.detail) for layer in one.plan if not layer.applies))
        if one.trained is not None:
            console.print(f"  {_trained_line(one.trained)}")


def _cell(layer: LayerPlan | None) -> str:
    if layer is None:
        return ""
    fix = f". [bold]Fix:[/] {escape(layer.fix)}" if layer.fix is not None else ""
    if layer.refused:
        return f"[bold red]refused:[/] {escape(layer.detail)}{fix}"
    return escape(layer.detail) if layer.applies else f"[dim]- {escape(layer.detail)}[/]{fix}"


def _print_proof(console: Console, passes: Sequence[PassResult]) -> None:
    table = new_table("pass", "layer", "weights", "asked", "zeros", "distinct values", right=(2, 4, 5))
    for one in passes:
        for layer in one.proof:
            table.add_row(
                one.kind, escape(layer.layer), f"{layer.weights:,}", escape(layer.wanted), f"{layer.sparsity:.1%}",
                f"{layer.distinct:,}",
            )  # fmt: skip
    if table.row_count:
        console.print(table)


def _in_words(fusion: Fusion) -> str:
    sizes = f"{fusion.params_before:,} -> {fusion.params_after:,} weights"
    return f"{' + '.join(fusion.layers)} -> {fusion.into} ({fusion.how}): {sizes}; {fusion.detail}"


def _taught(distilled: Distilled) -> str:
    weights = counted(distilled.student_params, "weight")
    if distilled.teacher_params is None:
        return f"{' and '.join(distilled.teachers)} taught a student of {weights}"
    share = distilled.teacher_params / max(1, distilled.student_params)
    return f"the model ({distilled.teacher_params:,} weights) taught a student of {weights} (1/{share:.3g})"


def _reached(proof: Sequence[LayerProof]) -> str:
    weights = sum(layer.weights for layer in proof)
    if not weights:
        return ""
    zeros = sum(layer.weights * layer.sparsity for layer in proof) / weights
    distinct = counted(max(one.distinct for one in proof), "distinct value")
    return f"; {zeros:.1%} of {counted(weights, 'weight')} are zero, at most {distinct}"


def _trained_line(trained: Trained) -> str:
    epochs, samples = counted(len(trained.epochs), "epoch"), counted(trained.samples, "sample")
    parts = [f"{epochs} on {samples}, {trained.validation_samples:,} to validate"]
    if trained.epochs:
        parts.append(", ".join(_courses(trained.epochs)))
    parts.append(f"kept epoch {trained.kept_epoch}" if trained.kept_epoch else "kept the weights from before")
    if trained.resumed_at is not None:
        parts.append(f"resumed at epoch {trained.resumed_at}")
    if trained.stopped is not None:
        parts.append(f"stopped: {trained.stopped}")
    parts.append(f"{trained.optimizer}, {trained.loss}")
    return escape("; ".join(parts))


def _courses(epochs: Sequence[EpochLog]) -> Iterator[str]:
    """How each figure went from the first epoch to the last."""
    first, last = epochs[0].figures, epochs[-1].figures
    for name, value in last.items():
        course = f"{first[name]:.4g} -> {value:.4g}" if name in first and len(epochs) > 1 else f"{value:.4g}"
        yield f"{name} {course}"
