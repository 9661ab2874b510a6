"""The options of passes: what they take, what they refuse, and how they overrule a recipe file."""

import click
import pytest

from edgecompress.cli.passes import PassFields, pass_options, recipe_of
from edgecompress.command import recipe_options
from edgecompress.errors import UsageError
from edgecompress.recipes import Recipe
from edgecompress.techniques import Cluster, Distill, Fuse, LowRank, Prune, Qat, Term, Training


@click.command()
@pass_options
def command(**_settings) -> None:
    pass


def recipe_from(*words: object) -> Recipe:
    settings = command.make_context("command", [str(word) for word in words]).params
    settings.pop("train")
    settings.pop("resume")
    return recipe_of(settings.pop("recipe"), settings)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("energy=0.95", LowRank(energy=0.95)),
        ("energy=1.0", LowRank(energy=1.0)),
        ("rank=16", LowRank(rank=16)),
        ("ratio=0.25", LowRank(ratio=0.25)),
        ("params_budget=0.5", LowRank(params_budget=0.5)),
        ("params_budget=200_000", LowRank(params_budget=200_000)),
        ("flops_budget=0.5", LowRank(flops_budget=0.5)),
        ("evbmf", LowRank(evbmf=True)),
        ("evbmf,conv=tucker", LowRank(evbmf=True, conv="tucker")),
        ("16", LowRank(rank=16)),
        ("0.25", LowRank(ratio=0.25)),
        ("16,multiple=4,epochs=2", LowRank(rank=16, multiple=4, epochs=2)),
        ("energy=0.9,gates=separate", LowRank(energy=0.9, gates="separate")),
        ("0.5,activation_aware=false", LowRank(ratio=0.5, activation_aware=False)),
        ("{rank=4, layers={'conv.*'=0, head=0.5}}", LowRank(rank=4, layers={"conv.*": 0, "head": 0.5})),
        ("distill=0.5", LowRank(distill=0.5)),
        ("{}", LowRank()),
    ],
)
def test_what_low_rank_takes(value: str, expected: LowRank) -> None:
    assert recipe_from("--low-rank", value).passes == (expected,)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("width=0.5", Distill(width=0.5)),
        ("width=0.5,depth=0.5,rank=16", Distill(width=0.5, depth=0.5, rank=16)),
        ("width=1,alpha=1,temperature=2", Distill(width=1, alpha=1, temperature=2)),
        ("teacher=big.keras", Distill(teacher="big.keras")),
        ("teacher=models/big.keras,cache=false", Distill(teacher="models/big.keras", cache=False)),
        ("teacher=['a.keras','b.tflite'],epochs=3", Distill(teacher=("a.keras", "b.tflite"), epochs=3)),
        (
            "{width=1.0, losses=[{kind='logits'}, {kind='features', teacher_layer='a', student_layer='b', weight=2}]}",
            Distill(
                width=1.0,
                losses=(
                    Term(kind="logits"), Term(kind="features", teacher_layer="a", student_layer="b", weight=2),
                ),
            ),
        ),
    ],
)  # fmt: skip
def test_what_distill_takes(value: str, expected: Distill) -> None:
    assert recipe_from("--distill", value).passes == (expected,)


