"""Distillation: a teacher's answers train a student, a smaller Keras 3 model.

from edgecompress.distill import Distiller, make_student

distiller = Distiller(student=make_student(teacher, width=0.5), teacher=teacher, alpha=0.7, temperature=4.0)
distiller.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
distiller.fit(x, y, epochs=10)
"""

from edgecompress.distill.cache import AnswerCache
from edgecompress.distill.distiller import Distiller
from edgecompress.distill.layer_losses import (
    AttentionMatrices,
    AttentionTransfer,
    Features,
    HiddenStates,
    SimilarityPreserving,
)
from edgecompress.distill.losses import DistillationTerm, HardLabels, Logits, SelfDistillation, SoftLabels
from edgecompress.distill.students import make_student

__all__ = [
    "AnswerCache",
    "AttentionMatrices",
    "AttentionTransfer",
    "DistillationTerm",
    "Distiller",
    "Features",
    "HardLabels",
    "HiddenStates",
    "Logits",
    "SelfDistillation",
    "SimilarityPreserving",
    "SoftLabels",
    "make_student",
]
