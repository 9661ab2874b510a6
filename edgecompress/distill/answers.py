"""What a model's answers are: probabilities, logits or values; and probabilities softened by a temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# The least probabilities that logarithms are taken of. A softmax tells 1e-30 from 0; a sigmoid in 32 bits is 1 from
# logits of 17 on, which is 1e-7 away from 1, and 16 bits know no smaller number.
_LEAST, _LEAST_OF_SIGMOID = 1e-30, 1e-7
_NARROW = ("float16", "bfloat16")


@dataclass(frozen=True)
class AnswerKind:
    """What an output holds.

    Attributes:
        probabilities: Whether it went through a softmax or sigmoid; else it holds logits.
        binary: Whether each value is about one class that applies or not (sigmoid), rather than all of the last axis
            about classes of which one applies (softmax); None: not known.
    """

    probabilities: bool = False
    binary: bool | None = False

    @property
    def title(self) -> str:
        return "probabilities" if self.probabilities else "logits"


def as_stated(from_logits: bool | None, seen: AnswerKind | None) -> AnswerKind | None:
    """Returns what an output holds if somebody says that it holds logits or not, or None for that."""
    if from_logits is None or (seen is not None and seen.probabilities != from_logits):
        return seen
    return AnswerKind(probabilities=not from_logits, binary=None)


def log_probabilities(answers: Any, kind: AnswerKind, temperature: Any = 1.0) -> Any:
    """Returns the logarithms of softened probabilities, the classes in the last axis.

    softmax(z / T) is the same whether z are the logits or log(softmax(logits)), which differ by a constant: answers of
    both kinds can teach, and be taught by, each other.

    Args:
        answers: A tensor of shape (batch, …, classes), or (batch, …, labels) of binary answers.
        kind: What the answers are.
        temperature: What logits are divided by, 1 or more as a rule.

    Returns:
        A float32 tensor of shape (batch, …, classes), or (batch, …, labels, 2).
    """
    from keras import ops

    return ops.log_softmax(logits_of(answers, kind) / temperature, axis=-1)


def logits_of(answers: Any, kind: AnswerKind) -> Any:
    """Returns logits, up to a constant that is the same for all classes, of shape (batch, …, classes) as above."""
    from keras import ops

    logits = as_logits(answers, kind)
    return ops.stack([ops.zeros_like(logits), logits], axis=-1) if kind.binary else logits


def as_logits(answers: Any, kind: AnswerKind) -> Any:
    """Returns logits in the shape of the answers, float32; those of a softmax are known up to a constant."""
    import keras
    from keras import ops

    narrow = keras.backend.standardize_dtype(answers.dtype) in _NARROW
    answers = ops.cast(answers, "float32")
    if not kind.probabilities:
        return answers
    least = _LEAST_OF_SIGMOID if kind.binary or narrow else _LEAST
    logits = ops.log(ops.maximum(answers, least))
    return logits - ops.log(ops.maximum(1.0 - answers, least)) if kind.binary else logits
