from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecompress.artifacts import read_artifact
from edgecompress.benchmark.execute import run_tflite
from edgecompress.tiny import tiny_model


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.tflite"
    path.write_bytes(tiny_model())
    return path


def test_it_adds_two_vectors(file: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 5, 4), np.float32)
    outputs = run_tflite(file, {"a": a, "b": b})
    assert list(outputs) == ["sum"]
    np.testing.assert_allclose(outputs["sum"], a + b, rtol=1e-6)


def test_it_is_one_operator_without_weights(file: Path) -> None:
    artifact = read_artifact(file)
    assert artifact.op_counts == {"ADD": 1}
    assert artifact.parameters == 0
    assert artifact.size_bytes < 1000
    signature = artifact.signature
    assert signature.key == "serving_default"
    shapes = {name: (info.shape, info.dtype) for name, info in (signature.inputs | signature.outputs).items()}
    assert shapes == dict.fromkeys(("a", "b", "sum"), ((1, 4), "float32"))


def test_it_is_the_same_each_time() -> None:
    assert tiny_model() == tiny_model()
