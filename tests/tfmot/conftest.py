"""Digits as the small models of these tests take them, and quantization-aware training from a model to its file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgecompress.artifacts import Artifact, read_artifact
from edgecompress.converters.tflite import FloatConverter, freeze_graph
from edgecompress.data import fix_shapes, load_data
from edgecompress.models import load_model
from edgecompress.passes.base import PassContext, PassResult
from edgecompress.schemes import IoType, QuantizationScheme
from edgecompress.techniques import Qat, Training

_SAMPLES = 600


class TrainedQuantized(NamedTuple):
    """A model after quantization-aware training, and its file."""

    result: PassResult
    artifact: Artifact
    agreement: float

    @property
    def float_boundaries(self) -> dict[str, int]:
        """How often the file goes from float to integers and back."""
        return {name: n for name, n in self.artifact.op_counts.items() if name in ("QUANTIZE", "DEQUANTIZE")}


@pytest.fixture(scope="session")
def digit_samples(digits: ModuleType) -> Callable[[Any], tuple[np.ndarray, np.ndarray]]:
    """A function from a model to samples of the shape and type of its input, and their labels."""
    (images, labels), _ = digits.digits(as_rows=False)

    def fit(model: Any) -> tuple[np.ndarray, np.ndarray]:
        shape, dtype = model.inputs[0].shape[1:], str(model.inputs[0].dtype)
        pixels = images[:_SAMPLES].reshape(-1, *shape)
        whole = dtype != "float32" or any(type(layer).__name__ == "Embedding" for layer in model.layers)
        return (pixels * 16 if whole else pixels).astype(dtype), labels[:_SAMPLES]

    return fit


@pytest.fixture
def trained_quantized(
    digit_samples: Callable[[Any], tuple[np.ndarray, np.ndarray]],
    in_process: Callable[[], AbstractContextManager[None]],
    tmp_path: Path,
) -> Callable[..., TrainedQuantized]:
    """A function that trains a model in float, then one epoch with quantization, and compares file and training."""
    import keras

    from edgecompress.tfmot.qat import train_quantized

    def train(model: Any, spec: Qat | None = None, *, epochs: int = 4) -> TrainedQuantized:
        keras.utils.set_random_seed(0)
        x, y = digit_samples(model)
        if epochs:
            model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
            model.fit(x, y, epochs=epochs, batch_size=32, verbose=0)
        source = load_model(model)
        data = load_data((x, y), source.inputs)
        fixed = fix_shapes(source.inputs, data)
        context = PassContext(training=Training(epochs=1, learning_rate=1e-3), data=data)
        trained, result = train_quantized(
            source, spec or Qat(), fixed=fixed, scheme=QuantizationScheme.INT8, context=context
        )
        with in_process(), FloatConverter() as converter:
            file = converter.convert(freeze_graph(trained, fixed), tmp_path, (IoType.FLOAT32, IoType.FLOAT32))
        simulated = np.asarray(trained.model(x, training=False)).argmax(-1)
        answers = np.array([np.argmax(one) for one in run_file(file, x)])
        return TrainedQuantized(result, read_artifact(file), float(np.mean(answers == simulated)))

    return train


def run_file(file: Path, samples: np.ndarray) -> list[np.ndarray]:
    """Runs a .tflite file with one input and one output on samples, one by one."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file))
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    answers = []
    for sample in samples:
        interpreter.set_tensor(source, sample[None])
        interpreter.invoke()
        answers.append(interpreter.get_tensor(target)[0])
    return answers
