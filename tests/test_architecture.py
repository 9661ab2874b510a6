"""Imports go downward only, and TensorFlow stays where it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom to the top. A module may import from its own tier and those below.
TIERS = (
    ("errors",),
    ("schemas", "schemes", "isolate", "machine", "versions"),
    ("profiles", "techniques"),
    ("recipes",),
    (
        "flatbuffer_verifier",
        "flatbuffer",
        "graphs",
        "tflite_macs",
        "tiny",
        "artifacts",
        "labels",
        "data",
        "sources",
        "outputs",
        "checkpoints",
        "command",
    ),
    # Arithmetic on arrays, and layers of Keras: neither knows anything of the rest.
    ("decomposition", "layers", "recurrent", "streaming"),
    # Running a .tflite file, which teachers do, too.
    ("benchmark.runner", "benchmark.child", "benchmark.execute"),
    ("safety", "functional", "states"),
    ("compile_config", "loaded"),
    ("models", "keras_macs", "inspection", "calibration", "doctor", "token_ids"),
    # What passes give, take and count, which the tf_keras world below them needs, too.
    ("passes.base", "passes.kernels", "passes.proof"),
    ("epochs", "objectives"),
    ("distill",),
    ("tfmot",),
    ("passes",),
    ("converters",),
    ("check", "verify", "benchmark"),
    ("scheme_choice",),
    ("planning",),
    ("comparison", "ranking", "report", "reference"),
    ("samples",),
    ("candidates", "recurrent_forms", "quantizing"),
    ("training",),
    ("pipeline",),
    ("cli",),
)
# Who may import which heavy package: a module, or all modules of a package.
MAY_IMPORT = {
    "tensorflow": {
        "loaded",
        "models",
        "safety",
        "calibration",
        "converters.tflite",
        "converters.cut",
        "converters.graph_child",
        "converters.one_step",
        "converters.recording",
        "converters.stand_ins",
        "objectives",
        "distill",
        "tfmot",
        "passes",
    },
    "keras": {
        "compile_config",
        "functional",
        "loaded",
        "models",
        "safety",
        "calibration",
        "layers",
        "objectives",
        "distill",
        "tfmot",
        "passes",
    },
    "tf_keras": {"models", "calibration", "tfmot"},
    "tensorflow_model_optimization": {"tfmot"},
}
# Subclasses of TFMOT's and Keras's classes need them at import time; these modules are imported inside functions.
DEFINE_KERAS_CLASSES = {"layers", "distill"}
DEFINE_TENSORFLOW_CLASSES = {"tfmot.quantized_layers", "tfmot.quantized_recurrent", "tfmot.quantizers"}


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
    parts = module.split(".")
    for name in (".".join(parts[:2]), parts[0]):  # a module with a tier of its own, before its package
        for number, names in enumerate(TIERS):
            if name in names:
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
    for package in {name.split(".")[0] for name in imported(modules()[module])} & set(MAY_IMPORT):
        assert {module, module.split(".", maxsplit=1)[0]} & MAY_IMPORT[package], f"{module} imports {package}"


def test_each_module_can_be_the_first_that_is_imported() -> None:
    """Packages that import their own modules can make circles, which only some orders of imports run into."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    for loaded in [each for each in sys.modules if each.split('.')[0] == 'edgecompress']:\n"
        "        del sys.modules[loaded]\n"
        "    importlib.import_module(f'edgecompress.{name}')\n"
        "print({'tensorflow', 'keras', 'tf_keras', 'tensorflow_model_optimization'} & set(sys.modules))\n"
    )
    names = sorted(
        name for name in {*modules()} - DEFINE_TENSORFLOW_CLASSES if name.split(".")[0] not in DEFINE_KERAS_CLASSES
    )
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("step", ["convert", "compress"])
def test_only_the_pipeline_knows_the_order(step: str) -> None:
    users = [name for name, file in modules().items() if {f"edgecompress.pipeline.{step}"} & imported(file)]
    assert sorted(users) == [f"cli.{step}"]
