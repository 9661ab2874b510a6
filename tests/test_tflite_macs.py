from __future__ import annotations

from typing import Any

import pytest

from edgecompress.errors import ModelError
from edgecompress.flatbuffer import read_model
from edgecompress.graphs import Graph, Operator, Tensor, decode_graphs
from edgecompress.tflite_macs import count_macs
from tests.handmade import Model, loop_model


def shaped(*shape: int) -> Tensor:
    return Tensor("t", shape, "float32", 0, None)


def single(name: str, inputs: list[Tensor], output: Tensor, **options: int) -> Graph:
    """A graph of one operator."""
    places = tuple(range(len(inputs)))
    operator = Operator(name, 1, custom=False, inputs=places, outputs=(len(inputs),), options=options)
    return Graph("main", places[:1], (len(inputs),), (*inputs, output), (operator,))


@pytest.mark.parametrize(
    ("name", "inputs", "output", "macs"),
    [
        ("CONV_2D", [(1, 8, 8, 3), (4, 3, 3, 3)], (1, 4, 4, 4), 4 * 4 * 4 * 27),
        ("CONV_2D", [(1, 8, 8, 6), (4, 3, 3, 3)], (1, 8, 8, 4), 8 * 8 * 4 * 27),  # two groups
        ("DEPTHWISE_CONV_2D", [(1, 8, 8, 3), (1, 5, 3, 6)], (1, 4, 4, 6), 4 * 4 * 6 * 15),
        ("CONV_3D", [(1, 6, 6, 6, 2), (3, 3, 3, 2, 5)], (1, 4, 4, 4, 5), 64 * 5 * 54),
        ("TRANSPOSE_CONV", [(4,), (5, 3, 3, 2), (1, 4, 4, 2)], (1, 8, 8, 5), 4 * 4 * 2 * 45),
        ("FULLY_CONNECTED", [(2, 7, 4), (3, 4)], (2, 7, 3), 14 * 12),
        ("UNIDIRECTIONAL_SEQUENCE_RNN", [(1, 9, 4), (5, 4), (5, 5), (5,), (1, 5)], (1, 9, 5), 9 * 5 * (4 + 5)),
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", [(1, 9, 4), *[(5, 4)] * 4, *[(5, 5)] * 4], (1, 9, 5), 9 * 4 * 5 * (4 + 5)),
        ("MUL", [(1, 8), (1, 8)], (1, 8), 0),
    ],
)
def test_one_operator(name: str, inputs: list[Any], output: Any, macs: int) -> None:
    graph = single(name, [shaped(*shape) for shape in inputs], shaped(*output))
    assert count_macs([graph], 0).macs == ((macs,),)


@pytest.mark.parametrize(("transposed", "left"), [(0, (2, 5, 7)), (1, (2, 7, 5))])
def test_batch_matmul(transposed: int, left: tuple[int, ...]) -> None:
    graph = single("BATCH_MATMUL", [shaped(*left), shaped(7, 3)], shaped(2, 5, 3), AdjX=transposed)
    assert count_macs([graph], 0).macs == ((2 * 5 * 3 * 7,),)


def test_lstm_without_input_gate_has_three_quarters_of_the_matrices() -> None:
    tensors = (shaped(1, 9, 4), shaped(5, 4), shaped(5, 5), shaped(1, 9, 5))
    inputs = (0, -1, 1, 1, 1, -1, 2, 2, 2, *[-1] * 15)
    lstm = Operator("UNIDIRECTIONAL_SEQUENCE_LSTM", 1, custom=False, inputs=inputs, outputs=(3,))
    assert count_macs([Graph("main", (0,), (3,), tensors, (lstm,))], 0).macs == ((9 * 3 * 5 * (4 + 5),),)


@pytest.mark.parametrize("name", ["SVDF", "BIDIRECTIONAL_SEQUENCE_LSTM", "STABLEHLO_DOT_GENERAL"])
def test_what_cannot_be_counted_is_not_zero(name: str) -> None:
    counted = count_macs([single(name, [shaped(1, 4)], shaped(1, 4))], 0)
    assert counted.macs == ((None,),)
    assert counted.notes == (f"the MACs of {name} cannot be counted",)


def test_an_unknown_batch_counts_as_one() -> None:
    graph = single("FULLY_CONNECTED", [shaped(-1, 4), shaped(3, 4)], shaped(-1, 3))
    assert count_macs([graph], 0).macs == ((12,),)


def test_an_unknown_number_of_steps_is_not_guessed() -> None:
    graph = single("FULLY_CONNECTED", [shaped(1, -1, 4), shaped(3, 4)], shaped(1, -1, 3))
    assert count_macs([graph], 0).macs == ((None,),)


def test_steps_merged_with_an_unknown_batch_count() -> None:
    """A converted Dense over (batch, 12, 6): RESHAPE to (-1, 6), product, activation, product, RESHAPE back."""
    tensors = (
        shaped(-1, 12, 6), shaped(-1, -1), shaped(8, 6), shaped(-1, 8), shaped(-1, 8), shaped(5, 8), shaped(-1, 5),
        shaped(-1, 12, 5), shaped(3, 5), shaped(-1, 12, 3),
    )  # fmt: skip
    steps = [
        ("RESHAPE", (0,), 1), ("FULLY_CONNECTED", (1, 2), 3), ("TANH", (3,), 4), ("FULLY_CONNECTED", (4, 5), 6),
        ("RESHAPE", (6,), 7), ("FULLY_CONNECTED", (7, 8), 9),
    ]  # fmt: skip
    operators = tuple(Operator(name, 1, custom=False, inputs=inputs, outputs=(out,)) for name, inputs, out in steps)
    counted = count_macs([Graph("main", (0,), (9,), tensors, operators)], 0)
    assert counted.macs == ((0, 12 * 48, 0, 12 * 40, 0, 12 * 15),)


