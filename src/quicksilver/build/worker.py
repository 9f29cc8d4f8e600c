"""The build worker: one step in a process of its own. A JSON job comes on stdin, JSON lines go out on stdout."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quicksilver import engines, techniques
from quicksilver.errors import BuildError, NotEnoughError, QuicksilverError, said
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.settings import Settings
from quicksilver.nouns.technique import Step
from quicksilver.nouns.workload import Prompt
from quicksilver.sources import gguf, gguf_grid
from quicksilver.sources.home import HOME_VARIABLE, home

NO_MEMORY = re.compile(
    r"bad_alloc|bad allocation|can't allocate memory|cannot allocate memory|out of memory|memory allocation of \d+ bytes failed",
    re.IGNORECASE,
)
# OpenVINO says no more than that of a file that it couldn't write whole.
NO_DISK = re.compile(r"no space left|disk quota exceeded|iostream error", re.IGNORECASE)


def main() -> int:
    """Run the job on stdin; the libraries' own chatter on stdout is sent to stderr."""
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["HF_HUB_OFFLINE"] = "1"
    # The one switch that openvino-telemetry has outside the home directory, in which it would leave a folder.
    os.environ["CI"] = "true"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    begun = time.monotonic()

    def tell(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")

    try:
        apart_mb = run(job, lambda text: tell(say=text))
    except Exception as error:  # noqa: BLE001  a step may raise anything: it becomes a sentence
        traceback.print_exc()
        known = error if isinstance(error, QuicksilverError) else _sentence(error, job)
        tell(error=str(known), code=known.exit_code)
        return known.exit_code
    tell(seconds=time.monotonic() - begun, memory_mb=_peak_memory_mb() + apart_mb)
    return 0


def _end_with_parent() -> None:
    """End when the other end of stdin closes, as it does however the parent ends."""
    # Not sys.stdin: a thread that waits inside of its buffer makes the interpreter abort when it ends.
    while os.read(0, 4096):
        pass
    os._exit(1)


def _sentence(error: Exception, job: dict[str, Any]) -> QuicksilverError:
    """Say in one sentence what went wrong in a library or with a file."""
    step = f"The step {job['label']}"
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        return NotEnoughError(f"{step} ran out of memory.")
    if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or NO_DISK.search(str(error)):
        free_mb = shutil.disk_usage(job["target"]).free / 1e6
        return NotEnoughError(
            f"{step} couldn't write all of its files: the disk of {home()} is full, or nearly ({free_mb:,.0f} MB are free); "
            f"make room, or name another folder in {HOME_VARIABLE}."
        )
    if isinstance(error, OSError):
        name = f" {error.filename}" if error.filename else " a file"
        return BuildError(
            f"{step} couldn't read or write{name}: {(error.strerror or said(error)).lower().rstrip('.')}."
        )
    return BuildError(f"{step} failed: {type(error).__name__}: {said(error)}.")


def _peak_memory_mb() -> float:
    """Return this process's peak resident memory, MB."""
    status = Path("/proc/self/status")
    # ru_maxrss would begin with what the process that started this one had at that moment.
    found = (
        re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"), re.MULTILINE) if status.is_file() else None
    )
    if found:
        return int(found[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def run(job: dict[str, Any], say: Callable[[str], None]) -> float:
    """Do one job: the import of a GGUF, a technique's build step, or the compilation of an artefact.

    Returns the peak resident memory of processes that did part of the work, MB.
    """
    target = Path(job["target"])
    source = Path(job["source"])
    if "compile" in job:
        engines.find(job["engine"]).compile(source, Settings.model_validate(job["compile"]))
        return 0.0
    if job["technique"] is None:
        gguf.convert(source, target)
        if gguf_grid.has_grid(source):
            gguf_grid.extract(source, target)
        return 0.0
    technique = techniques.make(job["technique"])
    engine = engines.find(job["engine"])
    prompts = [Prompt.model_validate(p) for p in job["calibration"]] if technique.calibrated else []
    step = Step(
        source=source,
        target=target,
        format=engine.format,
        facts=ModelFacts.model_validate(job["facts"]),
        calibration=_token_ids(source, prompts) if prompts else (),
        say=say,
    )
    engine.apply(technique, step)
    return step.apart_mb


def _token_ids(folder: Path, prompts: list[Prompt]) -> list[list[int]]:
    from quicksilver.sources.text import Tokenizer

    tokenizer = Tokenizer(folder)
    return [tokenizer.prompt_ids(prompt) for prompt in prompts]


if __name__ == "__main__":
    sys.exit(main())
