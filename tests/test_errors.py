from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from edgecompress import errors
from edgecompress.errors import DataError, EdgeCompressError, OutputError, UsageError, did_you_mean

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EdgeCompressError)]


def drawn_tree() -> dict[str, tuple[str, int | None]]:
    """Reads the picture in the module's docstring: each class's parent, and the exit code where one is drawn."""
    assert errors.__doc__ is not None
    found: dict[str, tuple[str, int | None]] = {}
    path: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"    ([│├└─ ]*)(\w+Error)\s+(\d)?", line)
        if match:
            depth = len(match[1])
            path = [step for step in path if step[0] < depth]
            found[match[2]] = (path[-1][1] if path else "Exception", int(match[3]) if match[3] else None)
            path.append((depth, match[2]))
    return found


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = drawn_tree()
    assert {kind.__name__: kind.__mro__[1].__name__ for kind in CLASSES} == {
        name: parent for name, (parent, _) in drawn.items()
    }
    codes = {kind.__name__: kind.exit_code for kind in CLASSES}
    assert {name: code for name, (_, code) in drawn.items() if code is not None}.items() <= codes.items()


@pytest.mark.parametrize("kind", CLASSES)
def test_exit_codes(kind: type[EdgeCompressError]) -> None:
    expected = 2 if issubclass(kind, UsageError) else {"UnavailableError": 3}.get(kind.__name__, 4)
    assert kind("wrong").exit_code == expected


@pytest.mark.parametrize(
    ("details", "line"),
    [
        ({}, "wrong"),
        ({"where": Path("model.keras")}, "model.keras: wrong"),
        ({"expected": (1, 2)}, "wrong; expected (1, 2)"),
        ({"received": 0}, "wrong; received 0"),
        ({"fix": "do it right"}, "wrong. Fix: do it right"),
        (
            {"where": "x", "expected": "a", "received": "b", "fix": "c"},
            "x: wrong; expected a; received b. Fix: c",
        ),
    ],
)
def test_one_line_says_what_where_expected_received_and_fix(details: dict[str, object], line: str) -> None:
    error = EdgeCompressError("wrong", **details)  # type: ignore[arg-type]
    assert str(error) == line
    assert error.args == (line,)


def test_line_breaks_become_spaces() -> None:
    assert str(DataError("many\n  lines\r\n", received="a\nb\n", fix="c\n")) == "many lines; received a b. Fix: c"


def test_a_place_can_be_added_later() -> None:
    error = DataError("wrong")
    error.where = "model.tflite"
    assert str(error) == "model.tflite: wrong"


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_survive_pickling(kind: type[EdgeCompressError]) -> None:
    error = kind("wrong", where="x", expected=1, received=2, fix="c")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own)
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert copy.args == error.args
    assert (copy.what, copy.where, copy.expected, copy.received, copy.fix) == ("wrong", "x", 1, 2, "c")


def test_an_output_error_is_not_an_os_error() -> None:
    # whole_folder turns OSErrors into OutputErrors, and must let these through.
    assert not issubclass(OutputError, OSError)


def test_advice_for_an_unknown_name() -> None:
    assert did_you_mean("pixle", ["pixel", "host"]) == "did you mean 'pixel'? Allowed: host, pixel"
    assert did_you_mean("zzz", iter(["pixel", "host"])) == "Allowed: host, pixel"
