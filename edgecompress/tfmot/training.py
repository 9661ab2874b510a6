"""Trains a tf_keras model again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.epochs import Report, run_epochs
from edgecompress.passes.base import PassContext, Trained
from edgecompress.techniques import Trains
from edgecompress.tfmot.compiling import Objective, choose_objective, input_arrays
from edgecompress.tfmot.distillation import teach


def fine_tune(
    model: Any,
    context: PassContext,
    spec: Trains,
    *,
    source: Any = None,
    callbacks: Sequence[Any] = (),
    judge_from: int = 1,
) -> Trained:
    """Compiles and trains a tf_keras model, and leaves the weights of its best epoch in it; see `run_epochs`.

    Args:
        model: A functional or Sequential tf_keras model, with wrappers or without.
        context: Training samples with labels, settings, seed, checkpoints, and the teacher: see `teach`. Without one,
            only the output with labels is trained.
        spec: The pass that it is trained for: its kind, epochs, and how much the teacher counts.
        source: The Keras 3 model that this one was made from; see `choose_objective`.
        callbacks: tf_keras callbacks, which see one `fit` for each epoch.
        judge_from: The first epoch, from 1, whose weights may be kept: later than 1 while pruning is not done; 0: those
            that the model came with may be, too, where samples are held back to judge them.

    Raises:
        DataError: There are no labels, they do not fit, or the loss was never a number.
        UsageError: The checkpoint to resume from is of another run.
    """
    import tensorflow as tf

    objective = choose_objective(model, context, source)
    model, objective, context = teach(model, objective, context, spec)
    tf.random.set_seed(context.seed)
    objective.compile(model)
    model.optimizer.build(model.trainable_variables)
    trainee = _Trainee(model, objective, context, callbacks)
    epochs = spec.epochs or context.training.epochs
    return run_epochs(trainee, context, step=spec.kind, epochs=epochs, judge_from=judge_from)


def seed_draws(model: Any, seed: int) -> None:
    """Sets what Keras 3 layers draw dropout by: where tf_keras calls them whole, they do not follow its seed."""
    random = np.random.default_rng(seed)
    for layer in model._flatten_layers():  # noqa: SLF001
        for generator in layer._seed_generators:  # noqa: SLF001
            generator.state.assign([random.integers(2**31), 0])


def batches(model: Any, objective: Objective, context: PassContext, indices: Array) -> Any:
    """Returns some training samples as a tf_keras Sequence of (inputs, labels), in the order of `indices`."""
    import tf_keras

    assert context.data is not None  # noqa: S101 (`choose_objective` looked)
    arrays, size = input_arrays(model, context.data), context.training.batch_size

    class _Batches(tf_keras.utils.Sequence):  # type: ignore[misc]
        def __len__(self) -> int:
            return math.ceil(len(indices) / size)

        def __getitem__(self, number: int) -> tuple[Any, Any]:
            chosen = indices[number * size : (number + 1) * size]
            few = tuple(array[chosen] for array in arrays)
            return (few if len(few) > 1 else few[0]), objective.targets(model, chosen)

    return _Batches()


class _Trainee:
    """A compiled tf_keras model, as `run_epochs` trains it."""

    def __init__(self, model: Any, objective: Objective, context: PassContext, callbacks: Sequence[Any]) -> None:
        self.optimizer_text = objective.optimizer_text
        self.loss_text = objective.loss_text
        self.notes = objective.notes
        self._model = model
        self._objective = objective
        self._context = context
        self._callbacks = callbacks

    @property
    def variables(self) -> Sequence[Any]:
        return self._model.variables  # type: ignore[no-any-return]

    @property
    def optimizer_variables(self) -> Sequence[Any]:
        return self._model.optimizer.variables  # type: ignore[no-any-return]

    def fit(self, epoch: int, order: Array, held_back: Array, report: Report) -> dict[str, float]:
        samples = self._batches(order)
        with quiet():
            history = self._model.fit(
                samples,
                validation_data=self._batches(held_back) if len(held_back) else None,
                initial_epoch=epoch - 1,
                epochs=epoch,
                shuffle=False,
                verbose=0,
                callbacks=[*self._callbacks, self._reporter(report, len(samples))],
            )
        return {self._title(name): float(values[-1]) for name, values in history.history.items()}

    def evaluate(self, indices: Array) -> float:
        with quiet():
            return float(self._model.evaluate(self._batches(indices), verbose=0, return_dict=True)["loss"])

    def _batches(self, indices: Array) -> Any:
        return batches(self._model, self._objective, self._context, indices)

    def _title(self, figure: str) -> str:
        return self._objective.title(self._model, figure)

    def _reporter(self, report: Report, total: int) -> Any:
        import tf_keras

        title = self._title

        class _Reporter(tf_keras.callbacks.Callback):  # type: ignore[misc]
            def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
                if report(batch + 1, total, {title(name): value for name, value in (logs or {}).items()}):
                    self.model.stop_training = True

        return _Reporter()


@contextmanager
def quiet() -> Iterator[None]:
    """Holds back warnings of TensorFlow, about slow callbacks or retracing, with which a user can do nothing."""
    import tensorflow as tf

    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)
