"""The names of quantization: schemes, algorithms, granularity, and the types of a model's inputs and outputs."""

from __future__ import annotations

from enum import StrEnum


class QuantizationScheme(StrEnum):
    """What is stored and computed in which number type.

    `int8` and `int16x8` need calibration data (activations are quantized too); the others do not.
    """

    INT8 = "int8"  # weights and activations int8: integer arithmetic only
    INT16X8 = "int16x8"  # weights int8, activations int16
    DYNAMIC = "dynamic"  # weights int8, activations quantized while running
    INT4_WEIGHTS = "int4_weights"  # weights int4, activations quantized while running
    FLOAT16 = "float16"  # weights float16, arithmetic in float
    FLOAT32 = "float32"

    @property
    def needs_calibration(self) -> bool:
        return self in (QuantizationScheme.INT8, QuantizationScheme.INT16X8)


class Algorithm(StrEnum):
    """How the scale of a quantized weight is found (litert-quantizer's algorithms)."""

    MIN_MAX = "min_max"
    MSE = "mse"
    OCTAV = "octav"
    GPTQ = "gptq"


class Observer(StrEnum):
    """How the range of an activation inside a recurrent layer is found."""

    MIN_MAX = "min_max"  # all that occurred
    PERCENTILE = "percentile"  # without the outermost 0.01 % at either end
    MSE = "mse"  # the range with the least mean squared error of rounding


class Granularity(StrEnum):
    """One scale for a whole Dense kernel, or one for each of its output channels."""

    PER_CHANNEL = "per_channel"
    PER_TENSOR = "per_tensor"


class IoType(StrEnum):
    """The number type of a model's inputs or outputs, as its caller sees it."""

    FLOAT32 = "float32"
    INT8 = "int8"
    INT16 = "int16"
    UINT8 = "uint8"
