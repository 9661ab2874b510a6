"""Turns a float model into a float .tflite file.

The model is traced with fixed shapes and its variables are frozen into constants here; the frozen graph is converted
in a child process. This route skips the SavedModel that `TFLiteConverter.from_keras_model` and `from_saved_model`
write and read back, which is where most of their time goes, and it takes looped recurrent layers as they are.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgecompress.data import InputSpec
from edgecompress.errors import ConversionError, EdgeCompressError
from edgecompress.flatbuffer import Signature, with_metadata
from edgecompress.functional import cause_of, in_float32
from edgecompress.isolate import Child, Outcome
from edgecompress.loaded import LoadedModel, flatten_layers
from edgecompress.schemes import IoType

_TIME_LIMIT_S = 1800.0
_SIGNATURE_KEY = "serving_default"


@dataclass(frozen=True)
class FrozenGraph:
    """A traced model without variables.

    Attributes:
        graph_def: Serialized TensorFlow GraphDef.
        inputs: Graph tensor name of each signature input.
        outputs: Graph tensor name of each signature output.
        model_name: What errors call it.
        layers: Names of its layers, by which errors point at the graph; empty for a SavedModel.
        recurrent_layers: Those of them that are recurrent.
    """

    graph_def: bytes
    inputs: dict[str, str]
    outputs: dict[str, str]
    model_name: str
    layers: tuple[str, ...] = ()
    recurrent_layers: tuple[str, ...] = ()


def freeze_graph(model: LoadedModel, fixed: Sequence[InputSpec]) -> FrozenGraph:
    """Traces a model in inference mode at fixed shapes and makes constants of its variables.

    A Keras 3 model that computes in 16 bits is traced in float32.

    Raises:
        ModelError: It cannot be rebuilt in float32.
        ConversionError: The model cannot be traced, or changes its own variables while it runs.
    """
    model = without_16_bits(model)
    with _without_dropout(model):
        return freeze_call(model, model.call, fixed, model.outputs)


@contextlib.contextmanager
def _without_dropout(model: LoadedModel) -> Iterator[None]:
    """Sets the dropout of recurrent cells to 0, which draw numbers even where they drop nothing.

    Drawing a number changes a variable, and a file has none.
    """
    layers = model.model._flatten_layers() if model.is_keras else ()  # noqa: SLF001
    cells = {id(layer.cell): layer.cell for layer in layers if hasattr(layer, "cell")}.values()
    rates = [(cell, name, getattr(cell, name, 0)) for cell in cells for name in ("dropout", "recurrent_dropout")]
    drawing = [(cell, name, rate) for cell, name, rate in rates if rate]
    for cell, name, _ in drawing:
        setattr(cell, name, 0.0)
    try:
        yield
    finally:
        for cell, name, rate in drawing:
            setattr(cell, name, rate)


def without_16_bits(model: LoadedModel) -> LoadedModel:
    """Returns a Keras 3 model in float32, and others as they are.

    Raises:
        ModelError: It cannot be rebuilt.
    """
    return replace(model, model=in_float32(model.model)) if model.framework == "keras" else model


def freeze_call(
    model: LoadedModel, call: Callable[..., Sequence[Any]], specs: Sequence[InputSpec], outputs: Sequence[str]
) -> FrozenGraph:
    """Traces a function over a model's layers and makes constants of its variables.

    Args:
        model: The model.
        call: Takes a tensor for each of `specs`, and returns one for each of `outputs`.
        specs: Names, fixed shapes and types.
        outputs: Names.

    Raises:
        ConversionError: It cannot be traced, or changes variables while it runs.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    name = model.name
    signature = [tf.TensorSpec(spec.shape, spec.dtype, name=f"input_{i}") for i, spec in enumerate(specs)]
    layers = tuple(layer.name for layer in flatten_layers(model.model)) if model.is_keras else ()
    try:
        traced = tf.function(call, input_signature=signature, autograph=False).get_concrete_function()
    except EdgeCompressError:
        raise
    except Exception as error:
        raise ConversionError(f"the model cannot be traced at fixed shapes: {cause_of(error)}", where=name) from error
    try:
        frozen = convert_variables_to_constants_v2(traced, lower_control_flow=False)
    except Exception as error:
        raise _not_frozen(traced.graph.as_graph_def(), name, layers, error) from error
    graph = FrozenGraph(
        frozen.graph.as_graph_def().SerializeToString(deterministic=True),
        {spec.name: tensor.name for spec, tensor in zip(specs, frozen.inputs, strict=True)},
        {output: tensor.name for output, tensor in zip(outputs, frozen.outputs, strict=True)},
        name,
        layers,
        model.recurrent_layers(),
    )
    # The graphs refer to themselves: without this, copies of all the weights would stand beside the converter's.
    del traced, frozen
    gc.collect()
    return graph


