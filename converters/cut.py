"""Cuts the recurrent layers out of a model's graph.

What is left is converted as any other model; the recurrent layers are written by `integer_cells`, and `joining` puts
both together. While the model is traced, its recurrent layers are replaced by stand-ins that keep what they are given
and answer with new inputs of the graph; nothing else has to be known of how the model is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgecompress.artifacts import Artifact
from edgecompress.converters.stand_ins import Handlers, RecurrentCall, refused, replaced
from edgecompress.converters.tflite import FrozenGraph, freeze_call, without_16_bits
from edgecompress.data import InputSpec
from edgecompress.errors import ConversionError
from edgecompress.functional import cause_of
from edgecompress.loaded import LoadedModel
from edgecompress.recurrent.cells import RecurrentLayer
from edgecompress.recurrent.reading import UnsupportedLayerError, is_recurrent, read_recurrent
from edgecompress.recurrent.scales import Range

_CONTROL_FLOW = frozenset({"WHILE", "IF"})
_COMPARISONS = frozenset({"Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual"})


@dataclass(frozen=True)
class Site:
    """A recurrent layer in the network.

    Attributes:
        layer: What it computes.
        inputs: Names of what it takes: the sequence, and the states that it begins with, if it is given any.
        outputs: Names of what it gives: the output, and with return_state its last states.
        steps: Length of the sequence.
        ranges: Of its results, if it was trained with rounding simulated.
        mask: Name of what says which steps count, bool (1, steps), or None.
    """

    layer: RecurrentLayer
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: int
    ranges: Mapping[str, Range] | None = None
    mask: str | None = None


@dataclass(frozen=True)
class Masking:
    """A mask found in numbers: steps of which all features are `value` do not count.

    Attributes:
        value: What features are where there is nothing.
        input: Name of the sequence that it takes, (1, steps, features).
        output: Name of what says which steps count, bool (1, steps).
    """

    value: float
    input: str
    output: str


@dataclass(frozen=True)
class Cut:
    """A network in two parts.

    Attributes:
        inputs: The network's own inputs, as the file will have them.
        outputs: Names of its own outputs.
        sites: Its recurrent layers, each after those that it depends on.
        masks: Its masks of numbers: once rounded, the graph could no longer tell whether two of them are the same.
        outer: The rest as a graph: besides the network's own inputs it takes what sites and masks give, and besides its
            outputs it gives what they take. None if nothing is left.
        links: What needs no operator: the name of an output, or of what a site or mask takes, and what it is the same
            as.
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    sites: tuple[Site, ...]
    masks: tuple[Masking, ...]
    outer: FrozenGraph | None
    links: Mapping[str, str] = field(default_factory=dict)


def has_recurrent_layers(model: LoadedModel) -> bool:
    """Returns whether a model has layers to cut out; nothing is known of the graph of a SavedModel."""
    return model.is_keras and any(is_recurrent(layer) for layer in model.model._flatten_layers())  # noqa: SLF001


def has_loops(artifact: Artifact) -> bool:
    """Returns whether a file has loops or branches, inside of which litert-quantizer leaves activations in float."""
    return any(op.name in _CONTROL_FLOW for op in artifact.ops)


