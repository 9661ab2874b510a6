from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgecompress.artifacts import Artifact, read_artifact
from edgecompress.errors import ModelError
from tests.handmade import Model, dense_model, loop_model, pack, tensor, with_data_behind

# A folder with files of google-coral/test_data.
EDGE_TPU_FILES = Path(os.environ.get("EDGE_TPU_TEST_DATA", "missing"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small networks as TensorFlow's converter writes them."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    layers, folder = keras.layers, tmp_path_factory.mktemp("converted")
    models = {
        "cnn": [
            keras.Input((8, 8, 3), batch_size=1),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.DepthwiseConv2D(3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, bias_initializer="ones"),
        ],
        "gru": [keras.Input((9, 6), batch_size=1), layers.GRU(8, bias_initializer="ones"), layers.Dense(3)],
    }
    samples = np.random.default_rng(0).normal(size=(8, 1, 8, 8, 3)).astype("float32")

    converters = {
        name: tf.lite.TFLiteConverter.from_keras_model(keras.Sequential(models["gru" if name == "gru" else "cnn"]))
        for name in ("float", "int8", "float16", "gru")
    }
    for name in ("int8", "float16"):
        converters[name].optimizations = [tf.lite.Optimize.DEFAULT]
    converters["int8"].representative_dataset = lambda: ([sample] for sample in samples)
    converters["float16"].target_spec.supported_types = [tf.float16]
    files = {}
    for name, converter in converters.items():
        files[name] = folder / f"{name}.tflite"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)
            files[name].write_bytes(converter.convert())
    return files


def written(folder: Path, content: bytes) -> Path:
    file = folder / "model.tflite"
    file.write_bytes(content)
    return file


def op(artifact: Artifact, name: str) -> Any:
    return next(found for found in artifact.ops if found.name == name)


def test_reading_imports_no_tensorflow() -> None:
    code = "import sys, edgecompress.artifacts; print({'tensorflow', 'keras', 'tf_keras'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_file_is_described_whole(tmp_path: Path) -> None:
    content = dense_model().pack()
    artifact = read_artifact(written(tmp_path, content))

    assert artifact.path == tmp_path / "model.tflite"
    assert artifact.sha256 == hashlib.sha256(content).hexdigest()
    assert artifact.size_bytes == len(content)
    assert artifact.gzip_bytes == len(gzip.compress(content, 9, mtime=0))
    assert (artifact.parameters, artifact.macs, artifact.macs_note) == (15, 12, "")
    assert artifact.min_runtime_version is None
    assert artifact.metadata == ()
    assert artifact.signature.key is None
    (found,) = artifact.ops
    assert found.model_dump() == {
        "index": 0, "subgraph": 0, "name": "FULLY_CONNECTED", "version": 1, "custom": False, "float_arithmetic": True,
        "input_dtypes": ("float32", "float32", "float32"), "output_name": "y", "output_shape": (1, 3),
        "output_dtype": "float32", "macs": 12, "weight_bytes": 60, "parameters": 15,
    }  # fmt: skip


def test_the_same_file_gives_the_same_value_and_json_leaves_the_content_out(tmp_path: Path) -> None:
    file = written(tmp_path, dense_model().pack())
    assert read_artifact(file) == read_artifact(file)
    said = json.loads(read_artifact(file).model_dump_json())
    assert said["gzip_bytes"] == read_artifact(file).gzip_bytes
    assert "content" not in said


def test_a_converted_file(converted: dict[str, Path]) -> None:
    artifact = read_artifact(converted["float"])

    assert artifact.signature.key == "serving_default"
    (image,), (scores,) = artifact.signature.inputs.values(), artifact.signature.outputs.values()
    assert (image.shape, image.dtype, image.bytes, image.scale) == ((1, 8, 8, 3), "float32", 768, None)
    assert (scores.shape, scores.dtype) == ((1, 5), "float32")
    assert list(artifact.op_counts) == ["CONV_2D", "DEPTHWISE_CONV_2D", "MEAN", "FULLY_CONNECTED"]
    assert artifact.min_runtime_version is not None
    assert artifact.min_runtime_version[0].isdigit()
    assert "min_runtime_version" in artifact.metadata
    assert len(artifact.float_ops) == 4
    assert artifact.flex_ops == artifact.custom_ops == ()
    # Kernels 3*3*3*4, 3*3*4 and 4*5, the last layer's bias, and one shared zero bias of 4.
    assert artifact.parameters == 108 + 36 + 20 + 5 + 4
    assert artifact.macs == 8 * 8 * 4 * 27 + 6 * 6 * 4 * 9 + 4 * 5


def test_quantization_changes_types_but_not_the_work(converted: dict[str, Path]) -> None:
    full, int8, half = (read_artifact(converted[name]) for name in ("float", "int8", "float16"))

    assert full.macs == int8.macs == half.macs
    assert half.parameters == full.parameters
    assert op(int8, "CONV_2D").output_dtype == "int8"
    assert op(int8, "CONV_2D").input_dtypes == ("int8", "int8", "int32")
    assert op(int8, "CONV_2D").weight_bytes == 108 + 4 * 4
    assert int8.float_ops == ()
    assert {"QUANTIZE", "DEQUANTIZE"} <= set(int8.op_counts)
    assert {found.name for found in half.float_ops} == set(full.op_counts)
    assert sum(found.weight_bytes for found in half.ops) < sum(found.weight_bytes for found in full.ops)


def test_a_converted_gru_counts_its_loop(converted: dict[str, Path]) -> None:
    artifact = read_artifact(converted["gru"])

    assert artifact.macs == 9 * 3 * 8 * (6 + 8) + 8 * 3
    assert "counted x 9 turns" in artifact.macs_note
    assert sum(found.macs for found in artifact.ops if found.subgraph and found.macs) == 9 * 3 * 8 * (6 + 8)
    assert op(artifact, "WHILE") not in artifact.float_ops
    assert {found.name for found in artifact.float_ops} >= {"FULLY_CONNECTED", "LOGISTIC", "TANH"}


def test_a_weight_that_two_operators_share_counts_once(tmp_path: Path) -> None:
    model = dense_model()
    graph = model.tree.subgraphs[0]
    graph.tensors += [tensor("again", (3, 4), buffer=1), tensor("y2", (1, 3))]
    graph.operators.append(model.op("FULLY_CONNECTED", [0, 4, 2], [5]))
    artifact = read_artifact(written(tmp_path, model.pack()))

    assert [found.parameters for found in artifact.ops] == [15, 15]
    assert artifact.parameters == 15
    assert artifact.macs == 24


def test_only_weights_count_as_parameters(tmp_path: Path) -> None:
    model = Model()
    tensors = [
        tensor("x", (1, 4)),
        tensor("bias", (4,), buffer=model.constant([1, 2, 3, 4], "float32")),
        tensor("half", (), buffer=model.constant(0.5, "float32")),
        tensor("shape", (2,), "INT32", model.constant([4, 1], "int32")),
        tensor("a", (1, 4)), tensor("b", (1, 4)), tensor("c", (4, 1)),
    ]  # fmt: skip
    ops = [model.op("ADD", [0, 1], [4]), model.op("MUL", [4, 2], [5]), model.op("RESHAPE", [5, 3], [6])]
    model.graph(tensors, [0], [6], ops)
    artifact = read_artifact(written(tmp_path, model.pack()))

    assert [found.parameters for found in artifact.ops] == [4, 0, 0]
    assert artifact.parameters == 4


def test_weights_behind_the_flatbuffer_count(tmp_path: Path) -> None:
    behind = read_artifact(written(tmp_path, with_data_behind(dense_model(), 1)))
    assert (behind.parameters, behind.ops[0].weight_bytes) == (15, 60)


def test_quantization_of_inputs_is_shown(tmp_path: Path) -> None:
    model = Model()
    tensors = [
        tensor("x", (1, 2), "INT8", scale=0.5),
        tensor("w", (2, 2), "INT4", scale=[0.5, 0.25]),
        tensor("y", (1, 2), signature=(-1, 2)),
    ]
    model.graph(tensors, [0, 1], [2], [model.op("ADD", [0, 1], [2])])
    signature = read_artifact(written(tmp_path, model.pack())).signature

    x, w, y = signature.inputs["x"], signature.inputs["w"], signature.outputs["y"]
    assert (x.scale, x.zero_point, x.per_channel, x.bytes) == (0.5, 3, False, 2)
    assert (w.scale, w.zero_point, w.per_channel, w.bytes) == (None, None, True, 2)
    assert (y.scale, y.shape, y.bytes) == (None, (-1, 2), 8)


def test_custom_and_flex_operators_are_named(tmp_path: Path) -> None:
    model = dense_model()
    model.tree.subgraphs[0].operators += [
        model.op("CUSTOM", [0], [3], custom=name) for name in ("FlexErf", "edgetpu-custom-op", "FlexErf")
    ]
    artifact = read_artifact(written(tmp_path, model.pack()))

    assert artifact.flex_ops == ("FlexErf",)
    assert artifact.custom_ops == ("edgetpu-custom-op",)
    assert artifact.macs is None
    assert (
        artifact.macs_note == "the MACs of FlexErf cannot be counted; the MACs of edgetpu-custom-op cannot be counted"
    )


def test_old_and_unknown_operator_codes(tmp_path: Path) -> None:
    model = dense_model()
    old = model.tree.operatorCodes[0]
    old.deprecatedBuiltinCode, old.builtinCode = old.builtinCode, 0  # as files from before 2020 have it
    assert read_artifact(written(tmp_path, model.pack())).ops[0].name == "FULLY_CONNECTED"
    old.builtinCode = 9999
    assert read_artifact(written(tmp_path, model.pack())).ops[0].name == "BUILTIN_9999"


def test_the_default_signature_and_its_subgraph_are_chosen(tmp_path: Path) -> None:
    model = dense_model()
    model.graph([tensor("small", (1, 2)), tensor("sum", (1, 2))], [0], [1], [model.op("ADD", [0, 0], [1])])
    for key, graph in (("train", 0), ("serving_default", 1)):
        model.tree.signatureDefs = [
            *(model.tree.signatureDefs or []),
            schema.SignatureDefT([schema.TensorMapT("in", 0)], [schema.TensorMapT("out", 1)], key, graph),
        ]
    artifact = read_artifact(written(tmp_path, model.pack()))

    assert artifact.signature.key == "serving_default"
    assert artifact.signature.inputs["in"].name == "small"
    assert artifact.macs == 0
    assert artifact.macs_note == "subgraph 0 is not run and not counted"


def _break(how: str) -> bytes:
    model = loop_model() if "subgraph" in how else dense_model()
    graph = model.tree.subgraphs[0]
    if how == "a tensor that does not exist":
        graph.operators[0].inputs = [0, 99, -1]
    elif how == "a negative tensor":
        graph.outputs = [-1]
    elif how == "a buffer that does not exist":
        graph.tensors[0].buffer = 77
    elif how == "an operator code that does not exist":
        graph.operators[0].opcodeIndex = 5
    elif how == "a subgraph that does not exist":
        graph.operators[0].builtinOptions.bodySubgraphIndex = 9
    elif how == "a subgraph runs itself":
        graph.operators[0].builtinOptions.bodySubgraphIndex = 0
    elif how == "too many dimensions":
        graph.tensors[0].shape = [2**31 - 1] * 1000
    elif how == "no WhileOptions, subgraph":
        graph.operators[0].builtinOptions, graph.operators[0].builtinOptionsType = None, 0
    elif how == "inputs do not fit":
        graph.operators[0].inputs = [0]
    else:
        model.tree.signatureDefs = [schema.SignatureDefT([schema.TensorMapT("in", 50)], [], "s", 0)]
    return pack(model.tree)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("a tensor that does not exist", "a tensor that does not exist is used; received 99"),
        ("a negative tensor", "a tensor that does not exist is used; received -1"),
        ("a buffer that does not exist", "a buffer that does not exist is used; received 77"),
        ("an operator code that does not exist", "an operator code that does not exist is used; received 5"),
        ("a subgraph that does not exist", "a subgraph that does not exist is used; received 9"),
        ("a subgraph runs itself", "a subgraph runs itself"),
        ("too many dimensions", "too many dimensions; expected 64; received 1000"),
        ("no WhileOptions, subgraph", "a WHILE operator has no WhileOptions"),
        ("inputs do not fit", "a FULLY_CONNECTED operator's inputs do not fit it"),
        ("a signature's tensor", "a tensor that does not exist is used; received 50"),
    ],
)
def test_references_to_nothing_are_refused(tmp_path: Path, how: str, said: str) -> None:
    file = written(tmp_path, _break(how))
    with pytest.raises(ModelError, match=said) as caught:
        read_artifact(file)
    assert str(caught.value).startswith(str(file))


