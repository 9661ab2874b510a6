"""Weight clustering by TFMOT's `ClusterWeights`, of Keras 3 models taken over to tf_keras (Han et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgecompress.errors import UsageError
from edgecompress.passes.base import PassContext, Trained
from edgecompress.techniques import Cluster
from edgecompress.tfmot.adapter import is_whole
from edgecompress.tfmot.bridge import Crossed, cross
from edgecompress.tfmot.cluster_wrapper import ClusterTarget, Held, wrapper_class
from edgecompress.tfmot.library import import_tfmot
from edgecompress.tfmot.training import fine_tune, seed_draws
from edgecompress.tfmot.translate import pair_weights


def cluster(model: Any, spec: Cluster, targets: Sequence[ClusterTarget], context: PassContext) -> Trained | None:
    """Clusters kernels of a Keras 3 model in place, and trains it again if there are samples.

    Args:
        model: A Keras 3 model.
        spec: The pass.
        targets: Layers whose kernels have enough weights.
        context: With or without training samples.

    Returns:
        How the training went, or None.

    Raises:
        UsageError: A layer is inside a nested model that can only be called as a whole.
    """
    import tensorflow as tf

    tf.random.set_seed(context.seed)  # for centroids at random
    wrappers: dict[int, Any] = {}
    by_layer = {id(target.layer): target for target in targets}

    def wrap(crossed: Crossed) -> Any:
        key = id(crossed.keras_layer)
        if key not in by_layer:
            return crossed.tf_layer
        target = by_layer[key]
        wrappers[key] = wrapper_class()(_held(crossed, target), target, _centroids(spec, target))
        return wrappers[key]

    seed_draws(model, context.seed)
    bridged = cross(model, wrap=wrap)
    for key, target in by_layer.items():
        if key not in wrappers:
            raise UsageError(
                "cluster: it is part of a nested model that can only be called as a whole",
                where=f"layer {target.layer.name!r}", fix="leave it alone: 0 clusters in [passes.layers]",
            )  # fmt: skip
    if spec.centroids == "kmeans++":
        for wrapper in wrappers.values():
            wrapper.settle()
    trained = None
    if context.data is not None:
        trained = fine_tune(bridged.model, context, spec, source=bridged.source)
    for wrapper in wrappers.values():
        wrapper.strip()
    bridged.write_back()
    return trained


def _held(crossed: Crossed, target: ClusterTarget) -> Held:
    ours = {kernel.path: kernel.variable for kernel in target.kernels}
    if is_whole(crossed.tf_layer):
        return Held(crossed.tf_layer, True, {path: variable.value for path, variable in ours.items()}, ours)
    pairs = {id(o): theirs for o, theirs in pair_weights(crossed.keras_layer, crossed.tf_layer, crossed.name)}
    return Held(crossed.tf_layer, False, {path: pairs[id(variable)] for path, variable in ours.items()}, ours)


def _centroids(spec: Cluster, target: ClusterTarget) -> Any:
    """Returns TFMOT's way of finding the first centroids."""
    import_tfmot()
    from tensorflow_model_optimization.clustering.keras import CentroidInitialization

    ways = {
        "kmeans++": CentroidInitialization.KMEANS_PLUS_PLUS,
        "linear": CentroidInitialization.LINEAR,
        "density": CentroidInitialization.DENSITY_BASED,
        "random": CentroidInitialization.RANDOM,
    }
    if spec.centroids == "kmeans++" and _fewest_values(target) < target.clusters:
        return ways["linear"]  # k-means++ draws each centroid from the weights, and there are too few
    return ways[spec.centroids]


def _fewest_values(target: ClusterTarget) -> int:
    """Returns how many weights the centroids of a kernel, or of a channel, can be drawn from."""
    counts = []
    for kernel in target.kernels:
        values = kernel.values
        parts = np.moveaxis(values, -1, 0) if target.per_channel else [values]
        counts += [int(np.count_nonzero(part)) + 1 if target.preserve_sparsity else part.size for part in parts]
    return min(counts)
