"""Which outputs are compared by what: last activations, the task's loss, and what kind of teacher there is."""

import functools

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.distill import Distiller, Features, HardLabels, Logits, SelfDistillation, SoftLabels
from edgecompress.distill.answers import AnswerKind, as_stated
from edgecompress.distill.terms import (
    Output,
    default_terms,
    describe,
    describe_outputs,
    losses_by_output,
    on_outputs,
    pair_answers,
)
from edgecompress.errors import UsageError

LOGITS, SOFTMAX, SIGMOID = AnswerKind(), AnswerKind(True, False), AnswerKind(True, True)
BINARY_LOGITS = AnswerKind(False, True)
SAID_PROBABILITIES, SAID_LOGITS = AnswerKind(True, None), AnswerKind(False, None)
losses = keras.losses


def one(loss, teacher, student, *, classes=3):
    (output,) = describe_outputs(["digit"], [(None, classes)], [loss], [teacher], [student])
    return output


class Smoothed(losses.SparseCategoricalCrossentropy):
    """A loss of a user's own."""


def own_loss(y_true, y_pred):
    return keras.ops.mean(y_true - y_pred)


class TestKinds:
    @pytest.mark.parametrize(
        ("loss", "teacher", "student", "expected"),
        [
            ("sparse_categorical_crossentropy", SOFTMAX, SOFTMAX, (SOFTMAX, SOFTMAX)),
            (losses.sparse_categorical_crossentropy, LOGITS, SOFTMAX, (LOGITS, SOFTMAX)),
            (losses.SparseCategoricalCrossentropy(from_logits=True), LOGITS, LOGITS, (LOGITS, LOGITS)),
            (losses.CategoricalCrossentropy(from_logits=True), SOFTMAX, LOGITS, (SOFTMAX, LOGITS)),
            (losses.CategoricalFocalCrossentropy(), SOFTMAX, SOFTMAX, (SOFTMAX, SOFTMAX)),
            ("kl_divergence", SOFTMAX, SOFTMAX, (SOFTMAX, SOFTMAX)),
            ("binary_crossentropy", SIGMOID, SIGMOID, (SIGMOID, SIGMOID)),
            ("bce", LOGITS, SIGMOID, (BINARY_LOGITS, SIGMOID)),
            (losses.BinaryFocalCrossentropy(from_logits=True), SIGMOID, LOGITS, (SIGMOID, BINARY_LOGITS)),
            (losses.BinaryCrossentropy(from_logits=True), LOGITS, LOGITS, (BINARY_LOGITS, BINARY_LOGITS)),
            ("categorical_crossentropy", SIGMOID, SIGMOID, (SIGMOID, SIGMOID)),
            (Smoothed(from_logits=True), SOFTMAX, None, (SOFTMAX, LOGITS)),
            ("mse", SOFTMAX, SOFTMAX, (SOFTMAX, SOFTMAX)),
            (None, SIGMOID, LOGITS, (SIGMOID, BINARY_LOGITS)),
            (None, SOFTMAX, LOGITS, (SOFTMAX, LOGITS)),
            (own_loss, SIGMOID, SIGMOID, (SIGMOID, SIGMOID)),
            # The last activation cannot be seen, and the loss tells.
            ("sparse_categorical_crossentropy", SOFTMAX, None, (SOFTMAX, SOFTMAX)),
            (losses.BinaryCrossentropy(from_logits=True), SIGMOID, None, (SIGMOID, BINARY_LOGITS)),
            # Somebody says whether they are logits, not of what kind.
            ("binary_crossentropy", SAID_PROBABILITIES, SIGMOID, (SIGMOID, SIGMOID)),
            ("categorical_crossentropy", SAID_PROBABILITIES, SOFTMAX, (SOFTMAX, SOFTMAX)),
            (losses.BinaryCrossentropy(), SIGMOID, SAID_PROBABILITIES, (SIGMOID, SIGMOID)),
            (None, SIGMOID, SAID_LOGITS, (SIGMOID, BINARY_LOGITS)),
            (own_loss, SAID_PROBABILITIES, SAID_PROBABILITIES, (SOFTMAX, SOFTMAX)),
        ],
    )
    def test_of_classes(self, loss, teacher, student, expected):
        output = one(loss, teacher, student)
        assert output.kinds == expected
        assert output.classes
        assert [type(term) for term, _ in default_terms([output])] == [SoftLabels]
        assert pair_answers(SoftLabels(), [output]) == ((0, 0, expected),)

    @pytest.mark.parametrize(
        ("loss", "classes", "student"),
        [
            ("mse", 3, LOGITS), (losses.Huber(), 3, LOGITS), (losses.mean_absolute_error, 1, LOGITS),
            ("mse", 3, None), (own_loss, 3, LOGITS), (None, 1, LOGITS), (None, 1, None),
        ],
    )  # fmt: skip
    def test_of_values(self, loss, classes, student):
        output = one(loss, student, student, classes=classes)
        assert not output.classes
        ((term, weight),) = default_terms([output])
        assert (type(term), weight) == (Logits, 1.0)
        assert pair_answers(term, [output]) == ((0, 0, (LOGITS, LOGITS)),)  # as they are
        with pytest.raises(
            UsageError,
            match=r"SoftLabels: no output of the student is about classes; received digit. "
            r"Fix: use Logits, which compares values, too; or name the output: SoftLabels\(output=…\)",
        ):
            pair_answers(SoftLabels(), [output])

    @pytest.mark.parametrize("loss", ["binary_crossentropy", losses.BinaryCrossentropy(), "mse", None])
    def test_a_single_sigmoid(self, loss):
        output = one(loss, SIGMOID, SIGMOID, classes=1)
        assert output == Output("digit", (None, 1), (SIGMOID, SIGMOID), classes=True)
        assert one(loss, LOGITS, SIGMOID, classes=1).kinds == (BINARY_LOGITS, SIGMOID)

    @pytest.mark.parametrize("shape", [(None,), (None, 1)])
    def test_an_output_of_one_value_is_binary_if_it_is_about_a_class(self, shape):
        (output,) = describe_outputs(["yes"], [shape], [None], [SAID_PROBABILITIES], [SAID_PROBABILITIES])
        assert output == Output("yes", shape, (SIGMOID, SIGMOID), classes=True)
        (output,) = describe_outputs(["value"], [shape], [None], [LOGITS], [LOGITS])
        assert not output.classes

    @pytest.mark.parametrize(
        ("loss", "student", "text"),
        [
            (
                losses.SparseCategoricalCrossentropy(from_logits=True), SOFTMAX,
                r"'digit': the loss takes logits, and the student gives probabilities; .*\(from_logits=False\)$",
            ),
            (
                "categorical_crossentropy", LOGITS,
                r"takes probabilities, and the student gives logits; .* CategoricalCrossentropy\(from_logits=True\)",
            ),
            (losses.BinaryCrossentropy(), LOGITS, r"BinaryCrossentropy\(from_logits=True\)"),
            (Smoothed(), LOGITS, r"SparseCategoricalCrossentropy\(from_logits=True\)"),
            ("kl_divergence", LOGITS, r"the student gives logits; .* Fix: let the student end in a softmax"),
        ],
    )  # fmt: skip
    def test_a_loss_that_takes_something_else_is_refused(self, loss, student, text):
        with pytest.raises(UsageError, match=text):
            one(loss, SOFTMAX, student)

    @pytest.mark.parametrize(
        ("loss", "teacher", "student"),
        [
            (None, SOFTMAX, SIGMOID),
            ("mse", SIGMOID, SOFTMAX),
            (losses.BinaryCrossentropy(from_logits=True), SOFTMAX, LOGITS),
            (losses.CategoricalCrossentropy(from_logits=True), SIGMOID, None),
        ],
    )
    def test_classes_and_labels_are_different_things(self, loss, teacher, student):
        text = "output 'digit': teacher and student mean different things; expected as the teacher: a s.*; received"
        with pytest.raises(UsageError, match=f"{text} the student: a s.* Fix: give the student the teacher's last"):
            one(loss, teacher, student)

    def test_where_nobody_can_tell_it_is_asked(self):
        for who, kinds in (("teacher", (None, SOFTMAX)), ("student", (SOFTMAX, None))):
            output = one(None, *kinds)
            for term in (SoftLabels(), Logits(), HardLabels()):
                with pytest.raises(
                    UsageError,
                    match=f"^output 'digit': it cannot be seen whether the {who} answers with logits or with "
                    f"probabilities. Fix: say {who}_from_logits=True or False$",
                ):
                    pair_answers(term, [output])

    def test_what_is_said_comes_before_what_is_seen(self):
        assert as_stated(None, SIGMOID) is SIGMOID
        assert as_stated(True, SIGMOID) == SAID_LOGITS
        assert as_stated(False, SIGMOID) == SIGMOID
        assert as_stated(True, LOGITS).title == "logits"
        assert as_stated(False, None) == SAID_PROBABILITIES

    def test_a_partial_loss_is_taken_for_one_of_values(self):
        loss = functools.partial(losses.categorical_crossentropy, from_logits=True)
        assert not one(loss, LOGITS, LOGITS).classes
        assert one(loss, SOFTMAX, SOFTMAX).classes


