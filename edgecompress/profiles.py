"""Device profiles: what a device is, runs and allows. Facts are data (TOML); this module only reads them."""

from __future__ import annotations

import os
import tomllib
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgecompress.errors import ProfileError, did_you_mean
from edgecompress.schemas import explain_validation_error
from edgecompress.schemes import Granularity, IoType, QuantizationScheme

_BUNDLED = "edgecompress.device_profiles"
# Strict: TOML has types of its own, and "4" or true in place of 4 is a mistake.
_PositiveInt = Annotated[int, Field(gt=0, strict=True)]
_PositiveFloat = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]


class Runtime(StrEnum):
    """The interpreter that runs the file on the device."""

    LITERT = "litert"
    TFLITE_RUNTIME = "tflite-runtime"
    TFLITE_MICRO = "tflite-micro"


class Target(StrEnum):
    """A processor of the device that can run the whole file or parts of it."""

    CPU = "cpu"
    GPU = "gpu"
    EDGE_TPU = "edge_tpu"
    NPU = "npu"


class RecurrentLowering(StrEnum):
    """How a GRU, LSTM or SimpleRNN is written into the file."""

    LOOP = "loop"
    STEP = "step"
    UNROLLED = "unrolled"
    FUSED = "fused"


class RuleSet(StrEnum):
    """A set of rules that the finished file is checked against."""

    LITERT_CPU = "litert-cpu"
    LITERT_GPU = "litert-gpu"
    EDGE_TPU = "edge-tpu"
    TFLITE_MICRO = "tflite-micro"
    ETHOS_U = "ethos-u"


class PackageFormat(StrEnum):
    """A form in which the file is handed to an app developer."""

    ANDROID = "android"
    MICRO = "micro"
    PYTHON = "python"
    LINUX_C = "linux-c"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Chip(_Part):
    """What the device is made of."""

    name: str = Field(description="The chip's name, or the family's.")
    isa: str = Field(description="Instruction set of the application core, e.g. 'arm64-v8a', 'armv7e-m', 'x86-64'.")
    cpu: str = Field(description="The cores, in words.")
    cores: _PositiveInt | None = Field(None, description="Number of application cores; absent if it varies.")
    clock_mhz: _PositiveInt | None = Field(None, description="Highest clock of the fastest core, in MHz.")
    ram_bytes: _PositiveInt | None = Field(None, description="Working memory, in bytes.")
    flash_bytes: _PositiveInt | None = Field(None, description="Program memory, in bytes (microcontrollers).")
    accelerator: str | None = Field(None, description="GPU, NPU or TPU, in words.")


class RuntimeSpec(_Part):
    """What runs the file, and where."""

    name: Runtime = Field(description="The interpreter on the device.")
    min_version: str | None = Field(None, description="Oldest version of it that must be able to run the file.")
    threads: _PositiveInt = Field(1, description="Threads for the CPU kernels, also used by `benchmark`.")
    targets: tuple[Target, ...] = Field(min_length=1, description="Processors, in order of preference.")

    @property
    def threads_here(self) -> int:
        """Threads for a run on this machine: as many as on the device, if it has so many cores."""
        return min(self.threads, os.cpu_count() or 1)


class QuantizationSpec(_Part):
    """What the device takes, in order of preference."""

    schemes: tuple[QuantizationScheme, ...] = Field(min_length=1, description="Accepted schemes, the best first.")
    input_type: IoType = Field(IoType.FLOAT32, description="Type of the inputs of an int8 or int16x8 file.")
    output_type: IoType = Field(IoType.FLOAT32, description="Type of the outputs of an int8 or int16x8 file.")
    dense: Granularity = Field(Granularity.PER_CHANNEL, description="Granularity of Dense kernels.")
    recurrent: tuple[RecurrentLowering, ...] = Field((), description="Preferred forms of recurrent layers.")

    @model_validator(mode="after")
    def _no_repeats(self) -> QuantizationSpec:
        if len(set(self.schemes)) != len(self.schemes):
            raise ValueError("a scheme is listed twice")
        return self