def _not_frozen(definition: Any, name: str, layers: Sequence[str], error: Exception) -> ConversionError:
    functions = (function.node_def for function in definition.library.function)
    nodes = itertools.chain(definition.node, *functions)
    changing = sorted({_layer_of(node.name, layers) for node in nodes if node.op.startswith("Assign")})
    if not changing:
        return ConversionError(f"the model's variables cannot be made constant: {cause_of(error)}", where=name)
    return ConversionError(
        f"the model changes its own variables while it runs (in {', '.join(changing[:5])})", where=name,
        fix="build the layer with stateful=False, and give it the weights of this one",
    )  # fmt: skip


def _layer_of(node: str, layers: Sequence[str]) -> str:
    """Returns the layer that a graph node belongs to; tracing may have numbered the layer's name once more."""
    parts = node.split("/")
    for part in reversed(parts[:-1]):
        for name in (part, re.sub(r"_\d+$", "", part)):
            if name in layers:
                return name
    return parts[-2] if len(parts) > 1 else node


class FloatConverter:
    """The TensorFlow Lite converter in a child process.

    Made early and used late: the child imports TensorFlow while this process loads the model.
    """

    def __init__(self) -> None:
        self._child = Child("edgecompress.converters.graph_child", environment={"TF_CPP_MIN_LOG_LEVEL": "3"})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close()

    def convert(self, graph: FrozenGraph, folder: Path, borders: tuple[IoType, IoType] | None = None) -> Path:
        """Writes `folder`/float.tflite, with the model's names in its signature.

        Args:
            graph: The model.
            folder: Where to write.
            borders: For a graph that was trained with quantization simulated: the types of the inputs and of the
                outputs. The file is then int8, by the scales in the graph, and called int8.tflite.

        Raises:
            ConversionError: The converter refused the model, crashed or hung.
        """
        source, destination = folder / "graph.pb", folder / ("int8.tflite" if borders else "float.tflite")
        source.write_bytes(graph.graph_def)
        job = {
            "graph": str(source),
            "inputs": list(graph.inputs.values()),
            "outputs": list(graph.outputs.values()),
            "destination": str(destination),
        }
        if borders:
            job |= {"input_type": borders[0].value, "output_type": borders[1].value}
        outcome, result = self._child.run(job, time_limit_s=_TIME_LIMIT_S)
        source.unlink()
        if result is None:
            raise _crash(graph, outcome)
        if "error" in result:
            raise _refusal(graph, result["error"])
        signature = Signature(_SIGNATURE_KEY, tuple(graph.inputs), tuple(graph.outputs))
        destination.write_bytes(with_metadata(destination.read_bytes(), signature=signature, metadata={}))
        return destination


def _crash(graph: FrozenGraph, outcome: Outcome) -> ConversionError:
    layers = graph.recurrent_layers
    hint = f"; its recurrent layers ({', '.join(layers)}) are the likeliest cause" if layers else ""
    said = f": {outcome.last_words[:200]}" if outcome.last_words else ""
    return ConversionError(
        f"the TensorFlow Lite converter {outcome.how_it_ended}{hint}{said}",
        where=graph.model_name,
        fix="convert parts of the model on their own to find the layer, and report it with that layer",
    )


def _refusal(graph: FrozenGraph, text: str) -> ConversionError:
    """Names the operators that TensorFlow Lite lacks, and the layers that they come from."""
    missing = sorted(set(re.findall(r"'tf\.(\w+)' op is neither a custom op nor a flex op", text)))
    if not missing:
        first = next((line for line in text.splitlines() if "error:" in line), text)
        return ConversionError(
            f"the TensorFlow Lite converter refused it: {' '.join(first.split())[:300]}", where=graph.model_name,
            fix="replace the layer that it names",
        )  # fmt: skip
    nodes = re.findall(r'"([^"]+)"\]?\): \'tf\.', text)
    places = sorted({_layer_of(node, graph.layers) for node in nodes})
    inside = f" (in {', '.join(places[:5])})" if places else ""
    return ConversionError(
        f"TensorFlow Lite has no operator for {', '.join(missing[:5])}{inside}",
        where=graph.model_name,
        fix="replace these layers with ones that TensorFlow Lite knows",
    )
