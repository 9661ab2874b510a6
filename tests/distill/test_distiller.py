"""The sums, the steps and the settings of a Distiller; what `fit` offers is in test_distiller_fit.py."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from edgecompress.distill import Distiller, Features, Logits, SelfDistillation, SoftLabels
from edgecompress.errors import ModelError, UsageError
from tests.distilling import (
    assert_same_weights,
    compiled,
    counted,
    crossentropies,
    divergences,
    mlp_student,
    mlp_teacher,
    weights_of,
)

ALPHA, T = 0.7, 3.0
PRECISION = {"rtol": 2e-5}


class Penalty(layers.Layer):
    """Adds the mean square of what it passes on to the losses."""

    def call(self, inputs):
        self.add_loss(0.01 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


def penalized_student():
    keras.utils.set_random_seed(0)
    return keras.Sequential([
        keras.Input((8, 8, 1), name="image"),
        layers.Flatten(),
        layers.Dense(12, activation="relu", kernel_regularizer=keras.regularizers.L2(0.02), name="hidden"),
        Penalty(),
        layers.Dense(10, activation="softmax"),
    ])  # fmt: skip


def penalties(student, x):
    hidden = keras.Model(student.inputs[0], student.get_layer("hidden").output).predict(x, verbose=0)
    return 0.02 * np.sum(np.square(student.get_layer("hidden").get_weights()[0])) + 0.01 * np.mean(np.square(hidden))


def both(teacher, student, x):
    return teacher.predict(x, verbose=0), student.predict(x, verbose=0)


class TestSum:
    @pytest.mark.parametrize("alpha", [0.0, ALPHA, 1.0])
    def test_is_task_terms_and_the_students_penalties(self, images, alpha):
        x, y = (array[:32] for array in images)
        teacher, student = mlp_teacher(), penalized_student()
        distiller = compiled(student, teacher, alpha=alpha, temperature=T)
        wanted, found = both(teacher, student, x)
        task, soft = crossentropies(found, y).mean(), divergences(wanted, found, T).mean()
        total = (1 - alpha) * task + alpha * soft + penalties(student, x)
        tested = distiller.evaluate(x, y, verbose=0, return_dict=True)
        trained = distiller.train_on_batch(x, y, return_dict=True)
        for figures in (tested, trained):
            np.testing.assert_allclose(figures["loss"], total, **PRECISION)
            np.testing.assert_allclose(figures["task_loss"], task, **PRECISION)
            np.testing.assert_allclose(figures["distillation_loss"], soft if alpha else 0, **PRECISION)

    def test_terms_are_multiplied_by_their_weights(self, images):
        x, y = (array[:32] for array in images)
        teacher, student = mlp_teacher(), mlp_student()
        distiller = compiled(
            student, teacher, losses=[SoftLabels(temperature=2.0), Logits()], loss_weights=[0.5, 2], alpha=ALPHA,
            temperature=T,
        )  # fmt: skip
        wanted, found = both(teacher, student, x)
        logits = [np.log(side) - np.log(side).mean(axis=-1, keepdims=True) for side in (wanted, found)]
        soft, squares = divergences(wanted, found, 2.0).mean(), np.square(logits[0] - logits[1]).mean()
        figures = distiller.evaluate(x, y, verbose=0, return_dict=True)
        np.testing.assert_allclose(figures["distillation_loss"], 0.5 * soft + 2 * squares, **PRECISION)

    def test_a_figure_of_an_epoch_is_the_mean_over_its_samples(self, images):
        x, y = (array[:50] for array in images)  # of batches of 32 and 18
        teacher, student = mlp_teacher(), mlp_student()
        figures = compiled(student, teacher, temperature=T).evaluate(x, y, batch_size=32, verbose=0, return_dict=True)
        wanted, found = both(teacher, student, x)
        np.testing.assert_allclose(figures["distillation_loss"], divergences(wanted, found, T).mean(), **PRECISION)
        np.testing.assert_allclose(figures["task_loss"], crossentropies(found, y).mean(), **PRECISION)

    def test_a_step_is_the_gradient_of_the_sum(self, images):
        x, y = (array[:32] for array in images)
        teacher, student = mlp_teacher(), mlp_student()
        distiller = compiled(student, teacher, alpha=ALPHA, temperature=T, optimizer=keras.optimizers.SGD(0.5))
        with tf.GradientTape() as tape:
            found = student(x)
            wanted = tf.nn.softmax(tf.math.log(tf.constant(teacher.predict(x, verbose=0))) / T)
            soft = T**2 * tf.reduce_mean(
                tf.reduce_sum(wanted * (tf.math.log(wanted) - tf.nn.log_softmax(tf.math.log(found) / T)), -1)
            )
            task = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, found))
            total = (1 - ALPHA) * task + ALPHA * soft
        gradients = tape.gradient(total, [variable.value for variable in student.trainable_variables])
        expected = [w - 0.5 * g.numpy() for w, g in zip(weights_of(student), gradients, strict=True)]
        distiller.train_on_batch(x, y)
        assert_same_weights(weights_of(student), expected, atol=1e-5)


class TestWeightsOfSamples:
    def test_count_in_task_and_terms(self, images):
        x, y = (array[:32] for array in images)
        teacher, student = mlp_teacher(), mlp_student()
        weight = np.random.default_rng(0).uniform(0, 3, 32).astype(np.float32)
        distiller = compiled(student, teacher, alpha=ALPHA, temperature=T)
        figures = distiller.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)
        wanted, found = both(teacher, student, x)
        np.testing.assert_allclose(figures["task_loss"], (weight * crossentropies(found, y)).mean(), **PRECISION)
        soft = (weight * divergences(wanted, found, T)).mean()
        np.testing.assert_allclose(figures["distillation_loss"], soft, **PRECISION)

    def test_of_classes_are_those_of_their_samples(self, images):
        x, y = images
        per_class = {label: 0.0 if label < 5 else 2.0 for label in range(10)}
        ways = ({"class_weight": per_class}, {"sample_weight": np.where(y < 5, 0.0, 2.0)})
        trained = []
        for way in ways:
            distiller = compiled(mlp_student(), mlp_teacher())
            trained.append((distiller.fit(x, y, epochs=2, shuffle=False, verbose=0, **way).history, distiller.student))
        assert trained[0][0] == trained[1][0]
        assert_same_weights(weights_of(trained[0][1]), weights_of(trained[1][1]))
        assert_differ(weights_of(trained[0][1]), weights_of(fitted(mlp_student(), mlp_teacher(), x, y).student))

    def test_of_padded_steps_are_masks(self):
        tokens, labels, padded = padded_tokens()
        teacher, student = (token_tagger(units, seed=units) for units in (12, 4))
        distiller = compiled(student, teacher, alpha=ALPHA, temperature=T)
        figures = distiller.evaluate(tokens, labels, verbose=0, return_dict=True)
        wanted, found = (side[~padded] for side in both(teacher, student, tokens))
        np.testing.assert_allclose(figures["distillation_loss"], divergences(wanted, found, T).mean(), **PRECISION)
        np.testing.assert_allclose(figures["task_loss"], crossentropies(found, labels[~padded]).mean(), **PRECISION)

    def test_may_be_given_for_each_step(self):
        tokens, labels, _ = padded_tokens()
        teacher, student = (token_tagger(units, seed=units, masks=False) for units in (12, 4))
        weight = np.random.default_rng(0).uniform(0, 2, labels.shape).astype(np.float32)
        distiller = compiled(student, teacher, alpha=ALPHA, temperature=T)
        figures = distiller.evaluate(tokens, labels, sample_weight=weight, verbose=0, return_dict=True)
        wanted, found = both(teacher, student, tokens)
        np.testing.assert_allclose(
            figures["distillation_loss"], (weight * divergences(wanted, found, T)).mean(), **PRECISION
        )

    def test_what_is_padded_does_not_reach_a_classifier(self):
        tokens, labels, padded = padded_tokens()
        teacher, student = (token_classifier(units, seed=units) for units in (12, 4))
        distiller = compiled(student, teacher, alpha=ALPHA, temperature=T)
        figures = distiller.evaluate(tokens, labels[:, 0], verbose=0, return_dict=True)
        short = tokens[:, : (~padded).any(axis=0).sum()]
        wanted, found = both(teacher, student, short)
        np.testing.assert_allclose(figures["distillation_loss"], divergences(wanted, found, T).mean(), rtol=1e-4)


def padded_tokens():
    """Sequences of 6 tokens, of which the last are padding, with a label for each; and what is padding."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 9, (16, 6)).astype(np.int32)
    tokens[np.arange(6) >= rng.integers(2, 6, (16, 1))] = 0
    return tokens, rng.integers(0, 5, (16, 6)), tokens == 0


