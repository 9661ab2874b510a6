"""Pruning by TFMOT's `prune_low_magnitude`, of Keras 3 models taken over to tf_keras (Zhu & Gupta 2017)."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.data import Array
from edgecompress.epochs import split_training, steps_per_epoch
from edgecompress.passes.base import PassContext, Trained
from edgecompress.passes.proof import kept_by
from edgecompress.techniques import Prune
from edgecompress.tfmot.adapter import is_whole
from edgecompress.tfmot.bridge import Bridged, Crossed, cross
from edgecompress.tfmot.compiling import choose_objective
from edgecompress.tfmot.library import import_tfmot
from edgecompress.tfmot.training import batches, fine_tune, quiet, seed_draws
from edgecompress.tfmot.translate import pair_weights
from edgecompress.tfmot.wrapping import call_inside

_SENSITIVITY_BATCHES = 32
_UPDATES = 20  # times that a growing sparsity grows, or more
_MOST_STEPS_BETWEEN = 100  # TFMOT's own default
_TIE = 1e-6  # weight of the magnitudes where sensitivities are alike: those of dead inputs are all zero


@dataclass(frozen=True)
class PruneTarget:
    """A kernel to prune.

    Attributes:
        variable: The Keras 3 variable.
        sparsity: Share of zeros to reach; 0 for a kernel that only gets the L1 penalty.
    """

    variable: Any
    sparsity: float


def prune(
    model: Any, spec: Prune, targets: Sequence[PruneTarget], context: PassContext
) -> tuple[Trained | None, tuple[str, ...]]:
    """Prunes kernels of a Keras 3 model in place, and trains it again if there are samples.

    Args:
        model: A Keras 3 model.
        spec: The pass.
        targets: Kernels whose shapes its structure (N:M, blocks) can be made in.
        context: With or without training samples; sensitivities and L1 need them.

    Returns:
        How the training went, or None, and notes.
    """
    total = 1 if context.data is None else (spec.epochs or context.training.epochs) * steps_per_epoch(context)
    wanted = {id(target.variable): target.sparsity for target in targets}
    wrappers: list[Any] = []

    def wrap(crossed: Crossed) -> Any:
        pruned = {key: variable for key, variable in _own(crossed, wanted).items() if wanted[key]}
        if not pruned:
            return crossed.tf_layer
        # Where a nested model is one layer, its kernels may differ in sparsity: `_finish` does the rest of it.
        schedule, _ = _schedule(spec, min(wanted[key] for key in pruned), total)
        variables = list(pruned.values())
        crossed.tf_layer.get_prunable_weights = lambda: variables  # TFMOT's way in for classes that it does not know
        wrapper = _wrapper_class()(
            crossed.tf_layer,
            pruning_schedule=schedule,
            block_size=spec.block,
            block_pooling_type=spec.block_pooling,
            sparsity_m_by_n=None if spec.pattern is None else tuple(map(int, spec.pattern.split(":"))),
            autocast=False,
        )
        wrapper.goals = [wanted[key] for key in pruned]
        wrappers.append(wrapper)
        return wrapper

    seed_draws(model, context.seed)
    bridged = cross(model, wrap=wrap)
    trained: Trained | None = None
    notes: tuple[str, ...] = ()
    if context.data is not None:
        trained, notes = _train(bridged, wrappers, spec, targets, context, total)
    for wrapper in wrappers:
        wrapper.pruning_step.assign(total)
        _finish(wrapper, spec)
    # TFMOT's strip_pruning takes the wrappers off a copy of the graph and leaves the wrapped layers themselves, which
    # are those that are written back: there is nothing for it to do.
    bridged.write_back()
    return trained, notes


def _own(crossed: Crossed, wanted: Mapping[int, Any]) -> dict[int, Any]:
    """Returns the tf_keras variables of a layer's wanted kernels, by the identity of the Keras 3 ones."""
    variables = getattr(crossed.keras_layer, "weights", ())
    if not any(id(variable) in wanted for variable in variables):
        return {}
    if is_whole(crossed.tf_layer):
        return {id(variable): variable.value for variable in variables if id(variable) in wanted}
    pairs = pair_weights(crossed.keras_layer, crossed.tf_layer, crossed.name)
    return {id(ours): theirs for ours, theirs in pairs if id(ours) in wanted}


