"""What a check finds."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Violation(BaseModel):
    """A rule of the profile that the file breaks.

    Attributes:
        rule: Name of the rule, e.g. `limits.file_bytes`.
        where: The file, operator or tensor.
        expected: What the rule allows.
        found: What is there.
        fix: What to do about it.
    """

    model_config = ConfigDict(frozen=True)

    rule: str
    where: str
    expected: str
    found: str
    fix: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.where} is {self.found}, allowed is {self.expected}. Fix: {self.fix}"
