"""Whole Keras 3 layers and operations inside a tf_keras model, and Keras 3 functions inside a tf_keras layer.

What has no counterpart in tf_keras is not rebuilt but called: a small tf_keras layer hands the tensors on to the Keras
3 object and owns its variables. The two share them: training the tf_keras model trains the Keras 3 layer itself.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgecompress.errors import ConversionError

# Keras clones a layer from its configuration, which is text and cannot hold a live object: it holds a number instead,
# under which the object is found here as long as anything else refers to it.
_alive: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Slot:
    """Stands in the arguments of a call for the tensor with this number."""

    index: int


def wrap_whole(operation: Any, name: str) -> Any:
    """Returns a tf_keras layer that calls a Keras 3 layer or operation and owns its variables.

    Say how it is called with `add_signature`, and call it with the tensors of that signature and its number. The
    Keras 3 object is in its attribute `operation`; clones of the layer (`from_config`) share the Keras 3 object.
    """
    caller = _caller_class()(operation)
    return adapter_class()(token=_register(caller), name=name)


def hold_function(function: Any, kind: str) -> Any:
    """Returns a Keras 3 function (`kind` "activation", "regularizer" or "constraint") as tf_keras takes it."""
    holder = _Holder(function)
    return held_classes()[kind](token=_register(holder))


def is_whole(layer: Any) -> bool:
    """Says whether a tf_keras layer is a whole Keras 3 layer or operation."""
    return isinstance(layer, adapter_class())


def _register(holder: Any) -> str:
    token = str(next(_numbers))
    _alive[token] = holder
    return token


def _find(token: str) -> Any:
    holder = _alive.get(token)
    if holder is None:
        raise ConversionError(
            "a layer that is a whole Keras 3 layer is rebuilt after its model is gone",
            fix="keep the bridged model alive while its clones are made; a stored configuration of it is of no use",
        )
    return holder


@dataclass(eq=False)
class _Holder:
    """Keeps an object in `_alive`: functions and bound methods live too shortly or cannot be referred to weakly."""

    value: Any


@functools.cache
def _caller_class() -> type[Any]:
    """Returns the Keras 3 layer that calls another one: Keras 3 then tells that one whether it is trained."""
    import keras

    class Caller(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self, operation: Any) -> None:
            super().__init__(dtype="float32", autocast=False)
            self.operation = operation
            self.signatures: list[tuple[Any, Any]] = []
            self.supports_masking = True
            self.built = True

        def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
            """Leaves the outputs with the masks that the operation gave them, which may be none."""
            del inputs, previous_mask

        def call(self, tensors: Sequence[Any], signature: int = 0, training: bool = False) -> Any:
            del training  # Keras hands it on to every layer called from here that takes it
            args, kwargs = keras.tree.map_structure(
                lambda leaf: tensors[leaf.index] if isinstance(leaf, Slot) else leaf, self.signatures[signature]
            )
            return self.operation(*args, **kwargs)

    return Caller


def _regularized(layer: Any) -> list[Any]:
    return [variable for variable in layer.trainable_weights if variable.regularizer is not None]


@functools.cache
def adapter_class() -> type[Any]:  # noqa: C901 (a class in a function, so that importing this module stays quick)
    """Returns the class of the layers that `wrap_whole` makes, for `custom_objects` and `isinstance`."""
    import keras
    import tensorflow as tf
    import tf_keras

    @tf_keras.saving.register_keras_serializable(package="edgecompress")
    class WholeKeras3(tf_keras.layers.Layer):  # type: ignore[misc]
        def __init__(self, token: str, **options: Any) -> None:
            super().__init__(**{**options, "autocast": False, "dtype": "float32"})
            self._token = token
            # In a holder, because tf_keras would take a Keras 3 layer in an attribute for one of its own.
            self._holder = _Holder(_find(token))
            self._shapes = _Holder({})  # of the inputs, by signature and number, as the graph has them
            self.supports_masking = True
            self._compute_output_and_mask_jointly = True
            for number, variable in enumerate(self._caller.variables):
                self._track_trackable(variable.value, f"variable_{number}")  # else export calls it unknown
            for variable in _regularized(self._caller):
                self.add_loss(functools.partial(variable.regularizer, variable))

        @property
        def _caller(self) -> Any:
            return self._holder.value

        @property
        def operation(self) -> Any:
            return self._caller.operation

        def add_signature(self, args: Any, kwargs: Any) -> int:
            """Remembers a way of calling, `Slot`s in the place of tensors, and returns its number."""
            self._caller.signatures.append((args, kwargs))
            return len(self._caller.signatures) - 1

        @property
        def trainable_weights(self) -> list[Any]:
            return [variable.value for variable in self._caller.trainable_variables] if self.trainable else []

        @property
        def non_trainable_weights(self) -> list[Any]:
            trainable = {id(value) for value in self.trainable_weights}
            return [v.value for v in self._caller.weights if id(v.value) not in trainable]

        def call(self, inputs: Any, signature: int = 0, training: Any = None, mask: Any = None) -> Any:
            tensors = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            tensors = [self._shaped(tensor, (signature, number)) for number, tensor in enumerate(tensors)]
            masks = mask if isinstance(mask, (list, tuple)) else [mask]
            for tensor, its_mask in zip(tensors, masks, strict=False):
                if its_mask is not None:
                    tensor._keras_mask = its_mask  # noqa: SLF001 (where both Keras versions keep it)
            outputs = self._caller(list(tensors), signature=signature, training=bool(training))
            losses = self._caller.losses  # those of the call, then those of regularized variables, seen to above
            if len(losses) > len(_regularized(self._caller)):
                self.add_loss(losses[: -len(_regularized(self._caller)) or None])
            flat = keras.tree.flatten(outputs)
            return flat[0] if len(flat) == 1 else flat

        def _shaped(self, tensor: Any, key: tuple[int, int]) -> Any:
            """Gives a tensor the shape that the graph knows: `fit` knows none, and some layers of Keras 3 need it."""
            if tf.executing_eagerly():
                return tensor
            return tf.ensure_shape(tensor, self._shapes.value.setdefault(key, [None, *tensor.shape[1:]]))

        def save_own_variables(self, store: Any) -> None:
            for number, weight in enumerate(self.weights):
                store[str(number)] = weight.numpy()

        def load_own_variables(self, store: Any) -> None:
            for number, weight in enumerate(self.weights):
                weight.assign(store[str(number)])

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "token": self._token}

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            return cls(**config)  # that of tf_keras hides the reason of an error

    return WholeKeras3


@functools.cache
def held_classes() -> dict[str, type[Any]]:
    """Returns the classes of what `hold_function` makes, by kind."""
    import tf_keras

    class HeldFunction:
        def __init__(self, token: str) -> None:
            self._token = token
            self._holder = _find(token)
            function = self._holder.value
            self.__name__ = getattr(function, "__name__", type(function).__name__)

        def __call__(self, tensor: Any) -> Any:
            return self._holder.value(tensor)

        def get_config(self) -> dict[str, Any]:
            return {"token": self._token}

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            return cls(**config)

    kinds = {
        "activation": ("HeldActivation", object),
        "regularizer": ("HeldRegularizer", tf_keras.regularizers.Regularizer),
        "constraint": ("HeldConstraint", tf_keras.constraints.Constraint),
    }
    register = tf_keras.saving.register_keras_serializable(package="edgecompress")
    return {kind: register(type(name, (HeldFunction, base), {})) for kind, (name, base) in kinds.items()}
