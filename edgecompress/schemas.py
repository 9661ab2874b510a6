"""Turns pydantic's validation errors into one clear line, with the nearest allowed name for an unknown key or value."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edgecompress.errors import did_you_mean

_LONGEST_VALUE = 60
_LIST = "a list, in square brackets"
_SHAPES = {"model_type": "a table", "tuple_type": _LIST, "list_type": _LIST}


def explain_validation_error(error: ValidationError, root: type[BaseModel]) -> str:
    """Returns one line that names the first wrong key, what it takes and what it got.

    Args:
        error: What pydantic raised.
        root: The model that was validated.
    """
    problems: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors():  # a union reports one error for each of its members
        problems.setdefault(_locate(detail, root).key, []).append(detail)
    # A misspelt key is a missing key too: the unknown one says what went wrong.
    first = min(problems.values(), key=lambda details: details[0]["type"] != "extra_forbidden")
    line = _explain(first, root)
    more = len(problems) - 1
    return line if not more else f"{line} (and {more} more {'problem' if more == 1 else 'problems'})"


@dataclass(frozen=True)
class _Place:
    """Where an error is: its key without union tags, the model that holds the key, and the annotation of its value."""

    key: str
    owner: type[BaseModel]
    annotation: object


def _locate(detail: ErrorDetails, root: type[BaseModel]) -> _Place:
    owner: type[BaseModel] = root
    models: list[type[BaseModel]] = [root]
    annotation: object = root
    keys: list[str] = []
    unknown_key = detail["type"] == "extra_forbidden"
    for part in detail["loc"][:-1] if unknown_key else detail["loc"]:
        if isinstance(part, int):
            keys.append(str(part))
        elif models and part in models[0].model_fields:
            owner = models[0]
            annotation = owner.model_fields[part].annotation
            models = [leaf for leaf in _leaves(annotation) if issubclass(leaf, BaseModel)]
            keys.append(part)
        else:  # pydantic's name for a member of a union: not a key that anybody wrote
            models = [model for model in models if _answers_to(model, part)]
    if unknown_key:
        keys.append(str(detail["loc"][-1]))
        owner = models[0] if models else owner
    return _Place(".".join(keys), owner, annotation)


def _explain(details: list[ErrorDetails], root: type[BaseModel]) -> str:
    detail = details[0]
    kind, received = detail["type"], detail["input"]
    place = _locate(detail, root)
    if kind == "extra_forbidden":
        return f"unknown key {place.key!r}: {did_you_mean(str(detail['loc'][-1]), place.owner.model_fields)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _explain_tag(detail, place.key)
    if kind == "missing":
        meaning = place.owner.model_fields[str(detail["loc"][-1])].description
        return f"key {place.key!r} is missing" + (f": {meaning}" if meaning else "")
    choices = _choices(place.annotation)
    if choices and all(each["type"] in ("enum", "literal_error") for each in details):
        return f"key {place.key!r} has the unknown value {_short(received)}: {did_you_mean(str(received), choices)}"
    got = f"received {_short(received)} ({type(received).__name__})"
    shape = _SHAPES.get(kind)
    if shape is not None:
        return f"key {place.key!r} must be {shape}; {got}"
    message = detail["msg"].removeprefix("Value error, ")
    line = f"{message[0].lower()}{message[1:]}"
    line = f"key {place.key!r}: {line}" if place.key else line
    return line if isinstance(received, dict) else f"{line}; {got}"


def _explain_tag(detail: ErrorDetails, key: str) -> str:
    """Says what is wrong with the key that tells the members of a union apart."""
    context = {name: str(value).replace("'", "") for name, value in detail["ctx"].items()}  # pydantic quotes them
    key = f"{key}.{context['discriminator']}"
    if "tag" not in context:
        return f"key {key!r} is missing"
    allowed = context["expected_tags"].split(", ")
    return f"key {key!r} has the unknown value {context['tag']!r}: {did_you_mean(context['tag'], allowed)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _answers_to(model: type[BaseModel], tag: str) -> bool:
    """Returns whether `tag` is the model's name or the value of its discriminator."""
    literals = (f.annotation for f in model.model_fields.values() if typing.get_origin(f.annotation) is typing.Literal)
    return tag == model.__name__ or any(tag in _choices(literal) for literal in literals)


def _choices(annotation: object) -> list[str]:
    """Returns the values that the enums and literals inside an annotation allow."""
    if typing.get_origin(annotation) is typing.Literal:
        return [str(value) for value in typing.get_args(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return [str(member) for member in annotation]
    return [choice for part in typing.get_args(annotation) for choice in _choices(part)]


def _leaves(annotation: object) -> list[type]:
    """Returns the classes inside an annotation such as `tuple[X, ...] | None`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, list, dict, typing.Annotated):
        return [leaf for part in typing.get_args(annotation) for leaf in _leaves(part)]
    return [annotation] if isinstance(annotation, type) else []
