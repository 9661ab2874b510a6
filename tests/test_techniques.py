from __future__ import annotations

import math
from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from edgecompress.techniques import (
    RANK_CHOICES,
    Cluster,
    Distill,
    Fuse,
    LowRank,
    Prune,
    Qat,
    Technique,
    Term,
    Training,
    Trains,
    setting_for,
)

NOT_SHARES = (-0.1, 1.1, math.nan, math.inf, "half", True, None)
NOT_COUNTS = (0, -1, 2.0, "8", True)
TRAINS = {
    "epochs": NOT_COUNTS,
    "distill": (*NOT_SHARES, 2),
    "temperature": (0, 0.0, -1.0, math.nan, math.inf, "hot", True, None),
}


def bad(kind, values):
    return [(kind, field, value) for field, found in values.items() for value in found]


def of_answers(**fields):
    """A term, whose kind has no default."""
    return Term(**{"kind": "logits", **fields})


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *bad(
            Training,
            {
                "epochs": (*NOT_COUNTS, None),
                "batch_size": (*NOT_COUNTS, None),
                "learning_rate": (0.0, -1e-3, math.nan, math.inf, "fast", True),
                "validation": (*NOT_SHARES, 0.51, 1.0),
                "early_stopping": NOT_COUNTS,
                "unknown": (1,),
            },
        ),
        *bad(
            Prune,
            {
                "kind": ("cluster", 1),
                "sparsity": (*NOT_SHARES, 1.0),
                "layers": ({"conv": 1.0}, {"conv": -0.1}, {"conv(": 0.5}, {"conv": "0.5"}, ["conv"]),
                "schedule": ("linear", 1, None),
                "initial_sparsity": (*NOT_SHARES, 1.0, 0.6),
                "begin": (*NOT_SHARES, 0.7),
                "end": NOT_SHARES,
                "pattern": ("2", "4:2", "2:2", "0:4", "-1:4", "2:4:8", "two:four", 2.4),
                "block": ((1,), (0, 1), (1, -1), (1.5, 1), (1, 1, 1), 4),
                "block_pooling": ("avg", "SUM"),
                "criterion": ("random", None),
                "l1": (0.0, -1e-5, math.nan, True),
                **TRAINS,
                "unknown": (1,),
            },
        ),
        *bad(
            Cluster,
            {
                "clusters": (*NOT_COUNTS, 1, None),
                "layers": ({"conv": 1}, {"conv": -1}, {"conv": 2.0}, {"[": 4}, {"conv": True}),
                "centroids": ("kmeans", None),
                "per_channel": (1, "yes", None),
                "preserve_sparsity": (0, "no", None),
                **TRAINS,
                "unknown": (1,),
            },
        ),
        *bad(
            LowRank,
            {
                "rank": NOT_COUNTS,
                "ratio": (-0.1, 0.0, 1.0, 1.1, math.nan, "half", True),
                "energy": (-0.1, 0.0, 1.01, math.nan, math.inf, "most", True),
                "params_budget": (-0.1, 0, 1.0, 1.5, math.nan, "half", True),
                "flops_budget": (-1, 0.0, 2.5, "half"),
                "evbmf": (1, "yes", None),
                "layers": ({"conv": -1}, {"conv": 1.5}, {"[": 4}, {"conv": True}, {"conv": None}),
                "activation_aware": (1, None),
                "conv": ("svd", None),
                "gates": ("each",),
                "multiple": NOT_COUNTS,
                **TRAINS,
                "unknown": (1,),
            },
        ),
        *bad(
            Distill,
            {
                "kind": ("prune",),
                "teacher": (5, ("big.keras", 1), True, None),
                "width": (0, 0.0, -0.5, 1.5, 2, math.nan, "half", True),
                "depth": (0, 1.01, "half", True),
                "rank": (0, 0.0, -1, 1.5, math.nan, "low", True),
                "alpha": (*NOT_SHARES, 2),
                "temperature": TRAINS["temperature"],
                "losses": (({"kind": "nonsense"},), "logits", ({"weight": 1.0},)),
                "cache": (0, "no", None),
                "epochs": NOT_COUNTS,
                "unknown": (1,),
            },
        ),
        *bad(
            of_answers,
            {
                "kind": ("self_distillation", None, 1),
                "weight": (0, -1.0, math.nan, math.inf, "much", True, None),
                "teacher_layer": (5,),
                "student_layer": (("a",),),
                "projector": ("dense", True),
                "unknown": (1,),
            },
        ),
        *bad(
            Fuse,
            {
                "batch_norm": (1, None),
                "linear": ("yes",),
                "embedding": ("fast", None, True),
                "unknown": (1,),
            },
        ),
        *bad(
            Qat,
            {
                "exclude": (("(",), "dense", (1,)),
                "preserve_sparsity": (1, "yes"),
                "preserve_clusters": (1, "yes"),
                **TRAINS,
                "unknown": (1,),
            },
        ),
    ],
)
def test_bad_values_are_refused_at_their_field(kind, field, value):
    with pytest.raises(ValidationError) as caught:
        kind(**{field: value})
    assert {error["loc"][0] for error in caught.value.errors() if error["loc"]} <= {field}


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (Prune, {"pattern": "2:4", "block": (1, 4)}, "give one of them"),
        (Prune, {"begin": 0.7, "end": 0.5}, "begin is later than end"),
        (Prune, {"sparsity": 0.3, "initial_sparsity": 0.4}, "initial_sparsity is larger"),
        (Training, {"early_stopping": 2, "validation": 0}, "validation is 0"),
        (LowRank, {"rank": 4, "energy": 0.9}, "rank and energy are different ways of choosing ranks"),
        (LowRank, {"ratio": 0.5, "evbmf": True}, "ratio and evbmf .*: give one of them"),
        (LowRank, {"conv": "cp", "energy": 0.9}, "'cp' has no singular values"),
        (LowRank, {"conv": "cp"}, "'cp' has no singular values"),
        (Cluster, {"temperature": 4.0}, "give distill, too"),
        (Distill, {}, "a model cannot teach itself: give width, depth or rank of its student, or a teacher"),
        (Distill, {"alpha": 0.5}, "a model cannot teach itself"),
        (Term, {"kind": "features"}, "features compares layers: give teacher_layer and student_layer"),
        (Term, {"kind": "hidden_states", "teacher_layer": "gru"}, "give teacher_layer and student_layer"),
        (Term, {"kind": "logits", "student_layer": "digit"}, "logits compares outputs: leave"),
        (Term, {"kind": "soft_labels", "projector": "linear"}, "soft_labels takes no projector"),
        (
            Term,
            {"kind": "attention_transfer", "teacher_layer": "a", "student_layer": "b", "projector": "linear"},
            "attention_transfer takes no projector",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(kind, values, words):
    with pytest.raises(ValidationError, match=words):
        kind(**values)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Training, {"epochs": 1, "learning_rate": 1, "validation": 0, "early_stopping": None}),
        (Training, {"validation": 0.5, "early_stopping": 1}),
        (Prune, {"sparsity": 0, "layers": {"conv": 0}, "initial_sparsity": 0}),
        (Prune, {"sparsity": 0.999, "begin": 1, "end": 1}),
        (Prune, {"schedule": "constant", "begin": 0.9}),
        (Prune, {"pattern": "3:4"}),
        (Prune, {"block": [2, 4]}),
        (Cluster, {"clusters": 2, "layers": {"conv": 0, "dense": 256}}),
        (Qat, {"exclude": ["dense", ".*"]}),
        *((kind, {"epochs": 2, "distill": 0.5, "temperature": 4}) for kind in (LowRank, Prune, Cluster, Qat)),
        (LowRank, {"energy": 1.0}),
        (LowRank, {"rank": 16, "conv": "cp", "gates": "separate", "distill": 1}),
        (LowRank, {"params_budget": 200_000, "layers": {"conv": 0, "gru": 16, "head": 0.25}}),
        (Fuse, {"batch_norm": False, "embedding": "speed"}),
        (Distill, {"width": 0.5, "depth": 1, "rank": 16, "alpha": 1, "temperature": 0.5, "cache": False, "epochs": 2}),
        (Distill, {"teacher": "big.keras", "rank": 0.25, "alpha": 0}),
        (Distill, {"teacher": ["big.keras", "other.tflite"]}),
        (Distill, {"width": 1, "losses": [Term(kind="logits", weight=2)]}),
        (Term, {"kind": "features", "teacher_layer": "a/b", "student_layer": "c", "projector": "linear"}),
    ],
)
def test_good_values_are_kept(kind, values):
    spec = kind(**values)
    assert kind(**spec.model_dump()) == spec
    for name, value in values.items():
        kept = getattr(spec, name)
        assert kept == (tuple(value) if isinstance(value, list) else value)


