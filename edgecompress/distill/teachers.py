"""What teaches: a model of Keras 3 or Keras 2, a SavedModel, a .tflite file, or several of them together."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgecompress.artifacts import Artifact, read_artifact
from edgecompress.benchmark.execute import run_tflite
from edgecompress.benchmark.runner import Predictor, StepLoop, find_runtime, open_interpreter, predict_samples
from edgecompress.data import Array, InputSpec
from edgecompress.distill.answers import AnswerKind, as_logits, as_stated
from edgecompress.distill.losses import shapes_fit
from edgecompress.distill.watching import Point, watch
from edgecompress.errors import ModelError, UsageError
from edgecompress.functional import last_activation
from edgecompress.loaded import LoadedModel
from edgecompress.models import load_model
from edgecompress.streaming import read_stream

Shape = tuple[int | None, ...]

_ACTIVATIONS = {"softmax": AnswerKind(True, False), "sigmoid": AnswerKind(True, True), "linear": AnswerKind()}
_OPERATORS = {"SOFTMAX": "softmax", "LOGISTIC": "sigmoid", "FULLY_CONNECTED": "linear", "CONV_2D": "linear"}
_MOVE = ("QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE")


class Teacher(Protocol):
    """What a student learns from.

    Attributes:
        name: What texts call it.
        outputs: Names of its outputs, in flat order.
        shapes: Shapes of its outputs, then of the points that it was opened with, batch first.
        kinds: Of each output, what it holds; None where that cannot be seen.
        in_graph: Whether it runs as operators of TensorFlow, which XLA can compile, rather than in another runtime.
    """

    name: str
    outputs: tuple[str, ...]
    shapes: tuple[Shape, ...]
    kinds: tuple[AnswerKind | None, ...]
    in_graph: bool

    @property
    def identity(self) -> str:
        """What tells its answers from those of any other teacher: hashes of its weights, and what is looked at."""
        ...

    def answers(self, inputs: Sequence[Any]) -> list[Any]:
        """Returns its outputs and points, float32, in inference mode; no gradient flows back through them."""
        ...


def asker(teacher: Teacher) -> Callable[[list[Array]], list[Array]]:
    """Returns what asks a teacher about a batch: from arrays, one for each input of the student, to its answers."""
    import tensorflow as tf

    asked = tf.function(lambda *inputs: teacher.answers(inputs), reduce_retracing=True, autograph=False)
    return lambda arrays: [np.asarray(tensor) for tensor in asked(*map(tf.convert_to_tensor, arrays))]


def kind_of_output(model: Any, output: int) -> AnswerKind | None:
    """Returns what an output of a Keras model holds, by the activation that it comes from; None: not to be seen."""
    return _ACTIVATIONS.get(last_activation(model, output) or "")


def open_teacher(
    source: Any,
    student: LoadedModel,
    points: Sequence[Point],
    *,
    from_logits: bool | None = None,
    unsafe: bool = False,
) -> Teacher:
    """Opens a model as a teacher.

    Args:
        source: A Keras model; the path of a .keras, .h5 or .tflite file or a SavedModel folder; what `load_model` gave;
            or a list of these, which teach together.
        student: What is to learn from it, with the same inputs.
        points: Layers to look at inside of it; only a single model of Keras 3 has any.
        from_logits: Whether teachers answer with logits, where several do that together; None: as can be seen.
        unsafe: Accept Lambda layers, which run code from the file.

    Raises:
        ModelError: It cannot be read, or takes or gives something else than the student.
        UsageError: It has no such layers; or it can be seen of some teachers what they answer with, and not of others.
    """
    teacher = _open(source, student, points, from_logits=from_logits, unsafe=unsafe)
    wanted, given = teacher.shapes[: len(teacher.outputs)], shapes_of_outputs(student)
    if len(wanted) != len(given) or not all(map(shapes_fit, wanted, given)):
        raise ModelError(
            "teacher and student give different answers", where=teacher.name,
            expected="the teacher's " + _in_words(teacher.outputs, wanted),
            received="the student's " + _in_words(student.outputs, given),
            fix="give the student the teacher's outputs, or put what chooses among them into a model around it",
        )  # fmt: skip
    return teacher


def shapes_of_outputs(student: LoadedModel) -> list[Shape]:
    """Returns the shapes of a Keras model's outputs, in flat order, batch first."""
    import keras

    return [tuple(tensor.shape) for tensor in keras.tree.flatten(student.model.outputs)]


def _open(
    source: Any, student: LoadedModel, points: Sequence[Point], *, from_logits: bool | None, unsafe: bool
) -> Teacher:
    if isinstance(source, (list, tuple)):
        if not source:
            raise UsageError("there is no teacher in the list", expected="one model or more")
        if len(source) > 1 and points:
            raise UsageError(
                "several teachers have no layers in common", where=f"layer {points[0].layer!r}",
                fix="compare layers with a single teacher, or compare outputs only",
            )  # fmt: skip
        opened = [_open(one, student, points, from_logits=from_logits, unsafe=unsafe) for one in source]
        members = [one for each in opened for one in (each.members if isinstance(each, Ensemble) else [each])]
        return members[0] if len(members) == 1 else Ensemble(members, from_logits)
    if isinstance(source, (str, os.PathLike)) and Path(source).suffix == ".tflite":
        if points:
            raise UsageError(
                "a .tflite file has no layers to look at", where=Path(source), received=f"layer {points[0].layer!r}",
                fix="compare outputs only, or give the Keras model",
            )  # fmt: skip
        return TfliteTeacher(Path(source), student)
    return ModelTeacher(load_model(source, unsafe=unsafe), student, points)


