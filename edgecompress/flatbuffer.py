"""Opens .tflite files, which are FlatBuffers, without trusting them; and adds signatures and metadata to them.

FlatBuffers follow offsets stored in the file. `read_model` walks the whole file once and checks each offset and length
before anything uses it, so that what it returns can be read without a thought for damaged or hostile files.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgecompress.errors import ModelError, did_you_mean
from edgecompress.flatbuffer_verifier import verify_structure

_IDENTIFIER = b"TFL3"
_SCHEMA_VERSION = 3
_LARGEST_FLATBUFFER = 2**31 - 1
_BUFFER_ALIGNMENT = 16  # force_align of Buffer.data in TensorFlow Lite's schema
# The first bytes of what people pass by mistake.
_OTHER_FILES = (
    (b"PK\x03\x04", "a zip archive, as .keras files are"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as .h5 models are"),
    (b"\x08\x01\x12", "the saved_model.pb of a SavedModel"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<", "an HTML or XML page"),
    (b"{", "JSON"),
)


@dataclass(frozen=True)
class Signature:
    """The names by which an application reaches a model's inputs and outputs.

    Attributes:
        key: Name of the signature.
        inputs: Names in the order of the file's inputs, or the name of the tensor that each name stands for.
        outputs: The same for the outputs.
    """

    key: str
    inputs: Sequence[str] | Mapping[str, str]
    outputs: Sequence[str] | Mapping[str, str]


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Returns a file's content.

    Raises:
        ModelError: There is no such file, or it is a folder, empty or unreadable.
    """
    file = Path(path)
    if file.is_dir():
        what = "a SavedModel folder, not a .tflite file" if (file / "saved_model.pb").is_file() else "a folder"
        raise ModelError(what, where=file, expected="a .tflite file", fix="convert the model first")
    if not file.exists():
        raise ModelError("no such file", where=file, fix="check the path of the .tflite file")
    if not file.is_file():
        raise ModelError("not a regular file", where=file, expected="a .tflite file")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror})", where=file) from None
    if not data:
        raise ModelError("the file is empty", where=file, expected="a .tflite file")
    return data


def read_model(source: bytes | str | os.PathLike[str], *, where: object = None) -> Any:
    """Opens a .tflite file and checks its structure.

    Args:
        source: The file's path or its content.
        where: What to call the file in errors, when its content is given.

    Returns:
        The `Model` accessor of the TensorFlow Lite schema, over the bytes of the file (nothing is copied). Offsets and
        lengths in it are sound; indices of tensors, buffers and subgraphs are not checked.

    Raises:
        ModelError: Not a .tflite file, truncated or damaged.
    """
    data = source if isinstance(source, bytes) else read_bytes(source)
    name = where if isinstance(source, bytes) else Path(source)
    if data[4:8] != _IDENTIFIER:
        kind = next((kind for start, kind in _OTHER_FILES if data[:64].lstrip().startswith(start)), "something else")
        raise ModelError(
            "not a .tflite file", where=name, expected="the identifier TFL3 in bytes 4 to 8", received=kind,
            fix="give the .tflite file that the converter wrote",
        )  # fmt: skip
    verify_structure(data, where=name)
    model = schema.Model.GetRootAs(data, 0)
    if model.Version() != _SCHEMA_VERSION:
        raise ModelError(
            "unknown version of the file format", where=name, expected=_SCHEMA_VERSION, received=model.Version()
        )
    if model.SubgraphsLength() == 0:
        raise ModelError("the file holds no graph", where=name, fix="copy or convert it again")
    return model


def buffer_bytes(model: Any, index: int) -> bytes | memoryview:
    """Returns the content of a buffer, empty where it has none, without copying it.

    Raises:
        ModelError: There is no such buffer, or it lies outside the file.
    """
    if not 0 <= index < model.BuffersLength():
        raise ModelError("damaged file: a buffer that does not exist is used", received=index)
    buffer = model.Buffers(index)
    if buffer.Offset() > 1:  # files above 2 GB keep their data behind the FlatBuffer
        data = memoryview(buffer._tab.Bytes)  # noqa: SLF001 (the accessor has no other way to the whole file)
        if buffer.Offset() + buffer.Size() > len(data):
            raise ModelError("truncated file: a buffer reaches past its end", received=index)
        return data[buffer.Offset() : buffer.Offset() + buffer.Size()]
    return b"" if buffer.DataLength() == 0 else memoryview(buffer.DataAsNumpy())


