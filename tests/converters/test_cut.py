"""Recurrent layers cut out of networks: both parts together compute what the network does, which stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgecompress.artifacts import read_artifact
from edgecompress.converters.cut import (
    Cut,
    cut,
    has_loops,
    has_recurrent_layers,
    is_sequence,
    one_step_of,
)
from edgecompress.converters.recording import record
from edgecompress.converters.tflite import FrozenGraph
from edgecompress.data import Dataset, InputSpec, fix_shapes
from edgecompress.errors import ConversionError, InternalError
from edgecompress.layers import LowRankGRU
from edgecompress.loaded import LoadedModel
from edgecompress.models import load_model
from edgecompress.recurrent.observing import run
from tests.integer_files import finish, new_graph

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
tf_keras = pytest.importorskip("tf_keras")
layers = keras.layers

STEPS, FEATURES, UNITS, SAMPLES, WORDS = 6, 4, 3, 3, 20
Outer = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
BOTH = pytest.mark.parametrize("world", [keras, tf_keras], ids=["keras", "tf_keras"])


def sequence(name: str = "x", steps: int = STEPS, world: Any = keras) -> Any:
    return world.Input((steps, FEATURES), name=name)


def words() -> Any:
    return keras.Input((STEPS,), dtype="int32", name="words")


def stack(*body: Any, x: Any = None) -> Any:
    """Returns a network of layers one behind the other."""
    first = x = sequence() if x is None else x
    for layer in body:
        x = layer(x)
    return keras.Model(first, x)


def filled(model: Any) -> Any:
    random = np.random.default_rng(1)
    model.set_weights([random.normal(0, 0.4, weight.shape) for weight in model.get_weights()])
    return model


def samples_for(source: LoadedModel) -> dict[str, np.ndarray]:
    """Random numbers or words, with padding behind all but the last sample, and in front of the last."""
    random, found = np.random.default_rng(2), {}
    for spec in source.inputs:
        shape = (SAMPLES, *spec.sample_shape)
        x = random.normal(size=shape) if spec.dtype.startswith("float") else random.integers(1, WORDS, shape)
        if len(shape) > 1 and shape[1] == STEPS:
            x[0, -2:], x[1, -1:], x[2, :2] = 0, 0, 0
        found[spec.name] = x.astype(spec.dtype)
    return found


def prepare(model: Any) -> tuple[LoadedModel, tuple[InputSpec, ...], Dataset]:
    source = load_model(filled(model))
    samples = Dataset(samples_for(source))
    return source, fix_shapes(source.inputs, samples), samples


def cut_of(model: Any) -> Cut:
    return cut(*prepare(model)[:2])


def as_function(graph: FrozenGraph | None) -> Outer:
    if graph is None:
        return lambda _values: {}
    definition = tf.compat.v1.GraphDef.FromString(graph.graph_def)
    wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(definition, name=""), [])
    taken, given = (
        {name: wrapped.graph.as_graph_element(tensor) for name, tensor in names.items()}
        for names in (graph.inputs, graph.outputs)
    )
    function = wrapped.prune(list(taken.values()), given)

    def call(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = [tf.constant(values[name], like.dtype, like.shape) for name, like in taken.items()]
        return {name: result.numpy() for name, result in function(*tensors).items()}

    return call


def evaluate(found: Cut, inputs: Mapping[str, np.ndarray], outer: Outer) -> dict[str, np.ndarray]:
    """Runs one sample: what depends on what is found by running everything until nothing can change any more."""
    values = {spec.name: inputs[spec.name].reshape(spec.shape) for spec in found.inputs}
    for site in found.sites:
        values |= {name: np.zeros((1, site.layer.units), np.float32) for name in site.outputs}
        if site.layer.return_sequences:
            values[site.outputs[0]] = np.zeros((1, site.steps, site.layer.units), np.float32)
    values |= {mask.output: np.ones((1, found.sites[0].steps), bool) for mask in found.masks}
    sinks: dict[str, np.ndarray] = {}
    for _ in range(len(found.sites) + len(found.masks) + 1):
        sinks = {**outer(values), **{name: values[source] for name, source in found.links.items()}}
        for site in found.sites:
            x, *states = (sinks[name] for name in site.inputs)
            mask = None if site.mask is None else sinks[site.mask]
            values |= zip(site.outputs, run(site.layer, x, states, mask), strict=True)
        for mask in found.masks:
            values[mask.output] = (sinks[mask.input] != mask.value).any(-1)
    return {name: sinks[name] for name in found.outputs}


def check(model: Any) -> Cut:
    """Cuts a network, compares both parts together with it, and returns them."""
    source, fixed, samples = prepare(model)
    found = cut(source, fixed)
    expected = source.predict(samples.inputs, fixed=fixed)
    outer = as_function(found.outer)
    for place in range(SAMPLES):
        answers = evaluate(found, {name: array[place : place + 1] for name, array in samples.inputs.items()}, outer)
        assert answers.keys() == expected.keys()
        for name, array in answers.items():
            wanted = expected[name][place : place + 1]
            np.testing.assert_allclose(array, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))
    return found


def operations(graph: FrozenGraph | None) -> set[str]:
    return set() if graph is None else {node.op for node in tf.compat.v1.GraphDef.FromString(graph.graph_def).node}


# Networks


def translate() -> Any:
    """An encoder whose states a decoder begins with."""
    x, other = sequence(), sequence("other", 5)
    _, *states = layers.LSTM(UNITS, return_state=True)(x)
    return keras.Model(
        [x, other], layers.Dense(2)(layers.LSTM(UNITS, return_sequences=True)(other, initial_state=states))
    )


def shared() -> Any:
    x, other = sequence(), sequence("other")
    layer = layers.GRU(UNITS, name="shared")
    return keras.Model([x, other], layers.Dense(2)(layers.Concatenate()([layer(x), layer(other)])))


def nested() -> Any:
    inside = keras.Input((STEPS, FEATURES))
    inner = keras.Model(inside, layers.GRU(UNITS, return_sequences=True)(layers.Dense(FEATURES)(inside)))
    x = sequence()
    return keras.Model(x, layers.LSTM(UNITS)(inner(x)))


def each_way() -> Any:
    x = sequence()
    results = layers.Bidirectional(
        layers.LSTM(UNITS, return_sequences=True, return_state=True), merge_mode=None, name="both"
    )(x)
    return keras.Model(x, [layers.Dense(2)(each) for each in results])


def masked_decoder() -> Any:
    """Padding, a state to begin with and a sequence: before the first word there are zeros."""
    ids, state = words(), keras.Input((UNITS,), name="state")
    x = layers.Embedding(WORDS, FEATURES, mask_zero=True)(ids)
    return keras.Model([ids, state], layers.GRU(UNITS, return_sequences=True)(x, initial_state=state))


def masked_attention() -> Any:
    """The mask reaches other layers, too."""
    x = layers.Embedding(WORDS, FEATURES, mask_zero=True)(ids := words())
    y = layers.GRU(UNITS, return_sequences=True)(x)
    return keras.Model(ids, layers.GlobalAveragePooling1D()(y))


def two_masks() -> Any:
    x, other = sequence(), sequence("other")
    sums = [layers.LSTM(UNITS)(layers.Masking(value)(each)) for value, each in ((0.0, x), (0.5, other))]
    return keras.Model([x, other], layers.Dense(2)(layers.Add()(sums)))


NETWORKS: dict[str, Callable[[], Any]] = {
    "convolution": lambda: stack(
        layers.Conv1D(5, 3, padding="same", activation="relu"), layers.GRU(UNITS, return_sequences=True),
        layers.LSTM(UNITS), layers.Dense(2, activation="softmax"),
    ),
    "words": lambda: stack(layers.Embedding(WORDS, FEATURES), layers.GRU(UNITS), layers.Dense(2), x=words()),
    "each step": lambda: stack(
        layers.TimeDistributed(layers.Dense(5, activation="relu")), layers.GRU(UNITS, return_sequences=True),
        layers.TimeDistributed(layers.Dense(2)),
    ),
    "two ways": lambda: stack(
        layers.Bidirectional(layers.GRU(UNITS, return_sequences=True)), layers.Bidirectional(layers.LSTM(UNITS)),
    ),
    "two ways, summed": lambda: stack(
        layers.Bidirectional(layers.GRU(UNITS, return_sequences=True), merge_mode="sum"), layers.Dense(2)
    ),
    "two ways, averaged": lambda: stack(layers.Bidirectional(layers.GRU(UNITS), merge_mode="ave")),
    "two ways, multiplied": lambda: stack(layers.Bidirectional(layers.SimpleRNN(UNITS), merge_mode="mul")),
    "each way": each_way,
    "translation": translate,
    "shared": shared,
    "nested": nested,
    "repeated": lambda: stack(layers.GRU(UNITS), layers.RepeatVector(5), layers.GRU(UNITS, return_sequences=True)),
    "low rank": lambda: stack(layers.Dense(4), LowRankGRU(UNITS, input_rank=2, recurrent_rank=2)),
    "masked words": lambda: stack(
        layers.Embedding(WORDS, FEATURES, mask_zero=True), layers.GRU(UNITS, return_sequences=True),
        layers.LSTM(UNITS, go_backwards=True), x=words(),
    ),
    "masked numbers": lambda: stack(
        layers.Masking(0.0), layers.Bidirectional(layers.GRU(UNITS, return_sequences=True)), layers.LSTM(UNITS)
    ),
    "zeros": lambda: stack(
        layers.Masking(0.0),
        layers.RNN(layers.GRUCell(UNITS), return_sequences=True, zero_output_for_mask=True),
        layers.TimeDistributed(layers.Dense(2)),
    ),
    "masked decoder": masked_decoder,
    "masked attention": masked_attention,
    "two masks": two_masks,
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_both_parts_compute_what_the_network_does(name) -> None:
    found = check(NETWORKS[name]())
    assert not operations(found.outer) & {"While", "StatelessWhile", "TensorListReserve", "If"}


@BOTH
def test_networks_of_either_keras(world) -> None:
    x = sequence(world=world)
    y = world.layers.Masking(0.0)(x)
    y = world.layers.Bidirectional(world.layers.LSTM(UNITS, return_sequences=True))(y)
    y = world.layers.TimeDistributed(world.layers.Dense(5, activation="relu"))(y)
    _, state = world.layers.GRU(UNITS, return_state=True)(y)
    y = world.layers.GRU(UNITS, reset_after=False)(y, initial_state=[state])
    found = check(world.Model(x, world.layers.Dense(2)(y)))
    assert [site.layer.kind for site in found.sites] == ["lstm", "lstm", "gru", "gru"]


def test_a_network_in_16_bits_is_cut_in_32() -> None:
    half = {"dtype": "mixed_float16"}
    found = cut_of(stack(layers.Dense(4, **half), layers.GRU(UNITS, **half), layers.Dense(2, **half)))
    nodes = tf.compat.v1.GraphDef.FromString(found.outer.graph_def).node
    types = {node.attr[name].type for node in nodes for name in ("T", "dtype")}
    assert tf.float32.as_datatype_enum in types
    assert tf.float16.as_datatype_enum not in types


# Parts


def test_nothing_is_left_of_layers_alone() -> None:
    model = stack(layers.GRU(UNITS, return_sequences=True, name="one"), layers.LSTM(UNITS, name="two"))
    found = cut_of(model)
    one, two = found.sites
    assert found.outer is None
    assert found.masks == ()
    assert (one.layer.name, one.steps, one.ranges, one.mask) == ("one", STEPS, None, None)
    assert found.links == {
        one.inputs[0]: "x", two.inputs[0]: one.outputs[0], found.outputs[0]: two.outputs[0]
    }  # fmt: skip
    assert len({*one.inputs, *one.outputs, *two.inputs, *two.outputs}) == 4


def test_the_rest_takes_what_layers_give_and_gives_what_they_take() -> None:
    found = cut_of(stack(layers.Dense(FEATURES), layers.GRU(UNITS), layers.Dense(2, name="answer")))
    (site,) = found.sites
    assert list(found.outer.inputs) == ["x", site.outputs[0]]
    assert set(found.outer.outputs) == {site.inputs[0], *found.outputs}
    assert found.links == {}


def test_the_rest_has_no_inputs_that_it_does_not_need() -> None:
    found = cut_of(stack(layers.GRU(UNITS), layers.Dense(2)))
    (site,) = found.sites
    assert list(found.outer.inputs) == list(site.outputs)
    assert found.links == {site.inputs[0]: "x"}


def test_a_layer_that_is_called_twice_is_two_sites() -> None:
    one, two = cut_of(shared()).sites
    assert one.layer.name == two.layer.name == "shared"
    assert {*one.inputs, *one.outputs}.isdisjoint({*two.inputs, *two.outputs})


def test_states_that_a_layer_begins_with_are_inputs() -> None:
    encoder, decoder = cut_of(translate()).sites
    assert (len(encoder.inputs), len(encoder.outputs), encoder.steps) == (1, 3, STEPS)
    assert (len(decoder.inputs), len(decoder.outputs), decoder.steps) == (3, 1, 5)


def test_two_ways_are_two_sites_one_of_which_reads_backwards() -> None:
    forward, backward, *_ = cut_of(NETWORKS["two ways"]()).sites
    assert (forward.layer.go_backwards, forward.layer.in_order) == (False, False)
    assert (backward.layer.go_backwards, backward.layer.in_order) == (True, True)


def test_masks_are_found_apart() -> None:
    found = cut_of(two_masks())
    assert {mask.value: found.links[mask.input] for mask in found.masks} == {0.0: "x", 0.5: "other"}
    assert {found.links[site.mask] for site in found.sites} == {mask.output for mask in found.masks}
    assert {"NotEqual", "Equal"}.isdisjoint(operations(found.outer))


def test_all_layers_behind_a_mask_take_the_same_one() -> None:
    found = cut_of(NETWORKS["masked numbers"]())
    (mask,) = found.masks
    assert [found.links[site.mask] for site in found.sites] == [mask.output] * 3
    assert "NotEqual" not in operations(found.outer)


def test_a_mask_that_is_given_is_taken() -> None:
    x, own = sequence(), keras.Input((STEPS,), dtype="bool", name="own")
    found = cut_of(keras.Model([x, own], layers.GRU(UNITS)(layers.Masking(0.0)(x), mask=own)))
    assert found.links[found.sites[0].mask] == "own"


@pytest.mark.parametrize("kind", ["functional", "sequential", "tf_keras"])
def test_a_mask_is_found_once_however_often_a_model_computes_it(kind) -> None:
    """Models of Keras 3 have operations for it besides the layer."""
    world = tf_keras if kind == "tf_keras" else keras
    body = [world.layers.Masking(-1.0), world.layers.GRU(UNITS, return_sequences=True), world.layers.LSTM(UNITS)]
    if kind == "sequential":
        model = keras.Sequential([sequence(), *body])
    else:
        first = x = sequence(world=world)
        for layer in body:
            x = layer(x)
        model = world.Model(first, x)
    found = cut_of(model)
    (mask,) = found.masks
    assert (mask.value, found.links[mask.input]) == (-1.0, found.inputs[0].name)
    assert {found.links[site.mask] for site in found.sites} == {mask.output}
    assert operations(found.outer).isdisjoint({"NotEqual", "Any"})


def test_masks_of_words_are_left_to_the_graph() -> None:
    found = cut_of(NETWORKS["masked words"]())
    masks = {site.mask for site in found.sites}
    assert found.masks == ()
    assert None not in masks
    assert masks & set(found.outer.outputs)


def test_words_are_looked_up_without_a_look_for_negative_numbers() -> None:
    assert operations(cut_of(NETWORKS["words"]()).outer).isdisjoint({"Less", "AddV2", "SelectV2", "Select", "While"})


def test_layers_for_each_step_take_all_steps_at_once() -> None:
    model = stack(layers.GRU(UNITS, return_sequences=True), layers.TimeDistributed(layers.Dense(2)))
    graph = tf.compat.v1.GraphDef.FromString(cut_of(model).outer.graph_def)
    assert sum(node.op in {"MatMul", "BatchMatMulV2"} for node in graph.node) == 1


def test_trained_ranges_are_told_to_the_converter() -> None:
    ranges = {"state_0": (-0.5, 0.75), "x": (-1.0, 1.0)}
    model = filled(stack(layers.GRU(UNITS, name="gru"), layers.Dense(2)))
    source = load_model(model)
    model.get_layer("gru").ranges = ranges
    found = cut(source, fix_shapes(source.inputs, Dataset(samples_for(source))))
    assert dict(found.sites[0].ranges) == ranges
    graph = tf.compat.v1.GraphDef.FromString(found.outer.graph_def)
    assert [node.op for node in graph.node].count("FakeQuantWithMinMaxVars") == 1


# One step


def test_one_step() -> None:
    source, fixed, _ = prepare(NETWORKS["convolution"]())
    found = cut(source, fixed, one_step=True)
    assert found.inputs[0].shape == (1, 1, FEATURES)
    assert [site.steps for site in found.sites] == [1, 1]


def test_sequences_among_inputs() -> None:
    specs = [
        InputSpec("numbers", (1, STEPS, FEATURES), "float32"), InputSpec("words", (1, STEPS), "int32"),
        InputSpec("user", (1, STEPS), "float32"), InputSpec("other", (1, 5, FEATURES), "float32"),
        InputSpec("images", (1, STEPS, 4, 4, 1), "uint8"),
    ]  # fmt: skip
    assert [is_sequence(spec, STEPS) for spec in specs] == [True, True, False, False, True]
    assert [spec.shape[1] for spec in one_step_of(specs, STEPS)] == [1, 1, STEPS, 5, 1]


# What layers took and gave


def test_what_layers_took_and_gave_is_recorded() -> None:
    model = NETWORKS["masked words"]()
    source, fixed, _ = prepare(model)
    ids = np.random.default_rng(3).integers(0, WORDS, (37, STEPS)).astype(np.int32)  # no whole number of batches
    found = cut(source, fixed)
    seen = record(source, fixed, Dataset({"words": ids}), found)
    first, second = found.sites
    _, embedding, gru, _ = model.layers
    mask = ids != 0
    x = np.asarray(embedding(ids))
    expected = {
        first.mask: mask, second.mask: mask, first.inputs[0]: x,
        first.outputs[0]: np.asarray(gru(x, mask=keras.ops.convert_to_tensor(mask))),
        second.outputs[0]: model.predict(ids, verbose=0),
    }  # fmt: skip
    assert set(seen) == {*expected, second.inputs[0]}
    for name, array in expected.items():
        np.testing.assert_allclose(seen[name], array, atol=1e-5)


def test_masks_and_the_turned_sequence_are_recorded() -> None:
    source, fixed, samples = prepare(NETWORKS["masked numbers"]())
    found = cut(source, fixed)
    seen = record(source, fixed, samples, found)
    (mask,) = found.masks
    np.testing.assert_array_equal(seen[mask.output], (samples.inputs["x"] != 0).any(-1))
    backward = found.sites[1]
    x = seen[backward.inputs[0]]
    turned = run(replace(backward.layer, in_order=False), x, mask=seen[backward.mask])[0]
    np.testing.assert_allclose(seen[backward.outputs[0]], turned[:, ::-1], atol=1e-5)


def test_a_model_of_a_fixed_batch_is_recorded() -> None:
    x = keras.Input(batch_shape=(2, STEPS, FEATURES), name="x")
    source, _, samples = prepare(keras.Model(x, layers.GRU(UNITS)(x)))
    fixed = [InputSpec("x", (1, STEPS, FEATURES), "float32")]
    found = cut(source, fixed)
    seen = record(source, fixed, samples, found)
    assert seen[found.sites[0].outputs[0]].shape == (SAMPLES, UNITS)


def test_a_layer_that_was_read_wrongly_is_found_out() -> None:
    source, fixed, samples = prepare(stack(layers.GRU(UNITS, name="gru")))
    found = cut(source, fixed)
    wrong = replace(found.sites[0], layer=replace(found.sites[0].layer, reset_after=False))
    with pytest.raises(InternalError, match="layer 'gru' written in integer operations differs by"):
        record(source, fixed, samples, replace(found, sites=(wrong,)))


# The model afterwards


def test_layers_have_their_own_call_again() -> None:
    model = NETWORKS["masked numbers"]()
    source, fixed, samples = prepare(model)
    before = model.predict(samples.inputs["x"], verbose=0)
    record(source, fixed, samples, cut(source, fixed))
    assert not any("call" in vars(layer) for layer in model._flatten_layers())
    np.testing.assert_array_equal(model.predict(samples.inputs["x"], verbose=0), before)


# What is refused


def refusal(model: Any) -> str:
    source, fixed, _ = prepare(model)
    with pytest.raises(ConversionError) as caught:
        cut(source, fixed)
    assert not any("call" in vars(layer) for layer in model._flatten_layers())
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 500
    return line


@BOTH
def test_activations_without_an_integer_kernel(world) -> None:
    x = sequence(world=world)
    line = refusal(world.Model(x, world.layers.GRU(UNITS, activation="elu", name="odd")(x)))
    assert "recurrent layer 'odd' (GRU) has no integer form: its activation elu has no integer kernel" in line
    assert "use one of tanh" in line


def test_an_inner_layer_of_two_ways() -> None:
    line = refusal(stack(layers.Bidirectional(layers.LSTM(UNITS, activation="elu", name="odd"))))
    assert "_odd' (LSTM) has no integer form" in line


def test_layers_inside_of_other_dimensions() -> None:
    x = keras.Input((2, STEPS, FEATURES), name="x")
    line = refusal(keras.Model(x, layers.TimeDistributed(layers.GRU(UNITS, name="inside"))(x)))
    assert f"it is called on (2, {STEPS}, {FEATURES}), and only (1, steps, features)" in line
    line = refusal(stack(layers.ConvLSTM1D(2, 1), x=keras.Input((STEPS, 3, FEATURES), name="x")))
    assert "nothing is known of how its cell ConvLSTMCell computes" in line


def test_cells_on_cells() -> None:
    assert "StackedRNNCells" in refusal(stack(layers.RNN([layers.GRUCell(2), layers.GRUCell(3)])))


def test_a_forward_layer_that_reads_backwards() -> None:
    layer = layers.Bidirectional(
        layers.GRU(UNITS, go_backwards=True), backward_layer=layers.GRU(UNITS, name="back"), name="both"
    )
    line = refusal(stack(layer))
    assert "recurrent layer 'both' (Bidirectional) has no integer form: its forward layer reads backwards" in line


def test_masks_by_a_comparison_of_numbers_that_will_be_rounded() -> None:
    x = sequence()
    mask = keras.ops.any(keras.ops.greater(x, 0.0), axis=-1)
    line = refusal(keras.Model(x, layers.GRU(UNITS, name="gru")(x, mask=mask)))
    assert "recurrent layer 'gru' (GRU) has no integer form: its mask compares numbers that will be rounded" in line


def test_masks_without_a_form() -> None:
    layer = layers.RNN(layers.GRUCell(UNITS), zero_output_for_mask=True, name="gru")
    assert "zero_output_for_mask without return_sequences" in refusal(stack(layers.Masking(), layer))
    x = keras.Input((2, STEPS, FEATURES), name="x")
    inside = keras.Sequential([keras.Input((STEPS, FEATURES)), layers.Masking(), layers.GRU(UNITS)])
    assert "called on (2, 6, 4)" in refusal(keras.Model(x, layers.TimeDistributed(inside)(x)))


# What has recurrent layers, and what has loops


def test_which_models_have_recurrent_layers() -> None:
    def answer(model: Any) -> bool:
        return has_recurrent_layers(load_model(model))

    assert answer(stack(layers.GRU(UNITS)))
    assert answer(stack(layers.Bidirectional(layers.LSTM(UNITS))))
    assert answer(nested())
    assert not answer(stack(layers.TimeDistributed(layers.Dense(2)), layers.Flatten()))


def test_which_files_have_loops(tmp_path) -> None:
    graph = new_graph()
    index = graph.tensor("index", (1,), "int32")
    condition, body = (graph.file.new_graph(name) for name in ("condition", "body"))
    condition.take_inputs([index])
    body.give_outputs(body.take_inputs([index]))
    result, goes_on = graph.tensor("last", (1,), "int32"), condition.tensor("goes_on", (1,), "bool")
    condition.operator("LESS", [index, condition.constant("limit", np.ones(1, np.int32))], [goes_on], {})
    condition.give_outputs([goes_on])
    graph.operator("WHILE", [index], [result], {"condSubgraphIndex": 1, "bodySubgraphIndex": 2})
    looped, straight = tmp_path / "looped.tflite", tmp_path / "straight.tflite"
    looped.write_bytes(finish(graph, [index], [result]))
    other = new_graph()
    x = other.tensor("x", (1, 4), "float32")
    straight.write_bytes(finish(other, [x], [x]))
    assert has_loops(read_artifact(looped))
    assert not has_loops(read_artifact(straight))
