"""Linear layers in a row become one where that is smaller."""

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.layers import LowRankDense, LowRankGRU, LowRankLSTM

RANDOM = np.random.default_rng(2)


def run(fuse, shape, *stack, **options):
    model = keras.Sequential([keras.Input(shape), *stack])
    return fuse(model, RANDOM.normal(size=(3, *shape)).astype("float32"), **options)


def kinds(model):
    return [type(layer).__name__ for layer in model.layers]


def test_dense_layers_become_one_with_the_name_and_activation_of_the_last(fuse) -> None:
    fused, result = run(
        fuse, (5, 8),
        layers.Dense(12, name="a"), layers.Dense(9, use_bias=False, name="b"),
        layers.TimeDistributed(layers.Dense(4, activation="tanh", use_bias=False), name="c"),
    )  # fmt: skip
    (only,) = fused.layers
    assert (only.name, only.activation, only.kernel.shape) == ("c", keras.activations.tanh, (8, 4))
    assert only.use_bias
    assert [fusion.layers for fusion in result.fusions] == [("a", "b"), ("b", "c")]
    assert result.fusions[1].params_after == 8 * 4 + 4


def test_a_bottleneck_stays(fuse, reasons) -> None:
    fused, result = run(fuse, (20,), layers.Dense(2, name="a"), layers.Dense(20, name="b"))
    assert len(fused.layers) == 2
    assert reasons(result) == {"a": "one layer for it and 'b' would be larger: 400 weights in the place of 80"}


@pytest.mark.parametrize(
    ("stack", "left"),
    [
        ((layers.Dense(16, name="a"), LowRankDense(20, 3, "relu", name="b")), "LowRankDense"),
        ((LowRankDense(16, 3, use_bias=False, name="a"), layers.Dense(20, "relu", name="b")), "LowRankDense"),
        ((LowRankDense(16, 5, name="a"), LowRankDense(20, 3, name="b", use_bias=False)), "LowRankDense"),
        ((LowRankDense(16, 9, name="a"), layers.Dense(2, name="b")), "Dense"),
    ],
)
def test_factors_stay_factors_where_that_is_smaller(stack, left, fuse) -> None:
    fused, result = run(fuse, (18,), *(type(layer).from_config(layer.get_config()) for layer in stack))
    assert kinds(fused) == [left]
    assert fused.layers[0].name == "b"
    if left == "LowRankDense":
        assert fused.layers[0].rank == 3
    assert result.fusions[0].params_after < result.fusions[0].params_before


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_a_convolution_takes_up_the_point_after_it(padding, fuse) -> None:
    fused, _ = run(
        fuse, (8, 8, 3),
        layers.Conv2D(12, 3, strides=2, padding=padding, name="a"), layers.Conv2D(4, 1, activation="relu", name="b"),
    )  # fmt: skip
    (only,) = fused.layers
    assert (only.name, only.kernel.shape, only.activation) == ("b", (3, 3, 3, 4), keras.activations.relu)


@pytest.mark.parametrize("second", [layers.Dense(4, name="b"), LowRankDense(4, 2, "tanh", name="b")])
def test_a_convolution_takes_up_a_dense_layer_after_it(second, fuse) -> None:
    fused, _ = run(fuse, (9, 3), layers.Conv1D(12, 3, padding="causal", name="a"), second)
    assert kinds(fused) == ["Conv1D"]
    assert fused.layers[0].activation is second.activation


@pytest.mark.parametrize("first", [layers.Conv2D(12, 1, name="a"), layers.Dense(12, name="a")])
def test_a_convolution_takes_up_the_point_before_it(first, fuse, reasons) -> None:
    stack = [first, layers.Conv2D(4, 3, dilation_rate=2, activation="relu", name="b")]
    fused, _ = run(fuse, (8, 8, 3), *stack)
    assert fused.layers[0].kernel.shape == (3, 3, 3, 4)
    padded = layers.Conv2D(4, 3, padding="same", name="b")
    again = [type(first).from_config(first.get_config()), padded]
    _, result = run(fuse, (8, 8, 3), *again)
    assert reasons(result) == {"a": "'b' pads what comes after the bias of 'a'"}
    again = [
        type(first).from_config(first.get_config() | {"use_bias": False}),
        layers.Conv2D.from_config(padded.get_config()),
    ]
    fused, _ = run(fuse, (8, 8, 3), *again)
    assert len(fused.layers) == 1


