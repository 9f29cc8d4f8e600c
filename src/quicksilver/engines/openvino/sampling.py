"""Sampling: from a row of logits to a token, as the request asks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quicksilver.engines.grammar import Grammar
from quicksilver.nouns.engine import Request

Row = NDArray[np.float32]


@dataclass(slots=True)
class Choice:
    """A token and what is known about it."""

    token: int
    logprob: float | None = None
    """Natural logarithm of its probability in the model's own distribution, before temperature and penalties."""
    top: list[tuple[int, float]] = field(default_factory=list)
    """The likeliest tokens, the likeliest first."""


class Sampler:
    """Chooses the tokens of one sequence. Each takes one random number, so speculation doesn't change what a seed gives."""

    def __init__(self, request: Request, eos: frozenset[int], grammar: Grammar | None = None) -> None:
        self._request = request
        self._grammar = grammar
        self._eos = np.array(sorted(eos), dtype=np.int64)
        self._random = np.random.default_rng(None if request.seed is None else request.seed % 2**64)
        self._counts: Counter[int] = Counter()
        self._bias = (
            np.array([*request.logit_bias], dtype=np.int64),
            np.array([*request.logit_bias.values()], dtype=np.float32),
        )
        self.plain = not (
            request.temperature > 0
            or request.logprobs
            or request.presence_penalty
            or request.frequency_penalty
            or request.logit_bias
            or grammar is not None
        )
        """Whether, once min_tokens are there, the likeliest token is all that is asked for."""
        self.over = False
        """Whether the grammar is complete: only the end may follow."""

    def choose(self, logits: Row, given: int) -> Choice:
        """Return the next token after `given` generated ones; `logits` is (vocabulary,) and isn't changed.

        Raises ValueError if the grammar leads nowhere.
        """
        request, grammar = self._request, self._grammar
        changed = logits
        forbids = given < request.min_tokens and len(self._eos) > 0
        if forbids or self._counts or len(self._bias[0]) or grammar is not None:
            changed = logits.copy()
            if self._counts:
                seen = np.fromiter(self._counts.keys(), np.int64)
                times = np.fromiter(self._counts.values(), np.float32)
                changed[seen] -= request.presence_penalty + request.frequency_penalty * times
            changed[self._bias[0]] += self._bias[1]
            if grammar is not None:
                endless = forbids or request.ignore_eos or len(self._eos) == 0
                changed[~grammar.allowed(len(logits), end=not endless)] = -np.inf
            elif forbids:
                changed[self._eos] = -np.inf
        token = int(changed.argmax()) if request.temperature <= 0 else self._draw(changed)
        if request.presence_penalty or request.frequency_penalty:
            self._counts[token] += 1
        if grammar is not None:
            grammar.take(token)
            self.over = grammar.over
        if not request.logprobs:
            return Choice(token)
        top = logits.max()
        total = float(top) + float(np.log(np.exp(logits - top, dtype=np.float32).sum(dtype=np.float64)))
        return Choice(token, float(logits[token]) - total, best(logits, total, request.top_logprobs))

    def _draw(self, logits: Row) -> int:
        request = self._request
        scaled = logits.astype(np.float64) / request.temperature
        kept: NDArray[np.int64] | None = None
        if 0 < request.top_k < len(scaled):
            kept = np.argpartition(scaled, -request.top_k)[-request.top_k :]
            scaled = scaled[kept]
        chances = np.exp(scaled - scaled.max())
        if request.top_p < 1:
            # The likeliest tokens whose sum reaches top_p: the nucleus (Holtzman et al. 2020).
            order = np.argsort(-chances, kind="stable")
            sums = np.cumsum(chances[order])
            order = order[: int(np.searchsorted(sums, request.top_p * sums[-1])) + 1]
            chances = chances[order]
            kept = order if kept is None else kept[order]
        sums = np.cumsum(chances)
        index = min(int(np.searchsorted(sums, self._random.random() * sums[-1], side="right")), len(sums) - 1)
        return index if kept is None else int(kept[index])


def log_normaliser(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the logarithm of the sum of exponentials of each row; `logits` is (rows, vocabulary)."""
    top = logits.max(axis=1, keepdims=True)
    sums = np.exp(logits - top).sum(axis=1, dtype=np.float64)
    result: NDArray[np.float64] = top[:, 0].astype(np.float64) + np.log(sums)
    return result


def best(logits: Row, total: float, count: int) -> list[tuple[int, float]]:
    """Return the `count` likeliest tokens of a row with their log-probabilities, the likeliest first."""
    if count < 1:
        return []
    found = np.argpartition(logits, -count)[-count:] if count > 1 else logits.argmax(0, keepdims=True)
    found = found[np.argsort(-logits[found], kind="stable")]
    return [(int(token), float(logits[token]) - total) for token in found]
