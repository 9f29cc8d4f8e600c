"""Lookup: what followed the last few tokens earlier in the text, and how likely it is to follow again."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
MEMORY = 2000.0
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
    """How often guesses turn out right, learnt from those that were checked."""

    def __init__(self) -> None:
        self._right = np.array(PRIOR) * PRIOR_WEIGHT
        self._tried = np.full((LONGEST, DEPTH), PRIOR_WEIGHT)

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
        right_row, tried_row = self._right[match - 1], self._tried[match - 1]
        for index in range(min(right + 1, checked)):
            place = min(index, DEPTH - 1)
            tried_row[place] += 1
            right_row[place] += index < right
            if tried_row[place] > MEMORY:
                tried_row[place] *= 0.5
                right_row[place] *= 0.5


class Pace:
    """How long a step takes, by running streams and extra tokens, learnt from the last steps.

    A linear fit by ridge regression towards what is true of every machine that was measured: an extra token costs a few
    percent of a step (Hoerl and Kennard 1970). Times in ms.
    """

    STEPS = 512
    EVERY = 8
    """Steps between fits."""
    EXTRA_SHARE = 0.04
    """Of a step, for an extra token, as long as nothing else is known."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float, float]] = deque(maxlen=self.STEPS)
        self._seen = 0
        self._fit: NDArray[np.float64] | None = None

    def learn(self, streams: int, extra: int, ms: float) -> None:
        """Take in a step without prefill."""
        self._steps.append((streams, extra, ms))
        self._seen += 1
        if self._fit is None or self._seen % self.EVERY == 0:
            self._fit = self._fitted()

    def of(self, streams: int) -> tuple[float, float] | None:
        """Return the ms of a step without extra tokens and of each extra token; None before the first step."""
        if self._fit is None:
            return None
        start, each, extra = self._fit.tolist()
        base = max(start + each * streams, 0.1)
        return base, max(extra, 0.005 * base)

    def _fitted(self) -> NDArray[np.float64]:
        table = np.array(self._steps)
        middle = np.median(table[:, 2])
        times = np.minimum(table[:, 2], 3 * middle)  # what something else held up isn't the step's own time
        seen = np.column_stack([np.ones(len(table)), table[:, 0], table[:, 1]])
        prior = np.array([0.5 * middle, 0.5 * middle / np.mean(table[:, 0]), self.EXTRA_SHARE * middle])
        ridge = np.diag([1.0, 1.0, 8.0])
        fit: NDArray[np.float64] = np.linalg.solve(seen.T @ seen + ridge, seen.T @ times + ridge @ prior)
        return fit


def worthwhile(
    chances: Sequence[Sequence[float]], base_ms: float, extra_ms: float, *, room: int, grain: int = 1
) -> list[int]:
    """Return how many tokens of each guess to check so that tokens per second are most; at most `room` in all.

    `chances` are those of `Confidence.of`, one list a sequence (empty: no guess). A step gives each sequence one token and those
    of its guess that are right. With guesses its size is rounded up to a multiple of `grain` tokens, and that is what it costs.
    """
    streams = len(chances)
    order = sorted(
        ((chance, number, index) for number, row in enumerate(chances) for index, chance in enumerate(row)),
        key=lambda entry: (-entry[0], entry[2]),
    )[:room]
    best, tokens, most = 0, float(streams), streams / base_ms
    for count, (chance, _, _) in enumerate(order, 1):
        tokens += chance
        padded = -(-(streams + count) // grain) * grain - streams
        rate = tokens / (base_ms + extra_ms * padded)
        if rate > most:
            best, most = count, rate
    taken = [0] * streams
    for _, number, index in order[:best]:
        taken[number] = max(taken[number], index + 1)
    return taken
