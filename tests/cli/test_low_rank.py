"""`--low-rank` and `--fuse` in compress, convert and plan, from the command line to the file."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest


class Wide(NamedTuple):
    model: Path
    data: Path


@pytest.fixture(autouse=True)
def _converters_here(in_process):
    """Spares the runs of this module the start of other processes."""
    with in_process():
        yield


@pytest.fixture(scope="module")
def digits_cnn(digits, tmp_path_factory):
    """A network like examples/digits.py's, wide enough for factors to be quicker."""
    keras, layers = digits.keras, digits.keras.layers
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((8, 8, 1), name="image"),
        layers.Conv2D(32, 3, padding="same", use_bias=False, name="conv"),
        layers.BatchNormalization(momentum=0.9, name="norm"),
        layers.ReLU(name="relu"),
        layers.Conv2D(64, 3, padding="same", activation="relu", name="conv_2"),
        layers.GlobalAveragePooling2D(name="pool"),
        layers.Dense(10, activation="softmax", name="digit"),
    ], name="digits_cnn")  # fmt: skip
    return Wide(*digits.train(model, as_rows=False, epochs=3, folder=tmp_path_factory.mktemp("wide")))


def test_a_file_with_factors_its_report_and_what_is_printed(edgecompress, digits_cnn) -> None:
    words = ["--low-rank", "0.5", "--data", digits_cnn.data, "--calibration-samples", 50, "-o", "small.keras"]
    done = edgecompress("compress", digits_cnn.model, *words)
    assert (done.code, done.err) == (0, "")
    text = " ".join(done.out.split())
    for part in (
        "low_rank: 1 layer",
        "conv_2 Conv2D",
        "left alone: ",
        "low_rank looked at the activations of 50 samples",
    ):
        assert part in text
    assert "--output small.keras --low-rank ratio=0.5 --calibration-samples 50" in text
    done = edgecompress("compress", digits_cnn.model, *words, "--json")
    report = json.loads(done.out)
    (low_rank,) = report["passes"]
    chosen = {one["layer"]: one["chosen"] for one in low_rank["ranks"] if one["accepted"]}
    assert chosen["conv_2"]["output_error"] is not None
    assert (report["data"]["calibration"], report["profile"]) == (50, None)
    assert report["verified"]["float_scores"]["accuracy"] - report["verified"]["scores"]["accuracy"] < 0.2


def test_the_multiple_of_the_ranks_is_the_devices(edgecompress, digits_cnn) -> None:
    for profile, multiple in (("pixel", 16), ("cortex-m4", 4)):
        words = ["--low-rank", "energy=0.7", "--profile", profile, "-o", "small.keras", "--json"]
        report = json.loads(edgecompress("compress", digits_cnn.model, *words).out)
        assert report["profile"] == profile
        chosen = [one["chosen"]["ranks"] for one in report["passes"][0]["ranks"] if one["accepted"]]
        assert chosen
        assert all(rank % multiple == 0 for ranks in chosen for rank in ranks)
        assert report["command"][3:5] == ["--profile", profile]


def test_without_samples_the_report_says_that_svd_was_plain(edgecompress, digits_cnn) -> None:
    words = ["compress", digits_cnn.model, "-o", "small.keras", "--json", "--low-rank"]
    notes = json.loads(edgecompress(*words, "0.5").out)["notes"]
    assert any(note.startswith("low_rank had no samples: it kept what matters for the weights") for note in notes)
    notes = json.loads(edgecompress(*words, "0.5,activation_aware=false").out)["notes"]
    assert not any("had no samples" in note for note in notes)


def test_factors_are_trained_and_may_learn_from_the_original(edgecompress, digits_cnn, train_file) -> None:
    words = ["--low-rank", "0.4,distill=0.5", "--epochs", 1, "--train", train_file, "-o", "small.keras", "--json"]
    done = edgecompress("compress", digits_cnn.model, *words)
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    assert len(report["passes"][0]["trained"]["epochs"]) == 1
    assert not any("low_rank looked at" in note or "had no samples" in note for note in report["notes"])


def test_a_conversion_with_factors_and_fused_layers(edgecompress, digits_cnn) -> None:
    words = ["--low-rank", "0.5", "--fuse", "--data", digits_cnn.data, "--no-benchmark", "-o", "out"]
    done = edgecompress("convert", digits_cnn.model, *words)
    assert (done.code, done.err) == (0, "")
    report = json.loads(Path("out/report.json").read_text("utf-8"))
    assert [one["kind"] for one in report["passes"]] == ["low_rank", "fuse"]
    (fusion,) = report["passes"][1]["fusions"]
    assert fusion["how"] == "batch_norm"
    assert report["after"]["parameters"] < report["before"]["parameters"]
    text = " ".join(done.out.split())
    for part in ("fuse: ", "(batch_norm): ", "weights", "conv_2 Conv2D"):
        assert part in text


def test_an_original_in_an_integer_scheme_keeps_the_samples_of_its_calibration(edgecompress, digits_cnn) -> None:
    words = ["--low-rank", "0.5", "--scheme", "dynamic", "--data", digits_cnn.data, "--calibration-samples", 40]
    done = edgecompress("convert", digits_cnn.model, *words, "--no-benchmark", "--json", "-o", "out")
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    assert report["scheme"] == "dynamic"
    assert report["data"]["calibration"] == 40


def test_the_plan_shows_both_and_says_for_which_layers_it_is(edgecompress, digits_cnn) -> None:
    done = edgecompress("plan", digits_cnn.model, "--low-rank", "energy=0.9", "--fuse", "--qat")
    assert (done.code, done.err) == (0, "")
    text = " ".join(done.out.split())
    for part in (
        "low_rank",
        "fuse",
        "factors by energy 0.9",
        "the plan of fuse, qat is for the layers as they are before",
    ):
        assert part in text


