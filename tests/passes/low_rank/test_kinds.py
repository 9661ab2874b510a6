"""Each kind of layer in factors: the same answers where nothing is left out, and costs that are those of the layers."""

import numpy as np
import pytest

from edgecompress.data import Dataset
from edgecompress.errors import DataError
from edgecompress.keras_macs import call_macs, graph_calls
from edgecompress.layers import LowRankGRU
from edgecompress.models import load_model
from edgecompress.passes.low_rank.activations import observe
from edgecompress.passes.low_rank.sites import find_sites
from edgecompress.passes.rewrite import rewrite

SAMPLES = 12


def _make(keras, name):
    layers = keras.layers
    made = {
        "dense": ((10,), lambda: layers.Dense(8, activation="relu")),
        "dense of a sequence": ((5, 10), lambda: layers.Dense(8, use_bias=False)),
        "einsum": ((5, 10), lambda: layers.EinsumDense("abc,cde->abde", (5, 4, 3), bias_axes="de")),
        "einsum of two axes": ((5, 4, 6), lambda: layers.EinsumDense("abcd,cde->abe", (5, 9), bias_axes="e")),
        "einsum with an ellipsis": (
            (5, 10), lambda: layers.EinsumDense("...x,xy->...y", 8, bias_axes="y", activation="tanh")
        ),
        "time distributed": ((5, 10), lambda: layers.TimeDistributed(layers.Dense(8))),
        "time distributed conv": ((3, 8, 8, 4), lambda: layers.TimeDistributed(layers.Conv2D(6, 3))),
        "conv 2d": ((9, 9, 6), lambda: layers.Conv2D(8, 3, padding="same", activation="relu")),
        "strided conv 2d": ((9, 8, 6), lambda: layers.Conv2D(8, (3, 5), strides=(2, 1), padding="same")),
        "valid strided conv 2d": ((9, 9, 6), lambda: layers.Conv2D(8, 3, strides=2)),
        "dilated conv 2d": ((12, 12, 6), lambda: layers.Conv2D(8, 3, dilation_rate=(2, 1), use_bias=False)),
        "1 x 1 conv": ((6, 6, 12), lambda: layers.Conv2D(10, 1, strides=2)),
        "row conv": ((6, 9, 6), lambda: layers.Conv2D(8, (1, 3), strides=(2, 2))),
        "conv 1d": ((12, 6), lambda: layers.Conv1D(8, 3, strides=2, padding="same")),
        "causal conv 1d": ((12, 6), lambda: layers.Conv1D(8, 3, dilation_rate=2, padding="causal")),
        "gru": ((6, 10), lambda: layers.GRU(8)),
        "gru, reset before": ((6, 10), lambda: layers.GRU(8, reset_after=False, return_sequences=True)),
        "lstm": ((6, 10), lambda: layers.LSTM(8, return_sequences=True, go_backwards=True)),
        "bidirectional gru": ((6, 10), lambda: layers.Bidirectional(layers.GRU(8, return_sequences=True))),
        "bidirectional lstm": ((6, 10), lambda: layers.Bidirectional(layers.LSTM(8), merge_mode="sum")),
    }  # fmt: skip
    shape, layer = made[name]
    return keras.Sequential([keras.Input(shape), layer()])


NAMES = (
    "dense", "dense of a sequence", "einsum", "einsum of two axes", "einsum with an ellipsis", "time distributed",
    "time distributed conv", "conv 2d", "strided conv 2d", "valid strided conv 2d", "dilated conv 2d", "1 x 1 conv",
    "row conv", "conv 1d", "causal conv 1d", "gru", "gru, reset before", "lstm", "bidirectional gru",
    "bidirectional lstm",
)  # fmt: skip


@pytest.fixture
def model(keras, request):
    keras.utils.set_random_seed(1)
    made = _make(keras, request.param)
    made.set_weights([np.random.default_rng(2).normal(0, 0.4, w.shape) for w in made.get_weights()])
    return made


def _samples(model):
    shape = (SAMPLES, *model.input_shape[1:])
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def _input(model):
    return load_model(model).inputs[0].name


