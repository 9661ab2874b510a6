"""Distillers saved and loaded, which train on as if nothing had been."""

import shutil
import zipfile

import keras
import numpy as np
import pytest

from edgecompress.distill import Features, Logits, SelfDistillation, SoftLabels
from edgecompress.errors import ModelError
from tests.distill.test_teachers import keras_2_model
from tests.distilling import assert_same_weights, compiled, mlp_student, mlp_teacher, weights_of


def train(distiller, images, epochs=2):
    return distiller.fit(*images, epochs=epochs, shuffle=False, verbose=0).history["loss"]


def through_file(distiller, path):
    distiller.save(path)
    return keras.saving.load_model(path)


def adam():
    return keras.optimizers.Adam(1e-2)


def check_goes_on(images, path, make):
    """Trains 2 epochs, saves, loads, and trains 2 more; and compares with 4 epochs in a row."""
    distiller = make()
    first = train(distiller, images)
    again = through_file(distiller, path)
    losses = [*first, *train(again, images)]
    straight = make()
    np.testing.assert_allclose(losses, train(straight, images, epochs=4), rtol=1e-6)
    assert_same_weights(weights_of(again.student), weights_of(straight.student), atol=1e-6)
    return again


class TestTraining:
    def test_goes_on_with_one_teacher(self, images, tmp_path):
        teacher = mlp_teacher()
        again = check_goes_on(images, tmp_path / "d.keras", lambda: compiled(mlp_student(), teacher, optimizer=adam()))
        assert isinstance(again.teachers()[0], keras.Sequential)
        assert again.teachers()[0] is not teacher
        assert_same_weights(weights_of(again.teachers()[0]), weights_of(teacher))
        assert again.optimizer.iterations == 32

    def test_goes_on_with_an_ensemble(self, images, cnn_teacher, tmp_path):
        teachers = [cnn_teacher, mlp_teacher()]
        again = check_goes_on(images, tmp_path / "d.keras", lambda: compiled(mlp_student(), teachers, optimizer=adam()))
        for one, other in zip(again.teachers(), teachers, strict=True):
            assert_same_weights(weights_of(one), weights_of(other))

    def test_needs_the_file_of_a_keras_3_teacher_no_more(self, images, cnn_teacher, tmp_path):
        cnn_teacher.save(tmp_path / "teacher.keras")
        distiller = compiled(mlp_student(), tmp_path / "teacher.keras")
        distiller.save(tmp_path / "d.keras")
        (tmp_path / "teacher.keras").unlink()
        again = keras.saving.load_model(tmp_path / "d.keras")
        assert again.evaluate(*images, verbose=0) == distiller.evaluate(*images, verbose=0)

    def test_goes_on_with_a_tflite_file(self, images, cnn_tflite, tmp_path):
        check_goes_on(images, tmp_path / "d.keras", lambda: compiled(mlp_student(), cnn_tflite, optimizer=adam()))

    def test_goes_on_with_a_mixed_ensemble(self, images, cnn_tflite, tmp_path):
        teachers = [mlp_teacher(), cnn_tflite]
        again = check_goes_on(images, tmp_path / "d.keras", lambda: compiled(mlp_student(), teachers, optimizer=adam()))
        assert again.teachers()[1] == cnn_tflite

    @pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
    def test_goes_on_with_files_that_keras_3_cannot_hold(self, images, cnn_teacher, tmp_path):
        keras_2_model(tmp_path / "two.h5")
        cnn_teacher.export(tmp_path / "exported", verbose=False)
        for name in ("two.h5", "exported"):
            distiller = compiled(mlp_student(), tmp_path / name, teacher_from_logits=False)
            again = through_file(distiller, tmp_path / "d.keras")
            assert train(again, images) == train(distiller, images)

    def test_goes_on_with_schedules_and_terms(self, images, tmp_path):
        def make():
            schedules = keras.optimizers.schedules
            return compiled(
                mlp_student(), mlp_student(seed=3), optimizer=adam(),
                losses=[SoftLabels(temperature=2.0), Features("hidden", "hidden", projector="linear"), Logits()],
                loss_weights=[1.0, 0.5, 0.1], alpha=schedules.PolynomialDecay(0.9, 32, 0.1),
                temperature=schedules.ExponentialDecay(6.0, 10, 0.9), options={"metrics": ["accuracy"]},
            )  # fmt: skip

        keras.utils.set_random_seed(0)
        distiller = make()
        initial = distiller.projectors[0].get_weights()
        first = train(distiller, images)
        again = through_file(distiller, tmp_path / "d.keras")
        straight = make()
        straight.projectors[0].set_weights(initial)
        np.testing.assert_allclose([*first, *train(again, images)], train(straight, images, epochs=4), rtol=1e-6)
        assert again.compared == distiller.compared
        assert "accuracy" in again.evaluate(*images, verbose=0, return_dict=True)

    def test_goes_on_with_several_outputs(self, images, tmp_path):
        x, y = images

        def exits():
            keras.utils.set_random_seed(0)
            image = keras.Input((8, 8, 1), name="image")
            flat = keras.layers.Flatten()(image)
            heads = [keras.layers.Dense(10, activation="softmax", name=name)(flat) for name in ("late", "early")]
            return keras.Model(image, heads)

        distiller = compiled(exits(), None, losses=[SelfDistillation("late")], optimizer=adam())
        distiller.fit(x, [y, y], verbose=0)
        again = through_file(distiller, tmp_path / "d.keras")
        assert again.teachers() == []
        assert again.evaluate(x, [y, y], verbose=0) == distiller.evaluate(x, [y, y], verbose=0)


