import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edgecompress

NAMES = [
    "Algorithm", "Artifact", "Cluster", "Comparison", "CompressReport", "Dataset", "Distill", "Distiller",
    "EdgeCompressError", "Evaluation", "FactorizedDense", "Fuse", "Granularity", "InputSpec", "IoType",
    "LoadedModel", "LowRank", "LowRankDense", "LowRankGRU", "LowRankLSTM", "Measurement", "ModelSummary",
    "Observer", "Plan", "Profile", "Prune", "Qat", "QuantizationScheme", "RankReport", "Recipe",
    "RecurrentLowering", "Report", "StreamRunner", "Training", "benchmark_cpu", "compare", "compress", "convert",
    "diagnose", "evaluate", "inspect", "list_profiles", "load_data", "load_model", "load_profile", "load_recipe",
    "make_student", "plan", "ranks", "read_artifact", "save_model",
]  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert edgecompress.__all__ == NAMES == sorted(NAMES)
    assert dir(edgecompress) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(edgecompress, name)
    assert value.__name__ == name
    assert value.__doc__


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(edgecompress.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert sorted(alias.name for node in block.body for alias in node.names) == NAMES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        edgecompress.nothing  # noqa: B018


def imported_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not imported_by("import edgecompress") & {"tensorflow", "keras", "numpy", "pydantic", "click", "rich"}


def test_help_imports_neither_tensorflow_nor_keras_nor_numpy() -> None:
    code = (
        "import io, contextlib\nfrom edgecompress.cli import cli\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    for words in ([], ['convert'], ['compress'], ['plan'], ['profiles'], ['inspect']):\n"
        "        cli.main([*words, '--help'], standalone_mode=False)"
    )
    assert not imported_by(code) & {"tensorflow", "keras", "numpy", "pydantic", "ai_edge_litert"}


WITHOUT_TENSORFLOW = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        missing = 'tensorflow keras tf_keras tensorflow_model_optimization litert_quantizer'
        if name.split('.')[0] in missing.split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from edgecompress.cli.lifecycle import run
from edgecompress.cli import cli
sys.exit(run(cli, sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["profiles", "list"], 0),
        (["inspect", "tiny.tflite"], 0),
        (["benchmark", "tiny.tflite", "--runs", "1"], 0),
        (["doctor", "--json"], 0),
        (["convert", "model.keras"], 3),
        (["inspect", "model.keras"], 3),
        (["plan", "model.keras", "--prune", "0.8"], 3),
        (["compress", "model.keras", "--prune", "0.8"], 3),
    ],
)
def test_what_works_without_tensorflow(words: list[str], code: int, tmp_path: Path) -> None:
    from edgecompress.tiny import tiny_model

    (tmp_path / "tiny.tflite").write_bytes(tiny_model())
    (tmp_path / "model.keras").write_bytes(b"PK")
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    if code == 3:
        assert 'pip install "edgecompress[convert]"' in done.stderr
        assert done.stderr.count("\n") == 1