def test_a_dense_layer_before_a_point(fuse) -> None:
    fused, _ = run(fuse, (8, 8, 3), layers.Dense(12, name="a"), layers.Conv2D(4, 1, name="b"))
    assert kinds(fused) == ["Conv2D"]


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        ((layers.Conv2D(8, 3, groups=2, name="a"), layers.Conv2D(2, 1, name="b")), "'a' has groups"),
        ((layers.Conv2D(8, 3, name="a"), layers.Conv2D(2, 3, name="b")), "neither it nor 'b' is of a single point"),
        ((layers.Dense(8, name="a"), layers.Conv2D(4, 1, name="b", kernel_constraint="non_neg")), "kernel_constraint"),
        ((layers.Dense(8, name="a", dtype="float64"), layers.Dense(4, name="b")), "'a' computes in float64, 'b' in"),
    ],
)
def test_what_is_left_alone_has_a_reason(stack, reason, fuse, reasons) -> None:
    _, result = run(fuse, (8, 8, 4), *stack)
    assert reason in reasons(result)["a"]


@pytest.mark.parametrize(
    "layer",
    [
        layers.GRU(3, name="rnn"),
        layers.GRU(3, reset_after=False, go_backwards=True, name="rnn"),
        layers.GRU(3, use_bias=False, return_sequences=True, name="rnn"),
        layers.LSTM(3, recurrent_dropout=0.2, name="rnn"),
        layers.LSTM(3, use_bias=False, name="rnn"),
        LowRankGRU(3, recurrent_rank=2, name="rnn"),
        LowRankLSTM(6, input_rank=2, gates="joint", name="rnn"),
        LowRankGRU(6, input_rank=2, gates="separate", name="rnn"),
    ],
)
def test_a_recurrent_layer_takes_up_a_dense_layer_before_it(layer, fuse) -> None:
    dense = layers.TimeDistributed(layers.Dense(30, name="inner"), name="dense")
    fused, result = run(fuse, (7, 4), dense, type(layer).from_config(layer.get_config()))
    assert kinds(fused) == [type(layer).__name__]
    assert fused.layers[0].name == "rnn"
    assert "part of the input kernel" in result.fusions[0].detail
    assert result.fusions[0].params_after == fused.count_params()


def test_factors_before_a_recurrent_layer_become_factors_of_its_kernel(fuse) -> None:
    fused, _ = run(fuse, (7, 20), LowRankDense(20, 2, name="dense"), layers.GRU(16, name="rnn"))
    assert kinds(fused) == ["LowRankGRU"]
    assert fused.layers[0].cell.kernel_u.shape == (20, 2)


def test_a_recurrent_layer_that_drops_inputs_or_is_smaller_as_it_is_stays(fuse, reasons) -> None:
    _, result = run(fuse, (7, 4), layers.Dense(30, name="a"), layers.GRU(3, dropout=0.5, name="b"))
    assert reasons(result) == {"a": "'b' drops some of its inputs in training (dropout=0.5)"}
    _, result = run(fuse, (7, 20), layers.Dense(2, name="a"), layers.GRU(20, name="b"))
    assert "would be larger: 1,200 weights in the place of 160" in reasons(result)["a"]
    _, result = run(fuse, (7, 4), layers.Dense(30, name="a"), layers.Bidirectional(layers.GRU(3), name="b"))
    assert reasons(result) == {"a": "the two directions of 'b' have an input kernel each"}


def test_an_embedding_takes_up_a_dense_layer_after_it(fuse, reasons) -> None:
    tokens = RANDOM.integers(0, 9, (3, 6))

    def build(size, activation=None):
        return keras.Sequential([
            keras.Input((6,), dtype="int32"), layers.Embedding(9, 8, mask_zero=True, name="words"),
            layers.Dense(size, activation, name="dense"), layers.GRU(2, dropout=0.1),
        ])  # fmt: skip

    fused, _ = fuse(build(3), tokens)
    assert fused.get_layer("words").embeddings.shape == (9, 3)
    assert fused.get_layer("words").mask_zero
    assert reasons(fuse(build(80), tokens)[1])["words"].endswith("would be larger: 720 weights in the place of 712")
    assert reasons(fuse(build(3, "relu"), tokens)[1]) == {"words": "'dense' has an activation"}


def test_it_can_be_switched_off(fuse) -> None:
    fused, result = run(fuse, (4,), layers.Dense(9, name="a"), layers.Dense(2, name="b"), linear=False)
    assert len(fused.layers) == 2
    assert not result.plan
