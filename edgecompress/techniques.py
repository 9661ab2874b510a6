"""The compression techniques as data: each class's fields are the whole configuration of one pass.

`edgecompress.recipes` puts them in order; `edgecompress.passes` does what they say.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# Strict: TOML has types of its own, and "8" or true in place of 8 is a mistake.
_Count = Annotated[int, Field(gt=0, strict=True)]
_Positive = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, le=1, strict=True)]
_UpToHalf = Annotated[float, Field(ge=0, le=0.5, strict=True)]
_Sparsity = Annotated[float, Field(ge=0, lt=1, strict=True)]
_Clusters = Annotated[int, Field(ge=0, strict=True)]
_Switch = Annotated[bool, Field(strict=True)]
_Fraction = Annotated[float, Field(gt=0, lt=1, strict=True)]
_UpToWhole = Annotated[float, Field(gt=0, le=1, strict=True)]
_Budget = _Fraction | _Count
_RankOrShare = Annotated[int, Field(ge=0, strict=True)] | _Fraction
RANK_CHOICES = ("rank", "ratio", "energy", "params_budget", "flops_budget", "evbmf")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _check_patterns(patterns: Any) -> Any:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression ({error})") from None
    return patterns


class Training(_Part):
    """How a compressed model is trained again. Passes that train share it."""

    epochs: _Count = Field(5, description="Rounds over the training samples, for each pass that trains.")
    batch_size: _Count = Field(32, description="Samples a step.")
    learning_rate: _Positive | None = Field(
        None, description="Absent: that of the optimizer the model was saved with, else 0.001."
    )
    validation: _UpToHalf = Field(0.1, description="Share of the training samples that is kept to judge epochs by.")
    early_stopping: _Count | None = Field(
        None, description="Stop after this many epochs without a better validation loss; absent: never."
    )

    @model_validator(mode="after")
    def _can_be_judged(self) -> Training:
        if self.early_stopping is not None and not self.validation:
            raise ValueError("early_stopping judges epochs by validation samples, and validation is 0")
        return self


class Trains(_Part):
    """A pass that trains the model again, if there are samples to train on."""

    kind: str
    epochs: _Count | None = Field(None, description="Epochs of this pass; absent: those of [training].")
    distill: _Share = Field(
        0.0,
        description="Weight, in the loss, of answering as the model before the first pass did (Hinton et al. 2015); at "
        "1 labels only measure.",
    )
    temperature: _Positive = Field(2.0, description="What distill divides the logits of classes by.")

    @model_validator(mode="after")
    def _softens_something(self) -> Self:
        if not self.distill and self.temperature != type(self).model_fields["temperature"].default:
            raise ValueError("temperature softens the answers that distill compares: give distill, too")
        return self


class Prune(Trains):
    """Sets weights to zero (Zhu & Gupta 2017, arXiv:1710.01878), by TFMOT's `prune_low_magnitude`."""

    kind: Literal["prune"] = "prune"
    sparsity: _Sparsity = Field(0.5, description="Share of zeros to reach in each pruned kernel.")
    layers: dict[str, _Sparsity] = Field(
        {}, description="Sparsity by regular expression over layer names, the first that matches; 0 leaves alone."
    )
    schedule: Literal["polynomial", "constant"] = Field("polynomial", description="How sparsity grows while training.")
    initial_sparsity: _Sparsity = Field(0.0, description="Where the polynomial schedule begins.")
    begin: _Share = Field(0.0, description="When pruning begins, as a share of the training steps.")
    end: _Share = Field(0.6, description="When the polynomial schedule has reached its goal, likewise.")
    pattern: str | None = Field(None, description="N:M, e.g. '2:4': at least N zeros in each M weights.")
    block: tuple[_Count, _Count] = Field((1, 1), description="Zeros come in blocks of this many rows and columns.")
    block_pooling: Literal["AVG", "MAX"] = Field("AVG", description="What a block's weights are judged by.")
    criterion: Literal["magnitude", "sensitivity"] = Field(
        "magnitude", description="What is pruned first: small weights, or small |weight x gradient| on training data."
    )
    l1: _Positive | None = Field(None, description="Weight of an L1 penalty on kernels while training, e.g. 1e-5.")

    _patterns = field_validator("layers")(_check_patterns)

    @field_validator("pattern")
    @classmethod
    def _is_n_of_m(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            parts = re.fullmatch(r"(\d+):(\d+)", pattern)
            if parts is None or not 0 < int(parts[1]) < int(parts[2]):
                raise ValueError("must be N:M with 0 < N < M, e.g. '2:4'")
        return pattern

    @model_validator(mode="after")
    def _is_one_kind(self) -> Prune:
        if self.pattern is not None and self.block != (1, 1):
            raise ValueError("pattern and block are different kinds of structure: give one of them")
        if self.schedule == "polynomial" and self.begin > self.end:
            raise ValueError("begin is later than end")
        if self.initial_sparsity > self.sparsity:
            raise ValueError("initial_sparsity is larger than sparsity")
        return self


class Cluster(Trains):
    """Lets the weights of a kernel share few values (Han et al. 2016, arXiv:1510.00149), by TFMOT."""

    kind: Literal["cluster"] = "cluster"
    clusters: Annotated[int, Field(ge=2, strict=True)] = Field(16, description="Distinct values of each kernel.")
    layers: dict[str, _Clusters] = Field(
        {}, description="Clusters by regular expression over layer names, the first that matches; 0 leaves alone."
    )
    centroids: Literal["kmeans++", "linear", "density", "random"] = Field(
        "kmeans++", description="How the shared values are found at first."
    )
    per_channel: _Switch = Field(False, description="Cluster each output channel of a convolution on its own.")
    preserve_sparsity: _Switch = Field(True, description="Weights that are zero stay zero.")

    _patterns = field_validator("layers")(_check_patterns)

    @field_validator("layers")
    @classmethod
    def _are_shared(cls, layers: dict[str, int]) -> dict[str, int]:
        if 1 in layers.values():
            raise ValueError("1 cluster makes all weights of a kernel alike: give 2 or more, or 0 to leave it alone")
        return layers


class Qat(Trains):
    """Trains with quantization simulated (Jacob et al. 2018, arXiv:1712.05877), by TFMOT's wrappers and quantizers.

    What pruning and clustering did before is kept: zeros stay zero, shared values stay shared.
    """

    kind: Literal["qat"] = "qat"
    exclude: tuple[str, ...] = Field((), description="Layers to leave in float: regular expressions over their names.")
    preserve_sparsity: _Switch = Field(True, description="Weights that are zero stay zero.")
    preserve_clusters: _Switch = Field(True, description="Kernels with few distinct values keep as few.")

    _patterns = field_validator("exclude")(_check_patterns)


class LowRank(Trains):
    """Replaces kernels by products of smaller ones, where that saves both weights and arithmetic.

    Exactly one of the ways of choosing ranks is given; without any, `energy` is 0.95.
    """

    kind: Literal["low_rank"] = "low_rank"
    rank: _Count | None = Field(None, description="This rank in each layer whose matrices are larger.")
    ratio: _Fraction | None = Field(None, description="Share of its weights that each layer may keep.")
    energy: _UpToWhole | None = Field(None, description="Share of the squared singular values that each matrix keeps.")
    params_budget: _Budget | None = Field(
        None, description="Weights that the model may keep, as a share (0.5) or a number (200000), shared over layers."
    )
    flops_budget: _Budget | None = Field(
        None, description="FLOPs (2 x MACs) that the model may keep, as a share or a number, shared over the layers."
    )
    evbmf: _Switch = Field(False, description="Rank by variational Bayesian matrix factorization: no setting at all.")
    layers: dict[str, _RankOrShare] = Field(
        {},
        description="By regular expression over layer names, the first that matches: a rank (16), a share of the "
        "layer's weights (0.25), or 0, which leaves the layer alone.",
    )
    activation_aware: _Switch = Field(
        True, description="Keep what matters for the layer's outputs on the samples; false: for its weights."
    )
    conv: Literal["auto", "spatial", "channel", "tucker", "cp"] = Field(
        "auto", description="How convolutions are factorized; auto: as does least harm at the cost."
    )
    gates: Literal["joint", "separate"] = Field(
        "joint", description="Whether the gates of a GRU or LSTM share factors or have their own."
    )
    multiple: _Count | None = Field(None, description="Ranks are multiples of this; absent: what the profile prefers.")

    _patterns = field_validator("layers")(_check_patterns)

    @model_validator(mode="after")
    def _has_one_choice(self) -> LowRank:
        given = [name for name in RANK_CHOICES if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are different ways of choosing ranks: give one of them")
        if self.conv == "cp" and self.choice[0] in ("energy", "evbmf"):
            raise ValueError("conv 'cp' has no singular values to choose by: give a rank, a ratio or a budget")
        return self

    @property
    def choice(self) -> tuple[str, float]:
        """The way of choosing ranks, and its value."""
        return next(((name, getattr(self, name)) for name in RANK_CHOICES if getattr(self, name)), ("energy", 0.95))


class Term(_Part):
    """One way in which a student is compared with its teacher; see `edgecompress.distill` for each."""

    kind: Literal[
        "soft_labels", "logits", "hard_labels", "features", "hidden_states", "attention_transfer",
        "attention_matrices", "similarity_preserving",
    ] = Field(description="What is compared.")  # fmt: skip
    weight: _Positive = Field(1.0, description="What it is multiplied by.")
    teacher_layer: str | None = Field(None, description="The teacher's layer; 'outer/inner' inside a nested model.")
    student_layer: str | None = Field(None, description="The student's layer.")
    projector: Literal["linear"] | None = Field(
        None, description="'linear' learns a map of the student's channels to the teacher's (features, hidden_states)."
    )

    @model_validator(mode="after")
    def _names_its_layers(self) -> Self:
        layers = (self.teacher_layer, self.student_layer)
        if self.kind in ("soft_labels", "logits", "hard_labels"):
            if layers != (None, None):
                raise ValueError(f"{self.kind} compares outputs: leave teacher_layer and student_layer out")
        elif None in layers:
            raise ValueError(f"{self.kind} compares layers: give teacher_layer and student_layer")
        if self.projector is not None and self.kind not in ("features", "hidden_states"):
            raise ValueError(f"{self.kind} takes no projector")
        return self


class Distill(_Part):
    """Trains a smaller model by the answers of a larger one (Hinton et al. 2015, arXiv:1503.02531).

    With width, depth or rank the model is the teacher, and a student that is made of it takes its place. With `teacher`
    the model, or what width, depth and rank make of it, is the student of those files.
    """

    kind: Literal["distill"] = "distill"
    teacher: str | tuple[str, ...] = Field(
        (), description="Files that teach: .keras, .h5, .tflite, SavedModel folders; absent: the model itself."
    )
    width: _UpToWhole | None = Field(None, description="Share of the channels and units that the student has.")
    depth: _UpToWhole | None = Field(None, description="Share of repeated blocks that the student has.")
    rank: _Fraction | _Count | None = Field(None, description="Rank of the student's Dense, GRU and LSTM kernels.")
    alpha: _Share = Field(0.7, description="Weight of the teacher in the loss; at 1 no labels are needed.")
    temperature: _Positive = Field(4.0, description="What logits are divided by before they are compared.")
    losses: tuple[Term, ...] = Field(
        (), description="What is compared; absent: soft labels for classes, squared errors for values."
    )
    cache: _Switch = Field(
        True, description="Keep the teacher's answers on disk while training, so that it runs once over the samples."
    )
    epochs: _Count | None = Field(None, description="Epochs of this pass; absent: those of [training].")

    @model_validator(mode="after")
    def _has_a_student(self) -> Self:
        if not self.teachers and not self.makes_student:
            raise ValueError("a model cannot teach itself: give width, depth or rank of its student, or a teacher")
        return self

    @property
    def teachers(self) -> tuple[str, ...]:
        """The files that teach, empty where the model does."""
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher

    @property
    def makes_student(self) -> bool:
        """Whether the student is a new model, made after the one that is given."""
        return (self.width, self.depth, self.rank) != (None, None, None)


class Fuse(_Part):
    """Merges layers that can be one: the same answers with fewer weights or less arithmetic."""

    kind: Literal["fuse"] = "fuse"
    batch_norm: _Switch = Field(True, description="Fold batch normalization into the layer before.")
    linear: _Switch = Field(True, description="Merge linear layers that follow one another where that saves weights.")
    embedding: Literal["auto", "size", "speed", "off"] = Field(
        "auto",
        description="Multiply the input kernel of a GRU or LSTM into the embedding before: if that is smaller (size), "
        "in any case (speed), as the profile prefers (auto), or never (off).",
    )


Technique = Annotated[Distill | LowRank | Fuse | Prune | Cluster | Qat, Field(discriminator="kind")]


def setting_for(name: str, layers: dict[str, Any], otherwise: Any) -> Any:
    """Returns what the first matching regular expression says about a layer, or `otherwise`.

    A pattern matches if it is found at the start of the name: `conv` means every layer whose name begins so.
    """
    return next((value for pattern, value in layers.items() if re.match(pattern, name)), otherwise)
