"""Which forms of recurrent layers are built for a device; the network that writes them is a stand-in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from edgecompress import recurrent_forms
from edgecompress.candidates import Candidate, Task
from edgecompress.errors import ConversionError
from edgecompress.profiles import RecurrentLowering, load_profile
from edgecompress.recipes import Recipe
from edgecompress.recurrent_forms import build_forms, wanted_forms
from edgecompress.report.model import Attempt
from edgecompress.schemes import QuantizationScheme

LOOP, STEP, UNROLLED, FUSED = RecurrentLowering


class Network:
    """Stands in for `RecurrentNetwork`: writes empty files, and keeps what it was asked for."""

    def __init__(self, folder: Path, steps: tuple[int, ...], kinds: tuple[str, ...], refuses: tuple[str, ...]) -> None:
        self.steps, self.kinds = steps, kinds
        self.written: list[tuple[str, int, bool]] = []
        self._folder, self._refuses = folder, refuses

    def write(self, form: RecurrentLowering, *, per_turn: int = 1, hoist: bool = True) -> SimpleNamespace:
        if form in self._refuses:
            raise ConversionError(f"there is no {form}")
        self.written.append((str(form), per_turn, hoist))
        return SimpleNamespace(
            path=self._folder / f"{form}_{per_turn}.tflite", stream="stream" if form is STEP else None
        )


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A function from a device and a network to its files, what was refused, and what the network was asked for."""

    def call(
        device: str, *, wanted: str = "auto", steps: tuple[int, ...] = (10,), kinds: tuple[str, ...] = ("gru",),
        refuses: tuple[str, ...] = (), measure: bool = True, samples: object = "samples", **facts: object,
    ) -> tuple[list[Candidate], list[Attempt], list[tuple[str, int, bool]]]:  # fmt: skip
        network = Network(tmp_path, steps, kinds, refuses)
        monkeypatch.setattr(recurrent_forms, "RecurrentNetwork", lambda *_parts, **_options: network)
        task = task_for(device, wanted, measure=measure, samples=samples, **facts)
        built, refused = build_forms(task, QuantizationScheme.INT8, None, tmp_path / "forms", untrained=None)
        return built, refused, network.written

    return call


def task_for(device: str, wanted: str, *, measure: bool = True, samples: object = "samples", **facts: object) -> Task:
    profile = load_profile(device)
    profile = profile.model_copy(update={"quantization": profile.quantization.model_copy(update=facts)})
    recipe = Recipe.model_validate({"quantization": {"recurrent": wanted}})
    given = SimpleNamespace(calibration=samples, training=None, fixed=())
    return Task(None, profile, recipe, given, lambda _file: None, lambda *_step: None, measure=measure)


def forms(built: list[Candidate]) -> list[tuple[str, int]]:
    return [(str(one.recurrent), one.per_turn) for one in built]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("pixel", (LOOP, FUSED, STEP, UNROLLED)),
        ("cortex-m4", (LOOP, STEP, FUSED, UNROLLED)),
        ("coral-usb", (UNROLLED, STEP, FUSED)),
        ("ethos-u55-128", (STEP, FUSED, UNROLLED)),
    ],
)
def test_the_profile_says_which_forms_and_in_which_order(device, expected) -> None:
    assert wanted_forms(task_for(device, "auto")) == expected


def test_one_that_is_asked_for_is_the_only_one(build) -> None:
    assert wanted_forms(task_for("pixel", "unrolled")) == (UNROLLED,)
    built, refused, written = build("pixel", wanted="step")
    assert forms(built) == [("step", 1)]
    assert built[0].stream == "stream"
    assert written == [("step", 1, True)]
    assert not refused


def test_all_that_the_device_takes_are_built(build) -> None:
    built, refused, _ = build("pixel", kinds=("lstm", "lstm"), measure=False)
    assert forms(built) == [("loop", 1), ("fused", 1), ("step", 1), ("unrolled", 1)]
    assert {one.scheme for one in built} == {"int8"}
    assert not refused


