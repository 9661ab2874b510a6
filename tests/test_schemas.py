from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgecompress.schemas import explain_validation_error


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Prune(Part):
    kind: Literal["prune"]
    sparsity: float = Field(description="Share of zeros.")


class Cluster(Part):
    kind: Literal["cluster"]
    clusters: int


class Inner(Part):
    size: int = Field(gt=0, description="How large it is.")
    colour: Colour | Literal["auto"] = "auto"
    colours: tuple[Colour, ...] = ()
    note: str | None = None

    @model_validator(mode="after")
    def _limit(self) -> Inner:
        if self.size > 100:
            raise ValueError("Size is too large")
        return self


class Root(Part):
    inner: Inner
    more: tuple[Inner, ...] = ()
    passes: tuple[Annotated[Prune | Cluster, Field(discriminator="kind")], ...] = ()
    either: Prune | Cluster | None = None


def explain(data: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Root.model_validate(data)
    line = explain_validation_error(caught.value, Root)
    assert "\n" not in line
    return line


def with_inner(**values: Any) -> dict[str, Any]:
    return {"inner": {"size": 1, **values}}


def test_an_unknown_key_at_the_top() -> None:
    assert explain({**with_inner(), "iner": 1}) == (
        "unknown key 'iner': did you mean 'inner'? Allowed: either, inner, more, passes"
    )


def test_an_unknown_nested_key_is_compared_with_the_keys_of_its_own_table() -> None:
    assert explain(with_inner(color="red")) == (
        "unknown key 'inner.color': did you mean 'colour'? Allowed: colour, colours, note, size"
    )


def test_an_unknown_key_in_a_list_of_tables_has_its_position() -> None:
    data = {**with_inner(), "more": [{"size": 1}, {"size": 1, "nota": "x"}]}
    assert explain(data).startswith("unknown key 'more.1.nota': did you mean 'note'?")


def test_two_unknown_keys_are_two_problems() -> None:
    line = explain(with_inner(sise=1, coluor="red"))
    assert line.startswith("unknown key 'inner.sise': did you mean 'size'?")
    assert line.endswith("(and 1 more problem)")


def test_a_missing_key_says_what_it_means() -> None:
    assert explain({"inner": {}}) == "key 'inner.size' is missing: How large it is."
    assert explain({}) == "key 'inner' is missing"


def test_a_wrong_value_of_an_enum_in_a_list() -> None:
    assert explain(with_inner(colours=["red", "gren"])) == (
        "key 'inner.colours.1' has the unknown value 'gren': did you mean 'green'? Allowed: green, red"
    )


def test_a_wrong_value_of_an_enum_or_a_word_is_one_problem_with_all_choices() -> None:
    assert explain(with_inner(colour="gren")) == (
        "key 'inner.colour' has the unknown value 'gren': did you mean 'green'? Allowed: auto, green, red"
    )
    assert explain(with_inner(colour=3)) == "key 'inner.colour' has the unknown value 3: Allowed: auto, green, red"


def test_a_wrong_type_shows_what_came() -> None:
    assert explain(with_inner(size="many")).startswith("key 'inner.size': input should be a valid integer")
    assert explain(with_inner(size="many")).endswith("received 'many' (str)")
    assert explain(with_inner(note=3)) == "key 'inner.note': input should be a valid string; received 3 (int)"


def test_a_value_where_a_table_or_a_list_belongs() -> None:
    assert explain({"inner": 3}) == "key 'inner' must be a table; received 3 (int)"
    assert explain(with_inner(colours="red")) == (
        "key 'inner.colours' must be a list, in square brackets; received 'red' (str)"
    )


def test_a_long_value_is_cut() -> None:
    line = explain(with_inner(size="9" * 500 + "x"))
    assert len(line) < 250
    assert "..." in line


def test_a_rule_over_a_whole_table_does_not_repeat_the_table() -> None:
    assert explain(with_inner(size=101)) == "key 'inner': size is too large"


def test_members_of_a_tagged_union_are_told_apart() -> None:
    data = {**with_inner(), "passes": [{"kind": "cluster", "clusters": 4}, {"kind": "cluster", "cluster": 4}]}
    line = explain(data)
    assert line.startswith("unknown key 'passes.1.cluster': did you mean 'clusters'?")
    assert line.endswith("(and 1 more problem)")
    data = {**with_inner(), "passes": [{"kind": "cluster"}]}
    assert explain(data) == "key 'passes.0.clusters' is missing"
    data = {**with_inner(), "passes": [{"kind": "cluster", "clusters": 4, "cluster": 4}]}
    assert explain(data) == "unknown key 'passes.0.cluster': did you mean 'clusters'? Allowed: clusters, kind"
    wrong = explain({**with_inner(), "passes": [{"kind": "prone"}]})
    assert wrong == "key 'passes.0.kind' has the unknown value 'prone': did you mean 'prune'? Allowed: cluster, prune"
    assert explain({**with_inner(), "passes": [{"clusters": 4}]}) == "key 'passes.0.kind' is missing"


def test_members_of_an_untagged_union_are_told_apart() -> None:
    line = explain({**with_inner(), "either": {"kind": "prune"}})
    assert line.startswith("key 'either.sparsity' is missing: Share of zeros.")


def test_problems_are_counted_once_each() -> None:
    line = explain({"inner": {"size": "x", "colour": "x", "colours": ["x"]}})
    assert line.startswith("key 'inner.size'")
    assert line.endswith("(and 2 more problems)")
