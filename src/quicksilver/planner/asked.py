"""Asked: what a plan is made for: the lengths of prompts and answers, and when they come."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from quicksilver.bench.schedule import moments
from quicksilver.errors import BadInputError
from quicksilver.nouns.arrivals import Arrivals
from quicksilver.nouns.prediction import PlannedLoad
from quicksilver.nouns.workload import Prompt, Workload
from quicksilver.sources import traffic, workloads
from quicksilver.sources.synthetic import PREFIX

CHARACTERS_A_TOKEN = 4.0
"""Of English text, as a rule of thumb, where no tokenizer has counted."""
MOST_TOKENS = 1_000_000
UNEVEN = 0.1
"""Share by which answers of a shape are longer or shorter, evenly spread: of one length, a closed loop would march in step for ever."""
_SHAPE = re.compile(r"(-?[0-9]{1,9})x(-?[0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Asked:
    """The requests of a workload, as far as a plan needs them."""

    label: str
    lengths: tuple[tuple[int, int], ...]
    """Tokens of a prompt and of its answer; one pair for a shape."""
    times_s: tuple[float, ...] = ()
    """When they came, in order, if that was recorded."""
    remarks: tuple[str, ...] = ()

    def load(self, streams: int) -> PlannedLoad:
        """Return the mean lengths with a number of streams. Raises BadInputError below one stream."""
        if streams < 1:
            raise BadInputError(f"A plan needs at least one stream, not {streams}.")
        inputs, outputs = zip(*self.lengths, strict=True)
        return PlannedLoad(
            input_tokens=max(1, round(sum(inputs) / len(inputs))),
            output_tokens=max(1, round(sum(outputs) / len(outputs))),
            streams=streams,
        )

    def draw(self, count: int, seed: int) -> list[tuple[int, int]]:
        """Return the lengths of so many requests, drawn with repeats, those of a shape around it; the same for the same seed."""
        # Of random.Random, only random() is promised to give the same numbers in every version of Python.
        draw, every = random.Random(seed).random, self.lengths
        if len(every) == 1:
            prompt, answer = every[0]
            most = int(answer * UNEVEN)
            return [(prompt, answer - most + int(draw() * (2 * most + 1))) for _ in range(count)]
        return [every[int(draw() * len(every))] for _ in range(count)]

    def arrive(self, count: int, rate_per_s: float, seed: int) -> tuple[list[tuple[int, int]], list[float]]:
        """Return the lengths of so many requests and when each comes, s: at a rate, as recorded or as a Poisson process.

        A record is stretched or squeezed to the rate, which keeps its bursts, and repeated from its begin if it is too short.
        """
        span = self.times_s[-1] - self.times_s[0] if self.times_s else 0.0
        if span <= 0:
            return self.draw(count, seed), moments(Arrivals.poisson(rate_per_s, seed), count)
        gaps = [b - a for a, b in zip(self.times_s, self.times_s[1:], strict=False)]
        mean = span / len(gaps)
        gaps.append(mean)
        scale = 1 / (rate_per_s * mean)
        repeated = (scale * gaps[n % len(gaps)] for n in range(count - 1))
        return [self.lengths[n % len(self.lengths)] for n in range(count)], list(accumulate(repeated, initial=0.0))


def asked(spec: str, *, seed: int = 0) -> Asked:
    """Read a shape (`622x250`), a workload's name, or a file: JSON Lines of prompts, or what a server recorded.

    Raises BadInputError.
    """
    text = spec.removeprefix(PREFIX)
    if (shape := _SHAPE.fullmatch(text.strip())) is not None:
        return _shape(spec, int(shape[1]), int(shape[2]))
    path = Path(spec)
    if path.is_file():
        data = path.read_bytes()
        if traffic.is_record(data):
            return _recorded(data, path.name)
    return _prompts(workloads.load(spec, seed=seed))


def _shape(spec: str, prompt: int, answer: int) -> Asked:
    if not (1 <= prompt <= MOST_TOKENS and 1 <= answer <= MOST_TOKENS):
        raise BadInputError(
            f"{spec!r} is no workload: a prompt and an answer have 1 to {MOST_TOKENS:,} tokens each, such as 622x250."
        )
    return Asked(f"{prompt}x{answer}", ((prompt, answer),))


def _recorded(data: bytes, name: str) -> Asked:
    found = traffic.lengths(data, name)
    return Asked(
        name,
        tuple((prompt, answer) for _, prompt, answer in found),
        tuple(moment for moment, _, _ in found),
        ("Lengths and arrivals are those of the record.",),
    )


def _prompts(workload: Workload) -> Asked:
    every = [*workload.calibration, *workload.search, *workload.evaluation]
    remarks = []
    if any(prompt.token_ids is None for prompt in every):
        remarks.append(f"Lengths of prompts are estimated at {CHARACTERS_A_TOKEN:g} characters a token.")
    if any(not prompt.ignore_eos for prompt in every):
        remarks.append("Answers are taken to be as long as they may become (max_tokens); most will be shorter.")
    lengths = tuple((_tokens(prompt), prompt.max_tokens or workload.max_tokens) for prompt in every)
    timed = sorted((p.arrival_s, n) for n, p in enumerate(every) if p.arrival_s is not None)
    if len(timed) < len(every):
        return Asked(workload.name, lengths, (), tuple(remarks))
    return Asked(
        workload.name, tuple(lengths[n] for _, n in timed), tuple(moment for moment, _ in timed), tuple(remarks)
    )


def _tokens(prompt: Prompt) -> int:
    if prompt.token_ids is not None:
        return max(1, len(prompt.token_ids))
    return max(1, round(len(prompt.content) / CHARACTERS_A_TOKEN))
