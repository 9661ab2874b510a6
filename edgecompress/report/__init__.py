"""What a conversion or compression did, measured and left alone: as data, as JSON, and in the terminal."""

from edgecompress.report.model import (
    Attempt,
    CompressReport,
    DataUsed,
    FileSize,
    Report,
    SourceModel,
    TrainingData,
    Variant,
)

__all__ = ["Attempt", "CompressReport", "DataUsed", "FileSize", "Report", "SourceModel", "TrainingData", "Variant"]
