"""Finds the layers of a Keras 3 model and the kernels in them, for the passes that change weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.errors import UsageError, did_you_mean

_ATTENTION = ("_query_dense.kernel", "_key_dense.kernel", "_value_dense.kernel", "_output_dense.kernel")
# How Keras calls the variables that multiply a layer's inputs.
_KERNEL_NAMES = frozenset({"kernel", "recurrent_kernel", "pointwise_kernel", "embeddings"})


@dataclass(frozen=True)
class Kernel:
    """One kernel of a layer.

    Attributes:
        path: The attributes that lead from the layer to it, e.g. `cell.recurrent_kernel`; numbers are list indices.
        variable: The Keras 3 variable.
    """

    path: str
    variable: Any

    @property
    def title(self) -> str:
        """What reports call it."""
        own = str(getattr(self.variable, "path", "")).split("/")[-2:]
        return "/".join(own) if "weights" in self.path.split(".") else self.path

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.variable.shape)

    @property
    def values(self) -> Array:
        return np.asarray(self.variable)


@dataclass(frozen=True)
class Found:
    """A layer that has weights.

    Attributes:
        name: Its name; 'outer/inner' inside a nested model.
        layer: The Keras 3 layer.
        kernels: Its kernels; empty if it has weights of other kinds only.
    """

    name: str
    layer: Any
    kernels: tuple[Kernel, ...]

    @property
    def kind(self) -> str:
        return type(self.layer).__name__

    @property
    def fix(self) -> str | None:
        """How to have the weights of a custom layer compressed if none of them is taken for a kernel, else None."""
        matrices = any(len(variable.shape) > 1 for variable in self.layer.trainable_variables)
        if self.kernels or not matrices or _is_built_in(self.layer) or hasattr(self.layer, "get_prunable_weights"):
            return None
        return "define get_prunable_weights() on it, which returns the weights to compress"

    def label(self, kernel: Kernel) -> str:
        """Names a kernel for reports: by its layer, and by itself where the layer has several."""
        return self.name if len(self.kernels) == 1 else f"{self.name} ({kernel.title})"


def find_layers(model: Any) -> tuple[Found, ...]:
    """Returns each layer that has weights, once, in the model's order; nested models are looked into."""
    seen: set[int] = set()
    return tuple(
        Found(name, layer, kernels_of(layer))
        for name, layer in _walk(model, "")
        if layer.weights and not (id(layer) in seen or seen.add(id(layer)))  # type: ignore[func-returns-value]
    )


def find_layers_of(copy: Any, model: Any) -> tuple[Found, ...]:
    """Returns the layers of a copy of a model under the names in the model: custom layers may forget theirs."""
    pairs = zip(find_layers(copy), find_layers(model), strict=True)
    return tuple(replace(found, name=original.name) for found, original in pairs)


def layer_names(model: Any) -> tuple[str, ...]:
    """Returns the names of all layers, 'outer/inner' inside nested models."""
    return tuple(name for name, _ in _walk(model, ""))


def kernels_of(layer: Any) -> tuple[Kernel, ...]:
    """Returns the kernels of a Keras 3 layer: what multiplies its inputs, but no biases, scales or statistics.

    Depthwise kernels do not count: they are few weights that matter much. A custom layer says which they are with
    `get_prunable_weights()`; otherwise they are the variables in it that are called as Keras calls kernels.
    """
    if not _is_built_in(layer):
        return _custom_kernels(layer)
    return tuple(Kernel(path, resolve(layer, path)) for path in _paths(layer))


def _is_built_in(layer: Any) -> bool:
    return type(layer).__module__.startswith("keras.")


def resolve(layer: Any, path: str) -> Any:
    """Returns what a path of attributes and list indices leads to."""
    found = layer
    for part in path.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    return found


def refuse_unmatched(model: Any, patterns: Mapping[str, Any], option: str) -> None:
    """Refuses regular expressions that match the name of no layer.

    Raises:
        UsageError: Naming the first such pattern and the layers there are.
    """
    names = layer_names(model)
    for pattern in patterns:
        if not any(re.match(pattern, name) for name in names):
            raise UsageError(f"{option}: the pattern {pattern!r} matches no layer", fix=did_you_mean(pattern, names))


def _walk(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        if isinstance(layer, keras.Model) and getattr(layer, "layers", None):
            yield from _walk(layer, f"{prefix}{layer.name}/")
        else:
            yield f"{prefix}{layer.name}", layer


def _paths(layer: Any) -> tuple[str, ...]:
    bases = {base.__name__ for base in type(layer).__mro__}
    if bases & {"MultiHeadAttention", "GroupedQueryAttention"}:
        return _ATTENTION
    if inner := _inner_layers(layer, bases):
        return tuple(path for prefix in inner for path in _prefixed(layer, prefix))
    if "BaseDepthwiseConv" in bases:
        return ()
    return tuple(name for name in sorted(_KERNEL_NAMES) if _is_variable(layer, name))


def _inner_layers(layer: Any, bases: set[str]) -> tuple[str, ...]:
    """Returns the paths of the layers that a layer is made of."""
    if "Bidirectional" in bases:
        return "forward_layer", "backward_layer"
    if "Wrapper" in bases:
        return ("layer",)
    if "StackedRNNCells" in bases:
        return tuple(f"cells.{number}" for number in range(len(layer.cells)))
    return ("cell",) if hasattr(layer, "cell") else ()


def _prefixed(layer: Any, prefix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{kernel.path}" for kernel in kernels_of(resolve(layer, prefix)))


def _is_variable(layer: Any, name: str) -> bool:
    value = getattr(layer, name, None)
    return value is not None and len(getattr(value, "shape", ())) > 1 and any(value is v for v in layer.weights)


def _custom_kernels(layer: Any) -> tuple[Kernel, ...]:
    own = getattr(layer, "get_prunable_weights", None)
    named = [getattr(layer, "kernel", None)]
    wanted = {id(variable) for variable in (own() if own is not None else named) if variable is not None}
    return tuple(
        Kernel(f"weights.{number}", variable)
        for number, variable in enumerate(layer.weights)
        if id(variable) in wanted or (own is None and variable.name in _KERNEL_NAMES and len(variable.shape) > 1)
    )
