from __future__ import annotations

import numpy as np
import pytest

from edgecompress.errors import InternalError
from edgecompress.passes import proof


def test_sparsity_is_the_share_of_zeros():
    assert proof.sparsity_of(np.array([[0, 1.0], [-0.0, 2]])) == 0.5
    assert proof.sparsity_of(np.zeros((2, 3))) == 1.0
    assert proof.sparsity_of(np.zeros((0, 3))) == 0.0


def test_distinct_values():
    weights = np.array([[1.0, 2, 3], [1, 2, 4], [1, 1, 5]])
    assert proof.distinct_of(weights) == 5
    assert proof.distinct_of(weights, -1) == 3
    assert proof.distinct_of(weights, 0) == 3
    assert proof.distinct_of(np.array([0.0, -0.0])) == 1
    assert proof.distinct_of(np.zeros(0)) == 0


def test_what_is_measured_of_a_kernel():
    found = proof.measure("conv", np.array([[0.0, 1, 1], [2, 0, 0]]), "half zeros", -1)
    assert found.model_dump() == {
        "layer": "conv", "weights": 6, "sparsity": 0.5, "distinct": 2, "wanted": "half zeros"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("size", "sparsity", "kept"),
    [
        (10, 0.5, 5),
        (9, 0.5, 5),
        (144, 0.8, 29),
        (3, 0.9, 1),
        (2, 0.99, 1),
        (100, 0.0, 100),
        (10_000_000, 0.5, 5_000_010),
    ],
)
def test_how_many_weights_may_be_left(size, sparsity, kept):
    assert proof.kept_by(size, sparsity) == kept


def test_too_few_zeros_are_our_fault():
    weights = np.arange(10.0)  # nine are not zero
    proof.refuse_dense("conv", weights, 0.1)
    with pytest.raises(InternalError, match=r"conv: .*expected 8 of 10 weights left; received 9") as caught:
        proof.refuse_dense("conv", weights, 0.2)
    assert caught.value.exit_code == 4


def test_too_few_blocks_of_zeros():
    weights = np.ones((5, 4))  # 3 x 2 blocks, the lowest ones half as high
    weights[:2, :2] = weights[4, 2:] = 0
    proof.refuse_dense_blocks("dense", weights, 2 / 6, (2, 2))
    with pytest.raises(InternalError, match="expected 3 of 6 blocks left; received 4"):
        proof.refuse_dense_blocks("dense", weights, 0.5, (2, 2))
    weights[4, 3] = 1
    with pytest.raises(InternalError):
        proof.refuse_dense_blocks("dense", weights, 2 / 6, (2, 2))


def test_groups_with_too_few_zeros():
    weights = np.ones((6, 2))  # two output channels; groups of four inputs, the last of two
    weights[:2] = 0
    proof.refuse_irregular("dense", weights, 2, 4)
    proof.refuse_irregular("conv", weights.reshape(1, 1, 6, 2), 2, 4)
    weights[0, 1] = 1
    with pytest.raises(InternalError, match="expected 2 zeros in each 4 weights; received 1"):
        proof.refuse_irregular("dense", weights, 2, 4)


def test_too_many_distinct_values():
    weights = np.array([[1.0, 2], [1, 3]])
    proof.refuse_too_many_values("conv", weights, 3)
    proof.refuse_too_many_values("conv", weights, 2, -1)
    with pytest.raises(InternalError, match=r"conv: .*expected 2; received 3"):
        proof.refuse_too_many_values("conv", weights, 2)
