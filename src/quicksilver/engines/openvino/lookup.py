"""Lookup: what followed the last few tokens earlier in the text, and how likely it is to follow again."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quicksilver.nouns.speculation import SpeculationTable

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
GRAIN = 8
"""Steps with guessed tokens have a multiple of this many tokens."""
SCRATCH_TOKENS = 64
"""Tokens that a step can be padded with."""
PLACES = 48
"""Earlier places of a token that are compared, the latest first."""
LONGEST = 8
"""A match of this length is as sure as any longer one."""
DEPTH = 8
"""A guessed token this far from the match is as sure as any farther one."""
PRIOR = (
    (0.28, 0.62, 0.66, 0.76, 0.73, 0.85, 0.88, 0.85),
    (0.53, 0.69, 0.75, 0.75, 0.77, 0.86, 0.84, 0.84),
    (0.68, 0.77, 0.77, 0.76, 0.83, 0.84, 0.86, 0.90),
    (0.75, 0.76, 0.75, 0.83, 0.83, 0.85, 0.90, 0.86),
    (0.76, 0.75, 0.83, 0.84, 0.86, 0.91, 0.86, 0.88),
    (0.74, 0.83, 0.83, 0.86, 0.91, 0.87, 0.86, 0.89),
    (0.82, 0.83, 0.86, 0.91, 0.88, 0.87, 0.89, 0.94),
    (0.91, 0.92, 0.93, 0.93, 0.94, 0.95, 0.95, 0.95),
)
"""How often a guessed token is right when those before it are, by length of the match and place in the guess.

Measured on 100 answers of SmolLM2-135M-Instruct to HotpotQA questions; what a server sees soon outweighs it.
"""
PRIOR_WEIGHT = 20.0
MEMORY = 200.0
"""Guesses of a kind after which older ones begin to be forgotten."""


@dataclass(slots=True)
class Guess:
    """Tokens that may come next."""

    tokens: list[int]
    match: int
    """Tokens before them that stood before their model, too; at most LONGEST."""


class Lookup:
    """The text of one sequence, indexed so that its end is found earlier in it (prompt lookup decoding, Saxena 2023)."""

    def __init__(self, tokens: Iterable[int], longest: int = LONGEST) -> None:
        self._longest = min(longest, LONGEST)
        self._tokens: list[int] = []
        self._places: defaultdict[int, list[int]] = defaultdict(list)
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Add what came next."""
        for token in tokens:
            self._places[token].append(len(self._tokens))
            self._tokens.append(token)

    def guess(self, most: int) -> Guess | None:
        """Return what followed the longest match of the text's end, the latest if several are as long; None without one."""
        text, end = self._tokens, len(self._tokens) - 1
        best, at = 0, -1
        if end < 1 or most < 1:
            return None
        for place in reversed(self._places[text[end]][-PLACES - 1 : -1]):
            length = 1
            while length < self._longest and length <= place and text[place - length] == text[end - length]:
                length += 1
            if length > best:
                best, at = length, place
                if length == self._longest:
                    break
        if at < 0:
            return None
        return Guess(text[at + 1 : at + 1 + most], best)


class Confidence:
    """How often guesses turn out right, learnt from those that were checked; a table's own guesses are a beginning."""

    def __init__(self, table: SpeculationTable | None = None) -> None:
        self._right = np.array(PRIOR) * PRIOR_WEIGHT
        self._tried = np.full((LONGEST, DEPTH), PRIOR_WEIGHT)
        self.seen = 0
        """Guesses that it learnt from."""
        if table is not None and np.shape(table.tried) == self._tried.shape:
            # Its rates, with no more weight than the prior's: what is asked of a server may be other than the workload.
            self._right = PRIOR_WEIGHT * (self._right + table.right) / (self._tried + table.tried)

    def of(self, guess: Guess) -> list[float]:
        """Return for each guessed token how likely it is that it and all before it are right."""
        rates = (self._right[guess.match - 1] / self._tried[guess.match - 1]).tolist()
        likely, found = 1.0, []
        for index in range(len(guess.tokens)):
            likely *= rates[min(index, DEPTH - 1)]
            found.append(likely)
        return found

    def learn(self, match: int, checked: int, right: int) -> None:
        """Take in a guess of which `checked` tokens were checked and the first `right` were right."""
        self.seen += 1
        right_row, tried_row = self._right[match - 1], self._tried[match - 1]
        for index in range(min(right + 1, checked)):
            place = min(index, DEPTH - 1)
            tried_row[place] += 1
            right_row[place] += index < right
            if tried_row[place] > MEMORY:
                tried_row[place] *= 0.5
                right_row[place] *= 0.5


