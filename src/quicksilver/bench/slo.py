"""Hold Samples to an Slo: which terms are kept, by how much, how sure that is, and how many requests are good ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quicksilver.bench.bootstrap import requests_for
from quicksilver.bench.stats import LEVEL, interval, itl_ms, tpot_ms, wilson
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.score import Figure
from quicksilver.nouns.slo import DURATIONS, Slo, Term
from quicksilver.nouns.slo_search import Finding, Goodput, Judgement, Outcome

Floats = NDArray[np.float64]

RESAMPLES = 1000
TAIL = (1 - LEVEL) / 2
FEW, FEWEST = 30, 6
"""Requests from which a mean or a rate is judged, and without which nothing is sure, not even that a limit is broken."""
_CELLS = 4_000_000
"""Numbers that a bootstrap holds at once."""


def requests_needed(slo: Slo) -> int:
    """Return how many requests it takes until an interval of every percentile in an Slo has both ends.

    The largest of n values is above the p-quantile with probability 1 - p^n; that has to reach the interval's upper end
    (Wilks 1941): 72 requests for a p95, 368 for a p99 at 95 %; 30 without any percentile.
    """
    points = [p for term in slo.terms if (p := term.percentile) is not None]
    return max([requests_for(point) for point in points], default=FEW)


def judge(samples: Sequence[Sample], slo: Slo, *, resamples: int = RESAMPLES, seed: int = 0) -> Judgement:
    """Hold the Samples of one load to an Slo; warm-up is left out, and at least one other Sample has to be there.

    Intervals are of a circular block bootstrap over requests in the order in which they were sent (Politis and Romano 1992),
    with blocks of n^(1/3), since neighbours share the server's queue; gaps between tokens stay with their request. Unless the
    Slo has a term on errors, a failed request counts as one that never ends. An outcome is `unsure` if between 2.5 and
    97.5 % of the draws keep to the Slo, or if there are too few requests for an interval. A term on errors is judged by what
    was seen, and says what that shows.
    """
    ordered = sorted((s for s in samples if not s.warmup), key=lambda s: (s.round, s.sent))
    counts = _draws(len(ordered), resamples, seed)
    findings, kept = [], np.ones(resamples, dtype=bool)
    for term in slo.terms:
        finding, holds = _find(ordered, term, counts, strict=not slo.allows_errors)
        findings.append(finding)
        kept &= holds
    outcomes = {finding.outcome for finding in findings}
    probability = float(np.mean(kept))
    outcome: Outcome = "unsure" if "unsure" in outcomes or probability < 1 - TAIL else "meets"
    if "fails" in outcomes or (probability <= TAIL and len(ordered) >= FEWEST):
        outcome = "fails"
    return Judgement(findings=tuple(findings), outcome=outcome, probability=probability)


def good(sample: Sample, slo: Slo) -> bool:
    """Say whether a request succeeded within the limits that can be held to a single one.

    Of several terms on TTFT, TPOT or end-to-end latency the loosest counts, whatever its statistic; a term on gaps takes that
    statistic of the answer's own gaps. Terms on errors and rates are about loads, not requests.
    """
    if sample.error is not None:
        return False
    limits: dict[str, Term] = {}
    for term in slo.ceilings:
        if term.metric == "itl":
            gaps = itl_ms(sample)
            if gaps and not term.holds(_statistic(np.asarray(gaps), term)):
                return False
        elif term.metric != "errors" and (term.metric not in limits or limits[term.metric].limit < term.limit):
            limits[term.metric] = term
    for term in limits.values():
        value = _durations(sample, term.metric)
        if value and not term.holds(value[0]):
            return False
    return True


def goodput(samples: Sequence[Sample], slo: Slo) -> Goodput:
    """Return the goodput of some Samples under an Slo, warm-up left out; of none it is none of 0 requests."""
    chosen = [s for s in samples if not s.warmup]
    if not chosen:
        return Goodput(good=0, requests=0, share=Figure(value=0.0))
    count = sum(good(s, slo) for s in chosen)
    low, high = wilson(count, len(chosen))
    seconds = _seconds(chosen)
    return Goodput(
        good=count,
        requests=len(chosen),
        share=Figure(value=count / len(chosen), low=low, high=high),
        requests_per_s=count / seconds if seconds > 0 else None,
    )


def _seconds(samples: Sequence[Sample]) -> float:
    """Time under load: that of each round from its first request to its last end."""
    rounds: dict[int, tuple[float, float]] = {}
    for s in samples:
        begun, ended = rounds.get(s.round, (s.sent, s.end))
        rounds[s.round] = (min(begun, s.sent), max(ended, s.end))
    return sum(ended - begun for begun, ended in rounds.values())


def _durations(sample: Sample, metric: str) -> list[float]:
    """A successful request's durations of one metric, ms: one, none, or a gap for each piece after the first."""
    match metric:
        case "ttft":
            return [] if sample.first is None else [(sample.first - sample.scheduled) * 1000]
        case "tpot":
            return [] if (value := tpot_ms(sample)) is None else [value]
        case "itl":
            return itl_ms(sample)
    return [(sample.end - sample.scheduled) * 1000]


