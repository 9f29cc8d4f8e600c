"""Times an artefact's steps by what is in them, for predictions: a worker in a process of its own.

`python -m quicksilver.engines.openvino.steps` reads a Job (JSON) on stdin and prints a line of JSON for each pass over the shapes
(`{"done": 1, "total": 3}`), and as its last line StepTimings.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quicksilver.engines.openvino.files import cache_bytes, conditions, properties_of
from quicksilver.engines.openvino.lookup import padded
from quicksilver.errors import EngineError
from quicksilver.nouns.base import Noun
from quicksilver.nouns.settings import Settings
from quicksilver.nouns.steps import StepShape, StepTimings, TimedStep

PASSES = 3
REPEATS = 3
"""Steps of one shape after the first, in a pass."""
REPEATED_MS = 400.0
"""After which such steps aren't repeated."""


WARM_TOKENS = 64
"""Tokens of the largest step that is taken once before any is timed."""


class Job(Noun):
    """What to time."""

    artifact: Path
    settings: Settings
    shapes: tuple[StepShape, ...]
    passes: int = PASSES
    budget_s: float = 120.0
    """Seconds after which no pass is begun."""


def time_steps(job: Job, say: Callable[[int, int], None]) -> StepTimings:
    """Time a job's shapes in this process; `say` gets shapes done and all. Raises EngineError if the KV cache is too small."""
    from quicksilver.engines.openvino.graph import Graph, Work

    def padding(shape: StepShape) -> int:
        guessed = shape.streams * (shape.ahead - 1)
        return int(padded(shape.streams, np.array([guessed]))[0]) - guessed if guessed and not shape.prompt else 0

    shapes = [shape.model_copy(update={"padding": padding(shape)}) for shape in job.shapes]
    most = max((shape.streams for shape in shapes), default=0) or 1
    longest = max(max(shape.context + shape.ahead, shape.prompt) for shape in shapes)
    spare = max((shape.prompt for shape in shapes), default=0)

    def size(block_bytes: int, block_tokens: int) -> int:
        needed = most * -(-longest // block_tokens) + -(-spare // block_tokens)
        return cache_bytes(job.settings.kv_cache_gb, needed * block_bytes)

    graph = Graph(job.artifact, properties_of(job.settings), size)
    each, extra = -(-longest // graph.block_tokens), -(-spare // graph.block_tokens)
    room = (graph.blocks - extra) // each if each else 0
    shapes = [shape for shape in shapes if shape.streams <= room]
    if room < 1 or not shapes:
        raise EngineError(f"The KV cache holds no stream of {longest} tokens.")
    blocks = [list(range(n * each, (n + 1) * each)) for n in range(min(most, room))]
    prompt_blocks = list(range(len(blocks) * each, len(blocks) * each + extra))
    # What the tokens are makes no difference to the time, as long as keys and values are numbers of the usual size.
    text = [3 + n % 97 for n in range(longest + 1)]
    deepest = max(shape.context for shape in shapes)
    for start in range(0, deepest, job.settings.max_batched_tokens):
        graph.run([Work(text[start : min(deepest, start + job.settings.max_batched_tokens)], start, blocks[0], 1)])
    for other in blocks[1:] if deepest else ():
        graph.copy(blocks[0], other)

    def step(shape: StepShape) -> float:
        work = [Work(text[: shape.ahead], shape.context, blocks[n], shape.ahead) for n in range(shape.streams)]
        if shape.prompt:
            work.append(Work(text[: shape.prompt], 0, prompt_blocks, 1))
        before = time.perf_counter()
        graph.run(work, shape.padding).argmax(axis=1)
        return (time.perf_counter() - before) * 1000

    again: dict[StepShape, list[float]] = {shape: [] for shape in shapes}
    new: dict[StepShape, list[float]] = {shape: [] for shape in shapes}
    until = time.perf_counter() + job.budget_s
    last: tuple[int, int] | None = None
    # The first step that a kernel is chosen for lays out the weights anew, which takes seconds, once in a server's life.
    for shape in sorted({shape.tokens: shape for shape in shapes if shape.tokens <= WARM_TOKENS}.values(), key=_tokens):
        step(shape)
    for number in range(job.passes):
        if number and time.perf_counter() > until:
            break
        # Backwards at every second pass: what changes with time, such as the clock, doesn't fall on the same shapes.
        for place, shape in enumerate(shapes if number % 2 == 0 else shapes[::-1]):
            if (shape.sequences, shape.tokens) == last:
                step(StepShape(streams=1, context=1) if shape.tokens > 1 else StepShape(prompt=2))
            new[shape].append(step(shape))
            if not shape.prompt:
                spent = 0.0
                for _ in range(REPEATS):
                    again[shape].append(step(shape))
                    spent += again[shape][-1]
                    if spent > REPEATED_MS:
                        break
            last = (shape.sequences, shape.tokens)
            say(number * len(shapes) + place + 1, job.passes * len(shapes))
    return StepTimings(
        **conditions(job.settings),
        steps=tuple(
            TimedStep(
                shape=shape,
                ms=statistics.median(again[shape]) if again[shape] else None,
                new_ms=statistics.median(new[shape]),
            )
            for shape in shapes
        ),
    )


def time_apart(
    artifact: Path,
    settings: Settings,
    shapes: Sequence[StepShape],
    say: Callable[[int, int], None],
    *,
    passes: int = PASSES,
    budget_s: float = 120.0,
) -> StepTimings:
    """Time steps in a process of their own. Raises EngineError."""
    job = Job(artifact=artifact, settings=settings, shapes=tuple(shapes), passes=passes, budget_s=budget_s)
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "quicksilver.engines.openvino.steps"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as worker,
    ):
        try:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write(job.model_dump_json().encode())
            worker.stdin.close()
            found: dict[str, Any] = {}
            for line in worker.stdout:
                found = json.loads(line)
                if "done" in found:
                    say(found["done"], found["total"])
        except (BrokenPipeError, ValueError):
            found = {}
        finally:
            if sys.exc_info()[0] is not None:  # somebody ended the wait
                worker.kill()
        if worker.wait() or "steps" not in found:
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip().splitlines() or [f"exit code {worker.returncode}"]
            raise EngineError(f"Steps could not be timed: {words[-1].rstrip('.')}.")
    return StepTimings.model_validate(found)


def _tokens(shape: StepShape) -> int:
    return shape.tokens


def _say(done: int, total: int) -> None:
    print(json.dumps({"done": done, "total": total}), flush=True)


if __name__ == "__main__":
    print(time_steps(Job.model_validate_json(sys.stdin.buffer.read()), _say).model_dump_json())
