"""Recurrent layers in quantization-aware training: what is computed, where it is rounded, what training changes."""

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.data import InputSpec, fix_shapes, load_data
from edgecompress.layers import LowRankGRU, LowRankLSTM
from edgecompress.models import load_model
from edgecompress.passes.base import PassContext
from edgecompress.recurrent.observing import run
from edgecompress.recurrent.scales import fixed_scale, scale_of
from edgecompress.schemes import Granularity, QuantizationScheme
from edgecompress.techniques import Qat, Training
from edgecompress.tfmot.lowering import Lowered, lower
from edgecompress.tfmot.qat import train_quantized
from edgecompress.tfmot.quantized_graph import QuantizedGraph, build_quantized
from edgecompress.tfmot.scales import assign_scales, measure_ranges, observe_cells, run_lowered

INT8 = QuantizationScheme.INT8
STEPS, FEATURES = 6, 8


def filled(model: keras.Model) -> keras.Model:
    """Weights that make a difference everywhere, biases too."""
    random = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(random.normal(0, 0.5, weight.shape))
    return model


def network(body) -> keras.Model:
    x = keras.Input((STEPS, FEATURES), name="rows")
    return filled(keras.Model(x, body(x)))


def specs(model: keras.Model) -> tuple[InputSpec, ...]:
    return tuple(InputSpec(tensor.name, tuple(tensor.shape), str(tensor.dtype)) for tensor in model.inputs)


def rows(count: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, STEPS, FEATURES)).astype("float32")


def lowered(model: keras.Model) -> Lowered:
    found = lower(model, specs(model))
    assert found.refusals == ()
    return found


def quantized(
    model: keras.Model, scheme: QuantizationScheme = INT8, spec: Qat | None = None, x: np.ndarray | None = None
) -> QuantizedGraph:
    graph, samples = lowered(model), [rows() if x is None else x]
    scales = assign_scales(graph)
    observe_cells(graph, samples)
    ranges = measure_ranges(graph, scales, samples)
    return build_quantized(graph, scales, ranges, specs(model), scheme, spec or Qat())


def recurrent_in(graph: QuantizedGraph) -> list:
    return [layer for layer in graph.model.layers if hasattr(layer, "recurrent_layer")]


CELLS = {
    "gru": lambda: layers.GRU(5),
    "gru of Keras 2": lambda: layers.GRU(5, reset_after=False, recurrent_activation="hard_sigmoid"),
    "gru without bias": lambda: layers.GRU(5, use_bias=False, activation="relu"),
    "lstm": lambda: layers.LSTM(5),
    "lstm with hard gates": lambda: layers.LSTM(5, recurrent_activation="hard_sigmoid"),
    "simple": lambda: layers.SimpleRNN(5),
    "simple, linear": lambda: layers.SimpleRNN(5, activation="linear"),
    "backwards": lambda: layers.GRU(5, return_sequences=True, go_backwards=True),
    "cell": lambda: layers.RNN(layers.LSTMCell(4)),
    "low rank": lambda: LowRankGRU(5, input_rank=2, recurrent_rank=3),
    "low rank by gate": lambda: LowRankGRU(5, input_rank=2, recurrent_rank=3, gates="separate", reset_after=False),
    "low rank lstm": lambda: LowRankLSTM(5, input_rank=2, recurrent_rank=3, gates="separate"),
    "two ways": lambda: layers.Bidirectional(layers.GRU(4, return_sequences=True)),
    "two ways, last": lambda: layers.Bidirectional(layers.LSTM(4)),
    "two ways, summed": lambda: layers.Bidirectional(layers.GRU(4), merge_mode="sum"),
    "two ways, multiplied": lambda: layers.Bidirectional(layers.SimpleRNN(4), merge_mode="mul"),
    "two ways, averaged": lambda: layers.Bidirectional(layers.GRU(4, return_sequences=True), merge_mode="ave"),
    "two ways, each": lambda: layers.Bidirectional(
        layers.LSTM(4, return_state=True, return_sequences=True), merge_mode=None
    ),
    "states": lambda: layers.LSTM(5, return_state=True),
    "states and sequence": lambda: layers.GRU(5, return_state=True, return_sequences=True),
}