def token_tagger(units, *, seed, masks=True):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([
        keras.Input((None,), dtype="int32", name="tokens"), layers.Embedding(9, units, mask_zero=masks),
        layers.GRU(units, return_sequences=True), sharp_answers(),
    ])  # fmt: skip


def token_classifier(units, *, seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([
        keras.Input((None,), dtype="int32", name="tokens"), layers.Embedding(9, units, mask_zero=True),
        layers.GRU(units), sharp_answers(),
    ])  # fmt: skip


def sharp_answers():
    return layers.Dense(5, activation="softmax", kernel_initializer=keras.initializers.RandomNormal(stddev=5.0))


def assert_differ(one, other):
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def fitted(student, teacher, x, y, *, epochs=2, fit=None, **settings):
    distiller = compiled(student, teacher, **settings)
    distiller.fit(x, y, epochs=epochs, verbose=0, shuffle=False, **(fit or {}))
    return distiller


class TestAlpha:
    def test_zero_is_training_without_a_teacher(self, images):
        x, y = images
        teacher, asked = counted(mlp_teacher())
        asked.assign(0)
        distilled = fitted(mlp_student(), teacher, x, y, alpha=0)
        alone = mlp_student()
        alone.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
        alone.fit(x, y, epochs=2, verbose=0, shuffle=False)
        assert_same_weights(weights_of(distilled.student), weights_of(alone))
        assert asked.numpy() == 0

    def test_one_needs_no_labels(self, images):
        x, _ = images
        teacher, student = mlp_teacher(), mlp_student()
        distiller = compiled(student, teacher, loss=None, alpha=1)
        history = distiller.fit(x, epochs=4, verbose=0).history
        assert history["loss"][-1] < 0.9 * history["loss"][0]
        assert history["loss"] == pytest.approx(history["distillation_loss"])

    def test_one_learns_nothing_from_labels(self, images):
        x, y = images
        trained = [fitted(mlp_student(), mlp_teacher(), x, labels, alpha=1) for labels in (y, y[::-1])]
        assert_same_weights(*(weights_of(one.student) for one in trained))

    def test_less_than_one_needs_labels(self, images):
        distiller = compiled(mlp_student(), mlp_teacher())
        with pytest.raises(
            UsageError, match=r"the samples have no labels; received alpha=0.7. Fix: give labels"
        ) as error:
            distiller.fit(images[0], verbose=0)
        assert "\n" not in str(error.value)

    def test_less_than_one_needs_a_loss_of_the_task(self, images):
        distiller = compiled(mlp_student(), mlp_teacher(), loss=None, losses=[SoftLabels()])
        with pytest.raises(UsageError, match="the task has no loss to learn by"):
            distiller.fit(*images, verbose=0)


class TestSchedules:
    def test_are_read_at_each_step(self, images):
        x, y = (array[:32] for array in images)
        teacher, student = mlp_teacher(), mlp_student()
        schedules = keras.optimizers.schedules
        distiller = compiled(
            student, teacher, alpha=schedules.PiecewiseConstantDecay([0, 1], [0.2, 0.5, 0.9]),
            temperature=schedules.PolynomialDecay(4.0, 3, 1.0),
        )  # fmt: skip
        for alpha, temperature in ((0.2, 4.0), (0.5, 3.0), (0.9, 2.0), (0.9, 1.0)):
            wanted, found = both(teacher, student, x)
            soft = divergences(wanted, found, temperature).mean()
            expected = (1 - alpha) * crossentropies(found, y).mean() + alpha * soft
            figures = distiller.train_on_batch(x, y, return_dict=True)
            distiller.reset_metrics()
            np.testing.assert_allclose(figures["loss"], expected, **PRECISION)

    def test_that_leave_their_range_are_held_in_it(self, images):
        x, y = (array[:32] for array in images)
        line = keras.optimizers.schedules.PolynomialDecay(1.0, 1, -1.0)
        distiller = compiled(mlp_student(), mlp_teacher(), alpha=line)
        distiller.train_on_batch(x, y)
        distiller.reset_metrics()
        figures = distiller.train_on_batch(x, y, return_dict=True)
        np.testing.assert_allclose(figures["loss"], figures["task_loss"], **PRECISION)


class TestTeacher:
    def test_stays_as_it_was_to_the_bit(self, images):
        x, y = images
        teacher = mlp_teacher()
        teacher.layers[1].trainable = False
        before, state = weights_of(teacher), [variable.numpy() for variable in teacher.variables]
        frozen = [layer.trainable for layer in teacher.layers]
        fitted(mlp_student(), teacher, x, y)
        assert_same_weights(weights_of(teacher), before)
        assert_same_weights([variable.numpy() for variable in teacher.variables], state)
        assert [layer.trainable for layer in teacher.layers] == frozen
        assert teacher.trainable

    def test_is_no_part_of_the_model(self):
        teacher, student = mlp_teacher(), mlp_student()
        distiller = compiled(student, teacher)
        ids = {id(variable) for variable in teacher.variables}
        assert not ids & {id(variable) for variable in distiller.variables}
        assert distiller.weights == student.weights
        assert distiller.trainable_variables == student.trainable_variables
        assert all(layer is not teacher for layer in distiller._flatten_layers())

    def test_gets_no_gradient(self, images):
        x, y = (array[:8] for array in images)
        teacher, student = mlp_teacher(), mlp_student()
        layer = Features(teacher.layers[0].name, student.layers[0].name)
        distiller = compiled(student, teacher, losses=[SoftLabels(), layer])
        with tf.GradientTape() as tape:
            sides = distiller._with_teacher(x)[1]
            answers, points = distiller._pair.ask_student(distiller.student, x, training=True)
            loss = distiller._total_loss(y, answers, points, sides, None)
        variables = [variable.value for variable in (*teacher.trainable_variables, *student.trainable_variables)]
        gradients = tape.gradient(loss, variables)
        count = len(teacher.trainable_variables)
        assert gradients[:count] == [None] * count
        assert None not in gradients[count:]

    def test_is_asked_as_it_answers_in_use(self, images):
        x, _ = images
        distiller = compiled(mlp_student(), teacher := mlp_teacher())
        _, (answers,) = distiller._with_teacher(tf.constant(x))
        np.testing.assert_allclose(answers, teacher.predict(x, verbose=0), atol=1e-6)
        assert np.abs(teacher(x, training=True) - answers).max() > 0.05


class TestSeed:
    @pytest.mark.parametrize("cached", [False, True])
    def test_gives_the_same_weights_each_time(self, images, tmp_path, cached):
        trained = []
        for _ in range(2):
            keras.utils.set_random_seed(3)
            student = keras.Sequential([
                keras.Input((8, 8, 1), name="image"), layers.Conv2D(4, 3), layers.BatchNormalization(),
                layers.Flatten(), layers.Dropout(0.3), layers.Dense(10, activation="softmax"),
            ])  # fmt: skip
            distiller = compiled(student, mlp_teacher(), optimizer=keras.optimizers.Adam(1e-3))
            if cached:
                distiller.fit(distiller.with_answers(*images, cache=tmp_path, seed=3), epochs=2, verbose=0)
            else:
                distiller.fit(*images, epochs=2, verbose=0)
            trained.append(weights_of(distiller.student))
        assert_same_weights(*trained)


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "line"),
        [
            ({"alpha": 1.5}, r"alpha is not a share; expected a number from 0 to 1, or a schedule; received 1.5"),
            ({"alpha": -0.1}, "alpha is not a share"),
            ({"alpha": True}, "alpha is not a share.*received True"),
            ({"alpha": float("nan")}, "alpha is not a share"),
            ({"alpha": "0.5"}, "alpha is not a share.*received '0.5'"),
            ({"temperature": 0}, "temperature is not a positive number; expected more than 0; received 0"),
            ({"temperature": -1}, "temperature is not a positive number"),
            ({"temperature": float("nan")}, "temperature is not a positive number"),
            ({"temperature": "4"}, "temperature is not a positive number.*received '4'"),
            ({"loss_weights": [1, 2]}, r"loss_weights without losses; received \[1, 2\]"),
            ({"losses": [SoftLabels()], "loss_weights": [1, 2]}, r"expected a list of 1; received \[1, 2\]"),
            ({"losses": [SoftLabels()], "loss_weights": [-1]}, "loss_weights: a weight is not a positive number"),
            ({"losses": [SoftLabels()], "loss_weights": 2.0}, "loss_weights do not fit losses"),
            ({"losses": ["kl"]}, r"losses: not a distillation loss; expected SoftLabels\(\).*received 'kl'"),
            ({"losses": SoftLabels}, "losses: not a distillation loss"),
            ({"losses": []}, "losses: the list is empty. Fix: leave losses out"),
        ],
    )  # fmt: skip
    def test_out_of_range_are_refused_in_one_line(self, settings, line):
        with pytest.raises(UsageError, match=line) as error:
            Distiller(mlp_student(), mlp_teacher(), **settings)
        assert "\n" not in str(error.value)

    def test_may_be_numbers_of_numpy(self):
        distiller = compiled(mlp_student(), mlp_teacher(), alpha=np.float32(0.5), temperature=np.float32(2))
        assert distiller.get_config()["alpha"] == 0.5

    @pytest.mark.parametrize(
        ("student", "teacher", "kind", "line"),
        [
            (None, mlp_teacher, ModelError, "not a model; expected a path or a Keras model; received NoneType"),
            (mlp_student, None, UsageError, "there is no teacher. Fix: give one, or only SelfDistillation as losses"),
            (mlp_student, list, UsageError, "there is no teacher in the list"),
            (mlp_student, int, ModelError, "not a model.*received int"),
        ],
    )
    def test_models_that_are_none_are_refused(self, student, teacher, kind, line):
        with pytest.raises(kind, match=line) as error:
            Distiller(student and student(), teacher and teacher())
        assert "\n" not in str(error.value)

    def test_a_teacher_of_other_outputs_is_refused(self):
        images = keras.Input((8, 8, 1), name="image")
        other = keras.Model(images, layers.Dense(7, activation="softmax")(layers.Flatten()(images)), name="seven")
        with pytest.raises(ModelError, match=r"seven: teacher and student give different answers; .*\(None, 7\)"):
            Distiller(mlp_student(), other)

    def test_not_compiled_is_refused(self, images):
        with pytest.raises(ValueError, match=r"call `compile\(\)`"):
            Distiller(mlp_student(), mlp_teacher()).fit(*images, verbose=0)


