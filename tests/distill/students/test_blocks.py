"""Which blocks of a model are found to repeat, and which of them a shorter student has."""

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.distill.students import make_student
from edgecompress.errors import UsageError


def names(model):
    return [layer.name for layer in model.layers if layer.weights]


def test_of_each_run_a_share_is_kept() -> None:
    teacher = keras.Sequential([
        keras.Input((8,)),
        *[layers.Dense(16, "relu", name=f"wide_{number}") for number in range(4)],
        *[layers.Dense(8, "relu", name=f"narrow_{number}") for number in range(3)],
        layers.Dense(2, name="head"),
    ])  # fmt: skip
    assert names(make_student(teacher, depth=0.5)) == ["wide_0", "wide_3", "narrow_0", "narrow_2", "head"]
    assert names(make_student(teacher, depth=0.01)) == ["wide_3", "narrow_2", "head"]
    assert len(names(make_student(teacher, depth=0.75))) == 6


def test_the_shortest_pattern_is_a_block() -> None:
    parts = [
        part
        for number in range(4)
        for part in (layers.Conv2D(8, 3, padding="same"), layers.BatchNormalization(), layers.Dropout(number / 10))
    ]
    teacher = keras.Sequential([keras.Input((8, 8, 1)), *parts, layers.Flatten(), layers.Dense(2)])
    student = make_student(teacher, depth=0.5)
    assert [type(layer).__name__ for layer in student.layers] == [
        *["Conv2D", "BatchNormalization", "Dropout"] * 2, "Flatten", "Dense",
    ]  # fmt: skip


@pytest.mark.parametrize("layer", [layers.GRU, layers.LSTM, layers.SimpleRNN])
def test_stacked_recurrent_layers_are_repetitions(layer) -> None:
    stack = [layer(16, return_sequences=number < 2, name=f"r{number}") for number in range(3)]
    teacher = keras.Sequential([keras.Input((6, 4)), *stack, layers.Dense(2, name="head")])
    assert names(make_student(teacher, depth=0.7)) == ["r0", "r2", "head"]
    student = make_student(teacher, depth=0.3, width=0.5)
    assert names(student) == ["r2", "head"]
    assert student(np.zeros((1, 6, 4), np.float32)).shape == (1, 2)


def test_residual_blocks_with_a_mask_beside_them() -> None:
    x = keras.Input((6, 16), name="x")
    mask = keras.Input((6,), dtype="bool", name="mask")
    y, allowed = layers.Dense(16, name="stem")(x), keras.ops.expand_dims(mask, 1)
    for number in range(4):
        y = layers.LayerNormalization(name=f"n{number}")(
            y + layers.MultiHeadAttention(2, 8, name=f"a{number}")(y, y, attention_mask=allowed)
        )
        y = y + layers.Dense(16, name=f"f{number}")(y)
    student = make_student(keras.Model([x, mask], {"y": layers.Dense(2, name="head")(y)}), depth=0.5)
    assert sorted(names(student)) == sorted(["stem", "a0", "n0", "f0", "a3", "n3", "f3", "head"])
    assert student([np.zeros((1, 6, 16)), np.ones((1, 6), bool)])["y"].shape == (1, 6, 2)


def test_nested_models_that_are_alike_are_repetitions_and_others_are_looked_into() -> None:
    def block(number):
        given = keras.Input((16,))
        inside = layers.Dense(16, name=f"b_{number}")(layers.Dense(32, "relu", name=f"a_{number}")(given))
        return keras.Model(given, given + inside, name=f"block_{number}")

    x = keras.Input((16,))
    y = x
    for number in range(4):
        y = block(number)(y)
    backbone = keras.Model(x, y, name="backbone")
    given = keras.Input((16,))
    student = make_student(keras.Model(given, layers.Dense(2)(backbone(given))), depth=0.5)
    assert names(student.get_layer("backbone")) == ["block_0", "block_3"]
    assert names(student.get_layer("backbone").get_layer("block_0")) == ["a_0", "b_0"]


def test_outputs_inside_a_run_stay() -> None:
    x = image = keras.Input((8, 8, 4))
    taken = []
    for number in range(6):
        x = layers.Conv2D(4, 3, padding="same", name=f"c{number}")(x)
        taken.append(x)
    student = make_student(keras.Model(image, [taken[2], taken[5]]), depth=0.34)
    assert names(student) == ["c2", "c5"]


@pytest.mark.parametrize(
    "parts",
    [
        [layers.Conv1D(4, 3), layers.Conv1D(4, 3)],
        [layers.Conv1D(4, 3, strides=2, padding="same") for _ in range(3)],
        [layers.Dense(4), layers.Dense(5), layers.Dense(6)],
    ],
    ids=["other lengths", "strides", "other widths"],
)
def test_without_repetitions_there_is_nothing_to_leave_out(parts) -> None:
    teacher = keras.Sequential([keras.Input((16, 4)), *parts, layers.Dense(2)], name="teacher")
    with pytest.raises(UsageError, match=r"teacher: nothing becomes smaller with depth 0\.5.*--student small.keras"):
        make_student(teacher, depth=0.5)


def test_blocks_that_widen_what_they_get_stay() -> None:
    x = given = keras.Input((8,))
    for _ in range(6):
        x = layers.Concatenate()([x, layers.Dense(4)(x)])
    with pytest.raises(UsageError, match="depth"):
        make_student(keras.Model(given, layers.Dense(2)(x)), depth=0.5)
