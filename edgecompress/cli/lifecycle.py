"""How every command starts and ends: one line for an error, an exit code, and libraries kept quiet."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from typing import IO

import click

from edgecompress.errors import EdgeCompressError, InternalError

_INTERRUPTED = 130


def run(cli: click.Command, arguments: list[str] | None = None) -> int:
    """Runs a command line and returns its exit code.

    With `--json`, an error is one JSON document on stdout; otherwise it is one line on stderr.
    """
    words = sys.argv[1:] if arguments is None else arguments
    verbose = "--verbose" in words
    with _quiet_libraries(verbose=verbose) as captured:
        try:
            result = cli.main(args=words, prog_name="edgecompress", standalone_mode=False)
        except EdgeCompressError as error:
            if verbose:
                traceback.print_exc()
            return _say(error, words)
        except click.exceptions.Abort:
            _say_line("Interrupted.")
            return _INTERRUPTED
        except click.exceptions.NoArgsIsHelpError as error:
            _say_line(error.ctx.get_help() if error.ctx is not None else error.format_message())
            return error.exit_code
        except click.ClickException as error:
            return _say_usage(error, words)
        except Exception as error:  # noqa: BLE001 (whatever is left is a fault of ours)
            captured.write(traceback.format_exc())
            return _say(_internal(error, captured, verbose=verbose), words)
    return result if isinstance(result, int) else 0


def console_stream() -> IO[str]:
    """Returns the user's stderr, which stays theirs while libraries' output to file descriptor 2 is captured."""
    return _STREAM[-1]


_STREAM: list[IO[str]] = [sys.stderr]


@contextlib.contextmanager
def _quiet_libraries(*, verbose: bool) -> Iterator[IO[str]]:
    """Sends what libraries (and native code) write to stderr into a file, kept for the report of an internal error."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as captured:
        if verbose:
            yield captured
            return
        saved = os.dup(2)
        sys.stderr.flush()
        os.dup2(captured.fileno(), 2)
        try:
            with os.fdopen(saved, "w", encoding="utf-8", closefd=False) as stream, warnings.catch_warnings():
                _STREAM.append(stream)
                yield captured
        finally:
            _STREAM.pop()
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)


def _say(error: EdgeCompressError, words: list[str]) -> int:
    if "--json" in words:
        body = {"kind": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
        click.echo(json.dumps({"schema": "edgecompress.error/1", "error": body}, indent=2))
    else:
        _say_line(f"Error: {error}")
    return error.exit_code


def _say_usage(error: click.ClickException, words: list[str]) -> int:
    from edgecompress.errors import UsageError

    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    fix = f"see {context.command_path} --help" if context is not None else None
    return _say(UsageError(message.rstrip("."), fix=fix), words)


def _internal(error: Exception, captured: IO[str], *, verbose: bool) -> InternalError:
    captured.flush()
    captured.seek(0)
    text = captured.read()
    if verbose:
        _say_line(text)
    with tempfile.NamedTemporaryFile("w", prefix="edgecompress-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write(text)
    return InternalError(
        f"internal error: {type(error).__name__}: {error}",
        fix=f"this is a fault of EdgeCompress: please report it with {log.name}",
    )


def _say_line(line: str) -> None:
    stream = console_stream()
    stream.write(f"{line}\n")
    stream.flush()
