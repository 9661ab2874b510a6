"""How accurate a .keras or .tflite model is on labelled data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgecompress.data import load_data
from edgecompress.errors import DataError
from edgecompress.verify.metrics import Scores, score
from edgecompress.verify.predictor import open_predictor


class Evaluation(BaseModel):
    """A model's figures on labelled data. `class_names` says what the rows of the confusion matrix mean."""

    model_config = ConfigDict(frozen=True)

    schema_name: Literal["edgecompress.evaluate/1"] = Field("edgecompress.evaluate/1", alias="schema")
    model: str
    data: str
    scores: Scores
    class_names: tuple[str, ...] = ()


def evaluate(
    model: object,
    data: object,
    *,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    input_range: tuple[float, float] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    unsafe: bool = False,
    threads: int = 1,
) -> Evaluation:
    """Runs a model on labelled data.

    Args:
        model: A .tflite file, a Keras file or folder, or a Keras model.
        data: Samples with labels: whatever `load_data` takes.
        input_shape: Fixes dimensions that vary, by input name ("" for the only one).
        input_range: The range that 8-bit samples are mapped to.
        custom_objects: Custom layers and functions by name.
        unsafe: Accept Lambda layers and pickled arrays, which run code from the file.
        threads: Threads of a .tflite file's CPU kernels.

    Raises:
        DataError: The data has no labels, or does not fit the model.
        ExecutionError: The runtime crashed on the .tflite file.
    """
    predictor = open_predictor(
        model, input_shape=input_shape, custom_objects=custom_objects, unsafe=unsafe, threads=threads
    )
    dataset = load_data(data, predictor.specs, input_range=input_range, unsafe=unsafe)
    if dataset.labels is None:
        raise DataError("the data has no labels", where=dataset.source, fix="add an array y, or use class subfolders")
    scores = score(predictor.predict(dataset), dataset.labels)
    return Evaluation(model=predictor.name, data=dataset.source, scores=scores, class_names=dataset.class_names)
