import keras
import numpy as np
from keras import layers

from edgecompress.data import InputSpec
from edgecompress.tfmot.folding import fold
from edgecompress.tfmot.lowering import Lowered, lower
from edgecompress.tfmot.scales import assign_scales, measure_ranges


def lowered(body, shape: tuple[int, ...] = (6, 6, 2), dtype: str = "float32") -> Lowered:
    x = keras.Input(shape, name="x", dtype=dtype)
    return fold(lower(keras.Model(x, body(x)), [InputSpec("x", (None, *shape), dtype)]))


def scales_of(graph: Lowered) -> list[tuple[list[str], bool]]:
    return [([node.kind for node in scale.nodes], scale.shared) for scale in assign_scales(graph)]


def test_a_relu_shares_the_rounding_of_the_kernel_before_it() -> None:
    assert scales_of(lowered(lambda x: layers.Conv2D(3, 3, activation="relu")(x))) == [
        (["input"], False),
        (["relu"], False),
    ]


def test_a_result_that_something_else_takes_too_is_rounded_before_the_relu() -> None:
    def body(x):
        y = layers.Conv2D(2, 3, padding="same")(x)
        return layers.Add()([layers.ReLU()(y), y])

    assert (["conv"], False) in scales_of(lowered(body))


def test_what_is_joined_has_one_scale() -> None:
    def body(x):
        y = layers.Conv2D(2, 3, padding="same")(x)
        z = layers.Activation("sigmoid")(layers.Conv2D(2, 3, padding="same")(x))
        return layers.Concatenate()([y, z])

    found = assign_scales(lowered(body))
    (joined,) = [scale for scale in found if scale.shared]
    assert sorted(node.kind for node in joined.nodes) == ["conv", "sigmoid"]
    assert joined.fixed is None


def test_softmax_writes_in_a_range_of_its_own() -> None:
    found = assign_scales(lowered(lambda x: layers.Dense(4, activation="softmax")(layers.Flatten()(x))))
    assert [scale.fixed for scale in found] == [None, None, (0.0, 255 / 256)]


def test_tokens_have_no_scale() -> None:
    for dtype in ("int32", "float32"):
        graph = lowered(lambda x: layers.Dense(3)(layers.Embedding(9, 4)(x)), (5,), dtype)
        assert [(len(scale.nodes), len(scale.tables)) for scale in assign_scales(graph)] == [(0, 1), (1, 0)]


def test_ranges_hold_zero_and_what_occurred() -> None:
    graph = lowered(lambda x: layers.Rescaling(2.0, 5.0)(x))
    samples = np.random.default_rng(0).uniform(1, 2, size=(64, 6, 6, 2)).astype("float32")
    first, second = measure_ranges(graph, assign_scales(graph), [samples])
    assert first[0] == second[0] == 0
    np.testing.assert_allclose([first[1], second[1]], [2, 9], atol=0.01)


def test_a_result_that_is_always_zero_has_a_range_all_the_same() -> None:
    graph = lowered(lambda x: layers.ReLU()(layers.Rescaling(-1.0)(x)))
    samples = np.ones((4, 6, 6, 2), np.float32)
    low, high = measure_ranges(graph, assign_scales(graph), [samples])[-1]
    assert low <= 0 < high


def test_the_calls_of_a_layer_have_one_scale() -> None:
    shared = layers.Conv2D(2, 3, padding="same")

    def body(x):
        return layers.Add()([layers.ReLU()(shared(x)), shared(layers.ReLU()(x))])

    assert (["conv", "conv"], True) in scales_of(lowered(body))
