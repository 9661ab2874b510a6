"""What stateful layers remember is found, set aside and given back."""

import numpy as np
import pytest

from edgecompress.states import at_rest, memory_of

X = np.ones((2, 4, 3), np.float32)


@pytest.fixture(params=["keras", "tf_keras"])
def layers(request):
    return pytest.importorskip(request.param).layers


@pytest.mark.parametrize(("kind", "count"), [("GRU", 1), ("LSTM", 2), ("Bidirectional", 4)])
def test_layers_begin_with_zeros_and_remember_again(layers, kind, count) -> None:
    layer = layers.GRU(5, stateful=True) if kind == "GRU" else layers.LSTM(5, stateful=True)
    if kind == "Bidirectional":
        layer = layers.Bidirectional(layer)
    first = np.asarray(layer(X))
    remembered = [np.asarray(variable).copy() for variable in memory_of(layer._flatten_layers())]
    assert len(remembered) == count
    assert all(np.abs(values).max() > 0 for values in remembered)
    with at_rest(layer._flatten_layers()):
        np.testing.assert_allclose(layer(X), first, atol=1e-6)
    for variable, values in zip(memory_of(layer._flatten_layers()), remembered, strict=True):
        np.testing.assert_array_equal(variable, values)
    assert np.abs(np.asarray(layer(X)) - first).max() > 1e-3


def test_others_remember_nothing(layers) -> None:
    layer = layers.LSTM(5)
    layer(X)
    assert memory_of([layer, layers.Dense(2), layers.LSTM(5, stateful=True)]) == []
