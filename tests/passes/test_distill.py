"""The pass `distill`: who teaches whom, what is kept, and that one seed gives one student."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.data import Dataset
from edgecompress.errors import DataError, ModelError, UsageError
from edgecompress.models import load_model
from edgecompress.passes import _with_notes
from edgecompress.passes.base import PassContext
from edgecompress.passes.distill import apply_distill, plan_distill
from edgecompress.techniques import Distill, Term, Training
from tests.distilling import assert_same_weights, counted, mlp_student, weights_of

HALF = Distill(width=0.5)


def context(samples, model=None, **options):
    training = Training(**{"epochs": 2, "learning_rate": 3e-3, **options.pop("training", {})})
    config = None if model is None else model.get_compile_config()
    return PassContext(
        training=training, data=samples, compile_config=config, **{"seed": 1, "load": load_model, **options}
    )


@pytest.fixture(scope="module")
def few(samples):
    return samples.select(np.arange(200))


@pytest.fixture(scope="module")
def half(net, few):
    """A student of half the width, and what is said of it."""
    return apply_distill(net, HALF, context(few, net))


def unlabelled(dataset):
    return Dataset(dataset.inputs, source=dataset.source)


def test_the_plan_has_the_students_weights_layer_by_layer(net):
    cells = {one.layer: one.detail for one in plan_distill(net, HALF)}
    assert cells == {
        "conv": "80 -> 40 weights",
        "norm": "32 -> 16 weights",
        "conv_2": "1,168 -> 296 weights",
        "hidden": "2,080 -> 528 weights",
        "digit": "330 -> 170 weights",
    }
    low = {one.layer: one.detail for one in plan_distill(net, Distill(rank=2))}
    assert low["hidden"].startswith("LowRankDense: 2,080 -> ")
    learns = plan_distill(net, Distill(teacher=("a.keras", "b.tflite")))
    assert {one.detail for one in learns} == {"trained by a.keras, b.tflite"}
    assert all(one.applies for one in learns)


def test_what_of_the_model_is_not_in_the_student_is_said(keras):
    layers = keras.layers
    deep = keras.Sequential([
        keras.Input((6,)), *(layers.Dense(6, activation="relu", name=f"d{n}") for n in range(4)), layers.Dense(2),
    ])  # fmt: skip
    details = [one.detail for one in plan_distill(deep, Distill(depth=0.5))]
    assert details.count("not in the student") == 2


def test_a_student_takes_the_models_place_and_learns_from_it(net, half):
    student, result = half
    assert student.count_params() < net.count_params() / 3
    assert (result.kind, result.distilled.teachers) == ("distill", ())
    assert result.distilled.teacher_params == net.count_params()
    assert result.distilled.student_params == student.count_params()
    assert result.distilled.compared == "SoftLabels(T = 4)"
    assert result.trained.loss == "0.3 x SparseCategoricalCrossentropy + 0.7 x (SoftLabels(T = 4))"
    assert result.trained.optimizer == "Adam, learning rate 0.003"
    assert (result.trained.samples, result.trained.validation_samples) == (180, 20)
    logs = [one.figures for one in result.trained.epochs]
    assert set(logs[0]) == {
        prefix + name for prefix in ("", "val_") for name in ("loss", "task_loss", "distillation_loss", "accuracy")
    }
    assert logs[1]["loss"] < logs[0]["loss"]
    assert logs[0]["loss"] == pytest.approx(0.3 * logs[0]["task_loss"] + 0.7 * logs[0]["distillation_loss"], rel=1e-3)


def test_the_teacher_is_left_as_it_is(net, few):
    before = weights_of(net)
    apply_distill(net, HALF.model_copy(update={"epochs": 1}), context(few, net))
    assert_same_weights(before, weights_of(net))


def test_what_is_learnt_comes_from_the_teacher(net, samples, accuracy):
    """Labels are wrong; at alpha 1 they do not count, and the student gets them right all the same."""
    wrong = Dataset(samples.inputs, (samples.labels + 3) % 10)
    spec, training = Distill(width=1, alpha=1.0), {"epochs": 8, "learning_rate": 1e-2}
    student, _ = apply_distill(net, spec, context(wrong, net, training=training))
    assert accuracy(student) > 0.6


def test_one_seed_gives_one_student_and_another_another(net, few, half):
    again, _ = apply_distill(net, HALF, context(few, net))
    assert_same_weights(weights_of(half[0]), weights_of(again))
    other, _ = apply_distill(net, HALF, context(few, net, seed=2))
    assert not np.allclose(weights_of(half[0])[0], weights_of(other)[0])


def test_answers_on_disk_change_nothing(net, few, half):
    student, result = apply_distill(net, Distill(width=0.5, cache=False), context(few, net))
    assert_same_weights(weights_of(half[0]), weights_of(student), atol=1e-6)
    assert half[1].distilled.kept_answers
    assert not result.distilled.kept_answers


def test_a_teacher_whose_answers_are_kept_is_asked_once(net, few):
    teacher, asked = counted(net)
    settings = context(few, load=lambda _path: load_model(teacher), training={"epochs": 3})
    apply_distill(mlp_student(), Distill(teacher="net"), settings)
    assert int(asked) == len(few)


def test_without_labels_the_teacher_alone_counts(net, few):
    _, result = apply_distill(net, Distill(width=0.5, alpha=1.0), context(unlabelled(few), net))
    assert result.trained.loss == "SoftLabels(T = 4)"
    assert set(result.trained.epochs[0].figures) == {"loss", "distillation_loss", "val_loss", "val_distillation_loss"}
    with pytest.raises((DataError, UsageError), match="labels"):
        apply_distill(net, HALF, context(unlabelled(few), net))


def test_several_files_teach_a_students_copy(few, tmp_path):
    files = []
    for seed in (1, 2):
        teacher = mlp_student(16, seed=seed)
        teacher.save(tmp_path / f"{seed}.keras")
        files.append(str(tmp_path / f"{seed}.keras"))
    model = mlp_student()
    before = weights_of(model)
    student, result = apply_distill(model, Distill(teacher=tuple(files)), context(few))
    assert_same_weights(before, weights_of(model))
    assert not np.allclose(before[0], weights_of(student)[0])
    assert result.distilled.teachers == tuple(files)
    assert result.distilled.teacher_params is None
    assert "inferred from the labels" in result.trained.notes[0]


def test_a_student_that_knows_more_than_its_teacher_keeps_its_weights(net, samples):
    """The teacher knows nothing, and a learning rate that is too large ruins what the student knows."""
    taught = Dataset(samples.inputs, samples.labels)
    spec = Distill(teacher="nobody", alpha=0.1)
    settings = context(taught, net, load=lambda _path: load_model(mlp_student(seed=9)), training={"learning_rate": 1.0})
    student, result = apply_distill(net, spec, settings)
    assert result.trained.kept_epoch == 0
    assert "no epoch was better than the weights before training" in result.trained.notes[-1]
    assert_same_weights(weights_of(net), weights_of(student))


def test_terms_become_losses_and_projectors_are_not_in_the_student(net, few):
    features = Term(kind="features", weight=0.1, teacher_layer="hidden", student_layer="hidden", projector="linear")
    spec = Distill(width=0.5, losses=(Term(kind="soft_labels"), features))
    student, result = apply_distill(net, spec, context(few, net, training={"epochs": 1}))
    assert result.distilled.compared == "SoftLabels(T = 4) + 0.1 x Features(hidden -> hidden)"
    assert len(student.weights) == len(net.weights)
    kinds = [Term(kind=kind) for kind in ("logits", "hard_labels")] + [
        Term(kind=kind, teacher_layer="conv_2", student_layer="conv_2")
        for kind in ("attention_transfer", "similarity_preserving")
    ]
    others = Distill(width=0.5, losses=tuple(kinds))
    _, result = apply_distill(net, others, context(few, net, training={"epochs": 1}))
    assert [part.split("(")[0] for part in result.distilled.compared.split(" + ")] == [
        "Logits", "HardLabels", "AttentionTransfer", "SimilarityPreserving",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("term", "words"),
    [
        (Term(kind="features", teacher_layer="hidden", student_layer="hidden"), "projector"),
        (Term(kind="features", teacher_layer="hiden", student_layer="hidden"), "did you mean hidden"),
        (Term(kind="features", teacher_layer="hidden", student_layer="hiden"), "the student has no layer"),
        (Term(kind="attention_matrices", teacher_layer="hidden", student_layer="hidden"), "no attention scores"),
    ],
)
def test_layers_that_cannot_be_compared(net, few, term, words):
    with pytest.raises(UsageError, match=words):
        apply_distill(net, Distill(width=0.5, losses=(term,)), context(few, net))


def test_models_that_do_not_go_together(keras, net, few):
    others = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(7)])
    with pytest.raises(ModelError, match=r"different answers.*10.*7"):
        apply_distill(others, Distill(teacher="net"), context(few, load=lambda _path: load_model(net)))
    rows = keras.Sequential([keras.Input((8, 8)), keras.layers.GRU(4), keras.layers.Dense(10)])
    with pytest.raises(ModelError, match="takes something else than the student"):
        apply_distill(mlp_student(), Distill(teacher="rows"), context(few, load=lambda _path: load_model(rows)))
    with pytest.raises(DataError, match=r"needs training samples.*--train"):
        apply_distill(net, HALF, context(None, net))


# Files whose last layer cannot be seen


def exported(model, path):
    model.export(path, verbose=False)
    return str(path)


@pytest.mark.parametrize(
    ("activation", "what"), [("softmax", "probabilities: they are all in"), (None, "logits: they go")]
)
def test_a_saved_model_is_understood_by_its_answers(few, tmp_path, activation, what):
    teacher = mlp_student(16, activation=activation, seed=3)
    teacher.layers[-1].kernel.assign(3 * teacher.layers[-1].kernel)
    path = exported(teacher, tmp_path / "teacher")
    one, result = apply_distill(mlp_student(), Distill(teacher=path), context(few))
    assert f"were taken for {what}" in " ".join(result.notes)
    same, _ = apply_distill(mlp_student(), Distill(teacher="x"), context(few, load=lambda _path: load_model(teacher)))
    assert_same_weights(weights_of(one), weights_of(same), atol=1e-4)


def test_a_saved_model_beside_others_is_refused(few, tmp_path):
    teacher = mlp_student(16, seed=3)
    files = {"saved": exported(teacher, tmp_path / "saved"), "other": teacher}
    settings = context(few, load=lambda name: load_model(files[name]))
    with pytest.raises(
        UsageError, match=r"saved: it cannot be seen whether this teacher .* Fix: give the .keras files"
    ):
        apply_distill(mlp_student(), Distill(teacher=("saved", "other")), settings)


# A run that is ended


def droppy():
    """A student that draws random numbers while it learns."""
    import keras

    keras.utils.set_random_seed(4)
    layers = keras.layers
    return keras.Sequential([
        keras.Input((8, 8, 1), name="image"), layers.Flatten(), layers.Dropout(0.3),
        layers.Dense(10, activation="softmax"),
    ])  # fmt: skip


class KilledError(Exception):
    """Stands for a killed process."""


def killed_in(epoch):
    def say(step, done, total):
        if step.startswith(f"distill, epoch {epoch}/") and done == total:
            raise KilledError

    return say


@pytest.mark.parametrize(("make", "cache"), [(mlp_student, True), (droppy, True), (mlp_student, False)])
def test_a_killed_run_goes_on_with_the_same_weights(net, few, tmp_path, make, cache):
    teacher, asked = counted(net)
    spec, options = (
        Distill(teacher="net", cache=cache),
        {"load": lambda _path: load_model(teacher), "training": {"epochs": 3}},
    )
    whole, expected = apply_distill(make(), spec, context(few, **options, checkpoints=tmp_path / "whole"))
    with pytest.raises(KilledError):
        apply_distill(make(), spec, context(few, **options, checkpoints=tmp_path / "killed", say=killed_in(2)))
    assert (tmp_path / "killed" / "answers").exists() == cache
    asked.assign(0)
    again = context(few, **options, checkpoints=tmp_path / "killed", resume=True)
    resumed, result = apply_distill(make(), spec, again)
    assert (int(asked) == 0) == cache, "what is on disk is not asked again"
    assert result.trained.resumed_at == 2
    assert result.trained.epochs == expected.trained.epochs
    assert_same_weights(weights_of(whole), weights_of(resumed))


@pytest.mark.parametrize("change", ["teacher", "alpha", "student"])
def test_a_checkpoint_of_another_run_is_refused(net, few, tmp_path, change):
    def settings(teacher, **options):
        return context(
            few, load=lambda _path: load_model(teacher), training={"epochs": 1}, checkpoints=tmp_path, **options
        )

    spec = Distill(teacher="net")
    apply_distill(mlp_student(), spec, settings(net))
    student = mlp_student(seed=4 if change == "student" else 0)
    teacher = mlp_student(9, seed=4) if change == "teacher" else net
    with pytest.raises(UsageError, match="of another run"):
        apply_distill(
            student, spec.model_copy(update={"alpha": 0.6} if change == "alpha" else {}), settings(teacher, resume=True)
        )


def test_progress_is_told_in_epochs_and_figures(net, few):
    said = []
    settings = context(few, net, training={"epochs": 2, "batch_size": 60}, say=lambda *facts: said.append(facts))
    apply_distill(net, HALF, settings)
    steps = [step for step, _, _ in said]
    assert steps[-1].startswith("distill, epoch 2/2: ")
    assert "distillation_loss " in steps[-1]
    assert said[-1][1:] == (3, 3)
    assert any("teacher" in step for step in steps)


def test_early_stopping(net, few):
    training = {"epochs": 9, "early_stopping": 1, "learning_rate": 1.0}
    _, result = apply_distill(net, HALF, context(few, net, training=training))
    assert result.trained.stopped == "early stopping: no better validation loss in 1 epochs"
    assert len(result.trained.epochs) < 9


# Other models


def test_labels_of_one_output_of_several_by_name(keras, few):
    """Outputs in a dict; the labels are those of one of them, the teacher counts for both."""
    layers = keras.layers

    def model(units, seed):
        keras.utils.set_random_seed(seed)
        x = keras.Input((8, 8, 1), name="image")
        hidden = layers.Dense(units, activation="relu")(layers.Flatten()(x))
        outputs = {
            "digit": layers.Dense(10, activation="softmax", name="digit")(hidden),
            "ink": layers.Dense(1, name="ink")(hidden),
        }
        return keras.Model(x, outputs)

    teacher, student = model(32, 1), model(8, 2)
    settings = context(few, load=lambda _path: load_model(teacher), training={"epochs": 6})
    trained, result = apply_distill(student, Distill(teacher="t"), settings)
    assert result.distilled.compared == "SoftLabels(T = 4) + Logits"
    images = few.inputs["image"]

    def distance(one):
        return float(np.mean(np.square(np.asarray(one(images)["ink"]) - np.asarray(teacher(images)["ink"]))))

    assert distance(trained) < 0.5 * distance(student)


def test_several_inputs_in_another_order(keras):
    layers, rng = keras.layers, np.random.default_rng(0)
    data = Dataset({
        "a": rng.normal(size=(120, 3)).astype(np.float32), "b": rng.normal(size=(120, 5)).astype(np.float32),
    }, rng.integers(0, 2, 120))  # fmt: skip

    def model(order, units, seed):
        keras.utils.set_random_seed(seed)
        inputs = {name: keras.Input((size,), name=name) for name, size in (("a", 3), ("b", 5))}
        hidden = layers.Dense(units, activation="relu")(layers.Concatenate()([inputs["a"], inputs["b"]]))
        return keras.Model([inputs[name] for name in order], layers.Dense(2, activation="softmax")(hidden))

    teacher, student = model("ab", 16, 1), model("ba", 4, 2)
    swapped = model("ba", 16, 1)
    swapped.set_weights(teacher.get_weights())
    results = [
        apply_distill(student, Distill(teacher="t"), context(data, load=lambda _path, t=t: load_model(t)))
        for t in (teacher, swapped)
    ]
    assert_same_weights(*(weights_of(found) for found, _ in results), atol=1e-6)


def test_a_models_own_loss_and_metrics_are_used(keras, net, few):
    student = mlp_student()
    student.compile(
        keras.optimizers.SGD(0.05),
        keras.losses.SparseCategoricalCrossentropy(),
        metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(3, name="top3")],
    )
    _, result = apply_distill(student, Distill(teacher="t"), context(few, student, load=lambda _path: load_model(net)))
    assert result.trained.optimizer == "SGD, learning rate 0.003"
    assert result.trained.notes == ()
    assert "top3" in result.trained.epochs[0].figures


def test_a_network_of_sequences(keras, digits):
    (x, y), _ = digits.digits(as_rows=True)
    data = Dataset({"rows": x[:150]}, y[:150])
    keras.utils.set_random_seed(0)
    teacher = digits.make_gru()
    student, result = apply_distill(teacher, HALF, context(data, training={"epochs": 1}))
    assert student.count_params() < teacher.count_params() / 2
    gru = next(layer.name for layer in teacher.layers if type(layer).__name__ == "GRU")
    states = Term(kind="features", teacher_layer=gru, student_layer=gru, projector="linear")
    _, result = apply_distill(teacher, Distill(width=0.5, losses=(states,)), context(data, training={"epochs": 1}))
    assert result.distilled.compared == f"Features({gru} -> {gru})"


def test_distilled_after_pruning_says_that_zeros_are_lost(half):
    for earlier in ("prune", "cluster"):
        (note,) = _with_notes(half[1], [earlier]).notes
        assert "zeros and shared values are not kept; distill first" in note
    assert _with_notes(half[1], ["low_rank"]).notes == ()
