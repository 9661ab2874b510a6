import numpy as np

from edgecompress.passes.base import LayerPlan, LayerRank, PassResult
from edgecompress.recipes import Quantization, Recipe
from edgecompress.report.notes import notes_on_compression
from edgecompress.report.tables import counted
from edgecompress.techniques import LowRank, Prune
from edgecompress.verify.verification import verify

LABELS = np.arange(80) % 4
RIGHT = np.eye(4, dtype=np.float32)[LABELS]


def notes(wrong: int, labels: np.ndarray | None, passes: tuple[PassResult, ...] = ()) -> tuple[str, ...]:
    """The notes on a model that answers `wrong` of 80 samples otherwise than before."""
    answers = RIGHT.copy()
    answers[:wrong] = np.roll(answers[:wrong], 1, axis=1)
    verified = verify({"class": RIGHT}, {"class": answers}, labels, "held-out")
    return notes_on_compression(Recipe(), verified, None, trained=(), passes=passes)


def test_a_loss_of_accuracy_is_counted_in_points() -> None:
    assert notes(18, LABELS)[0].startswith("WARNING: accuracy fell by 22.50 points. ")
    assert notes(18, None)[0].startswith("WARNING: the share of changed answers is 22.5%. ")
    assert not any("accuracy fell" in note for note in notes(1, LABELS))


def test_a_pass_that_changed_nothing() -> None:
    layer = LayerPlan(layer="head", kind="Dense", technique="prune", applies=False, detail="left as it is: sparsity 0")
    idle = PassResult(kind="prune", plan=(layer,), proof=())
    assert notes(0, LABELS, (idle,))[0] == "WARNING: prune changed nothing: left as it is: sparsity 0."


def test_a_low_rank_that_changed_nothing_has_its_reasons_elsewhere() -> None:
    facts = {"layer": "head", "kind": "Dense"}
    plan = LayerPlan(**facts, technique="low_rank", applies=False, detail="90 MACs instead of 80")
    rank = LayerRank(
        **facts, shapes=((8, 10),), full_ranks=(8,), params=80, macs=80, chosen=None, accepted=False, reason=plan.detail
    )
    idle = PassResult(kind="low_rank", plan=(plan,), ranks=(rank,))
    assert notes(0, LABELS, (idle,))[0].startswith("WARNING: low_rank changed nothing: the reasons, layer by layer")
    empty = PassResult(kind="fuse", plan=())
    assert notes(0, LABELS, (empty,))[0] == "WARNING: fuse changed nothing: the model has no layer for it."


def test_how_many_samples_calibrate_matters_to_low_rank_in_a_keras_file() -> None:
    verified = verify({"class": RIGHT}, {"class": RIGHT}, LABELS, "held-out")
    quantization = Quantization(calibration_samples=9)
    for passes, said in (((Prune(),), True), ((LowRank(),), False)):
        recipe = Recipe(passes=passes, quantization=quantization)
        found = notes_on_compression(recipe, verified, None, trained=(), passes=())
        assert any("[quantization]" in note for note in found) is said


def test_numbers_and_their_plurals() -> None:
    assert [counted(number, "epoch") for number in (0, 1, 2000)] == ["0 epochs", "1 epoch", "2,000 epochs"]
