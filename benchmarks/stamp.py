"""What every figure is stamped with: commit, time, machine."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quicksilver.hardware import detect


def stamp() -> dict[str, Any]:
    """Return the commit (with + when files differ from it), the time and the machine."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    changed = "+" if git("status", "--porcelain", "--", "../src") else ""
    machine = detect()
    return {
        "commit": git("rev-parse", "--short", "HEAD") + changed,
        "time": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{machine.cores} cores of {machine.cpu} ({', '.join(machine.isa)}), {machine.memory_gb:.0f} GB",
    }
