from __future__ import annotations

import numpy as np
import pytest

from edgecompress.passes.base import PassContext
from edgecompress.passes.fuse import apply_fuse, plan_fuse
from edgecompress.techniques import Fuse


def _randomize(model) -> None:
    """Gives a model weights as if it were trained: biases, statistics and scales other than 0 and 1."""
    random = np.random.default_rng(0)
    for variable in model.weights:
        if len(variable.shape) > 1 and "bias" not in variable.path:
            fan_in = np.prod(variable.shape[:-1])
            variable.assign(random.normal(size=variable.shape) / np.sqrt(fan_in))
        else:
            variable.assign(random.uniform(0.5, 1.5, variable.shape))


@pytest.fixture(scope="session")
def randomize():
    return _randomize


@pytest.fixture(scope="session")
def fuse():
    """A function that merges what it can in a model, and checks that it answers as before and that the plan said so."""

    def run(model, sample, *, prefers="size", **options):
        import keras

        _randomize(model)
        before = [weight.copy() for weight in model.get_weights()]
        spec = Fuse(**options)
        fused, result = apply_fuse(model, spec, PassContext(prefers=prefers))
        assert result.plan == plan_fuse(model, spec, prefers=prefers)
        expected, received = keras.tree.flatten(model(sample)), keras.tree.flatten(fused(sample))
        for a, b in zip(expected, received, strict=True):
            assert np.std(a) > 1e-4  # there is something to compare
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * np.abs(a).max())
        assert all((old == new).all() for old, new in zip(before, model.get_weights(), strict=True))
        return fused, result

    return run


@pytest.fixture(scope="session")
def reasons():
    """A function from a result to what it says of each layer that is left alone."""
    return lambda result: {entry.layer: entry.detail for entry in result.plan if not entry.applies}
