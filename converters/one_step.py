"""Whether a network can be run one time step at a time, and what of it is a sequence then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgecompress.converters.cut import Cut, cut, is_sequence
from edgecompress.converters.recording import record
from edgecompress.data import Array, Dataset, InputSpec
from edgecompress.errors import ConversionError
from edgecompress.loaded import LoadedModel
from edgecompress.recurrent.observing import run

_SAMPLES = 4
_PLACES = 8  # steps at which a single step is compared with the whole
_TOLERANCE = 1e-3  # of the largest value
_PLAIN = 2  # dimensions of an output that has no steps: (samples, values)
_FIX = "use --recurrent loop, which takes the whole sequence"


@dataclass(frozen=True)
class OneStep:
    """A network that is run step by step.

    Attributes:
        inputs: Names of the inputs that are cut into steps; others are given whole at each.
        outputs: Names of the outputs that belong to a step; of others, that of the last step counts.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def find_one_step(model: LoadedModel, fixed: Sequence[InputSpec], samples: Dataset) -> OneStep:
    """Compares single steps of a float model with the whole.

    Args:
        model: A Keras model with recurrent layers.
        fixed: Its inputs with every dimension known, a batch of 1.
        samples: Real samples; a few of them are looked at.

    Raises:
        ConversionError: It cannot be run step by step; says why.
    """
    whole = cut(model, fixed)
    refuse_step(whole)
    few = Dataset({name: array[:_SAMPLES] for name, array in samples.inputs.items()})
    seen = record(model, fixed, few, whole)
    parts, steps = cut(model, fixed, one_step=True), whole.sites[0].steps
    other = next((site.layer.name for site in parts.sites if site.steps != 1), None)
    if other is not None:
        raise ConversionError(
            f"the steps of the recurrent layer {other!r} are not those of an input: a layer before it shortens, joins "
            "or repeats them",
            where=model.name, fix=_FIX,
        )  # fmt: skip
    taken = {name: seen[name] for name in _sinks(whole)}
    answers = model.predict(few.inputs, fixed=fixed)
    wanted = {**taken, **{name: answers[name] for name in model.outputs}}
    return _compare(model, whole, parts, {**few.inputs, **_step_outputs(whole, seen)}, wanted, steps)


def refuse_step(whole: Cut) -> None:
    """Refuses what a look at a network's recurrent layers shows to have no single step."""
    backwards = [site.layer.name for site in whole.sites if site.layer.go_backwards]
    if backwards:
        raise ConversionError(
            f"there is no single step of a layer that reads backwards ({', '.join(backwards)})", fix=_FIX
        )
    lengths = {site.steps for site in whole.sites}
    if len(lengths) > 1:
        received = ", ".join(str(length) for length in sorted(lengths))
        raise ConversionError(f"its recurrent layers run over sequences of different lengths ({received})", fix=_FIX)
    begun = [site.layer.name for site in whole.sites if len(site.inputs) > 1]
    if begun:
        raise ConversionError(
            f"a layer is given the state that it begins with ({', '.join(begun)}): a step cannot tell when it begins",
            fix=_FIX,
        )


def _sinks(whole: Cut) -> set[str]:
    """Returns the names of the sequences and masks that layers take."""
    masks = {site.mask for site in whole.sites if site.mask is not None}
    return {site.inputs[0] for site in whole.sites} | masks | {mask.input for mask in whole.masks}


def _step_outputs(whole: Cut, seen: Mapping[str, Array]) -> dict[str, Array]:
    """Returns what each layer has given after each step: (samples, steps, units), and masks (samples, steps)."""
    found = {mask.output: seen[mask.output] for mask in whole.masks}
    for site in whole.sites:
        layer = replace(site.layer, return_sequences=True, return_state=False)
        (sequence,) = run(layer, seen[site.inputs[0]], mask=None if site.mask is None else seen[site.mask])
        for name in site.outputs[:2]:  # the output, and the state that is the same
            found[name] = sequence
        for name in site.outputs[2:]:  # the carry of an LSTM: known at the end only
            found[name] = np.repeat(seen[name][:, None], site.steps, axis=1)
    return found


def _compare(
    model: LoadedModel, whole: Cut, parts: Cut, given: Mapping[str, Array], wanted: Mapping[str, Array], steps: int
) -> OneStep:  # fmt: skip
    """Runs single steps at several places of each sample.

    Args:
        model: The float model.
        whole: It, cut.
        parts: A single step of it, cut.
        given: What the network takes, and what its recurrent layers give after each step.
        wanted: What recurrent layers take and the network gives, for whole sequences.
        steps: Their length.
    """
    inputs = tuple(spec.name for spec in whole.inputs if is_sequence(spec, steps))
    sources = {name for site in whole.sites for name in site.outputs} | {mask.output for mask in whole.masks}
    sinks = _sinks(whole)
    per_step = {
        name for name, array in wanted.items() if name in sinks or (array.ndim > _PLAIN and array.shape[1] == steps)
    }
    # The carry of an LSTM that is given out is known at the end only; so is what it is made into.
    carries = any(site.outputs[2:] for site in whole.sites)
    run_step = _Runner(parts)
    places = {*np.linspace(0, steps - 1, _PLACES).astype(int).tolist(), steps - 1}
    for place in sorted({steps - 1} if carries else places):
        now = {
            name: array[:, place : place + 1] if name in inputs else array[:, place] if name in sources else array
            for name, array in given.items()
        }
        for sample in range(len(next(iter(now.values())))):
            results = run_step({name: array[sample : sample + 1] for name, array in now.items()})
            for name in wanted if place == steps - 1 else per_step:
                aim = wanted[name][sample, place] if name in per_step else wanted[name][sample]
                _require_alike(model, name, results[name].reshape(aim.shape), aim, wanted[name])
    return OneStep(inputs, tuple(name for name in model.outputs if name in per_step))


def _require_alike(model: LoadedModel, name: str, found: Array, aim: Array, scale: Array) -> None:
    size = max(float(np.abs(scale).max()), 1e-6)
    if not float(np.abs(np.subtract(found, aim, dtype=np.float32)).max()) <= _TOLERANCE * size:
        raise ConversionError(
            "a layer before or after the recurrent ones looks at several steps at once, such as a convolution or a "
            f"pooling over time (found at {name!r})",
            where=model.name, fix=_FIX,
        )  # fmt: skip


class _Runner:
    """Runs the float graph of a network without its recurrent layers."""

    def __init__(self, parts: Cut) -> None:
        self._links = parts.links
        self._names: list[str] = []
        if parts.outer is None:
            return
        import tensorflow as tf

        outer, definition = parts.outer, tf.compat.v1.GraphDef.FromString(parts.outer.graph_def)
        wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(definition, name=""), [])
        self._names = list(outer.inputs)
        self._taken = [wrapped.graph.as_graph_element(name) for name in outer.inputs.values()]
        self._function = wrapped.prune(
            self._taken, {name: wrapped.graph.as_graph_element(tensor) for name, tensor in outer.outputs.items()}
        )

    def __call__(self, values: Mapping[str, Array]) -> dict[str, Array]:
        results = {sink: values[source] for sink, source in self._links.items()}
        if self._names:
            import tensorflow as tf

            tensors = [
                tf.reshape(tf.constant(values[name], like.dtype), like.shape)
                for name, like in zip(self._names, self._taken, strict=True)
            ]
            results |= {name: np.asarray(tensor) for name, tensor in self._function(*tensors).items()}
        return results
