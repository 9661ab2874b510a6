"""The Edge TPU's documented limits: one small file for each that keeps or breaks it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgecompress.artifacts import Artifact, read_artifact
from edgecompress.check.edge_tpu import edge_tpu_findings
from edgecompress.converters.graph_writer import GraphWriter, TreeWriter, Value
from edgecompress.flatbuffer import write_tree
from edgecompress.recurrent.scales import Scale

SCALE = Scale(0.1, 0)
RELU = schema.ActivationFunctionType.RELU


class Network:
    """A file in the making; every operator reads the one before it."""

    def __init__(self, shape: tuple[int, ...] = (1, 8, 8, 4), dtype: str = "int8") -> None:
        tree = schema.ModelT(version=3, operatorCodes=[], subgraphs=[], buffers=[schema.BufferT()])
        self.graph: GraphWriter = TreeWriter(tree).new_graph("main")
        self.input = self.last = self.value("x", shape, dtype)

    def value(self, name: str, shape: tuple[int, ...], dtype: str = "int8") -> Value:
        return self.graph.tensor(name, shape, dtype, None if dtype == "float32" else SCALE)

    def constant(self, *values: object, dtype: str = "int32") -> Value:
        return self.graph.constant(f"constant {values}", np.asarray(values, dtype))

    def add(self, operator: str, shape: tuple[int, ...], *others: Value | None, dtype: str = "int8", **options: int):
        """Adds an operator with a result of this shape; options by their names in the schema."""
        result = self.value("y", shape, dtype)
        # The axis of SPLIT comes first.
        inputs = [*others, self.last] if operator == "SPLIT" else [self.last, *others]
        kind = {"AVERAGE_POOL_2D": "Pool2D", "MAX_POOL_2D": "Pool2D", "CONV_2D": "Conv2D", "MEAN": "Reducer",
                "DEPTHWISE_CONV_2D": "DepthwiseConv2D"}.get(operator)  # fmt: skip
        self.graph.operator(operator, inputs, [result], options if kind is None and options else None)
        if kind is not None:
            raw = self.graph.graph.operators[-1]
            raw.builtinOptionsType = getattr(schema.BuiltinOptions, f"{kind}Options")
            raw.builtinOptions = getattr(schema, f"{kind}OptionsT")()
            vars(raw.builtinOptions).update(options)
        self.last = result
        return self

    def dense(self, units: int, rows: int = 1, kernel: Value | None = None) -> Network:
        kernel = kernel or self.graph.constant(
            "kernel", np.ones((units, self.last.shape[-1]), np.int8), np.float32([1])
        )
        return self.add("FULLY_CONNECTED", (rows, units), kernel, None, keepNumDims=0)

    def convolution(self, height: int, width: int) -> Network:
        kernel = self.graph.constant("kernel", np.ones((2, 3, 3, 4), np.int8), np.float32([1, 1]))
        return self.add("CONV_2D", (1, 8, 8, 2), kernel, None, dilationHFactor=height, dilationWFactor=width)

    def write(self, file: Path) -> Artifact:
        self.graph.graph.inputs = [self.input.index]
        self.graph.give_outputs([self.last])
        file.write_bytes(write_tree(self.graph.file.tree))
        return read_artifact(file)


def cut(strides: int) -> Network:
    network = Network((1, 8, 4))
    ends = [network.constant(*values) for values in ((0, 0, 0), (1, 8, 4), (1, strides, 1))]
    return network.add("STRIDED_SLICE", (1, 8 // strides, 4), *ends)


def padded(*sides: tuple[int, int]) -> Network:
    network = Network((1, 8, 4))
    shape = tuple(size + sum(side) for size, side in zip((1, 8, 4), sides, strict=True))
    return network.add("PAD", shape, network.constant(*sides))


def along(operator: str, axis: int) -> Network:
    network = Network((2, 2, 4))
    return network.add(operator, (2, 2, 4), network.constant(axis))


def given_kernel() -> Network:
    network = Network((1, 4))
    return network.dense(4, kernel=network.value("kernel", (4, 4)))


def unknown_size() -> Network:
    network = Network((1, 1, 4)).add("TANH", (1, 1, 4))
    network.graph.graph.tensors[0].shapeSignature = [1, -1, 4]
    return network


@pytest.mark.parametrize(
    "network",
    [
        Network().convolution(2, 2).add("ADD", (1, 8, 8, 2), fusedActivationFunction=0).add("TANH", (1, 8, 8, 2)),
        Network((1, 4)).dense(8).dense(3).add("SOFTMAX", (1, 3)),
        Network((1, 8, 4)).add("UNIDIRECTIONAL_SEQUENCE_LSTM", (1, 8, 2)),
        Network(dtype="uint8").add("QUANTIZE", (1, 8, 8, 4)),
        cut(1),
        padded((0, 0), (1, 2), (0, 0)),
        along("MEAN", 1),
        along("MEAN", -1),
        along("SPLIT", 2),
    ],
)
def test_what_is_mapped_whole(tmp_path, network) -> None:
    assert edge_tpu_findings(network.write(tmp_path / "model.tflite")) == ()


@pytest.mark.parametrize(
    ("network", "rule", "found"),
    [
        (Network().add("ARG_MAX", (1, 8, 8)), "operator", "unknown to the compiler"),
        (Network(dtype="float32").add("TANH", (1, 8, 8, 4)), "dtype", "on float32 ('x')"),
        (Network().add("QUANTIZE", (1, 8, 8, 4), dtype="int16"), "dtype", "on int16 ('y')"),
        (unknown_size(), "static_shapes", "on int8 (1, -1, 4) ('x')"),
        (Network((2, 8, 8, 4)).add("TANH", (2, 8, 8, 4)), "innermost_dimensions", "on int8 (2, 8, 8, 4) ('x')"),
        (given_kernel(), "constant_parameters", "given 'kernel' while running"),
        (Network().add("ADD", (1, 8, 8, 4), fusedActivationFunction=RELU), "fused_activation", "fused with RELU"),
        *(
            (Network().add(name, (1, 4, 4, 4), fusedActivationFunction=RELU), "fused_activation", "fused with RELU")
            for name in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "CONCATENATION")
        ),
        (Network().convolution(1, 2), "dilation", "dilated by 1 and 2"),
        (Network((5, 4)).dense(3, rows=5), "one_dimensional", "on int8 (5, 3) ('y')"),
        (Network((5, 4)).add("SOFTMAX", (5, 4)), "one_dimensional", "on int8 (5, 4) ('y')"),
        (Network((1, 16_001)).add("SOFTMAX", (1, 16_001)), "softmax_size", "on 16,001 values"),
        (cut(2), "strides", "cut in strides of [1, 2, 1]"),
        (padded((0, 1), (0, 0), (0, 0)), "batch_dimension", "along the batch"),
        (along("MEAN", 0), "batch_dimension", "along the batch"),
        (along("SPLIT", -3), "batch_dimension", "along the batch"),
    ],
)
def test_what_is_left_to_the_cpu(tmp_path, network, rule, found) -> None:
    (finding,) = edge_tpu_findings(network.write(tmp_path / "model.tflite"))
    assert (finding.rule, finding.found) == (f"edge_tpu.{rule}", found)
    assert finding.where.endswith("(operator 0, 'y')")
    assert finding.expected
    assert finding.fix


def test_one_finding_for_each_operator_at_fault(tmp_path) -> None:
    network = Network((1, 4)).add("SIN", (1, 4)).dense(4).add("COS", (1, 4), dtype="float32")
    found = edge_tpu_findings(network.write(tmp_path / "model.tflite"))
    assert [finding.where for finding in found] == ["SIN (operator 0, 'y')", "COS (operator 2, 'y_3')"]
    assert str(found[0]).startswith("edge_tpu.operator: SIN (operator 0, 'y') is unknown to the compiler, allowed is")


def test_older_runtimes_know_fewer_operators(tmp_path) -> None:
    network = Network((1, 8, 4)).add("QUANTIZE", (1, 8, 4)).add("TRANSPOSE", (1, 8, 4)).add("TANH", (1, 8, 4))
    artifact = network.write(tmp_path / "model.tflite")
    by_runtime = {
        runtime: [finding.expected for finding in edge_tpu_findings(artifact, runtime=runtime)]
        for runtime in (14, 13, 10)
    }
    assert by_runtime == {
        14: [], 13: ["runtime 14 or newer"], 10: ["runtime 13 or newer", "runtime 14 or newer"],
    }  # fmt: skip


def test_the_memory_of_an_lstm_may_have_16_bits(tmp_path) -> None:
    network = Network((1, 8, 4))
    memory = network.value("carry", (1, 2), "int16")
    network.graph.graph.tensors[memory.index].isVariable = True
    network.add("UNIDIRECTIONAL_SEQUENCE_LSTM", (1, 8, 2), *[None] * 18, memory)
    assert edge_tpu_findings(network.write(tmp_path / "model.tflite")) == ()


def test_only_the_operator_that_runs_a_loop_is_named(tmp_path) -> None:
    network = Network((1, 4))
    condition, body = (network.graph.file.new_graph(name) for name in ("condition", "body"))
    for graph in (condition, body):
        (given,) = graph.take_inputs([network.input])
        result = graph.tensor("sine", (1, 4), "int8", SCALE)
        graph.operator("SIN", [given], [result])
        graph.give_outputs([result])
    network.add("WHILE", (1, 4), condSubgraphIndex=1, bodySubgraphIndex=2)
    (finding,) = edge_tpu_findings(network.write(tmp_path / "model.tflite"))
    assert finding.where == "WHILE (operator 0, 'y')"
