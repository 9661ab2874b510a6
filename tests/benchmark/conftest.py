"""Tiny .tflite files written directly as flatbuffers, so that these tests need no converter."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from tests.handsteps import clamped_sum, counted_tokens, delay_line, shifted_sum

_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "int32": schema.TensorType.INT32,
    "bool": schema.TensorType.BOOL,
}
Data = np.ndarray | None


@dataclass
class Network:
    """Collects tensors and operators of one subgraph, and writes the file."""

    buffers: list[schema.BufferT] = field(default_factory=lambda: [schema.BufferT()])
    tensors: list[schema.TensorT] = field(default_factory=list)
    codes: list[schema.OperatorCodeT] = field(default_factory=list)
    operators: list[schema.OperatorT] = field(default_factory=list)

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str = "float32",
        *,
        data: Data = None,
        scale: float | None = None,
        zero_point: int = 0,
    ) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name.encode(), list(shape), _TYPES[dtype]
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.astype(dtype).tobytes(), np.uint8)
            self.buffers.append(buffer)
            tensor.buffer = len(self.buffers) - 1
        if scale is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [zero_point]
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def add(
        self,
        builtin: int,
        inputs: list[int],
        outputs: list[int],
        options: object = None,
        kind: int = schema.BuiltinOptions.NONE,
        version: int = 1,
    ) -> None:
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode = builtin, min(builtin, 127)
        code.version = version
        self.codes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = len(self.codes) - 1, inputs, outputs
        operator.builtinOptions, operator.builtinOptionsType = options, kind
        self.operators.append(operator)

    def write(
        self, path: Path, inputs: dict[str, int], outputs: dict[str, int], *, signature: str | None = "serving_default"
    ) -> Path:
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = list(inputs.values()), list(outputs.values())
        model = schema.ModelT()
        model.version, model.subgraphs = 3, [graph]
        model.buffers, model.operatorCodes = self.buffers, self.codes
        if signature is not None:
            definition = schema.SignatureDefT()
            definition.signatureKey, definition.subgraphIndex = signature.encode(), 0
            definition.inputs = [_named(name, index) for name, index in inputs.items()]
            definition.outputs = [_named(name, index) for name, index in outputs.items()]
            model.signatureDefs = [definition]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(builder.Output())
        return path


def _named(name: str, index: int) -> schema.TensorMapT:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), index
    return entry


WEIGHTS = np.random.default_rng(7).normal(size=(3, 4)).astype(np.float32)  # (units, features)
BIAS = np.array([0.1, -0.2, 0.3], np.float32)
IN_SCALE, IN_ZERO = 0.02, 5
OUT_SCALE, OUT_ZERO = 0.05, -7
WEIGHT_SCALE = float(np.abs(WEIGHTS).max() / 127)


def float_dense(x: np.ndarray) -> np.ndarray:
    """What the float models compute."""
    return x @ WEIGHTS.T + BIAS


def int8_dense(x: np.ndarray) -> np.ndarray:
    """What the int8 model computes, in its outputs' integers, from float inputs."""
    q = np.clip(np.round(x / IN_SCALE) + IN_ZERO, -128, 127)
    weights, bias = np.round(WEIGHTS / WEIGHT_SCALE), np.round(BIAS / (IN_SCALE * WEIGHT_SCALE))
    sums = (q - IN_ZERO) @ weights.T + bias
    return np.clip(np.round(sums * IN_SCALE * WEIGHT_SCALE / OUT_SCALE) + OUT_ZERO, -128, 127).astype(np.int8)


def _fully_connected(net: Network, inputs: list[int], output: int, version: int = 1) -> None:
    options = schema.FullyConnectedOptionsT()
    net.add(
        schema.BuiltinOperator.FULLY_CONNECTED,
        inputs,
        [output],
        options,
        schema.BuiltinOptions.FullyConnectedOptions,
        version,
    )