OUTPUTS = (
    Output("digit", (None, 10), (SOFTMAX, LOGITS), classes=True),
    Output("early", (None, 10), (SOFTMAX, SOFTMAX), classes=True),
    Output("size", (None, 1), (LOGITS, LOGITS), classes=False),
)


class TestPairs:
    def test_by_default_each_output_has_its_term(self):
        soft, values = (term for term, _ in default_terms(OUTPUTS))
        assert pair_answers(soft, OUTPUTS) == ((0, 0, (SOFTMAX, LOGITS)), (1, 1, (SOFTMAX, SOFTMAX)))
        assert pair_answers(values, OUTPUTS) == ((2, 2, (LOGITS, LOGITS)),)
        assert pair_answers(Logits(), OUTPUTS[:2]) == ((0, 0, (SOFTMAX, LOGITS)), (1, 1, (SOFTMAX, SOFTMAX)))

    @pytest.mark.parametrize("output", ["early", 1, -2])
    @pytest.mark.parametrize("term", [SoftLabels, Logits, HardLabels])
    def test_an_output_can_be_named(self, term, output):
        assert pair_answers(term(output=output), OUTPUTS) == ((1, 1, (SOFTMAX, SOFTMAX)),)

    @pytest.mark.parametrize("output", ["late", 3, -4, 1.0])
    def test_of_an_unknown_output_it_says_which_there_are(self, output):
        with pytest.raises(
            UsageError, match=f"^{output!r}: the student has no such output; expected digit, early, size"
        ):
            pair_answers(SoftLabels(output=output), OUTPUTS)

    def test_one_output_teaches_the_others_that_are_about_the_same_classes(self):
        pairs = pair_answers(SelfDistillation("digit"), OUTPUTS)
        assert pairs == ((0, 1, (LOGITS, SOFTMAX)),)  # the student's kinds only
        assert pair_answers(SelfDistillation(), OUTPUTS[:2]) == ((1, 0, (SOFTMAX, LOGITS)),)

    def test_an_output_alone_cannot_teach_itself(self):
        with pytest.raises(
            UsageError, match="SelfDistillation: the student has no other output about the same classes"
        ):
            pair_answers(SelfDistillation("digit"), (OUTPUTS[0], OUTPUTS[2]))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("mse", ["mse", "mse"]), (None, [None, None]), (["mse", None], ["mse", None]), (("mse",), ["mse", None]),
        ({"b": "mse"}, [None, "mse"]), ({"b": "mse", "a": "mae"}, ["mae", "mse"]),
    ],
)  # fmt: skip
def test_losses_by_output(loss, expected):
    assert losses_by_output(loss, ["a", "b"]) == expected


