"""Refuses model files that could run code or touch other files, before anything is built from them.

A Keras configuration names layers and functions; a SavedModel is a graph of operations. Both are read as plain data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgecompress.errors import ModelError

# Graph operations that touch files or run Python; TensorFlow executes them when it loads or calls the model.
_DANGEROUS_OPERATIONS = frozenset(
    {
        "CacheDataset", "CacheDatasetV2", "CreateSummaryDbWriter", "CreateSummaryFileWriter", "DatasetToTFRecord",
        "DebugIdentity", "DebugIdentityV2", "DebugIdentityV3", "EagerPyFunc", "MergeV2Checkpoints", "PyFunc",
        "PyFuncStateless", "ReadFile", "Save", "SaveDataset", "SaveDatasetV2", "SaveSlices", "SaveV2",
        "SnapshotDataset", "SnapshotDatasetV2", "WriteFile",
    }
)  # fmt: skip
_LAMBDAS = ("Lambda", "__lambda__")
# tf_keras stores a call of a TensorFlow function as a layer that names it. These parts of TensorFlow only compute.
_TENSORFLOW_CALLS = ("ClassMethod", "SlicingOpLambda", "TFOpLambda")
_COMPUTING = (
    "__operators__.", "audio.", "bitwise.", "debugging.assert_", "debugging.check_numerics", "dtypes.", "image.",
    "linalg.", "math.", "nn.", "quantization.", "random.", "signal.", "sparse.", "strings.",
)  # fmt: skip
_TOUCHING = frozenset(
    {
        "Print", "load_file_system_library", "load_library", "load_op_library", "matching_files", "numpy_function",
        "print", "py_func", "py_function", "read_file", "write_file",
    }
)  # fmt: skip
_KERAS_FUNCTIONS = ("activations", "constraints", "initializers", "losses", "metrics", "ops", "regularizers")
_KERAS_MODULES = ("builtins", "keras", "tf_keras")


def refuse_unsafe_layers(path: Path, config: object) -> None:
    """Refuses Lambda layers, wherever they are nested, and calls of TensorFlow functions that do more than compute.

    Raises:
        ModelError: Names the layer.
    """
    for entry in _entries(config):
        kind, name = entry["class_name"], _name(entry)
        if kind in _LAMBDAS:
            raise ModelError(
                f"layer {name!r} is a Lambda, which runs Python code stored in the file", where=path,
                fix="rebuild it as a named layer, or pass --unsafe if you trust the file",
            )  # fmt: skip
        if kind in _TENSORFLOW_CALLS and not _only_computes(function := _called_function(entry)):
            raise ModelError(
                f"layer {name!r} calls tf.{function}, which may do more than compute", where=path,
                fix="rebuild the model without it, or pass --unsafe if you trust the file",
            )  # fmt: skip


def refuse_unknown_classes(path: Path, config: object, objects: Mapping[str, Any]) -> None:
    """Refuses custom classes and functions that were neither given nor registered with Keras.

    The layers of EdgeCompress are registered here if the file names any of them.

    Files of the older kind name neither a module nor a registered name: there only Keras can say what it knows.

    Raises:
        ModelError: Names the class and how to give it.
    """
    for entry in _entries(config):
        kind, module, registered = entry["class_name"], entry.get("module"), entry.get("registered_name")
        if str(registered or kind).startswith("edgecompress>"):
            import edgecompress.layers  # noqa: F401 (it registers them)
        if kind == "function":
            kind = str(entry.get("config"))
            known = registered is None or _is_keras_function(kind)
        else:
            known = (module or "").split(".")[0] in _KERAS_MODULES or (module is None and registered is None)
        if known or find_object(objects, registered, kind) is not None:
            continue
        is_class, kind = entry["class_name"] == kind, kind.rpartition(">")[2]
        what = f"{_name(entry)!r} is of the custom class {kind!r}" if is_class else f"{kind!r} is a custom function"
        raise ModelError(what, where=path, fix=advise_custom_object(kind, module))


def advise_custom_object(name: str, module: object = None) -> str:
    """Returns the advice for a class or function that Keras does not know."""
    home = module if isinstance(module, str) and module.split(".")[0] not in _KERAS_MODULES else "your_module"
    return f"pass --custom-objects {home}:{name.rpartition('>')[2]}"  # a shell redirects at the > of 'package>Name'


def refuse_dangerous_operations(path: Path, description: Any) -> None:
    """Refuses a SavedModel in which loading or calling reaches an operation that touches files or runs Python.

    The functions that every SavedModel has for saving it again write files, and are left alone as long as nothing else
    reaches them.

    Args:
        path: The folder.
        description: Its SavedModel protobuf.

    Raises:
        ModelError: Names the operation.
    """
    for meta in description.meta_graphs:
        for node in _reachable_nodes(meta):
            to_file = node.op == "PrintV2" and node.attr["output_stream"].s.startswith(b"file:")
            if node.op in _DANGEROUS_OPERATIONS or to_file:
                raise ModelError(
                    f"operation {node.name!r} ({node.op}) reads or writes files or runs Python", where=path,
                    fix="export the model without it, or pass --unsafe if you trust the folder",
                )  # fmt: skip


def _entries(node: object) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if isinstance(node.get("class_name"), str):
            yield node
        for value in node.values():
            yield from _entries(value)
    elif isinstance(node, list):
        for value in node:
            yield from _entries(value)


def _settings(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = entry.get("config")
    return settings if isinstance(settings, dict) else {}


def _name(entry: Mapping[str, Any]) -> str:
    return str(_settings(entry).get("name", entry["class_name"]))


def _called_function(entry: Mapping[str, Any]) -> str:
    settings = _settings(entry)
    return str(settings.get("function") or settings.get("cls_symbol")).removeprefix("compat.v1.")


def _only_computes(function: str) -> bool:
    return function.startswith(_COMPUTING) or ("." not in function and function not in _TOUCHING)


def _is_keras_function(name: str) -> bool:
    import keras

    return any(hasattr(getattr(keras, module), name) for module in _KERAS_FUNCTIONS)


def find_object(objects: Mapping[str, Any], *names: object) -> Any:
    """Returns the class or function of the first name that was given or registered with Keras, or None.

    Args:
        objects: What was given, by name.
        names: Perhaps with the package that it was registered in: 'package>Name'. What is no name is passed over.
    """
    import keras

    for name in names:
        if isinstance(name, str) and name:
            for known in (objects.get(name), keras.saving.get_registered_object(name)):
                if known is not None:
                    return known
    return None


def _reachable_nodes(meta: Any) -> Iterator[Any]:
    """Yields the graph nodes that loading the model, its signatures or its other functions can execute."""
    library = {function.signature.name: function for function in meta.graph_def.library.function}
    main = {node.name: node for node in meta.graph_def.node}
    waiting: list[Any] = [main[name] for name in _root_names(meta) if name in main]
    calls = list(meta.object_graph_def.concrete_functions)
    seen: set[str] = set()
    while waiting or calls:
        while calls:
            name = calls.pop()
            if name in library and name not in seen:
                seen.add(name)
                waiting.extend(library[name].node_def)
        if waiting:
            node = waiting.pop()
            yield node
            calls.extend(_called(node))
            if node.name in main and main[node.name] is node:  # inside a function all nodes are taken at once
                del main[node.name]
                waiting.extend(main[source] for source in map(_node_name, node.input) if source in main)


def _root_names(meta: Any) -> Iterator[str]:
    for signature in meta.signature_def.values():
        yield from (_node_name(tensor.name) for tensor in signature.outputs.values())
    # Old SavedModels restore their variables with an operation of the graph, and may initialize more.
    yield _node_name(meta.saver_def.restore_op_name)
    for key in ("saved_model_main_op", "legacy_init_op"):
        yield from map(_node_name, meta.collection_def[key].node_list.value)


def _node_name(tensor: str) -> str:
    return tensor.removeprefix("^").split(":")[0]


def _called(node: Any) -> Iterable[str]:
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)
