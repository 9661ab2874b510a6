"""Finds samples with ids that a model's embeddings have no row for: TensorFlow may read anything in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgecompress.data import Dataset
from edgecompress.errors import DataError
from edgecompress.loaded import LoadedModel, graph_layers


@dataclass(frozen=True)
class Table:
    """An Embedding that an input of the model is fed to.

    Attributes:
        input: The input's name.
        layer: The Embedding's name.
        rows: Its `input_dim`: it takes ids from 0 to one less.
    """

    input: str
    layer: str
    rows: int


def find_tables(source: LoadedModel) -> tuple[Table, ...]:
    """Returns the Embedding layers that take an input of the model as it is, also those in nested models."""
    if not source.is_keras:
        return ()
    names = {id(tensor): spec.name for tensor, spec in zip(source.model.inputs, source.inputs, strict=True)}
    return tuple(_tables(source.model, names))


def refuse_unknown_ids(source: LoadedModel, *datasets: Dataset | None) -> None:
    """Refuses ids that an Embedding has no row for.

    Args:
        source: The model.
        datasets: Samples that fit it; None is left out.

    Raises:
        DataError: There is such an id; names the input, the id and the layer.
    """
    for table in find_tables(source):
        for dataset in datasets:
            if dataset is not None:
                _refuse(table, dataset)


def _tables(model: Any, names: Mapping[int, str]) -> Iterator[Table]:
    for layer, tensors in graph_layers(model):
        fed = [names.get(id(tensor)) for tensor in tensors]
        if getattr(layer, "layers", None):
            inner = zip(getattr(layer, "inputs", None) or (), fed, strict=False)
            yield from _tables(layer, {id(tensor): name for tensor, name in inner if name is not None})
        elif fed and fed[0] is not None and any(base.__name__ == "Embedding" for base in type(layer).__mro__):
            yield Table(fed[0], str(layer.name), int(layer.input_dim))


def _refuse(table: Table, dataset: Dataset) -> None:
    ids = dataset.inputs[table.input]
    low, high = int(ids.min(initial=0)), int(ids.max(initial=0))
    if low >= 0 and high < table.rows:
        return
    received = f"{high} as the largest" if high >= table.rows else f"{low} as the smallest"
    raise DataError(
        f"input {table.input!r} has ids that the layer {table.layer!r} has no row for", where=dataset.source,
        expected=f"ids from 0 to {table.rows - 1} (its input_dim is {table.rows})",
        received=received,
        fix="number the samples with the vocabulary that the model was built for, with one id for unknown words",
    )  # fmt: skip
