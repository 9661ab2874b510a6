import importlib
import json
from pathlib import Path

import pytest

from edgecompress.passes.kernel_costs import Operator, saves_time
from edgecompress.passes.low_rank.sites import find_sites

# Of the pairs that take at most 0.9 of the time, the share that has to be let pass, in files of each scheme.
LEAST_KEPT = {"float32": 0.9, "dynamic": 0.8, "int8": 0.5}
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def dense(inputs, outputs, places=1):
    return Operator("dense", places, inputs, outputs)


def test_macs_are_those_of_all_calls():
    assert Operator("dense", 3, 4, 5).macs == 60
    assert Operator("dense", 1, 4, 5, calls=7).macs == 140
    assert Operator("step", calls=7).macs == 0


@pytest.mark.parametrize(
    ("before", "after", "is_quicker"),
    [
        # Measured: 44.1 us to 9.1; 0.6 to 0.6; 3.5 to 4.5; 25.2 to 5.0.
        ([dense(1024, 1024)], [dense(1024, 128), dense(128, 1024)], True),
        ([dense(64, 64)], [dense(64, 16), dense(16, 64)], False),
        ([dense(784, 128)], [dense(784, 80), dense(80, 128)], False),
        ([dense(256, 256, 49)], [dense(256, 16, 49), dense(16, 256, 49)], True),
        # A 3 x 3 convolution 32 -> 32 of 16 x 16 pixels: 24 outputs take longer than 32 do, 16 are half.
        ([Operator("conv", 256, 288, 32)], [Operator("conv", 256, 288, 24), Operator("conv", 256, 24, 32)], False),
        ([Operator("conv", 256, 288, 32)], [Operator("conv", 256, 288, 16), Operator("conv", 256, 16, 32)], True),
    ],
)
def test_what_was_measured(before, after, is_quicker):
    assert saves_time(before, after) == is_quicker


def chain(places, first, rank, last, *, kinds=("conv", "pointwise")):
    """A convolution that sums over `first` values, and a 1 x 1 convolution after it."""
    return [Operator(kinds[0], places, first, rank), Operator(kinds[1], places, rank, last)]


@pytest.mark.parametrize(
    ("before", "after", "is_quicker"),
    [
        # Measured in dynamic range: 9.4 us to 2.2; 2.4 to 2.6; 8.7 to 6.3.
        ([dense(1024, 1024)], [dense(1024, 128), dense(128, 1024)], True),
        ([dense(64, 256, 32)], [dense(64, 8, 32), dense(8, 256, 32)], False),
        ([dense(256, 256, 49)], [dense(256, 32, 49), dense(32, 256, 49)], True),
        # 3 x 3 convolutions: 32 x 32 pixels, 16 -> 32, from 12.5 to 23.7; 14 x 14, 128 -> 128, from 58.8 to 21.3.
        ([Operator("conv", 1024, 144, 32)], chain(1024, 144, 16, 32), False),
        ([Operator("conv", 196, 1152, 128)], chain(196, 1152, 32, 128), True),
        # The same in parts of 3 x 1 and 1 x 3: 13.0 to 8.4.
        ([Operator("conv", 1024, 144, 32)], chain(1024, 48, 8, 32, kinds=("conv", "conv")), True),
    ],
)
def test_what_was_measured_in_dynamic_range(before, after, is_quicker):
    assert saves_time(before, after)
    assert saves_time(before, after, dynamic=True) == is_quicker


def test_depthwise_parts_pay_in_float_only():
    # CP of rank 48, 3 x 3, 64 -> 64, 28 x 28 pixels: 226 us to 50 in float, 60 to 273 in dynamic range.
    before = [Operator("conv", 784, 576, 64)]
    after = [
        Operator("pointwise", 784, 64, 48), Operator("depthwise", 784, 3, 48), Operator("depthwise", 784, 3, 48),
        Operator("pointwise", 784, 48, 64),
    ]  # fmt: skip
    assert saves_time(before, after)
    assert not saves_time(before, after, dynamic=True)


def test_nothing_is_quicker_than_itself():
    layer = [dense(512, 512)]
    assert not saves_time(layer, layer)
    assert saves_time(layer, layer, margin=0)


def test_nothing_that_was_measured_as_slower_is_let_pass(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    layers = {layer.title: layer for layer in importlib.import_module("low_rank_latency").layers()}
    rows = json.loads((BENCHMARKS / "results" / "low_rank_latency.json").read_text("utf-8"))["rows"]["pairs"]
    kinds = {title: kind_of(layers[title]) for title in {row["layer"] for row in rows}}
    assert {row["scheme"] for row in rows} == set(LEAST_KEPT)
    for scheme, least in LEAST_KEPT.items():
        measured = [row for row in rows if row["scheme"] == scheme]
        accepted = [row for row in measured if is_accepted(row, kinds[row["layer"]])]
        clearly = [row for row in measured if row["ratio"] <= 0.9]
        assert [row for row in accepted if row["ratio"] > 1.02] == []
        assert sum(row in accepted for row in clearly) > least * len(clearly)


def is_accepted(row, kind):
    call = kind.calls[0]
    before, after = kind.operators(call), kind.operators(call, row["method"], tuple(row["ranks"]))
    return saves_time(before, after, dynamic=row["scheme"] != "float32")


def kind_of(layer):
    """How the pass `low_rank` sees the only layer of a model."""
    import keras

    inputs = keras.Input(layer.shape, 1, dtype="int32" if layer.title.startswith("Embedding") else "float32")
    (site,) = find_sites(keras.Model(inputs, layer.make()(inputs)))
    return site.kind
