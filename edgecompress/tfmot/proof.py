"""Proves that a tf_keras model answers as the Keras 3 model it was made from, or names the first layer that differs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.errors import ConversionError
from edgecompress.functional import cause_of, functional_graph
from edgecompress.states import memory_of
from edgecompress.tfmot.flat_graph import Call, FlatGraph, Ref

TOLERANCE = 1e-5  # of the largest value of a tensor
# A tensor of 16 bits may differ by this many steps of its type: 1.6 % in float16, 12.5 % in bfloat16.
_HALF_STEPS = 16
_HALF_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
_SIZES = (16, 32, 64, 128, 256)  # tried in turn for dimensions of unknown size: a network may need a large image
_BATCH = 2
_BYTES = 256

CallLayer = Callable[[Call, dict[Ref, Any]], list[Any]]


def prove_alike(source: Any, rebuilt: Any, flat: FlatGraph, call_layer: CallLayer) -> None:
    """Runs both models on the same random input and compares what comes out.

    Args:
        source: The Keras 3 model.
        rebuilt: The tf_keras model.
        flat: The graph of `source`.
        call_layer: Calls the tf_keras layer of a call with the tensors given; returns its flat outputs.

    Raises:
        ConversionError: They differ, or the Keras 3 model cannot be run on random input.
    """
    with _fresh(source, rebuilt) as forget:
        inputs, expected = _run_source(source, flat)
        forget()
        received = rebuilt(inputs, training=False)
    received = received if isinstance(received, list) else [received]
    alike = all(_alike(a, b) for a, b in zip(expected, received, strict=True))
    if alike and _is_informative(expected):
        return
    with _fresh(source, rebuilt) as forget:
        _compare_layers(flat, inputs, call_layer, forget)
    if not alike:
        differences = ", ".join(f"{relative_difference(a, b):.1e}" for a, b in zip(expected, received, strict=True))
        raise ConversionError(
            "the tf_keras model differs from the Keras 3 model, though each of its layers does the same",
            where=source.name, expected=f"outputs within {TOLERANCE:g} of their largest value", received=differences,
        )  # fmt: skip


@contextlib.contextmanager
def _fresh(source: Any, rebuilt: Any) -> Iterator[Callable[[], None]]:
    """Lets both models forget what they remember between calls, and gives it back to the Keras 3 model afterwards.

    Random number generators draw the same numbers again, stateful recurrent layers begin with zeros. Yields a function
    that does it once more.
    """
    import keras

    weights = {id(variable) for variable in source.weights}
    seeds = [variable for variable in source.variables if id(variable) not in weights]
    memory = memory_of(source._flatten_layers())  # noqa: SLF001
    before = [(variable, keras.ops.convert_to_numpy(variable)) for variable in (*seeds, *memory)]

    def restore() -> None:
        for variable, value in before:
            variable.assign(value)
        rebuilt.reset_states()

    def forget() -> None:
        restore()
        for variable in memory:
            variable.assign(keras.ops.zeros_like(variable))

    forget()
    try:
        yield forget
    finally:
        restore()


def relative_difference(expected: Any, received: Any) -> float:
    """Returns the largest difference of two tensors, as a share of the largest value of the first.

    Values that are infinite or NaN in both count as equal, in one only as infinitely different.
    """
    a, b = (np.asarray(tensor, np.float64) for tensor in (_plain(expected), _plain(received)))
    if a.shape != b.shape:
        return float("inf")
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return float("inf")
    difference = float(np.max(np.abs(a - b), where=finite, initial=0))
    return difference / max(float(np.max(np.abs(a), where=finite, initial=0)), 1e-30) if difference else 0.0


def _plain(tensor: Any) -> Any:
    import keras

    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float64"))


def _alike(expected: Any, received: Any) -> bool:
    return relative_difference(expected, received) <= _tolerance(expected)


def _tolerance(tensor: Any) -> float:
    import tensorflow as tf

    epsilon = _HALF_EPSILON.get(tf.as_dtype(tensor.dtype).name)
    return TOLERANCE if epsilon is None else _HALF_STEPS * epsilon


def _is_informative(outputs: list[Any]) -> bool:
    """Says whether outputs can show a difference: random weights may have led to NaN, or to zeros everywhere."""
    values = [np.asarray(_plain(output)) for output in outputs]
    return all(np.isfinite(value).all() and np.any(value != 0) for value in values)  # an empty one has no such values


def _compare_layers(flat: FlatGraph, inputs: list[Any], call_layer: CallLayer, forget: Callable[[], None]) -> None:
    """Goes through the graph and gives both versions of each layer the same tensors, those of Keras 3."""
    import keras

    tensors = dict(zip(flat.inputs, inputs, strict=True))
    for call in flat.calls:
        args, kwargs = keras.tree.map_structure(
            lambda leaf: tensors[leaf] if isinstance(leaf, Ref) else leaf, (call.args, call.kwargs)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = keras.tree.flatten(call.operation(*args, **kwargs))
            forget()
            received = call_layer(call, tensors)
            forget()
        for a, b in zip(expected, received, strict=True):
            if not _alike(a, b):
                raise ConversionError(
                    "is the first layer that differs between Keras 3 and tf_keras", where=f"layer {call.name!r}",
                    expected=f"outputs within {_tolerance(a):g} of their largest value",
                    received=f"{relative_difference(a, b):.1e}",
                    fix="a custom layer has to answer the same each time it is given the same; "
                    "if it is a layer of Keras, report it as a fault of EdgeCompress",
                )  # fmt: skip
        tensors.update(zip(call.outputs, expected, strict=True))


def _run_source(source: Any, flat: FlatGraph) -> tuple[list[Any], list[Any]]:
    """Returns random inputs that the Keras 3 model takes, and its outputs."""
    import keras

    graph = functional_graph(source)
    found: tuple[list[Any], list[Any]] | None = None
    failure = Exception("no size was tried")
    sizes = _SIZES if any(None in tensor.shape[1:] for tensor in graph.inputs) else _SIZES[:1]
    for size in sizes:
        inputs = list(random_inputs(graph, flat, size))
        try:
            if len(sizes) > 1:  # TensorFlow convolves an image that is too small for it to garbage; Keras says so here
                graph.compute_output_spec(
                    keras.tree.pack_sequence_as(
                        graph._inputs_struct,  # noqa: SLF001
                        [keras.KerasTensor(x.shape, keras.backend.standardize_dtype(x.dtype)) for x in inputs],
                    )
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Keras warned the user when the model was made
                outputs = source(keras.tree.pack_sequence_as(graph._inputs_struct, inputs), training=False)  # noqa: SLF001
        except Exception as error:  # noqa: BLE001 (whatever a custom layer raises)
            failure = error
            continue
        found = inputs, keras.tree.flatten(outputs)
        if _is_informative(found[1]):
            break
    if found is None:
        raise ConversionError(
            f"cannot be run on random input to compare it with its tf_keras version ({cause_of(failure)})",
            where=source.name,
        ) from failure
    return found


def random_inputs(graph: Any, flat: FlatGraph, size: int) -> Iterator[Any]:
    """Yields random tensors for a graph's inputs: integers where indices are wanted, the end of a sequence masked."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    limits, masked = _index_limits(flat), _mask_value(flat)
    lowest = min(limits.values(), default=2)
    for ref, tensor in zip(flat.inputs, graph.inputs, strict=True):
        shape = [(size if axis else _BATCH) if n is None else n for axis, n in enumerate(tensor.shape)]
        dtype = tf.as_dtype(tensor.dtype)
        values: Array
        if dtype.is_bool:
            values = random.random(shape) < 0.5  # noqa: PLR2004 (even odds)
        elif ref in limits or not dtype.is_floating:
            values = random.integers(0, limits.get(ref, _BYTES if dtype == tf.uint8 else lowest), shape)
        else:
            values = random.normal(size=shape)
        if len(shape) > 1 and not dtype.is_bool and masked is not None:
            values[:1, shape[1] - shape[1] // 3 :] = masked
        yield tf.cast(values, dtype)


def _index_limits(flat: FlatGraph) -> dict[Ref, int]:
    """Returns, for the tensors that end up in an Embedding, how many indices it has."""
    import keras

    limits: dict[Ref, int] = {}
    for call in reversed(flat.calls):
        refs = [leaf for leaf in keras.tree.flatten((call.args, call.kwargs)) if isinstance(leaf, Ref)]
        if isinstance(call.operation, keras.layers.Layer):
            size = getattr(call.operation, "input_dim", None)
        else:  # a cast or a slice, say, of what goes on to an Embedding
            size = min((limits[ref] for ref in call.outputs if ref in limits), default=None)
        if size is not None and len(refs) == 1:
            limits[refs[0]] = min(size, limits.get(refs[0], size))
    return limits


def _mask_value(flat: FlatGraph) -> float | None:
    """Returns a value that is masked, where the graph masks any."""
    for call in flat.calls:
        if getattr(call.operation, "mask_zero", False):
            return 0.0
        if type(call.operation).__name__ == "Masking":
            return float(call.operation.mask_value)
    return None
