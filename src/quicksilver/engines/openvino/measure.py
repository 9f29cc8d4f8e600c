"""What guessing costs and gains: a worker that times an artefact's steps, and replays answers with guesses of each length.

`python -m quicksilver.engines.openvino.measure` reads a Job (JSON) on stdin and prints a SpeculationTable as its last line.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quicksilver.engines.openvino.files import cache_bytes, conditions, properties_of
from quicksilver.engines.openvino.lookup import DEPTH, LONGEST, Lookup, padded
from quicksilver.errors import EngineError
from quicksilver.nouns.base import Noun
from quicksilver.nouns.settings import Settings
from quicksilver.nouns.speculation import SpeculationTable
from quicksilver.nouns.workload import Prompt

STREAMS = (1, 2, 4, 8, 16)
LENGTHS = (0, 1, 2, 4, 8)
"""Besides these the longest that the settings allow is measured."""
PASSES = 3
BUDGET_S = 15
"""Seconds after which no pass is begun, and in the first one no more streams are tried once there are two rows."""
LEAST_ROWS = 2
LEAST_STEPS, STEPS = 2, 4
"""Timed steps of a cell in a pass."""
CELL_S = 0.06
"""Seconds after which a cell takes no more steps in a pass."""
TIMEOUT_S = 300


class Job(Noun):
    """What to measure: an artefact under settings, on prompts with their answers."""

    artifact: Path
    settings: Settings
    answers: tuple[tuple[Prompt, str], ...]


class Replay:
    """What guesses of up to `most` tokens would have been right along answers that are known."""

    def __init__(self, most: int, longest: int = LONGEST) -> None:
        self.most, self.longest = most, longest
        self.steps = self.guessed = self.gained = 0
        self.tried = [[0] * DEPTH for _ in range(LONGEST)]
        self.right = [[0] * DEPTH for _ in range(LONGEST)]

    def add(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Go along an answer after its prompt, in token ids, as a decoder would. The prompt's own step gives the first token."""
        lookup = Lookup([*prompt, *answer[:1]], self.longest)
        at = 1
        while at < len(answer):
            guess = lookup.guess(min(self.most, len(answer) - at - 1))
            right = 0
            if guess is not None:
                self.guessed += len(guess.tokens)
                for index, token in enumerate(guess.tokens):
                    place = min(index, DEPTH - 1)
                    self.tried[guess.match - 1][place] += 1
                    if token != answer[at + index]:
                        break
                    self.right[guess.match - 1][place] += 1
                    right += 1
            lookup.extend(answer[at : at + right + 1])
            at += right + 1
            self.steps += 1
            self.gained += right + 1


def measure(job: Job) -> SpeculationTable:
    """Measure a job in this process. Raises EngineError if the KV cache holds not even one stream."""
    from quicksilver.sources.text import Tokenizer

    speculation = job.settings.speculation
    if speculation is None or not job.answers:
        raise EngineError("There is nothing to measure: no speculation, or no answers.")
    tokenizer = Tokenizer(job.artifact)
    texts = [(tokenizer.prompt_ids(prompt), tokenizer.encode(text, special=False)) for prompt, text in job.answers]
    lengths = (*(length for length in LENGTHS if length < speculation.tokens), speculation.tokens)
    replays = [Replay(length, speculation.max_ngram) for length in lengths]
    for replay in replays:
        for prompt, answer in texts:
            replay.add(prompt, answer)
    if not replays[0].steps:
        raise EngineError("There is nothing to measure: no answer has two tokens.")
    context = round(statistics.median(len(prompt) + len(answer) / 2 for prompt, answer in texts))
    return SpeculationTable(
        **conditions(job.settings),
        context_tokens=context,
        **_time(job, context, lengths),
        lengths=lengths,
        guessed=tuple(round(r.guessed / r.steps, 4) for r in replays),
        gained=tuple(round(r.gained / r.steps, 4) for r in replays),
        tried=tuple(map(tuple, replays[-1].tried)),
        right=tuple(map(tuple, replays[-1].right)),
    )


def _time(job: Job, context: int, lengths: Sequence[int]) -> dict[str, Any]:
    """Time steps by streams, each with a context of so many tokens, and guesses of each; return those fields of the table."""
    import numpy as np

    from quicksilver.engines.openvino.graph import Graph, Work

    settings = job.settings
    longest = context + 1 + lengths[-1]

    def size(block_bytes: int, block_tokens: int) -> int:
        return cache_bytes(settings.kv_cache_gb, STREAMS[-1] * -(-longest // block_tokens) * block_bytes)

    graph = Graph(job.artifact, properties_of(settings), size)
    each = -(-longest // graph.block_tokens)
    streams = tuple(n for n in STREAMS if n <= settings.max_streams and n * each <= graph.blocks)
    if not streams:
        raise EngineError(f"The KV cache holds no stream of {context} tokens.")
    blocks = [list(range(n * each, (n + 1) * each)) for n in range(streams[-1])]
    # What the tokens are makes no difference to the time, as long as keys and values are numbers of the usual size.
    text = [3 + n % 97 for n in range(context + lengths[-1])]
    for start in range(0, context, settings.max_batched_tokens):
        graph.run([Work(text[start : min(context, start + settings.max_batched_tokens)], start, blocks[0], 1)])
    for other in blocks[1:]:
        graph.copy(blocks[0], other)

    def cell(running: int, length: int) -> tuple[float, float]:
        """Return the ms of the fastest step, since what else goes on in a machine only adds, and of the first, whose shape is new."""
        work = [Work(text[: 1 + length], context, blocks[n], 1 + length) for n in range(running)]
        guessed = running * length
        padding = int(padded(running, np.array([guessed]))[0]) - guessed
        times: list[float] = []
        while len(times) < LEAST_STEPS or (len(times) < STEPS and sum(times) < 1000 * CELL_S):
            before = time.perf_counter()
            graph.run(work, padding).argmax(axis=1)
            times.append((time.perf_counter() - before) * 1000)
        return min(times), times[0]

    until = time.perf_counter() + BUDGET_S
    rows: list[list[tuple[float, float]]] = []
    for running in streams:
        if len(rows) < LEAST_ROWS or time.perf_counter() < until:
            rows.append([cell(running, length) for length in lengths])
    streams = streams[: len(rows)]
    passes = [rows]
    while len(passes) < PASSES and time.perf_counter() < until:
        passes.append([[cell(running, length) for length in lengths] for running in streams])
    step_ms, first_ms = np.moveaxis(np.array(passes).min(axis=0), -1, 0)
    # A step with fewer streams or guesses takes no longer than one with more: where it did, something interfered.
    for axis in (0, 1):
        step_ms = np.flip(np.minimum.accumulate(np.flip(step_ms, axis), axis), axis)
    return {
        "streams": streams,
        "step_ms": step_ms.round(2).tolist(),
        "new_shape_ms": round(max(0.0, float(np.median(first_ms - step_ms))), 2),
    }


def measure_apart(job: Job) -> SpeculationTable:
    """Measure a job in a process of its own. Raises EngineError."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "quicksilver.engines.openvino.measure"],
            input=job.model_dump_json().encode(),
            capture_output=True,
            timeout=TIMEOUT_S,
            check=True,
        )
        return SpeculationTable.model_validate_json(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {error.returncode}"]
        raise EngineError(f"Speculation could not be measured: {words[-1].rstrip('.')}.") from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"Speculation could not be measured within {TIMEOUT_S} s.") from error


if __name__ == "__main__":
    print(measure(Job.model_validate_json(sys.stdin.buffer.read())).model_dump_json())
