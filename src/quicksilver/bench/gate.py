"""The quality gate: whether a recipe loses too much against the as-is model, or that can't be told from these prompts.

A loss is judged by its interval, from a bootstrap over prompts that both models read (drawn in pairs): it passes when the upper
end is within the limit, fails when the lower end is over it, and is undecided else. Undecided means more prompts, up to a
budget; what is undecided then has not passed. docs/decisions/0005-gate.md has the reasons.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from quicksilver.bench.stats import Floats, bootstrap_sums, percentiles
from quicksilver.nouns.goal import TASK_GUARD, Goal
from quicksilver.nouns.score import Figure, Judgement, Outcome, Term

ALPHA = 0.05
"""Chance of a wrong verdict on one term, over all looks; half of it on either side."""
QUALITY = "quality loss"
FIRST_LOOK = 8
RESAMPLES = 5_000
NEAR = 0.5
"""A loss nearer to its limit than this share of the interval's half may lie on either side of it."""
ROUNDING = 1e-9
EXPONENT_LIMIT = 700.0
"""exp of more is no float; a perplexity of e^700 says all there is to say."""

Row = tuple[float, float]
Measure = Callable[[Floats], Floats]
"""From sums of rows (..., 2) to percent (...)."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss by prompt: for each a pair of numbers whose sums give the loss, and how they do."""

    name: str
    rows: Mapping[str, Row]
    """By prompt id."""
    measure: Measure
    limit: float
    proof: bool = True
    confidence: float = 1 - ALPHA
    discrete: bool = False
    """Whether a prompt loses all or nothing, or nearly: no loss seen is then no proof that there is none."""


def perplexity_rise(sums: Floats) -> Floats:
    """Return the rise of perplexity, percent, for sums of log p - log p_as_is and of tokens."""
    rise: Floats = 100 * np.expm1(np.minimum(-sums[..., 0] / sums[..., 1], EXPONENT_LIMIT))
    return rise + 0.0  # of a minus zero, a zero


def relative_fall(sums: Floats) -> Floats:
    """Return the fall, percent, for sums of (as-is score - score) and of as-is scores."""
    fall: Floats = 100 * sums[..., 0] / sums[..., 1]
    return fall


def quality_loss(rows: Mapping[str, Row], goal: Goal, confidence: float = 1 - ALPHA) -> Loss:
    """Return the loss of perplexity under a goal's limit; rows are sums of log p - log p_as_is, and tokens."""
    return Loss(QUALITY, rows, perplexity_rise, goal.max_quality_loss, confidence=confidence)


def task_loss(metric: str, rows: Mapping[str, Row], goal: Goal, confidence: float = 1 - ALPHA) -> Loss:
    """Return the loss of a task's score under a goal's limit; rows are as-is score - score, and as-is score."""
    limit = TASK_GUARD if goal.max_task_loss is None else goal.max_task_loss
    return Loss(
        f"task loss ({metric})", rows, relative_fall, limit, goal.max_task_loss is not None, confidence, discrete=True
    )


def looks(planned: int) -> list[int]:
    """Return after how many prompts the gate looks: 8, 16, 32 and so on, and after all that are planned."""
    found = []
    at = FIRST_LOOK
    while at < planned:
        found.append(at)
        at *= 2
    return [*found, planned] if planned > 0 else []


def level(read: int, planned: int) -> float:
    """Return the confidence level of the interval at the look after `read` of `planned` prompts.

    Each look spends the share of ALPHA that belongs to the prompts since the one before: a linear spending function (Lan and
    DeMets 1983, Biometrika 70, 659). Their sum is ALPHA, which bounds the chance of an error at any look (Bonferroni).
    """
    before = max((at for at in looks(planned) if at < read), default=0)
    return 1 - ALPHA * (read - before) / max(planned, read, 1)


def fewest(confidence: float) -> int:
    """Return how many prompts an interval of some confidence needs at least.

    A bootstrap never leaves the range of what was drawn, and with n prompts all of them lie on one side of the truth (taken as their
    median) with a chance of 2^(1-n): the sign test's.
    """
    return math.ceil(1 - math.log2(1 - confidence) - ROUNDING)


