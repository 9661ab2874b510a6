"""Keras 3 models as graphs of layers: those that are none are traced, and graphs are copied."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from edgecompress.data import InputSpec
from edgecompress.errors import EdgeCompressError, ModelError

_CALL_FIX = (
    "use layers and keras.ops in `call`, and no `if`, `for` or NumPy on the values of tensors; "
    "or export it with model.export(folder)"
)
_NARROW = ("float16", "bfloat16")
_ONLY_MOVE = frozenset({"Reshape", "Flatten", "Dropout", "Identity", "Permute"})
_TRACE_SIZE = 32  # what a dimension of unknown size is taken for when a traced model is compared


def functional_graph(model: Any) -> Any:
    """Returns the graph of layers that a functional, Sequential or nested Keras 3 model is; None if it has none."""
    import keras

    if isinstance(model, keras.Sequential):
        return model._functional if type(model).call is keras.Sequential.call else None  # noqa: SLF001
    return model if hasattr(model, "_nodes_by_depth") and type(model).call is _functional_class().call else None


@functools.cache
def _functional_class() -> type[Any]:
    import keras

    x = keras.Input(())
    return type(keras.Model(x, x))


def as_functional(model: Any, specs: Sequence[InputSpec] | None = None, *, where: object = None) -> Any:
    """Returns a Keras 3 model as a graph of layers: itself if it is one, else traced.

    A subclassed model's `call` is run once on symbolic inputs. The graph shares the layers of `model`.

    Args:
        model: A Keras 3 model.
        specs: Its inputs, one for each tensor that `call` takes; None: of the shapes that it was built for.
        where: What errors call the model; None: its name.

    Raises:
        ModelError: It has no known inputs, or has weights outside layers, or its `call` cannot be run on symbolic
            tensors, or answers otherwise on real ones.
    """
    if functional_graph(model) is not None:
        return model
    where = where or model.name
    arguments = _symbolic_arguments(model, specs, where)
    own = [variable.path for variable in (*model._trainable_variables, *model._non_trainable_variables)]  # noqa: SLF001
    if own:
        raise ModelError(
            "a subclassed model with weights of its own, outside layers", where=where, received=", ".join(own),
            fix="put them, and what is done with them, into a layer",
        )  # fmt: skip
    try:
        traced = _trace_call(model, arguments)
        alike = _answers_alike(model, traced, arguments)
    except Exception as error:
        raise ModelError(
            f"its `call` cannot be turned into a graph of layers ({type(error).__name__}: {cause_of(error)})",
            where=where, fix=_CALL_FIX,
        ) from error  # fmt: skip
    if not alike:
        raise ModelError(
            "its `call` does something else on symbolic tensors than on real ones", where=where, fix=_CALL_FIX
        )
    return traced


def _symbolic_arguments(model: Any, specs: Sequence[InputSpec] | None, where: object) -> dict[str, Any]:
    """Returns symbolic inputs, by the name of the argument of `call`."""
    import keras

    parameters = inspect.signature(model.call).parameters.values()
    names = [p.name for p in parameters if p.name not in ("training", "mask")]
    if specs is None:
        shapes = getattr(model, "_build_shapes_dict", None)  # where Keras keeps what a model was built for
        if not shapes:
            raise no_inputs(where)
        if len(shapes) == 1:
            shapes = {names[0]: next(iter(shapes.values()))}
        shapes = {key.removesuffix("_shape"): shape for key, shape in shapes.items()}
        unknown = [p.name for p in parameters if p.name in names and p.default is p.empty and p.name not in shapes]
        if unknown:
            raise ModelError(
                "a subclassed model of which Keras stored only the shape of the first argument", where=where,
                received=f"`call` with {', '.join(names)}", fix="let `call` take one list or dict of tensors",
            )  # fmt: skip
        return {name: _symbolic(shape, name, model.input_dtype) for name, shape in shapes.items()}
    inputs = [keras.Input(batch_shape=spec.shape, dtype=spec.dtype, name=spec.name) for spec in specs]
    return dict(zip(names, inputs, strict=True)) if len(inputs) <= len(names) else {names[0]: inputs}


def _symbolic(shape: Any, name: str, dtype: str) -> Any:
    """Returns an input of any batch, or a list or dict of them where the shapes are in one."""
    import keras

    if isinstance(shape, dict):
        return {key: _symbolic(value, str(key), dtype) for key, value in shape.items()}
    if all(size is None or isinstance(size, int) for size in shape):
        return keras.Input(shape[1:], dtype=dtype, name=name)
    return [_symbolic(value, f"{name}_{number}", dtype) for number, value in enumerate(shape)]


def _trace_call(model: Any, arguments: dict[str, Any]) -> Any:
    import keras

    outputs = model.call(**arguments)
    inputs = list(arguments.values())
    return keras.Model(inputs[0] if len(inputs) == 1 else inputs, outputs, name=model.name)


def _answers_alike(model: Any, traced: Any, arguments: dict[str, Any]) -> bool:
    """Compares the two on random samples: `call` may treat symbolic tensors otherwise than real ones."""
    import keras

    random = np.random.default_rng(0)

    def sample(tensor: Any) -> Any:
        shape = [(_TRACE_SIZE if axis else 2) if size is None else size for axis, size in enumerate(tensor.shape)]
        # Numbers from 0 to 2, because they may be indices of an embedding.
        return keras.ops.cast(random.uniform(0, 2, shape), tensor.dtype)

    samples = keras.tree.map_structure(sample, arguments)
    values = list(samples.values())
    expected = keras.tree.flatten(model(**samples))
    received = keras.tree.flatten(traced(values[0] if len(values) == 1 else values))
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True) for a, b in zip(expected, received, strict=True))


def graph_nodes(graph: Any) -> Iterator[Any]:
    """Yields the calls in a functional graph, inputs left out, in an order in which they can be done."""
    by_depth = graph._nodes_by_depth  # noqa: SLF001
    for depth in sorted(by_depth, reverse=True):
        yield from (node for node in by_depth[depth] if not node.is_input)


def explicit_arguments(node: Any) -> dict[str, Any]:
    """Returns the keyword arguments of a call but those that Keras fills in when the layer is called again.

    Keras 3 tells each layer whether it is trained, whatever its call says, and passes on the masks of its inputs.
    """
    import keras

    arguments = node.arguments
    masks = {id(tensor._keras_mask) for tensor in arguments.keras_tensors if hasattr(tensor, "_keras_mask")}  # noqa: SLF001
    filled_in = {"mask", *(f"{name}_mask" for name in inspect.signature(node.operation.call).parameters)}

    def is_explicit(key: str, value: Any) -> bool:
        leaves = [leaf for leaf in keras.tree.flatten(value) if leaf is not None]
        return key != "training" and bool(leaves) and not (key in filled_in and {id(leaf) for leaf in leaves} <= masks)

    return {key: value for key, value in arguments.kwargs.items() if is_explicit(key, value)}


def call_keywords(node: Any) -> dict[str, Any]:
    """Returns the keyword arguments to repeat a call with: `explicit_arguments`, and `training` if it was given."""
    training = node.arguments.kwargs.get("training")
    return explicit_arguments(node) | ({} if training is None else {"training": training})


def clone_model(model: Any) -> Any:
    """Returns a copy of a Keras 3 model, not compiled and with weights of its own; `model` is left as it is.

    Raises:
        ModelError: A layer cannot be made again from its configuration.
    """
    with copying(model):
        clone = _clone(model, lambda config: config)
    for layer, copy in zip(model._flatten_layers(), clone._flatten_layers(), strict=True):  # noqa: SLF001
        if not getattr(layer, "layers", None):
            copy.trainable = layer.trainable
    return clone


def in_float32(model: Any) -> Any:
    """Returns a Keras 3 model as one that computes in float32: itself, unless a layer computes in 16 bits.

    TensorFlow Lite has no operators for arithmetic in float16 and bfloat16. Inputs keep their types.

    Raises:
        ModelError: The model cannot be rebuilt.
    """
    if not any(_is_narrow(layer) for layer in model._flatten_layers()):  # noqa: SLF001
        return model
    try:
        wide = _clone(model, _widen)
        narrow = [layer.name for layer in wide._flatten_layers() if _is_narrow(layer)]  # noqa: SLF001
        cause = f"{', '.join(narrow[:5])} would still compute in 16 bits" if narrow else None
    except Exception as error:  # noqa: BLE001 (a custom layer may raise anything)
        cause = cause_of(error)
    if cause is not None:
        raise ModelError(
            f"computes in 16 bits, which TensorFlow Lite does not, and cannot be rebuilt in float32: {cause}",
            where=model.name,
            fix="build it under keras.config.set_dtype_policy('float32') and give it the weights of this one",
        )
    return wide


def _is_narrow(layer: Any) -> bool:
    return str(getattr(layer, "compute_dtype", None)) in _NARROW


def _widen(config: Any) -> Any:
    """Returns a configuration with each dtype policy that computes in 16 bits replaced."""
    if isinstance(config, dict):
        named = config.get("class_name") == "DTypePolicy" and isinstance(config.get("config"), dict)
        if named and str(config["config"].get("name")).endswith(_NARROW):
            return "float32"
        is_input = config.get("class_name") == "InputLayer"
        return {key: value if is_input else _widen(value) for key, value in config.items()} | _wide_dtype(config)
    return [_widen(each) for each in config] if isinstance(config, list) else config


def _wide_dtype(config: dict[str, Any]) -> dict[str, str]:
    dtype = config.get("dtype")
    return {"dtype": "float32"} if isinstance(dtype, str) and dtype.endswith(_NARROW) else {}


def _clone(model: Any, change: Callable[[Any], Any]) -> Any:
    """Returns a copy of a model, made from its layers' configurations, which `change` may change."""
    import keras

    def remake(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return layer
        return type(layer).from_config(change(layer.get_config()))

    compiled = model.compiled
    try:
        model.compiled = False  # Keras would compile the copy, too, which fails with a loss that it does not know
        with keras.saving.custom_object_scope(_custom_layers(model)):
            clone = keras.models.clone_model(model, clone_function=remake)
    finally:
        model.compiled = compiled
    copy_weights(model, clone)
    for layer, copy in zip(model._flatten_layers(), clone._flatten_layers(), strict=True):  # noqa: SLF001
        copy.name = layer.name  # which the configuration of a custom layer may leave out
    return clone


def copy_weights(original: Any, copy: Any) -> None:
    """Gives a Keras 3 layer or model the weights of one that it was made after."""
    import keras

    copy.set_weights(original.get_weights())
    for layer in copy._flatten_layers():  # noqa: SLF001
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # which works out what it computes with; its weights alone change nothing


@contextlib.contextmanager
def copying(model: Any) -> Iterator[None]:
    """Lets the layers of a model be made again from their configurations, also those that Keras does not know.

    Raises:
        ModelError: A layer cannot.
    """
    import keras

    try:
        with keras.saving.custom_object_scope(_custom_layers(model)):
            yield
    except EdgeCompressError:
        raise
    except Exception as error:
        raise ModelError(
            f"cannot be copied: {cause_of(error)}", where=model.name,
            fix="give its custom layers a get_config() from which they can be made again",
        ) from error  # fmt: skip


def _custom_layers(model: Any) -> dict[str, Any]:
    layers = model._flatten_layers()  # noqa: SLF001
    return {type(layer).__name__: type(layer) for layer in layers if not type(layer).__module__.startswith("keras.")}


def last_activation(model: Any, output: int) -> str | None:
    """Returns the name of the activation that an output of a Keras model comes from, such as "softmax" or "linear".

    Layers that only move values are looked through.

    Args:
        model: A model of Keras 3 or tf_keras.
        output: Index of the output, in flat order.

    Returns:
        None if the layer has no activation that could be told, or the model is no graph of layers.
    """
    tensors = getattr(model, "outputs", None)
    tensor: Any = tensors[output] if tensors else None
    while (history := getattr(tensor, "_keras_history", None)) is not None:
        layer = history.operation if hasattr(history, "operation") else history.layer
        if getattr(layer, "outputs", None) and hasattr(layer, "layers"):
            tensor = layer.outputs[history.tensor_index]
        elif _only_moves(layer):
            node = layer._inbound_nodes[history.node_index]  # noqa: SLF001
            tensor = (node.input_tensors if hasattr(node, "input_tensors") else node.keras_inputs)[0]
        elif type(layer).__name__ in ("Softmax", "Sigmoid"):
            return type(layer).__name__.lower() if getattr(layer, "axis", -1) in (-1, len(tensor.shape) - 1) else None
        else:
            return getattr(getattr(layer, "activation", None), "__name__", None)
    return None


def _only_moves(layer: Any) -> bool:
    kind = type(layer).__name__
    return kind in _ONLY_MOVE or (kind == "Activation" and layer.activation.__name__ == "linear")


def no_inputs(where: object) -> ModelError:
    return ModelError(
        "the model has no fixed inputs (it is subclassed, or was never built)", where=where,
        fix="wrap it: x = keras.Input(shape); keras.Model(x, model(x)), or export it with model.export(folder)",
    )  # fmt: skip


def cause_of(error: Exception) -> str:
    """Returns the line of an error that says what went wrong; Keras puts it in bold, or behind all configurations."""
    text = str(error).rsplit("Exception encountered:", 1)[-1]
    bold = re.search(r"\x1b\[1m(.+?)\x1b\[0m", text, re.DOTALL)
    if bold:
        return " ".join(bold[1].split())[:300]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
