"""What stateful layers of a Keras model remember from call to call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np


def memory_of(layers: Iterable[Any]) -> list[Any]:
    """Returns the variables in which stateful layers keep their states, of Keras 3 or of tf_keras."""
    stateful = (layer for layer in layers if getattr(layer, "stateful", False))
    states = (state for layer in stateful for state in getattr(layer, "states", None) or ())
    # By identity: a wrapper names the states of the layers inside it once more.
    return list({id(state): state for state in states if state is not None}.values())


@contextlib.contextmanager
def at_rest(layers: Iterable[Any]) -> Iterator[None]:
    """Lets stateful layers begin with zeros, and gives them back what they remember."""
    memory = memory_of(layers)
    before = [np.asarray(variable).copy() for variable in memory]
    for variable in memory:
        variable.assign(np.zeros(variable.shape))
    try:
        yield
    finally:
        for variable, value in zip(memory, before, strict=True):
            variable.assign(value)