def translate(x):
    """An encoder whose states a decoder begins with."""
    _, *states = layers.LSTM(4, return_state=True)(x)
    y = layers.LSTM(4, return_sequences=True)(x, initial_state=states)
    return layers.TimeDistributed(layers.Dense(3, activation="relu"))(y)


def two_ways_from(x):
    states = [layers.Dense(3, activation="tanh")(x[:, 0]) for _ in range(4)]
    return layers.Bidirectional(layers.LSTM(3))(x, initial_state=states)


def nested(x):
    inside = keras.Input((STEPS, FEATURES))
    y = layers.GRU(4, return_sequences=True, name="gru")(inside)
    inner = keras.Model(inside, layers.Dropout(0.5)(y), name="inner")
    return layers.SimpleRNN(3)(layers.Conv1D(4, 3, padding="same")(inner(x)))


def shared(x):
    gru = layers.GRU(FEATURES, return_sequences=True)
    return layers.Dense(3)(gru(3 * gru(x)))


NETWORKS = {**{name: (lambda x, make=make: make()(x)) for name, make in CELLS.items()}, "translation": translate,
            "two ways from states": two_ways_from, "nested": nested, "shared": shared}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_computes_what_keras_does(name: str) -> None:
    model, x = network(NETWORKS[name]), rows()
    wanted = keras.tree.flatten(model(x))
    for ours, theirs in zip(run_lowered(lowered(model), [x]), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", ["gru of Keras 2", "lstm", "low rank by gate", "two ways", "translation", "shared"])
def test_the_layers_that_train_compute_what_keras_does(name: str) -> None:
    model, x = network(NETWORKS[name]), rows(32)
    graph = quantized(model, x=x)
    graph.settle()
    simulated = keras.tree.flatten(graph.model(x, training=False))
    for ours, rounded, theirs in zip(
        keras.tree.flatten(graph.plain(x)), simulated, keras.tree.flatten(model(x)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert 0 < np.mean(np.square(rounded - theirs)) < 0.01 * np.mean(np.square(theirs))


def test_inputs_that_are_multiplied_already_are_only_shifted() -> None:
    x = keras.Input((STEPS, 15), name="rows")
    model = filled(keras.Model(x, LowRankGRU(5, project_inputs=False)(x)))
    given = np.random.default_rng(0).normal(size=(8, STEPS, 15)).astype("float32")
    (found,) = run_lowered(lowered(model), [given])
    np.testing.assert_allclose(found, model(given), atol=1e-5)
    (layer,) = recurrent_in(quantized(model, x=given))
    assert {"x_gates_offset", "x_candidate_offset"} <= set(layer.weight_quantizers)


def test_tokens_are_looked_up_before() -> None:
    x = keras.Input((STEPS,), dtype="int32")
    model = filled(keras.Model(x, layers.LSTM(4)(layers.Embedding(9, 3)(x))))
    tokens = np.random.default_rng(0).integers(0, 9, (8, STEPS)).astype("int32")
    (found,) = run_lowered(lowered(model), [tokens])
    np.testing.assert_allclose(found, model(tokens), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: layers.GRU(4, activation="softsign", name="it"), "its activation softsign has no integer kernel"),
        (lambda: layers.RNN([layers.GRUCell(4), layers.GRUCell(4)], name="it"), "StackedRNNCells"),
        (
            lambda: layers.Bidirectional(
                layers.GRU(4, go_backwards=True), backward_layer=layers.GRU(4, go_backwards=False), name="it"
            ),
            "its forward layer goes backwards",
        ),
    ],
)
def test_what_has_no_integer_form_is_named_with_the_reason(make, reason: str) -> None:
    x = keras.Input((STEPS, FEATURES))
    model = keras.Model(x, make()(x))
    (refusal,) = lower(model, specs(model)).refusals
    assert refusal.layer == "it"
    assert reason in refusal.reason


def test_images_in_a_row_and_layers_that_remember_are_refused() -> None:
    x = keras.Input((3, STEPS, FEATURES), batch_size=2)
    y = layers.TimeDistributed(layers.Bidirectional(layers.GRU(4)), name="each")(x)
    y = layers.GRU(4, stateful=True, name="remembers")(y)
    model = keras.Model(x, [y, layers.ConvLSTM1D(4, 2, name="convolves")(x)])
    reasons = {refusal.layer: refusal.reason for refusal in lower(model, specs(model)).refusals}
    assert "for each step of another sequence" in reasons["each"]
    assert "stateful" in reasons["remembers"]
    assert set(reasons) == {"each", "remembers", "convolves"}


@pytest.mark.parametrize(
    ("body", "shape", "dtype"),
    [
        (lambda x: layers.Embedding(9, 3, mask_zero=True, name="source")(x), (STEPS,), "int32"),
        (lambda x: layers.Masking(name="source")(x), (STEPS, FEATURES), "float32"),
    ],
)
def test_a_mask_is_refused_where_it_comes_from(body, shape, dtype) -> None:
    x = keras.Input(shape, dtype=dtype)
    model = keras.Model(x, layers.GRU(4)(body(x)))
    (refusal,) = lower(model, specs(model)).refusals
    assert (refusal.layer, "masks have no place" in refusal.reason) == ("source", True)


def test_two_directions_that_are_joined_have_one_scale() -> None:
    graph = quantized(network(lambda x: layers.Bidirectional(layers.GRU(4, return_sequences=True))(x)))
    forward, backward = recurrent_in(graph)
    assert backward.recurrent_layer.in_order
    assert forward.ranges["state_0"] == backward.ranges["state_0"]
    assert forward.ranges["gates_sum"] != backward.ranges["gates_sum"]
    graph.model(20 * rows(), training=True)
    assert forward.ranges["state_0"] == backward.ranges["state_0"]


def test_a_state_keeps_its_scale_whatever_its_output_is_joined_to() -> None:
    def body(x):
        return layers.Concatenate()([x, layers.GRU(4, return_sequences=True)(x)])

    graph = quantized(network(body), x=50 * rows())
    (gru,) = recurrent_in(graph)
    assert gru.ranges["state_0"][1] <= 1
    joined = np.asarray(graph.model(50 * rows(), training=False))
    low, high = joined.min(), joined.max()
    steps = joined / ((high - low) / 255)
    np.testing.assert_allclose(steps, np.round(steps), atol=0.1)


def test_what_a_layer_gives_twice_is_rounded_once() -> None:
    model = network(lambda x: layers.GRU(4, return_state=True)(x))
    assert [[node.kind for node in scale.nodes] for scale in assign_scales(lowered(model))] == [["input"], ["output"]]


def test_states_are_rounded_in_the_steps_of_the_file() -> None:
    for make in (lambda: layers.GRU(5, return_sequences=True), lambda: layers.SimpleRNN(5, return_sequences=True)):
        graph = quantized(network(lambda x, make=make: make()(x)))
        (layer,) = recurrent_in(graph)
        found = np.asarray(graph.model(rows(), training=False))
        scale = scale_of(*layer.ranges["state_0"], 8)
        integers = found / scale.step + scale.zero_point
        np.testing.assert_allclose(integers, np.round(integers), atol=1e-3)
        assert -128 <= integers.min() < integers.max() <= 127
    assert scale == fixed_scale("tanh", 8)


def test_ranges_hold_all_steps_and_zero() -> None:
    graph = quantized(network(lambda x: layers.LSTM(5)(x)))
    (layer,) = recurrent_in(graph)
    assert all(low <= 0 <= high and low < high for low, high in layer.ranges.values())
    assert {"x", "x_gates", "h_gates", "gates_sum", "state_0", "state_1", "kept", "new"} <= set(layer.ranges)
    assert layer.ranges["gates"] == (0.0, 255 / 256)
    assert layer.ranges["candidate"] == layer.ranges["carry"] == (-1.0, 127 / 128)
    low, high = layer.ranges["state_0"]
    assert -1 <= low < high <= 1


def test_a_step_of_training_moves_each_range_once() -> None:
    """By a thousandth of the way to the extremes of all time steps; predictions move none."""
    graph, x = quantized(network(lambda x: layers.SimpleRNN(5, activation="linear")(x))), rows()
    (layer,) = recurrent_in(graph)
    before = layer.ranges
    graph.model(10 * x, training=False)
    assert layer.ranges == before
    graph.model(x / 10, training=True)
    given = graph.model.layers[1](x / 10, training=False)
    moved = layer.ranges["x"][1] - before["x"][1]
    assert moved == pytest.approx((np.asarray(given).max() - before["x"][1]) / 1000, rel=1e-3)
    shrunk = [1 - after[1] / before[name][1] for name, after in layer.ranges.items()]
    assert max(shrunk) < 1e-3
    assert min(shrunk) > 0


def test_saturated_gates_are_rounded_as_in_the_file() -> None:
    """Sums beyond where a gate is open or closed anyway are cut, for finer steps."""
    graph = quantized(network(lambda x: layers.LSTM(5)(x)), x=100 * rows())
    (layer,) = recurrent_in(graph)
    assert layer.ranges["gates_sum"][1] > 50
    graph.settle()
    found = np.asarray(graph.model(100 * rows(), training=False))
    (wanted,) = run(layer.recurrent_layer, 100 * rows())
    assert np.abs(found - wanted).mean() < 0.02


def test_gradients_reach_all_weights() -> None:
    import tensorflow as tf

    graph = quantized(network(lambda x: LowRankLSTM(5, input_rank=2, recurrent_rank=2)(x)))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(graph.model(rows(), training=True)))
    gradients = tape.gradient(loss, graph.model.trainable_variables)
    assert len(gradients) == 8  # factors of x and of h, each with two products; two biases
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)


