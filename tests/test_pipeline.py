"""`edgecompress.convert` from Python: what the command line cannot show."""

from pathlib import Path

import numpy as np
import pytest

import edgecompress
from edgecompress.errors import ConversionError


@pytest.fixture(autouse=True)
def _empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_model_and_arrays_in_memory(digits_cnn) -> None:
    import keras

    model = keras.models.load_model(digits_cnn[0])
    with np.load(digits_cnn[1]) as data:
        x, y = data["x"], data["y"]
    steps = []
    report = edgecompress.convert(
        model,
        edgecompress.load_profile("pixel"),
        data=(x, y),
        benchmark=False,
        progress=lambda *step: steps.append(step),
    )
    assert report.output == "digits_cnn-pixel"
    assert report.command[:3] == ("edgecompress", "convert", "<model in memory>")
    assert report.verified.scores is not None
    assert Path(report.output, "digits_cnn.tflite").is_file()
    assert [step for step, done, _ in steps if done == 0] == ["load", "convert", "verify"]
    assert ("calibrate", 200, 200) in steps


def test_a_file_that_the_quantizer_wrote_but_no_runtime_takes_is_a_refusal(digits_cnn, monkeypatch) -> None:
    """litert-quantizer can write such files without an error: seen with loops whose state changes its type."""
    from edgecompress import quantizing
    from edgecompress.errors import ExecutionError

    original = quantizing.run_tflite

    def refuse_int8(file: Path, inputs, **options):
        if file.name == "int8.tflite":
            raise ExecutionError("the runtime crashed (SIGSEGV)", where=file)
        return original(file, inputs, **options)

    monkeypatch.setattr(quantizing, "run_tflite", refuse_int8)
    report = edgecompress.convert(digits_cnn[0], "pixel", data=digits_cnn[1], benchmark=False)
    assert report.scheme == "dynamic"
    assert "LiteRT does not run it: the runtime crashed (SIGSEGV)" in report.attempts[0].reason
    recipe = edgecompress.Recipe.model_validate({"quantization": {"scheme": "int8"}})
    with pytest.raises(ConversionError, match="LiteRT does not run it"):
        edgecompress.convert(digits_cnn[0], "pixel", data=digits_cnn[1], recipe=recipe, output="again")
    assert not Path("again").exists()


def test_a_network_without_classes_is_judged_by_its_error() -> None:
    import keras

    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).random((400, 6), dtype=np.float32)
    y = (x @ np.arange(6, dtype=np.float32))[:, None]
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(x, y, epochs=20, verbose=0)
    recipe = edgecompress.Recipe.model_validate({"verification": {"max_accuracy_drop": 0.01}})
    report = edgecompress.convert(model, "host", data=(x, y), recipe=recipe, benchmark=False)
    before, after = report.before.scores, report.after.scores
    assert before is not None
    assert after is not None
    assert before.accuracy is None
    assert before.mae is not None
    assert after.mae is not None
    assert after.mae < before.mae + 0.2
    assert report.failed == ("max_accuracy_drop 0.01 could not be judged: the outputs have no classes",)


@pytest.mark.parametrize("scheme", list(edgecompress.QuantizationScheme))
def test_every_scheme_makes_a_file_near_the_float_model(scheme, digits_cnn) -> None:
    recipe = edgecompress.Recipe.model_validate({"quantization": {"scheme": scheme}})
    report = edgecompress.convert(digits_cnn[0], "host", data=digits_cnn[1], recipe=recipe, benchmark=False)
    assert report.scheme == scheme
    drop = report.verified.accuracy_drop
    assert drop is not None
    assert abs(drop) < (0.1 if scheme == "int4_weights" else 0.02)


def test_class_names_are_kept_in_the_file(digits_cnn) -> None:
    import json

    from edgecompress.flatbuffer import read_metadata

    with np.load(digits_cnn[1]) as data:
        names = np.array([f"digit {number}" for number in range(10)])
        samples = {"x": data["x"][:60], "y": data["y"][:60], "class_names": names}
    report = edgecompress.convert(digits_cnn[0], "pixel", data=samples, benchmark=False)
    facts = json.loads(read_metadata(Path(report.output, "digits_cnn.tflite"))["edgecompress"])
    assert facts["class_names"] == list(names)


