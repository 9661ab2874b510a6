"""Builds the integer files of a network with recurrent layers, in each form that the device takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgecompress.candidates import Candidate, Task
from edgecompress.converters.cut import Cut
from edgecompress.converters.fused_lstm import require_fused
from edgecompress.converters.integer_cells import IntegerLayer
from edgecompress.converters.one_step import refuse_step
from edgecompress.converters.ptq import QuantizationJob
from edgecompress.converters.recurrent import RecurrentNetwork
from edgecompress.errors import ConversionError
from edgecompress.loaded import LoadedModel
from edgecompress.profiles import RecurrentLowering, Runtime
from edgecompress.report.model import Attempt
from edgecompress.schemes import QuantizationScheme

_MOST_UNROLLED = 512  # steps in all: beyond, the file has more operators than any accelerator's compiler takes
_WORTH_UNROLLING = 64  # steps in all: beyond, it is not tried where there are other forms
_LARGEST_TURN = 5


def build_forms(
    task: Task, scheme: QuantizationScheme, job: QuantizationJob, folder: Path, *, untrained: LoadedModel | None
) -> tuple[list[Candidate], list[Attempt]]:
    """Builds the files.

    Args:
        task: The model and the device.
        scheme: int8 or int16x8.
        job: How what is not recurrent is quantized.
        folder: Where they are written.
        untrained: The float model, if that of the task was trained with rounding simulated.

    Returns:
        The files, in the order of the profile's preference, and what was refused.

    Raises:
        ConversionError: There is no file in any form; says why.
    """
    forms = wanted_forms(task)
    if not forms:
        raise ConversionError(
            f"the profile {task.device.name!r} takes no recurrent layers", fix="add `recurrent` to its [quantization]"
        )
    samples = task.samples.calibration or task.samples.training
    if samples is None:
        raise ConversionError("needs calibration samples", fix="pass --data")
    folder.mkdir(exist_ok=True)
    network = RecurrentNetwork(
        task.source, task.samples.fixed, job, samples=samples, observer=task.recipe.quantization.observer,
        folder=folder, untrained=untrained, progress=lambda done, total: task.say("calibrate", done, total),
    )  # fmt: skip
    if len(forms) > 1 and set(network.kinds) != {"lstm"}:
        forms = tuple(form for form in forms if form is not RecurrentLowering.FUSED)  # which only LSTMs have
    built: list[Candidate] = []
    refused: list[Attempt] = []
    for form in forms:
        try:
            _refuse_long(form, network.steps, alone=len(forms) == 1)
            built += _build(task, scheme, network, form)
        except ConversionError as error:
            if len(forms) == 1:
                raise
            refused.append(Attempt(scheme=scheme, recurrent=form, outcome="refused", reason=str(error)))
    if not built:
        raise ConversionError("; ".join(f"{one.recurrent}: {one.reason}" for one in refused))
    return built, refused


def wanted_forms(task: Task) -> tuple[RecurrentLowering, ...]:
    """Returns the forms that recurrent layers may have, the best first."""
    wanted = task.recipe.quantization.recurrent
    return task.device.quantization.recurrent if wanted == "auto" else (RecurrentLowering(wanted),)


def refuse_form(parts: Cut, form: RecurrentLowering, scheme: QuantizationScheme) -> None:
    """Refuses a form that a network cannot have, as far as a look at its layers shows it.

    Raises:
        ConversionError: Says why.
    """
    _refuse_long(form, [site.steps for site in parts.sites], alone=True)
    if form is RecurrentLowering.STEP:
        refuse_step(parts)
    bits = 16 if scheme is QuantizationScheme.INT16X8 else 8
    for site in parts.sites if form is RecurrentLowering.FUSED else ():
        plan = IntegerLayer(site.layer, {}, bits, per_channel=False, name=site.layer.name)
        require_fused(plan, has_states=len(site.inputs) > 1, has_mask=site.mask is not None)


def _build(
    task: Task, scheme: QuantizationScheme, network: RecurrentNetwork, form: RecurrentLowering
) -> Iterator[Candidate]:
    # Microcontrollers have no room for the products of all steps.
    hoist = task.device.runtime.name is not Runtime.TFLITE_MICRO
    file = network.write(form, hoist=hoist)
    yield Candidate(file.path, scheme, form, stream=file.stream)
    turn = _turn(network.steps)
    if form is RecurrentLowering.LOOP and task.measured_here and turn > 1:
        yield Candidate(network.write(form, per_turn=turn, hoist=hoist).path, scheme, form, per_turn=turn)


def _turn(steps: Sequence[int]) -> int:
    """Returns how many steps a turn of the loops may have: as many as divide all sequences, up to a few."""
    common = math.gcd(*steps)
    return max(size for size in range(1, _LARGEST_TURN + 1) if common % size == 0)


def _refuse_long(form: RecurrentLowering, steps: Sequence[int], *, alone: bool) -> None:
    most = _MOST_UNROLLED if alone else _WORTH_UNROLLING
    if form is RecurrentLowering.UNROLLED and sum(steps) > most:
        raise ConversionError(
            f"{sum(steps)} steps are too many to write one after the other: the file grows with each",
            expected=f"at most {most}", fix="shorten the sequence, or use --recurrent loop",
        )  # fmt: skip
