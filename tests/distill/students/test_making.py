"""Students of many kinds of teachers: they fit together, are as small as asked, learn, and can be saved."""

import math

import keras
import numpy as np
import pytest
from keras import layers, ops

from edgecompress.distill.students import make_student
from edgecompress.errors import ModelError, UsageError
from edgecompress.layers import LowRankDense, LowRankGRU, LowRankLSTM


def cnn():
    return keras.Sequential([
        keras.Input((8, 8, 1), name="image"),
        layers.Conv2D(16, 3, padding="same", use_bias=False), layers.BatchNormalization(), layers.ReLU(),
        layers.SeparableConv2D(32, 3, strides=2), layers.GroupNormalization(8), layers.Flatten(),
        layers.Dense(32, activation="relu"), layers.Dropout(0.1), layers.Dense(10, activation="softmax", name="digit"),
    ], name="cnn")  # fmt: skip


def residual():
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(32, 3, padding="same")(image)
    for groups in (1, 8):
        y = layers.Conv2D(32, 3, padding="same", groups=groups, activation="relu")(x)
        y = layers.BatchNormalization()(layers.Conv2D(32, 1)(y))
        squeezed = layers.Reshape((1, 1, 32))(layers.GlobalAveragePooling2D()(y))
        gate = layers.Conv2D(32, 1, activation="sigmoid")(layers.Conv2D(8, 1, activation="relu")(squeezed))
        x = layers.Add()([x, layers.Multiply()([y, gate])])
    return keras.Model(image, layers.Dense(10)(layers.GlobalMaxPooling2D()(x)))


def dense_net():
    x = image = keras.Input((8, 8, 3))
    for _ in range(3):
        x = layers.Concatenate()([x, layers.Conv2D(12, 3, padding="same")(layers.BatchNormalization()(x))])
    up = layers.Conv2DTranspose(8, 2, strides=2)(layers.AveragePooling2D(2)(x))
    x = layers.Concatenate()([x, up, layers.DepthwiseConv2D(3, padding="same")(x)])
    return keras.Model(image, layers.Conv2D(2, 1)(x))


def nested():
    backbone = keras.Sequential(
        [keras.Input((None, None, 1)), layers.Conv2D(16, 3), layers.BatchNormalization(), layers.Conv2D(32, 3)],
        name="backbone",
    )
    image = keras.Input((8, 8, 1), name="image")
    features = backbone(image)
    digit = layers.Dense(10)(layers.GlobalAveragePooling2D()(features))
    return keras.Model({"image": image}, {"digit": digit, "map": layers.Conv2D(2, 1)(features)}, name="nested")


def recurrent():
    return keras.Sequential([
        keras.Input((8, 8)),
        layers.TimeDistributed(layers.Dense(16)),
        layers.Bidirectional(layers.LSTM(16, return_sequences=True)),
        layers.RNN([layers.GRUCell(12), layers.LSTMCell(8)], return_sequences=True),
        LowRankGRU(16, input_rank=4, recurrent_rank=8, return_sequences=True),
        LowRankLSTM(16, recurrent_rank=4, gates="separate"), LowRankDense(12, 8), layers.Dense(3),
    ])  # fmt: skip


def sequence_to_sequence():
    given, wanted = keras.Input((5, 8), name="given"), keras.Input((6, 4), name="wanted")
    read, *states = layers.LSTM(16, return_sequences=True, return_state=True)(given)
    written = layers.LSTM(16, return_sequences=True)(wanted, initial_state=states)
    both = layers.Concatenate()([written, layers.Attention()([written, read])])
    return keras.Model([given, wanted], layers.Dense(3)(both))


class Positions(layers.Layer):
    """Says in its configuration how wide it is."""

    def __init__(self, length, output_dim, **kwargs) -> None:
        super().__init__(**kwargs)
        self.length, self.output_dim = length, output_dim
        self.supports_masking = True

    def build(self, _shape) -> None:
        self.table = self.add_weight((self.length, self.output_dim))

    def call(self, x):
        return x + self.table

    def get_config(self):
        return {**super().get_config(), "length": self.length, "output_dim": self.output_dim}