def _halve(kind, method):
    """Ranks at which the factors are exact: of a kernel that was made so."""
    return tuple(max(1, rank // 2) for rank in kind.full_ranks(method))


@pytest.mark.parametrize("aware", [False, True], ids=["plain", "activation-aware"])
@pytest.mark.parametrize("model", NAMES, indirect=True)
def test_at_full_rank_the_factors_answer_as_the_layer(model, aware):
    (site,) = find_sites(model)
    x = _samples(model)
    if aware:
        observe(model, {id(site.found.layer): site.kind}, Dataset({_input(model): x}), seed=0)
        assert site.kind.seen
    for method in site.kind.methods:
        if method == "cp":
            continue  # its rank says nothing about what it can be exact for
        full = site.kind.full_ranks(method)
        copy = rewrite(model, {id(site.found.layer): site.kind.build(method, full)})
        expected, received = (np.asarray(each(x)) for each in (model, copy))
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=2e-5)
        assert copy.layers[-1].name == model.layers[-1].name
        weight_error, output_error = site.kind.errors(method, full)
        assert weight_error < 1e-5
        assert (output_error is not None) == aware
        assert not aware or output_error < 1e-5


@pytest.mark.parametrize("model", NAMES, indirect=True)
def test_costs_are_those_of_the_layers_that_are_built(model):
    (site,) = find_sites(model)
    kind = site.kind
    (call,) = graph_calls(model)
    assert sum(each.macs for each in kind.operators(kind.calls[0])) == call_macs(call)
    for method in kind.methods:
        ranks = kind.settle(method, _halve(kind, method))
        copy = rewrite(model, {id(site.found.layer): kind.build(method, ranks)})
        counted = sum(call_macs(each) for each in graph_calls(copy))
        assert sum(each.macs for each in kind.operators(kind.calls[0], method, ranks)) == counted
        assert kind.factor_params(method, ranks) == copy.count_params()


@pytest.mark.parametrize("method", ["joint", "separate"])
@pytest.mark.parametrize("model", ["gru", "lstm", "bidirectional gru"], indirect=True)
def test_recurrent_kernels_that_have_a_low_rank_are_found_exactly(model, method):
    (site,) = find_sites(model)
    random = np.random.default_rng(0)
    for direction in site.kind._directions:
        cell = direction.layer.cell
        for variable in (cell.kernel, cell.recurrent_kernel):
            rows, columns = variable.shape
            variable.assign(random.normal(size=(rows, 2)) @ random.normal(size=(2, columns)) / 4)
    (site,) = find_sites(model)  # which takes note of the kernels as they are
    x = _samples(model)
    ranks = site.kind.settle(method, (2, 2))
    assert ranks == (2, 2)
    copy = rewrite(model, {id(site.found.layer): site.kind.build(method, ranks)})
    np.testing.assert_allclose(np.asarray(copy(x)), np.asarray(model(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["dense", "einsum", "conv 2d", "1 x 1 conv", "conv 1d"], indirect=True)
def test_looking_at_activations_never_does_worse_on_them(model):
    """At any rank, for the ways whose optimum is known: channel SVD and the products with one matrix."""
    x = _samples(model) * np.linspace(0.05, 3, model.input_shape[-1], dtype=np.float32)
    data = Dataset({_input(model): x})
    method = find_sites(model)[0].kind.methods[0]
    full = find_sites(model)[0].kind.full_ranks(method)[0]
    better = 0
    for rank in range(1, full):
        (plain,), (aware,) = find_sites(model), find_sites(model)
        observe(model, {id(aware.found.layer): aware.kind}, data, seed=0)
        chain = plain.kind.build(method, (rank,))
        observe(model, {id(plain.found.layer): plain.kind}, data, seed=0)  # only to measure; its spectra are worked out
        assert chain
        errors = [one.kind.errors(method, (rank,))[1] for one in (plain, aware)]
        assert errors[1] <= errors[0] + 1e-6
        better += errors[1] < 0.98 * errors[0]
    assert better > full / 3


def test_embeddings_keep_their_mask_and_weigh_tokens_by_how_often_they_come(keras):
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((7,), dtype="int32"), layers.Embedding(30, 12, mask_zero=True, name="words"),
        layers.GRU(5, name="gru"),
    ])  # fmt: skip
    words, _ = find_sites(model)
    ids = np.random.default_rng(0).integers(0, 30, (SAMPLES, 7)).astype(np.int32)
    ids[:, 4:] = 0
    observe(model, {id(words.found.layer): words.kind}, Dataset({_input(model): ids}), seed=0)
    table, widen = words.kind.build("svd", (12,))
    assert table.mask_zero
    copy = rewrite(model, {id(words.found.layer): [table, widen]})
    np.testing.assert_allclose(np.asarray(copy(ids)), np.asarray(model(ids)), rtol=1e-4, atol=1e-5)
    common = np.full((SAMPLES, 7), 3, np.int32)
    (again, _) = find_sites(model)
    observe(model, {id(again.found.layer): again.kind}, Dataset({_input(model): common}), seed=0)
    u, v = again.kind.spectra("svd")[0].factors(4)
    table = np.asarray(words.found.layer.embeddings)
    rows = np.linalg.norm(table - u @ v, axis=1) / np.linalg.norm(table, axis=1)
    assert rows[3] < 0.2 * np.median(rows)


def _shared(keras, name):
    """Returns a model that calls a layer with inputs of two sizes."""
    layers = keras.layers
    shapes, layer = {
        "gru": (((6, 10), (4, 10)), lambda: layers.GRU(8)),
        "conv": (((9, 9, 6), (7, 8, 6)), lambda: layers.Conv2D(8, 3)),
        "einsum": (((6, 10), (4, 10)), lambda: layers.EinsumDense("abc,cd->abd", (None, 8), bias_axes="d")),
    }[name]
    inputs, shared = [keras.Input(shape, name=f"x{number}") for number, shape in enumerate(shapes)], layer()
    return keras.Model(inputs, [shared(each) for each in inputs])


@pytest.mark.parametrize("name", ["gru", "conv", "einsum"])
def test_a_layer_that_is_called_with_inputs_of_several_sizes(keras, name):
    model, random = _shared(keras, name), np.random.default_rng(3)
    (site,) = find_sites(model)
    x = [random.normal(size=(SAMPLES, *each.shape[1:])).astype(np.float32) for each in model.inputs]
    observe(model, {id(site.found.layer): site.kind}, Dataset({"x0": x[0], "x1": x[1]}), seed=0)
    (method, *_), expected = site.kind.methods, [np.asarray(each) for each in model(x)]
    ranks = tuple(rank // 2 for rank in site.kind.full_ranks(method))
    copy = rewrite(model, {id(site.found.layer): site.kind.build(method, ranks)})
    received = [np.asarray(each) for each in copy(x)]
    old, new = (np.concatenate([each.reshape(-1) for each in both]) for both in (expected, received))
    bias = np.concatenate([np.broadcast_to(_bias(site), each.shape).reshape(-1) for each in expected])
    assert site.kind.errors(method, ranks)[1] == pytest.approx(np.linalg.norm(old - new) / np.linalg.norm(old - bias))


def _bias(site):
    """What errors do not count of an output."""
    layer = site.found.layer
    return 0.0 if site.found.kind == "GRU" else np.asarray(layer.bias)


def test_masked_steps_stay_zero_where_the_layer_made_them_so(keras):
    model = keras.Sequential([
        keras.Input((6, 10)), keras.layers.Masking(),
        keras.layers.GRU(8, return_sequences=True, zero_output_for_mask=True),
    ])  # fmt: skip
    (site,) = find_sites(model)
    x = _samples(model)
    x[:, 2:4] = 0
    copy = rewrite(model, {id(site.found.layer): site.kind.build("joint", (4, 4))})
    assert np.asarray(copy(x))[:, :2].all()
    assert not np.asarray(copy(x))[:, 2:4].any()


def test_what_an_embedding_loses_is_counted_by_how_often_its_tokens_come(keras):
    model = keras.Sequential([keras.Input((7,), dtype="int32"), keras.layers.Embedding(30, 12, name="words")])
    (words,) = find_sites(model)
    ids = np.random.default_rng(0).integers(0, 9, (3 * SAMPLES, 7)).astype(np.int32) ** 2 // 3
    observe(model, {id(words.found.layer): words.kind}, Dataset({_input(model): ids}), seed=0)
    copy = rewrite(model, {id(words.found.layer): words.kind.build("svd", (4,))})
    expected, received = (np.asarray(each(ids)) for each in (model, copy))
    lost = np.linalg.norm(expected - received) / np.linalg.norm(expected)
    assert words.kind.errors("svd", (4,))[1] == pytest.approx(lost, rel=1e-4)
    counts = 1 + np.bincount(ids.reshape(-1), minlength=30)
    table = np.asarray(words.found.layer.embeddings, np.float64)
    best = np.linalg.svd(table * np.sqrt(counts)[:, None])[1]
    assert words.kind.spectra("svd")[0].energy(4) == pytest.approx((best[:4] ** 2).sum() / (best**2).sum(), rel=1e-4)


def test_a_mask_keeps_padding_out_of_what_a_gru_is_judged_by(keras):
    layers = keras.layers
    model = keras.Sequential([keras.Input((6, 10)), layers.Masking(), layers.GRU(8, name="gru")])
    x = np.random.default_rng(0).normal(size=(SAMPLES, 6, 10)).astype(np.float32)
    x[:, 3:] = 0
    moments = []
    for samples in (x, x[:, :3]):
        data = Dataset({_input(model): np.pad(samples, ((0, 0), (0, 6 - samples.shape[1]), (0, 0)))})
        (site,) = find_sites(model)
        observe(model, {id(site.found.layer): site.kind}, data, seed=0)
        moments.append(site.kind._directions[0].inputs.mean)
    np.testing.assert_allclose(moments[0], moments[1])
    rows = x[:, :3].reshape(-1, 10).astype(np.float64)
    np.testing.assert_allclose(moments[0], rows.T @ rows / len(rows), rtol=1e-6)


@pytest.mark.parametrize(("kind", "count"), [("GRU", 1), ("LSTM", 2), ("Bidirectional", 4)])
def test_the_states_that_a_layer_starts_with_are_looked_at(keras, kind, count):
    layers, random = keras.layers, np.random.default_rng(0)
    layer = (layers.GRU if kind == "GRU" else layers.LSTM)(12, return_sequences=True)
    if kind == "Bidirectional":
        layer = layers.Bidirectional(layer)
    x = keras.Input((3, 10), name="x")
    states = [keras.Input((12,), name=f"state_{n}") for n in range(count)]
    model = keras.Model([x, *states], layer(x, initial_state=states))
    few = 3 * random.normal(size=(SAMPLES, 3)) @ random.normal(size=(3, 12))  # large ones, of few directions
    arrays = {state.name: few.astype(np.float32) for state in states}
    arrays["x"] = random.normal(0, 0.05, (SAMPLES, 3, 10)).astype(np.float32)

    def answers(model):
        return np.asarray(model([arrays[tensor.name] for tensor in model.inputs]))

    lost = {}
    for aware in (False, True):
        (site,) = find_sites(model)
        if aware:
            observe(model, {id(site.found.layer): site.kind}, Dataset(arrays), seed=0)
        small = rewrite(model, {id(site.found.layer): site.kind.build("joint", (3, 3))})
        lost[aware] = np.linalg.norm(answers(small) - answers(model)) / np.linalg.norm(answers(model))
    assert site.kind.errors("joint", (3, 3))[1] == pytest.approx(lost[True], abs=1e-3)
    assert lost[True] < 0.5 * lost[False]


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda k: k.layers.Dense(8, kernel_constraint="non_neg"), "constraint"),
        (lambda k: k.layers.Dense(8, bias_constraint="non_neg"), "constraint"),
        (lambda k: k.layers.DepthwiseConv1D(3), "a depthwise kernel has few weights already"),
        (lambda _: LowRankGRU(4), "written in factors already"),
        (lambda k: k.layers.Bidirectional(LowRankGRU(4)), "written in factors already"),
        (lambda k: k.layers.EinsumDense("abc,bcd->abd", (5, 4)), "no product with one matrix"),
        (lambda k: k.layers.EinsumDense("abc,cd->ad", 4), "no product with one matrix"),
        (lambda k: k.layers.Conv1D(10, 3, groups=2), "2 groups"),
        (lambda k: k.layers.SimpleRNN(4), "SimpleRNN is not written in factors"),
        (lambda k: k.layers.Bidirectional(k.layers.SimpleRNN(4)), "neither a GRU nor an LSTM"),
        (lambda k: k.layers.Dense(1), "rank 1 already"),
        (lambda k: k.layers.LayerNormalization(), "no kernel"),
        (lambda k: k.layers.SeparableConv1D(4, 3), "SeparableConv1D is not written in factors"),
    ],
)
def test_why_layers_are_left_alone(keras, layer, reason):
    model = keras.Sequential([keras.Input((5, 10)), layer(keras)])
    (site,) = find_sites(model)
    assert site.kind is None
    assert reason in site.reason


def test_samples_of_another_model_are_refused(keras):
    model = keras.Sequential([keras.Input((10,), name="rows"), keras.layers.Dense(8)])
    (site,) = find_sites(model)
    with pytest.raises(DataError, match="expected rows; received columns"):
        observe(model, {id(site.found.layer): site.kind}, Dataset({"columns": _samples(model)}), seed=0)
