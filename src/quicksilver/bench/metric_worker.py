"""Score answers with a function of the user's, or a regular expression, in a process that can be ended.

Run as a script (quicksilver.bench.user_metric starts it). The first line on stdin says what scores; each line after it is an answer, and
each line on stdout its score, or an error.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def function(path: str, name: str) -> Callable[[dict[str, Any]], Any]:
    """Load a function from a Python file: it takes the answer, its references, and the prompt if it has a third parameter."""
    spec = importlib.util.spec_from_file_location("quicksilver_user_metric", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(path).parent))
    spec.loader.exec_module(module)
    score = getattr(module, name)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    count = sum(parameter.kind in positional for parameter in inspect.signature(score).parameters.values())

    def call(answer: dict[str, Any]) -> Any:
        return score(*(answer["text"], answer["references"], answer["prompt"])[: max(1, min(count, 3))])

    return call


def pattern(expression: str) -> Callable[[dict[str, Any]], Any]:
    """Return what scores 1 where the expression is found in the answer."""
    compiled = re.compile(expression)
    return lambda answer: 1.0 if compiled.search(answer["text"]) else 0.0


def main() -> None:
    """Serve until stdin ends; what the function prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    stdin = sys.stdin.buffer

    def tell(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")

    job = json.loads(stdin.readline())
    try:
        score = pattern(job["pattern"]) if "pattern" in job else function(job["path"], job["name"])
    except BaseException as error:  # noqa: BLE001  it is the user's code, and becomes a sentence
        tell(error=f"{type(error).__name__}: {error}")
        return
    tell(ready=True)
    for line in stdin:
        try:
            value = score(json.loads(line))
            tell(score=float(value))
        except BaseException as error:  # noqa: BLE001  as above
            tell(error=f"{type(error).__name__}: {error}")
            return


if __name__ == "__main__":
    main()
