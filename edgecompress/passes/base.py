"""What every pass is given and gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from edgecompress.data import Dataset, InputSpec
from edgecompress.techniques import Training, Trains

Progress = Callable[[str, int, int], None]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerPlan(_Value):
    """What a technique will do with a layer, known before any training."""

    layer: str = Field(description="The layer's name; 'outer/inner' inside a nested model.")
    kind: str = Field(description="Name of its class.")
    technique: str = Field(description="The kind of pass, such as 'prune'.")
    applies: bool = Field(description="Whether the technique changes the layer.")
    detail: str = Field(description="What will be done, or why it is left alone.")
    fix: str | None = Field(None, description="How to have it done after all; absent where nothing is wrong.")
    refused: bool = Field(False, description="Whether the run would end with an error because of this layer.")


class LayerProof(_Value):
    """What a pass reached in one kernel, counted in the weights after training."""

    layer: str
    weights: int = Field(description="Number of weights in the kernel.")
    sparsity: float = Field(description="Share of zeros.")
    distinct: int = Field(description="Number of distinct values; the largest over the channels where per channel.")
    wanted: str = Field(description="What was asked for, in words.")


class RankPoint(_Value):
    """What a layer would cost, and keep, at some rank."""

    method: str = Field(
        description="'svd'; of convolutions 'channel', 'spatial', 'tucker', 'cp'; of GRU and LSTM 'joint', 'separate'."
    )
    ranks: tuple[int, ...] = Field(description="One for each matrix: (input, recurrent) kernel, or Tucker's (in, out).")
    energy: float = Field(description="Share of the squared singular values that is kept, of the worst matrix.")
    params: int = Field(description="Number of weights.")
    macs: int | None = Field(description="Multiply-accumulates for one sample; None where not known.")
    weight_error: float = Field(description="Relative error of the weights (Frobenius norm).")
    output_error: float | None = Field(description="Relative error of the outputs on samples; None without samples.")


class LayerRank(_Value):
    """What low-rank decomposition makes of one layer."""

    layer: str
    kind: str = Field(description="Name of its class.")
    shapes: tuple[tuple[int, ...], ...] = Field(description="Of its kernels.")
    full_ranks: tuple[int, ...] = Field(description="The largest rank of each matrix.")
    params: int = Field(description="Number of weights as it is.")
    macs: int | None = Field(description="Multiply-accumulates for one sample as it is; None where not known.")
    chosen: RankPoint | None = Field(description="The rank that was chosen; None where there was no choice to make.")
    accepted: bool = Field(description="Whether the layer is replaced.")
    reason: str = Field(description="What is done, or why the layer is left alone, with its numbers.")
    points: tuple[RankPoint, ...] = Field((), description="Several ranks, the smallest first.")


class Fusion(_Value):
    """Layers that became one."""

    layers: tuple[str, ...] = Field(description="The layers, in the order in which they are called.")
    into: str = Field(description="The name of what stands in their place.")
    how: str = Field(description="'batch_norm', 'linear' or 'embedding'.")
    params_before: int
    params_after: int
    detail: str = Field(description="What was done, with the sizes of the ways there were.")


class EpochLog(_Value):
    """Figures of one epoch, by Keras's names: 'loss', 'val_loss', 'accuracy' and so on."""

    epoch: int
    figures: dict[str, float]


class Trained(_Value):
    """How a training went."""

    samples: int
    validation_samples: int
    epochs: tuple[EpochLog, ...]
    kept_epoch: int = Field(description="The epoch whose weights were kept, from 1; 0: those from before.")
    stopped: str | None = Field(None, description="Why it ended before the last epoch.")
    optimizer: str
    loss: str
    resumed_at: int | None = Field(None, description="The epoch that a resumed run went on with.")
    notes: tuple[str, ...] = Field((), description="What was inferred, or could not be carried over.")


class Distilled(_Value):
    """Who taught whom, and by what."""

    teachers: tuple[str, ...] = Field(description="The files that taught, empty where the model before the pass did.")
    teacher_params: int | None = Field(description="Its number of weights; None where files taught.")
    student_params: int
    compared: str = Field(description="What student and teacher were compared by.")
    alpha: float = Field(description="Weight of the teacher in the loss.")
    kept_answers: bool = Field(description="Whether the teacher was asked once, and its answers kept on disk.")


class PassResult(_Value):
    """What a pass did."""

    kind: str
    plan: tuple[LayerPlan, ...]
    proof: tuple[LayerProof, ...] = ()
    ranks: tuple[LayerRank, ...] = Field((), description="Of low_rank: every layer that has a kernel.")
    fusions: tuple[Fusion, ...] = Field((), description="Of fuse.")
    distilled: Distilled | None = Field(None, description="Of distill.")
    trained: Trained | None = Field(None, description="Absent for a pass that did not train.")
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PassContext:
    """What a pass may use besides its own configuration.

    Attributes:
        training: Epochs, batch size and the like.
        seed: Seed of every random choice.
        data: Training samples with labels, fitted to the model's inputs; None: nothing is trained.
        teacher: The Keras 3 model whose answers are to be kept, as it was before the first pass. None: each pass takes
            the model that it was given.
        calibration: Samples, labelled or not, whose activations passes may look at; None: there are none.
        fixed: The model's inputs with every dimension known, or None.
        multiple: Ranks that are multiples of this suit the device's kernels.
        prefers: What to save where one can have either.
        quantized: Whether the file may have integer kernels, which take their time otherwise than those in float.
        load: Opens a model file that a pass names.
        compile_config: What Keras stored of the model's optimizer, loss and metrics, or None.
        checkpoints: Folder for the checkpoints of this pass, or None: none are written.
        resume: Go on from the checkpoints found there.
        identity: What the pass itself adds to the training, in words or JSON: checkpoints of another are refused.
        say: Called with (step, done, total); text after the first ": " of the step is detail that changes.
    """

    training: Training = field(default_factory=Training)
    seed: int = 0
    data: Dataset | None = None
    teacher: Any = None
    calibration: Dataset | None = None
    fixed: tuple[InputSpec, ...] | None = None
    multiple: int = 8
    prefers: Literal["size", "speed"] = "size"
    quantized: bool = False
    load: Callable[[str], Any] = str
    compile_config: Mapping[str, Any] | None = None
    checkpoints: Path | None = None
    resume: bool = False
    identity: str = ""
    say: Progress = lambda _step, _done, _total: None

    def of_pass(self, spec: Trains, model: Any) -> Self:
        """Returns what the training in a pass is given.

        Args:
            spec: The pass; checkpoints of another are refused.
            model: The Keras 3 model that the pass was given, which teaches if no other does.
        """
        identity = f"{self.identity} {spec.model_dump_json()}"
        return replace(self, identity=identity, teacher=model if self.teacher is None else self.teacher)
