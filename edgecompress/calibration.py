"""The calibration audit: do these samples look like what the model was trained on?

A calibration set in the wrong range ([0, 255] given to a model trained on [0, 1]) gives a file that converts without
a word and is wrong. Where the model has BatchNormalization, the statistics it learned say what its inputs looked like.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from edgecompress.data import Array, Dataset
from edgecompress.loaded import LoadedModel, flatten_layers, graph_layers

_PROBE_SAMPLES = 64
_PROBE_VALUES = 2_000_000  # a dozen photographs say enough, and more would take seconds
_FEW_SAMPLES = 50
_MISMATCH = 1.2  # mean or log-variance of activations off by this much (in standard deviations, nats) is suspicious
_FAR_BETTER = 0.3  # another range must cut the mismatch to this share before it is proposed,
_CONVINCING = 0.6  # and to less than this
_LARGE_VALUES = 32.0  # an image model without a scaling layer is hardly ever trained on such values
_TINY_SPAN = 0.05  # of samples behind a Rescaling layer; trained networks see about 1 or 2
_LARGEST_PIXEL = 255
_IMAGE_RANK = 4
_OUTLIER_RATIO = 10.0  # full range against the range of 99.8 % of the values
_IMBALANCE = 10.0
# Ways in which samples and training data commonly differ: how the samples would have to be changed.
_RANGE_MISTAKES: Mapping[str, tuple[float, float]] = {
    "divide by 255": (1 / 255, 0.0),
    "divide by 127.5 and subtract 1": (1 / 127.5, -1.0),
    "multiply by 255": (255.0, 0.0),
    "multiply by 2 and subtract 1": (2.0, -1.0),
    "add 1 and divide by 2": (0.5, 0.5),
}


class InputRange(BaseModel):
    """The values of one input's calibration samples."""

    model_config = ConfigDict(frozen=True)

    name: str
    minimum: float
    maximum: float
    mean: float
    std: float
    constant_channels: int


class Finding(BaseModel):
    """Something about the samples that a user should know."""

    model_config = ConfigDict(frozen=True)

    level: Literal["warning", "note"]
    text: str
    fix: str | None = None


class CalibrationAudit(BaseModel):
    """What the calibration samples look like.

    Attributes:
        samples: Number of samples used.
        inputs: The values of each input.
        labels: Samples of each class, by class number, where there are labels.
        mismatch: How far the activations before the first BatchNormalization are from the statistics it learned (see
            `activation_mismatch`); None where the model has none.
        findings: What is suspicious, the worst first.
    """

    model_config = ConfigDict(frozen=True)

    samples: int
    inputs: tuple[InputRange, ...]
    labels: dict[int, int] | None = None
    mismatch: float | None = None
    findings: tuple[Finding, ...] = ()


