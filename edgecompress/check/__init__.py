"""Checks of a finished file against a device profile. No TensorFlow here."""

from edgecompress.check.limits import check_limits
from edgecompress.check.violation import Violation

__all__ = ["Violation", "check_limits"]
