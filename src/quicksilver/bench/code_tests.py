"""Code as a task: the share of answers that pass their prompt's tests, run in the sandbox."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from quicksilver.bench import sandbox
from quicksilver.bench.metrics import CODE, Answer, TaskMetric
from quicksilver.nouns.workload import CodeTest

_BLOCK = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def metric(*, timeout_s: float = sandbox.TIMEOUT_S, memory_mb: int = sandbox.MEMORY_MB) -> TaskMetric:
    """Return the metric that is 1.0 where an answer's code passes its tests (pass@1; Chen et al. 2021, arXiv 2107.03374)."""

    def one(answer: Answer) -> float:
        if answer.prompt.tests is None:
            return 0.0
        ran = sandbox.run(program(answer.text, answer.prompt.tests), timeout_s=timeout_s, memory_mb=memory_mb)
        return float(ran.outcome == "passed")

    def score(answers: Sequence[Answer]) -> list[float]:
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            return list(pool.map(one, answers))

    return TaskMetric(CODE, score, lambda prompt: prompt.tests is not None)


def program(text: str, tests: CodeTest) -> str:
    """Return the program that tests an answer: what stood before, the answer's code, the tests.

    An answer that doesn't define the function goes on with its body, right after what stood before.
    """
    found = code(text, tests.entry_point)
    whole = tests.entry_point is None or _defines(found, tests.entry_point)
    return f"{tests.before}{chr(10) * 2 if whole else ''}{found}\n\n{tests.test}\n"


def code(text: str, entry_point: str | None = None) -> str:
    """Return the code of an answer: its fenced block (the first that defines the entry point), or all of it."""
    blocks: list[str] = _BLOCK.findall(text)
    defining = [block for block in blocks if entry_point is not None and _defines(block, entry_point)]
    return next(iter(defining or blocks), text)


def _defines(source: str, name: str) -> bool:
    return (
        re.search(rf"^(?:async\s+)?def\s+{re.escape(name)}\b|^{re.escape(name)}\s*=", source, re.MULTILINE) is not None
    )
