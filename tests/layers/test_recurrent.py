"""With full ranks LowRankGRU and LowRankLSTM answer as the layers of Keras do, however they are called."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from edgecompress.errors import ModelError
from edgecompress.layers import LowRankGRU, LowRankLSTM

UNITS, FEATURES, STEPS = 5, 4, 6
PAIRS = {"GRU": (keras.layers.GRU, LowRankGRU), "LSTM": (keras.layers.LSTM, LowRankLSTM)}
# Ranks and gates at which no weight is lost.
FULL = {
    "whole": {},
    "joint": {"input_rank": FEATURES, "recurrent_rank": UNITS},
    "separate": {"input_rank": FEATURES, "recurrent_rank": UNITS, "gates": "separate"},
    "recurrent kernel only": {"recurrent_rank": UNITS},
}
OPTIONS = {
    "plain": {},
    "sequences": {"return_sequences": True},
    "backwards": {"go_backwards": True, "return_sequences": True},
    "state": {"return_state": True},
    "sequences and state": {"return_sequences": True, "return_state": True},
    "unrolled": {"unroll": True, "return_sequences": True},
    "no bias": {"use_bias": False},
    "activations": {"activation": "relu", "recurrent_activation": "hard_sigmoid"},
}
both = pytest.mark.parametrize("kind", PAIRS)
full = pytest.mark.parametrize("ranks", FULL)


def sample(batch=3):
    return np.random.default_rng(0).normal(size=(batch, STEPS, FEATURES)).astype("float32")


def pair(kind, ranks, batch=None, **options):
    """Returns a built layer of Keras and ours with the same kernels."""
    keras.utils.set_random_seed(0)
    reference, ours = PAIRS[kind]
    layer = reference(UNITS, bias_initializer="normal", **options)
    layer.build((batch, STEPS, FEATURES))
    return layer, ours.from_layer(layer, **FULL[ranks])


def assert_alike(one, other):
    for a, b in zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@both
@full
@pytest.mark.parametrize("options", OPTIONS)
def test_the_same_answers(kind, ranks, options):
    layer, ours = pair(kind, ranks, **OPTIONS[options])
    expected, received = layer(sample()), ours(sample())
    assert type(received) is type(expected)
    assert_alike(received, expected)


@full
@pytest.mark.parametrize("options", ["plain", "no bias", "unrolled"])
def test_the_reset_gate_before_the_product(ranks, options):
    layer, ours = pair("GRU", ranks, reset_after=False, **OPTIONS[options])
    assert_alike(ours(sample()), layer(sample()))


@both
@full
@pytest.mark.parametrize("zeros", [False, True])
def test_masks(kind, ranks, zeros):
    """Also in the middle and at the end: a masked step leaves the state as it is."""
    options = {"return_sequences": True, "return_state": True, "zero_output_for_mask": zeros}
    # Some Keras layers on a CPU leave masks that are not padding to this loop; without cuDNN all do.
    layer, ours = pair(kind, ranks, use_cudnn=False, **options)
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]], bool)
    assert_alike(ours(sample(), mask=mask), layer(sample(), mask=mask))


@both
def test_masks_of_an_embedding_are_handed_on(kind):
    layer, ours = pair(kind, "joint", return_sequences=True)
    tokens = keras.Input((STEPS,), dtype="int32")
    vectors = keras.layers.Embedding(9, FEATURES, mask_zero=True)(tokens)
    given = np.array([[3, 1, 4, 0, 0, 0], [2, 7, 1, 8, 2, 8]])
    expected, received = (
        keras.Model(tokens, keras.layers.GlobalAveragePooling1D()(one(vectors)))(given) for one in (layer, ours)
    )
    assert_alike(received, expected)


@both
@full
def test_an_initial_state(kind, ranks):
    layer, ours = pair(kind, ranks, return_state=True)
    states = [np.full((3, UNITS), 0.1 * (number + 1), "float32") for number in range(len(ours.state_size))]
    assert_alike(ours(sample(), initial_state=states), layer(sample(), initial_state=states))
    x, given = keras.Input((STEPS, FEATURES)), [keras.Input((UNITS,)) for _ in states]
    model = keras.Model([x, *given], ours(x, initial_state=given))
    assert_alike(model([sample(), *states]), layer(sample(), initial_state=states))


@both
@full
def test_stateful(kind, ranks):
    layer, ours = pair(kind, ranks, batch=3, stateful=True)
    first = [one(sample()) for one in (ours, layer)]
    assert_alike(*first)
    second = [one(sample()) for one in (ours, layer)]
    assert_alike(*second)
    assert not np.allclose(first[0], second[0])
    ours.reset_state()
    assert_alike(ours(sample()), first[0])


@both
@full
@pytest.mark.parametrize("merge", ["concat", "sum"])
def test_bidirectional(kind, ranks, merge):
    layer, ours = pair(kind, ranks, return_sequences=True)
    reference, received = (keras.layers.Bidirectional(one, merge_mode=merge) for one in (layer, ours))
    reference.build((None, STEPS, FEATURES))
    received.build((None, STEPS, FEATURES))
    for side in ("forward_layer", "backward_layer"):
        factors = type(ours).from_layer(getattr(reference, side), **FULL[ranks])
        getattr(received, side).set_weights(factors.get_weights())
    assert_alike(received(sample()), reference(sample()))
    again = keras.layers.Bidirectional.from_config(received.get_config())
    again(sample())
    again.set_weights(received.get_weights())
    assert_alike(again(sample()), received(sample()))


@both
def test_inputs_that_are_multiplied_already(kind):
    layer, ours = pair(kind, "joint")
    kernel = np.asarray(layer.cell.kernel)
    after = type(ours)(UNITS, recurrent_rank=UNITS, project_inputs=False)
    after.build((None, STEPS, kernel.shape[1]))
    after.set_weights([ours.cell.recurrent_u, ours.cell.recurrent_v, ours.cell.bias])
    assert_alike(after(sample() @ kernel), layer(sample()))


@both
def test_a_lower_rank_is_the_nearest_matrix(kind):
    layer, _ = pair(kind, "whole")
    ours = PAIRS[kind][1].from_layer(layer, input_rank=2, recurrent_rank=3)
    for name, rank in (("kernel", 2), ("recurrent_kernel", 3)):
        short = name.removesuffix("_kernel")
        kernel = np.asarray(getattr(layer.cell, name))
        product = np.asarray(getattr(ours.cell, f"{short}_u")) @ np.asarray(getattr(ours.cell, f"{short}_v"))
        best = np.sqrt(np.sum(np.linalg.svd(kernel, compute_uv=False)[rank:] ** 2))
        assert np.linalg.norm(kernel - product) == pytest.approx(best, rel=1e-5)


@both
@pytest.mark.parametrize("gates", ["joint", "separate"])
def test_factors_start_with_the_variance_of_a_kernel(kind, gates):
    keras.utils.set_random_seed(0)
    layer = PAIRS[kind][1](64, input_rank=8, recurrent_rank=8, gates=gates)
    layer.build((None, STEPS, 48))
    cell = layer.cell
    for name, rows in (("kernel", 48), ("recurrent", 64)):
        u, v = np.asarray(getattr(cell, f"{name}_u")), np.asarray(getattr(cell, f"{name}_v"))
        assert u.shape[0] == rows
        if gates == "separate":
            u = u.reshape(rows, -1, 8).transpose(1, 0, 2)
            assert not np.allclose(u[0], u[1])
        whole = getattr(cell, f"{name}_initializer")((rows, cell.gate_count * 64))
        assert np.var(u @ v) == pytest.approx(np.var(whole), rel=0.25)
    bias = np.asarray(cell.bias)
    assert np.array_equal(np.unique(bias), [0] if kind == "GRU" else [0, 1])


@both
@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"recurrent_dropout": 0.5}])
def test_dropout_draws_in_training_only(kind, options):
    layer = PAIRS[kind][1](UNITS, input_rank=2, recurrent_rank=2, seed=7, **options)
    x = sample()
    assert_alike(layer(x), layer(x))
    first, second = layer(x, training=True), layer(x, training=True)
    assert not np.allclose(first, second)
    assert not np.allclose(first, layer(x))
    again = PAIRS[kind][1].from_config(layer.get_config())
    again.build(x.shape)
    again.set_weights([*layer.get_weights()[:-1], again.get_weights()[-1]])
    assert not np.allclose(again(x, training=True), again(x))


@both
def test_one_mask_for_all_steps(kind):
    """Inputs that are dropped are so at each step: some feature alone then changes nothing."""
    layer = PAIRS[kind][1](UNITS, dropout=0.5, seed=1)
    x = np.zeros((1, STEPS, FEATURES), "float32")
    layer.build(x.shape)
    kept = []
    for feature in range(FEATURES):
        x[:] = 0
        x[..., feature] = 1
        generator = layer.cell.seed_generator.state
        generator.assign(np.zeros(generator.shape))
        kept.append(not np.allclose(layer(x, training=True), layer(np.zeros_like(x))))
    assert sorted(set(kept)) == [False, True]


@pytest.mark.parametrize("option", ["input_rank", "recurrent_rank"])
@both
def test_ranks_that_there_are_not(kind, option):
    make = PAIRS[kind][1]
    for rank in (0, -1, 2.5, True):
        with pytest.raises(
            ValueError, match=f"{option} is not a rank; expected a whole number from 1; received {rank}"
        ):
            make(UNITS, **{option: rank})
    largest = {"input_rank": FEATURES, "recurrent_rank": UNITS}[option]
    make(UNITS, **{option: largest}).build((None, STEPS, FEATURES))
    with pytest.raises(ValueError, match=rf"mine: {option} is larger than its kernel .* at most {largest}; received"):
        make(UNITS, **{option: largest + 1}, name="mine").build((None, STEPS, FEATURES))
    with pytest.raises(ValueError, match="at most 2; received 3"):
        make(2, recurrent_rank=3, gates="separate").build((None, STEPS, FEATURES))


@both
def test_options_that_do_not_go_together(kind):
    make = PAIRS[kind][1]
    with pytest.raises(ValueError, match="unknown gates; expected 'joint' or 'separate'; received 'both'"):
        make(UNITS, gates="both")
    for option in ({"input_rank": 2}, {"dropout": 0.1}):
        with pytest.raises(ValueError, match="project_inputs=False there is no input kernel"):
            make(UNITS, project_inputs=False, **option)
    with pytest.raises(ValueError, match=rf"received \(batch, steps, {FEATURES}\)"):
        make(UNITS, project_inputs=False).build((None, STEPS, FEATURES))
    with pytest.raises(ValueError, match="use_cudnn"):
        make(UNITS, use_cudnn=False)


@both
def test_layers_that_none_can_be_made_of(kind):
    reference, make = PAIRS[kind]
    (other,) = set(PAIRS) - {kind}
    layer = PAIRS[other][0](UNITS)
    with pytest.raises(ValueError, match=rf"expected keras.layers.{kind}; received {other}"):
        make.from_layer(layer, 2, 2)
    with pytest.raises(ValueError, match=r"no weights yet.*build it first"):
        make.from_layer(reference(UNITS), 2, 2)
    broken = reference(UNITS)
    broken.build((None, STEPS, FEATURES))
    broken.cell.recurrent_kernel.assign(np.full(broken.cell.recurrent_kernel.shape, np.nan))
    with pytest.raises(ModelError, match=r"of \d+ weights are NaN or infinite"):
        make.from_layer(broken, None, 2)