def test_an_image_folder(digits_cnn, tmp_path) -> None:
    from PIL import Image

    with np.load(digits_cnn[1]) as data:
        for index, (pixels, label) in enumerate(zip(data["x"][:80], data["y"][:80], strict=True)):
            folder = tmp_path / "images" / f"digit-{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels[..., 0] * 255).astype(np.uint8)).resize((16, 16), 0).save(folder / f"{index}.png")
    report = edgecompress.convert(digits_cnn[0], "pixel", data="images", input_range=(0, 1), benchmark=False)
    assert report.audit is not None
    assert not [finding for finding in report.audit.findings if finding.level == "warning"]
    assert report.verified.scores is not None
    assert report.verified.scores.accuracy is not None
    assert report.verified.scores.accuracy > 0.7


def test_a_latency_that_cannot_be_measured_is_a_note_and_no_failure(digits_cnn, monkeypatch) -> None:
    from edgecompress import pipeline
    from edgecompress.errors import ExecutionError

    def broken(files, **_options):
        raise ExecutionError("the runtime was ended at its time limit", where=files[0])

    monkeypatch.setattr(pipeline, "benchmark_cpu", broken)
    report = edgecompress.convert(digits_cnn[0], "pixel", data=digits_cnn[1])
    assert report.after.measurement is not None
    assert report.after.measurement.latency is None
    assert "ended at its time limit" in (report.after.measurement.unavailable_because or "")
    assert any(note.startswith("Latency was not measured") for note in report.notes)


def test_the_report_names_its_data_and_what_was_not_checked(digits_cnn) -> None:
    first = edgecompress.convert(digits_cnn[0], "coral-usb", data=digits_cnn[1], benchmark=False)
    assert first.data is not None
    assert len(first.data.sha256) == len(first.profile_sha256) == 64
    assert any("edgetpu_compiler" in note for note in first.notes)
    assert any("edge-tpu" in note for note in first.notes)
    with np.load(digits_cnn[1]) as data:
        changed = edgecompress.convert(digits_cnn[0], "coral-usb", data=(data["x"] * 0.5, data["y"]), benchmark=False)
    assert changed.data is not None
    assert changed.data.sha256 != first.data.sha256


@pytest.mark.parametrize(
    ("name", "stem"), [("m.keras", "m"), ("a/b.h5", "b"), ("saved_v1.5", "saved_v1.5"), ("link.keras", "link")]
)
def test_outputs_are_named_after_the_model_as_the_user_calls_it(name: str, stem: str) -> None:
    from edgecompress.pipeline import _stem

    Path("blob").write_bytes(b"")
    Path("link.keras").symlink_to("blob")
    assert _stem(name) == stem


# Passes


@pytest.fixture
def training(digits) -> tuple[np.ndarray, np.ndarray]:
    (x, y), _ = digits.digits(as_rows=False)
    return x[:200], y[:200]


def test_compressing_leaves_the_model_in_memory_as_it_is(digits_cnn, training) -> None:
    import keras

    model = keras.models.load_model(digits_cnn[0])
    before = model.get_weights()
    steps = []
    report = edgecompress.compress(
        model, "small.keras", recipe=edgecompress.Recipe(
            passes=(edgecompress.Prune(sparsity=0.8),), training=edgecompress.Training(epochs=1)
        ), train=training, progress=lambda *step: steps.append(step),
    )  # fmt: skip
    for weight, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)
    assert report.command[2] == "<model in memory>"
    assert "<training data in memory>" in report.command
    assert report.source.sha256 != report.weights_sha256
    assert any(step.startswith("prune, epoch 1/1: loss") for step, _, _ in steps)
    small = edgecompress.load_model("small.keras")
    assert np.mean(np.asarray(small.model.get_layer("conv_2").kernel) == 0) > 0.79
    assert [entry.name for entry in Path().iterdir()] == ["small.keras"]


