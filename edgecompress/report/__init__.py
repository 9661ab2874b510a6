"""What a conversion did, measured and left alone: as data, as JSON, and in the terminal."""

from edgecompress.report.model import Attempt, DataUsed, Report, SourceModel, Variant

__all__ = ["Attempt", "DataUsed", "Report", "SourceModel", "Variant"]