class ModelTeacher:
    """A model that TensorFlow runs."""

    in_graph = True

    def __init__(self, loaded: LoadedModel, student: LoadedModel, points: Sequence[Point]) -> None:
        if points and loaded.framework != "keras":
            raise UsageError(
                "only models of Keras 3 can be looked into", where=loaded.name,
                received=f"layer {points[0].layer!r} of a model of {loaded.framework}", fix="compare outputs only",
            )  # fmt: skip
        self.loaded = loaded
        self.name = loaded.name
        self._gives = _places(loaded.outputs, student.outputs)
        self.outputs = tuple(loaded.outputs[k] for k in self._gives)
        self._order = _match_inputs(loaded.inputs, student, loaded.name)
        self._points = tuple(points)
        self._watched = watch(loaded.model, points, who="teacher") if points else None
        self.shapes = tuple(tuple(spec.shape) for spec in self._traced(student.inputs))
        self.kinds = tuple(kind_of_output(loaded.model, index) if loaded.is_keras else None for index in self._gives)

    @property
    def identity(self) -> str:
        model = self.loaded.model
        weights = hashlib.sha256()
        for variable in getattr(model, "weights", ()):  # not the states of metrics and random numbers
            weights.update(np.ascontiguousarray(np.asarray(variable)).tobytes())
        config = json.dumps(model.get_config(), sort_keys=True, default=str) if self.loaded.is_keras else ""
        file = "" if self.loaded.is_keras else self.loaded.sha256
        asked = f"{self._order} {self._gives} {self._points}"
        return f"{self.loaded.framework} {file} {weights.hexdigest()} {config} {asked}"

    def answers(self, inputs: Sequence[Any]) -> list[Any]:
        import keras
        import tensorflow as tf

        tensors = [tf.cast(inputs[k], spec.dtype) for k, spec in zip(self._order, self.loaded.inputs, strict=True)]
        if self._watched is None:
            answers, points = self.loaded.call(*tensors), []
        else:
            struct = self._watched._inputs_struct  # noqa: SLF001
            seen = self._watched(keras.tree.pack_sequence_as(struct, tensors), training=False)
            answers, points = keras.tree.flatten(seen["answers"]), seen["points"]
        found = [*(answers[k] for k in self._gives), *points]
        return [tf.stop_gradient(tf.cast(tensor, tf.float32)) for tensor in found]

    def _traced(self, specs: Sequence[InputSpec]) -> list[Any]:
        import tensorflow as tf

        signature = [tf.TensorSpec(spec.shape, spec.dtype) for spec in specs]
        function = tf.function(lambda *inputs: self.answers(inputs), input_signature=signature, autograph=False)
        outputs: list[Any] = function.get_concrete_function().structured_outputs
        return outputs


class TfliteTeacher:
    """A .tflite file, run by LiteRT in this process.

    It is run once in a process of its own first: a file that would take this process down with it is refused.
    """

    in_graph = False

    def __init__(self, path: Path, student: LoadedModel) -> None:
        artifact = read_artifact(path)
        self.name, self.path, self.sha256 = path.name, path, artifact.sha256
        stream = read_stream(path)
        states = () if stream is None else tuple(state.input for state in stream.states)
        specs = tuple(
            InputSpec(name, (None, *tensor.shape[1:]), tensor.dtype)
            for name, tensor in artifact.signature.inputs.items() if name not in states
        )  # fmt: skip
        self._order = _match_inputs(specs, student, path.name, ranks=stream is None)
        self._names = tuple(spec.name for spec in specs)
        probe = run_tflite(path, {n: _zeros(student.inputs[k]) for n, k in zip(self._names, self._order, strict=True)})
        names = tuple(probe)
        self.outputs = tuple(names[k] for k in _places(names, student.outputs))
        self.shapes = tuple((None, *probe[name].shape[1:]) for name in self.outputs)
        self.kinds = tuple(_kind_in(artifact) if len(probe) == 1 else None for _ in probe)
        interpreter = open_interpreter(str(path), find_runtime("auto"), min(2, os.cpu_count() or 1))
        self._model = Predictor(interpreter) if stream is None else StepLoop(interpreter, stream.model_dump())
        self._alone = threading.Lock()  # replicas ask at the same time

    @property
    def identity(self) -> str:
        return f"tflite {self.sha256} {self._order} {self.outputs}"

    def answers(self, inputs: Sequence[Any]) -> list[Any]:
        import tensorflow as tf

        def ask(*arrays: Array) -> list[Array]:
            feed = {name: arrays[k] for name, k in zip(self._names, self._order, strict=True)}
            with self._alone:
                found = predict_samples(self._model, feed, raw=False)
            return [found[name].astype(np.float32) for name in self.outputs]

        found = tf.numpy_function(ask, list(inputs), [tf.float32] * len(self.outputs), stateful=False)
        found = found if isinstance(found, (list, tuple)) else [found]  # a single one outside of graphs
        for tensor, shape in zip(found, self.shapes, strict=True):
            tensor.set_shape(shape)
        return [tf.stop_gradient(tensor) for tensor in found]


