"""What Keras offers around a training step, with a Distiller: data, callbacks, precision, XLA; and cached answers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from edgecompress.distill import Distiller, Features, SelfDistillation, SoftLabels
from edgecompress.errors import DataError, UsageError
from tests.distilling import assert_same_weights, compiled, counted, mlp_student, mlp_teacher, weights_of

BATCH = 64


def history(distiller, *args, **options):
    return distiller.fit(*args, **{"epochs": 2, "verbose": 0, "shuffle": False, **options}).history


def plain(images):
    distiller = compiled(mlp_student(), mlp_teacher())
    history(distiller, *images, batch_size=BATCH)
    return weights_of(distiller.student)


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x) // BATCH

    def __getitem__(self, number):
        few = slice(number * BATCH, (number + 1) * BATCH)
        return self.x[few], self.y[few]


def batches(x, y):
    while True:
        yield from (Batches(x, y)[number] for number in range(len(x) // BATCH))


class TestData:
    @pytest.mark.parametrize(
        "given",
        [
            lambda x, y: ((tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH),), {}),
            lambda x, y: ((Batches(x, y),), {}),
            lambda x, y: ((batches(x, y),), {"steps_per_epoch": len(x) // BATCH}),
            lambda x, y: ((x, y), {"batch_size": BATCH, "validation_data": (x[:50], y[:50])}),
        ],
        ids=["tf.data", "PyDataset", "generator", "validation"],
    )
    def test_of_all_kinds_trains_alike(self, images, given):
        distiller = compiled(mlp_student(), mlp_teacher())
        args, options = given(*images)
        figures = history(distiller, *args, **options)
        assert_same_weights(weights_of(distiller.student), plain(images))
        if "validation_data" in options:
            assert {"val_loss", "val_task_loss", "val_distillation_loss"} <= set(figures)

    def test_validation_split_is_evaluated(self, images):
        x, y = images
        distiller = compiled(mlp_student(), mlp_teacher(), options={"metrics": ["accuracy"]})
        figures = history(distiller, x, y, validation_split=0.25)
        expected = distiller.evaluate(x[192:], y[192:], verbose=0, return_dict=True)
        for name, value in expected.items():
            assert figures[f"val_{name}"][-1] == pytest.approx(value, rel=1e-5)

    def test_order_of_a_users_own_dataset_is_keras_s_to_shuffle(self, images):
        orders = []
        for shuffle in (True, False):
            distiller = compiled(mlp_student(), mlp_teacher())
            keras.utils.set_random_seed(0)
            history(distiller, Batches(*images), shuffle=shuffle)
            orders.append(weights_of(distiller.student))
        assert any(not np.array_equal(a, b) for a, b in zip(*orders, strict=True))

    def test_answers_are_the_students(self, images):
        x, y = images
        student = mlp_student()
        distiller = compiled(student, mlp_teacher(), options={"metrics": ["accuracy"]})
        np.testing.assert_array_equal(distiller.predict(x, verbose=0), student.predict(x, verbose=0))
        accuracy = np.mean(student.predict(x, verbose=0).argmax(-1) == y)
        assert distiller.evaluate(x, y, verbose=0, return_dict=True)["accuracy"] == pytest.approx(accuracy)
        tested = distiller.test_on_batch(x, y, return_dict=True)
        assert tested["loss"] == pytest.approx(distiller.evaluate(x, y, verbose=0, return_dict=True)["loss"], rel=1e-5)


class TestCallbacks:
    def test_of_keras_work(self, images, tmp_path):
        distiller = compiled(mlp_student(), mlp_teacher(), options={"metrics": ["accuracy"]})
        calls = keras.callbacks
        figures = history(
            distiller, *images, epochs=6, validation_split=0.25, callbacks=[
                calls.EarlyStopping("loss", patience=0, min_delta=100.0, start_from_epoch=2),
                calls.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=100.0),
                calls.CSVLogger(tmp_path / "log.csv"),
                calls.ModelCheckpoint(tmp_path / "part.weights.h5", save_weights_only=True),
                calls.ModelCheckpoint(tmp_path / "whole.keras", monitor="val_accuracy", mode="max"),
            ],
        )  # fmt: skip
        assert len(figures["loss"]) == 4
        assert figures["learning_rate"][-1] < figures["learning_rate"][0]
        header, *lines = (tmp_path / "log.csv").read_text().splitlines()
        assert "val_distillation_loss" in header
        assert len(lines) == 4
        fresh = compiled(mlp_student(seed=8), mlp_teacher())
        fresh.load_weights(tmp_path / "part.weights.h5")
        for other in (fresh, keras.saving.load_model(tmp_path / "whole.keras")):
            assert_same_weights(weights_of(other.student), weights_of(distiller.student))

    def test_backup_goes_on_where_it_was_killed(self, images, tmp_path):
        def train(*callbacks):
            distiller = compiled(mlp_student(), mlp_teacher(), optimizer=keras.optimizers.Adam(1e-2))
            history(distiller, *images, epochs=4, callbacks=list(callbacks))
            return weights_of(distiller.student)

        backup = tmp_path / "backup"
        with pytest.raises(KeyboardInterrupt):
            train(keras.callbacks.BackupAndRestore(backup), Killed())
        assert_same_weights(train(keras.callbacks.BackupAndRestore(backup)), train(), atol=1e-6)


class Killed(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, _logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def normalized_student():
    keras.utils.set_random_seed(0)
    return keras.Sequential([
        keras.Input((8, 8, 1), name="image"), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(),
        layers.Flatten(), layers.Dense(10), layers.Activation("softmax", dtype="float32"),
    ])  # fmt: skip


@pytest.fixture
def policy():
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


class TestPrecision:
    @pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16"])
    def test_of_16_bits_learns_as_32_bits_do(self, images, policy, name):
        x, y = images
        reference = compiled(normalized_student(), mlp_teacher(), options={"jit_compile": False})
        expected = history(reference, x, y, epochs=3)["loss"]
        teacher = mlp_teacher()
        policy(name)
        distiller = compiled(normalized_student(), teacher, options={"jit_compile": False})
        scales = isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
        assert scales == (name == "mixed_float16")
        figures = history(distiller, x, y, epochs=3)["loss"]
        np.testing.assert_allclose(figures, expected, rtol=0.05)
        assert figures[-1] < figures[0]
        assert all(variable.dtype == "float32" for variable in distiller.trainable_variables)

    def test_is_the_students_own(self, policy):
        policy("mixed_float16")
        student = normalized_student()
        policy("float32")
        distiller = compiled(student, mlp_teacher())
        assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)

    def test_of_the_teacher_may_be_another(self, images, policy):
        x, y = images
        policy("mixed_bfloat16")
        teacher = mlp_teacher()
        policy("float32")
        wide = compiled(mlp_student(), mlp_teacher()).evaluate(x, y, verbose=0, return_dict=True)
        narrow = compiled(mlp_student(), teacher).evaluate(x, y, verbose=0, return_dict=True)
        assert narrow["distillation_loss"] == pytest.approx(wide["distillation_loss"], rel=0.05)
        assert narrow["task_loss"] == wide["task_loss"]


class TestCompiled:
    def test_by_xla_gives_the_same_figures(self, images):
        figures = [
            history(
                compiled(mlp_student(), mlp_teacher(), losses=[SoftLabels()], options={"jit_compile": jit}), *images
            )["loss"]
            for jit in (False, True)
        ]
        np.testing.assert_allclose(*figures, rtol=1e-5)

    def test_by_nothing_gives_the_same_weights(self, images):
        distiller = compiled(mlp_student(), mlp_teacher(), options={"run_eagerly": True})
        history(distiller, *images, batch_size=BATCH)
        assert_same_weights(weights_of(distiller.student), plain(images), atol=1e-5)

    def test_in_several_steps_at_once_gives_the_same_weights(self, images):
        distiller = compiled(mlp_student(), mlp_teacher(), options={"steps_per_execution": 2})
        history(distiller, *images, batch_size=BATCH)
        assert_same_weights(weights_of(distiller.student), plain(images), atol=1e-6)

    def test_errors_while_tracing_are_one_line(self, images):
        distiller = compiled(mlp_student(), mlp_teacher())
        for method in (distiller.fit, distiller.evaluate):
            with pytest.raises(UsageError, match="the samples have no labels") as error:
                method(images[0], verbose=0)
            assert "\n" not in str(error.value)

    def test_gradients_of_several_batches_add_up(self, images):
        x, y = images
        optimizers = (
            keras.optimizers.SGD(0.1, gradient_accumulation_steps=4), keras.optimizers.SGD(0.1),
        )  # fmt: skip
        trained = []
        for optimizer, size in zip(optimizers, (16, 64), strict=True):
            distiller = compiled(mlp_student(), mlp_teacher(), optimizer=optimizer)
            history(distiller, x, y, batch_size=size)
            trained.append(weights_of(distiller.student))
        assert_same_weights(*trained, atol=1e-5)


class TestProjectors:
    def test_learn_and_are_saved(self, images, tmp_path):
        teacher, student = mlp_teacher(), mlp_student()
        hint = Features(teacher.layers[1].name, "hidden", projector="linear")
        distiller = compiled(student, teacher, losses=[SoftLabels(), hint], loss_weights=[1.0, 0.5])
        assert len(distiller.weights) == len(student.weights) + 1
        before = distiller.projectors[0].get_weights()[0]
        figures = history(distiller, *images, epochs=3)
        assert figures["distillation_loss"][-1] < figures["distillation_loss"][0]
        assert not np.array_equal(distiller.projectors[0].get_weights()[0], before)
        distiller.save(tmp_path / "d.keras")
        again = keras.saving.load_model(tmp_path / "d.keras")
        assert_same_weights(weights_of(again), weights_of(distiller))
        assert again.evaluate(*images, verbose=0) == distiller.evaluate(*images, verbose=0)


class TestWithAnswers:
    def test_the_teacher_is_asked_once(self, images, tmp_path):
        x, y = images
        teacher, asked = counted(mlp_teacher())
        distiller = compiled(mlp_student(), teacher)
        asked.assign(0)
        samples = distiller.with_answers(x, y, cache=tmp_path)
        assert asked.numpy() == len(x)
        asked.assign(0)
        history(distiller, samples, epochs=3, validation_data=samples)
        distiller.evaluate(samples, verbose=0)
        distiller.with_answers(x, y[::-1], cache=tmp_path)
        assert asked.numpy() == 0

    def test_trains_as_without_a_cache(self, images, tmp_path):
        x, y = images
        for settings in ({}, {"losses": [Features("hidden", "hidden"), SoftLabels()]}):
            weights = []
            for cached in (True, False):
                teacher, student = mlp_student(seed=5), mlp_student()
                distiller = compiled(student, teacher, optimizer=keras.optimizers.Adam(1e-3), **settings)
                weight = np.linspace(0, 2, len(x)).astype(np.float32)
                if cached:
                    samples = distiller.with_answers(x, y, weight, cache=tmp_path, batch_size=BATCH, shuffle=False)
                    history(distiller, samples)
                else:
                    history(distiller, x, y, sample_weight=weight, batch_size=BATCH)
                weights.append(weights_of(student))
            assert_same_weights(*weights, atol=1e-6)

    def test_figures_are_those_without(self, images, tmp_path):
        x, y = images
        distiller = compiled(mlp_student(), mlp_teacher(), options={"metrics": ["accuracy"]})
        samples = distiller.with_answers(x, y, cache=tmp_path)
        cached, asked = (distiller.evaluate(*given, verbose=0, return_dict=True) for given in ((samples,), (x, y)))
        assert cached == pytest.approx(asked, rel=1e-5)
        unmixed = distiller.with_answers(x, y, cache=tmp_path, shuffle=False)
        np.testing.assert_array_equal(distiller.predict(unmixed, verbose=0), distiller.predict(x, verbose=0))

    def test_takes_weights_of_classes(self, images, tmp_path):
        x, y = images
        per_class = {label: float(label < 5) for label in range(10)}
        trained = []
        for cached in (True, False):
            distiller = compiled(mlp_student(), mlp_teacher())
            given = (distiller.with_answers(x, y, cache=tmp_path, shuffle=False),) if cached else (x, y)
            history(distiller, *given, class_weight=per_class)
            trained.append(weights_of(distiller.student))
        assert_same_weights(*trained, atol=1e-6)

    def test_asks_another_teacher_anew(self, images, tmp_path):
        x, y = images
        teacher, asked = counted(mlp_teacher())
        distiller = compiled(mlp_student(), teacher)
        distiller.with_answers(x, y, cache=tmp_path)
        teacher.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
        teacher.evaluate(x, y, verbose=0)
        asked.assign(0)
        distiller.with_answers(x, y, cache=tmp_path)
        assert asked.numpy() == 0
        teacher.fit(x, y, verbose=0)
        asked.assign(0)
        distiller.with_answers(x, y, cache=tmp_path)
        assert asked.numpy() == len(x)

    def test_keeps_its_own_order(self, images, tmp_path):
        x, y = images
        trained = []
        for options in ({}, {"shuffle": True}, {"shuffle": False}):
            distiller = compiled(mlp_student(), mlp_teacher())
            keras.utils.set_random_seed(len(trained))
            samples = distiller.with_answers(x, y, cache=tmp_path, seed=4)
            distiller.fit(samples, epochs=2, verbose=0, **options)
            trained.append(weights_of(distiller.student))
        assert_same_weights(trained[0], trained[1])
        assert_same_weights(trained[0], trained[2])

    def test_order_goes_on_with_the_epochs(self, images, tmp_path):
        x, y = images
        trained = []
        for parts in ((4,), (1, 3)):
            distiller = compiled(mlp_student(), mlp_teacher())
            done = 0
            for epochs in parts:
                samples = distiller.with_answers(x, y, cache=tmp_path)
                distiller.fit(samples, initial_epoch=done, epochs=done + epochs, verbose=0)
                done += epochs
            trained.append(weights_of(distiller.student))
        assert_same_weights(*trained)

    def test_order_goes_on_after_a_backup(self, images, tmp_path):
        def train(*callbacks):
            distiller = compiled(mlp_student(), mlp_teacher())
            samples = distiller.with_answers(*images, cache=tmp_path / "answers")
            distiller.fit(samples, epochs=4, verbose=0, callbacks=list(callbacks))
            return weights_of(distiller.student)

        backup = tmp_path / "backup"
        with pytest.raises(KeyboardInterrupt):
            train(keras.callbacks.BackupAndRestore(backup), Killed())
        assert_same_weights(train(keras.callbacks.BackupAndRestore(backup)), train())

    def test_takes_several_inputs_and_outputs(self, images, tmp_path):
        x, y = images

        def model(units):
            keras.utils.set_random_seed(units)
            upper, lower = keras.Input((4, 8), name="upper"), keras.Input((4, 8), name="lower")
            parts = [layers.Dense(units)(layers.Flatten()(part)) for part in (upper, lower)]
            hidden = layers.Concatenate()(parts)
            digit = layers.Dense(10, activation="softmax", name="digit")(hidden)
            return keras.Model(
                {"upper": upper, "lower": lower}, {"size": layers.Dense(1, name="size")(hidden), "digit": digit}
            )

        distiller = Distiller(model(4), model(9))
        distiller.compile("sgd", {"size": "mse", "digit": "sparse_categorical_crossentropy"})
        halves = {"lower": x[:, 4:, :, 0], "upper": x[:, :4, :, 0]}
        labels = {"digit": y, "size": x.mean(axis=(1, 2))}
        cached = distiller.evaluate(distiller.with_answers(halves, labels, cache=tmp_path), verbose=0, return_dict=True)
        assert cached == pytest.approx(distiller.evaluate(halves, labels, verbose=0, return_dict=True), rel=1e-5)

    def test_of_arrays_that_do_not_fit_is_refused(self, images, tmp_path):
        x, y = images
        distiller = compiled(mlp_student(), mlp_teacher())
        with pytest.raises(DataError, match="arrays of numbers of one length"):
            distiller.with_answers(x, y[:5], cache=tmp_path)

    def test_without_a_teacher_is_refused(self, images, tmp_path):
        image = keras.Input((8, 8, 1), name="image")
        flat = layers.Flatten()(image)
        student = keras.Model(image, [layers.Dense(10, activation="softmax", name=name)(flat) for name in "ab"])
        distiller = Distiller(student, losses=[SelfDistillation()])
        with pytest.raises(UsageError, match="there is no teacher whose answers could be kept"):
            distiller.with_answers(images[0], cache=tmp_path)


def test_samples_with_answers_take_plain_lists_and_positional_arguments(images, tmp_path):
    x, y = (array[:BATCH] for array in images)
    distiller = compiled(mlp_student(), mlp_teacher())
    samples = distiller.with_answers(x, y.tolist(), [1.0] * BATCH, cache=tmp_path, store="float16", batch_size=32)
    seen = []
    callback = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, _: seen.append(epoch))
    distiller.fit(samples, None, None, 3, 0, [callback], 0.0, None, True, None, None, 1)
    assert seen == [1, 2]
    assert samples.epoch == 3