def transformer(blocks=2):
    tokens = keras.Input((12,), dtype="int32", name="tokens")
    x = Positions(12, 32)(layers.Embedding(50, 32, mask_zero=True)(tokens))
    for _ in range(blocks):
        x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(4, 8)(x, x)]))
        x = layers.LayerNormalization()(x + layers.Dense(32)(layers.Dense(64, "gelu")(x)))
    return keras.Model(tokens, layers.Dense(3)(x[:, 0]))


def vision_transformer():
    image = keras.Input((8, 8, 3))
    x = layers.Reshape((16, 32))(layers.Conv2D(32, 2, strides=2)(image))

    def heads(y):
        return ops.transpose(ops.reshape(layers.Dense(32)(y), (-1, 16, 4, 8)), (0, 2, 1, 3))

    scores = ops.softmax(ops.matmul(heads(x), ops.transpose(heads(x), (0, 1, 3, 2))))
    x = x + ops.reshape(ops.transpose(ops.matmul(scores, heads(x)), (0, 2, 1, 3)), (-1, 16, 32))
    first, second = ops.split(x, 2, axis=-1)
    x = ops.concatenate([second, first], axis=-1) + layers.EinsumDense("...x,xy->...y", 32)(x)
    return keras.Model(image, layers.Dense(3)(ops.mean(x, axis=1)))


def mixer():
    x = patches = keras.Input((16, 8))
    x = layers.Dense(24)(x)
    y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
    x = x + layers.Permute((2, 1))(layers.Dense(16)(layers.Dense(32, "gelu")(y)))
    return keras.Model(patches, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


class Subclassed(keras.Model):
    """A model without a graph of its own."""

    def __init__(self) -> None:
        super().__init__(name="subclassed")
        self.first, self.second, self.last = layers.Dense(32, "relu"), layers.Dense(32, "relu"), layers.Dense(3)

    def call(self, x):
        return self.last(self.second(self.first(x)))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 8), np.float32))
    return model


TEACHERS = (
    cnn, residual, dense_net, nested, recurrent, sequence_to_sequence, transformer, vision_transformer, mixer,
    subclassed,
)  # fmt: skip


def samples(model):
    random = np.random.default_rng(0)
    arrays = {x.name: random.integers(1, 9, (2, *x.shape[1:])).astype(x.dtype) for x in model.inputs}
    if model.name == "nested":
        return arrays
    return next(iter(arrays.values())) if len(arrays) == 1 else list(arrays.values())


def shapes(outputs):
    return keras.tree.map_structure(lambda y: tuple(y.shape), outputs)


@pytest.mark.parametrize("make", TEACHERS)
@pytest.mark.parametrize("width", [0.5, 0.3])
def test_a_narrower_student_fits_together(make, width) -> None:
    teacher = make()
    before = [np.array(weight) for weight in teacher.get_weights()]
    student = make_student(teacher, width=width)
    given = samples(student)
    assert shapes(student(given)) == shapes(teacher(given))
    assert width**2 / 2 < student.count_params() / teacher.count_params() < width * 1.1
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("make", [cnn, nested, transformer])
def test_a_student_has_the_names_of_its_teacher(make) -> None:
    teacher = make()
    student = make_student(teacher, width=0.5, rank=0.25)
    assert student.name == teacher.name
    assert type(student) is type(teacher)
    assert [x.name for x in student.inputs] == [x.name for x in teacher.inputs]
    assert [layer.name for layer in student.layers] == [layer.name for layer in teacher.layers]


def test_widths_are_as_asked() -> None:
    student = make_student(cnn(), width=0.5)
    kernels = [tuple(weight.shape) for weight in student.weights if "kernel" in weight.name]
    assert kernels == [(3, 3, 1, 8), (3, 3, 8, 1), (1, 1, 8, 16), (9 * 16, 16), (16, 10)]


