"""Conversion without a child process, where TensorFlow would have to be imported again each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgecompress.converters import tflite
from edgecompress.converters.graph_child import convert_graph
from edgecompress.data import fix_shapes
from edgecompress.isolate import Outcome
from edgecompress.models import load_model


class _Here:
    """Stands in for `isolate.Child`: does its work in this process."""

    def __init__(self, _module: str, **_options: Any) -> None:
        pass

    def run(self, job: dict[str, Any], *, time_limit_s: float) -> tuple[Outcome, dict[str, Any]]:
        assert time_limit_s > 60
        return Outcome(0, "", "", timed_out=False), convert_graph(job, lambda _done, _total: None)

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def to_tflite() -> Callable[[object, Path], Path]:
    """A function from a model and a folder to the model's float .tflite file."""

    def convert(model: object, folder: Path) -> Path:
        loaded = load_model(model)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tflite, "Child", _Here)
            with tflite.FloatConverter() as converter:
                return converter.convert(tflite.freeze_graph(loaded, fix_shapes(loaded.inputs, None)), folder)

    return convert
