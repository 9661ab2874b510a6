"""The passes prune and cluster what these layers are made of."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from edgecompress.data import Dataset
from edgecompress.layers import FactorizedDense, LowRankDense, LowRankGRU, LowRankLSTM
from edgecompress.passes import apply_passes
from edgecompress.passes.base import PassContext
from edgecompress.passes.kernels import find_layers
from edgecompress.techniques import Cluster, Prune, Training

ROWS = (8, 8)
BODIES = {
    "GRU, LowRankDense": lambda: [
        LowRankGRU(24, input_rank=6, recurrent_rank=12, name="steps"),
        LowRankDense(24, 12, "relu", name="hidden"),
    ],
    "Bidirectional LSTM, FactorizedDense": lambda: [
        keras.layers.Bidirectional(LowRankLSTM(12, recurrent_rank=6, gates="separate"), name="steps"),
        FactorizedDense(24, 12, 0.1, "relu", seed=0, name="hidden"),
    ],
}


@pytest.fixture(scope="module")
def rows(digits):
    """Training and test samples: images as sequences of rows, and their labels."""
    return digits.digits(as_rows=True)


def trained(body, rows):
    keras.utils.set_random_seed(0)
    (x, y), _ = rows
    model = keras.Sequential(
        [keras.Input(ROWS, name="rows"), *BODIES[body](), keras.layers.Dense(10, "softmax", name="digit")]
    )
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=8, batch_size=32, verbose=0)
    return model


def accuracy(model, rows):
    _, (x, y) = rows
    return float(np.mean(np.asarray(model(x)).argmax(-1) == y))


@pytest.mark.parametrize("body", BODIES)
def test_prune_and_cluster(body, rows):
    model = trained(body, rows)
    before, (x, y) = accuracy(model, rows), rows[0]
    assert before > 0.8
    spec = [Prune(sparsity=0.5), Cluster(clusters=16, preserve_sparsity=True)]
    context = PassContext(training=Training(epochs=1), data=Dataset({"rows": x}, y))
    small, (pruned, clustered) = apply_passes(model, spec, context)
    names = {proof.layer for proof in pruned.proof}
    assert names == {proof.layer for proof in clustered.proof}
    assert {name.split(" ")[0] for name in names} == {"steps", "hidden", "digit"}
    assert "hidden (hidden/u)" in names
    assert not any("residual" in name for name in names)
    for found in find_layers(small):
        for kernel in found.kernels:
            assert np.mean(kernel.values == 0) >= 0.49, found.label(kernel)
            assert len(np.unique(kernel.values)) <= 16, found.label(kernel)
    indices = [w for w in small.weights if w.name == "residual_indices"]
    kept = [w for w in model.weights if w.name == "residual_indices"]
    assert all(np.array_equal(one, other) for one, other in zip(indices, kept, strict=True))
    assert accuracy(small, rows) > before - 0.05
