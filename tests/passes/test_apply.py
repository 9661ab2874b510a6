from __future__ import annotations

import numpy as np
import pytest

from edgecompress.errors import UsageError
from edgecompress.passes import apply_passes, registry
from edgecompress.passes.base import PassContext
from edgecompress.techniques import Cluster, Prune, Qat, Training

PRUNE, CLUSTER = Prune(sparsity=0.6, epochs=2), Cluster(clusters=8, epochs=2)


def context(net, samples=None, **options):
    training = Training(learning_rate=1e-3)
    return PassContext(training=training, data=samples, compile_config=net.get_compile_config(), seed=1, **options)


def weights(model):
    return [np.asarray(weight).tobytes() for weight in model.weights]


def test_clustering_after_pruning_keeps_both(net, samples, accuracy):
    before = weights(net)
    model, (pruned, clustered) = apply_passes(net, [PRUNE, CLUSTER], context(net, samples))
    assert (pruned.kind, clustered.kind) == ("prune", "cluster")
    assert all(proof.sparsity >= 0.59 and proof.distinct <= 8 for proof in clustered.proof)
    assert pruned.notes == clustered.notes == ()
    assert accuracy(model) > accuracy(net) - 0.15
    assert weights(net) == before


def test_pruning_after_clustering_is_noted(net):
    _, (_, pruned) = apply_passes(net, [CLUSTER, PRUNE], context(net))
    assert pruned.notes[-1].startswith("pruned after clustering")
    assert all(proof.sparsity >= 0.59 for proof in pruned.proof)


def test_no_passes_change_nothing(net):
    model, results = apply_passes(net, [], context(net))
    assert model is net
    assert results == ()


def test_each_pass_goes_on_from_checkpoints_of_its_own(net, samples, tmp_path):
    class KilledError(Exception):
        pass

    def kill(step, done, _total):
        if step.startswith("cluster, epoch 2/2") and done > 3:
            raise KilledError

    whole, _ = apply_passes(net, [PRUNE, CLUSTER], context(net, samples))
    with pytest.raises(KilledError):
        apply_passes(net, [PRUNE, CLUSTER], context(net, samples, checkpoints=tmp_path, say=kill))
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["1-prune", "2-cluster"]
    said = []
    again = context(net, samples, checkpoints=tmp_path, resume=True, say=lambda *facts: said.append(facts))
    resumed, results = apply_passes(net, [PRUNE, CLUSTER], again)
    assert results[1].trained.resumed_at == 2
    assert not [step for step, *_ in said if step.startswith("prune")], "that was done"
    assert weights(resumed) == weights(whole)


def test_a_pass_that_ends_in_a_file_is_not_applied_here(net):
    assert sorted(registry()) == ["cluster", "prune"]
    with pytest.raises(UsageError, match="the pass 'qat' does not end in a Keras model; expected cluster, prune"):
        apply_passes(net, [Qat()], context(net))
