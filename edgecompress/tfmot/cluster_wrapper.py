"""TFMOT's clustering wrapper for any layer: its registry knows few classes and no subclasses."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.passes.kernels import Kernel, resolve
from edgecompress.tfmot.library import import_tfmot
from edgecompress.tfmot.wrapping import call_inside

_SETTLING_ROUNDS = 50


@dataclass(frozen=True)
class ClusterTarget:
    """A layer to cluster.

    Attributes:
        layer: The Keras 3 layer.
        kernels: Its kernels.
        clusters: Distinct values of each kernel, zero counted in.
        per_channel: Each output channel has values of its own.
        preserve_sparsity: Zeros stay zero. TFMOT needs three clusters for that, so that weights of both signs are left.
    """

    layer: Any
    kernels: tuple[Kernel, ...]
    clusters: int
    per_channel: bool
    preserve_sparsity: bool


@dataclass
class Held:
    """What a wrapper knows of the layer in it, out of Keras's sight, which would take it for weights of its own.

    Attributes:
        layer: The tf_keras layer.
        whole: Whether that calls a Keras 3 layer and shares its variables.
        variables: The kernels' tf variables, by path.
        keras_variables: Their Keras 3 variables.
        order: The weights of each layer inside, trainable and not, as Keras had them in order at first.
        current: The clustered weights, by path.
    """

    layer: Any
    whole: bool
    variables: dict[str, Any]
    keras_variables: dict[str, Any]
    order: list[tuple[Any, list[Any], list[Any]]] = field(default_factory=list)
    current: dict[str, Any] = field(default_factory=dict)


class _Clusterable:
    """Any layer as one of TFMOT's `ClusterableLayer`s."""

    def __init__(self, held: Held, *, per_channel: bool) -> None:
        super().__init__(name=held.layer.name, trainable=held.layer.trainable, autocast=False)  # type: ignore[call-arg]
        self.inner = held.layer
        self._held = held
        self._per_channel = per_channel

    def get_clusterable_weights(self) -> list[tuple[str, Any]]:
        return list(self._held.variables.items())

    def get_clusterable_algorithm(self, weight_name: str) -> Any:
        import_tfmot()
        from tensorflow_model_optimization.python.core.clustering.keras import clustering_algorithm

        del weight_name
        name = "ClusteringAlgorithmPerChannel" if self._per_channel else "ClusteringAlgorithm"
        return getattr(clustering_algorithm, name)


