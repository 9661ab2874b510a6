"""Integer files of networks with recurrent layers, in one of several forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from edgecompress.converters.cut import Cut, Site, cut
from edgecompress.converters.fused_lstm import write_fused
from edgecompress.converters.integer_cells import IntegerLayer
from edgecompress.converters.integer_forms import write_loop, write_step, write_unrolled
from edgecompress.converters.joining import Border, Write, join, plan_names
from edgecompress.converters.one_step import OneStep, find_one_step
from edgecompress.converters.outer import Outer, quantized_outer, trained_outer
from edgecompress.converters.ptq import QuantizationJob, io_type
from edgecompress.converters.recording import record
from edgecompress.data import Array, Dataset, InputSpec
from edgecompress.isolate import Progress
from edgecompress.loaded import LoadedModel
from edgecompress.profiles import RecurrentLowering
from edgecompress.recurrent.observing import observe
from edgecompress.recurrent.scales import Range, activation_scales, range_of
from edgecompress.schemes import Granularity, Observer, QuantizationScheme
from edgecompress.streaming import Stream, StreamState, with_stream

_STEP_SAMPLES = 500  # single steps that show the ranges of what only the file of one step has


@dataclass(frozen=True)
class RecurrentFile:
    """A finished file; `stream` says how it is run if it is that of one step."""

    path: Path
    stream: Stream | None = None


class RecurrentNetwork:
    """A network whose files are to be made.

    Args:
        source: The model; a tf_keras model with ranges if it was trained with rounding simulated.
        fixed: Its inputs with every dimension known, a batch of 1.
        job: Scheme, algorithm, granularity and borders.
        samples: Real samples: they set the ranges, unless these were trained.
        observer: How ranges inside of the cells are found.
        folder: Where files are written.
        untrained: The float model that a trained one was made of.
        progress: Called with (samples done, samples) while the quantizer looks at samples.

    Raises:
        ConversionError: A recurrent layer has no integer form; names it, and why.
    """

    def __init__(  # noqa: PLR0913 (each is one of the conversion's conditions)
        self, source: LoadedModel, fixed: Sequence[InputSpec], job: QuantizationJob, *, samples: Dataset,
        observer: Observer, folder: Path, untrained: LoadedModel | None = None,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self._source, self._fixed, self._job, self._samples = source, fixed, job, samples
        self._folder, self._progress = folder, progress
        self._untrained = untrained or source
        self._whole = cut(source, fixed)
        sites = self._whole.sites
        self._trained = bool(sites) and all(site.ranges is not None for site in sites)
        self._recorded = {} if self._trained else record(source, fixed, samples, self._whole)
        self._plans = self._make_plans(observer)
        self._outer: Outer | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        """Lengths of the sequences of its recurrent layers."""
        return tuple(site.steps for site in self._whole.sites)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of its recurrent layers: "gru", "lstm" or "simple_rnn"."""
        return tuple(site.layer.kind for site in self._whole.sites)

    def write(self, lowering: RecurrentLowering, *, per_turn: int = 1, hoist: bool = True) -> RecurrentFile:
        """Writes the file in one form.

        Args:
            lowering: The form.
            per_turn: Steps in one turn of a loop; divides their number.
            hoist: A loop's inputs are multiplied before it, all at once: quicker, but the products need memory.

        Raises:
            ConversionError: The network has no such form; says why.
        """
        file = self._folder / f"{self._job.scheme}_{lowering}_{per_turn}.tflite"
        if lowering is RecurrentLowering.STEP:
            return self._write_step(file)
        write: Write = write_fused if lowering is RecurrentLowering.FUSED else write_unrolled
        if lowering is RecurrentLowering.LOOP:
            write = partial(write_loop, per_turn=per_turn, hoist=hoist)
        joined = join(self._whole, _content(self._whole_outer()), self._plans, write, self._border)
        file.write_bytes(joined.content)
        return RecurrentFile(file)

    def _write_step(self, file: Path) -> RecurrentFile:
        form = find_one_step(self._untrained, self._fixed, self._samples)
        parts = cut(self._source, self._fixed, one_step=True)
        outer = self._quantize(parts, self._single_steps(form), self._whole_outer())
        joined = join(parts, _content(outer), self._plans, write_step, self._border, one_step=True)
        states = tuple(StreamState(input=taken, output=given) for taken, given in joined.states)
        stream = Stream(steps=self.steps[0], inputs=form.inputs, outputs=form.outputs, states=states)
        file.write_bytes(with_stream(joined.content, stream))
        return RecurrentFile(file, stream)

    @property
    def _border(self) -> Border:
        return Border(io_type(self._job.scheme, self._job.input_type), io_type(self._job.scheme, self._job.output_type))

    def _make_plans(self, observer: Observer) -> tuple[IntegerLayer, ...]:
        bits = 16 if self._job.scheme is QuantizationScheme.INT16X8 else 8
        names = plan_names(self._whole)
        return tuple(
            IntegerLayer(
                site.layer, activation_scales(site.layer, self._ranges_of(site, observer), bits), bits,
                self._job.dense is Granularity.PER_CHANNEL, name,
            )
            for name, site in zip(names, self._whole.sites, strict=True)
        )  # fmt: skip

    def _ranges_of(self, site: Site, observer: Observer) -> Mapping[str, Range]:
        if site.ranges is not None:
            return site.ranges
        x, *states = (self._recorded[name] for name in site.inputs)
        mask = None if site.mask is None else self._recorded[site.mask]
        return observe(site.layer, x, states, mask, observer)

    def _whole_outer(self) -> Outer | None:
        """Returns the quantized file of what is not recurrent."""
        if self._outer is None and self._whole.outer is not None:
            self._outer = self._quantize(self._whole, {**self._samples.inputs, **self._recorded})
        return self._outer

    def _quantize(self, parts: Cut, samples: Mapping[str, Array], like: Outer | None = None) -> Outer | None:
        if parts.outer is None:
            return None
        if self._trained:
            return trained_outer(parts.outer, self._folder)
        ranges = {
            name: range_of(plan.state_scale(f"state_{max(place - 1, 0)}"))
            for site, plan in zip(parts.sites, self._plans, strict=True)
            for place, name in enumerate(site.outputs)
        }
        return quantized_outer(
            parts.outer, self._folder, self._job, samples, ranges, like=like, progress=self._progress
        )

    def _single_steps(self, form: OneStep) -> dict[str, Array]:
        """Returns single steps of the samples, for the ranges of what the file of whole sequences does not have."""
        if self._trained:
            return {}
        steps, count = self.steps[0], len(self._samples)
        places = np.linspace(0, count * steps - 1, min(_STEP_SAMPLES, count * steps)).astype(int)
        rows, columns = np.divmod(places, steps)
        found = {
            name: array[rows, columns][:, None] if name in form.inputs else array[rows]
            for name, array in self._samples.inputs.items()
        }
        per_step = {site.outputs[0] for site in self._whole.sites if site.layer.return_sequences}
        per_step |= {mask.output for mask in self._whole.masks}
        for name in per_step.union(*(site.outputs for site in self._whole.sites)):
            array = self._recorded[name]
            found[name] = array[rows, columns][:, None] if name in per_step else array[rows]
        return found


def _content(outer: Outer | None) -> bytes | None:
    return None if outer is None else outer.content