def judge(
    losses: Sequence[Loss],
    *,
    groups: Mapping[str, str | None] | None = None,
    seed: int = 0,
) -> Judgement | None:
    """Judge some losses, and each in its worst group of prompts; None if there is none that can be judged.

    `groups` are the prompts' by id. A group is never asked to prove anything: it makes a recipe fail where it is shown to lose too
    much, with its share of the error (Bonferroni over the groups). Groups with too few prompts for that are left out.
    """
    terms: list[Term] = []
    for loss in losses:
        rows = list(loss.rows.values())
        if math.fsum(row[1] for row in rows) <= 0:
            continue
        terms.append(_term(loss.name, rows, loss, proof=loss.proof, confidence=loss.confidence, seed=seed))
        if worst := _worst_group(loss, groups or {}, seed):
            terms.append(worst)
    if not terms:
        return None
    outcome = _outcome(terms)
    binds = max(terms, key=lambda term: _binding(term, outcome))
    return Judgement(
        outcome=outcome,
        binds=binds.name,
        terms=tuple(terms),
        prompts=max(term.prompts for term in terms),
        reason=words(binds, outcome),
    )


def words(term: Term, outcome: Outcome | None = None) -> str:
    """Say what a term's verdict is and why: a sentence's end."""
    value, low, high = term.loss.value, term.loss.low, term.loss.high
    sure = f"with {100 * term.level:.3g} % confidence"
    prompts = f"{term.prompts} prompt{'s' if term.prompts > 1 else ''}"
    outcome = outcome or term.outcome
    if low is None or high is None:
        return f"{term.name} is undecided: {prompts} are too few to judge by, at least {fewest(term.level)} are needed"
    if outcome == "fails":
        return f"{term.name} {percent(value)} is over {term.limit:g} %: it is at least {percent(low)}, {sure}, on {prompts}"
    if outcome == "passes" and term.outcome == "passes":
        return f"{term.name} {percent(value)} is at most {percent(high)}, {sure}, on {prompts}; {term.limit:g} % is the limit"
    span = f"it may lie anywhere from {percent(low)} to {percent(high)}, and {term.limit:g} % is the limit"
    known = "isn't shown to be over its limit" if outcome == "passes" else "is undecided"
    span = f"{term.name} {percent(value)} {known}: {span}"
    if term.decide_at is None:
        return f"{span} ({prompts} were read)"
    return f"{span}; {'more than' if term.more_than else 'about'} {term.decide_at:,} prompts would decide, {prompts} were read"


def percent(value: float) -> str:
    """Write percent with as many digits as say something."""
    size = abs(value)
    text = f"{value:,.0f}" if size >= 99.95 else f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"
    return ("0.00" if text == "-0.00" else text) + " %"


def to_decide(value: float, low: float, high: float, limit: float, prompts: int) -> tuple[int, bool]:
    """Return how many prompts would decide, and whether that is only a lower bound.

    A bootstrap interval shrinks as 1/sqrt(n) (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 6.4), so the half of it
    that reaches over the limit gets as short as the distance to the limit at n (half / distance)^2. Where the distance is
    below NEAR of the half, the loss may be anywhere around the limit: then n / NEAR^2 is what is known not to do.
    """
    half = high - value if value <= limit else value - low
    distance = abs(limit - value)
    if distance <= NEAR * half:
        return math.ceil(prompts / NEAR**2), True
    return max(prompts + 1, math.ceil(prompts * (half / distance) ** 2)), False


def spread(rows: Sequence[Row], measure: Measure, confidence: float, seed: int = 0) -> tuple[float, float] | None:
    """Return the interval of a loss, percent: a percentile bootstrap, widened for few prompts; None if they are too few.

    The widening takes percentiles at Phi(sqrt(n / (n - 1)) t) in place of the nominal ones (Hesterberg, What Teachers Should Know
    About the Bootstrap, The American Statistician 69, 2015: the expanded percentile interval).
    """
    count = len(rows)
    if count < fewest(confidence):
        return None
    sums = bootstrap_sums(rows, resamples=RESAMPLES, seed=seed)
    draws = measure(sums[sums[:, 1] > 0])
    wide = NormalDist().cdf(math.sqrt(count / (count - 1)) * _student(1 - (1 - confidence) / 2, count - 1))
    low, high = percentiles(draws, (100 * (1 - wide), 100 * wide))
    return low, high


