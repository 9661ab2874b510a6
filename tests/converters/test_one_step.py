"""Which networks can be run one time step at a time: found out by running single steps beside the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.converters.one_step import OneStep, find_one_step
from edgecompress.data import Dataset, fix_shapes
from edgecompress.errors import ConversionError
from edgecompress.models import load_model

keras = pytest.importorskip("keras")
layers = keras.layers

STEPS, FEATURES, SAMPLES = 8, 6, 10


def find(model: Any, **more: np.ndarray) -> OneStep:
    """Looks at a model whose first input is 'x', a sequence of numbers."""
    rng = np.random.default_rng(0)
    samples = {"x": rng.normal(size=(SAMPLES, STEPS, FEATURES)).astype(np.float32), **more}
    source = load_model(model)
    dataset = Dataset({spec.name: samples[spec.name] for spec in source.inputs})
    return find_one_step(source, fix_shapes(source.inputs, dataset), dataset)


def stack(*body: Any) -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((STEPS, FEATURES), name="x"), *body])


def sequence() -> Any:
    keras.utils.set_random_seed(0)
    return keras.Input((STEPS, FEATURES), name="x")


def refusal(model: Any, **more: np.ndarray) -> str:
    with pytest.raises(ConversionError) as caught:
        find(model, **more)
    line = str(caught.value)
    assert "\n" not in line
    assert "use --recurrent loop" in line
    return line


# What is accepted


def test_a_layer_alone() -> None:
    assert find(stack(layers.GRU(4, name="y"))) == OneStep(("x",), ())
    assert find(stack(layers.LSTM(4, return_sequences=True, name="y"))) == OneStep(("x",), ("y",))


@pytest.mark.parametrize(
    "before",
    [
        layers.Dense(5, activation="relu"),
        layers.TimeDistributed(layers.Dense(5)),
        layers.LayerNormalization(),
        layers.Conv1D(5, 1),
        layers.Dropout(0.5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_look_at_a_step_at_a_time_may_come_before(before) -> None:
    assert find(stack(before, layers.GRU(4), layers.Dense(3, name="y"))) == OneStep(("x",), ())


def test_a_head_for_each_step() -> None:
    body = layers.GRU(4, return_sequences=True), layers.LSTM(5, return_sequences=True)
    assert find(stack(*body, layers.TimeDistributed(layers.Dense(3), name="y"))).outputs == ("y",)
    assert find(stack(*body, layers.Dense(3, activation="softmax", name="y"))).outputs == ("y",)


def test_a_head_for_the_last_step_of_a_stack() -> None:
    body = layers.SimpleRNN(4, return_sequences=True), layers.GRU(5)
    assert find(stack(*body, layers.Dense(3), layers.ReLU(), layers.Dense(2, name="y"))).outputs == ()


def test_the_last_step_taken_out_of_a_sequence() -> None:
    x = sequence()
    last = layers.GRU(4, return_sequences=True)(x)[:, -1]
    assert find(keras.Model(x, layers.Dense(3, name="y")(last))) == OneStep(("x",), ())


def test_words() -> None:
    words = keras.Input((STEPS,), dtype="int32", name="words")
    y = layers.Dense(2, name="y")(layers.GRU(4)(layers.Embedding(20, 3)(words)))
    ids = np.random.default_rng(0).integers(0, 20, (SAMPLES, STEPS)).astype(np.int32)
    assert find(keras.Model(words, y), words=ids) == OneStep(("words",), ())


def test_an_input_that_is_no_sequence_is_given_whole_at_each_step() -> None:
    x, user = sequence(), keras.Input((3,), name="user")
    y = layers.Dense(2, name="y")(layers.Concatenate()([layers.GRU(4)(x), user]))
    users = np.random.default_rng(1).normal(size=(SAMPLES, 3)).astype(np.float32)
    assert find(keras.Model([x, user], y), user=users) == OneStep(("x",), ())


def test_as_many_numbers_as_steps_are_no_sequence() -> None:
    x, user = sequence(), keras.Input((STEPS,), name="user")
    y = layers.Dense(2, name="y")(layers.Concatenate()([layers.GRU(4)(x), user]))
    users = np.random.default_rng(1).normal(size=(SAMPLES, STEPS)).astype(np.float32)
    assert find(keras.Model([x, user], y), user=users).inputs == ("x",)


def test_two_sequences_and_two_answers() -> None:
    x, other = sequence(), keras.Input((STEPS, 2), name="other")
    h = layers.GRU(4, return_sequences=True)(layers.Concatenate()([x, other]))
    model = keras.Model([x, other], [layers.Dense(3, name="each")(h), layers.Dense(2, name="last")(layers.GRU(5)(h))])
    others = np.random.default_rng(1).normal(size=(SAMPLES, STEPS, 2)).astype(np.float32)
    assert find(model, other=others) == OneStep(("x", "other"), ("each",))


def test_states_that_are_given_out() -> None:
    x = sequence()
    _, hidden, carry = layers.LSTM(4, return_state=True)(x)
    model = keras.Model(x, [layers.Dense(2, name="a")(hidden), layers.Dense(2, name="b")(carry)])
    assert find(model) == OneStep(("x",), ())


# What is refused

SEVERAL = "looks at several steps at once, such as a convolution or a pooling over time"


@pytest.mark.parametrize(
    "body",
    [
        (layers.Conv1D(5, 3, padding="same"), layers.GRU(4)),
        (layers.Conv1D(5, 3, padding="causal"), layers.GRU(4)),
        (layers.GRU(4, return_sequences=True), layers.GlobalAveragePooling1D()),
        (layers.GRU(4, return_sequences=True), layers.GlobalMaxPooling1D(), layers.Dense(2)),
        (layers.GRU(4, return_sequences=True), layers.Conv1D(3, 3, padding="same")),
    ],
    ids=["same", "causal", "average", "maximum", "behind"],
)
def test_what_looks_at_several_steps(body) -> None:
    assert SEVERAL in refusal(stack(*body))


def test_a_body_that_does_not_run_on_single_steps() -> None:
    body = layers.GRU(4, return_sequences=True), layers.Flatten(), layers.Dense(2)
    with pytest.raises(ConversionError, match=r"the model cannot be run step by step: .*received input with shape"):
        find(stack(*body))


def test_a_layer_that_reads_backwards() -> None:
    assert "a layer that reads backwards (last)" in refusal(stack(layers.GRU(4, go_backwards=True, name="last")))
    assert "reads backwards (" in refusal(stack(layers.Bidirectional(layers.GRU(4))))


def test_an_encoder_and_a_decoder() -> None:
    x, other = sequence(), keras.Input((5, 2), name="other")
    _, state = layers.GRU(4, return_state=True)(x)
    y = layers.GRU(4, return_sequences=True, name="decoder")(other, initial_state=state)
    others = np.zeros((SAMPLES, 5, 2), np.float32)
    line = refusal(keras.Model([x, other], y), other=others)
    assert "its recurrent layers run over sequences of different lengths (5, 8)" in line


def test_a_state_to_begin_with() -> None:
    x, state = sequence(), keras.Input((4,), name="state")
    model = keras.Model([x, state], layers.GRU(4, name="begun")(x, initial_state=state))
    line = refusal(model, state=np.zeros((SAMPLES, 4), np.float32))
    assert "a layer is given the state that it begins with (begun)" in line


@pytest.mark.parametrize(
    "body",
    [
        (layers.Conv1D(5, 3), layers.GRU(4, name="gru")),
        (layers.MaxPooling1D(2), layers.GRU(4, name="gru")),
        (layers.GRU(4), layers.RepeatVector(STEPS), layers.GRU(4, return_sequences=True, name="gru"), layers.Dense(2)),
    ],
    ids=["shortened", "joined", "repeated"],
)
def test_steps_that_are_not_those_of_an_input(body) -> None:
    assert "the steps of the recurrent layer 'gru' are not those of an input" in refusal(stack(*body))
