from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from edgecompress import doctor
from edgecompress.doctor import Diagnosis, diagnose
from edgecompress.isolate import Outcome
from edgecompress.machine import describe_machine

HEAVY = ("ai_edge_litert", "keras", "litert_quantizer", "tensorflow", "tf_keras")
GROUPS = {
    "conversion": [
        "tensorflow",
        "keras",
        "tf-keras",
        "tensorflow-model-optimization",
        "tensorly",
        "litert-quantizer",
        "pillow",
        "matplotlib",
    ],
    "runtime": ["ai-edge-litert", "tflite-runtime", "tflite-micro"],
    "delegate": ["XNNPACK (CPU)", "LiteRT GPU", "Edge TPU"],
    "tool": ["adb", "edgetpu_compiler", "vela"],
}
DIAGNOSE = f"""
import json, sys
from edgecompress.doctor import diagnose
found = diagnose().model_dump(by_alias=True)
print(json.dumps([found, [name for name in {HEAVY!r} if name in sys.modules]]))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """A whole diagnosis in a process of its own, with one tool that works, and the heavy modules it imported.

    The current folder holds a file that would stand in for a module of the probes.
    """
    folder = tmp_path_factory.mktemp("doctor")
    make_tool(folder, "adb", "echo Android Debug Bridge version 1.0.41; echo Version 29.0.6")
    (folder / "json.py").write_text("raise SystemExit('the wrong json')")
    done = subprocess.run(
        [sys.executable, "-P", "-c", DIAGNOSE], cwd=folder, env={**os.environ, "PATH": str(folder)},
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    found, imported = json.loads(done.stdout)
    return found, imported


def make_tool(folder: Path, name: str, script: str, first_line: str = "#!/bin/sh") -> None:
    (folder / name).write_text(f"{first_line}\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH, and that of this Python; empty."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return tmp_path


def found_tools() -> dict[str, Diagnosis]:
    return {one.name: one for one in doctor._tools()}


def test_a_diagnosis_covers_all_that_can_be_used(whole: tuple[dict[str, Any], list[str]]) -> None:
    found = whole[0]
    assert found["schema"] == "edgecompress.doctor/1"
    assert found["machine"] == describe_machine()
    names = {group: [one["name"] for one in found["found"] if one["group"] == group] for group in GROUPS}
    assert names == GROUPS


def test_whatever_is_not_usable_has_a_fix_and_only_that(whole: tuple[dict[str, Any], list[str]]) -> None:
    for one in whole[0]["found"]:
        assert (one["fix"] is None) == one["usable"], one
        assert one["detail"], one
        assert one["needed_for"], one
        assert "\n" not in one["detail"]


def test_nothing_heavy_is_imported(whole: tuple[dict[str, Any], list[str]]) -> None:
    assert whole[1] == []


def test_what_is_certain_on_this_machine(whole: tuple[dict[str, Any], list[str]]) -> None:
    found = {one["name"]: one for one in whole[0]["found"]}
    assert found["ai-edge-litert"]["detail"] == metadata.version("ai-edge-litert")
    assert found["XNNPACK (CPU)"]["usable"]
    assert found["adb"] == {
        "name": "adb", "group": "tool", "usable": True, "detail": "Android Debug Bridge version 1.0.41",
        "needed_for": "phones", "fix": None,
    }  # fmt: skip
    assert found["vela"]["detail"] == metadata.version("ethos-u-vela")


def test_an_edge_tpu_without_its_library_says_which(whole: tuple[dict[str, Any], list[str]]) -> None:
    (edge_tpu,) = (one for one in whole[0]["found"] if one["name"] == "Edge TPU")
    if edge_tpu["usable"]:
        pytest.skip("this machine has an Edge TPU")
    assert "libedgetpu" in edge_tpu["detail"] + edge_tpu["fix"]


def test_packages_are_found_by_their_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version_of", {"tensorflow": "9.9"}.get)
    found = {one.name: one for one in doctor._packages()}
    assert (found["tensorflow"].usable, found["tensorflow"].detail, found["tensorflow"].fix) == (True, "9.9", None)
    assert not found["pillow"].usable
    assert found["pillow"].detail == "not installed"
    assert found["pillow"].fix == 'pip install "edgecompress[images]"'


# Tools


def test_no_tools(tools: Path) -> None:
    assert list(tools.iterdir()) == []
    for one in found_tools().values():
        assert not one.usable
        assert one.detail == "not on the PATH"


def test_a_tool_may_say_its_version_on_either_stream(tools: Path) -> None:
    make_tool(tools, "vela", 'test "$1" = --version && echo 5.2.0')
    make_tool(tools, "edgetpu_compiler", "echo Edge TPU Compiler version 16.0.384591198 >&2")
    make_tool(tools, "adb", "exit 0")
    found = found_tools()
    assert [one.usable for one in found.values()] == [True, True, True]
    assert found["vela"].detail == "5.2.0"
    assert found["edgetpu_compiler"].detail == "Edge TPU Compiler version 16.0.384591198"
    assert found["adb"].detail == f"{tools}/adb ended with exit code 0"


@pytest.mark.parametrize(
    ("script", "first_line", "reason"),
    [
        ("echo version 3; exit 1", "#!/bin/sh", "ended with exit code 1"),
        ("kill -SEGV $$", "#!/bin/sh", "crashed (SIGSEGV)"),
        ("\x7fELF", "", "cannot be started (Exec format error)"),
        ("", "#!/no/such/interpreter", "cannot be started (No such file or directory)"),
    ],
)
def test_a_tool_that_does_not_work(tools: Path, script: str, first_line: str, reason: str) -> None:
    make_tool(tools, "vela", script, first_line)
    vela = found_tools()["vela"]
    assert not vela.usable
    assert vela.detail == f"{tools}/vela {reason}"
    assert vela.fix == 'pip install "edgecompress[ethos-u]"'


def test_a_tool_that_hangs(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PROBE_LIMIT_S", 0.3)
    make_tool(tools, "vela", "while true; do :; done")
    assert found_tools()["vela"].detail == f"{tools}/vela was ended at its time limit"


# Delegates


@pytest.mark.parametrize(
    ("outcome", "usable", "detail"),
    [
        (Outcome(0, 'noise\n{"usable": true, "detail": "fine"}\n', "", timed_out=False), True, "fine"),
        (Outcome(0, '{"usable": false, "detail": "no device"}', "", timed_out=False), False, "no device"),
        (
            Outcome(0, '{"usable": true, "detail": ""}', "INFO: Selected adapter: SwiftShader \nx", timed_out=False),
            True, "SwiftShader",
        ),
        (Outcome(0, '{"usable": true, "detail": ""}', "", timed_out=False), True, "adapter unknown"),
        (Outcome(1, "", "ERROR: No adapters found here\nlast", timed_out=False), False, "No adapters found"),
        (
            Outcome(1, "", "OSError: libedgetpu.so.1: cannot open shared object file: No such file", timed_out=False),
            False, "libedgetpu.so.1: cannot open shared object file",
        ),
        (
            Outcome(1, "", "ModuleNotFoundError: No module named 'ai_edge_litert'", timed_out=False),
            False, "No module named 'ai_edge_litert'",
        ),
        (Outcome(1, "", f"first\n{'x' * 300}\n", timed_out=False), False, "x" * 160),
        (Outcome(-6, "", "", timed_out=False), False, "the probe crashed (SIGABRT)"),
        (Outcome(-9, "", "", timed_out=True), False, "the probe was ended at its time limit"),
    ],
)  # fmt: skip
def test_what_a_probe_says(monkeypatch: pytest.MonkeyPatch, outcome: Outcome, usable: bool, detail: str) -> None:
    monkeypatch.setattr(doctor, "run_command", lambda *_, **__: outcome)
    for one in doctor._delegates():
        assert one.usable == usable
        assert one.detail == detail
        assert (one.fix is None) == usable


def test_a_diagnosis_of_nothing(monkeypatch: pytest.MonkeyPatch, tools: Path) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda _name: None)
    monkeypatch.setattr(doctor, "run_command", lambda *_, **__: Outcome(1, "", "broken", timed_out=False))
    assert not any(one.usable for one in diagnose().found)
    assert list(tools.iterdir()) == []