def _draws(count: int, resamples: int, seed: int) -> Floats:
    """How often each of `count` requests is in each draw, (resamples, count): circular blocks, cut to `count` in all."""
    block = max(1, round(count ** (1 / 3)))
    blocks = math.ceil(count / block)
    starts = np.random.default_rng(seed).integers(0, count, size=(resamples, blocks))
    picked = (starts[:, :, None] + np.arange(block)).reshape(resamples, -1)[:, :count] % count
    rows = np.arange(resamples)[:, None] * count
    counts = np.bincount((picked + rows).ravel(), minlength=resamples * count)
    found: Floats = counts.reshape(resamples, count).astype(np.float64)
    return found


def _find(samples: Sequence[Sample], term: Term, counts: Floats, *, strict: bool) -> tuple[Finding, NDArray[np.bool_]]:
    """Judge one term; return what was found, and for each draw whether it keeps to the term."""
    if term.metric == "errors":
        return _errors(samples, term, len(counts))
    if term.metric not in DURATIONS:
        value, draws = _rate(samples, term.metric, counts)
        owners = len(samples)
    else:
        values, owner = _values(samples, term.metric, strict=strict)
        owners = len(set(owner.tolist()))
        if not owners:
            return _nothing(term), np.ones(len(counts), dtype=bool)
        value, draws = _statistic(values, term), _statistics(values, owner, counts, term)
    holds = np.array([term.holds(draw) for draw in draws])
    probability = float(np.mean(holds))
    outcome: Outcome = "meets" if probability >= 1 - TAIL else "fails" if probability <= TAIL else "unsure"
    low, high = _ends(draws)
    few = owners < requests_needed(Slo(terms=(term,)))
    if few:
        high = None if term.ceiling else high
        outcome = "unsure" if outcome == "meets" or owners < FEWEST else outcome
    finding = Finding(
        term=term,
        figure=Figure(value=min(value, 1e12), low=low, high=high, unit=term.unit),
        outcome=outcome,
        probability=probability,
        margin=_margin(term, value),
        requests=owners,
        remark="too few requests to be sure" if few and outcome == "unsure" else "",
    )
    return finding, holds


def _nothing(term: Term) -> Finding:
    return Finding(
        term=term,
        figure=Figure(value=0.0, unit=term.unit),
        outcome="unsure",
        probability=0.5,
        margin=0.0,
        requests=0,
        remark="no request has such a time",
    )


def _ends(draws: Floats) -> tuple[float | None, float | None]:
    """The interval of draws that may be infinite; an infinite end is none."""
    finite = np.minimum(draws, 1e15)
    low, high = interval(finite)
    return (low if low < 1e12 else None), (high if high < 1e12 else None)


