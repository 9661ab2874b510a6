"""The input kernel of a recurrent layer is multiplied into the embedding before it."""

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.layers import LowRankGRU, LowRankLSTM

TOKENS = np.array([[3, 5, 0, 0, 0], [1, 0, 0, 0, 0], [2, 2, 7, 4, 8]])


def build(*stack, size=12, vocabulary=9):
    words = layers.Embedding(vocabulary, size, mask_zero=True, name="words")
    return keras.Sequential([keras.Input((None,), dtype="int32"), words, *stack, layers.Dense(2, name="last")])


@pytest.mark.parametrize(
    "layer",
    [
        layers.GRU(3, name="rnn"),
        layers.GRU(3, reset_after=False, name="rnn"),
        layers.LSTM(3, use_bias=False, name="rnn"),
        LowRankGRU(3, recurrent_rank=2, name="rnn"),
        LowRankLSTM(3, input_rank=2, gates="separate", name="rnn"),
    ],
)
def test_speed_takes_the_table_of_products(layer, fuse) -> None:
    model = build(type(layer).from_config(layer.get_config()), size=4)
    fused, result = fuse(model, TOKENS, embedding="speed")
    assert [one.name for one in fused.layers] == ["words", "rnn", "last"]
    rnn = fused.get_layer("rnn")
    gates = 4 if "LSTM" in type(layer).__name__ else 3
    assert type(rnn).__name__ == "LowRank" + type(layer).__name__.removeprefix("LowRank")
    assert not rnn.cell.project_inputs
    assert fused.get_layer("words").embeddings.shape == (9, gates * 3)
    (fusion,) = result.fusions
    assert (fusion.layers, fusion.into, fusion.how) == (("words", "rnn"), "words + rnn", "embedding")
    assert fusion.detail.startswith("table (weights: as it is ")
    np.testing.assert_allclose(fused(TOKENS[:1, :2]), fused(TOKENS[:1]), rtol=1e-5)  # 0 is masked


@pytest.mark.parametrize(
    ("units", "rank", "vocabulary", "size", "way", "numbers"),
    [
        (3, None, 9, 12, "table", "as it is 216, table 81"),
        (16, 2, 40, 12, "partial", "as it is 600, partial 176, table 1,920"),
        (2, 2, 2, 30, "table", "as it is 132, partial 16, table 12"),
    ],
)
def test_size_takes_the_smallest_way(units, rank, vocabulary, size, way, numbers, fuse) -> None:
    layer = LowRankGRU(units, input_rank=rank, name="rnn") if rank else layers.GRU(units, name="rnn")
    model = build(layer, size=size, vocabulary=vocabulary)
    fused, result = fuse(model, TOKENS % vocabulary, embedding="size")
    assert result.fusions[0].detail == f"{way} (weights: {numbers})"
    assert fused.count_params() == model.count_params() - (
        result.fusions[0].params_before - result.fusions[0].params_after
    )


def test_it_stays_as_it_is_where_that_is_smallest_unless_the_profile_prefers_speed(fuse, reasons) -> None:
    _, result = fuse(build(layers.LSTM(8, name="rnn"), size=4, vocabulary=50), TOKENS)
    expected = "its product with the input kernel of 'rnn' is not smaller (weights: as it is 328, table 1,600)"
    assert reasons(result) == {"words": expected}
    fused, _ = fuse(build(layers.LSTM(8, name="rnn"), size=4, vocabulary=50), TOKENS, prefers="speed")
    assert fused.get_layer("words").embeddings.shape == (50, 32)


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        ([layers.GRU(3, dropout=0.1, name="rnn")], "'rnn' drops some of its inputs in training (dropout=0.1)"),
        ([layers.Bidirectional(layers.GRU(3), name="both")], "the two directions of 'both' would each need a table"),
        ([layers.SpatialDropout1D(0.1, name="drop"), layers.GRU(3)], "'drop' acts on its output in training"),
    ],
)
def test_what_is_left_alone_has_a_reason(stack, reason, fuse, reasons) -> None:
    _, result = fuse(build(*stack), TOKENS)
    assert reasons(result) == {"words": reason}


def test_an_embedding_that_is_needed_elsewhere_is_left_alone(fuse, reasons) -> None:
    x = keras.Input((5,), dtype="int32", name="x")
    words = layers.Embedding(9, 12, name="words")(x)
    model = keras.Model(x, [layers.GRU(3, name="rnn")(words), layers.GlobalAveragePooling1D()(words)])
    _, result = fuse(model, TOKENS)
    assert reasons(result) == {"words": "the output of 'words' is needed elsewhere, too"}


@pytest.mark.parametrize("loaded", [False, True])
def test_a_dense_layer_in_between_goes_first(loaded, fuse, tmp_path) -> None:
    model = build(layers.Dense(40, name="dense"), layers.GRU(3, name="rnn"))
    if loaded:  # masks are arguments of their own in a functional model that comes from a file
        functional = keras.Model(model.inputs[0], model.outputs[0])
        functional.save(tmp_path / "model.keras")
        model = keras.models.load_model(tmp_path / "model.keras")
    fused, result = fuse(model, TOKENS)
    assert [fusion.how for fusion in result.fusions] == ["linear", "embedding"]
    assert [one.name for one in fused.layers][-3:] == ["words", "rnn", "last"]
    assert all(entry.applies for entry in result.plan)


def test_off_leaves_embeddings_alone(fuse) -> None:
    _, result = fuse(build(layers.GRU(3, name="rnn")), TOKENS, embedding="off")
    assert not result.plan
