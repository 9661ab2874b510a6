"""`edgecompress ranks` on real models: the table, the document, the plot, and what careless users get."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from edgecompress.ranking import RankReport, ranks
from edgecompress.techniques import LowRank


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A network whose first layer has a low rank, and whose last is too small for factors."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((256,), name="pixels"), layers.Dense(384, activation="relu", name="hidden"),
        layers.BatchNormalization(name="norm"), layers.Dense(4, name="head"),
    ], name="wide")  # fmt: skip
    random = np.random.default_rng(0)
    low = random.normal(size=(256, 8)) @ random.normal(size=(8, 384))
    model.get_layer("hidden").kernel.assign(low + 0.01 * random.normal(size=low.shape))
    path = tmp_path_factory.mktemp("wide") / "wide.keras"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def pixels(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pixels") / "pixels.npz"
    np.savez(path, x=np.random.default_rng(1).normal(size=(60, 256)).astype(np.float32))
    return path


def test_the_table_has_a_row_a_layer_and_says_why_layers_are_left_alone(edgecompress, wide, pixels) -> None:
    done = edgecompress("ranks", wide, "--data", pixels)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "wide.keras: ranks by energy 0.95, in multiples of 8"
    row = next(line for line in lines if line.startswith("hidden"))
    for part in ("256 x 384", "98,688", "394.8 kB", "98,304", "8 of 256 (svd)", "█"):
        assert part in row
    below = lines[lines.index(row) + 1]
    for part in ("Dense", ": 100%", "-> 5,504", "-> 22.0 kB", "-> 5,120"):
        assert part in below
    alone = [line for line in lines if line.startswith("- left alone: ")]
    assert any("norm" in line for line in alone)
    assert any("head" in line for line in alone)
    assert "101,764 -> 8,580 weights (0.08 x)" in done.out
    assert "error: of the layer's outputs on 60 samples of" in done.out


def test_the_document_is_what_the_function_returns(edgecompress, wide, pixels) -> None:
    words = ["--train", pixels, "--calibration-samples", 20, "--low-rank", "rank=24", "--profile", "pixel", "--json"]
    done = edgecompress("ranks", wide, *words)
    assert (done.code, done.err) == (0, "")
    document = json.loads(done.out)
    assert document["schema"] == "edgecompress.ranks/1"
    assert (document["samples"], document["multiple"], document["profile"]) == (20, 16, "pixel")
    found = ranks(wide, str(pixels), technique=LowRank(rank=24), profile="pixel", samples=20)
    assert RankReport.model_validate(document) == found


def test_without_samples_the_weights_alone_are_judged(edgecompress, wide) -> None:
    done = edgecompress("ranks", wide)
    assert "energy and error are those of the weights. Pass --data" in done.out
    assert "(weights)" in done.out
    assert edgecompress("ranks", wide, "--quiet") == (0, "", "")


def test_the_model_stays_as_it_is(edgecompress, wide) -> None:
    before = wide.read_bytes()
    edgecompress("ranks", wide, "--low-rank", "evbmf")
    assert wide.read_bytes() == before
    assert not list(Path().iterdir())


@pytest.mark.parametrize(("name", "magic"), [("ranks.png", b"\x89PNG"), ("ranks.svg", b"<?xml")])
def test_the_plot_is_a_file_and_the_same_each_time(edgecompress, wide, name, magic) -> None:
    done = edgecompress("ranks", wide, "--plot", name, "--quiet")
    assert done == (0, "", "")
    first = Path(name).read_bytes()
    assert first.startswith(magic)
    assert [entry.name for entry in Path().iterdir()] == [name]
    edgecompress("ranks", wide, "--plot", name, "--quiet")
    assert Path(name).read_bytes() == first


def test_a_recurrent_network(edgecompress, digits_gru) -> None:
    done = edgecompress("ranks", digits_gru.model, "--data", digits_gru.data, "--low-rank", 0.5)
    assert (done.code, done.err) == (0, "")
    row = next(line for line in done.out.splitlines() if line.startswith("gru"))
    assert "+" in row  # the ranks of the input kernel and of the recurrent one


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--low-rank", "rank=300"], ["rank 300", "256", "Fix: "]),
        (["--low-rank", "{layers={hidden=300}}"], ["layer 'hidden'", "rank 300 is larger than its matrix"]),
        (["--low-rank", "rank=0"], ["--low-rank: key 'rank'", "greater than 0"]),
        (["--low-rank", "energy=0"], ["--low-rank: key 'energy'", "greater than 0"]),
        (["--low-rank", "energy=1.5"], ["--low-rank: key 'energy'", "less than or equal to 1"]),
        (["--low-rank", "16,energy=0.9"], ["rank and energy are different ways", "give one of them"]),
        (["--low-rank", "{layers={hiden=8}}"], ["'hiden' matches no layer", "did you mean 'hidden'?"]),
        (["--low-rank", "params_budget=0.5"], ["needs samples", "pass --train or --data"]),
        (["--low-rank", "params_budget=100", "--data", "PIXELS"], ["params_budget cannot be met", "Fix: "]),
        (["--plot", "ranks.pdf"], ["ranks.pdf: --plot writes .png and .svg files", "--plot ranks.svg"]),
        (["--plot", "."], ["--plot writes .png and .svg files", "--plot ranks.svg"]),
        (["--plot", "ranks"], ["received no suffix", "--plot ranks.svg"]),
        (["--plot", "nowhere/ranks.svg"], ["nowhere/ranks.svg: cannot be written (No such file or directory)"]),
        (["--profile", "pixle"], ["did you mean 'pixel'?"]),
        (["--data", "nothing.npz"], ["nothing.npz: no such file or folder"]),
    ],
)
def test_careless_users(refused, wide, pixels, words, parts) -> None:
    line = refused("ranks", wide, *(pixels if word == "PIXELS" else word for word in words))
    for part in parts:
        assert part in line


def test_weights_that_are_not_numbers(refused, wide, tmp_path_factory) -> None:
    import keras

    model = keras.models.load_model(wide)
    kernel = np.asarray(model.get_layer("hidden").kernel).copy()
    kernel[3, 5] = np.nan
    model.get_layer("hidden").kernel.assign(kernel)
    broken = tmp_path_factory.mktemp("broken") / "broken.keras"
    model.save(broken)
    for words in (["ranks", broken], ["compress", broken, "--low-rank", 0.5], ["convert", broken, "--low-rank", 0.5]):
        line = refused(*words)
        assert "layer 'hidden': low_rank: its weights hold NaN or infinite values" in line
        assert "Fix: " in line


def test_a_model_without_anything_to_plot(refused, tmp_path_factory) -> None:
    import keras

    layers = [keras.Input((8,)), keras.layers.LayerNormalization(name="norm")]
    path = tmp_path_factory.mktemp("bare") / "bare.keras"
    keras.Sequential(layers).save(path)
    assert "bare.keras: there is nothing to plot: no layer can be factorized" in refused(
        "ranks", path, "--plot", "r.svg"
    )


def test_without_matplotlib(refused, wide, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    line = refused("ranks", wide, "--plot", "ranks.svg", code=3)
    assert 'Fix: pip install "edgecompress[plot]"' in line


def test_what_is_no_model_of_keras_3(refused, wide, tmp_path_factory) -> None:
    import keras

    folder = tmp_path_factory.mktemp("saved") / "saved"
    keras.models.load_model(wide).export(folder, verbose=False)
    assert "take models of Keras 3; received a SavedModel" in refused("ranks", folder)
