"""Runs the finished file against the float model, and keeps golden vectors that prove it elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from edgecompress.data import Array, InputSpec
from edgecompress.verify.metrics import OutputError, Scores, compare_outputs, score

GOLDEN_SAMPLES = 8
SampleKind = Literal["held-out", "calibration", "seeded-random"]


class Verified(BaseModel):
    """The finished file compared with the float model.

    Attributes:
        samples: Number of samples.
        kind: Where they come from: held out of the calibration, the calibration samples themselves (when there was
            but one), or seeded random numbers (when there was no data; then only the errors mean something).
        outputs: Errors against the float model, one entry an output.
        float_scores: The float model on the labels, where there are labels.
        scores: The finished file on the labels.
    """

    model_config = ConfigDict(frozen=True)

    samples: int
    kind: SampleKind
    outputs: tuple[OutputError, ...]
    float_scores: Scores | None = None
    scores: Scores | None = None

    @property
    def accuracy_drop(self) -> float | None:
        """The float model's accuracy less the file's, as a fraction; without labels, the share of changed answers."""
        if self.float_scores is not None and self.scores is not None:
            before, after = self.float_scores.accuracy, self.scores.accuracy
            return None if before is None or after is None else before - after
        agreements = [output.top1_agreement for output in self.outputs if output.top1_agreement is not None]
        return 1 - min(agreements) if agreements else None


def verify(
    reference: Mapping[str, Array], outputs: Mapping[str, Array], labels: Array | None, kind: SampleKind
) -> Verified:
    """Compares the outputs of the finished file with the float model's, for the same samples.

    Args:
        reference: The float model's outputs, arrays of shape (samples, …), by name.
        outputs: The file's outputs, dequantized, likewise.
        labels: Labels of shape (samples, …), or None.
        kind: Where the samples come from.

    Raises:
        DataError: The labels fit no output.
        ConversionError: The file answers NaN or infinity where the float model does not.
    """
    outputs = {name: outputs[name] for name in reference}  # in one order, for the labels to choose the same output
    return Verified(
        samples=len(next(iter(reference.values()))),
        kind=kind,
        outputs=compare_outputs(reference, outputs),
        float_scores=None if labels is None else score(reference, labels),
        scores=None if labels is None else score(outputs, labels),
    )


def random_inputs(specs: tuple[InputSpec, ...], *, samples: int, seed: int) -> dict[str, Array]:
    """Returns seeded random inputs for a run without data: floats in [0, 1), integers 0 or 1, valid for any table."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for spec in specs:
        shape = (samples, *(size or 1 for size in spec.sample_shape))
        floating = np.dtype(spec.dtype).kind == "f"
        inputs[spec.name] = (rng.random(shape) if floating else rng.integers(0, 2, shape)).astype(spec.dtype)
    return inputs


def write_golden(
    path: Path, inputs: Mapping[str, Array], reference: Mapping[str, Array], outputs: Mapping[str, Array]
) -> None:
    """Writes the first samples with what the float model and the file answer.

    The archive holds arrays `input.<name>`, `float.<name>` and `output.<name>`, each of shape (samples, …).
    """
    groups = {"input": inputs, "float": reference, "output": outputs}
    arrays = {
        f"{group}.{name}": array[:GOLDEN_SAMPLES] for group, named in groups.items() for name, array in named.items()
    }
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # the stub takes **kwds for its own flag
