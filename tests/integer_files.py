"""Small .tflite files that tests write operator by operator, and runs of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgecompress.converters.graph_writer import GraphWriter, TreeWriter, Value
from edgecompress.flatbuffer import write_tree
from edgecompress.recurrent.scales import Scale


def new_graph() -> GraphWriter:
    """Returns the empty main graph of a new file."""
    tree = schema.ModelT(version=3, operatorCodes=[], subgraphs=[], buffers=[schema.BufferT()])
    return TreeWriter(tree).new_graph("main")


def finish(graph: GraphWriter, inputs: Sequence[Value], outputs: Sequence[Value]) -> bytes:
    """Returns the file; the tree is used up."""
    graph.graph.inputs = [value.index for value in inputs]
    graph.give_outputs(outputs)
    return write_tree(graph.file.tree)


class Runner:
    """LiteRT with its reference kernels, or with XNNPACK."""

    def __init__(self, content: bytes, *, reference: bool = True) -> None:
        kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
        self._interpreter = Interpreter(model_content=content, experimental_op_resolver_type=kernels, num_threads=1)
        self._interpreter.allocate_tensors()

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        for details, values in zip(self._interpreter.get_input_details(), inputs, strict=True):
            self._interpreter.set_tensor(details["index"], values)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(each["index"]) for each in self._interpreter.get_output_details()]


def integers(x: np.ndarray, scale: Scale) -> np.ndarray:
    """Returns what stands for numbers."""
    limits = np.iinfo(scale.dtype)
    return np.clip(np.rint(x / scale.step) + scale.zero_point, limits.min, limits.max).astype(scale.dtype)


def numbers(x: np.ndarray, scale: Scale) -> np.ndarray:
    """Returns the numbers that integers stand for."""
    return (x.astype(np.float32) - scale.zero_point) * np.float32(scale.step)
