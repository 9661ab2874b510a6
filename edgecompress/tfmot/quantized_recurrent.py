"""The tf_keras layers of a recurrent layer that is trained: in float, and with rounding around it.

Importing this module imports tf_keras and TFMOT: it is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from edgecompress.recurrent.cells import RecurrentLayer
from edgecompress.techniques import Qat
from edgecompress.tfmot.lowering import Node
from edgecompress.tfmot.patterns import cluster_numbers
from edgecompress.tfmot.quantizers import KeepingWeights, result_quantizer, zero_mask
from edgecompress.tfmot.recurrent import Rounding, fixed_ranges, limits, offset_name, run_cell, with_weights

Range = tuple[float, float]
_run_cell = tf.autograph.experimental.do_not_convert(run_cell)


class PlainRecurrent(tf_keras.layers.Layer):  # type: ignore[misc]
    """A recurrent layer with its matrices as the cell uses them: stacked, and cut.

    It takes the sequence, or a list of the sequence and the states that it begins with.

    Attributes:
        ranges: None: nothing is rounded.
    """

    ranges: Mapping[str, Range] | None = None

    def __init__(self, node: Node, name: str) -> None:
        super().__init__(name=name, trainable=node.trainable)
        self.source: RecurrentLayer = node.settings["layer"]
        self._variables = {
            weight: self.add_weight(name=weight, shape=value.shape, initializer=tf_keras.initializers.Constant(value))
            for weight, value in node.weights.items()
        }
        self.built = True

    @property
    def variables_by_name(self) -> dict[str, Any]:
        return self._variables

    @property
    def recurrent_layer(self) -> RecurrentLayer:
        """The layer with the weights that it has now."""
        with tf.init_scope():  # whoever asks may be tracing
            values = {name: variable.numpy() for name, variable in self._variables.items()}
        return with_weights(self.source, values)

    @property
    def return_state(self) -> bool:
        return self.source.return_state

    @property
    def return_sequences(self) -> bool:
        return self.source.return_sequences

    def call(self, inputs: Any) -> Any:
        return _one_or_list(_run_cell(self.source, self._variables, tf.nest.flatten(inputs))[0])


class QuantizedRecurrent(tf_keras.layers.Layer):  # type: ignore[misc]
    """A recurrent layer whose weights and results are rounded.

    TFMOT's wrapper knows one result a layer; here each result of the cell has a range.

    Args:
        layer: The layer; its weights are trained.
        weights: The quantizers of weights, by their names.
        results: The quantizers of results, and the ranges that they start from, by their names. Results whose kernels
            have ranges of their own are not among them.
        bits: Of results: 8 or 16; None: they stay float.
        name: The name of the layer.
    """

    def __init__(
        self, layer: PlainRecurrent, weights: Mapping[str, Any], results: Mapping[str, tuple[Any, Range]],
        bits: int | None, name: str,
    ) -> None:  # fmt: skip
        super().__init__(name=name, trainable=layer.trainable)
        self.layer = layer
        self._bits = bits
        self._weights_by_name = {
            weight: (quantizer, quantizer.build(layer.variables_by_name[weight].shape, weight, self))
            for weight, quantizer in weights.items()
        }
        self._results = {
            result: (quantizer, quantizer.build((), result, self)) for result, (quantizer, _) in results.items()
        }
        for result, (_, ends) in self._results.items():
            low, high = results[result][1]
            ends["min_var"].assign(low)
            ends["max_var"].assign(high)
        self._fixed = {} if bits is None else fixed_ranges(self.source, bits)
        self._limits = {} if bits is None else limits(self.source, results, bits)
        self.built = True

    @property
    def source(self) -> RecurrentLayer:
        return self.layer.source

    @property
    def weight_quantizers(self) -> Mapping[str, tuple[Any, Any]]:
        """The quantizer of each rounded weight, and its variables."""
        return self._weights_by_name

    @property
    def recurrent_layer(self) -> RecurrentLayer:
        return self.layer.recurrent_layer

    @property
    def return_state(self) -> bool:
        return self.layer.return_state

    @property
    def return_sequences(self) -> bool:
        return self.layer.return_sequences

    @property
    def ranges(self) -> Mapping[str, Range] | None:
        """The range of each result as trained; None if results stay float."""
        if self._bits is None:
            return None
        with tf.init_scope():
            return dict(self._fixed) | {name: self._range(ends) for name, (_, ends) in self._results.items()}

    @staticmethod
    def _range(ends: Mapping[str, Any]) -> Range:
        return min(float(ends["min_var"].numpy()), 0.0), max(float(ends["max_var"].numpy()), 0.0)

    def call(self, inputs: Any, training: Any = None) -> Any:
        if training is None:
            training = tf_keras.backend.learning_phase()
        learns = bool(tf.get_static_value(training))  # symbolic only where tf_keras infers shapes
        weights = dict(self.layer.variables_by_name)
        for name, (quantizer, ends) in self._weights_by_name.items():
            weights[name] = quantizer(weights[name], learns, weights=ends)
        rounding = None if self._bits is None else Rounding(self._bits, self._fixed, self._tensors(), learns)
        results, extremes = _run_cell(self.source, weights, tf.nest.flatten(inputs), rounding)
        for name, pair in extremes.items():
            quantizer, ends = self._results[name]
            quantizer(tf.stack(pair), True, weights=ends)  # moves the range; nobody takes the result
        return _one_or_list(results)

    def _tensors(self) -> dict[str, tuple[Any, Any]]:
        """The ranges that results are rounded with: those of the step before, as far as the file has them."""
        reach = self._limits
        return {
            name: tuple(tf.clip_by_value(ends[end], -reach[name], reach[name]) for end in ("min_var", "max_var"))
            for name, (_, ends) in self._results.items()
        }


def wrap_recurrent(
    layer: PlainRecurrent, calls: Sequence[Node], states: Mapping[object, tuple[Any, Range]], *,
    bits: tuple[int | None, int], per_channel: bool, spec: Qat, name: str,
) -> QuantizedRecurrent:  # fmt: skip
    """Chooses the quantizers of a layer.

    Args:
        layer: The layer.
        calls: Its nodes; their ranges were observed.
        states: Quantizers of states, and what they start from, by the node's key and the state's name.
        bits: Of results (None: they stay float) and of weights.
        per_channel: Kernels for which a scale for each column pays have these.
        spec: Says what of the weights' pattern is kept.
        name: The name of the new layer.
    """
    node, (result_bits, weight_bits) = calls[0], bits
    source: RecurrentLayer = node.settings["layer"]
    weights = {}
    for matrix, known in source.matrices.items():
        kernel = node.weights[matrix]
        weights[matrix] = KeepingWeights(
            weight_bits,
            per_axis=per_channel and known.per_channel,
            mask=zero_mask(kernel) if spec.preserve_sparsity else None,
            clusters=cluster_numbers(kernel) if spec.preserve_clusters else None,
            factors=None,
        )
    if result_bits is None:
        return QuantizedRecurrent(layer, weights, {}, None, name)
    for offset in map(offset_name, source.offsets):
        weights[offset] = KeepingWeights(result_bits, per_axis=False, mask=None, clusters=None, factors=None)
    results = {}
    for result in node.ranges.keys() - fixed_ranges(source, result_bits):
        own = result_quantizer(bits=result_bits, fixed=None, shared=len(calls) > 1), _widest(calls, result)
        results[result] = states.get((node.key, result), own)
    return QuantizedRecurrent(layer, weights, dict(sorted(results.items())), result_bits, name)


def _widest(calls: Sequence[Node], result: str) -> Range:
    found = [call.ranges[result] for call in calls]
    return min(low for low, _ in found), max(high for _, high in found)


def _one_or_list(results: list[Any]) -> Any:
    return results if len(results) > 1 else results[0]
