"""Every error that EdgeCompress raises on purpose, and the exit code each one becomes.

    EdgeCompressError                 exit code
    ├── UsageError                    2  wrong option or bad input
    │   ├── ModelError                   a model file that cannot be read, or is not what was said
    │   │   └── ExecutionError           a runtime crashed or hung on a model file
    │   ├── DataError                    samples or labels that do not fit the model
    │   ├── ProfileError                 an unknown or malformed device profile
    │   ├── RecipeError                  a malformed recipe
    │   ├── OutputError                  a destination that cannot or must not be written
    │   └── ConversionError              the model cannot be converted as asked (also: the converter crashed)
    ├── UnavailableError              3  a package, device, delegate or compiler that is not here
    └── InternalError                 4  a fault of EdgeCompress itself

Exit code 0 is "done", 1 is "done, but a check or a threshold failed" (not an error: see `Report.failed`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class EdgeCompressError(Exception):
    """One clear line: what is wrong, where, what was expected, what was received, and what to do.

    Args:
        what: The fault, as the start of a sentence.
        where: The file, layer, option or key at fault.
        expected: What would have been accepted.
        received: What came instead.
        fix: What the user can do about it.
    """

    exit_code: ClassVar[int] = 4

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        received: object = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.received = received
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where is not None else self.what]
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        if self.received is not None:
            parts.append(f"received {self.received}")
        line = "; ".join(" ".join(part.split()) for part in parts)
        return line if self.fix is None else f"{line}. Fix: {' '.join(self.fix.split())}"


class UsageError(EdgeCompressError):
    """A wrong option or bad input."""

    exit_code = 2


class ModelError(UsageError):
    """A model file that cannot be read, or is not what was said."""


class ExecutionError(ModelError):
    """A runtime crashed, hung or refused while it ran a model file."""


class DataError(UsageError):
    """Samples or labels that do not fit the model."""


class ProfileError(UsageError):
    """An unknown or malformed device profile."""


class RecipeError(UsageError):
    """A malformed recipe."""


class OutputError(UsageError):
    """A destination that cannot or must not be written."""


class ConversionError(UsageError):
    """The model cannot be converted as asked; also the name of a converter's crash or hang."""


class UnavailableError(EdgeCompressError):
    """A package, device, delegate or compiler that is not here."""

    exit_code = 3


class InternalError(EdgeCompressError):
    """A fault of EdgeCompress itself."""

    exit_code = 4


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Returns the advice for an unknown name: the nearest allowed one, if any is near, and the whole list."""
    names = sorted(allowed)
    near = difflib.get_close_matches(word, names, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"{guess}Allowed: {', '.join(names)}"
