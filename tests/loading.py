"""What tests of loaded models share."""

from pathlib import Path

import numpy as np
import pytest

from edgecompress.errors import ModelError
from edgecompress.models import load_model

keras = pytest.importorskip("keras")
layers = keras.layers
RNG = np.random.default_rng(0)
A, B = (RNG.normal(size=(5, 3)).astype(np.float32) for _ in "AB")


def refusal(source, **options) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(source, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 500
    return line


def names(loaded) -> tuple[list[str], list[str]]:
    return [spec.name for spec in loaded.inputs], list(loaded.outputs)


def check_answers(loaded, inputs: dict, expected: dict) -> None:
    answers = loaded.predict(inputs, fixed=loaded.inputs)
    assert list(answers) == list(loaded.outputs)
    assert set(answers) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(answers[name], values, atol=1e-6, err_msg=name)


def both_ways(model, path: Path):
    """The model in memory, and back from its file."""
    model.save(path)
    return load_model(model), load_model(path)


def sequential(*parts, framework=keras):
    return framework.Sequential([framework.Input((3,), name="x"), *parts])


def two_inputs():
    return keras.Input((3,), name="zeta"), keras.Input((3,), name="alpha")


def mixed(a, b):
    """Not symmetric: swapped inputs would show."""
    return layers.Concatenate(name="both")([layers.Dense(2)(a), layers.Dense(3)(b)])
