"""The steps of a ramp: which requests were sent in each, and what each of them showed."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from quicksilver.bench.schedule import rates_of, rise_s, streams_at
from quicksilver.bench.stats import figures, of_load
from quicksilver.nouns.arrivals import Arrivals
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.score import Figure, Speed


@dataclass(slots=True)
class _Window:
    """One step in one round: its requests, and the time up to the next step's first."""

    samples: list[Sample] = field(default_factory=list)
    begun: float = 0.0
    ended: float = 0.0
    last: bool = False


def steps(samples: Sequence[Sample], arrivals: Arrivals) -> tuple[Speed, ...]:
    """Return the figures of each step of a ramp, lowest first; none for another load, and for a rate that rises evenly.

    Streams that rise evenly have a step for each number of them. Latencies are those of the requests that were due in a step. Its
    rates are what arrived and what ended between its first request and the next step's first (the last answer's end, for the last
    step), over that time: answers that run into the next step count where their tokens come. With several rounds rates are the
    median, between the least and the most.
    """
    chosen = [s for s in of_load(samples, arrivals) if not s.warmup]
    if not chosen or not arrivals.rises or (arrivals.is_open and arrivals.steps is None):
        return ()
    rounds = [[s for s in chosen if s.round == number] for number in sorted({s.round for s in chosen})]
    every = [_windows(batch, arrivals) for batch in rounds]
    levels = sorted({level for windows in every for level in windows})
    return tuple(
        _step(arrivals, level, [(windows[level], batch) for windows, batch in zip(every, rounds, strict=True) if level in windows])
        for level in levels
    )  # fmt: skip


def _windows(batch: Sequence[Sample], arrivals: Arrivals) -> dict[float, _Window]:
    """Sort a round's requests by the level at which they were sent."""
    due = sorted(batch, key=lambda s: (s.scheduled, s.sent))
    found: dict[float, _Window] = {}
    for sample, level in zip(due, _levels(due, arrivals), strict=True):
        found.setdefault(level, _Window(begun=sample.scheduled)).samples.append(sample)
    windows = [found[level] for level in sorted(found)]
    for window, after in pairwise(windows):
        window.ended = after.begun
    windows[-1].ended, windows[-1].last = max(s.end for s in batch), True
    return found


def _levels(due: Sequence[Sample], arrivals: Arrivals) -> list[float]:
    """Return the streams or the rate at which each request of a round was sent."""
    if not arrivals.is_open:
        return [float(level) for level in streams_at(arrivals, len(due))]
    rates = rates_of(arrivals)
    each_s = rise_s(arrivals, len(due)) / len(rates)
    starts = [due[0].scheduled + each_s * n for n in range(len(rates))]
    # A moment that is computed twice may differ in its last digits.
    return [rates[max(0, bisect_right(starts, s.scheduled + 1e-6) - 1)] for s in due]


def _step(arrivals: Arrivals, level: float, parts: Sequence[tuple[_Window, Sequence[Sample]]]) -> Speed:
    mine = figures([s for window, _ in parts for s in window.samples], arrivals)
    rates = [_rates(window, batch) for window, batch in parts if window.ended > window.begun]
    tokens, prompts, requests, flying = (sorted(column) for column in zip(*rates, strict=True)) if rates else ([],) * 4
    ranged = {"low": tokens[0], "high": tokens[-1]} if len(tokens) > 1 else {}
    name = f"{level:g}/s" if arrivals.is_open else f"{level:g} stream{'' if level == 1 else 's'}"
    return mine.model_copy(
        update={
            "concurrency": 0 if arrivals.is_open else round(level),
            "load": f"at {name}",
            "rate_per_s": level if arrivals.is_open else None,
            "tokens_per_s": Figure(value=_middle(tokens), unit="tokens/s", **ranged),
            "input_tokens_per_s": _middle(prompts),
            "requests_per_s": _middle(requests),
            "in_flight_mean": _middle(flying),
            "keeps_up": None,
            "steady": None,
        }
    )


def _rates(window: _Window, batch: Sequence[Sample]) -> tuple[float, float, float, float]:
    """Return tokens, prompt tokens and answers a second within a window, and the requests under way, mean over it."""
    begun, ended = window.begun, window.ended
    good = [s for s in batch if s.error is None]
    # Several tokens may come in a piece: the server's count is shared out evenly.
    tokens = math.fsum(
        s.completion_tokens * sum(begun <= moment < ended or (window.last and moment == ended) for moment in s.arrivals) / len(s.arrivals)
        for s in good
        if s.arrivals
    )  # fmt: skip
    over = [s for s in good if begun < s.end <= ended]
    flying = math.fsum(max(0.0, min(s.end, ended) - max(s.scheduled, begun)) for s in batch)
    seconds = ended - begun
    return tokens / seconds, sum(s.prompt_tokens for s in over) / seconds, len(over) / seconds, flying / seconds


def _middle(values: Sequence[float]) -> float:
    count = len(values)
    return (values[(count - 1) // 2] + values[count // 2]) / 2 if values else 0.0