class Record:
    """How one sequence's guesses do against what is hoped of guesses: a story isn't an answer that quotes its prompt."""

    WEIGHT = 1.0
    MOST = 1.3
    """A sequence's guesses are taken to be right at most so many times as often as others'."""
    KEPT = 0.98
    """What each guess leaves of the weight of those before it."""

    def __init__(self) -> None:
        self._right = self._hoped = 0.0

    def of(self, chances: Sequence[float]) -> list[float]:
        """Return the chances of a guess's tokens (those of `Confidence.of`) as this sequence has fared."""
        factor = min(self.MOST, (self._right + self.WEIGHT) / (self._hoped + self.WEIGHT))
        return [factor * chance for chance in chances]

    def learn(self, hoped: float, *, right: bool) -> None:
        """Take in whether a guess's first token was right, and how likely `Confidence` had it."""
        self._right = self.KEPT * self._right + right
        self._hoped = self.KEPT * self._hoped + hoped


class Pace:
    """How long a step takes, by running streams and extra tokens, learnt from the last steps.

    A linear fit by ridge regression (Hoerl and Kennard 1970) of what is left over by what is known: a measured table, scaled to
    the steps seen, or else what is true of every machine that was measured: an extra token costs a few percent of a step, and a
    shape that the step before didn't have a quarter.
    """

    STEPS = 512
    EVERY = 8
    """Steps between fits."""
    EXTRA_SHARE = 0.04
    """Of a step, for an extra token, as long as nothing else is known."""
    NEW_SHARE = 0.25
    """Of a step, for a new shape, as long as nothing else is known."""
    LEAST_SHARE = 0.005
    """Of a step, for an extra token, whatever was learnt without a table."""

    def __init__(self, table: SpeculationTable | None = None) -> None:
        self._known = None if table is None else _surface(table)
        self._new_ms = 0.0 if table is None else table.new_shape_ms
        self._steps: deque[tuple[float, float, float, float, float]] = deque(maxlen=self.STEPS)
        self._seen = 0
        self._scale = 1.0
        self._fit: Floats | None = None if table is None else np.zeros(4)

    def learn(self, streams: int, extra: int, ms: float, *, new: bool = False) -> None:
        """Take in a step without prefill; `new` if the one before it had another shape."""
        known = 0.0 if self._known is None else float(self._known(streams, np.array([extra]))[0]) + new * self._new_ms
        self._steps.append((streams, extra, new, ms, known))
        self._seen += 1
        if self._seen == 1 or self._seen % self.EVERY == 0:
            self._fit = self._fitted()

    @property
    def knows(self) -> bool:
        """Whether there is anything to go by: a table, or a step seen."""
        return self._fit is not None

    @property
    def new_ms(self) -> float:
        """The ms that a new shape costs."""
        return 0.0 if self._fit is None else max(0.0, self._scale * self._new_ms + float(self._fit[3]))

    def of(self, streams: int, extra: Ints) -> Floats:
        """Return the ms of steps with so many extra tokens (ascending from 0). Raises ValueError as long as nothing is known."""
        if self._fit is None:
            raise ValueError("Nothing is known of the time of steps.")
        start, each, more, _ = self._fit.tolist()
        found: Floats = start + each * streams + more * extra
        if self._known is None:
            base = max(float(found[0]), 0.1)
            least: Floats = base * (1 + self.LEAST_SHARE * extra)
            return np.maximum(found, least)
        found += self._scale * self._known(streams, extra)
        ms: Floats = np.maximum.accumulate(np.maximum(found, 0.1))
        return ms

    def _fitted(self) -> Floats:
        streams, extra, new, ms, known = np.array(self._steps).T
        seen = np.column_stack([np.ones(len(ms)), streams, extra, new])
        if self._known is None:
            prior = np.median(ms) * np.array([0.5, 0.5 / streams.mean(), self.EXTRA_SHARE, self.NEW_SHARE])
            expected = seen @ prior
        else:
            self._scale = float(np.median(ms / known))
            prior = np.zeros(4)
            expected = self._scale * known
        left_over = np.minimum(ms, 3 * expected) - expected  # what something else held up isn't the step's own time
        ridge = np.diag([1.0, 1.0, 8.0, 4.0])
        fit: Floats = prior + np.linalg.solve(seen.T @ seen + ridge, seen.T @ left_over)
        return fit