def test_conversions_are_said():
    (note,) = on_outputs(OUTPUTS)
    assert note == (
        "output 'digit': the teacher gives probabilities and the student logits; both are compared as logits, "
        "the probabilities' logarithms"
    )


def test_a_term_in_words():
    schedule = keras.optimizers.schedules.ExponentialDecay(8.0, 10, 0.5)
    assert describe(SoftLabels(), 1.0, 4.0) == "SoftLabels(T = 4)"
    assert describe(SoftLabels(2.5), 0.5, 4.0) == "0.5 x SoftLabels(T = 2.5)"
    assert describe(SoftLabels(), 1.0, schedule) == "SoftLabels(T by ExponentialDecay)"
    assert describe(Features("conv3", "conv2"), 0.1, 4.0) == "0.1 x Features(conv3 -> conv2)"
    assert describe(HardLabels(), 1.0, 4.0) == "HardLabels"


def network(*ends, names=(), seed=0):
    """A model whose outputs end in these activations, as a dict if they have names."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,), name="x")
    hidden = layers.Dense(5, activation="relu", name="hidden")(inputs)
    outputs = [
        end(layers.Dense(3)(hidden)) if isinstance(end, layers.Layer) else layers.Dense(3, activation=end)(hidden)
        for end in ends
    ]
    return keras.Model(inputs, dict(zip(names, outputs, strict=True)) if names else outputs[0])


class TestModels:
    @pytest.mark.parametrize(
        ("teacher", "student", "loss", "compared", "notes"),
        [
            ("softmax", "softmax", "sparse_categorical_crossentropy", "SoftLabels(T = 4)", 0),
            (layers.Softmax(), None, losses.SparseCategoricalCrossentropy(from_logits=True), "SoftLabels(T = 4)", 1),
            (None, "softmax", "sparse_categorical_crossentropy", "SoftLabels(T = 4)", 1),
            ("sigmoid", layers.Activation("sigmoid"), "binary_crossentropy", "SoftLabels(T = 4)", 0),
            (None, None, "mse", "Logits", 0),
            ("relu", "relu", "mae", "Logits", 0),
        ],
    )
    def test_by_their_last_activations(self, teacher, student, loss, compared, notes):
        distiller = Distiller(network(student, seed=1), network(teacher))
        distiller.compile("sgd", loss)
        assert distiller.compared == compared
        assert len(distiller.notes) == notes

    def test_a_teacher_of_unknown_kind(self):
        distiller = Distiller(network("softmax"), network("relu"))
        with pytest.raises(UsageError, match=r"whether the teacher answers with .* say teacher_from_logits=True"):
            distiller.compile("sgd", "sparse_categorical_crossentropy")
        distiller = Distiller(network("softmax"), network("relu"), teacher_from_logits=True)
        distiller.compile("sgd", "sparse_categorical_crossentropy")
        assert "the teacher gives logits and the student probabilities" in distiller.notes[0]

    @pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
    def test_saying_what_is_seen_changes_nothing(self, kind):
        figures = []
        for options in ({}, {"teacher_from_logits": False, "student_from_logits": False}):
            distiller = Distiller(network(kind, seed=1), network(kind), alpha=1.0, **options)
            distiller.compile("sgd")
            figures.append(distiller.evaluate(np.eye(4, dtype=np.float32), verbose=0))
        assert figures[0] == figures[1]

    def test_several_outputs_by_name(self):
        names = ("late", "early", "area")
        distiller = Distiller(
            network("softmax", None, None, names=names, seed=1), network("softmax", "softmax", None, names=names)
        )
        task = {"early": losses.SparseCategoricalCrossentropy(from_logits=True), "area": "mse"}
        distiller.compile("sgd", {**task, "late": "sparse_categorical_crossentropy"})
        assert distiller.compared == "SoftLabels(T = 4) + Logits"
        assert len(distiller.notes) == 1
        assert "output 'early'" in distiller.notes[0]
        distiller.compile("sgd", task)  # the last activation tells of the one without a loss
        assert distiller.compared == "SoftLabels(T = 4) + Logits"
        with pytest.raises(UsageError, match="output 'late': the loss takes logits"):
            distiller.compile("sgd", {"late": losses.SparseCategoricalCrossentropy(from_logits=True)})