def test_unknown_sizes_of_different_meaning_are_not_mixed() -> None:
    tensors = (shaped(-1, 12, 6), shaped(-1, 6), shaped(-1, 6), shaped(-1, 6), shaped(3, 6), shaped(-1, 3))
    operators = (
        Operator("RESHAPE", 1, custom=False, inputs=(0,), outputs=(2,)),  # twelve rows for each sample
        Operator("CONCATENATION", 1, custom=False, inputs=(1, 2), outputs=(3,)),
        Operator("FULLY_CONNECTED", 1, custom=False, inputs=(3, 4), outputs=(5,)),
    )
    assert count_macs([Graph("main", (0, 1), (5,), tensors, operators)], 0).macs == ((0, 0, None),)


def looped(**loop: Any) -> tuple[int | None, tuple[str, ...]]:
    counted = count_macs(decode_graphs(read_model(loop_model(**loop).pack())), 0)
    return counted.macs[2][1], counted.notes


@pytest.mark.parametrize(
    ("loop", "turns"),
    [
        ({"steps": 7}, 7),
        ({"steps": 7, "start": 2}, 5),
        ({"steps": 7, "step": 2}, 4),
        ({"steps": 7, "compare": "LESS_EQUAL"}, 8),
        ({"steps": 3, "start": 5}, 0),
    ],
)
def test_turns_of_a_loop(loop: dict[str, Any], turns: int) -> None:
    macs, notes = looped(**loop)
    assert macs == 16 * turns
    assert notes == (f"subgraph 2 is a loop body, counted x {turns} turns",)


@pytest.mark.parametrize("loop", [{"step": -1}, {"step": 0}, {"compare": "NOT_EQUAL"}])
def test_turns_that_are_not_known(loop: dict[str, Any]) -> None:
    macs, notes = looped(**loop)
    assert macs is None
    assert notes == ("the turns of the loop in subgraph 2 are not a constant of the file",)


def _joined(model: Model, *, second: str) -> Model:
    """Adds a second condition to the loop, as Keras does."""
    condition = model.tree.subgraphs[1]
    condition.tensors += [condition.tensors[3], condition.tensors[3]]
    condition.operators += [
        model.op(second, [0, 2], [4]),
        model.op("LOGICAL_AND", [3, 4], [5]),
    ]
    condition.outputs = [5]
    return model


def test_conditions_that_are_joined() -> None:
    known = decode_graphs(read_model(_joined(loop_model(steps=6), second="LESS_EQUAL").pack()))
    unknown = decode_graphs(read_model(_joined(loop_model(steps=6), second="EQUAL").pack()))
    assert count_macs(known, 0).macs[2][1] == 6 * 16
    assert count_macs(unknown, 0).macs[2][1] is None


def test_a_condition_made_of_itself_does_not_hang() -> None:
    model = loop_model()
    condition = model.tree.subgraphs[1]
    condition.operators = [model.op("LOGICAL_AND", [3, 3], [3])]
    assert count_macs(decode_graphs(read_model(model.pack())), 0).macs[2][1] is None


def test_branches_are_not_counted() -> None:
    product = single("FULLY_CONNECTED", [shaped(1, 4), shaped(3, 4)], shaped(1, 3))
    either = single("IF", [shaped(1), shaped(1, 4)], shaped(1, 3), ThenSubgraphIndex=1, ElseSubgraphIndex=2)
    counted = count_macs([either, product, single("ADD", [shaped(1, 4)], shaped(1, 3))], 0)
    assert counted.macs == ((0,), (None,), (0,))
    assert counted.notes == ("IF runs one of the subgraphs 1, 2",)


def test_a_subgraph_that_is_called_twice_counts_twice() -> None:
    product = single("FULLY_CONNECTED", [shaped(1, 4), shaped(3, 4)], shaped(1, 3))
    call = Operator("CALL", 1, custom=False, inputs=(0,), outputs=(1,), options={"Subgraph": 1})
    main = Graph("main", (0,), (1,), (shaped(1, 4), shaped(1, 3)), (call, call))
    assert count_macs([main, product], 0).macs == ((0, 0), (24,))


def test_subgraphs_that_call_each_other_are_refused() -> None:
    def calling(index: int) -> Graph:
        return single("CALL", [shaped(1)], shaped(1), Subgraph=index)

    with pytest.raises(ModelError, match="a subgraph runs itself"):
        count_macs([calling(1), calling(2), calling(1)], 0)


def test_a_long_chain_of_calls_is_no_problem() -> None:
    depth = 3000
    chain = [single("CALL", [shaped(1)], shaped(1), Subgraph=index + 1) for index in range(depth)]
    last = single("FULLY_CONNECTED", [shaped(1, 4), shaped(3, 4)], shaped(1, 3))
    assert count_macs([*chain, last], 0).macs[-1] == (12,)
