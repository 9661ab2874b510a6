"""Child process: a frozen TensorFlow graph becomes a float .tflite file. Started by `FloatConverter`."""

from __future__ import annotations

from pathlib import Path
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
    converter = tf.compat.v1.lite.TFLiteConverter(definition, inputs, outputs)
    # Built-in operators only: with SELECT_TF_OPS, Flex operators slip in that small runtimes then refuse.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    try:
        content = converter.convert()
    except Exception as error:  # noqa: BLE001 (the converter raises its own and generic errors for a refusal)
        return {"error": str(error)}
    Path(job["destination"]).write_bytes(content)
    return {}


if __name__ == "__main__":
    import tensorflow  # noqa: F401, ICN001 (imported before the job arrives, while the parent loads the model)

    serve_one_job(convert_graph)
