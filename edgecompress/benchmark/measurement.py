"""What a benchmark found out: a figure together with the proof of where and how it came about."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgecompress.profiles import Target

_Count = Annotated[int, Field(ge=0)]
_Time = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class MeasurementKind(StrEnum):
    """How a figure came about. Figures of different kinds are never compared or mixed."""

    MEASURED = "measured"  # run on the device that is named
    SOFTWARE_ADAPTER = "software-adapter"  # run by a CPU that stands in for a GPU
    EMULATED = "emulated"  # run on an emulated processor
    ESTIMATED = "estimated"  # computed from a model of the device
    STATIC = "static"  # derived from rules, without running


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Latency(_Part):
    """Statistics of the timed runs, in milliseconds; percentiles interpolate linearly.

    `first_ms` is the very first run, before the warm-ups: what a user waits for once. The others leave it out.
    """

    first_ms: _Time
    min_ms: _Time
    median_ms: _Time
    mean_ms: _Time
    p90_ms: _Time
    p95_ms: _Time
    max_ms: _Time
    std_ms: _Time = Field(description="Standard deviation of the runs as a whole population.")


class RanOn(_Part):
    """Where the runs took place: what really executed, not what was asked for."""

    runtime: str = Field(description="Name of the runtime, e.g. 'litert'.")
    runtime_version: str | None = None
    api: str | None = Field(None, description="Which of the runtime's interfaces, if it has several.")
    delegate: str | None = Field(None, description="The delegate that executed, or that none did.")
    processor: str = Field(description="Model of the processor that executed.")
    machine: str | None = Field(None, description="Instruction set as the system names it, e.g. 'aarch64'.")


class OpTiming(_Part):
    """Time of one operator inside a run.

    The time of a control operator such as WHILE contains that of the operators in its subgraphs, and what the
    profiler itself takes there.
    """

    index: _Count = Field(description="Position in the order of execution.")
    subgraph: _Count = Field(description="0 is the model itself; others are bodies of loops and branches.")
    name: str = Field(description="Kernel of the delegate, e.g. 'Convolution (NHWC, QC8) IGEMM', or operator.")
    delegated: bool
    mean_us: _Time = Field(description="Mean time in one run of the model, in microseconds.")
    share: Annotated[float, Field(ge=0)] = Field(description="Share of the time of its subgraph, from 0 to 1.")


class Measurement(_Part):
    """One target's figures for one file, or the reason why there are none."""

    target: Target
    kind: MeasurementKind
    ran_on: RanOn | None = None
    threads: _Count | None = None
    steps_per_run: _Count | None = Field(
        None, description="Steps of a sequence in one run: 1 if the file is that of single steps, otherwise absent."
    )
    warmups: _Count = 0
    runs: _Count = 0
    latency: Latency | None = None
    load_ms: _Time | None = Field(None, description="From opening the file to being ready to run.")
    peak_memory_bytes: int | None = Field(
        None,
        description="Growth of the process's highest resident size by loading and running; absent if other models "
        "shared the process.",
    )
    delegated_ops: _Count | None = Field(None, description="Operators of the main subgraph that a delegate took.")
    total_ops: _Count | None = Field(None, description="Operators of the main subgraph.")
    partitions: _Count | None = Field(None, description="Parts into which the delegate cut the main subgraph.")
    per_op: tuple[OpTiming, ...] | None = None
    per_op_unavailable_because: str | None = None
    unavailable_because: str | None = None

    @model_validator(mode="after")
    def _figure_or_reason(self) -> Measurement:
        if (self.latency is None) == (self.unavailable_because is None):
            raise ValueError("a measurement has either a latency or the reason why it has none")
        if self.latency is not None and (self.ran_on is None or self.runs == 0) and self.kind in _RUN_KINDS:
            raise ValueError("a latency that was run says where it ran and how often")
        return self


_RUN_KINDS = (MeasurementKind.MEASURED, MeasurementKind.SOFTWARE_ADAPTER, MeasurementKind.EMULATED)