class TestFile:
    def test_holds_no_teacher_twice(self, cnn_teacher, tmp_path):
        compiled(mlp_student(), cnn_teacher).save(tmp_path / "d.keras")
        cnn_teacher.save(tmp_path / "teacher.keras")
        mlp_student().save(tmp_path / "student.keras")
        sizes = {
            name: zipfile.ZipFile(tmp_path / f"{name}.keras").getinfo("model.weights.h5").file_size
            for name in ("d", "teacher", "student")
        }
        assert sizes["d"] < 1.5 * (sizes["teacher"] + sizes["student"])

    def test_of_the_student_alone_is_the_students(self, images, tmp_path):
        distiller = compiled(mlp_student(), mlp_teacher())
        train(distiller, images)
        distiller.student.save(tmp_path / "student.keras")
        student = keras.saving.load_model(tmp_path / "student.keras")
        assert_same_weights(weights_of(student), weights_of(distiller.student))
        np.testing.assert_allclose(
            student.predict(images[0], verbose=0), distiller.predict(images[0], verbose=0), atol=1e-6
        )

    def test_of_weights_brings_them_back(self, images, tmp_path):
        distiller = compiled(mlp_student(), mlp_teacher())
        train(distiller, images)
        distiller.save_weights(tmp_path / "d.weights.h5")
        other = compiled(mlp_student(seed=9), mlp_teacher())
        other.load_weights(tmp_path / "d.weights.h5")
        assert_same_weights(weights_of(other), weights_of(distiller))

    def test_is_the_same_without_training_state(self, images, tmp_path):
        distiller = compiled(mlp_student(), mlp_teacher())
        distiller.save(tmp_path / "d.keras")
        again = keras.saving.load_model(tmp_path / "d.keras", compile=False)
        assert not again.compiled
        np.testing.assert_array_equal(again.predict(images[0], verbose=0), distiller.predict(images[0], verbose=0))


class TestTeachersFile:
    @pytest.fixture
    def stored(self, cnn_tflite, tmp_path):
        file = tmp_path / "teacher.tflite"
        shutil.copy(cnn_tflite, file)
        compiled(mlp_student(), file).save(tmp_path / "d.keras")
        return tmp_path / "d.keras", file

    def test_that_is_gone_is_said_in_one_line(self, stored):
        path, file = stored
        file.unlink()
        with pytest.raises(ModelError, match=r"teacher.tflite: the teacher's file is not there any more") as error:
            keras.saving.load_model(path)
        assert "\n" not in str(error.value)

    def test_that_is_another_is_said_in_one_line(self, stored, digits_int8):
        path, file = stored
        shutil.copy(digits_int8, file)
        with pytest.raises(ModelError, match=r"teacher.tflite: the teacher's file is another than before") as error:
            keras.saving.load_model(path)
        assert "\n" not in str(error.value)

    @pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
    def test_is_needed_of_a_keras_2_teacher(self, tmp_path):
        distiller = compiled(mlp_student(), keras_2_model(tmp_path / "two.h5"))
        with pytest.raises(ModelError, match=r"a Keras 2 model in memory cannot be stored.*save it as .h5") as error:
            distiller.save(tmp_path / "d.keras")
        assert "\n" not in str(error.value)
        distiller.student.save(tmp_path / "student.keras")
