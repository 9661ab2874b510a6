"""Child processes for what can crash, hang or poison its process: converters, runtimes, device probes.

The child's output is captured, its time is limited, and it ends with its parent: a crash becomes a value that the
caller turns into a named error, never the end of the user's process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """How a child process ended.

    Attributes:
        returncode: Its exit code; negative for the signal that ended it.
        stdout: What it printed.
        stderr: What it, and native code inside it, wrote to file descriptor 2.
        timed_out: Whether it was ended for taking too long.
    """

    returncode: int
    stdout: str
    stderr: str
    timed_out: bool

    @property
    def crashed(self) -> bool:
        return self.returncode < 0 and not self.timed_out

    @property
    def how_it_ended(self) -> str:
        """A phrase for an error: 'crashed (SIGSEGV)', 'was ended at its time limit', 'ended with exit code 1'."""
        if self.timed_out:
            return "was ended at its time limit"
        if self.crashed:
            try:
                return f"crashed ({signal.Signals(-self.returncode).name})"
            except ValueError:
                return f"crashed (signal {-self.returncode})"
        return f"ended with exit code {self.returncode}"

    @property
    def last_words(self) -> str:
        """The last line of stderr that says something, or an empty string."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else ""


class Child:
    """A Python module running in a process of its own, told what to do by one line of JSON on its stdin.

    Starting it is separate from giving it its job, so that its imports overlap with the parent's work. The module's
    protocol: `serve_one_job` reads the job and prints `{"progress": [done, total]}` lines and one `{"result": …}`.

    Args:
        module: Dotted name of the module to run.
        environment: Variables added to this process's own.
    """

    def __init__(self, module: str, *, environment: dict[str, str] | None = None) -> None:
        # -P: files in the current folder must not stand in for modules of the same name.
        self._process = _start([sys.executable, "-P", "-m", module], environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process if it still runs."""
        if self._process.poll() is None:
            _end(self._process)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def run(
        self, job: dict[str, Any], *, time_limit_s: float, progress: Progress | None = None
    ) -> tuple[Outcome, dict[str, Any] | None]:
        """Gives the child its job and waits for it.

        Args:
            job: Anything that JSON can say; large data goes through files.
            time_limit_s: Seconds after which the child is ended.
            progress: Called with (done, total); what it raises ends the child and is raised here.

        Returns:
            How the child ended, and its result, or None if it ended without one.
        """
        result: dict[str, Any] | None = None

        def listen(line: str) -> bool:
            nonlocal result
            message = _parse_message(line)
            if message is None:
                return False
            if "result" in message:
                result = message["result"]
            elif progress is not None:
                progress(*message["progress"])
            return True

        outcome = _wait(self._process, json.dumps(job) + "\n", time_limit_s, listen)
        return outcome, result


def run_command(
    command: Sequence[str | Path], *, time_limit_s: float, environment: dict[str, str] | None = None
) -> Outcome:
    """Runs a command to its end, with its output captured.

    Raises:
        OSError: The command cannot be started.
    """
    with _start(command, environment) as process:
        return _wait(process, "", time_limit_s, lambda _line: False)


def serve_one_job(work: Callable[[dict[str, Any], Progress], dict[str, Any]]) -> None:
    """The child's side of `Child`: reads one job from stdin, does it, prints the result.

    The real stdout is kept for messages; what libraries print goes to stderr. The process exits when its parent is
    gone, so a killed parent leaves no child behind.
    """
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    line = sys.stdin.readline()
    if not line:
        return
    threading.Thread(target=_exit_with_parent, daemon=True).start()

    def say(message: dict[str, Any]) -> None:
        messages.write(f"\x1e{json.dumps(message)}\n")
        messages.flush()

    say({"result": work(json.loads(line), lambda done, total: say({"progress": [done, total]}))})


def _exit_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


def _parse_message(line: str) -> dict[str, Any] | None:
    # Native code may have left an unfinished line before it.
    _, mark, body = line.rpartition("\x1e")
    if not mark:
        return None
    message: dict[str, Any] = json.loads(body)
    return message


def _start(command: Sequence[str | Path], environment: dict[str, str] | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )


def _wait(process: subprocess.Popen[bytes], text: str, time_limit_s: float, listen: Callable[[str], bool]) -> Outcome:
    printed: list[str] = []
    complained: list[str] = []
    failures: list[Exception] = []

    def hear(line: str) -> None:
        if not listen(line):
            printed.append(line)

    def read(stream: IO[bytes] | None, take: Callable[[str], None]) -> None:
        try:
            for raw in stream or ():
                take(raw.decode("utf-8", "replace"))
        except Exception as error:  # noqa: BLE001 (the caller's own progress function may raise anything)
            failures.append(error)
            process.kill()

    streams = ((process.stdout, hear), (process.stderr, complained.append))
    readers = [threading.Thread(target=read, args=each, daemon=True) for each in streams]
    for reader in readers:
        reader.start()
    timed_out = not _ends_in_time(process, text, time_limit_s)
    for reader in readers:
        reader.join(timeout=5)
    if failures:
        raise failures[0]
    return Outcome(process.returncode, "".join(printed), "".join(complained), timed_out)


def _ends_in_time(process: subprocess.Popen[bytes], text: str, time_limit_s: float) -> bool:
    try:
        if process.stdin is not None:
            # The pipe stays open: its end tells the child that the parent is gone.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(text.encode())
                process.stdin.flush()
        process.wait(timeout=time_limit_s)
    except subprocess.TimeoutExpired:
        return False
    finally:
        _end(process)
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process, and whatever it started and left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