def test_fuse_is_a_flag_and_its_fields_imply_it() -> None:
    assert recipe_from("--fuse").passes == (Fuse(),)
    fields = ("--fuse-options", "embedding=speed,linear=false")
    assert recipe_from(*fields).passes == (Fuse(embedding="speed", linear=False),)
    assert recipe_from("--fuse", *fields) == recipe_from(*fields)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0.8", Prune(sparsity=0.8)),
        ("0", Prune(sparsity=0)),
        ("2:4", Prune(pattern="2:4")),
        ("0.8,schedule=constant", Prune(sparsity=0.8, schedule="constant")),
        ("2:4,epochs=3", Prune(pattern="2:4", epochs=3)),
        ("sparsity=0.8, criterion=sensitivity", Prune(sparsity=0.8, criterion="sensitivity")),
        ("criterion='sensitivity'", Prune(criterion="sensitivity")),
        ("pattern=2:4", Prune(pattern="2:4")),
        ("sparsity=0.8,distill=0.5", Prune(sparsity=0.8, distill=0.5)),
        ("block=[2,1],sparsity=0.6", Prune(sparsity=0.6, block=(2, 1))),
        ("layers={conv=0.9,dense=0.5},sparsity=0.6", Prune(sparsity=0.6, layers={"conv": 0.9, "dense": 0.5})),
        ('{sparsity = 0.8, layers = {"conv.*" = 0.9}}', Prune(sparsity=0.8, layers={"conv.*": 0.9})),
        ('layers={"a[0-9],b=c"=0.9},l1=1e-5', Prune(layers={"a[0-9],b=c": 0.9}, l1=1e-5)),
    ],
)
def test_what_prune_takes(value: str, expected: Prune) -> None:
    assert recipe_from("--prune", value).passes == (expected,)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("16", Cluster(clusters=16)),
        ("clusters=8,centroids=linear", Cluster(clusters=8, centroids="linear")),
        ("16,per_channel=true", Cluster(clusters=16, per_channel=True)),
        ("16,distill=0.5,temperature=4", Cluster(clusters=16, distill=0.5, temperature=4)),
        ('{layers = {"conv.*" = 4}}', Cluster(layers={"conv.*": 4})),
    ],
)
def test_what_cluster_takes(value: str, expected: Cluster) -> None:
    assert recipe_from("--cluster", value).passes == (expected,)


def test_qat_is_a_flag_and_its_fields_imply_it() -> None:
    assert recipe_from("--qat").passes == (Qat(),)
    fields = ("--qat-options", 'exclude=["head"],preserve_sparsity=false')
    assert recipe_from(*fields).passes == (Qat(exclude=("head",), preserve_sparsity=False),)
    assert recipe_from("--qat", *fields) == recipe_from(*fields)
    assert recipe_from("--qat-options", "distill=0.5").passes == (Qat(distill=0.5),)


def test_the_order_is_that_of_the_passes_and_not_that_of_the_line() -> None:
    words = ("--qat", "--cluster", 16, "--prune", 0.8, "--fuse", "--low-rank", 0.5, "--distill", "width=0.5")
    kinds = ["distill", "low_rank", "fuse", "prune", "cluster", "qat"]
    assert [each.kind for each in recipe_from(*words).passes] == kinds


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--distill", "width=2"], ["--distill: key 'width'", "less than or equal to 1", "received 2"]),
        (["--distill", "alpha=0.5"], ["--distill: a model cannot teach itself", "give width, depth or rank"]),
        (["--distill", "widht=0.5"], ["--distill: unknown key 'widht'", "did you mean 'width'?"]),
        (["--distill", "{width=0.5, losses=[{kind='logit'}]}"], ["--distill: key 'losses.0.kind'", "'logits'?"]),
        (["--low-rank", "rank=0"], ["--low-rank: key 'rank'", "greater than 0", "received 0"]),
        (["--low-rank", "0"], ["--low-rank: key 'rank'", "greater than 0"]),
        (["--low-rank", "1.0"], ["--low-rank: key 'ratio'", "less than 1", "received 1.0"]),
        (["--low-rank", "energy=0"], ["--low-rank: key 'energy'", "greater than 0"]),
        (["--low-rank", "energy=1.01"], ["--low-rank: key 'energy'", "less than or equal to 1", "received 1.01"]),
        (["--low-rank", "energy=-0.5"], ["--low-rank: key 'energy'", "greater than 0", "received -0.5"]),
        (["--low-rank", "energy=nan"], ["--low-rank: key 'energy'"]),
        (["--low-rank", "16,energy=0.9"], ["--low-rank: rank and energy are different ways", "give one of them"]),
        (["--low-rank", "rnk=16"], ["--low-rank: unknown key 'rnk'", "did you mean 'rank'?"]),
        (["--low-rank", "16,conv=tuker"], ["'conv'", "did you mean 'tucker'?"]),
        (["--low-rank", "{layers={'('=4}}"], ["'(' is not a regular expression"]),
        (["--low-rank", "{layers={a=-1}}"], ["--low-rank: key 'layers'"]),
        (["--fuse-options", "embeding=off"], ["--fuse-options: unknown key 'embeding'", "did you mean 'embedding'?"]),
        (["--fuse-options", "embedding=sped"], ["--fuse-options: key 'embedding'", "did you mean 'speed'?"]),
        (["--prune", "1.0"], ["--prune: key 'sparsity'", "less than 1", "received 1.0"]),
        (["--prune", "-0.1"], ["--prune: key 'sparsity'", "greater than or equal to 0", "received -0.1"]),
        (["--prune", "2"], ["--prune: key 'sparsity'", "less than 1", "received 2"]),
        (["--prune", "nan"], ["--prune: key 'sparsity'"]),
        (["--prune", "4:2"], ["--prune: key 'pattern'", "N:M"]),
        (["--prune", "sparsty=0.8"], ["unknown key 'sparsty'", "did you mean 'sparsity'?"]),
        (["--prune", "0.8,schedule=constnt"], ["'schedule'", "did you mean 'constant'?"]),
        (["--prune", "begin=0.9"], ["--prune: begin is later than end"]),
        (["--prune", "{layers={'('=0.5}}"], ["'(' is not a regular expression"]),
        (["--cluster", "1"], ["--cluster: key 'clusters'", "greater than or equal to 2"]),
        (["--cluster", "16.5"], ["--cluster: key 'clusters'", "valid integer"]),
        (["--cluster", "16,temperature=0"], ["--cluster: key 'temperature'", "greater than 0", "received 0"]),
        (["--prune", "0.8,temperature=4"], ["--prune: temperature softens", "give distill, too"]),
        (["--qat-options", "distill=2"], ["--qat-options: key 'distill'", "less than or equal to 1", "received 2"]),
        (["--qat-options", "exclde=[]"], ["unknown key 'exclde'", "did you mean 'exclude'?"]),
    ],
)  # fmt: skip
def test_a_wrong_field_or_value_is_named(words: list[str], parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        recipe_from(*words)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--distill", "0.5"],
        ["--distill", "big.keras"],
        ["--low-rank", "much"],
        ["--low-rank", ""],
        ["--low-rank", "true"],
        ["--low-rank", "evbmf,16"],
        ["--fuse-options", "embedding"],
        ["--prune", "abc"],
        ["--prune", ""],
        ["--prune", "true"],
        ["--prune", "{sparsity=0.8"],
        ["--cluster", "few"],
        ["--qat-options", "head"],
        ["--epochs", "0"],
        ["--batch-size", "-1"],
        ["--learning-rate", "0"],
        ["--validation", "0.51"],
        ["--early-stopping", "0"],
        ["--seed", "-1"],
    ],
)
def test_what_is_no_value_at_all(words: list[str]) -> None:
    with pytest.raises(click.BadParameter):
        recipe_from(*words)


