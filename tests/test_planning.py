"""The pre-flight plan, and what is refused before any epoch."""

import numpy as np
import pytest

import edgecompress
from edgecompress.errors import DataError, ModelError, UsageError
from edgecompress.passes import registry
from edgecompress.planning import plan, refuse_unready
from edgecompress.recipes import Quantization, Recipe
from edgecompress.techniques import Cluster, Distill, Fuse, LowRank, Prune, Qat, Training


@pytest.fixture(scope="module")
def model():
    import keras

    layers = keras.layers
    return keras.Sequential([
        keras.Input((8, 8, 1), name="image"),
        layers.Conv2D(4, 3, name="conv"),
        layers.ReLU(name="relu"),
        layers.Flatten(name="flat"),
        layers.Dense(3, name="head"),
    ], name="net")  # fmt: skip


def test_without_a_recipe_each_technique_is_shown_with_its_defaults(model) -> None:
    found = plan(model)
    assert not found.asked
    assert [one.technique for one in found.passes] == [LowRank(), Fuse(), Prune(), Cluster(), Qat()]
    for one in found.passes:
        assert all(layer.detail for layer in one.layers)
        if not isinstance(one.technique, Fuse):  # there is nothing to merge
            assert {"conv", "head"} <= {layer.layer for layer in one.layers if layer.applies}
    assert found.notes == ()
    assert found.refused is None
    assert found.require() is found


def test_a_recipe_is_planned_pass_by_pass(model) -> None:
    recipe = Recipe(passes=(Prune(sparsity=0.8, layers={"head": 0.0}), Qat()))
    found = plan(model, recipe, "pixel")
    assert found.asked
    assert found.profile == "pixel"
    assert [one.technique for one in found.passes] == list(recipe.passes)
    prune = {layer.layer: layer for layer in found.passes[0].layers}
    assert prune["conv"].applies
    assert not prune["head"].applies
    assert edgecompress.Plan.model_validate_json(found.model_dump_json(by_alias=True)) == found


def test_what_comes_after_new_layers_is_planned_for_the_old_ones(model) -> None:
    found = plan(model, Recipe(passes=(LowRank(ratio=0.5), Fuse(), Prune(), Qat())))
    (note,) = found.notes
    assert note.startswith("low_rank makes new layers: the plan of fuse, prune, qat is for the layers as they are")
    assert plan(model, Recipe(passes=(Prune(), LowRank()))).notes == ()
    (note,) = plan(model, Recipe(passes=(Distill(width=0.5), Prune()))).notes
    assert note.startswith("distill makes new layers: the plan of prune is for the layers as they are before it")


def test_a_students_weights_are_planned_and_no_teacher_is_opened(model) -> None:
    found = plan(model, Recipe(passes=(Distill(width=0.5),)))
    assert {layer.layer: layer.detail for layer in found.passes[0].layers} == {
        "conv": "40 -> 20 weights", "head": "435 -> 219 weights",
    }  # fmt: skip
    found = plan(model, Recipe(passes=(Distill(teacher="nothere.keras"),)))
    assert {layer.detail for layer in found.passes[0].layers} == {"trained by nothere.keras"}
    with pytest.raises(UsageError, match="nothing becomes smaller with depth"):
        plan(model, Recipe(passes=(Distill(depth=0.5),)))


def test_fuse_is_planned_for_what_the_device_prefers(model, monkeypatch) -> None:
    seen = []

    def watched() -> dict:
        known = registry()
        known["fuse"] = (lambda *_args, **options: seen.append(options) or (), None)
        return known

    monkeypatch.setattr("edgecompress.planning.registry", watched)
    for profile in ("raspberry-pi-5", "pixel", None):
        plan(model, Recipe(passes=(Fuse(),)), profile)
    assert seen == [{"prefers": "speed"}, {"prefers": "size"}, {}]


def test_a_layer_that_would_end_the_run_is_named_with_its_remedy(model) -> None:
    found = plan(model, Recipe(passes=(Cluster(clusters=5000),)))
    assert found.refused is not None
    with pytest.raises(ModelError) as caught:
        found.require()
    assert f"layer '{found.refused.layer}': cluster: " in str(caught.value)
    assert "Fix: " in str(caught.value)


def test_what_pruning_leaves_is_known_to_the_plan_of_clustering(model) -> None:
    found = plan(model, Recipe(passes=(Prune(layers={"head": 0.0}), Cluster(clusters=2))))
    cells = {layer.layer: layer for layer in found.passes[1].layers}
    assert cells["conv"].refused
    assert "too few to keep its zeros" in cells["conv"].detail
    assert cells["head"].detail == "2 distinct values"
    assert plan(model, Recipe(passes=(Cluster(clusters=2), Prune()))).refused is None
    penalty_only = Recipe(passes=(Prune(sparsity=0.0, l1=1e-5), Cluster(clusters=2)))
    assert plan(model, penalty_only).refused is None


def scheme(name: str) -> Quantization:
    return Quantization(scheme=name)


def test_the_plan_names_what_qat_trains_for(model) -> None:
    assert plan(model, Recipe(passes=(Qat(),)), "ethos-u55-128").scheme == "int8"
    asked = plan(model, Recipe(passes=(Qat(),), quantization=scheme("dynamic")))
    assert (asked.scheme, asked.profile) == ("dynamic", "host")
    assert plan(model, Recipe(passes=(Prune(),)), "pixel").scheme is None
    assert plan(model, None, "pixel").scheme is None