class TestConversions:
    def test_logits_teach_probabilities_and_say_so(self, images):
        x, y = (array[:32] for array in images)
        teacher, student = mlp_teacher(activation=None), mlp_student()
        distiller = compiled(student, teacher, temperature=T)
        (note,) = distiller.notes
        assert note.startswith(
            "output 'digit': the teacher gives logits and the student probabilities; both are compared"
        )
        wanted, found = both(teacher, student, x)
        soft = divergences(np.exp(wanted) / np.exp(wanted).sum(-1, keepdims=True), found, T).mean()
        figures = distiller.evaluate(x, y, verbose=0, return_dict=True)
        np.testing.assert_allclose(figures["distillation_loss"], soft, **PRECISION)

    def test_a_loss_that_takes_logits_for_probabilities_is_refused(self):
        distiller = Distiller(mlp_student(), mlp_teacher())
        with pytest.raises(UsageError, match=r"loss takes logits, and the student gives probabilities"):
            distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def test_what_is_not_to_be_seen_may_be_said(self):
        image = keras.Input((8, 8, 1), name="image")
        shifted = keras.Model(image, layers.Dense(10)(layers.Flatten()(image)) + 0.5, name="shifted")
        with pytest.raises(UsageError, match=r"cannot be seen whether the teacher.*teacher_from_logits=True or False"):
            compiled(mlp_student(), shifted)
        assert len(compiled(mlp_student(), shifted, teacher_from_logits=True).notes) == 1


