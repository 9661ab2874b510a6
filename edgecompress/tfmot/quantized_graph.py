"""Makes a tf_keras model of a lowered graph, each primitive in a TFMOT quantization wrapper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.data import InputSpec
from edgecompress.schemes import Granularity, QuantizationScheme
from edgecompress.techniques import Qat
from edgecompress.tfmot.library import import_tfmot
from edgecompress.tfmot.lowering import Lowered, Node
from edgecompress.tfmot.primitives import PRIMITIVES
from edgecompress.tfmot.scales import Scale, state_key

_SMALLEST_WEIGHT = 1e-7  # the range of a channel of zeros: a scale of zero is no scale
_LARGEST_BIAS = 2**30  # half of what 32 bits hold: the sum of the products needs room, too
# Bits of activations (None: they stay float) and of weights.
_BITS = {
    QuantizationScheme.INT8: (8, 8),
    QuantizationScheme.INT16X8: (16, 8),
    QuantizationScheme.DYNAMIC: (None, 8),
    QuantizationScheme.INT4_WEIGHTS: (None, 4),
}


@dataclass(frozen=True)
class QuantizedKernel:
    """A weight that is rounded.

    Attributes:
        layer_name: The Keras layer that it belongs to.
        layer: The layer of the primitive.
        name: Its name there.
        quantizer: Rounds it.
        ranges: The quantizer's variables.
        input_step: The step of the scale of what it is multiplied with; None if that stays float.
    """

    layer_name: str
    layer: Any
    name: str
    quantizer: Any
    ranges: Any
    input_step: float | None

    @property
    def variable(self) -> Any:
        return self.layer.variables_by_name[self.name]

    def settle(self) -> None:
        """Restores the weight's pattern, and sets its range to what it holds now.

        While training, the range is that of the step before.
        """
        self.variable.assign(self.quantizer.keep(self.variable))
        self.quantizer(self.variable, True, weights=self.ranges)
        floor = np.maximum(_SMALLEST_WEIGHT, self._range_for_bias())
        self.ranges["min_var"].assign(np.minimum(self.ranges["min_var"].numpy(), -floor))
        self.ranges["max_var"].assign(np.maximum(self.ranges["max_var"].numpy(), floor))

    def _range_for_bias(self) -> Any:
        """The smallest range with which the bias fits into 32 bits: its step is that of weight times input."""
        bias = self.layer.variables_by_name.get("bias")
        if bias is None or self.input_step is None:
            return 0.0
        needed = np.abs(bias.numpy()) / self.input_step / _LARGEST_BIAS * (2 ** (self.quantizer.num_bits - 1) - 1)
        return needed if self.quantizer.per_axis else needed.max()


@dataclass(frozen=True)
class QuantizedGraph:
    """A model that trains with quantization simulated.

    Attributes:
        model: The tf_keras model; its inputs and outputs are flat lists.
        plain: The same layers without quantization: the weights are shared.
        kernels: Each weight that is rounded.
    """

    model: Any
    plain: Any
    kernels: tuple[QuantizedKernel, ...]

    def settle(self) -> None:
        """Makes of all kernels and their ranges what the file will hold."""
        for kernel in self.kernels:
            kernel.settle()


def trains_quantized(scheme: QuantizationScheme) -> bool:
    """Whether a scheme rounds anything that training could get used to."""
    return scheme in _BITS


def build_quantized(
    lowered: Lowered, scales: Sequence[Scale], ranges: Sequence[tuple[float, float]], fixed: Sequence[InputSpec],
    scheme: QuantizationScheme, spec: Qat, recurrent: Granularity = Granularity.PER_CHANNEL,
) -> QuantizedGraph:  # fmt: skip
    """Builds the model.

    Args:
        lowered: The graph, folded.
        scales: Which results share a scale.
        ranges: What each scale starts from.
        fixed: The inputs with every dimension but the batch known.
        scheme: Says how many bits activations and weights have.
        spec: Says what of the weights' pattern is kept.
        recurrent: Of the kernels of recurrent layers; those of Dense layers have one scale each.
    """
    return _Builder(lowered, scales, ranges, scheme, spec, recurrent).build(fixed)


class _Builder:
    def __init__(
        self, lowered: Lowered, scales: Sequence[Scale], ranges: Sequence[tuple[float, float]],
        scheme: QuantizationScheme, spec: Qat, recurrent: Granularity,
    ) -> None:  # fmt: skip
        self._lowered = lowered
        self._spec = spec
        self._recurrent = recurrent
        self._activation_bits, self._weight_bits = _BITS[scheme]
        import_tfmot()
        from edgecompress.tfmot.quantizers import result_quantizer

        self._quantizers: dict[Node, Any] = {}
        self._tables: dict[Node, Any] = {}
        self._starts: dict[Node, tuple[float, float]] = {}
        self._steps: dict[Node, float] = {}
        # The quantizers of states of recurrent layers, and what they start from.
        self._states: dict[object, tuple[Any, tuple[float, float]]] = {}
        for scale, start in zip(scales, ranges, strict=True) if self._activation_bits is not None else ():
            quantizer = result_quantizer(bits=self._activation_bits or 0, fixed=scale.fixed, shared=scale.shared)
            low, high = scale.fixed or start
            self._steps.update((node, (high - low) / (2 ** (self._activation_bits or 0) - 1)) for node in scale.members)
            for node in scale.nodes:
                if scale.inner:
                    self._states[state_key(node)] = quantizer, start
                else:
                    self._quantizers[node], self._starts[node] = quantizer, start
            if scale.shared:
                self._tables.update((table, quantizer) for table in scale.tables)
                self._starts.update((table, start) for table in scale.tables)
        self._wrappers: dict[object, Any] = {}
        self._kernels: list[QuantizedKernel] = []
        self._names: set[str] = set()

    def build(self, fixed: Sequence[InputSpec]) -> QuantizedGraph:
        import tf_keras

        inputs = [tf_keras.Input(spec.sample_shape, dtype=spec.dtype, name=self._name(spec.name)) for spec in fixed]
        quantized: dict[Node, Any] = {}
        plain: dict[Node, Any] = {}
        given = dict(zip(self._lowered.inputs, inputs, strict=True))
        for node in self._lowered.nodes:
            wrapper = self._wrap(node)
            for values, layer in ((quantized, wrapper), (plain, wrapper.layer)):
                taken = [values[each] for each in node.inputs] or [given[node]]
                if node.kind == "output":
                    taken = [taken[0][node.settings["index"]]]
                result = layer(_one_or_list(taken))
                alone = node.kind == "recurrent" and not isinstance(result, list)
                values[node] = [result] if alone else result
        model, same = (
            tf_keras.Model(inputs, [values[node] for node in self._lowered.outputs], name=name)
            for name, values in (("quantized", quantized), ("plain", plain))
        )
        return QuantizedGraph(model, same, tuple(self._kernels))

    def _wrap(self, node: Node) -> Any:
        """Returns the wrapper of a node's layer; the calls of one layer share theirs if they share weights."""
        key = node.key if node.weights else node
        if key not in self._wrappers:
            make = self._wrap_recurrent if node.kind == "recurrent" else self._wrap_primitive
            self._wrappers[key] = make(node)
        return self._wrappers[key]

    def _wrap_recurrent(self, node: Node) -> Any:
        from edgecompress.tfmot.quantized_recurrent import PlainRecurrent, wrap_recurrent

        wrapper = wrap_recurrent(
            PlainRecurrent(node, self._name(node.layer)),
            [call for call in self._lowered.nodes if call.key == node.key], self._states,
            bits=(self._activation_bits, self._weight_bits), spec=self._spec,
            per_channel=self._recurrent is Granularity.PER_CHANNEL, name=self._name(f"quant_{node.layer}"),
        )  # fmt: skip
        self._kernels += [
            QuantizedKernel(node.layer, wrapper.layer, name, quantizer, ranges, None)
            for name, (quantizer, ranges) in wrapper.weight_quantizers.items()
        ]
        return wrapper

    def _wrap_primitive(self, node: Node) -> Any:
        from edgecompress.tfmot.quantized_layers import PrimitiveConfig, PrimitiveLayer, QuantizedPrimitive

        layer = PrimitiveLayer(node, self._name(node.layer))
        layer.make_variables()
        weights = {name: self._weight_quantizer(node, name) for name in _quantized_weights(node)}
        config = PrimitiveConfig(weights, self._quantizers.get(node))
        wrapper = QuantizedPrimitive(layer, config, name=self._name(f"quant_{node.layer}"))
        taken = [node] if node.kind in ("input", "output") else node.inputs
        wrapper.build(_one_or_list([each.tensor.shape for each in taken]))
        self._set_ranges(node, wrapper)
        return wrapper

    def _weight_quantizer(self, node: Node, name: str) -> Any:
        from edgecompress.tfmot.quantizers import weight_quantizer

        if node in self._tables:
            return self._tables[node]
        per_channel = node.kind in PRIMITIVES and name in PRIMITIVES[node.kind].per_channel
        return weight_quantizer(
            node, name, bits=self._weight_bits, per_channel=per_channel, sparsity=self._spec.preserve_sparsity
        )

    def _set_ranges(self, node: Node, wrapper: Any) -> None:
        variables = getattr(wrapper, "_output_quantizer_vars", None)
        if node in self._starts and variables is not None:
            variables["min_var"].assign(self._starts[node][0])
            variables["max_var"].assign(self._starts[node][1])
        for weight, quantizer, ranges in wrapper._weight_vars:  # noqa: SLF001 (TFMOT does not say otherwise)
            if node in self._tables:
                ranges["min_var"].assign(self._starts[node][0])
                ranges["max_var"].assign(self._starts[node][1])
                continue
            name = next(name for name, each in wrapper.layer.variables_by_name.items() if each is weight)
            step = self._steps.get(node.inputs[0])
            self._kernels.append(QuantizedKernel(node.layer, wrapper.layer, name, quantizer, ranges, step))

    def _name(self, wanted: str) -> str:
        """A name that TensorFlow takes and that no other layer has."""
        name = base = re.sub(r"[^A-Za-z0-9_.\\-]", "_", wanted).lstrip("_") or "layer"
        number = 0
        while name in self._names:
            number += 1
            name = f"{base}_{number}"
        self._names.add(name)
        return name


def _quantized_weights(node: Node) -> list[str]:
    if node.kind not in PRIMITIVES:
        return []
    primitive = PRIMITIVES[node.kind]
    return [name for name in (*primitive.per_channel, *primitive.per_tensor) if name in node.weights]


def _one_or_list(items: list[Any]) -> Any:
    return items[0] if len(items) == 1 else items