def padded(streams: int, guessed: Ints, grain: int = GRAIN) -> Ints:
    """Return the extra tokens of steps with so many guessed ones: their size is rounded up."""
    return np.where(guessed > 0, -(-(streams + guessed) // grain) * grain - streams, 0)


def _surface(table: SpeculationTable) -> Callable[[int, Ints], Floats]:
    """Return a function of streams and extra tokens for the ms of a step: linear between what was measured, and beyond."""
    rows: list[tuple[Floats, Floats]] = []
    for streams, times in zip(table.streams, table.step_ms, strict=True):
        extra, place = np.unique(padded(streams, streams * np.array(table.lengths)), return_inverse=True)
        rows.append((extra / streams, np.bincount(place, times) / np.bincount(place)))

    def of(streams: int, extra: Ints) -> Floats:
        each = extra / streams
        right = min(max(bisect_left(table.streams, streams), 1), len(rows) - 1)
        if right == 0:
            return _line(each, *rows[0])
        low, high = table.streams[right - 1], table.streams[right]
        share = (streams - low) / (high - low)
        return (1 - share) * _line(each, *rows[right - 1]) + share * _line(each, *rows[right])

    return of


def _line(at: Floats, places: Floats, values: Floats) -> Floats:
    """Interpolate, and go on beyond the last place as between the last two."""
    found: Floats = np.interp(at, places, values)
    if len(places) > 1:
        found += np.maximum(at - places[-1], 0) * (values[-1] - values[-2]) / (places[-1] - places[-2])
    return found


class Shape:
    """Chooses how many guessed tokens a step takes, and keeps the shape of steps as long as another doesn't pay.

    A new shape costs about as much as guessing gains. So what is lost by keeping the present one is added up, and it
    changes when that exceeds the cost of the change FEWER or MORE times, as the new one has fewer or more guesses (renting or
    buying skis; Karlin, Manasse, Rudolph and Sleator 1988, where once is enough). A change is soon undone, and what more
    guesses are hoped to gain is the most of several estimates, so too much more often than too little.
    """

    FEWER, MORE = 2.0, 6.0

    def __init__(self) -> None:
        self._streams = self._extra = self._wanted = 0
        self._lost: defaultdict[int, float] = defaultdict(float)

    def choose(
        self, chances: Sequence[Sequence[float]], pace: Pace, room: int, *, least: int = 0, grain: int = GRAIN
    ) -> list[int]:
        """Return how many tokens of each guess to check so that tokens per second are most; between `least` and `room` in all.

        `chances` are those of `Confidence.of`, one list a sequence (empty: no guess). A step gives each sequence one token and
        those of its guess that are right. With guesses its size is rounded up to a multiple of `grain` tokens.
        """
        streams = len(chances)
        order = sorted(
            ((chance, number, index) for number, row in enumerate(chances) for index, chance in enumerate(row)),
            key=lambda entry: (-entry[0], entry[2]),
        )[: max(0, room)]
        most = len(order)
        sums = streams + np.cumsum([0.0, *(chance for chance, _, _ in order)])
        sizes = padded(streams, np.arange(min(least, most), most + 1), grain)
        stays = self._streams == streams and sizes[0] <= self._extra <= most + SCRATCH_TOKENS
        sizes = np.unique([*sizes, self._extra] if stays else sizes)
        tokens, times = sums[np.minimum(sizes, most)], pace.of(streams, sizes)
        best = int((tokens / times).argmax())
        self._wanted = int(sizes[best])
        if stays:
            gains = tokens * (times[best] / tokens[best]) - times  # ms, at the rate that is possible now
            gains -= gains[np.searchsorted(sizes, self._extra)]
            for size, gain in zip(sizes.tolist(), gains.tolist(), strict=True):
                self._lost[size] = max(0.0, self._lost[size] + gain)
            self._wanted = max(sizes.tolist(), key=self._lost.__getitem__)
            patience = self.MORE if self._wanted > self._extra else self.FEWER
            if self._lost[self._wanted] <= patience * pace.new_ms:
                self._wanted = self._extra
        taken = [0] * streams
        for _, number, index in order[: self._wanted]:
            taken[number] = max(taken[number], index + 1)
        return taken

    def step(self, streams: int, tokens: int) -> tuple[int, bool]:
        """Return how many tokens to pad a step without prefill with, and whether its shape is new."""
        extra = self._wanted
        if not 0 <= streams + extra - tokens <= SCRATCH_TOKENS:  # some that were chosen for found no room
            extra = int(padded(streams, np.array([tokens - streams]))[0])
        new = (streams, extra) != (self._streams, self._extra)
        if new:
            self._lost.clear()
        self._streams, self._extra = streams, extra
        return streams + extra - tokens, new

    def leave(self) -> None:
        """Know that a step has prefill: whatever comes next has a new shape."""
        self._streams = 0
        self._lost.clear()
