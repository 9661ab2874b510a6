import numpy as np

from edgecompress.passes.base import LayerPlan, PassResult
from edgecompress.recipes import Recipe
from edgecompress.report.notes import notes_on_compression
from edgecompress.report.tables import counted
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


def test_numbers_and_their_plurals() -> None:
    assert [counted(number, "epoch") for number in (0, 1, 2000)] == ["0 epochs", "1 epoch", "2,000 epochs"]
