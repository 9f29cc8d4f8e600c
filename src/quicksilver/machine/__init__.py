"""What this machine's memory and cores give, measured once and kept in the cache folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from quicksilver.errors import EngineError
from quicksilver.hardware import detect
from quicksilver.nouns.base import Noun, content_hash
from quicksilver.sources.home import home, writable, writing

TIMEOUT_S = 120
KERNELS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""What picks OpenBLAS's kernel by hand: measured is the one that it picks by itself."""


class Measured(Noun):
    """Rates of this machine, over all cores that a process may use."""

    bandwidth_gb_s: float = Field(gt=0, description="read and written bytes of copies far larger than the caches")
    fp32_gflop_s: float = Field(gt=0, description="matrix products by numpy")
    bf16_gflop_s: float | None = Field(None, description="matrix products by OpenVINO; None without it or without bf16")
    when: str = Field(description="ISO 8601, to the second, UTC")
    numpy: str
    openvino: str = ""

    @property
    def age_days(self) -> float:
        """Days since it was measured."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.when)).total_seconds() / 86_400


def kept() -> Measured | None:
    """Return what was measured on this machine before; None if nothing was, or of a machine with other cores or memory."""
    try:
        return Measured.model_validate_json(_file().read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def measure() -> Measured:
    """Measure this machine, in processes of their own, and keep the figures. Takes a few seconds; what else runs takes from them.

    Raises EngineError if numpy's part fails; OpenVINO's is left out where that isn't installed or knows no bf16.
    """
    core = _run("quicksilver.machine.rates")
    if core is None:
        raise EngineError("This machine's memory and cores could not be measured: the process that measures failed.")
    wide = _run("quicksilver.engines.openvino.gemm") or {}
    found = Measured(**core, **wide, when=datetime.now(UTC).isoformat(timespec="seconds"))
    file = _file()
    with writing(writable(file.parent)):
        partial = file.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(found.model_dump_json(), encoding="utf-8")
        partial.replace(file)
    return found


def _file() -> Path:
    return home() / "machines" / f"{content_hash(detect().model_dump(mode='json'))}.json"


def _run(module: str) -> dict[str, object] | None:
    """Run a module that prints its figures as its last line; None if it can't."""
    environment = {name: value for name, value in os.environ.items() if name not in KERNELS}
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            env=environment,
            timeout=TIMEOUT_S,
            check=True,
        )
        figures: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError):
        return None
    return figures