def test_frozen_layers_stay_frozen() -> None:
    model = network(lambda x: layers.Dense(3)(layers.GRU(4, trainable=False)(x)))
    assert {tuple(variable.shape) for variable in quantized(model).model.trainable_variables} == {(4, 3), (3,)}


def test_what_stands_in_for_a_layer_is_called_in_its_place() -> None:
    """As the converter does, which writes these layers itself."""
    import tensorflow as tf

    graph = quantized(network(lambda x: layers.GRU(4, return_sequences=True)(x)))
    (layer,) = recurrent_in(graph)
    ones = tf.ones((8, STEPS, 4))
    object.__setattr__(layer, "call", lambda _x, **_options: ones)
    np.testing.assert_array_equal(graph.model(rows(), training=False), ones)
    object.__delattr__(layer, "call")
    assert np.abs(graph.model(rows(), training=False)).max() < 1


@pytest.mark.parametrize("scheme", [QuantizationScheme.DYNAMIC, QuantizationScheme.INT4_WEIGHTS])
def test_where_activations_stay_float_only_weights_are_rounded(scheme: QuantizationScheme) -> None:
    graph, x = quantized(network(lambda x: layers.GRU(5)(x)), scheme), rows()
    graph.settle()
    (layer,) = recurrent_in(graph)
    assert layer.ranges is None
    rounded, plain = graph.model(x, training=False), graph.plain(x)
    assert 0 < np.abs(rounded - plain).max() < 0.5