def _term(name: str, rows: Sequence[Row], loss: Loss, *, proof: bool, confidence: float, seed: int) -> Term:
    value = float(loss.measure(np.sum(rows, axis=0)))
    found = spread(rows, loss.measure, confidence, seed)
    if not loss.discrete and not any(row[0] for row in rows):
        found = 0.0, 0.0  # the same numbers at each of many tokens: it computes the same, and a few prompts show that
    elif found is not None and loss.discrete and not any(row[0] > 0 for row in rows):
        found = found[0], max(found[1], _unseen(sum(row[1] > 0 for row in rows), confidence))
    outcome: Outcome = "undecided"
    low = high = None
    at, more_than = None, False
    if found is not None:
        low, high = found
        if high <= loss.limit + ROUNDING:
            outcome = "passes"
        elif low > loss.limit + ROUNDING:
            outcome = "fails"
        else:
            at, more_than = to_decide(value, low, high, loss.limit, len(rows))
    return Term(
        name=name,
        outcome=outcome,
        loss=Figure(value=value, low=low, high=high, unit="%"),
        level=confidence,
        limit=loss.limit,
        proof=proof,
        prompts=len(rows),
        decide_at=at,
        more_than=more_than,
    )


def _unseen(prompts: int, confidence: float) -> float:
    """Return the percent that may be lost where none of so many prompts was: 100 (1 - a^(1/n)), for a chance of a on this side.

    That is the exact bound of a share of which nothing was seen (Hanley and Lippman-Hand 1983, JAMA 249, 1743: about 3/n). A bootstrap
    knows nothing of what wasn't drawn, and would call it 0.
    """
    return 100 * (1 - math.pow((1 - confidence) / 2, 1 / max(prompts, 1)))


def _worst_group(loss: Loss, groups: Mapping[str, str | None], seed: int) -> Term | None:
    members: defaultdict[str, list[Row]] = defaultdict(list)
    for prompt, row in loss.rows.items():
        name = groups.get(prompt)
        if name is not None:
            members[name].append(row)
    if len(members) < 2:
        return None
    # Its share of the error depends on how many are judged, and that on the share: by all of them it is on the safe side.
    share = 1 - (1 - loss.confidence) / len(members)
    judged = {
        name: rows for name, rows in members.items() if len(rows) >= fewest(share) and sum(row[1] for row in rows) > 0
    }
    if not judged:
        return None
    terms = [
        _term(f"{loss.name} in the group {name!r}", rows, loss, proof=False, confidence=share, seed=seed)
        for name, rows in judged.items()
    ]
    return max(terms, key=lambda term: (term.outcome == "fails", term.loss.value))


def _outcome(terms: Sequence[Term]) -> Outcome:
    if any(term.outcome == "fails" for term in terms):
        return "fails"
    return "undecided" if any(term.proof and term.outcome == "undecided" for term in terms) else "passes"


def _binding(term: Term, outcome: Outcome) -> tuple[bool, float]:
    """Rank terms by how much they have to do with an outcome."""
    reach = {"fails": term.loss.low, "undecided": term.loss.value, "passes": term.loss.high}[outcome]
    decides = term.outcome == outcome and (term.proof or outcome == "fails")
    return decides, (math.inf if reach is None else reach) / max(term.limit, ROUNDING)


def _student(chance: float, freedom: int) -> float:
    """Return the quantile of Student's t above one half, by Abramowitz and Stegun's expansion 26.7.5 (four terms).

    Within 1 % from 4 degrees of freedom on, up to chances of 0.998.
    """
    z = NormalDist().inv_cdf(chance)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * freedom**4)
    )
