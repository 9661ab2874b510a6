"""How activation functions are written in primitives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgecompress.tfmot.lowering import Lowering, Node, UnsupportedError
from edgecompress.tfmot.products import transpose

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # Klambauer et al. 2017, arXiv:1706.02515


def activate(low: Lowering, node: Node, activation: Any) -> Node:
    """Adds an activation: a Keras function, or None.

    Raises:
        UnsupportedError: The function is none of Keras's, or one that is not known here.
    """
    if activation is None:
        return node
    name = getattr(activation, "__name__", type(activation).__name__)
    module = str(getattr(activation, "__module__", ""))
    if not module.startswith("keras.") or name not in ACTIVATIONS:
        raise UnsupportedError(f"nothing is known of the activation {name!r}")
    return ACTIVATIONS[name](low, node)


def relu(
    low: Lowering, x: Node, *, negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0
) -> Node:
    """The maximum of x and 0, and its variants, as in `keras.layers.ReLU`."""
    if threshold:
        raise UnsupportedError("a ReLU with a threshold makes a jump that int8 operators do not have")
    if negative_slope:
        result = low.add("leaky_relu", x, slope=float(negative_slope))
        return result if max_value is None else low.add("minimum", result, bound=float(max_value))
    if max_value == 6:  # noqa: PLR2004 (ReLU6 has an operator of its own)
        return low.add("relu6", x)
    result = low.add("relu", x)
    return result if max_value is None else low.add("minimum", result, bound=float(max_value))


def elu(low: Lowering, x: Node, alpha: float = 1.0) -> Node:
    """Itself where positive, else alpha (exp(x) - 1); the converter leaves TensorFlow Lite's own ELU in float."""
    below = low.add("compute", low.add("minimum", x, bound=0.0), function=_tf("exp"))
    below = low.add("subtract", below, weights={"constant": 1.0})
    below = below if alpha == 1 else low.add("multiply", below, weights={"constant": alpha})
    return low.add("add", low.add("relu", x), below)


def softmax(low: Lowering, x: Node, axis: int = -1) -> Node:
    """Softmax over one axis; TensorFlow Lite takes the last."""
    rank = len(x.shape) + 1
    if isinstance(axis, (list, tuple)):
        raise UnsupportedError("softmax over several axes")
    order = [*(i for i in range(rank) if i != axis % rank), axis % rank]
    return transpose(low, low.add("softmax", transpose(low, x, order)), [order.index(i) for i in range(rank)])


def _tf(name: str) -> Callable[[Any], Any]:
    def call(tensor: Any) -> Any:
        import tensorflow as tf

        return getattr(tf.math, name)(tensor)

    return call


def _hard_sigmoid(low: Lowering, x: Node) -> Node:
    shifted = low.add("relu6", low.add("add", x, weights={"constant": 3.0}))
    return low.add("multiply", shifted, weights={"constant": 1 / 6})


def _silu(low: Lowering, x: Node) -> Node:
    return low.add("multiply", x, low.add("sigmoid", x))


def _softplus(low: Lowering, x: Node) -> Node:
    """As relu(x) + log(1 + exp(-|x|)): log(1 + exp(x)) would need more range than 8 bits have."""
    size = low.add("compute", x, function=_tf("abs"))
    small = low.add("compute", low.add("multiply", size, weights={"constant": -1.0}), function=_tf("exp"))
    rest = low.add("compute", low.add("add", small, weights={"constant": 1.0}), function=_tf("log"))
    return low.add("add", low.add("relu", x), rest)


def _softsign(low: Lowering, x: Node) -> Node:
    size = low.add("add", low.add("compute", x, function=_tf("abs")), weights={"constant": 1.0})
    return low.add("divide", x, size)


def _selu(low: Lowering, x: Node) -> Node:
    return low.add("multiply", elu(low, x, _SELU_ALPHA), weights={"constant": _SELU_SCALE})


def _gelu(*, approximate: bool) -> Callable[[Lowering, Node], Node]:
    return lambda low, x: low.add("gelu", x, approximate=approximate)


ACTIVATIONS: Mapping[str, Callable[[Lowering, Node], Node]] = {
    "linear": lambda _low, x: x,
    "relu": relu,
    "relu6": lambda low, x: low.add("relu6", x),
    "leaky_relu": lambda low, x: relu(low, x, negative_slope=0.2),
    "elu": elu,
    "selu": _selu,
    "sigmoid": lambda low, x: low.add("sigmoid", x),
    "hard_sigmoid": _hard_sigmoid,
    "tanh": lambda low, x: low.add("tanh", x),
    "silu": _silu,
    "swish": _silu,
    "hard_silu": lambda low, x: low.add("hard_swish", x),
    "hard_swish": lambda low, x: low.add("hard_swish", x),
    "gelu": _gelu(approximate=False),
    "softmax": softmax,
    "softplus": _softplus,
    "softsign": _softsign,
    "exponential": lambda low, x: low.add("compute", x, function=_tf("exp")),
    "mish": lambda low, x: low.add("multiply", x, low.add("tanh", _softplus(low, x))),
}