def two_heads(seed, *, as_dict, units=8):
    """Outputs "digit" and "odd", not in the order of the alphabet."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 1), name="image")
    hidden = layers.Dense(units, activation="relu")(layers.Flatten()(image))
    odd = layers.Dense(1, activation="sigmoid", name="odd")(hidden)
    digit = layers.Dense(10, activation="softmax", name="digit")(hidden)
    return keras.Model(image, {"odd": odd, "digit": digit} if as_dict else [odd, digit])


LOSSES = {"odd": "binary_crossentropy", "digit": "sparse_categorical_crossentropy"}


def binary(probabilities):
    return np.concatenate([1 - probabilities, probabilities], axis=-1)


class TestSeveralOutputs:
    @pytest.mark.parametrize(("as_dict", "losses_as_dict"), [(False, False), (False, True), (True, True)])
    def test_are_summed_with_their_weights(self, images, as_dict, losses_as_dict):
        x, y = (array[:32] for array in images)
        teacher, student = two_heads(5, as_dict=as_dict, units=24), two_heads(0, as_dict=as_dict)
        labels = {"odd": y % 2, "digit": y}
        weights = {"odd": 0.3, "digit": 2.0}
        samples = {"odd": np.linspace(0, 2, 32), "digit": np.linspace(3, 0, 32)}
        given = [part if losses_as_dict else list(part.values()) for part in (LOSSES, weights)]
        y_given, w_given = (part if as_dict else list(part.values()) for part in (labels, samples))
        distiller = Distiller(student, teacher, alpha=ALPHA, temperature=T)
        metrics = {"odd": ["accuracy"], "digit": ["accuracy"]}
        distiller.compile("sgd", given[0], loss_weights=given[1], metrics=metrics)
        figures = distiller.evaluate(x, y_given, sample_weight=w_given, verbose=0, return_dict=True)
        sides = [
            side if as_dict else dict(zip(("odd", "digit"), side, strict=True)) for side in both(teacher, student, x)
        ]
        soft = divergences(binary(sides[0]["odd"]), binary(sides[1]["odd"]), T) * samples["odd"]
        soft = soft.mean() + (divergences(sides[0]["digit"], sides[1]["digit"], T) * samples["digit"]).mean()
        task = 0.3 * (samples["odd"] * crossentropies(binary(sides[1]["odd"]), y % 2)).mean()
        task += 2 * (samples["digit"] * crossentropies(sides[1]["digit"], y)).mean()
        np.testing.assert_allclose(figures["distillation_loss"], soft, **PRECISION)
        np.testing.assert_allclose(figures["task_loss"], task, **PRECISION)
        np.testing.assert_allclose(figures["loss"], (1 - ALPHA) * task + ALPHA * soft, **PRECISION)
        assert {"odd_accuracy", "digit_accuracy", "odd_loss", "digit_loss"} <= set(figures)

    def test_weights_by_name_find_their_output_in_a_list(self, images):
        x = images[0][:32]
        teacher, student = two_heads(5, as_dict=False, units=24), two_heads(0, as_dict=False)
        distiller = compiled(student, teacher, losses=[SoftLabels(output="odd")], loss=LOSSES, temperature=T, alpha=1)
        weight = {"odd": np.zeros(32), "digit": np.ones(32)}
        figures = distiller._total_loss(None, *_asked(distiller, x), list(map(weight.get, ("odd", "digit"))))
        by_name = distiller._total_loss(None, *_asked(distiller, x), weight)
        assert float(figures) == float(by_name) == 0

    def test_one_alone_may_have_labels(self, images):
        x, y = images
        teacher, student = two_heads(5, as_dict=True, units=24), two_heads(0, as_dict=True)
        distiller = compiled(student, teacher, loss={"digit": LOSSES["digit"]}, temperature=T, alpha=ALPHA)
        figures = distiller.evaluate(x, {"digit": y}, verbose=0, return_dict=True)
        wanted, found = both(teacher, student, x)
        np.testing.assert_allclose(figures["task_loss"], crossentropies(found["digit"], y).mean(), **PRECISION)
        soft = divergences(wanted["digit"], found["digit"], T) + divergences(
            binary(wanted["odd"]), binary(found["odd"]), T
        )
        np.testing.assert_allclose(figures["distillation_loss"], soft.mean(), **PRECISION)
        assert distiller.fit(x, {"digit": y}, verbose=0).history["loss"]

    def test_deepest_may_teach_the_others_without_a_teacher(self, images):
        x, y = images
        keras.utils.set_random_seed(0)
        image = keras.Input((8, 8, 1), name="image")
        first = layers.Dense(8, activation="relu")(layers.Flatten()(image))
        early = layers.Dense(10, activation="softmax", name="early")(first)
        late = layers.Dense(10, activation="softmax", name="late")(layers.Dense(8, activation="relu")(first))
        distiller = compiled(keras.Model(image, [early, late]), None, losses=[SelfDistillation()], temperature=T)
        figures = distiller.evaluate(x, [y, y], verbose=0, return_dict=True)
        found = distiller.predict(x, verbose=0)
        np.testing.assert_allclose(figures["distillation_loss"], divergences(found[1], found[0], T).mean(), **PRECISION)
        assert distiller.teachers() == []


def _asked(distiller, x):
    _, taught = distiller._with_teacher(tf.constant(x))
    answers, points = distiller._pair.ask_student(distiller.student, x, training=False)
    return answers, points, taught


def boxes(seed, *, loss=None):
    """A network with classes and, in an output of four values, boxes."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Dense(8, activation="relu")(layers.Flatten()(image))
    outputs = {"digit": layers.Dense(10, activation="softmax")(x), "box": layers.Dense(4, bias_initializer="ones")(x)}
    model = keras.Model(image, outputs)
    if loss is not None:
        model.compile("sgd", loss)
    return model


