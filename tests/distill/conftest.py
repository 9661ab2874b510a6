"""Digits, and teachers of them: trained networks, and the same as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest


@pytest.fixture(scope="session")
def images(digits: Any) -> tuple[Any, Any]:
    """256 images (8, 8, 1) and their labels."""
    (x, y), _ = digits.digits(as_rows=False)
    return x[:256], y[:256]


@pytest.fixture(scope="session")
def rows(digits: Any) -> tuple[Any, Any]:
    """The same as sequences (8, 8)."""
    (x, y), _ = digits.digits(as_rows=True)
    return x[:256], y[:256]


@pytest.fixture(scope="session")
def cnn_teacher(digits_cnn: Any) -> Any:
    """A trained network of images, with probabilities; it must not be changed."""
    return keras.saving.load_model(digits_cnn.model)


@pytest.fixture(scope="session")
def gru_teacher(digits_gru: Any) -> Any:
    """A trained network of sequences, with probabilities; it must not be changed."""
    return keras.saving.load_model(digits_gru.model)


@pytest.fixture(scope="session")
def cnn_tflite(digits_cnn: Any, to_tflite: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cnn_teacher` as a float .tflite file."""
    return to_tflite(digits_cnn.model, tmp_path_factory.mktemp("teacher"))
