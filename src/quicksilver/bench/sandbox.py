"""Run Python that a model wrote, with limits of time and memory, in a process that has given up what it can.

What holds: wall-clock and processor time, memory, no file grows, and the whole process group is killed in the end. What holds where Linux
grants it to a process without privileges (`Ran.holds` tells): no file is changed, made or removed anywhere (`files`, Landlock),
no TCP connection (`tcp`, Landlock 4), no network at all (`network`, a namespace of its own). An audit hook refuses the rest
of what an exercise needn't do: a deterrent, and no wall. Not prevented: reading files that this user may read, and a program that sets
out to break out of its process group. Whoever runs hostile code needs a container or a machine of its own.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quicksilver.errors import QuicksilverError

TIMEOUT_S = 10.0
MEMORY_MB = 512
_SCRIPT = Path(__file__).with_name("confined.py")
_MOST_TOLD = 1 << 16


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a program."""

    outcome: Literal["passed", "failed", "timeout"]
    said: str = ""
    """What stopped it, on one line."""
    holds: tuple[str, ...] = ()
    """What the kernel granted: `limits`, `network`, `files`, `tcp`."""


def run(program: str, *, timeout_s: float = TIMEOUT_S, memory_mb: int = MEMORY_MB) -> Ran:
    """Run a program to its end, and say whether it got there. Raises QuicksilverError if it can't be started at all."""
    word = secrets.token_hex(16)
    job = {"program": program, "cpu_s": math.ceil(timeout_s), "memory_bytes": memory_mb << 20, "word": word}
    mine, theirs = os.pipe()
    try:
        with tempfile.TemporaryDirectory(prefix="quicksilver-sandbox-") as folder:
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", str(_SCRIPT), str(theirs)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={},
                pass_fds=(theirs,),
                start_new_session=True,
            )
            over = _finish(process, json.dumps(job).encode(), timeout_s)
        os.set_blocking(mine, False)
        try:
            told = os.read(mine, _MOST_TOLD).decode(errors="replace")
        except BlockingIOError:
            told = ""
    finally:
        os.close(mine)
        os.close(theirs)
    first, _, said = told.partition("\n")
    if not first:
        raise QuicksilverError("The sandbox for code that a model wrote could not be started; is there memory left?")
    holds = tuple(json.loads(first))
    if said == word:
        return Ran("passed", holds=holds)
    if not over or process.returncode == -signal.SIGXCPU:
        return Ran("timeout", f"it took over {timeout_s:g} s", holds)
    return Ran("failed", " ".join(said.split()) or f"it ended with code {process.returncode}", holds)


def _finish(process: subprocess.Popen[bytes], job: bytes, timeout_s: float) -> bool:
    """Hand the job over and wait; kill the whole group in the end. False if time was up."""
    try:
        process.communicate(job, timeout=timeout_s)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