def test_a_pass_that_changes_nothing_saves_nothing_and_costs_nothing(digits_cnn) -> None:
    recipe = edgecompress.Recipe(passes=(edgecompress.Fuse(batch_norm=False),))
    report = edgecompress.compress(digits_cnn[0], "same.keras", recipe=recipe)
    assert report.before == report.after
    (warning,) = (note for note in report.notes if "fuse" in note)
    assert warning == "WARNING: fuse changed nothing: the model has no layer for it."


def test_a_compressed_model_can_be_trained_on_and_its_file_is_always_the_same(digits_cnn, training) -> None:
    import keras

    model = keras.models.load_model(digits_cnn[0])
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    recipe = edgecompress.Recipe(passes=(edgecompress.Prune(sparsity=0.8),), training=edgecompress.Training(epochs=1))
    for name in ("a.keras", "b.keras"):
        edgecompress.compress(model, name, recipe=recipe, train=training)
    assert Path("a.keras").read_bytes() == Path("b.keras").read_bytes()
    small = keras.models.load_model("a.keras")
    assert type(small.optimizer).__name__ == "SGD"
    assert np.isfinite(small.evaluate(*training, verbose=0)).all()

    def mine(y_true, y_pred):
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred)

    model.compile("sgd", mine)
    report = edgecompress.compress(model, "c.keras", recipe=recipe, train=training)
    assert report.passes[0].trained.loss == "mine"
    assert any("holds no optimizer" in note and "'mine' is a custom function" in note for note in report.notes)
    assert not keras.models.load_model("c.keras").compiled


def test_a_model_of_mixed_precision_is_converted(training, digits_cnn) -> None:
    import keras

    keras.config.set_dtype_policy("mixed_float16")
    try:
        layers = [
            keras.Input((8, 8, 1), name="image"), keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax"),
        ]  # fmt: skip
        model = keras.Sequential(layers)
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*training, epochs=2, verbose=0)
    report = edgecompress.convert(model, "pixel", data=digits_cnn[1], benchmark=False)
    assert report.verified.outputs[0].snr_db > 30


def test_a_failure_after_the_training_keeps_its_checkpoints(digits_cnn, training, monkeypatch) -> None:
    from edgecompress import pipeline

    def broken(*_arguments, **_options):
        raise ConversionError("broken")

    recipe = edgecompress.Recipe(passes=(edgecompress.Prune(),), training=edgecompress.Training(epochs=1))
    options = {"recipe": recipe, "train": training, "benchmark": False, "output": "out"}
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "build_trained", broken)
        with pytest.raises(ConversionError, match="broken"):
            edgecompress.convert(digits_cnn[0], "pixel", **options)
    assert [entry.name for entry in Path().iterdir()] == [".out.training"]
    steps = []
    report = edgecompress.convert(
        digits_cnn[0], "pixel", **options, resume=True, progress=lambda *step: steps.append(step)
    )
    assert any("went on from the checkpoints" in note for note in report.notes)
    assert not any(step.startswith("prune") for step, _, _ in steps)
    assert [entry.name for entry in Path().iterdir()] == ["out"]


def test_the_flash_size_is_not_guessed_where_vela_is_missing(digits_cnn, monkeypatch) -> None:
    from edgecompress.converters import ethos_u

    monkeypatch.setattr(ethos_u, "version_of", lambda _name: None)
    report = edgecompress.convert(digits_cnn[0], "ethos-u55-128", data=digits_cnn[1], benchmark=False)
    assert report.after.vela_flash_bytes is None
    assert any('pip install "edgecompress[ethos-u]"' in note for note in report.notes)


def test_samples_that_were_trained_on_prove_nothing(digits_cnn, training) -> None:
    recipe = edgecompress.Recipe(passes=(edgecompress.Prune(),), training=edgecompress.Training(epochs=1))
    report = edgecompress.compress(digits_cnn[0], recipe=recipe, train=training, data=training)
    assert any(note.startswith("WARNING: 200 of the 200 samples that verify") for note in report.notes)
