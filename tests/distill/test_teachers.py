"""Teachers of all kinds, from memory and from files."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from edgecompress.distill import Distiller, Features
from edgecompress.distill.teachers import Ensemble, open_teacher
from edgecompress.distill.watching import Point
from edgecompress.errors import ModelError, UsageError
from edgecompress.models import load_model
from tests import handsteps
from tests.distilling import compiled, mlp_student, mlp_teacher
from tests.handsteps import clamped_sum, sum_steps


def ask(teacher, x):
    return [np.asarray(answer) for answer in teacher.answers([tf.constant(array) for array in x])]


def opened(source, student=None, points=(), **options):
    return open_teacher(source, load_model(student or mlp_student()), points, **options)


def gru_student(steps=8):
    keras.utils.set_random_seed(0)
    return keras.Sequential([
        keras.Input((steps, 8), name="rows"), layers.GRU(6), layers.Dense(10, activation="softmax", name="digit"),
    ])  # fmt: skip


def keras_2_model(path):
    tf_keras = pytest.importorskip("tf_keras")
    tf_keras.utils.set_random_seed(0)
    model = tf_keras.Sequential([
        tf_keras.Input((8, 8, 1), name="image"),
        tf_keras.layers.DepthwiseConv2D(3), tf_keras.layers.BatchNormalization(), tf_keras.layers.Flatten(),
        tf_keras.layers.Dropout(0.5), tf_keras.layers.Dense(10, activation="softmax"),
    ])  # fmt: skip
    model.save(path, save_format="h5")
    return model


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="subclassed")
        self.flat, self.dense = layers.Flatten(), layers.Dense(10, activation="softmax")

    def call(self, inputs):
        return self.dense(self.flat(inputs))


class TestKinds:
    def test_of_keras_3_in_memory_on_disk_or_loaded(self, images, cnn_teacher, digits_cnn):
        x, _ = images
        expected = cnn_teacher.predict(x, verbose=0)
        for source in (
            cnn_teacher,
            digits_cnn.model,
            str(digits_cnn.model),
            load_model(digits_cnn.model),
            [cnn_teacher],
        ):
            teacher = opened(source)
            assert teacher.in_graph
            assert teacher.shapes == ((None, 10),)
            assert (teacher.kinds[0].probabilities, teacher.kinds[0].binary) == (True, False)
            np.testing.assert_allclose(ask(teacher, [x])[0], expected, atol=1e-6)

    @pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
    def test_of_keras_2(self, images, tmp_path):
        model = keras_2_model(tmp_path / "two.h5")
        expected = np.asarray(model(images[0], training=False))
        for source in (tmp_path / "two.h5", model):
            teacher = opened(source)
            np.testing.assert_allclose(ask(teacher, [images[0]])[0], expected, atol=1e-6)
            assert teacher.kinds[0].probabilities

    def test_a_saved_model(self, images, cnn_teacher, tmp_path):
        cnn_teacher.export(tmp_path / "exported", verbose=False)
        teacher = opened(tmp_path / "exported")
        np.testing.assert_allclose(ask(teacher, [images[0]])[0], cnn_teacher.predict(images[0], verbose=0), atol=1e-6)
        assert teacher.kinds == (None,)
        with pytest.raises(UsageError, match=r"teacher answers with logits or.*Fix: say teacher_from_logits"):
            compiled(mlp_student(), tmp_path / "exported")
        distiller = compiled(mlp_student(), tmp_path / "exported", teacher_from_logits=False)
        assert distiller.fit(*images, verbose=0).history["loss"]

    def test_a_float_tflite_file(self, images, cnn_teacher, cnn_tflite):
        teacher = opened(cnn_tflite)
        assert not teacher.in_graph
        assert teacher.kinds[0].probabilities
        np.testing.assert_allclose(ask(teacher, [images[0]])[0], cnn_teacher.predict(images[0], verbose=0), atol=1e-5)

    def test_an_integer_tflite_file(self, images, cnn_teacher, digits_int8):
        answers = ask(opened(digits_int8), [images[0]])[0]
        assert answers.dtype == np.float32
        np.testing.assert_allclose(answers, cnn_teacher.predict(images[0], verbose=0), atol=0.1)
        assert len(np.unique(answers)) <= 256

    def test_a_recurrent_tflite_file(self, rows, gru_teacher, to_tflite, tmp_path):
        teacher = opened(to_tflite(gru_teacher, tmp_path), gru_student())
        np.testing.assert_allclose(ask(teacher, [rows[0]])[0], gru_teacher.predict(rows[0], verbose=0), atol=1e-4)

    def test_a_tflite_file_of_one_time_step(self, tmp_path):
        steps = np.random.default_rng(0).integers(-20, 20, (6, 10, 4)).astype(np.int8)
        x = (steps.astype(np.float32) - handsteps.ZERO) * handsteps.SCALE
        sums = (sum_steps(steps).astype(np.float32) - handsteps.ZERO) * handsteps.SCALE
        given = keras.Input((10, 4), name="x")
        hidden = layers.GRU(4, return_sequences=True)(given)
        outputs = [layers.Dense(4, name="sums")(hidden), layers.Dense(4, name="doubled")(layers.GRU(3)(hidden))]
        teacher = opened(clamped_sum(tmp_path / "step.tflite"), keras.Model(given, outputs))
        answers = ask(teacher, [x])
        np.testing.assert_array_equal(answers[0], sums)
        np.testing.assert_array_equal(answers[1], 2 * sums[:, -1])

    def test_a_subclassed_model_teaches_and_learns(self, images):
        keras.utils.set_random_seed(0)
        teacher, student = Subclassed(), Subclassed()
        for model in (teacher, student):
            model(np.zeros((1, 8, 8, 1), np.float32))
        distiller = compiled(student, teacher)
        before = distiller.evaluate(*images, verbose=0)
        distiller.fit(*images, epochs=2, verbose=0)
        assert distiller.student is student
        assert distiller.evaluate(*images, verbose=0) < before

    @pytest.mark.parametrize("kind", ["gru", "tflite", "h5", "saved model"])
    @pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
    def test_trains_whatever_can_be_compiled(self, kind, images, rows, gru_teacher, cnn_teacher, cnn_tflite, tmp_path):
        if kind == "gru":
            keras.utils.set_random_seed(0)
            student = keras.Sequential([
                keras.Input((8, 8), name="rows"), layers.Flatten(), layers.Dense(10, activation="softmax"),
            ])  # fmt: skip
            distiller = compiled(student, gru_teacher)
            figures = distiller.fit(*rows, epochs=3, verbose=0).history
        else:
            source = cnn_tflite
            if kind == "h5":
                keras_2_model(source := tmp_path / "two.h5")
            if kind == "saved model":
                cnn_teacher.export(source := tmp_path / "exported", verbose=False)
            distiller = compiled(mlp_student(), source, teacher_from_logits=False)
            figures = distiller.fit(*images, epochs=3, verbose=0).history
        assert not distiller.jit_compile
        assert figures["distillation_loss"][-1] < figures["distillation_loss"][0]

    def test_a_model_smaller_than_its_student(self, images, cnn_teacher):
        distiller = compiled(keras.models.clone_model(cnn_teacher), mlp_student())
        assert distiller.fit(*images, verbose=0).history["loss"]


class TestTflite:
    def test_cannot_be_compiled_by_xla(self, images, cnn_tflite, tmp_path):
        distiller = compiled(mlp_student(), cnn_tflite, options={"jit_compile": True})
        with pytest.raises(
            UsageError, match=r"XLA cannot compile a step that runs a .tflite file.*Fix: leave"
        ) as error:
            distiller.fit(*images, verbose=0)
        assert "\n" not in str(error.value)
        cached = distiller.with_answers(*images, cache=tmp_path)
        assert distiller.fit(cached, verbose=0).history["loss"]

    def test_is_run_step_by_step_outside_of_graphs(self, images, cnn_tflite):
        figures = [
            compiled(mlp_student(), cnn_tflite, options=options).fit(*images, shuffle=False, verbose=0).history["loss"]
            for options in ({}, {"run_eagerly": True})
        ]
        np.testing.assert_allclose(*figures, rtol=1e-5)

    def test_has_no_layers_to_look_at(self, cnn_tflite):
        with pytest.raises(UsageError, match=r"a .tflite file has no layers to look at; received layer 'conv'"):
            Distiller(mlp_student(), cnn_tflite, losses=[Features("conv", "hidden")])

    def test_teaches_as_the_model_it_came_from(self, images, cnn_teacher, cnn_tflite):
        x, y = images
        figures = [
            compiled(mlp_student(), source).evaluate(x, y, verbose=0, return_dict=True)
            for source in (cnn_teacher, cnn_tflite)
        ]
        assert figures[1] == pytest.approx(figures[0], rel=1e-4)


class TestEnsemble:
    def test_answers_with_the_mean(self, images, cnn_teacher, cnn_tflite):
        other = mlp_teacher()
        expected = np.mean([model.predict(images[0], verbose=0) for model in (cnn_teacher, other)], axis=0)
        for member in (cnn_teacher, cnn_tflite):
            teacher = opened([member, other])
            np.testing.assert_allclose(ask(teacher, [images[0]])[0], expected, atol=1e-5)
            assert teacher.in_graph == (member is cnn_teacher)

    def test_of_logits_and_probabilities_answers_with_logits(self, images):
        probable, logits = mlp_teacher(seed=1), mlp_teacher(activation=None, seed=2)
        teacher = opened([probable, logits])
        expected = (np.log(probable.predict(images[0], verbose=0)) + logits.predict(images[0], verbose=0)) / 2
        np.testing.assert_allclose(ask(teacher, [images[0]])[0], expected, atol=1e-4)
        assert not teacher.kinds[0].probabilities

    def test_of_sigmoids_and_logits_answers_with_logits(self):
        x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
        probable, logits = (labels_of(activation, seed) for seed, activation in enumerate(("sigmoid", None)))
        odds = probable.predict(x, verbose=0)
        expected = (np.log(odds / (1 - odds)) + logits.predict(x, verbose=0)) / 2
        teacher = opened([probable, logits], labels_of("sigmoid", 2))
        np.testing.assert_allclose(ask(teacher, [x])[0], expected, atol=1e-5)

    def test_with_a_saved_model_needs_to_know_what_it_answers(self, images, cnn_teacher, tmp_path):
        cnn_teacher.export(tmp_path / "exported", verbose=False)
        other = mlp_teacher()
        with pytest.raises(UsageError, match=r"exported: it cannot be seen whether .* say teacher_from_logits"):
            opened([other, tmp_path / "exported"])
        expected = np.mean([model.predict(images[0], verbose=0) for model in (cnn_teacher, other)], axis=0)
        teacher = opened([other, tmp_path / "exported"], from_logits=False)
        np.testing.assert_allclose(ask(teacher, [images[0]])[0], expected, atol=1e-6)
        assert [kind.title for kind in teacher.kinds] == ["probabilities"]

    def test_of_ensembles_counts_each_model_once(self, images):
        one, two, three = (mlp_teacher(seed=seed) for seed in (1, 2, 3))
        teacher = opened([one, [two, three]])
        assert isinstance(teacher, Ensemble)
        assert len(teacher.members) == 3
        expected = np.mean([model.predict(images[0], verbose=0) for model in (one, two, three)], axis=0)
        np.testing.assert_allclose(ask(teacher, [images[0]])[0], expected, atol=1e-6)

    def test_of_different_answers_is_refused(self):
        image = keras.Input((8, 8, 1), name="image")
        seven = keras.Model(image, layers.Dense(7)(layers.Flatten()(image)), name="seven")
        with pytest.raises(ModelError, match="big and seven: teachers that answer in different shapes"):
            opened([mlp_teacher(), seven])

    def test_has_no_layers_in_common(self):
        with pytest.raises(UsageError, match="several teachers have no layers in common"):
            Distiller(mlp_student(), [mlp_teacher(), mlp_teacher()], losses=[Features("hidden", "hidden")])


def labels_of(activation, seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((3,), name="x"), layers.Dense(4, activation=activation)])


def crossed(names, units, *, swap):
    """Takes two inputs of one shape, and is not symmetric."""
    keras.utils.set_random_seed(units)
    first, second = (keras.Input((3,), name=name) for name in names)
    hidden = layers.Concatenate()([layers.Dense(units)(first), layers.Dense(1)(second)])
    inputs = [second, first] if swap else [first, second]
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(hidden), name="crossed")


class TestInputs:
    def test_are_matched_by_name(self):
        x = [np.random.default_rng(seed).normal(size=(5, 3)).astype(np.float32) for seed in range(2)]
        teacher = crossed("ab", 5, swap=True)
        answers = ask(opened(teacher, crossed("ab", 2, swap=False)), x)[0]
        np.testing.assert_allclose(answers, teacher.predict(x[::-1], verbose=0), atol=1e-6)

    def test_of_other_names_are_matched_by_place(self):
        x = [np.random.default_rng(seed).normal(size=(5, 3)).astype(np.float32) for seed in range(2)]
        teacher = crossed("cd", 5, swap=False)
        answers = ask(opened(teacher, crossed("ab", 2, swap=False)), x)[0]
        np.testing.assert_allclose(answers, teacher.predict(x, verbose=0), atol=1e-6)

    def test_in_a_dict_reach_the_teacher(self):
        teacher, student = crossed("ab", 5, swap=True), crossed("ab", 2, swap=False)
        x = {name: np.random.default_rng(ord(name)).normal(size=(8, 3)).astype(np.float32) for name in "ab"}
        distiller = compiled(student, teacher, loss=None, alpha=1)
        _, taught = distiller._with_teacher({name: tf.constant(array) for name, array in x.items()})
        np.testing.assert_allclose(taught[0], teacher.predict([x["b"], x["a"]], verbose=0), atol=1e-6)

    def test_of_another_shape_are_refused(self, gru_teacher):
        with pytest.raises(ModelError, match=r"the teacher takes something else than the student.*image.*rows"):
            opened(gru_teacher)

    def test_of_another_number_are_refused(self):
        with pytest.raises(ModelError, match="the teacher takes something else than the student"):
            opened(crossed("ab", 2, swap=False))

    def test_of_another_type_are_cast(self, images, cnn_teacher):
        whole = (images[0] * 16).astype(np.uint8)
        scaled = keras.Sequential([
            keras.Input((8, 8, 1), name="image", dtype="uint8"), layers.Rescaling(1 / 16), layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ])  # fmt: skip
        np.testing.assert_allclose(
            ask(opened(cnn_teacher, scaled), [whole])[0], cnn_teacher.predict(whole, verbose=0), atol=1e-6
        )


def two_sizes(names, *, swap=False):
    """Outputs of 2 and 3 values, which are not in the order of the alphabet unless they are swapped."""
    given = keras.Input((3,), name="x")
    outputs = [layers.Dense(size, name=name)(given) for size, name in zip((2, 3), names, strict=True)]
    return keras.Model(given, outputs[::-1] if swap else outputs, name="sizes")


class TestOutputs:
    @pytest.mark.parametrize("kind", ["keras", "saved model", "tflite"])
    def test_are_matched_by_name(self, kind, to_tflite, tmp_path):
        x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
        model = source = two_sizes("ba", swap=kind == "keras")
        student = two_sizes("ba")
        if kind == "tflite":
            source = to_tflite(model, tmp_path)
        if kind == "saved model":
            model.export(source := tmp_path / "exported", verbose=False)
        teacher = opened(source, student)
        assert teacher.shapes == ((None, 2), (None, 3))
        expected = model.predict(x, verbose=0)
        for answer, wanted in zip(ask(teacher, [x]), expected[::-1] if kind == "keras" else expected, strict=True):
            np.testing.assert_allclose(answer, wanted, atol=1e-5)

    def test_in_another_order_are_kept_apart(self):
        model = two_sizes("ba")
        assert opened(model, two_sizes("ba")).identity != opened(model, two_sizes("ba", swap=True)).identity

    def test_of_another_number_are_refused(self):
        given = keras.Input((3,), name="x")
        one = keras.Model(given, layers.Dense(2, name="b")(given), name="one")
        for student, teacher in ((one, two_sizes("ba")), (two_sizes("ba"), one)):
            with pytest.raises(ModelError, match="teacher and student give different answers"):
                Distiller(student, teacher)


class TestFiles:
    def test_that_are_not_there_are_refused(self, tmp_path):
        for name in ("none.keras", "none.tflite"):
            with pytest.raises(ModelError, match=f"{name}: no such file"):
                opened(tmp_path / name)

    def test_that_are_no_models_are_refused(self, tmp_path):
        for name in ("text.keras", "text.tflite", "text.h5"):
            (tmp_path / name).write_text("This is no model.")
            with pytest.raises(ModelError, match=name) as error:
                opened(tmp_path / name)
            assert "\n" not in str(error.value)

    def test_that_run_code_are_refused_unless_allowed(self, images, tmp_path):
        image = keras.Input((8, 8, 1), name="image")
        hidden = layers.Lambda(lambda t: t * 2.0, output_shape=(8, 8, 1))(image)
        model = keras.Model(image, layers.Dense(10, activation="softmax")(layers.Flatten()(hidden)))
        model.save(tmp_path / "lambda.keras")
        with pytest.raises(ModelError, match="Lambda"):
            Distiller(mlp_student(), tmp_path / "lambda.keras")
        distiller = Distiller(mlp_student(), tmp_path / "lambda.keras", unsafe=True)
        answers = distiller._with_teacher(tf.constant(images[0]))[1][0]
        np.testing.assert_allclose(answers, model.predict(images[0], verbose=0), atol=1e-6)


class TestIdentity:
    def test_is_of_the_weights_and_the_points(self, cnn_teacher, digits_cnn, cnn_tflite, digits_int8):
        names = {
            opened(cnn_teacher).identity, opened(cnn_tflite).identity, opened(digits_int8).identity,
            opened(mlp_teacher(seed=1)).identity, opened(mlp_teacher(seed=2)).identity,
            opened([cnn_teacher, cnn_tflite]).identity,
            opened(cnn_teacher, points=[Point("pool")]).identity,
        }  # fmt: skip
        assert len(names) == 7
        assert opened(cnn_teacher).identity == opened(digits_cnn.model).identity


def test_answers_that_were_averaged_otherwise_are_not_those_of_the_cache():
    both = [mlp_teacher(seed=1), mlp_teacher(seed=2, activation=None)]
    one, other = (opened(both, from_logits=from_logits) for from_logits in (None, False))
    assert one.identity != other.identity
