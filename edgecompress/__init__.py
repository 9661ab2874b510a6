"""EdgeCompress: a Keras model goes in, a verified file for a named device comes out.

    import edgecompress

    report = edgecompress.convert("model.keras", "pixel", data="samples.npz")
    print(report.after.size_bytes, report.verified.accuracy_drop)

    recipe = edgecompress.Recipe(passes=(edgecompress.Prune(sparsity=0.8),))
    edgecompress.compress("model.keras", "pruned.keras", recipe=recipe, train="train.npz")

Every name below is imported when it is first used: importing this package imports neither TensorFlow nor NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgecompress.artifacts import Artifact, read_artifact
    from edgecompress.benchmark.cpu import benchmark_cpu
    from edgecompress.benchmark.measurement import Measurement
    from edgecompress.benchmark.streaming import StreamRunner
    from edgecompress.comparison import Comparison, compare
    from edgecompress.data import Dataset, InputSpec, load_data
    from edgecompress.distill import Distiller, make_student
    from edgecompress.doctor import diagnose
    from edgecompress.errors import EdgeCompressError
    from edgecompress.inspection import ModelSummary, inspect
    from edgecompress.layers import FactorizedDense, LowRankDense, LowRankGRU, LowRankLSTM
    from edgecompress.loaded import LoadedModel
    from edgecompress.models import load_model, save_model
    from edgecompress.pipeline import compress, convert
    from edgecompress.planning import Plan, plan
    from edgecompress.profiles import Profile, RecurrentLowering, list_profiles, load_profile
    from edgecompress.ranking import RankReport, ranks
    from edgecompress.recipes import Recipe, load_recipe
    from edgecompress.report.model import CompressReport, Report
    from edgecompress.schemes import Algorithm, Granularity, IoType, Observer, QuantizationScheme
    from edgecompress.techniques import Cluster, Distill, Fuse, LowRank, Prune, Qat, Training
    from edgecompress.verify.evaluation import Evaluation, evaluate

_HOMES = {
    "Algorithm": "schemes",
    "Artifact": "artifacts",
    "Cluster": "techniques",
    "Comparison": "comparison",
    "CompressReport": "report.model",
    "Dataset": "data",
    "Distill": "techniques",
    "Distiller": "distill",
    "EdgeCompressError": "errors",
    "Evaluation": "verify.evaluation",
    "FactorizedDense": "layers",
    "Fuse": "techniques",
    "Granularity": "schemes",
    "InputSpec": "data",
    "IoType": "schemes",
    "LoadedModel": "loaded",
    "LowRank": "techniques",
    "LowRankDense": "layers",
    "LowRankGRU": "layers",
    "LowRankLSTM": "layers",
    "Measurement": "benchmark.measurement",
    "ModelSummary": "inspection",
    "Observer": "schemes",
    "Plan": "planning",
    "Profile": "profiles",
    "Prune": "techniques",
    "Qat": "techniques",
    "QuantizationScheme": "schemes",
    "RankReport": "ranking",
    "Recipe": "recipes",
    "RecurrentLowering": "profiles",
    "Report": "report.model",
    "StreamRunner": "benchmark.streaming",
    "Training": "techniques",
    "benchmark_cpu": "benchmark.cpu",
    "compare": "comparison",
    "compress": "pipeline",
    "convert": "pipeline",
    "diagnose": "doctor",
    "evaluate": "verify.evaluation",
    "inspect": "inspection",
    "list_profiles": "profiles",
    "load_data": "data",
    "load_model": "models",
    "load_profile": "profiles",
    "load_recipe": "recipes",
    "make_student": "distill",
    "plan": "planning",
    "ranks": "ranking",
    "read_artifact": "artifacts",
    "save_model": "models",
}

__all__ = [
    "Algorithm",
    "Artifact",
    "Cluster",
    "Comparison",
    "CompressReport",
    "Dataset",
    "Distill",
    "Distiller",
    "EdgeCompressError",
    "Evaluation",
    "FactorizedDense",
    "Fuse",
    "Granularity",
    "InputSpec",
    "IoType",
    "LoadedModel",
    "LowRank",
    "LowRankDense",
    "LowRankGRU",
    "LowRankLSTM",
    "Measurement",
    "ModelSummary",
    "Observer",
    "Plan",
    "Profile",
    "Prune",
    "Qat",
    "QuantizationScheme",
    "RankReport",
    "Recipe",
    "RecurrentLowering",
    "Report",
    "StreamRunner",
    "Training",
    "benchmark_cpu",
    "compare",
    "compress",
    "convert",
    "diagnose",
    "evaluate",
    "inspect",
    "list_profiles",
    "load_data",
    "load_model",
    "load_profile",
    "load_recipe",
    "make_student",
    "plan",
    "ranks",
    "read_artifact",
    "save_model",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
