"""Makes layers of a student those whose kernels are products of low rank."""

from __future__ import annotations

from typing import Any

from edgecompress.distill.students.sizing import Sizing
from edgecompress.distill.students.widths import scaled

_CONSTRAINTS = ("kernel_constraint", "recurrent_constraint", "bias_constraint")


class Ranks:
    """The ranks that kernels get.

    Attributes:
        used: Whether any layer has become one of low rank.
    """

    def __init__(self, rank: float | None, sizing: Sizing) -> None:
        self.used = False
        self._rank = rank
        self._sizing = sizing

    def low(self, layer: Any, settings: dict[str, Any]) -> Any:
        """Returns a layer of low rank for a Dense, GRU or LSTM; None where that saves no weights.

        Args:
            layer: One of the teacher's.
            settings: What changes in its configuration.
        """
        import keras

        features = self._sizing.features(layer)
        if self._rank is None or features is None:
            return None
        kinds = {keras.layers.Dense: self._dense, keras.layers.GRU: self._recurrent, keras.layers.LSTM: self._recurrent}
        kind = kinds.get(type(layer))
        if kind is None or any(getattr(layer, constraint, None) is not None for constraint in _CONSTRAINTS):
            return None
        made = kind(layer.get_config() | settings, features)
        self.used |= made is not None
        return made

    def _dense(self, config: dict[str, Any], features: int) -> Any:
        from edgecompress.layers import LowRankDense

        rank = self._of(features, config["units"])
        left_out = ("kernel_constraint", "bias_constraint", "lora_rank", "lora_alpha", "quantization_config")
        config = {key: value for key, value in config.items() if key not in left_out}
        return None if rank is None else LowRankDense.from_config({**config, "rank": rank})

    def _recurrent(self, config: dict[str, Any], features: int) -> Any:
        from edgecompress.layers import LowRankGRU, LowRankLSTM

        units = config["units"]
        of_gru = "reset_after" in config
        kernels = {"input_rank": features, "recurrent_rank": units}
        columns = (3 if of_gru else 4) * units
        ranks = {key: self._of(rows, columns) for key, rows in kernels.items()}
        if all(rank is None for rank in ranks.values()):
            return None
        return (LowRankGRU if of_gru else LowRankLSTM).from_config({**config, **ranks})

    def _of(self, rows: int, columns: int) -> int | None:
        """Returns the rank that a kernel gets; None if it has fewer weights as it is."""
        if self._rank is None:
            return None
        rank = scaled(min(rows, columns), self._rank) if self._rank < 1 else int(self._rank)
        return rank if rank * (rows + columns) < rows * columns else None