def test_each_kind_is_known_by_its_name():
    adapter = TypeAdapter(Technique)
    kinds = ("low_rank", "fuse", "prune", "cluster", "qat")
    assert [type(adapter.validate_python({"kind": kind})) for kind in kinds] == [LowRank, Fuse, Prune, Cluster, Qat]
    assert adapter.validate_python({"kind": "distill", "width": 0.5}) == Distill(width=0.5)
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "shrink"})


@pytest.mark.parametrize(
    ("spec", "choice"),
    [
        (LowRank(), ("energy", 0.95)),
        (LowRank(rank=8), ("rank", 8)),
        (LowRank(flops_budget=0.5), ("flops_budget", 0.5)),
        (LowRank(evbmf=True), ("evbmf", True)),
    ],
)
def test_the_way_of_choosing_ranks(spec, choice):
    assert spec.choice == choice


def test_who_teaches_and_who_learns():
    assert (Distill(width=0.5).teachers, Distill(width=0.5).makes_student) == ((), True)
    assert (Distill(teacher="a").teachers, Distill(teacher="a").makes_student) == (("a",), False)
    both = Distill(teacher=("a", "b"), depth=0.5)
    assert (both.teachers, both.makes_student) == (("a", "b"), True)


def test_each_term_is_a_loss_of_distillation():
    from edgecompress import distill

    for kind in get_args(Term.model_fields["kind"].annotation):
        assert hasattr(distill, "".join(word.capitalize() for word in kind.split("_"))), kind


def test_a_technique_cannot_be_changed():
    with pytest.raises(ValidationError):
        Prune().sparsity = 0.9


def test_the_first_pattern_that_matches_the_start_of_a_name_counts():
    layers = {"conv_2": 0.9, "conv": 0.5, ".*head": 0.0}
    assert setting_for("conv_2", layers, 0.7) == 0.9
    assert setting_for("conv_3", layers, 0.7) == 0.5
    assert setting_for("outer/head", layers, 0.7) == 0.0
    assert setting_for("my_conv", layers, 0.7) == 0.7


def test_each_way_of_choosing_ranks_chooses() -> None:
    values = {"rank": 4, "evbmf": True}
    for name in RANK_CHOICES:
        assert LowRank(**{name: values.get(name, 0.5)}).choice[0] == name
    others = LowRank.model_fields.keys() - set(RANK_CHOICES)
    assert others == {"kind", "layers", "activation_aware", "conv", "gates", "multiple"} | set(Trains.model_fields)