def write_dense(path: Path, *, batch: int = 1, units: int = 3, features: int = 4, signature: bool = True) -> Path:
    """One FULLY_CONNECTED in float; signature names x and y, tensor names dense_x and dense_y."""
    ours = (units, features) == WEIGHTS.shape
    net = Network()
    x = net.tensor("dense_x", (batch, features))
    w = net.tensor("w", (units, features), data=WEIGHTS if ours else np.full((units, features), 0.5))
    b = net.tensor("b", (units,), data=BIAS if ours else np.zeros(units))
    y = net.tensor("dense_y", (batch, units))
    _fully_connected(net, [x, w, b], y)
    return net.write(path, {"x": x}, {"y": y}, signature="serving_default" if signature else None)


def _write_int8_dense(path: Path) -> Path:
    net = Network()
    x = net.tensor("dense_x", (1, 4), "int8", scale=IN_SCALE, zero_point=IN_ZERO)
    w = net.tensor("w", (3, 4), "int8", data=np.round(WEIGHTS / WEIGHT_SCALE), scale=WEIGHT_SCALE)
    bias = np.round(BIAS / (IN_SCALE * WEIGHT_SCALE))
    b = net.tensor("b", (3,), "int32", data=bias, scale=IN_SCALE * WEIGHT_SCALE)
    y = net.tensor("dense_y", (1, 3), "int8", scale=OUT_SCALE, zero_point=OUT_ZERO)
    _fully_connected(net, [x, w, b], y, version=4)
    return net.write(path, {"x": x}, {"y": y})


def _write_two_inputs(path: Path) -> Path:
    """left - right, both of shape (1, 2)."""
    net = Network()
    left, right, y = (net.tensor(name, (1, 2)) for name in ("l", "r", "difference"))
    net.add(schema.BuiltinOperator.SUB, [left, right], [y], schema.SubOptionsT(), schema.BuiltinOptions.SubOptions)
    return net.write(path, {"left": left, "right": right}, {"y": y})


def _write_embedding(path: Path) -> Path:
    """A table of two rows: an index of 2 would be refused while running."""
    net = Network()
    table = net.tensor("table", (2, 3), data=np.arange(6.0))
    index = net.tensor("i", (1, 5), "int32")
    y = net.tensor("rows", (1, 5, 3))
    options = schema.GatherOptionsT()
    net.add(schema.BuiltinOperator.GATHER, [table, index], [y], options, schema.BuiltinOptions.GatherOptions)
    return net.write(path, {"index": index}, {"rows": y})


def _write_stateful(path: Path) -> Path:
    """An SVDF layer, whose output depends on what it saw before."""
    net = Network()
    x, y = net.tensor("x", (1, 4)), net.tensor("y", (1, 3))
    features = net.tensor("features", (3, 4), data=WEIGHTS)
    times = net.tensor("times", (3, 2), data=np.ones((3, 2)))
    state = net.tensor("state", (1, 6))
    net.tensors[state].isVariable = True
    options = schema.SVDFOptionsT()
    options.rank = 1
    net.add(
        schema.BuiltinOperator.SVDF,
        [x, features, times, -1, state],
        [y],
        options,
        schema.BuiltinOptions.SVDFOptions,
    )
    return net.write(path, {"x": x}, {"y": y})


def _write_lstm(path: Path) -> Path:
    """An LSTM as one operator, which remembers its states from run to run: 5 steps of 4 features, 3 units."""
    net = Network()
    x, y = net.tensor("x", (1, 5, 4)), net.tensor("y", (1, 5, 3))
    kernels = [net.tensor(f"w{i}", (3, 4), data=np.roll(WEIGHTS, i, 1)) for i in range(4)]
    recurrent = [net.tensor(f"r{i}", (3, 3), data=np.roll(WEIGHTS[:, :3], i, 1)) for i in range(4)]
    biases = [net.tensor(f"b{i}", (3,), data=BIAS) for i in range(4)]
    states = [net.tensor(name, (1, 3)) for name in ("output_state", "cell_state")]
    for state in states:
        net.tensors[state].isVariable = True
    options = schema.UnidirectionalSequenceLSTMOptionsT()
    options.fusedActivationFunction = schema.ActivationFunctionType.TANH
    net.add(
        schema.BuiltinOperator.UNIDIRECTIONAL_SEQUENCE_LSTM,
        [x, *kernels, *recurrent, -1, -1, -1, *biases, -1, -1, *states, -1, -1, -1, -1],
        [y],
        options,
        schema.BuiltinOptions.UnidirectionalSequenceLSTMOptions,
    )
    return net.write(path, {"x": x}, {"y": y})


