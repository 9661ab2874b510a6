"""Keeps a benchmark's figures with what they depend on."""

from __future__ import annotations

import json
from pathlib import Path

from edgecompress.machine import describe_machine
from edgecompress.versions import decisive_versions


def save_results(path: Path | None, rows: object) -> None:
    """Writes `rows` with the machine and the versions, if a path was given."""
    if path is not None:
        facts = {"machine": describe_machine(), "versions": decisive_versions(), "rows": rows}
        path.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