def cut(model: LoadedModel, fixed: Sequence[InputSpec], *, one_step: bool = False) -> Cut:
    """Cuts a Keras model.

    Args:
        model: A Keras 3 or tf_keras model.
        fixed: Its inputs with every dimension known, a batch of 1.
        one_step: Trace a single step of it: sequences are 1 long then.

    Raises:
        ConversionError: Names the recurrent layer that has no integer form, and why.
    """
    model = without_16_bits(model)
    specs = tuple(fixed)
    if one_step:
        found, _ = _probe(model, fixed)
        if not found:
            raise ConversionError("there is no single step of it: no recurrent layer is called", where=model.name)
        specs = one_step_of(specs, found[0].steps)
    probes, masks = _probe(model, specs, whole=not one_step)
    extra = [spec for probe in probes for spec in probe.outputs] + [spec for mask in masks for spec in mask.outputs]
    kept: list[str] = []
    links: dict[str, str] = {}

    def call(*tensors: Any) -> list[Any]:
        names = {id(tensor): spec.name for tensor, spec in zip(tensors, (*specs, *extra), strict=True)}
        given = {spec.name: tensor for tensor, spec in zip(tensors, (*specs, *extra), strict=True)}
        waiting, waiting_masks = iter(probes), iter(masks)
        taken: dict[str, Any] = {}

        def masking(x: Any, _value: float) -> Any:
            mask = next(waiting_masks).layer
            taken[mask.input] = x
            return given[mask.output]

        def stand_in(made: RecurrentCall) -> Sequence[Any]:
            probe = next(waiting)
            taken.update(zip(probe.inputs, (made.x, *made.states), strict=True))
            if probe.mask is not None:
                taken[probe.mask] = made.mask
            return [_rounded(given[spec.name], index, probe.layer) for index, spec in enumerate(probe.outputs)]

        with replaced(model, Handlers(stand_in, masking)):
            results = dict(zip(model.outputs, _run(model, tensors[: len(specs)], whole=not one_step), strict=True))
        kept.clear()
        links.clear()
        for name, tensor in {**taken, **results}.items():
            if id(tensor) in names:
                links[name] = names[id(tensor)]
            else:
                kept.append(name)
        everything = {**taken, **results}
        return [everything[name] for name in kept]

    outer = _freeze(model, call, (*specs, *extra), kept)
    sites = tuple(
        Site(
            _read(probe.layer, in_order=probe.in_order), probe.inputs, tuple(spec.name for spec in probe.outputs),
            probe.steps, getattr(probe.layer, "ranges", None), probe.mask,
        )
        for probe in probes
    )  # fmt: skip
    return Cut(specs, tuple(model.outputs), sites, tuple(mask.layer for mask in masks), outer, links)


def one_step_of(specs: Sequence[InputSpec], steps: int) -> tuple[InputSpec, ...]:
    """Returns the inputs of one step: of those that are sequences of that many steps, a single one."""
    return tuple(
        replace(spec, shape=(spec.shape[0], 1, *spec.shape[2:])) if is_sequence(spec, steps) else spec for spec in specs
    )


def is_sequence(spec: InputSpec, steps: int) -> bool:
    """Returns whether an input is cut into steps: features of that many steps, or as many tokens or flags."""
    tokens = len(spec.shape) == 2 and spec.dtype.startswith(("int", "uint", "bool"))  # noqa: PLR2004 (batch, steps)
    return (len(spec.shape) > 2 or tokens) and spec.shape[1] == steps  # noqa: PLR2004


@dataclass(frozen=True)
class _Probe:
    """What a first look at a call of a recurrent layer shows."""

    layer: Any
    in_order: bool
    inputs: tuple[str, ...]
    outputs: tuple[InputSpec, ...]
    steps: int
    mask: str | None


@dataclass(frozen=True)
class _MaskProbe:
    """Likewise of a Masking layer."""

    layer: Masking
    outputs: tuple[InputSpec, ...]


def _probe(
    model: LoadedModel, specs: Sequence[InputSpec], *, whole: bool = True
) -> tuple[list[_Probe], list[_MaskProbe]]:
    """Traces the model once to see its recurrent layers and masks, in the order in which they are called."""
    import tensorflow as tf

    probes: list[_Probe] = []
    masks: list[_MaskProbe] = []

    def look_at_mask(x: Any, value: float) -> Any:
        if x.shape[0] != 1 or None in x.shape or x.graph is not graph:
            raise ConversionError(
                f"Masking is called on {tuple(x.shape)}, and only (1, steps, features) has an integer form here",
                where=model.name, fix="call it on the sequence itself, outside of TimeDistributed and loops",
            )  # fmt: skip
        own = f"masking_{len(masks)}"
        mask = Masking(value, f"{own}_input", f"{own}_output")
        masks.append(_MaskProbe(mask, (InputSpec(mask.output, tuple(x.shape[:2]), "bool"),)))
        return tf.ones(x.shape[:2], tf.bool)

    def look(made: RecurrentCall) -> Sequence[Any]:
        number, layer, x = len(probes), made.layer, made.x
        known = _read(layer, in_order=made.in_order)
        if x.shape.rank != 3 or x.shape[0] != 1 or x.shape[1] is None or x.graph is not graph:  # noqa: PLR2004
            raise refused(
                layer, f"it is called on {tuple(x.shape)}, and only (1, steps, features) has an integer form here",
                "call it on the sequence itself, outside of TimeDistributed and loops",
            )  # fmt: skip
        if made.mask is not None:
            _refuse_mask(made, known)
        shape = (1, int(x.shape[1]), known.units) if known.return_sequences else (1, known.units)
        shapes = [shape, *([(1, known.units)] * len(known.states) if known.return_state else ())]
        outputs = tuple(
            InputSpec(f"recurrent_{number}_output_{place}", each, "float32") for place, each in enumerate(shapes)
        )
        inputs = tuple(f"recurrent_{number}_input_{place}" for place in range(1 + len(made.states)))
        mask = None if made.mask is None else f"recurrent_{number}_mask"
        probes.append(_Probe(layer, made.in_order, inputs, outputs, int(x.shape[1]), mask))
        return [tf.zeros(spec.shape) for spec in outputs]

    graph = tf.__internal__.FuncGraph("probe")
    with graph.as_default(), replaced(model, Handlers(look, look_at_mask)):
        tensors = [tf.compat.v1.placeholder(spec.dtype, spec.shape) for spec in specs]
        try:
            _run(model, tensors, whole=whole)
        except ConversionError:
            raise
        except Exception as error:
            what = "the model cannot be traced at fixed shapes" if whole else "the model cannot be run step by step"
            fix = None if whole else "use --recurrent loop, which takes the whole sequence"
            raise ConversionError(f"{what}: {cause_of(error)}", where=model.name, fix=fix) from error
    return probes, masks


