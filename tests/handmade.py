"""Builds .tflite files and their graphs by hand, so that tests need no converter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema


class Model:
    """A file in the making: buffers and operator codes are added as tensors and operators need them."""

    def __init__(self) -> None:
        self.tree = schema.ModelT(version=3, operatorCodes=[], subgraphs=[], buffers=[schema.BufferT()])

    def constant(self, values: object, dtype: str) -> int:
        """Adds a buffer and returns its index."""
        self.tree.buffers.append(schema.BufferT(np.asarray(values, dtype).reshape(-1).view(np.uint8)))
        return len(self.tree.buffers) - 1

    def op(self, name: str, inputs: Sequence[int], outputs: Sequence[int], **options: Any) -> Any:
        """Returns an operator; `options_type` and `options` are its options, `custom` its custom code."""
        builtin = getattr(schema.BuiltinOperator, name)
        self.tree.operatorCodes.append(
            schema.OperatorCodeT(
                deprecatedBuiltinCode=min(builtin, 127), builtinCode=builtin, customCode=options.get("custom")
            )
        )
        return schema.OperatorT(
            opcodeIndex=len(self.tree.operatorCodes) - 1,
            inputs=list(inputs),
            outputs=list(outputs),
            builtinOptionsType=getattr(schema.BuiltinOptions, options.get("options_type", "NONE")),
            builtinOptions=options.get("options"),
        )

    def graph(self, tensors: Sequence[Any], inputs: Sequence[int], outputs: Sequence[int], ops: Sequence[Any]) -> None:
        self.tree.subgraphs.append(
            schema.SubGraphT(tensors=list(tensors), inputs=list(inputs), outputs=list(outputs), operators=list(ops))
        )

    def pack(self) -> bytes:
        return pack(self.tree)


def pack(tree: Any) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(tree.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def tensor(name: str, shape: Sequence[int], dtype: str = "FLOAT32", buffer: int = 0, **fields: Any) -> Any:
    """Returns a tensor; `scale` and `signature` (its shape with -1 for unknown sizes) are optional."""
    quantization = None
    if "scale" in fields:
        scales = list(np.atleast_1d(fields["scale"]))
        quantization = schema.QuantizationParametersT(scale=scales, zeroPoint=[3] * len(scales))
    return schema.TensorT(
        shape=list(shape),
        type=getattr(schema.TensorType, dtype),
        buffer=buffer,
        name=name,
        quantization=quantization,
        shapeSignature=fields.get("signature"),
    )


def dense_model(name: str = "x") -> Model:
    """A FULLY_CONNECTED from 4 features to 3 units, without a signature."""
    model = Model()
    kernel = model.constant(np.arange(12).reshape(3, 4) / 10, "float32")
    bias = model.constant([1, 2, 3], "float32")
    tensors = [
        tensor(name, (1, 4)), tensor("kernel", (3, 4), buffer=kernel), tensor("bias", (3,), buffer=bias),
        tensor("y", (1, 3)),
    ]  # fmt: skip
    options = {"options_type": "FullyConnectedOptions", "options": schema.FullyConnectedOptionsT()}
    model.graph(tensors, [0], [3], [model.op("FULLY_CONNECTED", [0, 1, 2], [3], **options)])
    return model


def with_data_behind(model: Model, index: int) -> bytes:
    """Packs a model with one buffer's data behind the FlatBuffer, as litert-quantizer does with large models."""
    data = bytes(model.tree.buffers[index].data)
    model.tree.buffers[index] = schema.BufferT(offset=1 << 20, size=len(data))
    model.tree.buffers[index].offset = -(-len(model.pack()) // 16) * 16
    packed = model.pack()
    return packed + bytes(-len(packed) % 16) + data


def loop_model(*, steps: int = 7, start: int = 0, step: int = 1, compare: str = "LESS") -> Model:
    """A loop that multiplies a state of 4 features by a matrix of 4 x 4 until its counter reaches `steps`."""
    model = Model()
    kernel = model.constant(np.eye(4), "float32")
    scalars = {value: model.constant(value, "int32") for value in (start, steps, step)}
    state, counter = tensor("h", (1, 4)), tensor("i", (), "INT32")

    def scalar(value: int) -> Any:
        return tensor(f"c{value}", (), "INT32", scalars[value])

    loop = {
        "options_type": "WhileOptions",
        "options": schema.WhileOptionsT(condSubgraphIndex=1, bodySubgraphIndex=2),
    }
    model.graph(
        [state, scalar(start), tensor("i_out", (), "INT32"), tensor("h_out", (1, 4))], [0], [3],
        [model.op("WHILE", [1, 0], [2, 3], **loop)],
    )  # fmt: skip
    model.graph(
        [counter, state, scalar(steps), tensor("go", (), "BOOL")], [0, 1], [3], [model.op(compare, [0, 2], [3])]
    )
    model.graph(
        [counter, state, scalar(step), tensor("i+", (), "INT32"), tensor("kernel", (4, 4), buffer=kernel),
         tensor("h+", (1, 4))], [0, 1], [3, 5],
        [model.op("ADD", [0, 2], [3]), model.op("FULLY_CONNECTED", [1, 4, -1], [5])],
    )  # fmt: skip
    return model