def test_groups_stay_valid() -> None:
    def groups(model):
        return [layer.groups for layer in model.layers if getattr(layer, "groups", 1) > 1]

    assert (groups(cnn()), groups(make_student(cnn(), width=0.3))) == ([8], [5])  # of 10 channels
    student = make_student(residual(), width=0.4)
    assert (groups(residual()), groups(student)) == ([8], [3])
    assert student.layers[1].filters == 12


@pytest.mark.parametrize(("width", "heads", "size"), [(0.5, 2, 8), (0.25, 1, 8), (0.125, 1, 4)])
def test_attention_has_fewer_heads_and_then_smaller_ones(width, heads, size) -> None:
    student = make_student(transformer(), width=width)
    attention = next(layer for layer in student.layers if "attention" in layer.name)
    assert (attention.num_heads, attention.key_dim) == (heads, size)


def test_what_is_added_to_an_input_keeps_its_width() -> None:
    x = given = keras.Input((16,))
    x = x + layers.Dense(16, name="out")(layers.Dense(64, name="in")(x))
    student = make_student(keras.Model(given, layers.Dense(3)(x)), width=0.5)
    assert [student.get_layer(name).units for name in ("in", "out")] == [32, 16]


def test_a_layer_that_is_shared_stays_shared() -> None:
    tower = keras.Sequential([keras.Input((8,)), layers.Dense(32), layers.Dense(16)], name="tower")
    one, two = keras.Input((8,)), keras.Input((8,))
    student = make_student(keras.Model([one, two], layers.Dense(1)(tower(one) * tower(two))), width=0.5)
    assert [tuple(weight.shape) for weight in student.get_layer("tower").weights] == [(8, 16), (16,), (16, 8), (8,)]
    assert len(student.weights) == 6


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_student_of_mobile_net(policy) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        teacher = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=10)
    finally:
        keras.config.set_dtype_policy("float32")
    narrow, short = make_student(teacher, width=0.5), make_student(teacher, depth=0.5)
    assert 0.2 < narrow.count_params() / teacher.count_params() < 0.3
    assert len(short.layers) < len(teacher.layers) * 0.8
    assert {layer.compute_dtype for layer in narrow.layers if layer.weights} == {policy.removeprefix("mixed_")}


