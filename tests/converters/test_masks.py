"""Which steps count, found by the operators of a file, and what happens to those that do not."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.converters.masks import as_flags, choose, find_mask, is_set
from edgecompress.recurrent.scales import Scale, scale_of
from tests.integer_files import Runner, finish, integers, new_graph

STEPS, FEATURES = 6, 3
SCALES = {"float32": None, "int8": scale_of(-2, 6, 8), "int16": Scale(2.0**-10, 0, 16)}
both_kernels = pytest.mark.parametrize("reference", [True, False], ids=["reference", "xnnpack"])


@both_kernels
@pytest.mark.parametrize("value", [0.0, -1.0, 5.0])
@pytest.mark.parametrize("dtype", SCALES)
def test_steps_of_which_all_features_are_the_value_do_not_count(dtype, value, reference) -> None:
    graph = new_graph()
    x = graph.tensor("x", (1, STEPS, FEATURES), dtype, SCALES[dtype])
    counts = find_mask(graph, "masking", x, value)
    assert (counts.shape, counts.dtype) == ((1, STEPS), "bool")
    given = np.random.default_rng(0).uniform(1, 2, (1, STEPS, FEATURES)).astype(np.float32)
    given[0, [1, 4]] = value
    given[0, 2, 1] = value  # one of its features
    if x.scale is not None:
        given = integers(given, x.scale)
    (found,) = Runner(finish(graph, [x], [counts]), reference=reference)(given)
    assert found.tolist() == [[True, False, True, True, False, True]]


@pytest.mark.parametrize("dtype", SCALES)
def test_tflite_micro_finds_the_same(dtype) -> None:
    runtime = pytest.importorskip("tflite_micro.python.tflite_micro.runtime")
    graph = new_graph()
    x = graph.tensor("x", (1, STEPS, FEATURES), dtype, SCALES[dtype])
    content = finish(graph, [x], [find_mask(graph, "masking", x, 0.0)])
    given = np.random.default_rng(0).uniform(1, 2, (1, STEPS, FEATURES)).astype(np.float32)
    given[0, 3] = 0
    micro = runtime.Interpreter.from_bytes(content, arena_size=20_000)
    micro.set_input(given if x.scale is None else integers(given, x.scale), 0)
    micro.invoke()
    assert micro.get_output(0).tolist() == [[True, True, True, False, True, True]]


@pytest.mark.parametrize("number", [0.001, np.nan])
def test_what_is_given_in_float_is_told_from_numbers_near_by(number) -> None:
    graph = new_graph()
    x = graph.tensor("x", (1, STEPS, FEATURES), "float32")
    counts = find_mask(graph, "masking", x, 0.0)
    given = np.zeros((1, STEPS, FEATURES), np.float32)
    given[0, 3, 0] = number
    (found,) = Runner(finish(graph, [x], [counts]))(given)
    assert found.tolist() == [[False, False, False, True, False, False]]


@both_kernels
def test_flags_are_0_or_1_in_another_shape(reference) -> None:
    graph = new_graph()
    mask = graph.tensor("mask", (1, STEPS), "bool")
    flags = as_flags(graph, "layer", mask, (STEPS, 1, 1, 1))
    given = np.array([[True, False, False, True, True, False]])
    (found,) = Runner(finish(graph, [mask], [flags]), reference=reference)(given)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, given.reshape(STEPS, 1, 1, 1))


@both_kernels
@pytest.mark.parametrize("counted", [False, True])
def test_a_step_that_does_not_count_leaves_what_was(counted, reference) -> None:
    graph = new_graph()
    mask = graph.tensor("mask", (1, 1), "bool")
    new, old = (graph.tensor(name, (1, 1, 1, FEATURES), "int8", SCALES["int8"]) for name in ("new", "old"))
    counts = is_set(graph, "layer", as_flags(graph, "layer", mask, (1, 1, 1, 1)))
    content = finish(graph, [mask, new, old], [choose(graph, "state", counts, new, old)])
    values = [np.full((1, 1, 1, FEATURES), each, np.int8) for each in (7, -9)]
    (found,) = Runner(content, reference=reference)(np.array([[counted]]), *values)
    np.testing.assert_array_equal(found, values[0] if counted else values[1])
