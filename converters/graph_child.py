"""Child process: a frozen TensorFlow graph becomes a float .tflite file. Started by `FloatConverter`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edgecompress.isolate import Progress, serve_one_job


def convert_graph(job: dict[str, Any], _progress: Progress) -> dict[str, Any]:
    """Converts the GraphDef in the file `job["graph"]`; a refusal comes back as {"error": text}."""
    import tensorflow as tf

    definition = tf.compat.v1.GraphDef()
    definition.ParseFromString(Path(job["graph"]).read_bytes())
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(definition, name="")
    inputs, outputs = ([graph.get_tensor_by_name(name) for name in job[side]] for side in ("inputs", "outputs"))
    convert = _convert_quantized if "input_type" in job else _convert_float
    try:
        content = convert(definition, inputs, outputs, job)
    except Exception as error:  # noqa: BLE001 (the converter raises its own and generic errors for a refusal)
        return {"error": str(error)}
    Path(job["destination"]).write_bytes(content)
    return {}


def _convert_float(definition: Any, inputs: list[Any], outputs: list[Any], _job: dict[str, Any]) -> bytes:
    import tensorflow as tf

    converter = tf.compat.v1.lite.TFLiteConverter(definition, inputs, outputs)
    # Built-in operators only: with SELECT_TF_OPS, Flex operators slip in that small runtimes then refuse.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    content: bytes = converter.convert()
    return content


def _convert_quantized(definition: Any, inputs: list[Any], outputs: list[Any], job: dict[str, Any]) -> bytes:
    """Takes all scales from the graph's fake-quantization operations, which the converter above does not.

    The documented converter of functions does, but it copies the graph three times before it begins: most of its time.
    """
    import tensorflow as tf
    from tensorflow.lite.python.lite import TFLiteConverterBaseV2, TFLiteFrozenGraphConverterV2

    holder = SimpleNamespace(graph=inputs[0].graph)  # all that is asked of the function, for the places in errors
    converter = TFLiteFrozenGraphConverterV2([holder], None)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = tf.dtypes.as_dtype(job["input_type"])
    converter.inference_output_type = tf.dtypes.as_dtype(job["output_type"])
    content: bytes = TFLiteConverterBaseV2.convert(converter, definition, inputs, outputs)
    return content


if __name__ == "__main__":
    import tensorflow  # noqa: F401, ICN001 (imported before the job arrives, while the parent loads the model)

    serve_one_job(convert_graph)
