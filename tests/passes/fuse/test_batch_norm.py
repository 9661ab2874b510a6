"""Batch normalization becomes part of the kernel and the bias before it."""

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.layers import LowRankDense

RANDOM = np.random.default_rng(1)
CASES = {
    "conv_1d": ((9, 4), layers.Conv1D(6, 3, padding="causal", use_bias=False)),
    "conv_2d": ((8, 8, 4), layers.Conv2D(6, 3, strides=2, padding="same")),
    "groups": ((8, 8, 4), layers.Conv2D(6, 3, groups=2, dilation_rate=2, use_bias=False)),
    "conv_3d": ((4, 4, 4, 2), layers.Conv3D(3, 2)),
    "depthwise_1d": ((9, 4), layers.DepthwiseConv1D(3, depth_multiplier=2)),
    "depthwise": ((8, 8, 4), layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", use_bias=False)),
    "separable_1d": ((9, 4), layers.SeparableConv1D(5, 3)),
    "separable": ((8, 8, 4), layers.SeparableConv2D(5, 3, use_bias=False)),
    "transpose_1d": ((9, 4), layers.Conv1DTranspose(5, 3, strides=2)),
    "transpose": ((5, 5, 4), layers.Conv2DTranspose(3, 3, strides=2, use_bias=False)),
    "transpose_3d": ((3, 3, 3, 2), layers.Conv3DTranspose(3, 2)),
    "dense": ((4,), layers.Dense(5, use_bias=False)),
    "dense_of_steps": ((6, 4), layers.Dense(5)),
    "low_rank": ((12,), LowRankDense(10, 3)),
    "einsum": ((6, 4), layers.EinsumDense("abc,cd->abd", (None, 5))),
    "einsum_heads": ((6, 4), layers.EinsumDense("...c,chd->...hd", (2, 5), bias_axes="hd")),
    "einsum_batch": ((6, 4), layers.EinsumDense("abc,bcd->abd", (6, 5), bias_axes="d")),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("plain", [False, True])
def test_scale_and_offset_go_into_kernel_and_bias(case, plain, fuse) -> None:
    shape, layer = CASES[case]
    layer = type(layer).from_config(layer.get_config() | {"name": "first"})
    norm = layers.BatchNormalization(center=not plain, scale=not plain, epsilon=0.01, name="norm")
    model = keras.Sequential([keras.Input(shape), layer, norm, layers.Activation("tanh", name="after")])
    fused, result = fuse(model, RANDOM.normal(size=(3, *shape)).astype("float32"))
    assert [one.name for one in fused.layers] == ["first", "after"]
    (fusion,) = result.fusions
    assert (fusion.layers, fusion.into, fusion.how) == (("first", "norm"), "first", "batch_norm")
    assert fusion.params_before == model.count_params() > fusion.params_after == fused.count_params()
    assert "later training" in result.notes[0]


def test_what_is_left_alone_has_a_reason(fuse, reasons) -> None:
    x = keras.Input((8, 8, 4), name="x")
    y = layers.BatchNormalization(name="of_input")(x)
    conv, shared = layers.Conv2D(4, 3, padding="same", name="conv"), layers.Conv2D(4, 1, name="shared")
    y = layers.BatchNormalization(name="of_branch")(conv(y)) + conv.output
    y = layers.BatchNormalization(name="of_sum")(y)
    y = layers.BatchNormalization(name="of_shared")(shared(shared(y)))
    y = layers.BatchNormalization(name="of_activated")(layers.Conv2D(4, 1, activation="tanh", name="activated")(y))
    y = layers.BatchNormalization(axis=1, name="of_rows")(layers.Conv2D(4, 1, name="conv_2")(y))
    y = layers.BatchNormalization(name="of_pool")(layers.MaxPooling2D(name="pool")(y))
    limited = layers.Conv2D(4, 1, kernel_constraint=keras.constraints.NonNeg(), name="limited")
    y = layers.BatchNormalization(name="of_limited")(limited(y))
    loud = layers.Conv2D(4, 1, name="loud", activity_regularizer="l2")
    y = layers.BatchNormalization(name="of_loud")(loud(y))
    model = keras.Model(x, y)
    fused, result = fuse(model, RANDOM.normal(size=(2, 8, 8, 4)).astype("float32"), linear=False)
    assert not result.fusions
    assert reasons(result) == {
        "of_input": "does not follow a single layer, whose kernel could take it up",
        "of_branch": "the output of 'conv' is needed elsewhere, too",
        "of_sum": "does not follow a single layer, whose kernel could take it up",
        "of_shared": "'shared' is called in several places, or shares its weights",
        "of_activated": "an activation comes in between: that of 'activated'",
        "of_rows": "normalizes axis 1; the kernel of 'conv_2' has the last one",
        "of_pool": "follows 'pool', into which nothing can be folded (MaxPooling2D)",
        "of_limited": "'limited' has kernel_constraint, which a merged layer could not keep",
        "of_loud": "'loud' has activity_regularizer, which a merged layer could not keep",
    }
    assert len(fused.layers) == len(model.layers)


def test_weights_shared_through_wrappers_are_left_alone(fuse, reasons) -> None:
    norm = layers.BatchNormalization(name="norm")
    x = keras.Input((4,), name="x")
    model = keras.Model(x, norm(layers.Dense(4, name="a")(x)) + norm(layers.Dense(4, name="b")(x)))
    _, result = fuse(model, RANDOM.normal(size=(2, 4)).astype("float32"))
    assert reasons(result) == {"norm": "'norm' is called in several places, or shares its weights"}


@pytest.mark.parametrize("equation", ["abc,bcd->adb", "abc,cd->abd"])
def test_an_einsum_without_a_bias_for_the_channels_is_left_alone(equation, fuse, reasons) -> None:
    layer = layers.EinsumDense(equation, (5, 6) if equation.endswith("b") else (6, 5), bias_axes="b", name="einsum")
    model = keras.Sequential([keras.Input((6, 4)), layer, layers.BatchNormalization(name="norm")])
    _, result = fuse(model, RANDOM.normal(size=(2, 6, 4)).astype("float32"))
    if equation.endswith("d"):
        assert "an axis that the kernel or the bias of 'einsum' does not have" in reasons(result)["norm"]
    else:
        assert result.fusions


def test_an_output_keeps_its_name_and_it_can_be_switched_off(fuse) -> None:
    def build():
        x = keras.Input((4,), name="x")
        return keras.Model(x, layers.BatchNormalization(name="answer")(layers.Dense(3, name="dense")(x)))

    sample = RANDOM.normal(size=(3, 4)).astype("float32")
    fused, result = fuse(build(), sample)
    assert fused.output_names == ["answer"]
    assert result.fusions[0].into == "answer"
    fused, result = fuse(build(), sample, batch_norm=False)
    assert len(fused.layers) == 3
    assert not result.plan
