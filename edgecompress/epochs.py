"""The epochs of a training, whatever is trained: the best one is kept, NaN stops it, a killed run can be resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from edgecompress.checkpoints import Progress, hash_run, read_checkpoint, write_checkpoint
from edgecompress.data import Array, Dataset, hash_samples, split_samples
from edgecompress.errors import DataError
from edgecompress.passes.base import EpochLog, PassContext, Trained

_BETWEEN_REPORTS_S = 0.1

Report = Callable[[int, int, Mapping[str, float]], bool]


class Trainee(Protocol):
    """What `run_epochs` trains: a model of any framework with its optimizer, compiled and built."""

    @property
    def optimizer_text(self) -> str:
        """The optimizer and its learning rate, for the report."""
        ...

    @property
    def loss_text(self) -> str:
        """What is minimised, likewise."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What the report is to say of this training besides."""
        ...

    @property
    def variables(self) -> Sequence[Any]:
        """All that makes up the model, trained or not: each has `numpy()` and `assign(array)`."""
        ...

    @property
    def optimizer_variables(self) -> Sequence[Any]:
        """All that the optimizer remembers, likewise."""
        ...

    def fit(self, epoch: int, order: Array, held_back: Array, report: Report) -> dict[str, float]:
        """Trains one epoch.

        Args:
            epoch: Its number, from 1.
            order: Indices of the samples to train on, in the order in which they are to be taken.
            held_back: Indices of those to judge the epoch by; may be empty.
            report: To be called with (batches done, batches in all, figures so far) after each batch; returns whether
                the epoch has to end at once.

        Returns:
            The figures of the epoch under the names that a user reads, "loss" among them; where samples are held back,
            "val_loss", too.
        """
        ...

    def evaluate(self, indices: Array) -> float:
        """Returns the loss over some samples, as `val_loss` would be."""
        ...


def run_epochs(
    trainee: Trainee,
    context: PassContext,
    *,
    step: str,
    epochs: int,
    judge_from: int = 1,
) -> Trained:
    """Trains a model, and leaves the weights of its best epoch in it.

    The best epoch is the one with the smallest validation loss, or the last where no samples are held back for that.
    The samples are shuffled by the seed and the epoch's number, so a resumed run ends with exactly the weights of one
    that was never interrupted; except where the model draws random numbers itself, as Dropout does.

    Args:
        trainee: What is trained.
        context: Training samples, settings, seed, checkpoints. A checkpoint is of the same run if all that is the same,
            the weights at the start, and the texts of the trainee; what decides a run besides has to be in `identity`.
        step: What progress is reported under, e.g. `prune`.
        epochs: Rounds over the training samples, at most.
        judge_from: The first epoch, from 1, whose weights may be kept; 0: those that the model came with may be, too,
            where samples are held back to judge them.

    Raises:
        DataError: There are no samples, or the loss was never a number.
        UsageError: The checkpoint to resume from is of another run.
    """
    loop = _Loop(trainee, context, step, epochs, judge_from)
    progress, resumed_at = loop.begin()
    while progress.epoch < epochs and progress.stopped is None:
        loop.run_epoch(progress)
    _assign(trainee.variables, progress.best or progress.weights)
    return Trained(
        samples=len(loop.training),
        validation_samples=len(loop.validation),
        epochs=tuple(EpochLog(epoch=number, figures=logs) for number, logs in enumerate(progress.logs, 1)),
        kept_epoch=progress.kept_epoch,
        stopped=progress.stopped,
        optimizer=trainee.optimizer_text,
        loss=trainee.loss_text,
        resumed_at=resumed_at,
        notes=(*trainee.notes, *_on_the_start(progress)),
    )


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


class _Loop:
    """One training: what stays the same from epoch to epoch."""

    def __init__(self, trainee: Trainee, context: PassContext, step: str, epochs: int, judge_from: int) -> None:
        self.training, self.validation = split_training(context)
        self._trainee = trainee
        self._context = context
        self._step = step
        self._epochs = epochs
        self._judge_from = min(judge_from, epochs)
        self._key = "" if context.checkpoints is None else self._hash()

    def _hash(self) -> str:
        context, trainee = self._context, self._trainee
        assert context.data is not None  # noqa: S101 (it was split)
        settings = context.training.model_dump(exclude={"epochs"}), self._epochs, context.seed, context.identity
        facts = (self._step, *settings, trainee.optimizer_text, trainee.loss_text, hash_samples(context.data))
        return hash_run(trainee.variables, *facts)

    def begin(self) -> tuple[Progress, int | None]:
        """Returns where the training begins, and the epoch that it goes on with if it is resumed."""
        folder = self._context.checkpoints
        progress = read_checkpoint(folder, self._key) if folder is not None and self._context.resume else None
        if progress is None:
            progress = Progress()
            if self._judge_from == 0 and len(self.validation):
                self._judge_start(progress)
            return progress, None
        _assign(self._trainee.variables, progress.weights)
        _assign(self._trainee.optimizer_variables, progress.slots)
        return progress, min(progress.epoch + 1, self._epochs)

    def run_epoch(self, progress: Progress) -> None:
        """Trains one epoch and writes down what came of it; stops the training where it has to stop."""
        epoch = progress.epoch + 1
        order = np.random.default_rng([self._context.seed, epoch]).permutation(self.training)
        logs = self._trainee.fit(epoch, order, self.validation, self._reporter(epoch))
        weights = _arrays(self._trainee.variables)
        if not _is_finite(logs, weights):
            self._stop_at_nan(progress)
            return
        progress.epoch = epoch
        progress.weights = weights
        progress.logs.append(logs)
        self._judge(progress)
        if self._context.checkpoints is not None:
            progress.slots = _arrays(self._trainee.optimizer_variables)
            write_checkpoint(self._context.checkpoints, self._key, progress)

    def _judge_start(self, progress: Progress) -> None:
        loss = self._trainee.evaluate(self.validation)
        if math.isfinite(loss):
            progress.best = _arrays(self._trainee.variables)
            progress.best_loss = loss

    def _reporter(self, epoch: int) -> Report:
        prefix = f"{self._step}, epoch {epoch}/{self._epochs}: "
        said_at = -math.inf

        def report(done: int, total: int, figures: Mapping[str, float]) -> bool:
            nonlocal said_at
            if done == total or time.monotonic() - said_at >= _BETWEEN_REPORTS_S:
                said_at = time.monotonic()
                self._context.say(
                    prefix + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()), done, total
                )
            return not math.isfinite(figures.get("loss", 0.0))  # each further step would only be lost

        return report

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
        rate = self._trainee.optimizer_text
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


def _is_finite(logs: Mapping[str, float], weights: Sequence[Array]) -> bool:
    return all(map(math.isfinite, logs.values())) and all(
        bool(np.isfinite(array).all()) for array in weights if array.dtype.kind == "f"
    )


def _arrays(variables: Sequence[Any]) -> list[Array]:
    return [variable.numpy() for variable in variables]


def _assign(variables: Sequence[Any], arrays: Sequence[Array]) -> None:
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
