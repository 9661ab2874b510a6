import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.data import InputSpec
from edgecompress.tfmot.lowering import RULES, Node, lower, rule
from edgecompress.tfmot.scales import run_lowered


class Doubled(layers.Dense):
    """A subclass with a call of its own, which no rule knows."""

    def call(self, inputs):
        return 2 * super().call(inputs)


class Named(layers.Dense):
    """A subclass that computes what its base does."""


def specs(model: keras.Model) -> tuple[InputSpec, ...]:
    return tuple(InputSpec(tensor.name, tuple(tensor.shape), str(tensor.dtype)) for tensor in model.inputs)


def kinds(nodes: tuple[Node, ...]) -> list[str]:
    return [node.kind for node in nodes]


def test_the_graph_computes_what_the_model_does() -> None:
    first, second = keras.Input((4, 6), name="first"), keras.Input((6,), name="second")
    x = layers.LayerNormalization()(layers.Dense(6, activation="gelu")(first))
    y = layers.Dense(6, activation="silu")(second)
    model = keras.Model({"second": second, "first": first}, [layers.Add()([x[:, 0], y]), y])
    lowered = lower(model, specs(model))
    samples = [np.random.default_rng(0).normal(size=(5, *shape)).astype("float32") for shape in ((4, 6), (6,))]
    by_name = dict(zip(("first", "second"), samples, strict=True))
    found = run_lowered(lowered, [by_name[tensor.name] for tensor in model.inputs])
    wanted = model({"first": samples[0], "second": samples[1]})
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_calls_of_one_layer_share_its_weights() -> None:
    x = keras.Input((4,))
    dense = layers.Dense(4, activation="relu")
    model = keras.Model(x, dense(dense(x)))
    products = [node for node in lower(model, specs(model)).nodes if node.kind == "dense"]
    assert len(products) == 2
    assert products[0].key == products[1].key


def test_layers_of_nested_models_are_named_by_their_place() -> None:
    inside = keras.Input((4,))
    inner = keras.Model(inside, layers.Dense(3, name="dense")(inside), name="inner")
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2, name="dense")(inner(x)))
    lowered = lower(model, specs(model))
    assert [name for name, _, _ in lowered.layers] == ["inner/dense", "dense"]


def test_a_subclass_counts_as_its_base_unless_it_calls_something_else() -> None:
    x = keras.Input((4,))
    model = keras.Model(x, Doubled(3, name="doubled")(Named(4, name="named")(x)))
    lowered = lower(model, specs(model))
    assert [refusal.layer for refusal in lowered.refusals] == ["doubled"]
    assert lowered.refusals[0].reason == "nothing is known of how Doubled computes"
    assert "exclude" in lowered.refusals[0].fix


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda x: layers.MultiHeadAttention(2, 4, name="it")(x, x, use_causal_mask=True), "masks have no place"),
        (lambda x: layers.BatchNormalization(axis=1, name="it")(x), "another axis than the last"),
        (lambda x: layers.Dense(4, activation=lambda t: t * t, name="it")(x), "nothing is known of the activation"),
        (lambda x: layers.Dense(4, activation=keras.ops.sin, name="it")(x), "nothing is known of the activation 'sin'"),
        (lambda x: layers.EinsumDense("abc,bcd->abd", (6, 4), name="it")(x), "is not one matrix product"),
        (lambda x: layers.ReLU(threshold=1.0, name="it")(x), "a ReLU with a threshold"),
        (lambda x: layers.GroupNormalization(2, name="it")(x), "nothing is known of how GroupNormalization"),
        (lambda x: layers.Conv1D(4, 3, data_format="channels_first", name="it")(x), "channels_first"),
        (lambda x: layers.Masking(name="it")(x), "masks have no place"),
    ],
)
def test_what_cannot_be_written_is_named_with_the_reason(make, reason: str) -> None:
    x = keras.Input((6, 8))
    model = keras.Model(x, make(x))
    (refusal,) = lower(model, specs(model)).refusals
    assert refusal.layer == "it"
    assert reason in refusal.reason


def test_masks_of_an_embedding_are_refused() -> None:
    x = keras.Input((6,), dtype="int32")
    model = keras.Model(x, layers.Embedding(10, 4, mask_zero=True, name="it")(x))
    (refusal,) = lower(model, specs(model)).refusals
    assert "mask_zero" in refusal.reason


def test_an_excluded_layer_is_called_as_it_is() -> None:
    x = keras.Input((6, 8))
    model = keras.Model(x, layers.Dense(3)(layers.GRU(4, name="recurrent")(x)))
    lowered = lower(model, specs(model), ["recur"])
    assert lowered.refusals == ()
    assert kinds(lowered.nodes) == ["input", "float", "dense"]
    assert ("recurrent", "GRU", True) in lowered.layers
    samples = np.random.default_rng(0).normal(size=(5, 6, 8)).astype("float32")
    np.testing.assert_allclose(run_lowered(lowered, [samples])[0], model(samples), atol=1e-5)


def test_frozen_layers_stay_frozen() -> None:
    x = keras.Input((4,))
    frozen = layers.Dense(4, trainable=False)
    model = keras.Model(x, layers.Dense(2)(frozen(x)))
    assert [node.trainable for node in lower(model, specs(model)).nodes if node.kind == "dense"] == [False, True]


def test_a_second_rule_for_a_layer_is_a_mistake() -> None:
    lower(keras.Sequential([keras.Input((2,)), layers.Dense(1)]), [InputSpec("x", (None, 2), "float32")])
    assert "Dense" in RULES
    with pytest.raises(ValueError, match="a rule for 'Dense' already"):
        rule("Dense")(lambda *_: None)


def test_an_embedding_that_is_called_twice_is_refused() -> None:
    x, y = keras.Input((6,), dtype="int32"), keras.Input((6,), dtype="int32")
    table = layers.Embedding(10, 4, name="table")
    model = keras.Model([x, y], layers.Add()([table(x), table(y)]))
    (refusal,) = lower(model, specs(model)).refusals
    assert refusal.layer == "table"
    assert "called more than once" in refusal.reason


def test_what_preprocesses_is_not_trained() -> None:
    x = keras.Input((4,))
    model = keras.Model(x, layers.Rescaling(0.5)(layers.Normalization(mean=1.0, variance=2.0)(x)))
    assert [node.trainable for node in lower(model, specs(model)).nodes if node.kind == "affine"] == [False, False]


def test_a_feature_that_never_varied_is_zero() -> None:
    x = keras.Input((2,))
    model = keras.Model(x, layers.Normalization(mean=[1.0, 5.0], variance=[4.0, 0.0])(x))
    (node,) = [node for node in lower(model, specs(model)).nodes if node.kind == "affine"]
    np.testing.assert_allclose(node.weights["scale"].reshape(-1), [0.5, 0])
    np.testing.assert_allclose(node.weights["bias"], [-0.5, 0])


def test_padding_with_a_constant_is_refused() -> None:
    x = keras.Input((4, 4))
    model = keras.Model(x, keras.ops.pad(x, ((0, 0), (1, 1), (0, 0)), constant_values=2.0))
    (refusal,) = lower(model, specs(model)).refusals
    assert refusal.reason == "padding with another constant than 0"
