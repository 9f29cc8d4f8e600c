"""The KL divergence of two models' next tokens, from the likeliest tokens that their servers tell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quicksilver.bench.quality import PromptLogprobs

LIKELIEST = 10
"""Tokens that are asked for at each position."""
EVERY = 8
"""Of the positions of a prompt's text every eighth is kept; of an answer's, all."""
TINY = 1e-9
"""Probability below which what is left over is rounding."""


def places(text: int, own: int) -> list[int]:
    """Return the positions to keep the likeliest tokens of, for a text of so many tokens with an answer after it."""
    return [*range(EVERY, text, EVERY), *range(text, text + own)]


def read(told: Any, wanted: Iterable[int]) -> dict[int, dict[int, float]]:
    """Read the likeliest tokens at some positions, in vLLM's form (`token_id:17`); positions without them are left out."""
    found: dict[int, dict[int, float]] = {}
    for place in wanted:
        row = told[place] if isinstance(told, list) and place < len(told) else None
        if not isinstance(row, dict):
            continue
        ids = {int(name[9:]): float(value) for name, value in row.items() if name.startswith("token_id:")}
        if len(ids) > 1:  # the token that is there alone says nothing of the others
            found[place] = ids
    return found


def at_least(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float:
    """Return a lower bound of KL(theirs || ours), nats, from some tokens' log-probabilities.

    The tokens that both name are compared one by one, and all others as if they were one token. Putting tokens together never raises a
    divergence (log-sum inequality; Cover and Thomas, Elements of Information Theory, 2006, theorem 2.7.1), so what is truncated
    can only be missing.
    """
    shared = ours.keys() & theirs.keys()
    total = math.fsum(math.exp(theirs[token]) * (theirs[token] - ours[token]) for token in shared)
    rest = 1 - math.fsum(math.exp(theirs[token]) for token in shared)
    left = 1 - math.fsum(math.exp(ours[token]) for token in shared)
    if rest > TINY:
        total += rest * math.log(rest / max(left, TINY))
    return max(0.0, total)


def rows(
    candidate: Sequence[PromptLogprobs], baseline: Sequence[PromptLogprobs], *, own: bool = False
) -> dict[str, tuple[float, float]]:
    """Return, for each prompt, the sum of KL(as-is || candidate) over the positions that both have, and their number.

    Over the text of the prompts, or over the as-is model's `own` answers.
    """
    known = {item.prompt_id: item for item in baseline}
    found: dict[str, tuple[float, float]] = {}
    for item in candidate:
        base = known.get(item.prompt_id)
        if base is None or base.tokens != item.tokens:
            continue
        where = range(*(item.answer if own else item.text).indices(len(item.tokens)))
        both = [place for place in where if place in item.likeliest and place in base.likeliest]
        if both:
            gaps = [at_least(item.likeliest[place], base.likeliest[place]) for place in both]
            found[item.prompt_id] = (math.fsum(gaps), float(len(gaps)))
    return found
