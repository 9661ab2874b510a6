"""Distillation: a Keras 3 model learns from a larger one, or from files, and takes its place."""

from __future__ import annotations

import contextlib
import hashlib
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.data import Array, Dataset
from edgecompress.epochs import Report, run_epochs
from edgecompress.errors import DataError, UsageError
from edgecompress.functional import clone_model
from edgecompress.loaded import LoadedModel, flatten_layers
from edgecompress.models import load_model
from edgecompress.objectives.choosing import LOOKED_AT, Objective, choose, describe_optimizer
from edgecompress.objectives.optimizers import build_optimizer
from edgecompress.passes.base import Distilled, LayerPlan, PassContext, PassResult
from edgecompress.techniques import Distill, Term
from edgecompress.tfmot.training import seed_draws


def plan_distill(model: Any, spec: Distill) -> tuple[LayerPlan, ...]:
    """Returns what becomes of each layer that has weights.

    Args:
        model: A Keras 3 model.
        spec: The pass.

    Raises:
        ModelError: No student can be made of the model.
    """
    return _plan_layers(model, _new_student(model, spec) if spec.makes_student else model, spec)


def apply_distill(model: Any, spec: Distill, context: PassContext) -> tuple[Any, PassResult]:
    """Trains a student: a copy of the model, or what is made of it, by the files that teach, or by the model.

    Args:
        model: A Keras 3 model, which stays as it is.
        spec: The pass.
        context: Training samples, without labels if only the teacher counts.

    Raises:
        DataError: There are no training samples, or their labels do not fit.
        ModelError: No student can be made, or teacher and student do not go together.
        UsageError: A layer that is to be compared is not there; or the checkpoint to resume from is of another run.
    """
    from edgecompress.distill import Distiller

    if context.data is None:
        raise DataError("distill trains the model, which needs training samples", fix="pass --train samples.npz")
    with _seeded(context.seed), contextlib.ExitStack() as stack:
        student = _new_student(model, spec)
        seed_draws(student, context.seed)
        # The model's own loss tells what its outputs hold where no label does.
        teachers = [context.load(path) for path in spec.teachers] or [
            replace(load_model(model), compile_config=context.compile_config)
        ]
        from_logits = _answers_logits(teachers, student, context.data)
        distiller = Distiller(
            student, teachers, teacher_from_logits=from_logits,
            losses=[_term(one) for one in spec.losses] or None,
            loss_weights=[one.weight for one in spec.losses] or None,
            alpha=spec.alpha, temperature=spec.temperature,
        )  # fmt: skip
        trainee = _Trainee(distiller, context)
        if spec.cache:
            folder = context.checkpoints or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            trainee.ask_teacher(folder / "answers")
        teacher = hashlib.sha256(distiller.teacher_identity.encode()).hexdigest()
        trained = run_epochs(
            trainee, replace(context, identity=f"{context.identity} {spec.model_dump_json()} {teacher}"),
            step=spec.kind, epochs=spec.epochs or context.training.epochs, judge_from=0,
        )  # fmt: skip
    return student, PassResult(
        kind=spec.kind,
        plan=_plan_layers(model, student, spec),
        trained=trained,
        distilled=Distilled(
            teachers=spec.teachers, teacher_params=None if spec.teachers else model.count_params(),
            student_params=student.count_params(), compared=distiller.compared, alpha=spec.alpha,
            kept_answers=spec.cache,
        ),
        notes=(*distiller.notes, *_on_answers(spec, from_logits)),
    )  # fmt: skip


