"""Compiling a model as another was; `tests/test_models.py` reads the configuration from files."""

import keras
import numpy as np
from keras import layers

from edgecompress.compile_config import compile_as
from edgecompress.functional import clone_model
from edgecompress.models import load_model

A = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")


@keras.saving.register_keras_serializable(package="tests.compile_config")
class Known(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.mean(keras.ops.abs(y_true - y_pred), -1)


def offset(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_true - y_pred - 1), -1)


def compiled_as(other, model, objects=None) -> str | None:
    loaded = load_model(model)
    return compile_as(other, loaded.compile_config, where=loaded.name, objects=objects)


def test_a_model_is_compiled_as_another_was() -> None:
    model, other = (
        keras.Sequential([keras.Input((3,)), layers.Dense(2)]),
        keras.Sequential([keras.Input((3,)), layers.Dense(2)]),
    )
    assert compiled_as(other, model) is None
    assert not other.compiled
    for loss, objects in ((Known(), {}), ({"y": offset}, {"offset": offset}), (["mae"], {}), ("mse", {})):
        model = keras.Model(
            x := keras.Input((3,)), {"y": layers.Dense(2)(x)} if isinstance(loss, dict) else layers.Dense(2)(x)
        )
        other = clone_model(model)
        model.compile(keras.optimizers.SGD(0.25, momentum=0.5), loss, metrics=["mse"])
        assert compiled_as(other, model, objects) is None
        assert (float(other.optimizer.learning_rate), other.optimizer.momentum) == (0.25, 0.5)
        target = {"y": A[:, :2]} if isinstance(loss, dict) else A[:, :2]
        assert np.isfinite(other.evaluate(A, target, verbose=0)).all()
    model.compile("adam", offset)
    other = clone_model(model)
    assert "'offset' is a custom function" in compiled_as(other, model)
    assert not other.compiled
