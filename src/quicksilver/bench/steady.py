"""Whether a load reaches a steady state, where that begins, and whether answers end as fast as requests come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quicksilver.bench.bootstrap import Floats
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.score import Steady

BATCH = 5
LEAST_BATCHES = 6


@dataclass(frozen=True, slots=True)
class Onset:
    """Where a round's steady state begins, in the order in which its requests were due; failed ones aren't looked at."""

    reached: bool
    """Whether it begins in the first half."""
    before: Sequence[float]
    """Seconds a token of the requests before it."""
    after: Sequence[float]

    @property
    def requests(self) -> int:
        """Requests that were looked at."""
        return len(self.before) + len(self.after)


def onset(samples: Sequence[Sample]) -> Onset | None:
    """Return where the steady state of a round begins; None for fewer than thirty requests that succeeded.

    By MSER-5 over the latency per output token from the scheduled moment: means of five are cut off at the front where that
    makes the standard error of the rest's mean smallest, and a cut in the second half says that there is no steady state (White,
    Cobb and Spratt 2000, A comparison of five steady-state truncation heuristics for simulation, Winter Simulation Conference).
    """
    good = sorted((s for s in samples if s.error is None), key=lambda s: (s.scheduled, s.sent))
    batches = len(good) // BATCH
    if batches < LEAST_BATCHES:
        return None
    series = [(s.end - s.scheduled) / max(1, s.completion_tokens) for s in good]
    cut = mser(np.reshape(series[: batches * BATCH], (batches, BATCH)).mean(axis=1))
    return Onset(cut <= batches // 2, series[: cut * BATCH], series[cut * BATCH :])


def described(onsets: Sequence[Onset | None], counted: int) -> Steady | None:
    """Return what to say of several rounds; None if none could be looked at."""
    found = [each for each in onsets if each is not None]
    if not found:
        return None
    before = [seconds for each in found for seconds in each.before]
    after = [seconds for each in found for seconds in each.after]
    rest = float(np.mean(after))
    return Steady(
        warm_up=len(before),
        requests=len(before) + len(after),
        reached=all(each.reached for each in found),
        ratio=float(np.mean(before)) / rest if before and rest > 0 else 1.0,
        counted=counted,
    )


def mser(series: Floats) -> int:
    """Return how many values at the front to cut off: the d that minimises sum((x - mean)^2) / (n - d)^2 over the rest.

    The last five values are always kept, as their few can agree by chance. `series` is (n,).
    """
    count = len(series)
    cuts = range(max(1, count - BATCH + 1))
    errors = [float(np.sum((series[d:] - series[d:].mean()) ** 2)) / (count - d) ** 2 for d in cuts]
    return int(np.argmin(errors))


def by_turn(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Return a round's Samples by their turns."""
    turns: dict[int, list[Sample]] = {}
    for sample in samples:
        turns.setdefault(sample.turn, []).append(sample)
    return list(turns.values())


def in_flight(samples: Sequence[Sample]) -> tuple[float, int]:
    """Return how many requests of a round were under way, from the moment they were due: the mean over time, and the most.

    The mean is the sum of their times over the time in which they were (Little 1961).
    """
    if not samples:
        return 0.0, 0
    span = sum(max(s.end for s in turn) - min(s.scheduled for s in turn) for turn in by_turn(samples))
    edges = sorted([(s.scheduled, 1) for s in samples] + [(s.end, -1) for s in samples])
    most = int(np.cumsum([step for _, step in edges]).max())
    return (sum(s.end - s.scheduled for s in samples) / span if span > 0 else 0.0), most


def keeps_up(samples: Sequence[Sample]) -> bool | None:
    """Return whether answers of an open loop's round end as fast as requests come; None if the round is too short to tell.

    It is looked at in the last third of the time in which requests come. There the number under way grows by what comes and
    doesn't end, and without a growing queue that varies by about the square root of what comes (Poisson); it doesn't keep up
    if it is more than twice that, and over a twentieth of what comes. A round whose first requests take longer than that third
    (median) never fills up, unless its last third of requests take over twice as long as its first: that is a queue.
    """
    due = sorted(samples, key=lambda s: s.scheduled)
    if len(due) < 8:
        return None
    last = due[-1].scheduled
    third = (last - due[0].scheduled) / 3
    early = [s.end - s.scheduled for s in due[: 1 + len(due) // 16]]
    if third <= 0:
        return None
    if float(np.median(early)) > third:
        took = [s.end - s.scheduled for s in due]
        size = len(took) // 3
        return False if float(np.median(took[-size:])) > 2 * float(np.median(took[:size])) else None
    came = sum(last - third < s.scheduled for s in due)
    ended = sum(last - third < s.end <= last for s in due)
    return not came - ended > max(2 * math.sqrt(came), came / 20)
