"""How the data is divided: no sample has two uses."""

import numpy as np
import pytest

from edgecompress.data import InputSpec
from edgecompress.errors import DataError
from edgecompress.recipes import Recipe
from edgecompress.samples import Samples, prepare_samples
from edgecompress.techniques import Distill, Fuse, LowRank, Prune

SPECS = (InputSpec("x", (None, 3), "float32"),)


def numbered(count: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Samples that are all different."""
    numbers = np.arange(first, first + count, dtype=np.float32)
    return np.stack([numbers] * 3, axis=1), (numbers % 4).astype(np.int64)


def prepared(
    data: object, train: object, *, calibrate: bool = True, passes: tuple = (), **verification: int
) -> Samples:
    facts = {"passes": passes, "quantization": {"calibration_samples": 20}, "verification": verification}
    recipe = Recipe.model_validate(facts)
    return prepare_samples(data, train, SPECS, recipe, calibrate=calibrate, input_range=None, unsafe=False)


def rows(dataset: object) -> set[float]:
    return set() if dataset is None else set(dataset.inputs["x"][:, 0].tolist())


def test_without_any_data_the_samples_are_random() -> None:
    found = prepared(None, None)
    assert found.kind == "seeded-random"
    assert found.calibration is found.training is found.used is found.trained_on is None
    assert found.fixed == (InputSpec("x", (1, 3), "float32"),)


def test_data_calibrates_and_verifies_and_training_samples_train() -> None:
    found = prepared(numbered(100), numbered(60, first=1000))
    assert found.kind == "held-out"
    assert len(found.calibration) == 20
    assert len(found.held_out) == 80
    assert not rows(found.calibration) & rows(found.held_out)
    assert rows(found.training) == set(range(1000, 1060))
    assert found.used.samples == 100
    assert found.trained_on.samples == 60
    assert found.notes == ()


def test_training_samples_alone_have_all_three_uses_and_the_held_out_ones_are_not_trained_on() -> None:
    found = prepared(None, numbered(100))
    assert len(found.held_out) == 20
    assert len(found.training) == found.trained_on.samples == 80
    assert len(found.calibration) == 20
    assert rows(found.calibration) <= rows(found.training)
    assert not rows(found.held_out) & rows(found.training)
    assert found.used.samples == 100
    assert "20 of the 100 samples of --train verify the result" in found.notes[0]
    assert "20 others calibrate" in found.notes[0]
    assert len(prepared(None, numbered(100), samples=5).held_out) == 5


def test_what_needs_no_calibration_takes_no_samples_for_it() -> None:
    found = prepared(numbered(100), numbered(60, first=1000), calibrate=False)
    assert found.calibration is None
    assert found.used.calibration == 0
    assert len(found.held_out) == 100
    assert prepared(None, numbered(100), calibrate=False).calibration is None


def test_low_rank_gets_samples_that_do_not_verify() -> None:
    found = prepared(numbered(100), None, calibrate=False, passes=(Prune(), LowRank()))
    assert len(found.calibration) == found.used.calibration == 20
    assert found.activations is found.calibration
    assert not rows(found.calibration) & rows(found.held_out)
    assert prepared(numbered(100), None, calibrate=False, passes=(Prune(),)).activations is None
    assert prepared(None, None, calibrate=False, passes=(LowRank(),)).activations is None


def test_low_rank_looks_at_the_training_samples_if_there_are_any() -> None:
    found = prepared(numbered(100), numbered(60, first=1000), calibrate=False, passes=(LowRank(),))
    assert found.calibration is None
    assert found.activations is found.training
    assert len(found.held_out) == 100


def test_samples_that_are_trained_on_and_verify_are_found() -> None:
    found = prepared(numbered(100), numbered(60))
    seen = len(rows(found.held_out) & rows(found.training))
    assert found.notes[0].startswith(f"WARNING: {seen} of the 80 samples that verify the result are also in --train")


def test_one_sample_cannot_train_and_verify() -> None:
    with pytest.raises(DataError, match=r"there is one sample only.*Fix: give more samples with --train"):
        prepared(None, numbered(1))
    assert len(prepared(None, numbered(2)).training) == 1
    assert len(prepared(numbered(20, first=9), numbered(1)).training) == 1


def test_few_samples_to_train_on_are_worth_a_warning() -> None:
    words = "WARNING: only {} to train on"
    assert prepared(None, numbered(2)).notes[0].startswith(words.format("1 sample"))
    assert prepared(numbered(30, first=99), numbered(19)).notes[0].startswith(words.format("19 samples"))
    assert prepared(numbered(30, first=99), numbered(20)).notes == ()


def test_training_needs_labels() -> None:
    with pytest.raises(DataError, match=r"training needs labels, and there are none\. Fix: save them in the .npz as y"):
        prepared(None, numbered(10)[0])


def test_a_teacher_alone_needs_no_labels() -> None:
    alone = Distill(width=0.5, alpha=1)
    found = prepared(None, numbered(10)[0], calibrate=False, passes=(alone,))
    assert found.training.labels is None
    assert prepared(None, numbered(10)[0], passes=(alone, Fuse())).training.labels is None
    for passes in ((Distill(width=0.5),), (alone, Prune()), (alone, Distill(teacher="a.keras"))):
        with pytest.raises(DataError, match="training needs labels"):
            prepared(None, numbered(10)[0], calibrate=False, passes=passes)


def test_errors_of_training_samples_name_their_option(tmp_path) -> None:
    with pytest.raises(DataError, match=r"no such file or folder\. Fix: --train takes"):
        prepared(None, tmp_path / "nothing.npz")
    with pytest.raises(DataError, match="wrong shape"):
        prepared(None, (np.zeros((5, 4), np.float32), np.zeros(5, int)))