def test_a_student_learns_and_is_saved(digits, tmp_path) -> None:
    (x, y), _ = digits.digits(as_rows=False)
    keras.utils.set_random_seed(0)
    student = make_student(digits.make_cnn(), width=0.5)
    student.compile("adam", "sparse_categorical_crossentropy")
    losses = student.fit(x[:256], y[:256], epochs=3, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    student.save(tmp_path / "student.keras")
    again = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_allclose(again(x[:5]), student(x[:5]), rtol=1e-4)


def test_the_seed_decides_the_weights() -> None:
    teacher = recurrent()
    drawn = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        drawn.append(make_student(teacher).get_weights())
    for first, same in zip(drawn[0], drawn[1], strict=True):
        np.testing.assert_array_equal(first, same)
    assert not np.array_equal(drawn[0][0], drawn[2][0])
    assert [w.shape for w in drawn[0]] == [w.shape for w in teacher.get_weights()]
    assert not np.array_equal(drawn[0][0], teacher.get_weights()[0])


def test_what_was_adapted_to_data_is_kept_and_what_was_frozen_learns() -> None:
    normalization = layers.Normalization(name="normalization")
    x = np.random.default_rng(0).normal(3, 2, (100, 8)).astype(np.float32)
    normalization.adapt(x)
    teacher = keras.Sequential([keras.Input((8,)), normalization, layers.Dense(16, name="dense"), layers.Dense(2)])
    teacher.layers[1].trainable = False
    student = make_student(teacher, width=0.5)
    np.testing.assert_allclose(student.get_layer("normalization")(x), normalization(x), rtol=1e-6)
    assert student.get_layer("normalization").adapt_mean is not normalization.adapt_mean
    assert len(student.trainable_variables) == 4


def test_a_vocabulary_is_kept() -> None:
    lookup = layers.StringLookup()
    lookup.adapt(np.array(["one", "two", "three"]))
    words = keras.Input((4,), dtype="string")
    x = layers.Embedding(lookup.vocabulary_size(), 8)(lookup(words))
    teacher = keras.Model(words, layers.Dense(2)(layers.GRU(8)(x)))
    student = make_student(teacher, width=0.5)
    given = np.array([["one", "two", "four", "three"]])
    assert student(ops.convert_to_tensor(given)).shape == (1, 2)
    assert student.layers[1].get_vocabulary() == lookup.get_vocabulary()


def test_ranks() -> None:
    teacher = keras.Sequential([
        keras.Input((6, 16)), layers.Dense(32, "relu"), layers.Bidirectional(layers.GRU(16, return_sequences=True)),
        layers.LSTM(32), layers.Dense(24), layers.Dense(2),
    ])  # fmt: skip
    student = make_student(teacher, rank=0.25)
    dense, both, lstm, second, head = student.layers
    assert isinstance(dense, LowRankDense)
    assert (dense.rank, second.rank) == (4, 6)
    assert dense.activation is keras.activations.relu
    assert isinstance(both.backward_layer, LowRankGRU)
    assert both.backward_layer.go_backwards
    assert (both.forward_layer.cell.input_rank, both.forward_layer.cell.recurrent_rank) == (8, 4)
    assert isinstance(lstm, LowRankLSTM)
    assert (head.rank, head.count_params()) == (1, 24 + 2 + 2)
    fixed = make_student(teacher, width=0.5, rank=3)
    assert [fixed.layers[0].rank, fixed.layers[2].cell.recurrent_rank] == [3, 3]
    assert type(fixed.layers[3]) is LowRankDense
    assert fixed(np.zeros((2, 6, 16), np.float32)).shape == (2, 2)


class Squares(layers.Layer):
    """Has a size that its configuration does not tell."""

    def call(self, x):
        return x * ops.ones((16,))


class Halves(layers.Layer):
    """Returns another shape than it is given."""

    def call(self, x):
        return x[:, :8]


def test_a_layer_with_a_size_of_its_own_is_named() -> None:
    x = keras.Input((8,))
    teacher = keras.Model(x, layers.Dense(3)(Squares(name="squares")(layers.Dense(16)(x))))
    with pytest.raises(ModelError, match=r"layer 'squares'.*received \(None, 8\).*--student small.keras"):
        make_student(teacher, width=0.5)
    assert make_student(teacher).count_params() == teacher.count_params()


def test_a_layer_that_nothing_is_known_of_gets_what_it_got() -> None:
    x = keras.Input((8,))
    inner = layers.Dense(12)(Halves()(layers.Dense(16, name="before")(layers.Dense(32, name="first")(x))))
    student = make_student(keras.Model(x, layers.Dense(3)(inner)), width=0.5)
    assert [student.get_layer(name).units for name in ("first", "before")] == [16, 16]
    assert student.layers[-2].units == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width is not a share.*above 0, at most 1.*received 0.*Fix"),
        ({"width": -0.5}, "width"),
        ({"width": 1.5}, "width"),
        ({"depth": math.nan}, "depth is not a share.*received nan"),
        ({"depth": True}, "depth is not a share.*received True"),
        ({"width": "half"}, "width is not a share.*received 'half'"),
        ({"rank": 0}, "rank is not a rank.*received 0"),
        ({"rank": 2.5}, "rank is not a rank"),
        ({"rank": -1}, "rank is not a rank"),
        ({"rank": math.inf}, "rank is not a rank"),
        ({"width": 0.99}, "nothing becomes smaller with width 0.99"),
        ({"depth": 0.5}, "nothing becomes smaller with depth 0.5"),
        ({"rank": 64}, "nothing becomes smaller with rank 64"),
    ],
)
def test_what_cannot_be_asked(options, message) -> None:
    teacher = keras.Sequential([keras.Input((8,)), layers.Dense(8, "relu"), layers.Dense(4, "relu"), layers.Dense(2)])
    with pytest.raises(UsageError, match=message):
        make_student(teacher, **options)
