"""Low-rank decomposition: kernels become products of smaller ones, Keras 3 model in, Keras 3 model out."""

from edgecompress.passes.low_rank.apply import analyse, apply_low_rank, plan_low_rank

__all__ = ["analyse", "apply_low_rank", "plan_low_rank"]
