"""The tf_keras layers of a quantized network: a primitive, and TFMOT's wrapper around it.

Importing this module imports tf_keras and TFMOT: it is imported where it is used.
"""

from __future__ import annotations

from typing import Any

import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras import quantize_config, quantize_wrapper

from edgecompress.tfmot.lowering import Node
from edgecompress.tfmot.primitives import apply


class _Holder:
    """Keeps the values that a layer computes with out of tf_keras's attribute tracking: they change while tracing."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}


class PrimitiveLayer(tf_keras.layers.Layer):  # type: ignore[misc]
    """Computes one primitive with weights of its own."""

    def __init__(self, node: Node, name: str) -> None:
        super().__init__(name=name, trainable=node.trainable)
        self._node = node
        self.kind = node.kind
        self._holder = _Holder()

    @property
    def variables_by_name(self) -> dict[str, Any]:
        return self._variables

    def make_variables(self) -> None:
        self._variables = {}
        for name, value in self._node.weights.items():
            if name == "constant":
                self._holder.values[name] = value
                continue
            initializer = tf_keras.initializers.Constant(value)
            variable = self.add_weight(name=name, shape=value.shape, initializer=initializer)
            self._variables[name] = variable
            self._holder.values[name] = variable
        self.built = True

    def set_values(self, values: dict[str, Any]) -> None:
        self._holder.values.update(values)

    def call(self, inputs: Any) -> Any:
        tensors = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        if self._node.kind == "float":
            return self._node.settings["function"](*tensors)
        values, self._holder.values = self._holder.values, {**self._holder.values, **self._variables}
        return apply(self._node.kind, tensors, values, self._node.settings)

    def compute_output_shape(self, _input_shape: Any) -> Any:
        return self._node.tensor.shape


class PrimitiveConfig(quantize_config.QuantizeConfig):  # type: ignore[misc]
    """Which weights of a primitive are rounded, and how its result is."""

    def __init__(self, weights: dict[str, Any], result: Any) -> None:
        self._weights = weights
        self._result = result

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
        return [(layer.variables_by_name[name], quantizer) for name, quantizer in self._weights.items()]

    def set_quantize_weights(self, layer: Any, quantize_weights: Any) -> None:
        layer.set_values(dict(zip(self._weights, quantize_weights, strict=True)))

    def get_activations_and_quantizers(self, _layer: Any) -> list[Any]:
        return []

    def set_quantize_activations(self, layer: Any, quantize_activations: Any) -> None:
        pass

    def get_output_quantizers(self, _layer: Any) -> list[Any]:
        return [] if self._result is None else [self._result]

    def get_config(self) -> dict[str, Any]:
        return {}


class QuantizedPrimitive(quantize_wrapper.QuantizeWrapperV2):  # type: ignore[misc]
    """TFMOT's wrapper, which lists weights as trainable that their layer has frozen."""

    @property
    def trainable_weights(self) -> list[Any]:
        return [weight for weight in super().trainable_weights if weight.trainable] if self.layer.trainable else []
