from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter


@pytest.fixture
def answer_of_file() -> Callable[[Path, Any], np.ndarray]:
    """A function from a .tflite file of one input and one output, and one sample, to its answer."""

    def run(file: Path, sample: np.ndarray) -> np.ndarray:
        interpreter = Interpreter(str(file), num_threads=1)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return run