def read_metadata(source: bytes | str | os.PathLike[str]) -> dict[str, bytes]:
    """Returns the named metadata of a .tflite file, in the file's order.

    Raises:
        ModelError: Not a .tflite file, truncated or damaged.
    """
    model = read_model(source)
    entries = [model.Metadata(i) for i in range(model.MetadataLength())]
    return {text(entry.Name()): bytes(buffer_bytes(model, entry.Buffer())) for entry in entries}


def with_metadata(
    model: bytes, *, metadata: Mapping[str, bytes], signature: Signature | None = None, description: str | None = None
) -> bytes:
    """Returns a .tflite file with a signature, metadata and description added or replaced; the rest stays as it is.

    The same arguments give the same bytes.

    Args:
        model: Content of a .tflite file.
        metadata: Content of each named piece of metadata to set; the file's other metadata is kept.
        signature: Names of the first subgraph's inputs and outputs, or None to leave signatures alone.
        description: What the file says of itself, or None to leave that alone.

    Raises:
        ModelError: Not a .tflite file, damaged, above 2 GB, or without the tensors that the signature names.
    """
    tree = read_tree(model)
    if description is not None:
        tree.description = description
    if signature is not None:
        kept = [old for old in tree.signatureDefs or [] if text(old.signatureKey) != signature.key]
        tree.signatureDefs = [*kept, _signature_def(signature, tree.subgraphs[0])]
    for name in sorted(metadata):
        _set_metadata(tree, name, metadata[name])
    return write_tree(tree) + _appended_files(model)


def read_tree(model: bytes) -> Any:
    """Returns a .tflite file as a tree of the schema's objects (`ModelT`), which can be changed and written again.

    Raises:
        ModelError: Not a .tflite file, damaged, above 2 GB, or with options that would be lost.
    """
    accessor = read_model(model)
    try:
        tree = schema.ModelT.InitFromObj(accessor)
    except (struct.error, ValueError, IndexError, TypeError) as error:
        raise ModelError(f"damaged file: {error}") from None
    _require_rewritable(tree)
    _take_buffers_in(tree, accessor, len(model))
    return tree


def write_tree(tree: Any) -> bytes:
    """Returns the .tflite file of a tree; the same tree gives the same bytes.

    The tree is used up.
    """
    size = sum(len(buffer.data) for buffer in tree.buffers if buffer.data is not None)
    tree.buffers = [_AlignedBuffer(buffer) for buffer in tree.buffers]
    written: dict[object, int] = {}
    for tensor in (tensor for graph in tree.subgraphs for tensor in graph.tensors or []):
        if tensor.quantization is not None and tensor.quantization.details is None:
            tensor.quantization = _SharedQuantization(tensor.quantization, written)
    builder = flatbuffers.Builder(size + 1024)
    builder.Finish(tree.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def text(name: bytes | None) -> str:
    """Returns a name stored in the file; bytes that are not UTF-8 are replaced."""
    return "" if name is None else name.decode("utf-8", "replace")


@dataclass(frozen=True)
class _AlignedBuffer:
    """Packs a buffer so that its data starts at a multiple of 16, which generated Python code does not do."""

    inner: Any

    def Pack(self, builder: Any) -> Any:  # noqa: N802 (called by generated code)
        if self.inner.data is not None:
            builder.Prep(_BUFFER_ALIGNMENT, len(self.inner.data))
        return self.inner.Pack(builder)


@dataclass(frozen=True)
class _SharedQuantization:
    """Packs scales and zero points once for all tensors that have the same.

    A kernel with a scale for each channel has as many zero points, of eight bytes each, all of them 0: written for each
    tensor, they would take more room than the scales.
    """

    inner: Any
    written: dict[object, int]

    def Pack(self, builder: Any) -> Any:  # noqa: N802 (called by generated code)
        inner = self.inner
        vectors = [
            None if values is None or not len(values) else np.asarray(values, dtype)
            for values, dtype in (
                (inner.min, np.float32), (inner.max, np.float32), (inner.scale, np.float32), (inner.zeroPoint, np.int64)
            )
        ]  # fmt: skip
        key = (inner.quantizedDimension, *(None if vector is None else vector.tobytes() for vector in vectors))
        if key not in self.written:
            places = [None if vector is None else self._vector(builder, vector) for vector in vectors]
            schema.QuantizationParametersStart(builder)
            add = (
                schema.QuantizationParametersAddMin, schema.QuantizationParametersAddMax,
                schema.QuantizationParametersAddScale, schema.QuantizationParametersAddZeroPoint,
            )  # fmt: skip
            for set_vector, place in zip(add, places, strict=True):
                if place is not None:
                    set_vector(builder, place)
            schema.QuantizationParametersAddQuantizedDimension(builder, inner.quantizedDimension)
            self.written[key] = schema.QuantizationParametersEnd(builder)
        return self.written[key]

    def _vector(self, builder: Any, values: Any) -> int:
        key = values.dtype.str, values.tobytes()
        if key not in self.written:
            self.written[key] = builder.CreateNumpyVector(values)
        return self.written[key]


def _require_rewritable(tree: Any) -> None:
    for operator in (operator for graph in tree.subgraphs for operator in graph.operators or []):
        # The generated reader drops options that it does not know, which would change what the operator computes.
        unknown = (operator.builtinOptionsType and operator.builtinOptions is None) or (
            operator.builtinOptions2Type and operator.builtinOptions2 is None
        )
        if unknown or operator.largeCustomOptionsSize:
            raise ModelError(
                "an operator's options are of a kind that this version of ai-edge-litert does not know",
                fix="pip install --upgrade ai-edge-litert",
            )


def _take_buffers_in(tree: Any, accessor: Any, size: int) -> None:
    """Moves data that lies behind the FlatBuffer into it.

    litert-quantizer writes it there for models above 256 KiB; TFLite Micro, Vela and runtimes of before 2024
    do not look for it there.
    """
    tree.buffers = tree.buffers or [schema.BufferT()]
    if size > _LARGEST_FLATBUFFER:
        raise ModelError("files above 2 GB cannot be given metadata", received=f"{size:,} bytes")
    for index, buffer in enumerate(tree.buffers):
        if buffer.offset > 1:
            buffer.data = np.frombuffer(buffer_bytes(accessor, index), np.uint8)
            buffer.offset = buffer.size = 0
    if sum(len(buffer.data) for buffer in tree.buffers if buffer.data is not None) > size:
        raise ModelError("damaged file: its buffers overlap")


def _appended_files(model: bytes) -> bytes:
    """Returns what TensorFlow Lite's metadata tools append to a model: a zip archive of label files."""
    try:
        with zipfile.ZipFile(io.BytesIO(model)) as archive:
            return model[min((entry.header_offset for entry in archive.infolist()), default=len(model)) :]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error):
        return b""