class Ensemble:
    """Several teachers, who answer with their mean (Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 1).

    Probabilities are averaged as they are. Logits are, too, which makes a geometric mean of probabilities; where some
    teachers give the one and some the other, all are turned to logits.
    """

    def __init__(self, members: Sequence[Teacher], from_logits: bool | None = None) -> None:
        first = members[0]
        for other in members[1:]:
            if len(first.shapes) != len(other.shapes) or not all(map(_may_be_alike, first.shapes, other.shapes)):
                raise ModelError(
                    "teachers that answer in different shapes", where=f"{first.name} and {other.name}",
                    expected=first.shapes, received=other.shapes, fix="give teachers with the same outputs",
                )  # fmt: skip
        self.members = tuple(members)
        self.name = ", ".join(one.name for one in members)
        self.outputs, self.shapes = first.outputs, first.shapes
        self.in_graph = all(one.in_graph for one in members)
        self._given = [[as_stated(from_logits, kind) for kind in one.kinds] for one in members]
        self.kinds = tuple(self._shared_kind(kinds) for kinds in zip(*self._given, strict=True))

    def _shared_kind(self, kinds: Sequence[AnswerKind | None]) -> AnswerKind | None:
        if set(kinds) == {None}:
            return None
        if None in kinds:
            raise UsageError(
                "it cannot be seen whether this teacher answers with logits or with probabilities, as it can of others",
                where=self.members[list(kinds).index(None)].name,
                fix="say teacher_from_logits=True or False if all do the same, or let it teach alone",
            )  # fmt: skip
        holds, binary = ({getattr(kind, name) for kind in kinds} for name in ("probabilities", "binary"))
        alike = len(holds) == 1 and len(binary - {None}) <= 1
        return AnswerKind(holds.pop(), next(iter(binary - {None}), None)) if alike else AnswerKind()

    @property
    def identity(self) -> str:
        return " + ".join(one.identity for one in self.members) + f" as {self.kinds}"

    def answers(self, inputs: Sequence[Any]) -> list[Any]:
        import tensorflow as tf

        given = [one.answers(inputs) for one in self.members]
        return [
            tf.add_n([
                _as_kind(kind, found[k], own[k]) for own, found in zip(self._given, given, strict=True)
            ]) / len(given)
            for k, kind in enumerate(self.kinds)
        ]  # fmt: skip


def _as_kind(wanted: AnswerKind | None, answers: Any, own: AnswerKind | None) -> Any:
    if wanted is None or own is None or own.probabilities == wanted.probabilities:
        return answers
    return as_logits(answers, own)


def _match_inputs(
    specs: Sequence[InputSpec], student: LoadedModel, name: str, *, ranks: bool = True
) -> tuple[int, ...]:
    """Returns, for each input of a teacher, which of the student's inputs it is: by name where the names are alike."""
    names = [spec.name for spec in student.inputs]
    wanted = [spec.name for spec in specs]
    order = _places(names, wanted)
    fits = len(names) == len(wanted) and (
        not ranks
        or all(_may_be_alike(spec.shape, student.inputs[k].shape) for spec, k in zip(specs, order, strict=True))
    )
    if not fits:
        raise ModelError(
            "the teacher takes something else than the student", where=name,
            expected=", ".join(f"{spec.name}{spec.shape}" for spec in student.inputs),
            received=", ".join(f"{spec.name}{spec.shape}" for spec in specs),
            fix="give a teacher with the student's inputs, or put what adapts them into a model around it",
        )  # fmt: skip
    return order


def _places(names: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
    """Returns where each of the wanted names is; where the names are others, each is taken for the one in its place."""
    return tuple(map(names.index, wanted)) if set(names) == set(wanted) else tuple(range(len(names)))


def _may_be_alike(one: Shape, other: Shape) -> bool:
    return len(one) == len(other) and all(
        a == b or None in (a, b) or -1 in (a, b) for a, b in zip(one[1:], other[1:], strict=True)
    )


def _in_words(names: Sequence[str], shapes: Sequence[Shape]) -> str:
    return ", ".join(f"{name}{shape}" for name, shape in zip(names, shapes, strict=True))


def _zeros(spec: InputSpec) -> Array:
    return np.zeros([1, *(size or 1 for size in spec.sample_shape)], spec.dtype)


def _kind_in(artifact: Artifact) -> AnswerKind | None:
    """Returns what the only output of a file holds, by the last operator that computes."""
    last = next((op.name for op in reversed(artifact.ops) if op.subgraph == 0 and op.name not in _MOVE), "")
    return _ACTIVATIONS.get(_OPERATORS.get(last, ""))