class TestOutputsWithoutLabels:
    LOSSES = {"digit": "sparse_categorical_crossentropy", "box": "mse"}  # noqa: RUF012

    @pytest.mark.parametrize("compiled_before", ["teacher", "student"])
    def test_hold_values_if_they_were_compiled_so(self, compiled_before):
        models = {side: boxes(k, loss=self.LOSSES if side == compiled_before else None)
                  for k, side in enumerate(("teacher", "student"))}  # fmt: skip
        distiller = Distiller(**models)
        distiller.compile("sgd", {"digit": "sparse_categorical_crossentropy"})
        assert distiller.compared == "SoftLabels(T = 4) + Logits"
        assert distiller.notes == ()

    def test_are_taken_for_logits_and_the_notes_say_so(self):
        distiller = Distiller(boxes(0), boxes(1))
        distiller.compile("sgd", {"digit": "sparse_categorical_crossentropy"})
        assert distiller.compared == "SoftLabels(T = 4)"
        (note,) = distiller.notes
        assert note.startswith("output 'box': nothing tells whether it holds logits of classes or values")


def test_each_distiller_has_projectors_of_its_own(images):
    term = Features("dense", "hidden", projector="linear")
    keras.utils.set_random_seed(0)
    teacher = keras.Sequential([
        keras.Input((8, 8, 1), name="image"), layers.Flatten(), layers.Dense(20, name="dense"),
        layers.Dense(10, activation="softmax"),
    ])  # fmt: skip
    one, other = (Distiller(mlp_student(units), teacher, losses=[SoftLabels(), term]) for units in (12, 7))
    assert [tuple(each.projectors[0].kernel.shape) for each in (one, other)] == [(12, 20), (7, 20)]
    for each in (one, other):
        each.compile("sgd", "sparse_categorical_crossentropy")
        each.fit(*images, verbose=0)


def test_weights_are_saved_and_loaded_without_the_teacher(tmp_path):
    one, teacher = compiled(mlp_student(seed=1), mlp_teacher(seed=2)), mlp_teacher(seed=3)
    one.save_weights(tmp_path / "one.weights.h5")
    before = weights_of(teacher)
    other = compiled(mlp_student(), teacher)
    other.load_weights(tmp_path / "one.weights.h5")
    assert_same_weights(weights_of(other.student), weights_of(one.student))
    assert_same_weights(weights_of(teacher), before)
