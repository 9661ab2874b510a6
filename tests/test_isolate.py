from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgecompress.isolate import Child, Outcome, run_command

PYTHON = (sys.executable, "-c")
LIMIT_S = 20.0
# What a child module does with its job; each file is its own module.
WORK = {
    "double": "progress(1, 2); progress(2, 2); return {'twice': 2 * job['number']}",
    "crash": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "raises": "raise ValueError('bad layer')",
    "leaves": "import sys; sys.exit(3)",
    "hangs": "progress(0, 1); import time; time.sleep(60)",
    "parent": (
        "import subprocess; child = subprocess.Popen(['sleep', '60']); progress(child.pid, 0); "
        "import time; time.sleep(60 * job['stays']); return {}"
    ),
    "noise": (
        "import os; print('a library prints'); os.write(1, b'native code writes\\n'); "
        "os.write(2, b'and complains\\n'); progress(1, 1); return {'done': True}"
    ),
    "directory": "import os, sys; return {'folder': os.getcwd(), 'path': sys.path, 'variable': os.environ.get('MINE')}",
    "echo": "return job",
}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Starts a module of one line of work, in a package that only PYTHONPATH leads to."""
    package = tmp_path / "modules" / "childwork"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    children: list[Child] = []

    def call(name: str, *, at_import: str = "", **variables: str) -> Child:
        text = f"{at_import}\nfrom edgecompress.isolate import serve_one_job\n"
        text += f"def work(job, progress):\n    {WORK[name]}\nif __name__ == '__main__':\n    serve_one_job(work)\n"
        (package / f"{name}.py").write_text(text)
        children.append(Child(f"childwork.{name}", environment={"PYTHONPATH": str(package.parent), **variables}))
        return children[-1]

    yield call
    for child in children:
        child.close()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # a zombie has ended, and waits for somebody to ask


def ends_soon(pid: int) -> bool:
    until = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not is_running(pid)


# A child and its job


def test_a_job_has_progress_and_a_result(start: Callable[..., Child]) -> None:
    seen: list[tuple[int, int]] = []
    outcome, result = start("double").run(
        {"number": 21}, time_limit_s=LIMIT_S, progress=lambda done, total: seen.append((done, total))
    )
    assert result == {"twice": 42}
    assert seen == [(1, 2), (2, 2)]
    assert outcome == Outcome(returncode=0, stdout="", stderr="", timed_out=False)
    assert not outcome.crashed


def test_nobody_need_listen_to_the_progress(start: Callable[..., Child]) -> None:
    assert start("double").run({"number": 1}, time_limit_s=LIMIT_S)[1] == {"twice": 2}


def test_a_job_of_every_kind_of_value(start: Callable[..., Child]) -> None:
    job = {"text": "ä\n\x1e“", "list": [1, 2.5, None, True], "table": {"": {}}}
    assert start("echo").run(job, time_limit_s=LIMIT_S)[1] == job


def test_a_job_may_arrive_before_the_imports_are_done(start: Callable[..., Child]) -> None:
    child = start("double", at_import="import time; time.sleep(0.3)")
    assert child.run({"number": 4}, time_limit_s=LIMIT_S)[1] == {"twice": 8}


def test_a_job_may_arrive_long_after_them(start: Callable[..., Child]) -> None:
    child = start("double")
    time.sleep(0.3)
    assert child.run({"number": 4}, time_limit_s=LIMIT_S)[1] == {"twice": 8}


def test_the_environment_is_added(start: Callable[..., Child], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "the parent's")
    assert start("directory").run({}, time_limit_s=LIMIT_S)[1]["variable"] == "the parent's"  # type: ignore[index]
    assert start("directory", MINE="its own").run({}, time_limit_s=LIMIT_S)[1]["variable"] == "its own"  # type: ignore[index]


def test_files_in_the_current_folder_stand_in_for_nothing(
    start: Callable[..., Child], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    _, result = start("directory").run({}, time_limit_s=LIMIT_S)
    assert result is not None
    assert result["folder"] == str(tmp_path)
    assert "" not in result["path"]
    assert str(tmp_path) not in result["path"]


def test_noise_does_not_disturb_the_messages(start: Callable[..., Child]) -> None:
    seen: list[int] = []
    outcome, result = start("noise").run({}, time_limit_s=LIMIT_S, progress=lambda done, _total: seen.append(done))
    assert result == {"done": True}
    assert seen == [1]
    assert outcome.stdout == ""
    assert {"a library prints", "native code writes", "and complains"} == set(outcome.stderr.splitlines())


def test_noise_while_importing_does_not_disturb_the_messages(start: Callable[..., Child]) -> None:
    child = start("double", at_import="import os; os.write(1, b'loading\\nunfinished')")
    outcome, result = child.run({"number": 1}, time_limit_s=LIMIT_S)
    assert result == {"twice": 2}
    assert outcome.stdout == "loading\n"


# How children end


def test_a_crash_is_an_outcome(start: Callable[..., Child]) -> None:
    outcome, result = start("crash").run({}, time_limit_s=LIMIT_S)
    assert result is None
    assert outcome.crashed
    assert outcome.returncode == -signal.SIGSEGV
    assert outcome.how_it_ended == "crashed (SIGSEGV)"


def test_an_exception_is_an_outcome(start: Callable[..., Child]) -> None:
    outcome, result = start("raises").run({}, time_limit_s=LIMIT_S)
    assert result is None
    assert not outcome.crashed
    assert outcome.how_it_ended == "ended with exit code 1"
    assert outcome.last_words == "ValueError: bad layer"
    assert outcome.stderr.startswith("Traceback")


def test_a_failed_import_is_an_outcome(start: Callable[..., Child]) -> None:
    outcome, result = start("double", at_import="import no_such_module").run({"number": 1}, time_limit_s=LIMIT_S)
    assert result is None
    assert outcome.last_words == "ModuleNotFoundError: No module named 'no_such_module'"


def test_a_child_that_is_gone_before_its_job(start: Callable[..., Child]) -> None:
    child = start("double", at_import="raise SystemExit(5)")
    assert ends_soon(child._process.pid)
    outcome, result = child.run({"number": 1}, time_limit_s=LIMIT_S)
    assert (outcome.returncode, result) == (5, None)


def test_an_exit_is_an_outcome(start: Callable[..., Child]) -> None:
    outcome, result = start("leaves").run({}, time_limit_s=LIMIT_S)
    assert (outcome.returncode, result) == (3, None)


def test_the_time_limit_ends_the_child(start: Callable[..., Child]) -> None:
    child = start("hangs")
    began = time.monotonic()
    outcome, result = child.run({}, time_limit_s=0.5)
    assert time.monotonic() - began < 5
    assert result is None
    assert outcome.timed_out
    assert not outcome.crashed
    assert outcome.how_it_ended == "was ended at its time limit"
    assert not is_running(child._process.pid)


@pytest.mark.parametrize("stays", [True, False], ids=["at its time limit", "after its end"])
def test_what_a_child_started_ends_with_it(start: Callable[..., Child], stays: bool) -> None:
    pids: list[int] = []
    began = time.monotonic()
    outcome, _ = start("parent").run(
        {"stays": stays}, time_limit_s=1 if stays else LIMIT_S, progress=lambda pid, _total: pids.append(pid)
    )
    assert outcome.timed_out == stays
    assert time.monotonic() - began < 5
    assert ends_soon(pids[0])


def test_what_the_progress_function_raises_ends_the_child(start: Callable[..., Child]) -> None:
    def stop(_done: int, _total: int) -> None:
        raise InterruptedError("enough")

    child = start("hangs")
    began = time.monotonic()
    with pytest.raises(InterruptedError, match="enough"):
        child.run({}, time_limit_s=LIMIT_S, progress=stop)
    assert time.monotonic() - began < 5
    assert not is_running(child._process.pid)


def test_leaving_the_block_ends_a_child_without_a_job(start: Callable[..., Child]) -> None:
    with start("double") as child:
        pid = child._process.pid
        assert is_running(pid)
    assert not is_running(pid)
    child.close()  # once more does no harm


def test_a_child_ends_when_its_stdin_does(start: Callable[..., Child]) -> None:
    began = threading.Event()
    child = start("hangs")
    thread = threading.Thread(
        target=child.run, args=({},), kwargs={"time_limit_s": 30.0, "progress": lambda _d, _t: began.set()}
    )
    thread.start()
    assert began.wait(10)
    assert child._process.stdin is not None
    child._process.stdin.close()
    thread.join(10)
    assert not thread.is_alive()
    assert child._process.returncode == 0


def test_a_child_without_a_job_ends_when_its_stdin_does(start: Callable[..., Child]) -> None:
    child = start("double")
    assert child._process.stdin is not None
    child._process.stdin.close()
    assert child._process.wait(10) == 0


def test_a_killed_parent_leaves_no_child(start: Callable[..., Child], tmp_path: Path) -> None:
    start("hangs").close()  # writes the module
    parent = "import sys\nfrom edgecompress.isolate import Child\nchild = Child('childwork.hangs')\n"
    parent += "child.run({}, time_limit_s=60, progress=lambda *_: print(child._process.pid, flush=True))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "modules")}
    with subprocess.Popen([*PYTHON, parent], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert is_running(pid)
        process.kill()
    assert ends_soon(pid)


# Commands


def test_a_command_is_captured() -> None:
    text = "import sys; print('out'); print('  first\\n\\n last \\n', file=sys.stderr); sys.exit(7)"
    outcome = run_command([*PYTHON, text], time_limit_s=LIMIT_S)
    assert outcome.stdout == "out\n"
    assert outcome.stderr == "  first\n\n last \n\n"
    assert outcome.last_words == "last"
    assert outcome.how_it_ended == "ended with exit code 7"
    assert not outcome.crashed


def test_a_command_may_have_paths_and_variables(tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text('#!/bin/sh\necho "$MINE $1"\n')
    script.chmod(0o755)
    assert run_command([script, "x y"], time_limit_s=LIMIT_S, environment={"MINE": "ours"}).stdout == "ours x y\n"


def test_output_that_is_no_text_is_no_fault() -> None:
    outcome = run_command([*PYTHON, "import os; os.write(1, b'\\xff\\n'); os.write(2, b'\\xfe')"], time_limit_s=LIMIT_S)
    assert outcome.stdout == "\ufffd\n"
    assert outcome.stderr == "\ufffd"


def test_much_output_does_not_block() -> None:
    text = "import sys\nfor _ in range(10000): print('x' * 99); print('y' * 99, file=sys.stderr)"
    outcome = run_command([*PYTHON, text], time_limit_s=LIMIT_S)
    assert len(outcome.stdout) == len(outcome.stderr) == 1_000_000


def test_a_command_that_crashes() -> None:
    assert run_command([*PYTHON, "import os; os.abort()"], time_limit_s=LIMIT_S).how_it_ended == "crashed (SIGABRT)"


def test_a_command_is_ended_at_its_time_limit() -> None:
    outcome = run_command(["sh", "-c", "echo started; sleep 60"], time_limit_s=0.5)
    assert outcome.timed_out
    assert outcome.stdout == "started\n"


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        run_command(["no-such-command"], time_limit_s=1)


def test_an_unnamed_signal_and_silence() -> None:
    assert Outcome(-200, "", "", timed_out=False).how_it_ended == "crashed (signal 200)"
    assert Outcome(0, "", " \n", timed_out=False).last_words == ""