def test_how_to_train() -> None:
    words = "--epochs 8 --batch-size 16 --learning-rate 1e-4 --validation 0.2 --early-stopping 3 --seed 4"
    recipe = recipe_from(*words.split())
    assert recipe.training == Training(epochs=8, batch_size=16, learning_rate=1e-4, validation=0.2, early_stopping=3)
    assert recipe.seed == 4


RECIPE = """
[[passes]]
kind = "prune"
sparsity = 0.6
schedule = "constant"
[[passes]]
kind = "qat"
[training]
epochs = 7
batch_size = 16
"""


def test_options_replace_the_fields_they_name_and_add_what_is_not_there(tmp_path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    words = "--prune 0.8 --cluster 16 --epochs 2 --qat-options epochs=1"
    recipe = recipe_from("--recipe", tmp_path / "recipe.toml", *words.split())
    assert recipe.passes == (Prune(sparsity=0.8, schedule="constant"), Cluster(clusters=16), Qat(epochs=1))
    assert recipe.training == Training(epochs=2, batch_size=16)


def test_an_options_way_of_choosing_ranks_takes_the_place_of_the_recipes(tmp_path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[[passes]]\nkind = "low_rank"\nenergy = 0.9\nconv = "tucker"\n')
    assert recipe_from("--recipe", path, "--low-rank", 16).passes == (LowRank(rank=16, conv="tucker"),)
    assert recipe_from("--recipe", path, "--low-rank", "evbmf").passes == (LowRank(evbmf=True, conv="tucker"),)
    assert recipe_from("--recipe", path, "--low-rank", "conv=spatial").passes == (LowRank(energy=0.9, conv="spatial"),)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--early-stopping", 2, "--validation", 0], "early_stopping judges epochs by validation samples"),
        (["--learning-rate", "nan"], "'training.learning_rate'"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, words, part) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    with pytest.raises(UsageError) as caught:
        recipe_from(*words)
    assert str(caught.value).startswith("the options: ")
    assert part in str(caught.value)
    with pytest.raises(UsageError) as caught:
        recipe_from("--recipe", tmp_path / "recipe.toml", *words)
    assert f"{tmp_path}/recipe.toml with the options: " in str(caught.value)


def test_options_that_do_not_go_with_the_recipe(tmp_path) -> None:
    (tmp_path / "recipe.toml").write_text("[training]\nearly_stopping = 2\n")
    with pytest.raises(UsageError, match=r"recipe\.toml with the options: .*validation is 0"):
        recipe_from("--recipe", tmp_path / "recipe.toml", "--validation", 0)


def test_an_option_cannot_mean_one_of_two_passes(tmp_path) -> None:
    (tmp_path / "recipe.toml").write_text('[[passes]]\nkind = "prune"\n[[passes]]\nkind = "prune"\nsparsity = 0.8\n')
    with pytest.raises(UsageError, match=r"2 passes of the kind 'prune'.*Fix: change it in the recipe file"):
        recipe_from("--recipe", tmp_path / "recipe.toml", "--prune", 0.9)
    assert len(recipe_from("--recipe", tmp_path / "recipe.toml").passes) == 2


@pytest.mark.parametrize(
    "passes",
    [
        (Distill(width=0.5),),
        (Distill(rank=16, alpha=1, temperature=1e-1, cache=False, epochs=3),),
        (Distill(teacher="models/big.keras"), Prune(), Qat(distill=0.5)),
        (Distill(teacher="big,alpha=0.1.keras"),),
        (Distill(teacher="true"),),
        (Distill(teacher="16"),),
        (Distill(teacher="2026-01-01"),),
        (Distill(teacher="a 'b' \"c\" é.keras"),),
        (Distill(teacher="C:\\big.keras"),),
        (Distill(teacher=("a.keras", "b.tflite"), depth=0.5),),
        (
            Distill(
                width=0.5,
                losses=(
                    Term(kind="soft_labels"),
                    Term(kind="features", teacher_layer="a/b", student_layer="c", projector="linear", weight=0.1),
                ),
            ),
        ),
        (LowRank(),),
        (LowRank(energy=1.0),),
        (LowRank(rank=16, multiple=4, gates="separate", conv="cp", epochs=3),),
        (LowRank(evbmf=True, activation_aware=False, distill=0.5),),
        (LowRank(params_budget=200_000),),
        (LowRank(flops_budget=0.5, layers={"conv.*": 0, "a|b": 0.25, "gru": 16}),),
        (Fuse(),),
        (Fuse(batch_norm=False, embedding="off"),),
        (LowRank(ratio=0.5), Fuse(), Prune(), Cluster(), Qat()),
        (Prune(),),
        (Prune(sparsity=0.8),),
        (Prune(pattern="2:4"),),
        (Prune(pattern="2:4", sparsity=0.75),),
        (Prune(sparsity=0.8, schedule="constant", criterion="sensitivity", l1=1e-5, epochs=3),),
        (Prune(layers={"conv.*": 0.9, 'a "quoted, b=1" \\w+ é': 0.5}, block=(2, 1)),),
        (Cluster(),),
        (Cluster(clusters=4, per_channel=True, preserve_sparsity=False, centroids="density"),),
        (Cluster(layers={"dense": 0}),),
        (Qat(),),
        (Qat(exclude=("head", "a|b"), preserve_clusters=False, epochs=2),),
        (Prune(sparsity=0.5), Cluster(clusters=8), Qat()),
        (),
    ],
)
def test_passes_survive_being_said_and_read(passes) -> None:
    recipe = Recipe(passes=passes, training=Training(epochs=3, learning_rate=1e-5) if passes else Training())
    assert recipe_from(*recipe_options(recipe)) == recipe


def test_what_options_cannot_say_is_said_to_be_in_memory() -> None:
    recipe = Recipe(passes=(Cluster(), Prune()))
    assert recipe_options(recipe) == ["--recipe", "<recipe in memory>"]
    assert recipe_options(Recipe(passes=(Prune(), Prune()))) == ["--recipe", "<recipe in memory>"]


def test_a_value_that_is_read_already_stays() -> None:
    assert PassFields(lambda _text: None, "x").convert({"sparsity": 0.5}, None, None) == {"sparsity": 0.5}
