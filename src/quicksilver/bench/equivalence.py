"""Greedy answers of two runs of one model, token by token: where they part, and whether it is at a near tie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quicksilver.bench.stats import percentiles, wilson
from quicksilver.errors import BadInputError
from quicksilver.nouns.certificate import Difference, Trial, Verdict
from quicksilver.nouns.score import Figure

NEAR_TIE = 0.5
"""Nats. A 16-bit logit of 16 to 32 is a multiple of 0.125, and with no technique at all one server's answers part at gaps of up to
0.5, by how many requests run beside them (docs/decisions/0009-certificate.md)."""
ROUNDING = 1e-6
"""Nats that are lost between a logit and the difference of two log-probabilities."""
END = -1
"""Stands for any token that ends an answer."""
BEST_TO_WORST: tuple[Verdict, ...] = ("not exercised", "identical", "near ties only", "fault")


@dataclass(frozen=True, slots=True)
class Output:
    """One greedy answer, as far as it was told."""

    prompt_id: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Natural, one a token."""
    likeliest: tuple[Mapping[int, float], ...] = ()
    """For each token the likeliest ones in its place with their log-probabilities; only the reference has them."""


@dataclass(frozen=True, slots=True)
class Parting:
    """The first place where two answers differ."""

    position: int
    expected: int | None
    """None: the answer was cut off there."""
    got: int | None
    gap: float | None
    """Nats; None if the token that was got isn't among the reference's likeliest."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a server told of its guesses; None where it told nothing."""

    guessed: int | None = None
    accepted: int | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under what a run was made."""

    name: str
    streams: int
    passes: int = 1
    changes: Mapping[str, Any] = field(default_factory=dict)
    exercised: bool | None = None


def parting(reference: Output, other: Output) -> Parting | None:
    """Return where an answer first parts from the reference's; None if they are the same."""
    mine, theirs = reference.tokens, other.tokens
    shared = min(len(mine), len(theirs))
    position = next((n for n in range(shared) if mine[n] != theirs[n]), shared)
    expected = mine[position] if position < len(mine) else None
    got = theirs[position] if position < len(theirs) else None
    if expected is None and got is None:
        return None
    told = position < len(reference.likeliest)
    return Parting(position, expected, got, lead(reference.likeliest[position], got) if told else None)


def lead(likeliest: Mapping[int, float], token: int | None) -> float | None:
    """Return by how many nats the likeliest token leads another; None if that one isn't among them."""
    return max(likeliest.values()) - likeliest[token] if token is not None and token in likeliest else None


def near(*gaps: float | None) -> bool:
    """Whether one of the gaps is one between tokens that are nearly as likely."""
    return any(gap is not None and gap <= NEAR_TIE + ROUNDING for gap in gaps)


def near_tie_share(reference: Sequence[Output]) -> float:
    """Return the share of the reference's tokens whose runner-up is nearly as likely. Raises ValueError without any."""
    rows = [sorted(row.values(), reverse=True) for output in reference for row in output.likeliest]
    if not rows:
        raise ValueError("The reference has no tokens.")
    return sum(len(row) > 1 and near(row[0] - row[1]) for row in rows) / len(rows)


def compare(
    reference: Sequence[Output],
    others: Sequence[Output],
    run: Conditions,
    counts: Counts = Counts(),
    *,
    text: Callable[[int], str] = str,
    look_again: Callable[[Output, Parting], float | None] = lambda *_: None,
) -> Trial:
    """Compare a run's answers with the reference's, prompt by prompt; `text` writes a token.

    `look_again` gives the gap (nats) at a parting in steps of another shape, for one that is no near tie in the reference run.
    Raises BadInputError if they aren't answers to the same prompts.
    """
    if not reference or [o.prompt_id for o in reference] != [o.prompt_id for o in others]:
        raise BadInputError("Only answers to the same prompts can be compared.")
    differences, drifts, tokens = [], [], 0
    for mine, theirs in zip(reference, others, strict=True):
        found = parting(mine, theirs)
        shared = len(mine.tokens) if found is None else found.position
        tokens += shared
        # Not strict: of a token that ended an answer the log-probability isn't always told.
        pairs = zip(mine.logprobs[:shared], theirs.logprobs[:shared], strict=False)
        drifts += [abs(one - other) for one, other in pairs]
        if found is not None:
            gap_read = None if near(found.gap) else look_again(mine, found)
            differences.append(
                Difference(
                    prompt_id=mine.prompt_id,
                    position=found.position,
                    expected=_written(found.expected, text),
                    got=_written(found.got, text),
                    gap=found.gap,
                    gap_read=gap_read,
                    near_tie=near(found.gap, gap_read),
                )
            )
    same, count = len(reference) - len(differences), len(reference)
    low, high = wilson(same, count)
    positions = [d.position for d in differences]
    gaps = [d.gap for d in differences if d.gap is not None]
    return Trial(
        name=run.name,
        changes=dict(run.changes),
        streams=run.streams,
        passes=run.passes,
        prompts=count,
        identical=same,
        share=Figure(value=same / count, low=low, high=high),
        tokens=tokens,
        first_min=min(positions, default=None),
        first_median=float(np.median(positions)) if positions else None,
        gap_median=float(np.median(gaps)) if gaps else None,
        gap_max=max(gaps, default=None),
        drift_p99=percentiles(drifts, (99,))[0] if drifts else None,
        differences=tuple(differences),
        guessed=counts.guessed,
        accepted=counts.accepted,
        exercised=run.exercised,
        verdict=judge(differences, exercised=run.exercised),
    )


def judge(differences: Sequence[Difference], *, exercised: bool | None) -> Verdict:
    """Return the verdict on one run: a fault stands, whether or not the technique had anything to do."""
    if any(not d.near_tie for d in differences):
        return "fault"
    if exercised is False:
        return "not exercised"
    return "near ties only" if differences else "identical"


def overall(trials: Sequence[Trial]) -> Verdict:
    """Return the verdict on a recipe: the worst of its trials'."""
    return max((t.verdict for t in trials), key=BEST_TO_WORST.index)


def exercised(changes: Mapping[str, Any], counts: Counts, prompt_tokens_max: int) -> bool | None:
    """Whether the engine settings that were changed did anything, as far as that can be known."""
    if not changes:
        return False
    known: list[bool | None] = []
    for name, value in changes.items():
        if name == "max_batched_tokens":
            # With several streams shorter prompts may be cut, too; a longer one is.
            known.append(prompt_tokens_max > value)
        elif name == "speculation" and value["kind"] == "prompt_lookup":
            known.append(None if counts.guessed is None else counts.guessed > 0)
        else:  # a draft guesses at every step, whatever its engine counts
            known.append(None)
    return True if True in known else None if None in known else False


def _written(token: int | None, text: Callable[[int], str]) -> str:
    return "(cut off)" if token is None else "(end)" if token == END else text(token)