class _Trainee:
    """A Distiller with its samples, as `run_epochs` trains it."""

    def __init__(self, distiller: Any, context: PassContext) -> None:
        assert context.data is not None  # noqa: S101 (the caller looked)
        self._distiller, self._context = distiller, context
        self._answers: list[Array] | None = None
        loaded = load_model(distiller.student)
        self._x = loaded.nested_inputs([context.data.inputs[spec.name] for spec in loaded.inputs])
        objective = None if context.data.labels is None else _objective(loaded, context.data, context)
        self._y = None if objective is None else _by_output(loaded, objective, objective.labels, _nothing(context.data))
        self.notes = () if objective is None else objective.notes
        self._compile(loaded, objective)

    def _compile(self, loaded: LoadedModel, objective: Objective | None) -> None:
        import keras

        distiller, context = self._distiller, self._context
        if objective is None:
            optimizer, self.notes = build_optimizer(keras, context.compile_config or {}, context.training.learning_rate)
            distiller.compile(optimizer)
        else:
            optimizer = objective.optimizer
            metrics = list(objective.metrics)
            distiller.compile(
                optimizer,
                loss=_by_output(loaded, objective, objective.loss, None),
                metrics=metrics if len(loaded.outputs) == 1 else _by_output(loaded, objective, metrics, []),
            )
        optimizer.build(distiller.trainable_variables)
        self.optimizer_text = describe_optimizer(optimizer)
        self.loss_text = distiller.compared
        if objective is not None and distiller.alpha < 1:
            own = f"{1 - distiller.alpha:g} x {objective.loss_text}"
            self.loss_text = f"{own} + {distiller.alpha:g} x ({distiller.compared})"

    def ask_teacher(self, folder: Path) -> None:
        """Asks the teacher about all samples at once, unless its answers are in the folder."""
        self._answers = self._distiller.teacher_answers(self._x, folder, say=self._context.say)

    @property
    def variables(self) -> Sequence[Any]:
        return self._distiller.variables  # type: ignore[no-any-return]

    @property
    def optimizer_variables(self) -> Sequence[Any]:
        return self._distiller.optimizer.variables  # type: ignore[no-any-return]

    def fit(self, epoch: int, order: Array, held_back: Array, report: Report) -> dict[str, float]:
        del epoch
        samples = self._samples(order)
        history = self._distiller.fit(
            samples,
            validation_data=self._samples(held_back) if len(held_back) else None,
            shuffle=False,  # else by a seed of Keras, which a resumed run would begin anew
            verbose=0,
            callbacks=[_reporter(lambda done, logs: report(done, len(samples), self._figures(logs)))],
        )
        return self._figures({name: values[-1] for name, values in history.history.items()})

    def evaluate(self, indices: Array) -> float:
        return float(self._distiller.evaluate(self._samples(indices), verbose=0, return_dict=True)["loss"])

    def _figures(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """Returns figures without those of a task that nobody knows the answers of."""
        return {
            name: float(value) for name, value in logs.items() if self._y is not None or not name.endswith("task_loss")
        }

    def _samples(self, rows: Array) -> Any:
        from edgecompress.distill.taught import taught_samples

        size = self._context.training.batch_size
        return taught_samples(
            self._x, self._y, None, self._answers, batch_size=size, shuffle=False, seed=self._context.seed, rows=rows
        )


def _new_student(model: Any, spec: Distill) -> Any:
    from edgecompress.distill import make_student

    if not spec.makes_student:
        return clone_model(model)
    asked = {"width": spec.width, "depth": spec.depth, "rank": spec.rank}
    return make_student(model, **{name: value for name, value in asked.items() if value is not None})


def _plan_layers(model: Any, student: Any, spec: Distill) -> tuple[LayerPlan, ...]:
    successors = {layer.name: layer for layer in flatten_layers(student)}
    weighty = (layer for layer in flatten_layers(model) if layer.weights)
    return tuple(_plan_layer(layer, successors.get(layer.name), spec) for layer in weighty)


def _plan_layer(layer: Any, successor: Any, spec: Distill) -> LayerPlan:
    if not spec.makes_student:
        detail = f"trained by {', '.join(spec.teachers)}"
    elif successor is None:
        detail = "not in the student"
    else:
        kind = "" if type(successor) is type(layer) else f"{type(successor).__name__}: "
        detail = f"{kind}{layer.count_params():,} -> {successor.count_params():,} weights"
    return LayerPlan(layer=layer.name, kind=type(layer).__name__, technique=spec.kind, applies=True, detail=detail)


def _term(spec: Term) -> Any:
    from edgecompress import distill

    name = "".join(word.capitalize() for word in spec.kind.split("_"))
    facts: dict[str, Any] = {}
    if spec.teacher_layer is not None:
        facts = {"teacher_layer_name": spec.teacher_layer, "student_layer_name": spec.student_layer}
    if spec.projector is not None:
        facts["projector"] = spec.projector
    return getattr(distill, name)(**facts)


def _answers_logits(teachers: Sequence[Any], student: Any, data: Dataset) -> bool | None:
    """Whether teachers whose last layer cannot be seen answer with logits, by their answers to a few samples.

    Raises:
        UsageError: There are others beside them, which cannot be averaged with what nobody knows.
    """
    from edgecompress.distill.teachers import kind_of_output, open_teacher

    def is_seen(one: Any) -> bool:
        keras_model = isinstance(one, LoadedModel) and one.is_keras
        return keras_model and all(kind_of_output(one.model, k) is not None for k in range(len(one.outputs)))

    if all(map(is_seen, teachers)):
        return None
    loaded = load_model(student)
    opened = [open_teacher(one, loaded, ()) for one in teachers]
    unseen = [one.name for one in opened if None in one.kinds]
    if not unseen:
        return None
    if len(unseen) < len(opened):
        raise UsageError(
            "it cannot be seen whether this teacher answers with logits or probabilities, as the others are seen to",
            where=unseen[0], fix="give the .keras files, or one teacher only",
        )  # fmt: skip
    few = [data.inputs[spec.name][:LOOKED_AT] for spec in loaded.inputs]
    answers = [np.asarray(array) for one in opened for array in one.answers(few)]
    found = {bool(array.min() < 0 or array.max() > 1) for array in answers}
    return found.pop() if len(found) == 1 else None


def _on_answers(spec: Distill, from_logits: bool | None) -> Iterator[str]:
    if from_logits is not None:
        who = " and ".join(spec.teachers) or "the model"
        what, why = ("logits", "go beyond") if from_logits else ("probabilities", "are all in")
        yield f"the answers of {who} were taken for {what}: they {why} the range from 0 to 1"


def _objective(student: LoadedModel, data: Dataset, context: PassContext) -> Objective:
    import keras

    few = {name: array[:LOOKED_AT] for name, array in data.inputs.items()}
    answers = student.predict(few, fixed=context.fixed or student.inputs)
    return choose(
        keras, data, [answers[name] for name in student.outputs], student.outputs, context.compile_config,
        learning_rate=context.training.learning_rate, source=student.model,
    )  # fmt: skip


def _by_output(student: LoadedModel, objective: Objective, mine: Any, others: Any) -> Any:
    """Returns something for the output with labels, and something else for all others, nested as the outputs are."""
    count = len(student.outputs)
    return student.nested_outputs([mine if number == objective.output else others for number in range(count)])


def _nothing(data: Dataset) -> Array:
    """Returns what stands in the place of labels that there are not; no loss looks at it."""
    return np.zeros(len(data), np.float32)


def _reporter(report: Callable[[int, Mapping[str, float]], bool]) -> Any:
    import keras

    class _Reporter(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
            if report(batch + 1, logs or {}):
                self.model.stop_training = True

    return _Reporter()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Lets what Keras draws depend on the seed alone: the seeds of its initializers come from Python's generator."""
    import tensorflow as tf

    before = random.getstate()
    random.seed(seed)
    tf.random.set_seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
