"""Ids that an Embedding has no row for are refused before anything is trained or calibrated."""

import numpy as np
import pytest

from edgecompress import compress, convert
from edgecompress.data import Dataset
from edgecompress.errors import DataError
from edgecompress.models import load_model
from edgecompress.recipes import Recipe
from edgecompress.techniques import Prune
from edgecompress.token_ids import Table, find_tables, refuse_unknown_ids


@pytest.fixture(scope="module")
def model():
    import keras

    layers = keras.layers
    return keras.Sequential([
        keras.Input((6,), dtype="int32", name="tokens"),
        layers.Embedding(10, 4, name="words"),
        layers.GlobalAveragePooling1D(),
        layers.Dense(3, activation="softmax"),
    ])  # fmt: skip


def samples(largest: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, 10, (40, 6))
    ids[3, 2] = largest
    return ids, np.arange(40) % 3


def test_tables_that_inputs_are_fed_to(model) -> None:
    assert find_tables(load_model(model)) == (Table("tokens", "words", 10),)


def test_tables_in_nested_models_and_at_several_inputs() -> None:
    import keras

    layers = keras.layers
    inner_input = keras.Input((3,), dtype="int32")
    inner = keras.Model(inner_input, layers.Flatten()(layers.Embedding(7, 2, name="inner_words")(inner_input)))
    a, b = keras.Input((3,), dtype="int32", name="a"), keras.Input((3,), name="b")
    looked_up = layers.Flatten()(layers.Embedding(5, 2, name="outer_words")(b))
    computed = layers.Flatten()(layers.Embedding(2, 2, name="computed")(layers.ReLU()(b)))
    whole = keras.Model({"a": a, "b": b}, layers.Concatenate()([inner(a), looked_up, computed]))
    assert set(find_tables(load_model(whole))) == {Table("a", "inner_words", 7), Table("b", "outer_words", 5)}


def test_tables_of_keras_2_and_none_in_a_saved_model(tmp_path, model) -> None:
    import tf_keras

    old = tf_keras.Sequential(
        [tf_keras.layers.Input((6,), name="tokens"), tf_keras.layers.Embedding(8, 2, name="words")]
    )
    assert find_tables(load_model(old)) == (Table("tokens", "words", 8),)
    model.export(tmp_path / "saved", verbose=False)
    assert find_tables(load_model(tmp_path / "saved")) == ()


def test_ids_out_of_range(model) -> None:
    source = load_model(model)
    refuse_unknown_ids(source, None, Dataset({"tokens": np.array([[0, 9]])}))
    with pytest.raises(DataError) as caught:
        refuse_unknown_ids(source, Dataset({"tokens": np.array([[0, 12], [10, 3]])}, source="train.npz"))
    assert str(caught.value).startswith(
        "train.npz: input 'tokens' has ids that the layer 'words' has no row for; "
        "expected ids from 0 to 9 (its input_dim is 10); received 12 as the largest. Fix: "
    )
    with pytest.raises(DataError, match="received -1 as the smallest"):
        refuse_unknown_ids(source, Dataset({"tokens": np.array([[0, -1]])}))


def test_runs_refuse_them_before_any_work(model, tmp_path) -> None:
    steps: list[str] = []

    def say(step: str, _done: int, _total: int) -> None:
        steps.append(step)

    recipe = Recipe(passes=(Prune(),))
    with pytest.raises(DataError, match="received 10 as the largest"):
        compress(model, tmp_path / "small.keras", recipe=recipe, train=samples(10), progress=say)
    with pytest.raises(DataError, match="received 10 as the largest"):
        convert(model, output=tmp_path / "out", data=samples(10), progress=say)
    assert set(steps) == {"load"}
    assert not list(tmp_path.iterdir())
