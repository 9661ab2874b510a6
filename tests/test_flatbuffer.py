from __future__ import annotations

import io
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgecompress.errors import ModelError
from edgecompress.flatbuffer import Signature, read_metadata, read_model, read_tree, with_metadata, write_tree
from tests.handmade import dense_model, pack, tensor, with_data_behind


def run(model: bytes, x: Any) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.fixture(scope="module")
def converted() -> bytes:
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)])
    return bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


X = np.array([[0.5, -1, 2, 3]], "float32")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04" + b"x" * 40, ".keras"),
        (b"\x89HDF\r\n\x1a\n" + b"x" * 40, "HDF5"),
        (b"\x08\x01\x12\xff" + b"x" * 40, "saved_model.pb"),
        (b"\n<!DOCTYPE html><html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"TFL3", "something else"),
        (b"\0\0\0\0TFL3", "unknown version"),
        (b"\xff\xff\xff\xffTFL3", "past the end"),
    ],
)
def test_what_is_not_a_tflite_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "model.tflite"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=said) as caught:
        read_model(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        read_model(tmp_path / "nothing.tflite")
    with pytest.raises(ModelError, match="a folder"):
        read_model(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(ModelError, match="SavedModel"):
        read_model(tmp_path)


def test_other_versions_and_files_without_a_graph_are_refused() -> None:
    model = dense_model()
    model.tree.version = 4
    with pytest.raises(ModelError, match="version of the file format; expected 3; received 4"):
        read_model(model.pack())
    with pytest.raises(ModelError, match="no graph"):
        read_model(pack(schema.ModelT(version=3)))


def test_a_huge_vector_length_is_refused_before_it_is_used() -> None:
    data = bytearray(dense_model().pack())
    name = data.index(struct.pack("<I", len("kernel")) + b"kernel")
    data[name : name + 4] = b"\xff\xff\xff\x7f"
    with pytest.raises(ModelError, match="a length reaches past the end"):
        read_model(bytes(data))


def test_tables_used_a_million_times_are_refused_quickly() -> None:
    builder = flatbuffers.Builder(1024)
    entries = 2000
    one = tensor("t", (1,)).Pack(builder)
    schema.SubGraphStartTensorsVector(builder, entries)
    for _ in range(entries):
        builder.PrependUOffsetTRelative(one)
    tensors = builder.EndVector()
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    graph = schema.SubGraphEnd(builder)
    schema.ModelStartSubgraphsVector(builder, entries)
    for _ in range(entries):
        builder.PrependUOffsetTRelative(graph)
    graphs = builder.EndVector()
    schema.ModelStart(builder)
    schema.ModelAddVersion(builder, 3)
    schema.ModelAddSubgraphs(builder, graphs)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")

    start = time.perf_counter()
    with pytest.raises(ModelError, match="overlap"):
        read_model(bytes(builder.Output()))
    assert time.perf_counter() - start < 1


def test_a_signature_is_added_and_replaced() -> None:
    from ai_edge_litert.interpreter import Interpreter

    plain = dense_model().pack()
    signed = with_metadata(plain, metadata={}, signature=Signature("serving_default", ["image"], ["scores"]))
    again = with_metadata(signed, metadata={}, signature=Signature("serving_default", {"pixels": "x"}, {"label": "y"}))

    for file, names in ((signed, (["image"], ["scores"])), (again, (["pixels"], ["label"]))):
        interpreter = Interpreter(model_content=file)
        signatures = interpreter.get_signature_list()
        assert signatures == {"serving_default": {"inputs": names[0], "outputs": names[1]}}
        result = interpreter.get_signature_runner("serving_default")(**{names[0][0]: X})
        np.testing.assert_array_equal(result[names[1][0]], run(plain, X))


def test_a_signature_that_does_not_fit_is_refused() -> None:
    plain = dense_model().pack()
    with pytest.raises(ModelError, match="file's inputs; expected 1 names; received 2"):
        with_metadata(plain, metadata={}, signature=Signature("s", ["a", "b"], ["y"]))
    with pytest.raises(ModelError, match=r"no output tensor is called 'yy'.*did you mean 'y'"):
        with_metadata(plain, metadata={}, signature=Signature("s", {"a": "x"}, {"b": "yy"}))


def test_rewriting_a_converted_file_keeps_what_it_computes_and_says(converted: bytes) -> None:
    rewritten = with_metadata(converted, metadata={"notes": b"abc", "facts": b"{}"}, description="by hand")

    np.testing.assert_array_equal(run(rewritten, X), run(converted, X))
    before, after = read_metadata(converted), read_metadata(rewritten)
    assert "min_runtime_version" in before
    assert after == {**before, "facts": b"{}", "notes": b"abc"}
    assert read_model(rewritten).Description() == b"by hand"
    assert read_model(rewritten).SignatureDefs(0).SignatureKey() == b"serving_default"
    assert rewritten == with_metadata(converted, metadata={"facts": b"{}", "notes": b"abc"}, description="by hand")


def test_metadata_is_replaced_in_place(converted: bytes) -> None:
    once = with_metadata(converted, metadata={"facts": b"1" * 500})
    twice = with_metadata(once, metadata={"facts": b"2"})

    assert read_metadata(twice)["facts"] == b"2"
    assert list(read_metadata(twice)) == list(read_metadata(once))
    assert read_model(twice).BuffersLength() == read_model(once).BuffersLength()
    assert b"1" * 500 not in twice


def test_metadata_that_shares_its_buffer_with_a_weight_leaves_the_weight_alone() -> None:
    model = dense_model()
    model.tree.metadata = [schema.MetadataT("facts", buffer=1)]
    changed = with_metadata(model.pack(), metadata={"facts": b"new"})

    assert read_metadata(changed) == {"facts": b"new"}
    np.testing.assert_array_equal(run(changed, X), run(model.pack(), X))


@pytest.mark.parametrize("length", [1, 7, 64])
def test_buffers_start_at_multiples_of_16(converted: bytes, length: int) -> None:
    rewritten = with_metadata(converted, metadata={"odd": b"z" * length})
    model = read_model(rewritten)
    checked = 0
    for index in range(model.BuffersLength()):
        if model.Buffers(index).DataLength():
            data = model.Buffers(index).DataAsNumpy()
            start = data.__array_interface__["data"][0] - np.frombuffer(rewritten, "u1").__array_interface__["data"][0]
            assert start % 16 == 0
            checked += 1
    assert checked >= 5


def test_files_appended_to_a_model_are_kept() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as labels:
        labels.writestr("labels.txt", "cat\ndog\n")
    rewritten = with_metadata(dense_model().pack() + archive.getvalue(), metadata={"facts": b"{}"})

    assert zipfile.ZipFile(io.BytesIO(rewritten)).read("labels.txt") == b"cat\ndog\n"
    assert read_metadata(rewritten) == {"facts": b"{}"}
    run(rewritten, X)


def test_what_rewriting_would_lose_is_refused() -> None:
    unknown = dense_model()
    data = bytearray(unknown.pack())
    table = read_model(bytes(data)).Subgraphs(0).Operators(0)._tab
    data[table.Pos + table.Offset(10)] = 250  # a kind of options from the future
    with pytest.raises(ModelError, match="ai-edge-litert does not know"):
        with_metadata(bytes(data), metadata={})


def test_data_behind_the_flatbuffer_is_moved_in() -> None:
    behind = with_data_behind(dense_model(), 1)
    rewritten = with_metadata(behind, metadata={})

    np.testing.assert_array_equal(run(behind, X), run(dense_model().pack(), X))
    np.testing.assert_array_equal(run(rewritten, X), run(behind, X))
    assert read_model(behind).Buffers(1).DataLength() == 0
    assert read_model(rewritten).Buffers(1).DataLength() == 48
    with pytest.raises(ModelError, match="reaches past its end"):
        with_metadata(behind[:-1], metadata={})


def test_buffers_that_claim_the_whole_file_again_and_again_are_refused() -> None:
    model = dense_model()
    size = len(model.pack())
    model.tree.buffers += [schema.BufferT(offset=8, size=size) for _ in range(50)]
    with pytest.raises(ModelError, match="buffers overlap"):
        with_metadata(model.pack(), metadata={})


def test_names_that_are_not_utf8_are_readable() -> None:
    model = dense_model()
    model.tree.metadata = [schema.MetadataT(b"caf\xe9", buffer=2)]
    assert list(read_metadata(model.pack())) == ["caf�"]


def kernels(count: int, scales: list[float], quantized_dimension: int = 0) -> schema.ModelT:
    """A graph of constants that all have these scales."""
    model = dense_model()
    for index in range(count):
        one = tensor(f"kernel_{index}", (len(scales), 2), "INT8")
        one.quantization = schema.QuantizationParametersT(
            scale=np.float32(scales), zeroPoint=np.zeros(len(scales), np.int64), quantizedDimension=quantized_dimension
        )
        model.tree.subgraphs[0].tensors.append(one)
    return model.tree


def quantization_of(model: bytes, name: str) -> tuple[list[float], list[int], int]:
    graph = read_model(model).Subgraphs(0)
    tensors = [graph.Tensors(index) for index in range(graph.TensorsLength())]
    found = next(each for each in tensors if each.Name().decode() == name).Quantization()
    return found.ScaleAsNumpy().tolist(), found.ZeroPointAsNumpy().tolist(), found.QuantizedDimension()


def test_a_tree_is_written_as_it_was_read(converted: bytes) -> None:
    written = write_tree(read_tree(converted))
    assert write_tree(read_tree(written)) == written
    np.testing.assert_array_equal(run(written, X), run(converted, X))
    assert read_metadata(written) == read_metadata(converted)
    tree = read_tree(written)
    assert tree.signatureDefs[0].signatureKey == b"serving_default"
    assert [len(graph.operators) for graph in tree.subgraphs] == [
        len(graph.operators) for graph in read_tree(converted).subgraphs
    ]


def test_a_tree_can_be_changed(converted: bytes) -> None:
    tree = read_tree(converted)
    kernel = next(each for each in tree.subgraphs[0].tensors if list(each.shape) == [3, 8])
    buffer = tree.buffers[kernel.buffer]
    buffer.data = (2 * np.asarray(buffer.data, np.uint8).view(np.float32)).view(np.uint8)
    np.testing.assert_allclose(run(write_tree(tree), X), 2 * run(converted, X), rtol=1e-5)


def test_equal_scales_are_written_once_and_read_back() -> None:
    scales = [0.5**index for index in range(100)]
    one, four = (write_tree(kernels(count, scales)) for count in (1, 4))
    assert len(four) - len(one) < 3 * 150  # each would take 1,200 bytes of scales and zero points
    for name in ("kernel_0", "kernel_3"):
        assert quantization_of(four, name) == (scales, [0] * 100, 0)


def test_zero_points_are_shared_by_tensors_of_other_scales() -> None:
    tree = kernels(1, [0.5] * 100)
    tree.subgraphs[0].tensors += kernels(1, [0.25] * 100).subgraphs[0].tensors[-1:]
    tree.subgraphs[0].tensors[-1].name = b"other"
    written = write_tree(tree)
    assert len(written) - len(write_tree(kernels(1, [0.5] * 100))) < 400 + 200
    assert quantization_of(written, "kernel_0") == ([0.5] * 100, [0] * 100, 0)
    assert quantization_of(written, "other") == ([0.25] * 100, [0] * 100, 0)


def test_the_same_scales_along_another_axis_are_others() -> None:
    tree = kernels(1, [0.5, 0.25])
    tree.subgraphs[0].tensors += kernels(1, [0.5, 0.25], quantized_dimension=1).subgraphs[0].tensors[-1:]
    tree.subgraphs[0].tensors[-1].name = b"other"
    written = write_tree(tree)
    assert quantization_of(written, "kernel_0") == ([0.5, 0.25], [0, 0], 0)
    assert quantization_of(written, "other") == ([0.5, 0.25], [0, 0], 1)


def test_ranges_and_empty_scales_are_kept() -> None:
    tree = dense_model().tree
    first, second, *_ = tree.subgraphs[0].tensors
    first.quantization = schema.QuantizationParametersT(min=np.float32([-1]), max=np.float32([2]))
    second.quantization = schema.QuantizationParametersT()
    graph = read_model(write_tree(tree)).Subgraphs(0)
    kept = graph.Tensors(0).Quantization()
    assert (kept.MinAsNumpy().tolist(), kept.MaxAsNumpy().tolist(), kept.ScaleLength()) == ([-1], [2], 0)
    assert graph.Tensors(1).Quantization().ScaleLength() == 0
