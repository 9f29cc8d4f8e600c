"""How the README says where and when a figure was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def made(found: Mapping[str, Any]) -> str:
    """Return the commit, the time and the machine of a benchmark's document; machines differ from figure to figure."""
    return f"Commit {found['commit']}, {found['time']}, {found['machine']}."