def _signature_def(signature: Signature, graph: Any) -> Any:
    return schema.SignatureDefT(
        inputs=_tensor_maps(signature.inputs, graph.tensors, graph.inputs, "input"),
        outputs=_tensor_maps(signature.outputs, graph.tensors, graph.outputs, "output"),
        signatureKey=signature.key,
        subgraphIndex=0,
    )


def _tensor_maps(names: Sequence[str] | Mapping[str, str], tensors: Any, indices: Any, kind: str) -> list[Any]:
    places = [] if indices is None else [int(index) for index in indices]
    if not all(0 <= place < len(tensors or []) for place in places):
        raise ModelError(f"damaged file: an {kind} that does not exist is used")
    if not isinstance(names, Mapping):
        if len(names) != len(places):
            what = f"the signature does not name the file's {kind}s"
            raise ModelError(what, expected=f"{len(places)} names", received=len(names))
        return [schema.TensorMapT(name, place) for name, place in zip(names, places, strict=True)]
    by_tensor = {text(tensors[place].name): place for place in places}
    unknown = next((tensor for tensor in names.values() if tensor not in by_tensor), None)
    if unknown is not None:
        raise ModelError(f"no {kind} tensor is called {unknown!r}", fix=did_you_mean(unknown, by_tensor))
    return [schema.TensorMapT(name, by_tensor[tensor]) for name, tensor in names.items()]


def _set_metadata(tree: Any, name: str, content: bytes) -> None:
    tree.metadata = tree.metadata or []
    entry = next((old for old in tree.metadata if text(old.name) == name), None)
    users = Counter(tensor.buffer for graph in tree.subgraphs for tensor in graph.tensors or [])
    users.update(old.buffer for old in tree.metadata)
    buffer = schema.BufferT(np.frombuffer(content, np.uint8))
    if entry is not None and users[entry.buffer] == 1 and 0 < entry.buffer < len(tree.buffers):
        tree.buffers[entry.buffer] = buffer
        return
    if entry is None:
        entry = schema.MetadataT(name.encode())
        tree.metadata.append(entry)
    entry.buffer = len(tree.buffers)
    tree.buffers.append(buffer)