class _Clustered:
    """TFMOT's wrapper, with the layer called as Keras calls layers.

    TFMOT calls `layer.call`, which loses masks, mixed precision and whether the model is being trained; and its
    `cluster_weights` leaves a layer out, or returns None, where it does not know what to do.
    """

    def __init__(self, held: Held, target: ClusterTarget, centroids: Any) -> None:
        super().__init__(  # type: ignore[call-arg]
            clusterable_class()(held, per_channel=target.per_channel),
            target.clusters,
            centroids,
            preserve_sparsity=target.preserve_sparsity,
            autocast=False,
        )
        self.cluster_per_channel = target.per_channel
        self.supports_masking = True
        self._compute_output_and_mask_jointly = True  # the wrapped layer has marked its outputs
        self._held = held
        owners = [] if held.whole else held.layer._flatten_layers()  # noqa: SLF001
        held.order = [(one, list(one._trainable_weights), list(one._non_trainable_weights)) for one in owners]  # noqa: SLF001

    @property
    def trainable_weights(self) -> list[Any]:
        return super().trainable_weights if self.trainable else []  # type: ignore[misc,attr-defined]

    @property
    def non_trainable_weights(self) -> list[Any]:
        frozen = [] if self.trainable else super().trainable_weights  # type: ignore[misc,attr-defined]
        return super().non_trainable_weights + frozen  # type: ignore[misc,no-any-return]

    def get_weight_from_layer(self, weight_name: str) -> Any:
        return self._held.current.get(weight_name, self._held.variables[weight_name])

    def set_weight_to_layer(self, weight_name: str, new_weight: Any) -> None:
        self._held.current[weight_name] = new_weight
        if not self._held.whole:
            self._put(weight_name, new_weight)

    def _owner(self, path: str) -> tuple[Any, str]:
        owner, _, attribute = f"inner.{path}".rpartition(".")
        return resolve(self.layer, owner), attribute  # type: ignore[attr-defined]

    def _put(self, path: str, value: Any) -> None:
        owner, attribute = self._owner(path)
        setattr(owner, attribute, value)

    def _cast_weights(self) -> None:
        """Does for tensors what Keras does for the variables of a layer in mixed precision."""
        import tensorflow as tf

        for path, weights in self._held.current.items():
            dtype = self._owner(path)[0].compute_dtype
            if weights.dtype != dtype:
                self._put(path, tf.cast(weights, dtype))

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        import keras

        self.update_clustered_weights_associations()  # type: ignore[attr-defined]
        held = self._held
        if not held.whole:
            self._cast_weights()
            return call_inside(held.layer, inputs, training, kwargs)
        # A Keras 3 layer is made to see other values in its variables. It changes none of them meanwhile, so that
        # statistics have to be moved afterwards.
        clustered = {id(v): (v, held.current[path]) for path, v in held.keras_variables.items()}
        with keras.StatelessScope(list(clustered.values())) as scope:
            outputs = call_inside(held.layer, inputs, training, kwargs)
        for variable in held.layer.operation.variables:
            changed = None if id(variable) in clustered else scope.get_current_value(variable)
            if changed is not None:
                variable.assign(changed)
        return outputs

    def settle(self) -> None:
        """Moves the first centroids to the means of their weights (Lloyd 1982); a centroid of zero stays."""
        for path, centroids in self.cluster_centroids.items():  # type: ignore[attr-defined]
            values, found = self._held.variables[path].numpy(), centroids.numpy()
            if self.cluster_per_channel:
                pairs = zip(np.moveaxis(values, -1, 0), found, strict=True)
                centroids.assign(np.stack([_lloyd(part, row, self.preserve_sparsity) for part, row in pairs]))  # type: ignore[attr-defined]
            else:
                centroids.assign(_lloyd(values, found, self.preserve_sparsity))  # type: ignore[attr-defined]

    def strip(self) -> None:
        """Leaves the clustered weights in the wrapped layer's own variables.

        What TFMOT's `strip_clustering` does, which fails on layers that cannot be made anew from their configuration,
        and leaves tensors in the place of the variables of an attention layer.
        """
        self.update_clustered_weights_associations()  # type: ignore[attr-defined]
        for path, variable in self._held.variables.items():
            variable.assign(self._held.current[path])
            if not self._held.whole:
                self._put(path, variable)
        for one, trainable, frozen in self._held.order:  # a variable that is put back comes last, else
            one._trainable_weights[:], one._non_trainable_weights[:] = trainable, frozen  # noqa: SLF001


@functools.cache
def clusterable_class() -> type[Any]:
    """Returns the class of layers that stand for others in TFMOT's protocol."""
    import tf_keras

    import_tfmot()
    from tensorflow_model_optimization.python.core.clustering.keras.clusterable_layer import ClusterableLayer

    return type("Clusterable", (_Clusterable, tf_keras.layers.Layer, ClusterableLayer), {})


@functools.cache
def wrapper_class() -> type[Any]:
    """Returns the class of the wrapper, made from a `Held` layer, a `ClusterTarget` and TFMOT's way of beginning."""
    import_tfmot()
    from tensorflow_model_optimization.python.core.clustering.keras.cluster_wrapper import ClusterWeights

    return type("Clustered", (_Clustered, ClusterWeights), {})


def _lloyd(values: Array, centroids: Array, keep_zero: bool) -> Array:
    order = np.argsort(centroids)
    weights, found = np.sort(values, axis=None).astype(np.float64), centroids[order].astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(weights)])
    for _ in range(_SETTLING_ROUNDS):
        edges = np.searchsorted(weights, (found[1:] + found[:-1]) / 2)
        first, last = np.concatenate([[0], edges]), np.concatenate([edges, [len(weights)]])
        means = (sums[last] - sums[first]) / np.maximum(last - first, 1)
        moved = np.where(last > first, means, found)
        if keep_zero:
            moved[np.argmin(np.abs(found))] = 0
        if np.array_equal(moved, found):
            break
        found = moved
    result = np.empty_like(centroids)
    result[order] = found  # TFMOT has noted which of them is zero
    return result