def test_sixteen_bits_round_less_than_eight() -> None:
    model, x = network(lambda x: layers.GRU(5, return_sequences=True)(x)), rows()
    errors = []
    for scheme in (QuantizationScheme.INT8, QuantizationScheme.INT16X8, QuantizationScheme.DYNAMIC):
        graph = quantized(model, scheme)
        graph.settle()
        errors.append(float(np.abs(graph.model(x, training=False) - model(x)).mean()))
    assert errors[0] > 1.5 * errors[1]
    assert errors[1] == pytest.approx(errors[2], rel=0.05)


@pytest.fixture
def trained(digits_gru, digits):
    """A function that trains the digits of rows with rounding; returns the model, the result, and the test accuracy."""
    (x, y), (x_test, y_test) = digits.digits(as_rows=True)

    def train(change=lambda _model: None, *, epochs: int = 2, scheme=INT8, spec: Qat | None = None):
        model = keras.saving.load_model(digits_gru.model)
        change(model)
        source = load_model(model)
        data = load_data((x, y), source.inputs)
        context = PassContext(training=Training(epochs=epochs, learning_rate=1e-3), data=data)
        found, result = train_quantized(
            source, spec or Qat(), fixed=fix_shapes(source.inputs, data), scheme=scheme, context=context,
            recurrent=Granularity.PER_CHANNEL,
        )  # fmt: skip
        before, after = (
            float(np.mean(np.asarray(each(x_test, training=False)).argmax(-1) == y_test))
            for each in (model, found.model)
        )
        (layer,) = [layer for layer in found.model.layers if hasattr(layer, "recurrent_layer")]
        return layer, result, before, after

    return train