def test_what_the_device_or_qat_cannot_do_is_refused_by_the_plan(model) -> None:
    with pytest.raises(UsageError, match="float32 rounds nothing"):
        plan(model, Recipe(passes=(Qat(),), quantization=scheme("float32")), "pixel")
    with pytest.raises(UsageError, match="'coral-usb' does not take the scheme 'dynamic'"):
        plan(model, Recipe(passes=(Prune(),), quantization=scheme("dynamic")), "coral-usb")


def test_a_pattern_that_matches_nothing(model) -> None:
    with pytest.raises(UsageError, match="hed"):
        plan(model, Recipe(passes=(Prune(layers={"hed": 0.5}),)))


def test_models_that_are_not_of_keras_3(tmp_path, model) -> None:
    import tf_keras

    old = tf_keras.Sequential([tf_keras.layers.Input((4,)), tf_keras.layers.Dense(2)])
    with pytest.raises(
        ModelError,
        match=r"distill, low_rank, fuse, .* take models of Keras 3; received a model of Keras 2\. Fix: .*model\.save",
    ):
        plan(old)
    model.export(tmp_path / "saved", verbose=False)
    with pytest.raises(ModelError, match=r"saved: .*received a SavedModel\. Fix: "):
        plan(tmp_path / "saved")


def test_dimensions_that_vary_must_be_known_for_qat_only() -> None:
    import keras

    varying = keras.Sequential([
        keras.Input((None, 8), name="rows"), keras.layers.Conv1D(4, 3), keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(2),
    ])  # fmt: skip
    assert plan(varying, Recipe(passes=(Prune(),))).passes
    with pytest.raises(DataError, match="--input-shape rows="):
        plan(varying, Recipe(passes=(Qat(),)))
    assert plan(varying, Recipe(passes=(Qat(),)), input_shape=(16, 8)).passes


TRAIN = (np.zeros((4, 8, 8, 1)), np.zeros(4))


@pytest.mark.parametrize(
    ("recipe", "train", "resume", "error", "words"),
    [
        (Recipe(), TRAIN, False, UsageError, "no pass trains the model, so --train would have no effect"),
        (Recipe(), None, True, UsageError, "--resume would have no effect"),
        (Recipe(training=Training(epochs=8)), None, False, UsageError, "settings of the training would have no effect"),
        (Recipe(passes=(Qat(),)), None, False, DataError, "Fix: pass --train samples.npz"),
        (
            Recipe(passes=(Distill(width=0.5),)),
            None,
            False,
            DataError,
            "distill trains the model, which needs training",
        ),
        (Recipe(passes=(Prune(), Distill(teacher="a"))), None, True, DataError, "Fix: pass --train samples.npz"),
        (Recipe(passes=(Prune(),)), None, True, DataError, "--resume was given, but nothing to train on"),
        (Recipe(passes=(Prune(epochs=2),)), None, False, DataError, "but nothing to train on. Fix: pass --train"),
        (Recipe(passes=(Prune(),), training=Training(epochs=2)), None, False, DataError, "nothing to train on"),
        (Recipe(passes=(LowRank(epochs=2),)), None, False, DataError, "nothing to train on"),
        (Recipe(passes=(LowRank(distill=0.5),)), None, False, DataError, "low_rank: distill trains the model"),
        (Recipe(passes=(Prune(), Cluster(distill=1))), None, False, DataError, "cluster: distill trains the model"),
        (Recipe(passes=(LowRank(params_budget=0.5),)), None, False, DataError, "Fix: pass --train or --data"),
        (Recipe(passes=(Prune(), LowRank(flops_budget=9))), None, False, DataError, "flops_budget is shared"),
        (
            Recipe(passes=(Fuse(),)),
            TRAIN,
            False,
            UsageError,
            "no pass trains the model, so --train would have no effect",
        ),
        (Recipe(passes=(Fuse(),)), None, True, UsageError, "--resume would have no effect"),
    ],
)
def test_what_cannot_train_is_refused(recipe, train, resume, error, words) -> None:
    with pytest.raises(error) as caught:
        refuse_unready(recipe, train=train, data=None, resume=resume)
    assert words in str(caught.value)


def test_what_is_ready() -> None:
    nothing = {"train": None, "data": None, "resume": False}
    refuse_unready(Recipe(), **nothing)
    for one in (Prune(), Fuse(), LowRank(), LowRank(evbmf=True)):
        refuse_unready(Recipe(passes=(one,)), **nothing)
    budget = Recipe(passes=(LowRank(params_budget=0.5), Fuse()))
    refuse_unready(budget, **nothing | {"data": TRAIN})
    refuse_unready(budget, **nothing | {"train": TRAIN})
    refuse_unready(Recipe(passes=(Prune(), Qat()), training=Training(epochs=2)), train=TRAIN, data=None, resume=True)
    refuse_unready(Recipe(passes=(LowRank(distill=0.5),)), train=TRAIN, data=None, resume=True)
    refuse_unready(Recipe(passes=(Distill(width=0.5), Fuse())), train=TRAIN, data=None, resume=True)