def _margin(term: Term, value: float) -> float:
    """Room as a share of the limit, between -1e6 and 1."""
    if term.limit == 0:
        return 1.0 if term.holds(value) else -1e6
    room = 1 - value / term.limit if term.ceiling else value / term.limit - 1
    return max(room, -1e6)


def _errors(samples: Sequence[Sample], term: Term, resamples: int) -> tuple[Finding, NDArray[np.bool_]]:
    failed = sum(s.error is not None for s in samples)
    low, high = (100 * share for share in wilson(failed, len(samples)))
    percent = 100 * failed / len(samples)
    seen = term.holds(percent)
    outcome: Outcome = "meets" if seen else "unsure" if term.holds(low) else "fails"
    shown = high if not term.holds(high) and seen else None
    finding = Finding(
        term=term,
        figure=Figure(value=percent, low=low, high=high, unit=term.unit),
        outcome=outcome,
        probability={"meets": 1.0, "unsure": 0.5, "fails": 0.0}[outcome],
        margin=_margin(term, percent),
        requests=len(samples),
        remark=f"{failed} of {len(samples)} failed, which shows no more than errors below {shown:.2g} %"
        if shown
        else "",
    )
    return finding, np.full(resamples, outcome != "fails")


def _values(samples: Sequence[Sample], metric: str, *, strict: bool) -> tuple[Floats, NDArray[np.int64]]:
    """All durations of one metric, ms, and the place of the request that each belongs to."""
    values: list[float] = []
    owner: list[int] = []
    for place, sample in enumerate(samples):
        own = _durations(sample, metric) if sample.error is None else [math.inf] if strict else []
        values += own
        owner += [place] * len(own)
    return np.asarray(values, dtype=np.float64), np.asarray(owner, dtype=np.int64)


def _statistic(values: Floats, term: Term) -> float:
    """The term's statistic of durations: the percentile by linear interpolation, or the mean."""
    if term.percentile is None:
        return float(np.mean(values))
    if np.isinf(values).any():
        # numpy interpolates between infinities to nan; the next value above is what counts then.
        return float(np.percentile(values, term.percentile, method="higher"))
    return float(np.percentile(values, term.percentile))


def _statistics(values: Floats, owner: NDArray[np.int64], counts: Floats, term: Term) -> Floats:
    """The term's statistic in each draw: a value is in it as often as its request, by `counts` (resamples, requests)."""
    order = np.argsort(values)
    ranked, owner = values[order], owner[order]
    unbounded = np.isinf(ranked)
    finite = np.where(unbounded, 0.0, ranked)
    found = np.empty(len(counts))
    step = max(1, _CELLS // len(values))
    for start in range(0, len(counts), step):
        weights = counts[start : start + step][:, owner]
        if term.percentile is None:
            means = weights @ finite / np.maximum(weights.sum(axis=1), 1.0)
            found[start : start + step] = np.where((weights @ unbounded) > 0, np.inf, means)
            continue
        reached = np.cumsum(weights, axis=1)
        place = (reached < term.percentile / 100 * reached[:, -1:]).sum(axis=1)
        found[start : start + step] = ranked[np.minimum(place, len(ranked) - 1)]
    return found


def _rate(samples: Sequence[Sample], metric: str, counts: Floats) -> tuple[float, Floats]:
    """A load's tokens or requests a second, and its draws: spread like what its requests did over the time they were busy."""
    seconds = _seconds(samples)
    did = np.array(
        [
            0.0 if s.error is not None else float(s.completion_tokens) if metric == "tokens_per_s" else 1.0
            for s in samples
        ]
    )
    busy = np.array([max(s.end - s.sent, 1e-9) for s in samples])
    if seconds <= 0 or not did.any():
        return 0.0, np.zeros(len(counts))
    value = float(did.sum() / seconds)
    draws: Floats = value * ((counts @ did) / (counts @ busy)) / (did.sum() / busy.sum())
    return value, draws