def _run(model: LoadedModel, tensors: Sequence[Any], *, whole: bool) -> list[Any]:
    if whole:
        return model.call(*tensors)
    return model.call_body(*tensors)


def _freeze(
    model: LoadedModel, call: Callable[..., list[Any]], specs: Sequence[InputSpec], kept: list[str]
) -> FrozenGraph | None:
    """Freezes what is left, without inputs that nothing is left of; the names of its outputs are in `kept` then."""
    import tensorflow as tf

    graph = tf.__internal__.FuncGraph("links")
    with graph.as_default():
        tensors = [tf.compat.v1.placeholder(spec.dtype, spec.shape) for spec in specs]
        needed = _needed_by(call(*tensors))
    if not kept:
        return None
    used = [tensor.op in needed for tensor in tensors]

    def call_used(*given: Any) -> list[Any]:
        waiting = iter(given)
        return call(
            *(
                next(waiting) if need else tf.zeros(spec.shape, spec.dtype)
                for need, spec in zip(used, specs, strict=True)
            )
        )

    return freeze_call(model, call_used, [spec for need, spec in zip(used, specs, strict=True) if need], list(kept))


def _needed_by(tensors: Sequence[Any]) -> set[Any]:
    """Returns the operations of a graph that tensors depend on."""
    found: set[Any] = set()
    waiting = [tensor.op for tensor in tensors]
    while waiting:
        operation = waiting.pop()
        if operation not in found:
            found.add(operation)
            waiting += [each.op for each in operation.inputs] + list(operation.control_inputs)
    return found


def _read(layer: Any, *, in_order: bool) -> RecurrentLayer:
    import tensorflow as tf

    try:
        with tf.init_scope():  # the values of variables cannot be read inside of a graph
            return read_recurrent(layer, in_order=in_order)
    except UnsupportedLayerError as error:
        raise refused(layer, str(error), error.fix) from None


def _refuse_mask(made: RecurrentCall, layer: RecurrentLayer) -> None:
    """Refuses masks that have no place here."""
    fix = "build the model without the mask (mask_zero=False, no Masking), and give it these weights"
    compared = sorted(
        op.name for op in _needed_by([made.mask]) if op.type in _COMPARISONS and op.inputs[0].dtype.is_floating
    )
    if compared:
        raise refused(made.layer, f"its mask compares numbers that will be rounded ({', '.join(compared[:3])})", fix)
    if made.mask.shape != made.x.shape[:2]:
        raise refused(made.layer, f"its mask ({made.mask.name}) has the shape {tuple(made.mask.shape)}", fix)
    if layer.zero_masked and not layer.return_sequences:
        raise refused(
            made.layer, f"a mask ({made.mask.name}) reaches it, and zero_output_for_mask without return_sequences", fix
        )


def _rounded(tensor: Any, index: int, layer: Any) -> Any:
    """Says to the converter what scale a trained layer's output has; the output and the first state are the same."""
    import tensorflow as tf

    ranges = getattr(layer, "ranges", None)
    if ranges is None:
        return tensor
    return tf.quantization.fake_quant_with_min_max_vars(tensor, *ranges[f"state_{max(index - 1, 0)}"])
