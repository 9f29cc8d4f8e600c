"""What every figure is stamped with: commit, time, machine."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quicksilver.hardware import detect


def _commit() -> str:
    """Return the commit, with + when files of the package differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, encoding="utf-8", check=True
        )
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "../src") else "")


COMMIT = _commit()
"""As the benchmark begins: what is committed while it runs isn't what it measures."""


def stamp() -> dict[str, Any]:
    """Return the commit, the time and the machine."""
    machine = detect()
    return {
        "commit": COMMIT,
        "time": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{machine.cores} cores of {machine.cpu} ({', '.join(machine.isa)}), {machine.memory_gb:.0f} GB",
    }
