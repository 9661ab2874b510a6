"""A model that also returns what its layers give computes the same as before, and leaves the model as it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from edgecompress.distill import AttentionMatrices, Distiller, HiddenStates
from edgecompress.distill.watching import Point, watch
from edgecompress.errors import ModelError, UsageError
from edgecompress.layers import LowRankGRU, LowRankLSTM

SEQUENCES = np.random.default_rng(0).normal(size=(3, 7, 4)).astype(np.float32)
SEQUENCES[0, 5:] = SEQUENCES[1, :2] = 0  # what Masking leaves out
KEPT = np.any(SEQUENCES != 0, axis=-1)


def mlp():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, name="dense"), layers.BatchNormalization(name="norm")], name="inner"
    )
    outer = keras.Sequential([keras.Input((4,)), inner, layers.Dense(3, name="last")], name="outer")
    x = keras.Input((4,), name="x")
    return keras.Model(x, layers.Dense(2, name="top")(outer(layers.Dense(4, name="first")(x), training=False)))


def sequence_model(layer, *, masked=False, top=None):
    x = keras.Input((7, 4))
    return keras.Model(x, (top or layers.Dense(3, name="top"))(layer(layers.Masking()(x) if masked else x)))


def assert_same_answers(model, watched, x, **options):
    expected, found = model(x, **options), watched(x, **options)["answers"]
    keras.tree.map_structure(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), expected, found)


def points_of(model, points, x=SEQUENCES):
    watched = watch(model, points, who="student")
    assert_same_answers(model, watched, x)
    return watched(x)["points"]


class TestLayers:
    def test_outputs_of_layers_at_every_depth(self):
        model, x = mlp(), SEQUENCES[:, 0]
        names = ["first", "outer", "outer/inner", "outer/inner/dense", "outer/last", "top"]
        found = dict(zip(names, points_of(model, [Point(name) for name in names], x), strict=True))
        first, outer = model.get_layer("first"), model.get_layer("outer")
        inner = outer.get_layer("inner")
        np.testing.assert_allclose(found["first"], first(x), atol=1e-6)
        np.testing.assert_allclose(found["outer/inner/dense"], inner.layers[0](first(x)), atol=1e-6)
        np.testing.assert_allclose(found["outer/inner"], inner(first(x)), atol=1e-6)
        np.testing.assert_allclose(found["outer"], outer(first(x)), atol=1e-6)
        np.testing.assert_allclose(found["top"], model(x), atol=1e-6)

    @pytest.mark.parametrize("point", ["outer/inner/dense", "outer/inner/norm", "outer", "top"])
    @pytest.mark.parametrize("training", [None, False, True])
    def test_layers_of_nested_models_are_in_the_mode_that_the_model_has_them_in(self, point, training):
        x = SEQUENCES[:, 0]
        models = mlp(), mlp()
        models[1].set_weights(models[0].get_weights())
        watched = watch(models[1], [Point(point)], who="student")
        expected, found = models[0](x, training=training), watched(x, training=training)["answers"]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        for one, other in zip(*(model.weights for model in models), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)

    def test_a_frozen_normalization_stays_in_inference_mode(self):
        model = mlp()
        model.get_layer("outer").get_layer("inner").get_layer("norm").trainable = False
        before = model.get_weights()
        watched = watch(model, [Point("outer/inner/dense")], who="student")
        watched(SEQUENCES[:, 0], training=True)
        for one, other in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_several_inputs_and_outputs_in_dicts(self):
        a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
        pair = keras.Model([b, a], layers.Subtract(name="minus")([b, a]), name="pair")
        hidden = layers.Dense(5, name="hidden")(pair([a, layers.Dense(4)(b)]))
        outputs = {"z": layers.Dense(2)(hidden), "y": [layers.Dense(3)(hidden), hidden]}
        x = {"a": SEQUENCES[:, 0], "b": SEQUENCES[:, 1]}
        model = keras.Model({"b": b, "a": a}, outputs)
        seen, hidden = points_of(model, [Point("pair/minus"), Point("hidden")], x)
        np.testing.assert_array_equal(hidden, model(x)["y"][1])
        assert seen.shape == (3, 4)

    def test_a_subclassed_model(self):
        class Own(keras.Model):
            def __init__(self):
                super().__init__()
                self.one, self.two = layers.Dense(5, name="one"), layers.Dense(2, name="two")

            def call(self, x):
                return self.two(self.one(x))

        model = Own()
        model(SEQUENCES[:, 0])
        (seen,) = points_of(model, [Point("one")], SEQUENCES[:, 0])
        np.testing.assert_allclose(seen, model.one(SEQUENCES[:, 0]), atol=1e-6)
        with pytest.raises(ModelError, match="no fixed inputs"):
            watch(Own(), [Point("one")], who="student")

    def test_layers_that_are_called_twice_are_refused(self):
        x, dense = keras.Input((4,)), layers.Dense(4, name="dense")
        with pytest.raises(UsageError, match=r"^layer 'dense': the teacher calls it 2 times; .* that is called once$"):
            watch(keras.Model(x, dense(dense(x))), [Point("dense")], who="teacher")

    @pytest.mark.parametrize(
        ("name", "fix"),
        [
            ("outer/inner/dens", "did you mean outer/inner/dense"),
            ("outer/inner/norm2", "did you mean outer/inner/norm"),
            ("qqq", "among them are outer/inner/norm, outer/last, top"),
            ("x", "among them are"),
        ],
    )
    def test_of_an_unknown_layer_it_says_which_there_are(self, name, fix):
        text = rf"^layer '{name}': the student has no layer of this name; expected .* called once. Fix: {fix}"
        with pytest.raises(UsageError, match=text):
            watch(mlp(), [Point(name)], who="student")

    def test_a_layer_with_two_outputs_is_refused(self):
        model = sequence_model(layers.GRU(5, return_state=True, name="gru"), top=layers.Concatenate())
        with pytest.raises(UsageError, match=r"^layer 'gru': a layer of the student has 2 outputs"):
            watch(model, [Point("gru")], who="student")


RECURRENT = {
    "GRU": lambda **options: layers.GRU(5, **options),
    "LSTM": lambda **options: layers.LSTM(5, **options),
    "SimpleRNN": lambda **options: layers.SimpleRNN(5, **options),
    "cell": lambda **options: layers.RNN(layers.GRUCell(5), **options),
    "cells": lambda **options: layers.RNN([layers.GRUCell(4), layers.LSTMCell(5)], **options),
    "low rank GRU": lambda **options: LowRankGRU(5, input_rank=2, recurrent_rank=3, **options),
    "low rank LSTM": lambda **options: LowRankLSTM(5, recurrent_rank=2, **options),
    "dropout": lambda **options: layers.GRU(5, dropout=0.5, recurrent_dropout=0.5, **options),
    "backwards": lambda **options: layers.GRU(5, go_backwards=True, **options),
    "unrolled": lambda **options: layers.GRU(5, unroll=True, **options),
    "zero if masked": lambda **options: layers.LSTM(5, zero_output_for_mask=True, **options),
    "16 bits": lambda **options: layers.GRU(5, dtype="mixed_float16", **options),
}


class TestHiddenStates:
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("kind", RECURRENT)
    def test_states_after_each_step_of_layers_that_return_the_last(self, kind, masked):
        layer = RECURRENT[kind](name="layer")
        model = sequence_model(layer, masked=masked)
        states, last = points_of(model, [Point("layer", "sequence"), Point("layer")])
        whole = RECURRENT[kind](return_sequences=True)
        twin = sequence_model(whole, masked=masked)
        whole.set_weights(layer.get_weights())
        np.testing.assert_allclose(states, keras.Model(twin.inputs[0], whole.output)(SEQUENCES), atol=1e-6)
        np.testing.assert_allclose(last, keras.Model(model.inputs[0], layer.output)(SEQUENCES), atol=1e-6)
        assert (states.dtype, last.dtype) == (layer.compute_dtype, layer.compute_dtype)

    @pytest.mark.parametrize("kind", RECURRENT)
    def test_of_layers_that_return_sequences_it_is_their_output(self, kind):
        model = sequence_model(RECURRENT[kind](return_sequences=True, name="layer"), masked=True)
        states, output = points_of(model, [Point("layer", "sequence"), Point("layer")])
        np.testing.assert_array_equal(states, output)

    @pytest.mark.parametrize(
        "layer",
        [
            layers.Bidirectional(layers.GRU(5, return_sequences=True), name="layer"),
            layers.Dense(5, name="layer"),
            layers.Conv1D(5, 3, name="layer"),
        ],
        ids=["bidirectional", "dense", "conv"],
    )
    def test_other_layers_count_by_their_output(self, layer):
        states, output = points_of(sequence_model(layer), [Point("layer", "sequence"), Point("layer")])
        np.testing.assert_array_equal(states, output)

    @pytest.mark.parametrize(
        ("layer", "text"),
        [
            (layers.Bidirectional(layers.GRU(5), name="layer"), "does not return its hidden states .* Bidirectional"),
            (layers.GlobalMaxPooling1D(name="layer"), "does not return its hidden states as a sequence"),
            (layers.GRU(5, return_state=True, name="layer"), "does not return its hidden states as a sequence"),
            (
                layers.GRU(5, activity_regularizer="l2", name="layer"),
                "has an activity regularizer, and returns its last state only; .* Fix: let it return sequences",
            ),
        ],
    )
    def test_what_has_no_states_to_be_seen_is_refused(self, layer, text):
        model = sequence_model(layer, top=layers.Concatenate() if getattr(layer, "return_state", False) else None)
        with pytest.raises(UsageError, match=f"^layer 'layer': a layer of the student {text}"):
            watch(model, [Point("layer", "sequence")], who="student")

    def test_a_layer_that_keeps_its_state_is_refused(self):
        x = keras.Input(batch_shape=(3, 7, 4))
        model = keras.Model(x, layers.LSTM(5, stateful=True, name="layer")(x))
        with pytest.raises(UsageError, match="a layer of the teacher is stateful, and returns its last state only"):
            watch(model, [Point("layer", "sequence")], who="teacher")

    def test_an_initial_state_and_a_nested_model(self):
        inner = sequence_model(layers.GRU(5, name="gru"), masked=True)
        inner.name = "inner"
        x = keras.Input((7, 4))
        model = keras.Model(x, layers.GRU(3, name="second")(x, initial_state=inner(x)))
        inside, second = points_of(model, [Point("inner/gru", "sequence"), Point("second", "sequence")])
        assert (inside.shape, second.shape) == ((3, 7, 5), (3, 7, 3))


def attention_model(*, masked=True, **options):
    x = keras.Input((7, 4))
    steps = layers.Masking()(x) if masked else x
    attended = layers.MultiHeadAttention(2, 3, name="attention")(steps, steps, **options)
    return keras.Model(x, layers.Dense(3, name="top")(attended))


class TestAttention:
    @pytest.mark.parametrize("causal", [False, True])
    def test_scores_are_the_layers_own(self, causal):
        model = attention_model(masked=False, use_causal_mask=causal)
        scores, output = points_of(model, [Point("attention", "attention"), Point("attention")])
        layer = model.get_layer("attention")
        expected = layer(SEQUENCES, SEQUENCES, return_attention_scores=True, use_causal_mask=causal)
        np.testing.assert_allclose(output, expected[0], atol=1e-6)
        np.testing.assert_allclose(scores, expected[1], atol=1e-6)
        np.testing.assert_allclose(scores.numpy().sum(axis=-1), 1, atol=1e-6)

    def test_masks_count(self):
        model = attention_model()
        watched = watch(model, [Point("attention", "attention")], who="student")
        found = watched(SEQUENCES)
        scores = found["points"][0].numpy()
        assert not scores[0, :, :, 5:].any()
        assert not scores[1, :, :2].any()
        np.testing.assert_allclose(scores.sum(axis=-1), KEPT[:, None] * np.ones((3, 2, 7)), atol=1e-6)
        np.testing.assert_allclose(found["answers"][KEPT], model(SEQUENCES)[KEPT], atol=1e-6)
        np.testing.assert_array_equal(found["answers"]._keras_mask, KEPT)

    def test_attention_of_one_sequence_to_another(self):
        x = keras.Input((7, 4))
        few = layers.AveragePooling1D(3)(x)
        model = keras.Model(x, layers.MultiHeadAttention(2, 3, name="attention")(x, few, few))
        watched = watch(model, [Point("attention", "attention")], who="student")
        assert watched.output["points"][0].shape == (None, 2, 7, 2)
        assert_same_answers(model, watched, SEQUENCES)
        assert watched(SEQUENCES)["points"][0].shape == (3, 2, 7, 2)

    def test_a_model_that_uses_the_scores_itself(self):
        x = keras.Input((7, 4))
        output, scores = layers.MultiHeadAttention(2, 3, name="attention")(x, x, return_attention_scores=True)
        model = keras.Model(x, [output, scores])
        (seen,) = points_of(model, [Point("attention", "attention")])
        np.testing.assert_array_equal(seen, model(SEQUENCES)[1])

    def test_other_layers_are_refused(self):
        with pytest.raises(UsageError, match="'layer': a layer of the student has no attention scores; received GRU"):
            watch(sequence_model(layers.GRU(5, name="layer")), [Point("layer", "attention")], who="student")
        x = keras.Input((7, 4))
        model = keras.Model(x, layers.MultiHeadAttention(2, 3, flash_attention=True, name="layer")(x, x))
        with pytest.raises(UsageError, match=r"never has its attention scores in memory .* flash_attention=False"):
            watch(model, [Point("layer", "attention")], who="student")


EVERYTHING = {
    "mlp": (mlp, [Point("outer/inner/dense"), Point("first")], SEQUENCES[:, 0]),
    "states": (
        lambda: sequence_model(layers.GRU(5, dropout=0.2, name="gru"), masked=True),
        [Point("gru", "sequence")],
        SEQUENCES,
    ),
    "scores": (attention_model, [Point("attention", "attention"), Point("top")], SEQUENCES),
}


@pytest.mark.parametrize("case", EVERYTHING)
class TestSideEffects:
    def test_weights_are_shared(self, case):
        make, points, x = EVERYTHING[case]
        model = make()
        watched = watch(model, points, who="student")
        before = watched(x)["answers"].numpy()
        model.set_weights([weight + 0.5 for weight in model.get_weights()])
        assert np.abs(watched(x)["answers"] - before).max() > 0.01
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_sum(value**2) for value in keras.tree.flatten(watched(x)))
        assert all(gradient is not None for gradient in tape.gradient(loss, model.trainable_variables))

    def test_the_model_can_be_saved_cloned_and_shown_as_before(self, case, tmp_path):
        make, points, x = EVERYTHING[case]
        model = make()
        lines = []
        model.summary(print_fn=lines.append)
        count, config = len(model.weights), model.get_config()
        expected = model(x)
        watch(model, points, who="student")(x, training=True)
        model.set_weights(again := model.get_weights())
        assert (len(model.weights), model.get_config()) == (count, config)
        shown = []
        model.summary(print_fn=shown.append)
        assert shown == lines
        model.save(tmp_path / "model.keras")
        loaded, clone = keras.saving.load_model(tmp_path / "model.keras"), keras.models.clone_model(model)
        clone.set_weights(again)
        for one in (loaded, clone):
            np.testing.assert_allclose(one(x), model(x), atol=1e-6)
        if case != "mlp":  # whose normalization has seen something
            np.testing.assert_allclose(model(x), expected, atol=1e-6)

    def test_it_can_be_watched_again(self, case):
        make, points, x = EVERYTHING[case]
        model = make()
        first, second = (watch(model, points, who="student")(x)["points"] for _ in range(2))
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, other)


def test_answers_and_points_keep_their_masks():
    x = keras.Input((6,), dtype="int32")
    states = layers.GRU(5, return_sequences=True, name="gru")(layers.Embedding(9, 4, mask_zero=True)(x))
    model = keras.Model(x, layers.Dense(3, name="top")(states))
    watched = watch(model, [Point("gru"), Point("gru", "sequence"), Point("top")], who="student")
    tokens = np.array([[1, 2, 3, 0, 0, 0], [0, 0, 4, 5, 6, 7]])

    @tf.function
    def masks(tokens):
        return [tensor._keras_mask for tensor in keras.tree.flatten(watched(tokens))]

    for found in (*masks(tokens), model(tokens)._keras_mask):
        np.testing.assert_array_equal(found, tokens != 0)


@pytest.mark.parametrize("term", [HiddenStates("layer", "layer"), AttentionMatrices("layer", "layer")])
def test_a_distiller_honours_masks_also_where_it_watches(term):
    """What is in steps that a mask leaves out changes no loss."""

    def model(seed):
        keras.utils.set_random_seed(seed)
        x = keras.Input((7,), dtype="int32")
        steps = layers.Embedding(9, 4, mask_zero=True, name="tokens")(x)
        if isinstance(term, AttentionMatrices):
            steps = layers.MultiHeadAttention(2, 3, name="layer")(steps, steps)
        else:
            steps = layers.GRU(5, return_sequences=True, name="layer")(steps)
        return keras.Model(x, layers.Dense(3, activation="softmax", name="top")(steps))

    tokens = np.array([[1, 2, 3, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1]])
    figures = []
    for shift in (0.0, 5.0):
        student, teacher = model(0), model(1)
        for one in (student, teacher):
            table = one.get_layer("tokens").embeddings
            table.assign(table + shift * np.eye(9, 1, dtype=np.float32))
        distiller = Distiller(student, teacher, losses=[term], alpha=0.5)
        distiller.compile("sgd", "sparse_categorical_crossentropy")
        figures.append(distiller.evaluate(tokens, tokens % 3, verbose=0, return_dict=True))
    assert figures[0]["distillation_loss"] > 0
    for name, value in figures[0].items():
        np.testing.assert_allclose(figures[1][name], value, rtol=1e-4)