def test_the_plan_refuses_what_the_run_would_refuse(edgecompress, digits_cnn) -> None:
    done = edgecompress("plan", digits_cnn.model, "--low-rank", "{layers={conv_2=500}}")
    assert done.code == 2
    assert "REFUSED low_rank" in done.out


@pytest.mark.parametrize("command", ["compress", "convert"])
@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--low-rank", "rank=500"], ["rank 500", "Fix: give a rank below"]),
        (["--low-rank", "{layers={conv_2=500}}"], ["layer 'conv_2'", "rank 500 is larger than its matrix"]),
        (["--low-rank", "rank=0"], ["--low-rank: key 'rank'", "greater than 0"]),
        (["--low-rank", "energy=0"], ["--low-rank: key 'energy'", "greater than 0"]),
        (["--low-rank", "energy=1.01"], ["--low-rank: key 'energy'", "less than or equal to 1"]),
        (["--low-rank", "16,ratio=0.5"], ["rank and ratio are different ways of choosing ranks"]),
        (["--low-rank", "{layers={conv_9=8}}"], ["low_rank.layers: the pattern 'conv_9' matches no layer"]),
        (["--low-rank", "much"], ["'much' is not a value such as energy=0.95"]),
        (["--low-rank", "params_budget=0.5"], ["needs samples", "pass --train or --data"]),
        (["--low-rank", "flops_budget=0.5"], ["needs samples", "pass --train or --data"]),
        (["--low-rank", "distill=0.5"], ["distill trains the model", "pass --train"]),
        (["--low-rank", "0.5", "--epochs", 2], ["nothing to train on", "pass --train"]),
        (["--fuse", "--resume"], ["no pass trains the model, so --resume would have no effect"]),
        (["--fuse-options", "linear=maybe"], ["--fuse-options: key 'linear'"]),
    ],
)
def test_careless_users(refused, digits_cnn, command, words, parts) -> None:
    line = refused(command, digits_cnn.model, *words)
    for part in parts:
        assert part in line


def test_a_profile_that_there_is_not(refused, digits_cnn) -> None:
    assert "did you mean 'pixel'?" in refused("compress", digits_cnn.model, "--low-rank", "0.5", "--profile", "pixle")


def test_resuming_with_another_device_is_another_run(edgecompress, digits_cnn, train_file) -> None:
    folder = Path(".small.keras.training")
    words = ["--low-rank", "0.5", "--epochs", 1, "--train", train_file, "-o", "small.keras"]
    run = {"model": "", "kernels": {"rank_multiple": 8, "prefers": "size"}}
    (folder / "1-low_rank").mkdir(parents=True)
    (folder / "1-low_rank" / "training.npz").touch()
    (folder / "run.json").write_text(json.dumps(run), "utf-8")
    done = edgecompress("compress", digits_cnn.model, *words, "--resume", "--profile", "cortex-m4")
    assert done.code == 2
    assert "of a run with another kernels" in done.err


def test_many_samples_are_left_to_verify(edgecompress, digits_cnn) -> None:
    with np.load(digits_cnn.data) as data:
        total = len(data["x"])
    words = ["--low-rank", "0.5", "--data", digits_cnn.data, "-o", "small.keras", "--json"]
    used = json.loads(edgecompress("compress", digits_cnn.model, *words).out)["data"]
    assert (used["calibration"], used["held_out"]) == (200, total - 200)


def test_what_no_file_can_be_made_of_is_refused_before_the_training(
    refused, digits, digits_gru, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr("edgecompress.pipeline.run_passes", lambda *_args, **_options: pytest.fail("it trained"))
    layers = digits.keras.layers
    stack = [digits.keras.Input((8, 8), name="rows"), layers.GRU(64, activation="elu", name="odd"), layers.Dense(10)]
    digits.keras.Sequential(stack).save(tmp_path / "odd.keras")
    train = digits_gru.model.with_name("digits_gru-train.npz")
    line = refused("convert", "odd.keras", "--low-rank", "0.5", "--train", train, "--profile", "cortex-m4")
    assert "recurrent layer 'odd' (GRU) has no integer form: its activation elu" in line


@pytest.fixture
def stateful(digits, tmp_path):
    keras, layers = digits.keras, digits.keras.layers
    keras.utils.set_random_seed(0)
    x = keras.Input(batch_shape=(4, 7, 32), name="x")
    model = keras.Model(x, layers.Dense(3)(layers.LSTM(96, stateful=True, name="memory")(x)))
    model.save(tmp_path / "stateful.keras")
    random = np.random.default_rng(0)
    np.savez(tmp_path / "s.npz", x=random.normal(size=(42, 7, 32)).astype("float32"), y=random.integers(0, 3, 42))
    return Wide(tmp_path / "stateful.keras", tmp_path / "s.npz")


def test_layers_that_remember_samples_are_decomposed_but_not_trained(edgecompress, refused, stateful) -> None:
    done = edgecompress("compress", stateful.model, "--low-rank", "0.5", "--data", stateful.data, "-o", "small.keras")
    assert done.code == 0, done.err
    assert "memory LSTM" in " ".join(done.out.split())
    words = ["--low-rank", "0.5", "--train", stateful.data, "-o", "other.keras"]
    error = refused("compress", stateful.model, *words)
    for part in ("cannot be trained", "stateful=True in memory", "leave --train out"):
        assert part in error
