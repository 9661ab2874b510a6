"""What is printed of layers in factors, and drawn of their ranks; the layers are made by hand."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from edgecompress.errors import OutputError, UsageError
from edgecompress.passes.base import Fusion, LayerPlan, LayerRank, PassResult, RankPoint
from edgecompress.ranking import RankReport
from edgecompress.report.compression import print_passes
from edgecompress.report.low_rank import left_alone, not_replaced, shown_points, sparkline
from edgecompress.report.plots import check_plot, plot_ranks
from edgecompress.report.ranks import print_ranks
from edgecompress.techniques import LowRank


def point(*ranks: int, method: str = "svd", energy: float = 0.5, error: float | None = 0.1) -> RankPoint:
    return RankPoint(
        method=method, ranks=ranks, energy=energy, params=100 * sum(ranks), macs=90 * sum(ranks), weight_error=0.2,
        output_error=error,
    )  # fmt: skip


def layer(name: str, chosen: RankPoint | None, points: tuple[RankPoint, ...] = (), **facts: object) -> LayerRank:
    defaults = {
        "kind": "Dense", "shapes": ((40, 60),), "full_ranks": (40,), "params": 2460, "macs": 2400,
        "accepted": chosen is not None, "reason": "it has no kernel",
    }  # fmt: skip
    return LayerRank(layer=name, chosen=chosen, points=points, **defaults | facts)


def report(*layers: LayerRank, **facts: object) -> RankReport:
    defaults = {
        "model": "net.keras", "profile": None, "technique": LowRank(), "multiple": 8, "data": "x.npz", "samples": 20,
        "params_before": 4000, "params_after": 2000, "macs_before": 3000, "macs_after": 1500,
    }  # fmt: skip
    return RankReport(layers=layers, **defaults | facts)


def printed(results: tuple[PassResult, ...]) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_passes(console, results)
    return console.file.getvalue()


def test_energy_is_drawn_in_bars() -> None:
    assert sparkline([0, 0.5, 1]) == "▁▅█"
    assert sparkline([-0.1, 1.2]) == "▁█"
    assert sparkline([]) == ""


def test_layers_of_one_reason_share_a_line() -> None:
    layers = [
        layer("a", None),
        layer("b", None, reason="3 weights instead of 2"),
        layer("c", None),
        layer("d", point(8)),
    ]
    assert list(left_alone(not_replaced(layers))) == [
        "left alone: a, c: it has no kernel",
        "left alone: b: 3 weights instead of 2",
    ]


def test_the_points_of_the_chosen_way_are_shown() -> None:
    points = (point(4, method="channel"), point(4, 6, method="tucker"), point(8, method="channel"))
    assert shown_points(layer("a", points[1], points)) == (points[1],)
    assert shown_points(layer("a", None, points)) == (points[0], points[2])
    assert shown_points(layer("a", None)) == ()


def test_a_pass_prints_its_layers_and_its_fusions() -> None:
    plan = LayerPlan(layer="gru", kind="GRU", technique="low_rank", applies=True, detail="")
    ranks = (layer("gru", point(8, 16), kind="GRU", full_ranks=(40, 64)), layer("[head]", None))
    fusion = Fusion(
        layers=("conv", "norm"), into="conv", how="batch_norm", params_before=1200, params_after=1100, detail="folded"
    )
    kept = LayerPlan(layer="emb", kind="Embedding", technique="fuse", applies=False, detail="9 weights instead of 8")
    text = printed((
        PassResult(kind="low_rank", plan=(plan,), ranks=ranks),
        PassResult(kind="fuse", plan=(plan, kept), fusions=(fusion,)),
    ))  # fmt: skip
    for part in ("8+16 of 40+64 (svd)", "2,460 -> 2,400", "2,400 -> 2,160", "10.0%", "left alone: [head]: it has no"):
        assert part in text
    assert "conv + norm -> conv (batch_norm): 1,200 -> 1,100 weights; folded" in text
    assert "left alone: emb: 9 weights instead of 8" in text


def test_what_is_not_known_is_not_made_up(capsys) -> None:
    unknown = point(8, error=None).model_copy(update={"macs": None})
    one = layer("a", unknown, (unknown,), macs=None)
    print_ranks(report(one, data=None, samples=0, macs_before=None, macs_after=None))
    text = capsys.readouterr().out
    for part in ("unknown", "20.0% (weights)", "MACs are not known", "without samples"):
        assert part in text


def test_a_model_without_layers_to_factorize_has_no_totals(capsys) -> None:
    print_ranks(report(layer("norm", None), params_before=0, params_after=0, macs_before=0, macs_after=0))
    text = capsys.readouterr().out
    assert text.splitlines()[1:] == ["- left alone: norm: it has no kernel", "no layer can be factorized"]


def test_one_rank_is_said_once_in_energies(capsys) -> None:
    points = (point(8, energy=0.6), point(16, energy=0.8), point(24, energy=0.9), point(32, energy=0.99))
    print_ranks(report(layer("a", points[2], points), layer("b", points[0], points[:1])))
    text = capsys.readouterr().out
    assert "8: 60%, 16: 80%, 32: 99%" in text
    assert text.count("8: 60%") == 2
    assert "4,000 -> 2,000 weights (0.50 x), 16.0 kB -> 8.0 kB as float32; 3,000 -> 1,500 MACs of these layers" in text


def test_names_in_a_plot_are_no_formulas(tmp_path) -> None:
    points = (point(8, energy=0.6), point(16, energy=0.9, error=None))
    layers = [layer(f"a$\\frac{{{number}$", points[0] if number else None, points) for number in range(4)]
    plot_ranks(report(*layers), tmp_path / "r.svg")
    assert (tmp_path / "r.svg").read_text("utf-8").count('id="axes_') == 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.svg"]


def test_a_plot_that_cannot_be_written_leaves_nothing(tmp_path) -> None:
    found = report(layer("a", point(8), (point(8),)))
    (tmp_path / "r.png").mkdir()
    with pytest.raises(OutputError, match=r"r\.png: cannot be written \(Is a directory\).*choose another file"):
        plot_ranks(found, tmp_path / "r.png")
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.png"]
    with pytest.raises(UsageError, match="nothing to plot"):
        plot_ranks(report(layer("a", None)), tmp_path / "r.svg")


def test_which_files_are_plots(tmp_path) -> None:
    check_plot(tmp_path / "R.PNG")
    with pytest.raises(UsageError, match=r"received \.jpg"):
        check_plot(tmp_path / "r.jpg")
    with pytest.raises(UsageError, match=r"received no suffix.*--plot ranks\.svg"):
        check_plot(Path())
    (tmp_path / "r.svg").mkdir()
    with pytest.raises(OutputError, match="Is a directory"):
        check_plot(tmp_path / "r.svg")
    with pytest.raises(OutputError, match="No such file or directory"):
        check_plot(tmp_path / "nowhere" / "r.svg")
