"""The reports of a conversion and of a compression, as data with versioned schemas."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edgecompress.benchmark.measurement import Measurement
from edgecompress.calibration import CalibrationAudit
from edgecompress.check import Violation
from edgecompress.outputs import REPORT_SCHEMA
from edgecompress.passes.base import PassResult
from edgecompress.profiles import RecurrentLowering
from edgecompress.recipes import Recipe
from edgecompress.schemes import QuantizationScheme
from edgecompress.verify.kernels import KernelInFile
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


class TrainingData(_Part):
    """The samples that the passes trained on, their share for validation among them."""

    source: str
    samples: int
    sha256: str


class Attempt(_Part):
    """A scheme that the profile allows, or one form of its recurrent layers, and what became of it.

    Attributes:
        outcome: Files are passed over if another was better.
        recurrent: The form, if there were several.
        per_turn: Steps in one turn of a loop.
        size_bytes: Of the file, if it was compared with others.
        latency_ms: Of a whole sequence on this machine's CPU, likewise.
        accuracy_drop: Accuracy lost, or the share of changed answers, as a fraction, likewise.
    """

    scheme: QuantizationScheme
    outcome: Literal["chosen", "passed over", "refused"]
    reason: str
    recurrent: RecurrentLowering | None = None
    per_turn: int = 1
    size_bytes: int | None = None
    latency_ms: float | None = None
    accuracy_drop: float | None = None

    @property
    def name(self) -> str:
        """What tables and notes call it."""
        turns = f", {self.per_turn} steps a turn" if self.per_turn > 1 else ""
        return str(self.scheme) if self.recurrent is None else f"{self.scheme} ({self.recurrent}{turns})"


class Variant(_Part):
    """One side of the before/after table. Bytes are those of a .tflite file; `gzip_bytes` is what a download costs.

    `vela_flash_bytes` is Vela's estimate of the flash that the file takes on an Ethos-U: None for float files, which
    Vela does not compile, and for other devices.
    """

    scheme: QuantizationScheme
    parameters: int
    macs: int | None
    size_bytes: int
    gzip_bytes: int
    vela_flash_bytes: int | None = None
    scores: Scores | None = None
    measurement: Measurement | None = None


class Report(_Part):
    """What a conversion did, with all that is needed to do it again.

    Attributes:
        command: The command line that repeats it.
        before: The model as a float32 .tflite file.
        after: The finished file.
        data: The samples that calibrated and verified it.
        training: The samples that the passes trained on.
        passes: What each pass of the recipe planned, reached and how it trained.
        kernels: What the file holds of each kernel, if there were passes.
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
    training: TrainingData | None = None
    passes: tuple[PassResult, ...] = ()
    kernels: tuple[KernelInFile, ...] = ()
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


class FileSize(_Part):
    """Bytes of a .keras file, and of it after gzip at level 9."""

    size_bytes: int
    gzip_bytes: int


class CompressReport(_Part):
    """What passes made of a Keras model, with all that is needed to do it again.

    Attributes:
        command: The command line that repeats it.
        profile: The device whose kernels low_rank and fuse went by, or None.
        data: The samples that verified it, and those that showed low_rank the activations.
        training: The samples that the passes trained on.
        passes: What each pass planned, reached and how it trained.
        verified: The compressed model compared with the original.
        before: The original, saved without its optimizer.
        after: The compressed model, likewise.
        notes: What was skipped, assumed or left alone, and why, in plain words.
        failed: Thresholds that failed; the exit code is 1 if there are any.
        weights_sha256: Hash of the compressed weights, the same for the same inputs and seed (a .keras file is not: it
            holds the time).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_name: Literal["edgecompress.compress/1"] = Field("edgecompress.compress/1", alias="schema")
    command: tuple[str, ...]
    versions: dict[str, str]
    machine: str
    profile: str | None = None
    source: SourceModel
    recipe: Recipe
    data: DataUsed | None
    training: TrainingData | None
    passes: tuple[PassResult, ...]
    verified: Verified
    before: FileSize
    after: FileSize
    notes: tuple[str, ...]
    failed: tuple[str, ...]
    weights_sha256: str
    output: str

    def to_json(self) -> str:
        """Returns the report as indented JSON."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"
