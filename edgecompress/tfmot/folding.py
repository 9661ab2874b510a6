"""Folds scales and offsets into the weights before them, as the converter would, but before training.

Training then sees the very weights that are rounded in the file, and batch statistics stay what they were (Jacob et
al. 2018, arXiv:1712.05877, section 3.2, trains with folded weights too).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from edgecompress.data import Array
from edgecompress.tfmot.lowering import Lowered, Node

# The axis of the output channels in the kernel of each primitive.
_CHANNELS = {"conv": -1, "depthwise": -1, "dense": -1, "conv_transpose": 2, "affine": -1}


def fold(lowered: Lowered) -> Lowered:
    """Returns the graph without the 'affine' nodes that could be folded and the nodes that nothing uses.

    A clustered kernel with one scale stays as it is: factors for each channel would make many integers of few.

    Args:
        lowered: The graph. Its nodes are changed.
    """
    uses = Counter(node for each in lowered.nodes for node in each.inputs)
    uses.update(lowered.outputs)
    calls = Counter(node.key for node in lowered.nodes)
    replaced: dict[Node, Node] = {}
    for node in lowered.nodes:
        node.inputs = tuple(replaced.get(each, each) for each in node.inputs)
        if node.kind != "affine" or calls[node.key] > 1:
            continue
        target = node.inputs[0]
        alone = uses[target] == 1
        while target.kind == "reshape" and alone and target.shape[-1] == target.inputs[0].shape[-1]:
            target = target.inputs[0]
            alone = uses[target] == 1
        if target.kind in _CHANNELS and alone and calls[target.key] == 1 and not _would_uncluster(target):
            _scale(target, node)
            replaced[node] = node.inputs[0]
            uses[node.inputs[0]] = uses[node]
    outputs = tuple(replaced.get(each, each) for each in lowered.outputs)
    return _hoist_relu(replace(lowered, outputs=outputs, nodes=_used(lowered, outputs)))


def _hoist_relu(lowered: Lowered) -> Lowered:
    """Returns the graph with each ReLU that follows a reshape before it, where the kernel before can apply it."""
    uses = Counter(node for each in lowered.nodes for node in each.inputs)
    uses.update(lowered.outputs)
    nodes = list(lowered.nodes)
    swapped: dict[Node, Node] = {}
    for index, node in enumerate(nodes):
        node.inputs = tuple(swapped.get(each, each) for each in node.inputs)
        moved = node.inputs[0] if node.kind in ("relu", "relu6") else None
        if moved is not None and moved.kind == "reshape" and uses[moved] == 1 and uses[moved.inputs[0]] == 1:
            node.inputs, moved.inputs = moved.inputs, (node,)
            node.tensor, moved.tensor = node.inputs[0].tensor, node.tensor
            nodes[nodes.index(moved)], nodes[index] = node, moved
            swapped[node], uses[moved], uses[node] = moved, uses[node], 1
    return replace(lowered, nodes=tuple(nodes), outputs=tuple(swapped.get(each, each) for each in lowered.outputs))


def _would_uncluster(node: Node) -> bool:
    return node.clusters is not None and node.kind in ("dense", "conv_transpose")


def _scale(node: Node, affine: Node) -> None:
    scale, bias = affine.weights["scale"].reshape(-1), affine.weights["bias"]
    name = "scale" if node.kind == "affine" else "kernel"
    kernel = node.weights[name]
    shape = [1] * kernel.ndim
    shape[_CHANNELS[node.kind]] = -1
    folded: Array = node.weights.get("bias", np.zeros_like(scale)) * scale + bias
    factors = scale.reshape(shape)
    node.weights = {**node.weights, name: kernel * factors, "bias": folded}
    node.factors = factors if node.factors is None else node.factors * factors
    node.trainable = node.trainable or affine.trainable


def _used(lowered: Lowered, outputs: tuple[Node, ...]) -> tuple[Node, ...]:
    needed: set[Node] = set(lowered.inputs)
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting.extend(node.inputs)
    return tuple(node for node in lowered.nodes if node in needed)