def audit_calibration(model: LoadedModel, samples: Dataset) -> CalibrationAudit:
    """Compares calibration samples with what the model seems to expect."""
    counts = _label_counts(samples.labels)
    values = sum(array[0].size for array in samples.inputs.values())
    probe = samples.select(np.arange(min(len(samples), _PROBE_SAMPLES, max(8, _PROBE_VALUES // values))))
    mismatch, findings = _audit_range(model, probe)
    ranges = tuple(_describe(name, array) for name, array in samples.inputs.items())
    for described in ranges:
        findings += _audit_input(described, samples.inputs[described.name])
    findings += _audit_labels(counts)
    if len(samples) < _FEW_SAMPLES:
        findings.append(
            Finding(level="note", text=f"only {len(samples)} samples", fix="100 to 500 usually give better ranges")
        )
    findings.sort(key=lambda finding: finding.level != "warning")
    return CalibrationAudit(
        samples=len(samples), inputs=ranges, labels=counts, mismatch=mismatch, findings=tuple(findings)
    )


def activation_mismatch(activations: Array, mean: Array, variance: Array) -> float:
    """Returns how far activations are from a BatchNormalization layer's moving statistics.

    Args:
        activations: Array of shape (…, channels), the layer's input.
        mean: Moving mean, shape (channels,).
        variance: Moving variance, shape (channels,).

    Returns:
        The larger of two medians over the channels: the difference of means in learned standard deviations, and the
        absolute logarithm of the ratio of variances.
    """
    flat = activations.reshape(-1, activations.shape[-1]).astype(np.float64)
    floor = 1e-6 + 1e-3 * float(np.median(variance))
    deviation = np.sqrt(np.maximum(variance, floor))
    shift = np.abs(flat.mean(0) - mean) / deviation
    spread = np.abs(np.log((flat.var(0) + floor) / (np.maximum(variance, 0) + floor)))
    return float(max(np.median(shift), np.median(spread)))


def _audit_range(model: LoadedModel, probe: Dataset) -> tuple[float | None, list[Finding]]:
    normalized = _first_batch_norm(model)
    if normalized is None:
        return None, _audit_range_without_statistics(model, probe)
    run, mean, variance = normalized
    now = activation_mismatch(run(probe.inputs), mean, variance)
    if now <= _MISMATCH:
        return now, []
    scores = {"": now}
    floating = all(array.dtype.kind == "f" for array in probe.inputs.values())
    for change, (scale, offset) in _RANGE_MISTAKES.items() if floating else ():
        changed = {name: (array * scale + offset).astype(array.dtype) for name, array in probe.inputs.items()}
        scores[change] = activation_mismatch(run(changed), mean, variance)
    best = min(scores, key=lambda change: scores[change])
    if best and scores[best] <= min(_CONVINCING, _FAR_BETTER * now):
        text = (
            "the samples are not in the range the model was trained on: activations differ from its BatchNormalization "
            f"statistics by {now:.1f}, and by {scores[best]:.1f} if you {best}"
        )
        return now, [Finding(level="warning", text=text, fix=_range_fix(best, probe))]
    text = f"activations differ from the model's BatchNormalization statistics by {now:.1f} (below 1 is usual)"
    return now, [Finding(level="warning", text=text, fix="check that samples are preprocessed as in training")]


def _range_fix(change: str, probe: Dataset) -> str:
    if all(array.max() > 2 and array.min() >= 0 for array in probe.inputs.values()):  # noqa: PLR2004 (not [0, 1])
        ranges = {"divide by 255": "0,1", "divide by 127.5 and subtract 1": "-1,1"}
        if change in ranges:
            return f"{change} before saving, or pass --input-range {ranges[change]} with 8-bit samples"
    return f"{change} before saving the samples"


def _audit_range_without_statistics(model: LoadedModel, probe: Dataset) -> list[Finding]:
    layers = list(flatten_layers(model.model)) if model.is_keras else []
    rescaling = next((layer for layer in layers if type(layer).__name__ == "Rescaling"), None)
    if rescaling is not None:
        return _audit_rescaled(rescaling, probe)
    if not layers or any(type(layer).__name__ == "Normalization" for layer in layers):
        return []
    findings = []
    for spec in model.inputs:
        array = probe.inputs[spec.name]
        largest = float(np.abs(array).max())
        whole = array.min() >= 0 and array.max() <= _LARGEST_PIXEL and np.array_equal(array, np.round(array))
        pixels = whole or len(spec.shape) == _IMAGE_RANK
        if pixels and np.dtype(spec.dtype).kind == "f" and largest > _LARGE_VALUES:
            text = (
                f"input {spec.name!r} has values up to {largest:g}, and the model neither scales its input nor has "
                "BatchNormalization to compare with: networks are usually trained on [0, 1] or [-1, 1]"
            )
            fix = "if it was, pass --input-range 0,1 (or -1,1) with 8-bit samples, or scale them before saving"
            findings.append(Finding(level="warning", text=text, fix=fix))
    return findings


def _audit_rescaled(rescaling: Any, probe: Dataset) -> list[Finding]:
    """A model that divides by 255 itself takes [0, 255]; samples in [0, 1] come out as almost nothing."""
    span = max(float(array.max()) - float(array.min()) for array in probe.inputs.values())
    scale = float(np.max(np.abs(rescaling.scale)))
    if span == 0 or span * scale > _TINY_SPAN:
        return []
    text = f"the model's Rescaling layer multiplies by {scale:g}, and leaves a range of only {span * scale:g}"
    fix = "give samples as the model was trained on, e.g. pixels from 0 to 255 rather than 0 to 1"
    return [Finding(level="warning", text=text, fix=fix)]


def _first_batch_norm(model: LoadedModel) -> tuple[Any, Array, Array] | None:
    """Returns a function from inputs to the first BatchNormalization's input, and the statistics that it learned."""
    found = _up_to_batch_norm(model.model, model.framework) if model.is_keras else None
    if found is None:
        return None
    layer, submodel = found
    mean, variance = np.asarray(layer.moving_mean), np.asarray(layer.moving_variance)
    axis = layer.axis[0] if isinstance(layer.axis, (list, tuple)) else layer.axis
    never_trained = not mean.any() and (variance == 1).all()
    if never_trained or axis not in (-1, len(submodel.output.shape) - 1):
        return None

    def run(inputs: Mapping[str, Array]) -> Array:
        return np.asarray(submodel([inputs[spec.name] for spec in model.inputs], training=False))

    return run, mean, variance


def _up_to_batch_norm(model: Any, framework: str) -> tuple[Any, Any] | None:
    """Returns the first BatchNormalization in a model or its nested models, and the part of the model before it."""
    for layer, tensors in graph_layers(model):
        if type(layer).__name__ == "BatchNormalization":
            return layer, _new_model(framework, model.inputs, tensors[0])
        nested = _up_to_batch_norm(layer, framework)
        if nested is not None:
            norm, before = nested
            return norm, _new_model(framework, model.inputs, before(list(tensors)))
    return None


def _new_model(framework: str, inputs: Any, outputs: Any) -> Any:
    if framework == "tf_keras":
        import tf_keras as keras
    else:
        import keras
    return keras.Model(list(inputs), outputs)


def _describe(name: str, array: Array) -> InputRange:
    flat = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(-1, 1)
    constant = int((flat.min(0) == flat.max(0)).sum()) if len(flat) > 1 else 0
    return InputRange(
        name=name,
        minimum=float(array.min()),
        maximum=float(array.max()),
        mean=float(array.mean(dtype=np.float64)),
        std=float(array.std(dtype=np.float64)),
        constant_channels=constant,
    )


def _audit_input(described: InputRange, array: Array) -> list[Finding]:
    findings = []
    name = described.name
    if described.minimum == described.maximum:
        text = f"input {name!r} has the same value everywhere ({described.minimum:g})"
        return [Finding(level="warning", text=text, fix="check how the samples were made")]
    if described.constant_channels and array.dtype.kind == "f":  # the last axis of token numbers is time
        text = f"input {name!r}: {described.constant_channels} of {array.shape[-1]} channels never change"
        findings.append(Finding(level="warning", text=text, fix="check that these channels carry data"))
    if array.dtype.kind == "f":
        low, high = np.quantile(array.reshape(-1)[:1_000_000], (0.001, 0.999))
        usual, full = float(high - low), described.maximum - described.minimum
        if usual > 0 and full > _OUTLIER_RATIO * usual:
            text = (
                f"input {name!r}: a few outliers set its range ({described.minimum:g} to {described.maximum:g}, but "
                f"99.8 % of the values lie in {low:g} to {high:g})"
            )
            findings.append(Finding(level="warning", text=text, fix="remove or clip the outliers"))
    return findings


def _label_counts(labels: Array | None) -> dict[int, int] | None:
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iub":
        return None
    values, counts = np.unique(labels, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def _audit_labels(counts: dict[int, int] | None) -> list[Finding]:
    if not counts or max(counts.values()) <= _IMBALANCE * min(counts.values()):
        return []
    least, most = min(counts, key=lambda k: counts[k]), max(counts, key=lambda k: counts[k])
    text = f"unbalanced labels: {counts[most]} samples of class {most}, {counts[least]} of class {least}"
    return [Finding(level="note", text=text, fix="calibrate with a more even set if rare classes matter")]
