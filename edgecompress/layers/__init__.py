"""Keras 3 layers whose kernels are products of smaller ones; importing this package registers them with Keras."""

from edgecompress.layers.dense import LowRankDense
from edgecompress.layers.factorized import FactorizedDense
from edgecompress.layers.gru import LowRankGRU
from edgecompress.layers.lstm import LowRankLSTM

__all__ = ["FactorizedDense", "LowRankDense", "LowRankGRU", "LowRankLSTM"]
