"""Conv2D and Conv1D in factors: chains of smaller convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.decomposition.convolutions import (
    channel_factors,
    channel_spectrum,
    compose,
    cp_factors,
    spatial_factors,
    spatial_spectrum,
    tucker_factors,
    tucker_spectra,
)
from edgecompress.decomposition.matrices import relative_error
from edgecompress.passes.kernel_costs import Operator
from edgecompress.passes.low_rank.kind import (
    Call,
    Kept,
    Kind,
    LeftAloneError,
    Matrices,
    Moments,
    Ranks,
    Seen,
    Spectra,
    options_of,
    positions,
)

_IMAGE = 3  # axes of a sample: height, width, channels
_CP_SEED = 0
_MOST_ROWS = 65_536  # pixels of a batch that second moments are taken of
# What the layers of a chain are called after the original, whose name the last one keeps.
_SUFFIXES = {
    "channel": ("_in",),
    "spatial": ("_vertical",),
    "tucker": ("_in", "_core"),
    "cp": ("_in", "_vertical", "_horizontal"),
}


class ConvKind(Kind):
    """A convolution, channels last and without groups. A sequence is an image of height 1."""

    def __init__(self, layer: Any, calls: Sequence[Call]) -> None:
        if layer.data_format != "channels_last":
            raise LeftAloneError("its data format is channels_first, which TensorFlow Lite does not have")
        if layer.groups != 1:
            raise LeftAloneError(f"its {layer.groups} groups make its kernel small already")
        super().__init__(layer, calls)
        self._flat = len(layer.kernel_size) == 1
        kernel = np.asarray(layer.kernel, np.float32)
        self.image_kernel = kernel[None] if self._flat else kernel
        height, width, inputs, outputs = self.image_kernel.shape
        self.methods = ("channel",) if (height, width) == (1, 1) else ("channel", "spatial", "tucker", "cp")
        if self._flat or min(height, width) == 1:
            # One axis: a vertical part of size 1 only mixes channels, which Tucker does on both sides.
            self.methods = tuple(each for each in self.methods if each in ("channel", "tucker"))
        if any(stride != 1 for stride in layer.strides):
            # TensorFlow's depthwise convolutions take one stride for both axes.
            self.methods = tuple(each for each in self.methods if each != "cp")
        if min(inputs, outputs) == 1:
            self.methods = tuple(each for each in self.methods if each != "tucker")
        self._channels, self._answers, self._kept = Moments(), Moments(), Kept()
        self._cp: dict[Ranks, tuple[Array, ...]] = {}

    @property
    def kernels(self) -> tuple[Array, ...]:
        return (np.asarray(self.layer.kernel, np.float32),)

    @property
    def seen(self) -> bool:
        return self._channels.mean is not None

    def observe(self, seen: Seen) -> None:
        inputs = seen.inputs  # convolutions do not know masks
        self._channels.add(_few(inputs))
        self._answers.add(_few(self._convolve(inputs, self.kernels[0])))
        self._kept.add(inputs)

    def _convolve(self, inputs: Array, kernel: Array) -> Array:
        import keras

        layer = self.layer
        padding, strides, dilation = layer.padding, layer.strides, layer.dilation_rate
        if padding == "causal":
            left = dilation[0] * (layer.kernel_size[0] - 1)
            inputs, padding = np.pad(inputs, ((0, 0), (left, 0), (0, 0))), "valid"
        return np.asarray(keras.ops.conv(inputs, kernel, strides, padding, "channels_last", dilation))

    def matrices(self, method: str) -> Matrices:
        kernel = self.image_kernel
        height, width, inputs, outputs = kernel.shape
        if method == "spatial":
            return ((kernel.transpose(0, 2, 1, 3).reshape(height * inputs, width * outputs),),)
        if method == "tucker":
            by_input = kernel.transpose(2, 0, 1, 3).reshape(inputs, -1)
            return (by_input,), (kernel.reshape(-1, outputs),)
        return ((kernel.reshape(-1, outputs),),)

    def decompose(self, method: str) -> tuple[Spectra, ...]:
        kernel, channels, answers = self.image_kernel, self._channels.mean, self._answers.mean
        if method == "tucker":
            reduced, expanded = tucker_spectra(kernel, input_moments=channels, output_moments=answers)
            return Spectra((reduced,)), Spectra((expanded,))
        if method == "spatial":
            return (Spectra((spatial_spectrum(kernel, input_moments=channels),)),)
        return (Spectra((channel_spectrum(kernel, output_moments=answers),)),)

    def _factors(self, method: str, ranks: Ranks) -> tuple[Array, ...]:
        kernel = self.image_kernel
        if method == "tucker":
            channels, answers = self._channels.mean, self._answers.mean
            return tucker_factors(kernel, (ranks[0], ranks[1]), input_moments=channels, output_moments=answers)
        if method == "cp":
            if ranks not in self._cp:
                self._cp[ranks] = cp_factors(kernel, ranks[0], seed=_CP_SEED, input_moments=self._channels.mean)
            return self._cp[ranks]
        (spectrum,) = self.spectra(method)[0].each
        return (channel_factors if method == "channel" else spatial_factors)(kernel, spectrum, ranks[0])

    def factor_params(self, method: str, ranks: Ranks) -> int:
        stages = self._stages(method, ranks)
        weights = sum(
            rows * columns * inputs * (1 if deep else outputs) for rows, columns, inputs, outputs, deep in stages
        )
        return self.params - self.image_kernel.size + weights

    def _stages(self, method: str, ranks: Ranks) -> tuple[tuple[int, int, int, int, bool], ...]:
        """The kernels of a chain: height, width, inputs and outputs, and whether it is depthwise."""
        height, width, inputs, outputs = self.image_kernel.shape
        rank = ranks[-1]
        if method == "channel":
            return (height, width, inputs, rank, False), (1, 1, rank, outputs, False)
        if method == "spatial":
            return (height, 1, inputs, rank, False), (1, width, rank, outputs, False)
        if method == "tucker":
            return (1, 1, inputs, ranks[0], False), (height, width, ranks[0], rank, False), (1, 1, rank, outputs, False)
        return (
            (1, 1, inputs, rank, False), (height, 1, rank, rank, True), (1, width, rank, rank, True),
            (1, 1, rank, outputs, False),
        )  # fmt: skip

    def operators(self, call: Call, method: str | None = None, ranks: Ranks = ()) -> tuple[Operator, ...]:
        first, last = self._image(call.input), self._image(call.output)
        stages = ((*self.image_kernel.shape, False),) if method is None else self._stages(method, ranks)
        found, done = [], [False, False]
        for height, width, inputs, outputs, deep in stages:
            # Strides are done by the part that has the axis; a chain without one there strides in its first part.
            done = [done[0] or height == self.image_kernel.shape[0], done[1] or width == self.image_kernel.shape[1]]
            rows, columns = (end if ready else start for start, end, ready in zip(first, last, done, strict=True))
            summed = height * width * (1 if deep else inputs)
            kind: Any = "depthwise" if deep else "pointwise" if height * width == 1 else "conv"
            found.append(Operator(kind, rows * columns, summed, outputs))
        return tuple(found)

    def _image(self, shape: Sequence[int | None]) -> tuple[int, int]:
        sizes = shape[1:-1]
        return (1, positions(sizes)) if self._flat else (positions(sizes[:1]), positions(sizes[1:]))

    def build(self, method: str, ranks: Ranks) -> list[Any]:
        factors = self._factors(method, ranks)
        names = [self.layer.name + suffix for suffix in _SUFFIXES[method]] + [self.layer.name]
        chain = [self._part(factor, name, method) for factor, name in zip(factors, names, strict=True)]
        _place_strides(chain, factors, self)
        built = []
        shape: Any = self.calls[0].input
        for part, factor in zip(chain, factors, strict=True):
            layer = part.pop("kind")(**part)
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
            values = factor[0] if self._flat else factor
            layer.kernel.assign(values)
            built.append(layer)
        if self.layer.bias is not None:
            built[-1].bias.assign(self.layer.bias)
        return built

    def _part(self, factor: Array, name: str, method: str) -> dict[str, Any]:
        import keras

        layer, rank = self.layer, len(self.layer.kernel_size)
        deep = method == "cp" and name.endswith(("_vertical", "_horizontal"))
        size = factor.shape[1:2] if self._flat else factor.shape[:2]
        last = name == layer.name
        part = options_of(layer) | {"kernel_size": size, "padding": layer.padding, "name": name, "use_bias": False}
        if deep:
            return part | {"kind": keras.layers.DepthwiseConv2D, "depthwise_regularizer": layer.kernel_regularizer}
        part |= {
            "kind": keras.layers.Conv1D if rank == 1 else keras.layers.Conv2D, "filters": factor.shape[3],
            "kernel_regularizer": layer.kernel_regularizer,
        }  # fmt: skip
        if last:
            part |= {
                "use_bias": layer.use_bias, "activation": layer.activation, "bias_regularizer": layer.bias_regularizer,
                "activity_regularizer": layer.activity_regularizer,
            }  # fmt: skip
        return part

    def errors(self, method: str, ranks: Ranks) -> tuple[float, float | None]:
        kernel, approximate = self.image_kernel, compose(self._factors(method, ranks))
        old, new = self.kernels[0], approximate[0] if self._flat else approximate
        lost = self._kept.error(lambda inputs: self._convolve(inputs, old), lambda inputs: self._convolve(inputs, new))
        return relative_error(kernel, approximate), lost


def _few(images: Array) -> Array:
    rows = images.reshape(-1, images.shape[-1])
    return rows[:: max(1, len(rows) // _MOST_ROWS)]


def _place_strides(chain: Sequence[dict[str, Any]], factors: Sequence[Array], kind: ConvKind) -> None:
    """Gives each axis's stride and dilation to the first part of a chain that has the whole kernel along that axis."""
    layer, whole = kind.layer, kind.image_kernel.shape
    axes = (1,) if len(layer.kernel_size) == 1 else (0, 1)
    for part in chain:
        part["strides"], part["dilation_rate"] = [1] * len(axes), [1] * len(axes)
    for place, axis in enumerate(axes):
        index = next(n for n, factor in enumerate(factors) if factor.shape[axis] == whole[axis])
        chain[index]["strides"][place] = layer.strides[place]
        chain[index]["dilation_rate"][place] = layer.dilation_rate[place]