def _write_crashing(path: Path) -> Path:
    """Degenerate scales, as an untrained network gets them: the runtime aborts its process."""
    net = Network()
    x = net.tensor("x", (1, 4), "int8", scale=1e30)
    y = net.tensor("y", (1, 4), "int8", scale=1e-30)
    net.add(schema.BuiltinOperator.ADD, [x, x], [y], schema.AddOptionsT(), schema.BuiltinOptions.AddOptions)
    return net.write(path, {"x": x}, {"y": y})


@pytest.fixture(scope="session")
def reference() -> SimpleNamespace:
    """What the models compute, in NumPy, and the int8 model's quantization."""
    return SimpleNamespace(
        float_dense=float_dense,
        int8_dense=int8_dense,
        in_scale=IN_SCALE,
        in_zero=IN_ZERO,
        out_scale=OUT_SCALE,
        out_zero=OUT_ZERO,
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files, by name."""
    folder = tmp_path_factory.mktemp("models")
    dense = write_dense(folder / "dense.tflite")
    truncated, text = folder / "truncated.tflite", folder / "text.tflite"
    truncated.write_bytes(dense.read_bytes()[:-200])
    text.write_text("This is not a model.", "utf-8")
    return {
        "dense": dense,
        "batch4": write_dense(folder / "batch4.tflite", batch=4),
        "unsigned": write_dense(folder / "unsigned.tflite", signature=False),
        "wide": write_dense(folder / "wide.tflite", units=1024, features=4096),  # 16 MB of weights
        "int8": _write_int8_dense(folder / "int8.tflite"),
        "two_inputs": _write_two_inputs(folder / "two_inputs.tflite"),
        "embedding": _write_embedding(folder / "embedding.tflite"),
        "stateful": _write_stateful(folder / "stateful.tflite"),
        "lstm": _write_lstm(folder / "lstm.tflite"),
        "crashing": _write_crashing(folder / "crashing.tflite"),
        "truncated": truncated,
        "text": text,
    }


@pytest.fixture
def noisy_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package in the place of tflite-runtime that prints to stdout, in Python and natively, and then is LiteRT."""
    package = tmp_path / "site" / "tflite_runtime"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "interpreter.py").write_text(
        "import os\n"
        "print('noise from Python', flush=True)\n"
        "os.write(1, b'noise from native code')\n"
        "from ai_edge_litert.interpreter import Interpreter, OpResolverType\n"
        "__version__ = '0.0-test'\n",
        "utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return "tflite-runtime"


@pytest.fixture
def no_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which none of the runtimes can be imported by child processes."""
    folder = tmp_path / "blockers"
    for name in ("ai_edge_litert", "tflite_runtime", "tensorflow"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise ImportError('no {name} here')", "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.fixture(scope="session")
def step_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of one time step, by name."""
    folder = tmp_path_factory.mktemp("steps")
    return {
        "sum": clamped_sum(folder / "sum.tflite"),
        "sum_of_4": clamped_sum(folder / "sum_of_4.tflite", batch=4),
        "two_scales": clamped_sum(folder / "two_scales.tflite", next_scale=0.25),
        "shifted": shifted_sum(folder / "shifted.tflite"),
        "tokens": counted_tokens(folder / "tokens.tflite"),
        "delay": delay_line(folder / "delay.tflite"),
    }
