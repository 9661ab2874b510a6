"""The smallest .tflite file that a delegate takes: one ADD of two float vectors. Delegate probes run it."""

from __future__ import annotations

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

_WIDTH = 4


def tiny_model() -> bytes:
    """Returns a model with two inputs of shape (1, 4) and their sum as its output."""
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    code.version = 1
    add = schema.OperatorT()
    add.inputs, add.outputs = [0, 1], [2]
    add.builtinOptionsType = schema.BuiltinOptions.AddOptions
    add.builtinOptions = schema.AddOptionsT()
    graph = schema.SubGraphT()
    graph.tensors = [_tensor(name) for name in ("a", "b", "sum")]
    graph.inputs, graph.outputs, graph.operators = [0, 1], [2], [add]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [schema.BufferT()]
    model.signatureDefs = [_signature()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _tensor(name: str) -> schema.TensorT:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name, [1, _WIDTH], schema.TensorType.FLOAT32, 0
    return tensor


def _signature() -> schema.SignatureDefT:
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs = [_map("a", 0), _map("b", 1)]
    signature.outputs = [_map("sum", 2)]
    return signature


def _map(name: str, index: int) -> schema.TensorMapT:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry
