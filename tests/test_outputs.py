from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecompress.errors import OutputError, UsageError
from edgecompress.outputs import REPORT_FILE, REPORT_SCHEMA, TrainingFolder, whole_file, whole_folder

KILLED = """
import sys, time
from pathlib import Path
from edgecompress.outputs import whole_folder
with whole_folder(Path(sys.argv[1])) as folder:
    (folder / "model.tflite").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""
KILLED_FILE = """
import sys, time
from pathlib import Path
from edgecompress.outputs import whole_file
with whole_file(Path(sys.argv[1]), source=None) as file:
    file.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def write(destination: Path, content: str) -> None:
    """Does what a conversion does: a file, and a report that lists it."""
    with whole_folder(destination) as folder:
        (folder / "model.tflite").write_text(content)
        report = {"schema": REPORT_SCHEMA, "files": {"model.tflite": "its hash"}}
        (folder / REPORT_FILE).write_text(json.dumps(report))


def break_off(destination: Path, error: BaseException) -> None:
    with whole_folder(destination) as folder:
        (folder / "model.tflite").write_text("half")
        raise error


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def refusal(destination: Path) -> str:
    with pytest.raises(OutputError) as caught, whole_folder(destination):
        pytest.fail("the block must not run")
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    assert "Fix: " in message
    return message


def test_the_folder_appears_whole(tmp_path: Path) -> None:
    destination = tmp_path / "new" / "out"
    with whole_folder(destination) as folder:
        (folder / "model.tflite").write_text("done")
        assert not destination.exists()
        assert folder.parent == destination.parent
        assert folder.name.startswith(".out.")
    assert (destination / "model.tflite").read_text() == "done"
    assert names(tmp_path / "new") == ["out"]
    assert destination.stat().st_mode & 0o777 == (tmp_path / "new").stat().st_mode & 0o777


def test_a_relative_name_is_meant_from_where_the_run_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with whole_folder(Path("out")) as folder:
        monkeypatch.chdir(tmp_path / "elsewhere")
        (folder / "model.tflite").touch()
    assert names(tmp_path / "out") == ["model.tflite"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        break_off(tmp_path / "out", error())
    assert names(tmp_path) == []


def test_an_error_leaves_an_earlier_output_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "out", "first")
    with pytest.raises(ValueError, match="broken"):
        break_off(tmp_path / "out", ValueError("broken"))
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "model.tflite").read_text() == "first"


def test_an_earlier_output_is_replaced(tmp_path: Path) -> None:
    for content in ("first", "second", "third"):
        write(tmp_path / "out", content)
        assert (tmp_path / "out" / "model.tflite").read_text() == content
        assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "first")
    assert names(tmp_path / "out") == ["model.tflite", REPORT_FILE]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "real", "first")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "second")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "model.tflite").read_text() == "second"
    assert names(tmp_path) == ["link", "real"]


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("a", "b", "c", "d"):
        (tmp_path / "out" / name).write_text("mine")
    message = refusal(tmp_path / "out")
    assert f"{tmp_path}/out: the folder holds something else; received a, b, c." in message
    assert "-o" in message
    assert names(tmp_path / "out") == ["a", "b", "c", "d"]


def test_a_file_added_to_an_earlier_output_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "out", "first")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "received notes.txt" in refusal(tmp_path / "out")
    assert names(tmp_path / "out") == ["model.tflite", "notes.txt", REPORT_FILE]


@pytest.mark.parametrize(
    "report",
    ["not JSON", "[]", "{}", '{"schema": "another/1", "files": {"model.tflite": ""}}', b"\xff\xfe", '{"schema": 1}'],
)
def test_a_folder_whose_report_is_not_ours_is_refused(tmp_path: Path, report: str | bytes) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.tflite").touch()
    (tmp_path / "out" / REPORT_FILE).write_bytes(report if isinstance(report, bytes) else report.encode())
    assert "received model.tflite, report.json" in refusal(tmp_path / "out")


def write_thesis(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").touch()


def test_what_appears_while_the_run_lasts_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="received thesis"), whole_folder(tmp_path / "out"):
        write_thesis(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["thesis.tex"]


@pytest.mark.parametrize("suffix", [".tflite", ".keras", ".json"])
def test_the_name_of_a_file_is_refused(tmp_path: Path, suffix: str) -> None:
    message = refusal(tmp_path / f"model{suffix}")
    assert f"model{suffix}: names a file, but a folder is written" in message
    assert message.endswith(f"Fix: -o {tmp_path}/model")


def test_a_dot_in_a_name_is_no_suffix(tmp_path: Path) -> None:
    write(tmp_path / "model.v1.5", "first")
    assert names(tmp_path) == ["model.v1.5"]


@pytest.fixture(params=["file", "dangling link", "link to itself"])
def obstacle(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "out"
    if request.param == "file":
        path.write_text("mine")
    else:
        path.symlink_to("nowhere" if request.param == "dangling link" else "out")
    yield path
    assert names(tmp_path) == ["out"]


def test_what_is_no_folder_is_refused(obstacle: Path) -> None:
    assert f"{obstacle}: exists and is not a folder" in refusal(obstacle)


def test_a_parent_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for destination in (tmp_path / "file" / "out", tmp_path / "file" / "deeper" / "out"):
        message = refusal(destination)
        assert f"{destination}: cannot be written (what it should lie in is not a folder)" in message
        assert "-o" in message


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    for length in (250, 300):  # the hidden folder's name is longer than the destination's
        assert "cannot be written (File name too long)" in refusal(tmp_path / ("a" * length))
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot be written (Permission denied)" in refusal(tmp_path / "locked" / "out")


@pytest.mark.parametrize("name", ["out", "model[1]"])
def test_a_killed_run_leaves_nothing_that_lasts(tmp_path: Path, name: str) -> None:
    destination = tmp_path / name
    with subprocess.Popen([sys.executable, "-c", KILLED, destination], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        # A run beside it leaves its workspace alone.
        write(destination, "second")
        assert len(names(tmp_path)) == 2
        child.send_signal(signal.SIGKILL)
    assert (destination / "model.tflite").read_text() == "second"
    write(destination, "third")
    assert names(tmp_path) == [name]
    assert (destination / "model.tflite").read_text() == "third"


def test_a_killed_run_leaves_nothing_at_the_destination(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "out"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    write(tmp_path / "out", "second")
    assert names(tmp_path) == ["out"]


# One file


def write_file(destination: Path, content: str, source: Path | None = None) -> None:
    with whole_file(destination, source=source) as temporary:
        temporary.write_text(content)


def break_off_file(destination: Path) -> None:
    with whole_file(destination, source=None) as temporary:
        temporary.write_text("half")
        raise ValueError("broken")


def file_refusal(destination: Path, source: Path | None = None) -> str:
    with pytest.raises(OutputError) as caught:
        write_file(destination, "new", source)
    assert "Fix: " in str(caught.value)
    return str(caught.value)


def test_a_file_appears_whole(tmp_path: Path) -> None:
    destination = tmp_path / "new" / "model.keras"
    with whole_file(destination, source=None) as temporary:
        temporary.write_text("done")
        assert not destination.exists()
        assert temporary.suffix == ".keras"  # Keras goes by it
    assert destination.read_text() == "done"
    assert names(tmp_path / "new") == ["model.keras"]


def test_an_error_leaves_the_earlier_file_and_no_new_folder(tmp_path: Path) -> None:
    write_file(tmp_path / "model.keras", "first")
    for destination in (tmp_path / "model.keras", tmp_path / "new" / "model.keras"):
        with pytest.raises(ValueError, match="broken"):
            break_off_file(destination)
    assert names(tmp_path) == ["model.keras"]
    assert (tmp_path / "model.keras").read_text() == "first"
    write_file(tmp_path / "model.keras", "second")
    assert (tmp_path / "model.keras").read_text() == "second"


def test_a_killed_run_leaves_no_part_of_a_file_that_lasts(tmp_path: Path) -> None:
    destination = tmp_path / "model[1].keras"
    with subprocess.Popen([sys.executable, "-c", KILLED_FILE, destination], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        write_file(destination, "second")  # a run beside it leaves what it writes alone
        assert len(names(tmp_path)) == 2
        child.send_signal(signal.SIGKILL)
    write_file(destination, "third")
    assert names(tmp_path) == [destination.name]
    assert destination.read_text() == "third"


def test_names_that_no_keras_file_can_have(tmp_path: Path) -> None:
    assert file_refusal(tmp_path / "model.tflite").endswith(f"-o {tmp_path}/model.tflite.keras")
    (tmp_path / "folder.keras").mkdir()
    assert "is a folder, but a file is written" in file_refusal(tmp_path / "folder.keras")
    (tmp_path / "file").touch()
    assert "not a folder" in file_refusal(tmp_path / "file" / "model.keras")
    assert names(tmp_path) == ["file", "folder.keras"]


def test_the_model_itself_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_text("mine")
    (tmp_path / "link.keras").symlink_to("model.keras")
    for name in ("model.keras", "link.keras"):
        assert "is the model itself" in file_refusal(tmp_path / name, tmp_path / "model.keras")
    assert (tmp_path / "model.keras").read_text() == "mine"
    write_file(tmp_path / "link.keras", "new", tmp_path / "not there.keras")  # which whoever reads it will say


# Checkpoints

RUN = {"model": "a1", "passes": [{"kind": "prune"}], "seed": 0}


def break_off_training(destination: Path, *, checkpoint: bool = True, resume: bool = False, run: object = RUN) -> None:
    with TrainingFolder(destination) as folder:
        folder.open(run, resume=resume)
        if checkpoint:
            (folder.path / "1-prune").mkdir(exist_ok=True)
            (folder.path / "1-prune" / "training.npz").write_text("epoch 1")
        raise KeyboardInterrupt


def test_the_training_folder_goes_when_all_went_well(tmp_path: Path) -> None:
    with TrainingFolder(tmp_path / "out") as folder:
        assert names(tmp_path) == []  # made only when something trains
        assert not folder.open(RUN, resume=False)
        assert names(tmp_path) == [".out.training"]
        (folder.path / "1-prune").mkdir()
        (folder.path / "1-prune" / "training.npz").touch()
    assert names(tmp_path) == []
    with TrainingFolder(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


def test_a_run_that_ended_early_can_be_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        break_off_training(tmp_path / "out")
    assert names(tmp_path) == [".out.training"]
    with TrainingFolder(tmp_path / "out") as folder:
        assert folder.open(RUN, resume=True)
        assert (folder.path / "1-prune" / "training.npz").read_text() == "epoch 1"


def test_without_resume_the_training_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        break_off_training(tmp_path / "out")
    with TrainingFolder(tmp_path / "out") as folder:
        assert not folder.removed_earlier
        assert not folder.open({**RUN, "seed": 1}, resume=False)
        assert folder.removed_earlier
        assert names(folder.path) == ["run.json"]


def test_there_may_be_nothing_to_go_on_with(tmp_path: Path) -> None:
    with TrainingFolder(tmp_path / "out") as folder:
        assert not folder.open(RUN, resume=True)
        assert not folder.removed_earlier


def test_a_run_that_ended_before_any_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        break_off_training(tmp_path / "out", checkpoint=False)
    assert names(tmp_path) == []


def test_checkpoints_of_another_run_are_refused_and_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        break_off_training(tmp_path / "out")
    with pytest.raises(UsageError, match=r"of a run with another passes, seed\. Fix: .*--resume"):
        break_off_training(tmp_path / "out", resume=True, run={"model": "a1", "passes": [], "seed": 2})
    with TrainingFolder(tmp_path / "out") as folder:
        assert folder.open(RUN, resume=True)


def test_two_runs_do_not_train_at_the_same_place(tmp_path: Path) -> None:
    with TrainingFolder(tmp_path / "out") as folder:
        folder.open(RUN, resume=False)
        with pytest.raises(OutputError, match="another run is training there"):
            break_off_training(tmp_path / "out", resume=True)
        assert folder.path.exists()


def test_a_file_where_the_checkpoints_should_go(tmp_path: Path) -> None:
    (tmp_path / ".out.training").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        break_off_training(tmp_path / "out")


def test_cleaning_up_after_killed_runs_leaves_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        break_off_training(tmp_path / "out")
    write(tmp_path / "out", "first")
    assert names(tmp_path) == [".out.training", "out"]
