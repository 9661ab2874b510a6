"""The report of a conversion, as data with a versioned schema."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edgecompress.benchmark.measurement import Measurement
from edgecompress.calibration import CalibrationAudit
from edgecompress.check import Violation
from edgecompress.outputs import REPORT_SCHEMA
from edgecompress.recipes import Recipe
from edgecompress.schemes import QuantizationScheme
from edgecompress.verify.metrics import Scores
from edgecompress.verify.verification import Verified


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceModel(_Part):
    """The model that went in. `sha256` is that of the file or folder, or of the weights of a model in memory."""

    name: str
    format: str
    sha256: str
    size_bytes: int | None


class DataUsed(_Part):
    """The samples: how many there were, what each part was used for, and the hash of those that were used."""

    source: str
    samples: int
    calibration: int
    held_out: int
    sha256: str


class Attempt(_Part):
    """A scheme that the profile allows, and what became of it."""

    scheme: QuantizationScheme
    outcome: Literal["chosen", "refused"]
    reason: str


class Variant(_Part):
    """One side of the before/after table. Bytes are those of a .tflite file; `gzip_bytes` is what a download costs."""

    scheme: QuantizationScheme
    parameters: int
    macs: int | None
    size_bytes: int
    gzip_bytes: int
    scores: Scores | None = None
    measurement: Measurement | None = None


class Report(_Part):
    """What a conversion did, with all that is needed to do it again.

    Attributes:
        command: The command line that repeats it.
        before: The model as a float32 .tflite file.
        after: The finished file.
        attempts: Every scheme that was considered, in the profile's order.
        notes: What was skipped, assumed or left alone, and why, in plain words.
        failed: Checks and thresholds that failed; the exit code is 1 if there are any.
        files: SHA-256 of each file written beside the report.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_name: str = Field(REPORT_SCHEMA, alias="schema")
    command: tuple[str, ...]
    versions: dict[str, str]
    machine: str
    profile: str
    profile_sha256: str
    source: SourceModel
    recipe: Recipe
    data: DataUsed | None
    scheme: QuantizationScheme
    attempts: tuple[Attempt, ...]
    audit: CalibrationAudit | None
    verified: Verified
    before: Variant
    after: Variant
    violations: tuple[Violation, ...]
    notes: tuple[str, ...]
    failed: tuple[str, ...]
    files: dict[str, str]
    output: str

    def to_json(self) -> str:
        """Returns the report as indented JSON."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"