def _schedule(spec: Prune, sparsity: float, total: int) -> tuple[Any, int]:
    """Returns TFMOT's schedule over `total` steps, and the step at which the sparsity is reached."""
    import_tfmot()
    from tensorflow_model_optimization.sparsity import keras as sparsity_keras

    if spec.pattern is not None:
        return sparsity_keras.ConstantSparsity(sparsity, 1), 1  # TFMOT sets the pattern at the first step
    begin, end = (min(total, max(1, round(share * total))) for share in (spec.begin, spec.end))
    if spec.schedule == "constant" or end <= begin:
        return sparsity_keras.ConstantSparsity(sparsity, begin, frequency=_MOST_STEPS_BETWEEN), begin
    # TFMOT prunes only at every `frequency`th step: it must not jump over the last one.
    frequency = max(1, min(_MOST_STEPS_BETWEEN, (end - begin) // _UPDATES))
    end = begin + (end - begin) // frequency * frequency
    initial = min(spec.initial_sparsity, sparsity)
    return sparsity_keras.PolynomialDecay(initial, sparsity, begin, end, frequency=frequency), end


def _train(
    bridged: Bridged,
    wrappers: Sequence[Any],
    spec: Prune,
    targets: Sequence[PruneTarget],
    context: PassContext,
    total: int,
) -> tuple[Trained, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    reached = 1
    if spec.criterion == "sensitivity":
        notes = (_mask_insensitive(bridged, wrappers, context),)
    else:
        reached = max((_schedule(spec, target.sparsity, total)[1] for target in targets), default=1)
    if spec.l1 is not None:
        _penalize(bridged, targets, spec.l1)
    trained = fine_tune(
        bridged.model,
        context,
        spec,
        callbacks=[_callback_class()(fixed=spec.criterion == "sensitivity")] if wrappers else [],
        source=bridged.source,
        judge_from=math.ceil(reached / steps_per_epoch(context)),
    )
    return trained, notes


def _penalize(bridged: Bridged, targets: Sequence[PruneTarget], weight: float) -> None:
    import tensorflow as tf

    wanted = {id(target.variable): target for target in targets}
    kernels = [variable for crossed in bridged.layers for variable in _own(crossed, wanted).values()]
    # A loss of a layer is one of every model that the layer is in, and distillation trains another one.
    first = bridged.model.layers[0]
    first.add_loss(lambda: weight * tf.add_n([tf.reduce_sum(tf.abs(kernel)) for kernel in kernels]))


@functools.cache
def _wrapper_class() -> type[Any]:
    import_tfmot()
    from tensorflow_model_optimization.python.core.sparsity.keras.pruning_wrapper import PruneLowMagnitude

    class Pruned(PruneLowMagnitude):  # type: ignore[misc]
        """TFMOT's wrapper, with the layer called as Keras calls layers.

        TFMOT calls `layer.call`, which loses masks, activity regularizers and mixed precision, and counts a step each
        time that a shared layer is called; here `_callback_class` counts the steps.
        """

        def __init__(self, layer: Any, **options: Any) -> None:
            super().__init__(layer, **options)
            self.supports_masking = True
            self._compute_output_and_mask_jointly = True  # the wrapped layer has marked its outputs

        def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
            return call_inside(self.layer, inputs, training, kwargs)

    return Pruned


@functools.cache
def _callback_class() -> type[Any]:
    import tensorflow as tf

    import_tfmot()
    from tensorflow_model_optimization.sparsity import keras as sparsity_keras

    class Step(sparsity_keras.UpdatePruningStep):  # type: ignore[misc]
        """TFMOT's callback, which also does before each step what TFMOT's wrapper does in each call of its layer."""

        def __init__(self, *, fixed: bool) -> None:
            super().__init__()
            self._fixed = fixed
            self._advance: Any = None

        def on_train_begin(self, logs: Any = None) -> None:
            super().on_train_begin(logs)
            if self._advance is None:
                self._advance = tf.function(self._update)

        def _update(self) -> None:
            for wrapper in self.prunable_layers:
                wrapper.pruning_step.assign_add(1)
                if not self._fixed:
                    wrapper.pruning_obj.conditional_mask_update()
                wrapper.pruning_obj.weight_mask_op()

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            del batch, logs
            self._advance()

        def on_test_begin(self, logs: Any = None) -> None:
            """Judges the epoch by the weights that would be kept."""
            self.on_epoch_end(0, logs)

    return Step


def _finish(wrapper: Any, spec: Prune) -> None:
    """Masks the weights at the whole sparsity: with no training, or one that ended early, the schedule was not done."""
    if spec.criterion == "magnitude":
        for weight, mask, _ in wrapper.pruning_vars:
            mask.assign(_best_mask(wrapper, weight))
    wrapper.pruning_obj.weight_mask_op()
    if spec.pattern is not None or spec.block != (1, 1):
        return
    for (weight, _, _), goal in zip(wrapper.pruning_vars, wrapper.goals, strict=True):
        values = weight.numpy()
        keep = kept_by(values.size, goal)
        if np.count_nonzero(values) > keep:  # TFMOT keeps all weights that are as large as the last it keeps
            weight.assign(_without_smallest(values, keep))


def _best_mask(wrapper: Any, scores: Any) -> Any:
    """Returns TFMOT's mask at the wrapper's step, in its structure, for scores in the place of weights."""
    return wrapper.pruning_obj._maybe_update_block_mask(scores)[1]  # noqa: SLF001 (TFMOT masks by weights only)


def _without_smallest(values: Array, keep: int) -> Array:
    order = np.argsort(-np.abs(values), axis=None, kind="stable")
    result = values.reshape(-1).copy()
    result[order[keep:]] = 0
    return result.reshape(values.shape)


def _mask_insensitive(bridged: Bridged, wrappers: Sequence[Any], context: PassContext) -> str:
    """Sets the masks by |weight x gradient|, averaged over batches of training samples; returns a note."""
    import tensorflow as tf

    weights = [weight for wrapper in wrappers for weight, _, _ in wrapper.pruning_vars]
    objective = choose_objective(bridged.model, context, bridged.source)
    order = np.random.default_rng([context.seed, 0]).permutation(split_training(context)[0])
    samples = batches(bridged.model, objective, context, order)
    used = min(len(samples), _SENSITIVITY_BATCHES)

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def rate(inputs: Any, labels: Any) -> list[Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            answers = tf.nest.flatten(bridged.model(inputs, training=False))
            loss = objective.loss(tf.nest.flatten(labels)[0], answers[objective.output])
        gradients = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.abs(w * tf.convert_to_tensor(g)) for w, g in zip(weights, gradients, strict=True)]

    sums = [np.zeros(weight.shape, np.float64) for weight in weights]
    for number in range(used):
        context.say("rate weights", number, used)
        with quiet():  # a new function for each model is meant
            for index, scores in enumerate(rate(*samples[number])):
                sums[index] += scores.numpy()
    remaining = iter(sums)
    for wrapper in wrappers:
        wrapper.pruning_step.assign(np.iinfo(np.int32).max)  # at the schedule's end
        ranked = [next(remaining) for _ in wrapper.pruning_vars]
        for (weight, mask, _), scores in zip(wrapper.pruning_vars, ranked, strict=True):
            mask.assign(_best_mask(wrapper, tf.constant(_break_ties(scores, weight.numpy()), weight.dtype)))
        wrapper.pruning_obj.weight_mask_op()
        wrapper.pruning_step.assign(-1)
    return f"what matters least was found on {used} batches of training samples, and stays pruned from the start"


def _break_ties(scores: Array, values: Array) -> Array:
    """Returns scores from 0 to 1 in which, of two that are alike, the one of the larger weight is larger."""
    sizes = np.abs(values)
    return scores / (scores.max() or 1) + _TIE * sizes / (sizes.max() or 1)