def test_training_changes_weights_and_keeps_the_accuracy(trained) -> None:
    kernels = []
    layer, result, before, after = trained(
        lambda model: kernels.append(np.asarray(model.layers[0].cell.recurrent_kernel))
    )
    assert after >= before - 0.01
    assert (layer.recurrent_layer.name, result.trained.kept_epoch) == ("gru", 2)
    assert result.plan[0].detail == "quantized as recurrent, output"
    learned = layer.recurrent_layer.matrices["h_candidate"].values
    assert 1e-4 < np.abs(learned - kernels[0][:, 128:]).max() < 0.5
    assert all(-1 <= low <= 0 <= high <= 1 for low, high in [layer.ranges["state_0"]])


def test_patterns_of_pruning_and_clustering_are_kept(trained) -> None:
    def compress(model) -> None:
        cell = model.layers[0].cell
        kernel = np.asarray(cell.recurrent_kernel)
        cell.recurrent_kernel.assign(np.where(np.abs(kernel) < np.median(np.abs(kernel)), 0, kernel))
        cell.kernel.assign(np.round(np.asarray(cell.kernel) * 4) / 4)

    layer, result, _, _ = trained(compress, epochs=1)
    matrices = layer.recurrent_layer.matrices
    zeros = [np.mean(matrices[name].values == 0) for name in ("h_gates", "h_candidate")]
    assert np.average(zeros, weights=(2, 1)) == pytest.approx(0.5, abs=0.01)
    assert len(np.unique(matrices["x_gates"].values)) <= 16
    assert [proof.layer for proof in result.proof] == ["gru"] * 4 + ["digit"]
    assert max(proof.distinct for proof in result.proof[:2]) <= 16
    loose, _, _, _ = trained(compress, epochs=1, spec=Qat(preserve_sparsity=False, preserve_clusters=False))
    assert np.mean(loose.recurrent_layer.matrices["h_gates"].values == 0) < 0.1


def test_for_other_schemes_a_float_model_comes_back(trained) -> None:
    layer, _, before, after = trained(epochs=1, scheme=QuantizationScheme.DYNAMIC)
    assert layer.ranges is None
    assert after >= before - 0.01
    x = rows()
    np.testing.assert_allclose(layer(x), run(layer.recurrent_layer, x)[0], atol=1e-5)