class Kernels(_Part):
    """What the device's kernels like, which passes go by where they have a choice."""

    rank_multiple: _PositiveInt = Field(
        8, description="Ranks of low-rank layers are multiples of this: what matrix kernels work on at a time."
    )
    prefers: Literal["size", "speed"] = Field(
        "size", description="What `fuse` saves where it can have either: bytes of the file, or arithmetic."
    )


class CheckSpec(_Part):
    """Which rules the finished file must keep."""

    rules: tuple[RuleSet, ...] = Field(description="Rule sets, one for each target.")
    vela_accelerator: str | None = Field(
        None,
        pattern=r"^ethos-u(55|65|85)-\d+$",
        description="Vela's name of the Ethos-U, e.g. 'ethos-u55-128': the file's size in flash is worked out for it.",
    )


class Limits(_Part):
    """What the finished file may cost on the device; an absent limit is not checked."""

    file_bytes: _PositiveInt | None = Field(None, description="Largest file, in bytes.")
    arena_bytes: _PositiveInt | None = Field(None, description="Largest tensor arena, in bytes (microcontrollers).")
    latency_ms: _PositiveFloat | None = Field(None, description="Longest run, in milliseconds.")


class PackageSpec(_Part):
    """How the file reaches an app."""

    formats: tuple[PackageFormat, ...] = Field((), description="Package formats, the preferred one first.")


class Source(_Part):
    """Where a fact in the profile comes from."""

    fact: str = Field(description="What it says, in a few words.")
    url: str = Field(description="Where it says so.", pattern=r"^https?://")


class Profile(_Part):
    """A device, or a class of devices, as a deployment target."""

    schema_version: Literal[1] = Field(1, description="Version of this format.")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="Short name, the same as the file's.")
    title: str = Field(description="Name for people.")
    description: str = Field("", description="What the profile covers, and what it leaves out.")
    chip: Chip
    runtime: RuntimeSpec
    quantization: QuantizationSpec
    kernels: Kernels = Kernels()
    check: CheckSpec
    limits: Limits = Limits()
    package: PackageSpec = PackageSpec()
    sources: tuple[Source, ...] = Field((), description="Where the facts come from.")

    @property
    def integer_only(self) -> bool:
        """Whether the device takes nothing but fully quantized files, which cannot be made without data."""
        return all(scheme.needs_calibration for scheme in self.quantization.schemes)


def list_profiles() -> tuple[str, ...]:
    """Returns the names of the bundled profiles, sorted."""
    folder = resources.files(_BUNDLED)
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def load_profile(name_or_path: str | Path) -> Profile:
    """Returns a bundled profile by name, or any profile by the path of its TOML file.

    Raises:
        ProfileError: The name is unknown, or the file is not a valid profile.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text or "\\" in text:
        return _parse(_read(Path(text)), where=text)
    if text not in list_profiles():
        raise ProfileError(
            f"no profile is called {text!r}",
            fix=f"{did_you_mean(text, list_profiles())}; or give the path of a .toml file",
        )
    return _parse(resources.files(_BUNDLED).joinpath(f"{text}.toml").read_text("utf-8"), where=f"{text}.toml")


def find_profile(profile: str | Path | Profile | None) -> Profile | None:
    """Returns the profile that an optional argument means: `load_profile` of a name or path; others as they are."""
    return profile if profile is None or isinstance(profile, Profile) else load_profile(profile)


def profile_schema() -> dict[str, Any]:
    """Returns the JSON schema of a profile, for editors that check and complete TOML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Profile.model_json_schema()}


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")  # some editors put a byte order mark first
    except FileNotFoundError:
        advice = did_you_mean(path.stem, list_profiles())
        raise ProfileError("no such file", where=path, fix=f"check the path, or name a profile; {advice}") from None
    except IsADirectoryError:
        raise ProfileError("is a folder", where=path, fix="give the path of a .toml file in it") from None
    except UnicodeDecodeError:
        raise ProfileError("is not a text file", where=path, fix="give a .toml file, in UTF-8") from None
    except OSError as error:
        raise ProfileError(f"cannot be read: {error.strerror}", where=path, fix="check the path") from None


def _parse(text: str, *, where: str) -> Profile:
    try:
        return Profile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"not valid TOML: {error}", where=where, fix="correct that line") from None
    except ValidationError as error:
        raise ProfileError(explain_validation_error(error, Profile), where=where) from None