def _damaged(content: bytes, seed: int) -> bytes:
    chooser = random.Random(seed)  # noqa: S311 (a repeatable choice, not a secret)
    changed = bytearray(content)
    changed[chooser.randrange(8, len(changed))] ^= chooser.randrange(1, 256)
    return bytes(changed)


def test_truncated_and_damaged_files_are_read_or_refused(converted: dict[str, Path], tmp_path: Path) -> None:
    content = converted["gru"].read_bytes()
    truncated = [content[: len(content) * part // 21] for part in range(1, 21)]
    damaged = [_damaged(content, seed) for seed in range(200)]
    refused = 0
    for each in [*truncated, *damaged]:
        file = written(tmp_path, each)
        start = time.perf_counter()
        try:
            read_artifact(file)
        except ModelError:
            refused += 1
        assert time.perf_counter() - start < 1
    assert refused >= 20
    for each in truncated:
        with pytest.raises(ModelError):
            read_artifact(written(tmp_path, each))


@pytest.mark.skipif(
    not EDGE_TPU_FILES.is_dir(), reason="EDGE_TPU_TEST_DATA does not name a folder with google-coral/test_data"
)
def test_files_before_and_after_the_edge_tpu_compiler() -> None:
    before = read_artifact(EDGE_TPU_FILES / "mobilenet_v1_0.25_128_quant.tflite")
    after = read_artifact(EDGE_TPU_FILES / "mobilenet_v1_0.25_128_quant_edgetpu.tflite")

    assert before.macs == 13_570_304
    assert before.float_ops == ()
    assert before.min_runtime_version == "1.5.0"
    assert after.custom_ops == ("edgetpu-custom-op",)
    assert after.macs is None
    assert before.signature.inputs["input"].shape == after.signature.inputs["input"].shape == (1, 128, 128, 3)