@pytest.mark.parametrize("kinds", [("gru",), ("lstm", "gru"), ("simple_rnn",)])
def test_only_lstms_are_fused(build, kinds) -> None:
    """What makes no sense for a network is left out without a word; what was asked for is refused by its writer."""
    built, refused, written = build("pixel", kinds=kinds, measure=False)
    assert forms(built) == [("loop", 1), ("step", 1), ("unrolled", 1)]
    assert not refused
    with pytest.raises(ConversionError, match="there is no fused"):
        build("pixel", kinds=kinds, wanted="fused", refuses=("fused",))
    assert "fused" not in [form for form, *_ in written]


def test_a_form_that_the_network_does_not_have_is_an_attempt(build) -> None:
    built, (attempt,), _ = build("ethos-u55-128", kinds=("lstm",), refuses=("step",))
    assert forms(built) == [("fused", 1), ("unrolled", 1)]
    assert (attempt.recurrent, attempt.outcome, attempt.reason) == (STEP, "refused", "there is no step")
    assert attempt.name == "int8 (step)"


def test_if_there_is_no_form_all_reasons_are_given(build) -> None:
    with pytest.raises(ConversionError, match="step: there is no step; unrolled: there is no unrolled"):
        build("ethos-u55-128", refuses=("step", "unrolled"))


@pytest.mark.parametrize(
    ("steps", "wanted", "written"),
    [((64,), "auto", True), ((65,), "auto", False), ((40, 25), "auto", False), ((512,), "unrolled", True)],
)
def test_long_sequences_are_not_unrolled_where_there_are_other_forms(build, steps, wanted, written) -> None:
    built, refused, _ = build("coral-usb", steps=steps, wanted=wanted)
    assert (("unrolled", 1) in forms(built)) is written
    assert [one.recurrent for one in refused] == ([] if written else [UNROLLED])
    if not written:
        assert f"{sum(steps)} steps are too many to write one after the other" in refused[0].reason


def test_too_long_a_sequence_is_never_unrolled(build) -> None:
    with pytest.raises(ConversionError, match=r"513 steps are too many .* expected at most 512"):
        build("coral-usb", steps=(513,), wanted="unrolled")
    with pytest.raises(ConversionError, match="513 steps are too many"):
        build("coral-usb", steps=(513,), recurrent=(UNROLLED,))


@pytest.mark.parametrize(
    ("steps", "turn"),
    [((10,), 5), ((49,), 1), ((12,), 4), ((9,), 3), ((10, 4), 2), ((20, 20), 5), ((3,), 3), ((1,), 1)],
)
def test_a_loop_is_tried_with_several_steps_a_turn_that_divide_its_steps(build, steps, turn) -> None:
    built, _, written = build("host", wanted="loop", steps=steps)
    expected = [("loop", 1), *([("loop", turn)] if turn > 1 else [])]
    assert forms(built) == expected
    assert written == [(*each, True) for each in expected]


@pytest.mark.parametrize(("device", "measure"), [("host", False), ("cortex-m4", True)])
def test_where_times_are_not_measured_there_is_one_loop(build, device, measure) -> None:
    assert forms(build(device, wanted="loop", measure=measure)[0]) == [("loop", 1)]


@pytest.mark.parametrize(
    ("device", "hoist"), [("host", True), ("coral-usb", True), ("cortex-m7", False), ("ethos-u55-128", False)]
)
def test_microcontrollers_have_no_room_for_the_products_of_all_steps(build, device, hoist) -> None:
    _, _, written = build(device, kinds=("lstm",))
    assert {each for *_, each in written} == {hoist}


def test_a_profile_without_recurrent_layers(build) -> None:
    with pytest.raises(ConversionError, match=r"'host' takes no recurrent layers.*add `recurrent` to its"):
        build("host", recurrent=())


def test_without_samples(build) -> None:
    with pytest.raises(ConversionError, match="needs calibration samples"):
        build("host", samples=None)
