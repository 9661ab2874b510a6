"""Imports go downward only, and TensorFlow stays where it is needed."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom to the top. A module may import from its own tier and those below.
TIERS = (
    ("errors",),
    ("schemas", "schemes", "isolate", "machine", "versions"),
    ("profiles", "recipes"),
    (
        "flatbuffer_verifier",
        "flatbuffer",
        "graphs",
        "tflite_macs",
        "tiny",
        "artifacts",
        "data",
        "sources",
        "outputs",
        "command",
    ),
    ("safety", "models", "keras_macs", "inspection", "calibration", "doctor"),
    ("converters",),
    ("check", "verify", "benchmark"),
    ("comparison", "report"),
    ("pipeline",),
    ("cli",),
)
HEAVY = {"tensorflow", "keras", "tf_keras", "tensorflow_model_optimization"}
MAY_IMPORT_TENSORFLOW = {"models", "safety", "calibration", "converters.tflite", "converters.graph_child"}


def modules() -> dict[str, Path]:
    found = {}
    for folder, prefix in (
        ("edgecompress", ""),
        ("converters", "converters."),
        ("device_profiles", "device_profiles."),
    ):
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            found[(prefix + name).rstrip(".")] = file
    return {name: file for name, file in found.items() if name not in ("", "__main__")}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def tier(module: str) -> int:
    for number, names in enumerate(TIERS):
        if module.split(".", maxsplit=1)[0] in names:
            return number
    raise AssertionError(f"{module} has no place in the order of imports: add it to TIERS")


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_downward(module: str) -> None:
    # The runner is copied to devices on its own, so it may import nothing of ours.
    own = {
        name.removeprefix("edgecompress.") for name in imported(modules()[module]) if name.startswith("edgecompress.")
    }
    known = {name for name in own if name.split(".")[0] in {n.split(".")[0] for n in modules()}}
    upward = {name for name in known if tier(name) > tier(module)}
    assert not upward
    assert module != "benchmark.runner" or not known


@pytest.mark.parametrize("module", sorted(modules()))
def test_tensorflow_stays_at_home(module: str) -> None:
    heavy = {name for name in imported(modules()[module]) if name.split(".")[0] in HEAVY}
    assert not heavy or module in MAY_IMPORT_TENSORFLOW


def test_only_the_pipeline_knows_the_order() -> None:
    users = [name for name, file in modules().items() if {"edgecompress.pipeline.convert"} & imported(file)]
    assert sorted(users) == ["cli.convert"]
