"""Metrics of the user's: a Python function in a file, or a regular expression; each in a process of its own with a time limit."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from quicksilver.bench.metrics import Answer, TaskMetric
from quicksilver.errors import BadInputError

LIMIT_S = 10.0
"""Seconds that one answer may take, and the loading of the file."""
REGEX = "regex:"
_SCRIPT = Path(__file__).with_name("metric_worker.py")


def regex(expression: str, *, limit_s: float = LIMIT_S) -> TaskMetric:
    """Return the metric that is 1.0 where a regular expression is found in an answer. Raises BadInputError for a bad one."""
    try:
        re.compile(expression)
    except re.error as error:
        raise BadInputError(f"{expression!r} is no regular expression: {error}.") from error
    name = f"{REGEX}{expression}"
    return TaskMetric("regex", _scorer({"pattern": expression}, name, limit_s), lambda _: True)


def function(spec: str, *, limit_s: float = LIMIT_S) -> TaskMetric:
    """Return the metric of `path/to/file.py:function`; it isn't called yet. Raises BadInputError if there is no such file.

    The function takes the answer (text), its references (a list of texts) and, if it has a third parameter, the prompt (text), and
    returns a number from 0 on, the higher the better.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file).expanduser().absolute()
    if not name.isidentifier():
        raise BadInputError(f"{spec!r} names no function; write it as path/to/file.py:function.")
    if not path.is_file():
        raise BadInputError(f"There is no file {file} for the metric {spec!r}.")
    return TaskMetric(name, _scorer({"path": str(path), "name": name}, spec, limit_s), lambda _: True)


def _scorer(job: dict[str, str], name: str, limit_s: float) -> Callable[[Sequence[Answer]], list[float]]:
    def score(answers: Sequence[Answer]) -> list[float]:
        with _worker(job, name, limit_s) as ask:
            return [ask(answer) for answer in answers]

    return score


@contextmanager
def _worker(job: dict[str, str], name: str, limit_s: float) -> Iterator[Callable[[Answer], float]]:
    """Start the process, and yield what scores an answer with it; the whole process group is killed in the end."""
    process = subprocess.Popen(
        [sys.executable, "-P", str(_SCRIPT)],  # -P: without this folder's names before the user's
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
    reader.start()

    def reply(message: dict[str, Any], where: str) -> dict[str, Any]:
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            line = lines.get(timeout=limit_s)
        except queue.Empty as error:
            raise BadInputError(f"The metric {name} didn't return within {limit_s:g} s{where}.") from error
        except BrokenPipeError:
            line = ""
        if not line:
            raise BadInputError(f"The metric {name} ended its process{where}.")
        document: dict[str, Any] = json.loads(line)
        if "error" in document:
            said = " ".join(str(document["error"]).split())[:300].rstrip(".:")
            raise BadInputError(f"The metric {name} failed{where}: {said}.")
        return document

    def ask(answer: Answer) -> float:
        where = f" for the answer to the prompt {answer.prompt.id!r}"
        asked = {"text": answer.text, "references": list(answer.prompt.references), "prompt": answer.prompt.content}
        value = float(reply(asked, where)["score"])
        if not (math.isfinite(value) and value >= 0):
            raise BadInputError(f"The metric {name} gave {value}{where}; a score is a number from 0 on.")
        return value

    try:
        reply(job, " when its file was loaded" if "path" in job else "")
        yield ask
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(1.0)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _read(stdout: IO[str] | None, lines: queue.SimpleQueue[str]) -> None:
    """Hand lines on, and an empty one at the end."""
    for line in stdout or ():
        lines.put(line)
    lines.put("")
