"""Trains a tf_keras model again: judged by held-back samples, stopped by a loss that is not a number, resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgecompress.data import Array, Dataset, hash_samples, split_samples
from edgecompress.errors import DataError
from edgecompress.passes.base import EpochLog, PassContext, Trained
from edgecompress.tfmot.checkpoints import Progress, hash_run, read_checkpoint, write_checkpoint
from edgecompress.tfmot.compiling import Objective, choose_objective, input_arrays, keep_answers

_BETWEEN_REPORTS_S = 0.1


def fine_tune(
    model: Any,
    context: PassContext,
    *,
    step: str,
    epochs: int,
    callbacks: Sequence[Any] = (),
    source: Any = None,
    judge_from: int = 1,
) -> Trained:
    """Decides what a tf_keras model is trained for, and trains it; see `train`.

    Args:
        model: A functional or Sequential tf_keras model, with wrappers or without.
        context: Training samples with labels, settings, seed, checkpoints.
        step: What progress is reported under, e.g. `prune`.
        epochs: Rounds over the training samples, at most.
        callbacks: tf_keras callbacks, which see one `fit` for each epoch.
        source: The Keras 3 model that this one was made from; see `choose_objective` and `keep_answers`. Without it
            only the output with labels is trained.
        judge_from: The first epoch, from 1, whose weights may be kept: later than 1 while pruning is not done.

    Raises:
        DataError: There are no labels, they do not fit, or the loss was never a number.
        UsageError: The checkpoint to resume from is of another run.
    """
    objective = choose_objective(model, context, source)
    if source is not None and context.data is not None:
        objective = keep_answers(objective, model, context.data, source)
    return train(model, objective, context, step=step, epochs=epochs, callbacks=callbacks, judge_from=judge_from)


def train(
    model: Any,
    objective: Objective,
    context: PassContext,
    *,
    step: str,
    epochs: int,
    callbacks: Sequence[Any] = (),
    judge_from: int = 1,
) -> Trained:
    """Compiles and trains a tf_keras model, and leaves the weights of its best epoch in it.

    The best epoch is the one with the smallest validation loss, or the last where no samples are held back for that.
    The samples are shuffled by the seed and the epoch's number, so a resumed run ends with exactly the weights of one
    that was never interrupted; except where the model draws random numbers itself, as Dropout does.

    Args:
        model: A functional or Sequential tf_keras model, with wrappers or without.
        objective: What it is trained for.
        context: Training samples with labels, settings, seed, checkpoints.
        step: What progress is reported under, e.g. `prune`.
        epochs: Rounds over the training samples, at most.
        callbacks: tf_keras callbacks, which see one `fit` for each epoch.
        judge_from: The first epoch, from 1, whose weights may be kept; 0: those that the model came with may be, too,
            where samples are held back to judge them.

    Raises:
        DataError: The loss was never a number.
        UsageError: The checkpoint to resume from is of another run.
    """
    import tensorflow as tf

    tf.random.set_seed(context.seed)
    objective.compile(model)
    trainer = _Trainer(model, context, objective, step, epochs, judge_from)
    progress, resumed_at = trainer.begin()
    while progress.epoch < epochs and progress.stopped is None:
        trainer.run_epoch(progress, callbacks)
    trainer.restore(progress.best or progress.weights)
    return Trained(
        samples=len(trainer.training),
        validation_samples=len(trainer.validation),
        epochs=tuple(EpochLog(epoch=number, figures=logs) for number, logs in enumerate(progress.logs, 1)),
        kept_epoch=progress.kept_epoch,
        stopped=progress.stopped,
        optimizer=objective.optimizer_text,
        loss=objective.loss_text,
        resumed_at=resumed_at,
        notes=(*objective.notes, *_on_the_start(progress)),
    )


def seed_draws(model: Any, seed: int) -> None:
    """Sets what Keras 3 layers draw dropout by: where tf_keras calls them whole, they do not follow its seed."""
    random = np.random.default_rng(seed)
    for layer in model._flatten_layers():  # noqa: SLF001
        for generator in layer._seed_generators:  # noqa: SLF001
            generator.state.assign([random.integers(2**31), 0])


def split_training(context: PassContext) -> tuple[Array, Array]:
    """Returns the indices of the samples that are trained on and of those that epochs are judged by.

    With class numbers as labels, each class has its share of both.

    Raises:
        DataError: There are no samples.
    """
    data = context.data
    total = 0 if data is None else len(data)
    if data is None or not total:
        raise DataError("there are no training samples", fix="give an .npz file with the arrays x and y")
    share = round(total * context.training.validation)
    if not share or total == 1:
        return np.arange(total), np.arange(0)
    labels = data.labels
    if labels is not None and labels.dtype.kind == "f" and (labels == np.round(labels)).all():
        labels = labels.astype(np.int64)
    numbered = Dataset({"": np.arange(total)}, labels)
    validation, training = split_samples(numbered, calibration=share, held_out=total, seed=context.seed)
    return training.inputs[""], validation.inputs[""]


def steps_per_epoch(context: PassContext) -> int:
    """Returns how many batches an epoch has."""
    return math.ceil(len(split_training(context)[0]) / context.training.batch_size)


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


class _Trainer:
    """One training: what stays the same from epoch to epoch."""

    def __init__(
        self, model: Any, context: PassContext, objective: Objective, step: str, epochs: int, judge_from: int
    ) -> None:
        self.training, self.validation = split_training(context)
        self._model = model
        self._context = context
        self._objective = objective
        self._step = step
        self._epochs = epochs
        self._judge_from = min(judge_from, epochs)
        model.optimizer.build(model.trainable_variables)
        self._key = "" if context.checkpoints is None else self._hash()

    def _hash(self) -> str:
        context = self._context
        assert context.data is not None  # noqa: S101 (it was split)
        settings = context.training.model_dump(exclude={"epochs"}), self._epochs, context.seed, context.identity
        objective = self._objective.optimizer_text, self._objective.loss_text
        facts = (self._step, *settings, *objective, hash_samples(context.data))
        return hash_run(self._model.variables, *facts)

    def begin(self) -> tuple[Progress, int | None]:
        """Returns where the training begins, and the epoch that it goes on with if it is resumed."""
        folder = self._context.checkpoints
        progress = read_checkpoint(folder, self._key) if folder is not None and self._context.resume else None
        if progress is None:
            progress = Progress()
            if self._judge_from == 0 and len(self.validation):
                self._judge_start(progress)
            return progress, None
        self.restore(progress.weights)
        _assign(self._model.optimizer.variables, progress.slots)
        return progress, min(progress.epoch + 1, self._epochs)

    def restore(self, weights: Sequence[Array]) -> None:
        _assign(self._model.variables, weights)

    def run_epoch(self, progress: Progress, callbacks: Sequence[Any]) -> None:
        """Trains one epoch and writes down what came of it; stops the training where it has to stop."""
        logs = self._fit(progress.epoch + 1, callbacks)
        weights = [variable.numpy() for variable in self._model.variables]
        if not _is_finite(logs, weights):
            self._stop_at_nan(progress)
            return
        progress.epoch += 1
        progress.weights = weights
        progress.logs.append(logs)
        self._judge(progress)
        if self._context.checkpoints is not None:
            progress.slots = [variable.numpy() for variable in self._model.optimizer.variables]
            write_checkpoint(self._context.checkpoints, self._key, progress)

    def _fit(self, epoch: int, callbacks: Sequence[Any]) -> dict[str, float]:
        order = np.random.default_rng([self._context.seed, epoch]).permutation(self.training)
        samples = batches(self._model, self._objective, self._context, order)
        held_back = self._held_back() if len(self.validation) else None
        with quiet():
            history = self._model.fit(
                samples,
                validation_data=held_back,
                initial_epoch=epoch - 1,
                epochs=epoch,
                shuffle=False,
                verbose=0,
                callbacks=[*callbacks, self._reporter(epoch, len(samples))],
            )
        return {self._title(name): float(values[-1]) for name, values in history.history.items()}

    def _held_back(self) -> Any:
        return batches(self._model, self._objective, self._context, self.validation)

    def _judge_start(self, progress: Progress) -> None:
        with quiet():
            loss = self._model.evaluate(self._held_back(), verbose=0, return_dict=True)["loss"]
        if math.isfinite(loss):
            progress.best = [variable.numpy() for variable in self._model.variables]
            progress.best_loss = loss

    def _title(self, figure: str) -> str:
        return self._objective.title(self._model, figure)

    def _reporter(self, epoch: int, total: int) -> Any:
        import tf_keras

        say, prefix = self._context.say, f"{self._step}, epoch {epoch}/{self._epochs}: "
        title = self._title

        class _Reporter(tf_keras.callbacks.Callback):  # type: ignore[misc]
            said_at = -math.inf

            def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
                figures = dict(logs or {})
                if not math.isfinite(figures.get("loss", 0.0)):
                    self.model.stop_training = True  # each further step would only be lost
                if batch + 1 == total or time.monotonic() - self.said_at >= _BETWEEN_REPORTS_S:
                    self.said_at = time.monotonic()
                    detail = ", ".join(f"{title(name)} {value:.4f}" for name, value in figures.items())
                    say(prefix + detail, batch + 1, total)

        return _Reporter()

    def _judge(self, progress: Progress) -> None:
        if progress.epoch < self._judge_from:
            return
        loss = progress.logs[-1].get("val_loss")
        if loss is None or loss < progress.best_loss:
            progress.best, progress.best_epoch, progress.waited = progress.weights, progress.epoch, 0
            progress.best_loss = math.inf if loss is None else loss
            return
        progress.waited += 1
        patience = self._context.training.early_stopping
        if patience is not None and progress.waited >= patience and progress.epoch < self._epochs:
            progress.stopped = f"early stopping: no better validation loss in {patience} epochs"

    def _stop_at_nan(self, progress: Progress) -> None:
        epoch = progress.epoch + 1
        rate = self._objective.optimizer_text
        if not progress.weights:
            raise DataError(
                f"the loss became NaN or infinite in the first epoch of training ({self._step}; {rate})",
                where=None if self._context.data is None else self._context.data.source,
                fix="lower --learning-rate, and check the range of the samples and the labels",
            )
        kept = progress.kept_epoch
        progress.stopped = f"the loss became NaN or infinite in epoch {epoch}; the weights of epoch {kept} were kept"


def _on_the_start(progress: Progress) -> Iterator[str]:
    if progress.kept_epoch == 0:
        yield (
            f"no epoch was better than the weights before training (validation loss {progress.best_loss:.4g}): they "
            "were kept"
        )


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


def _is_finite(logs: dict[str, float], weights: Sequence[Array]) -> bool:
    return all(map(math.isfinite, logs.values())) and all(
        bool(np.isfinite(array).all()) for array in weights if array.dtype.kind == "f"
    )


def _assign(variables: Sequence[Any], arrays: Sequence[Array]) -> None:
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
