"""Pareto: which recipes no other beats in price, latency and quality, and which of those suit one way of use.

A recipe is dominated if another is at least as good in every objective by the measured values, and in one of them better
beyond the noise: the intervals don't meet. "At least as good" goes by the values, for a reason: if it, too, went by intervals,
three noisy recipes could dominate each other in a circle, and the front could be empty. So a difference inside the noise
keeps a recipe on the front, and never puts one off it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quicksilver.bench import bootstrap
from quicksilver.nouns.preset import PresetName
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.score import Figure, Score
from quicksilver.nouns.tradeoff import Point

UNKNOWN_NOISE = 0.05
"""Share by which a figure without an interval may be off: what runs of one recipe differ by (see `choice`)."""
SMALL_GAIN = math.log(1.05)
"""A best recipe that gains less than this, as a logarithm, doesn't make small differences large."""


@dataclass(frozen=True, slots=True)
class Pick:
    """A recipe that a preset names, and why."""

    name: PresetName
    label: str
    why: str


def dominates(a: Point, b: Point, *, with_loss: bool = True) -> bool:
    """Whether `a` is at least as good as `b` in every objective by value, and better beyond the noise in one."""
    pairs = [(a.cost, b.cost), (a.latency, b.latency)]
    if with_loss and a.loss is not None and b.loss is not None:
        pairs.append((a.loss, b.loss))
    return all(x.value <= y.value for x, y in pairs) and any(_high(x) < _low(y) for x, y in pairs)


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points, in their order, with `on_front` set. Quality counts if it is known of all of them.

    Domination goes by values in all objectives, so it has no circles: somebody is always on the front, and in each
    objective it holds a point with the best value.
    """
    with_loss = all(point.loss is not None for point in points)
    return [
        point.model_copy(update={"on_front": not any(dominates(other, point, with_loss=with_loss) for other in points)})
        for point in points
    ]


def point(label: str, score: Score, latency: Figure | None, *, baseline: bool) -> Point | None:
    """Return a recipe's point; None if its speed wasn't measured beside the as-is model."""
    if baseline:
        exact = Figure(value=1.0, low=1.0, high=1.0, unit="x")
        return Point(label=label, cost=exact, latency=exact, loss=_loss(score, baseline=True), on_front=False)
    ratios = [speed.ratio for speed in score.speed if speed.ratio is not None and speed.ratio.value > 0]
    if not ratios or len(ratios) < len(score.speed) or latency is None or latency.value <= 0:
        return None
    return Point(
        label=label,
        cost=inverse_mean(ratios),
        latency=_noisy(latency),
        loss=_loss(score, baseline=False),
        on_front=False,
    )


def inverse_mean(ratios: Sequence[Figure]) -> Figure:
    """Return 1 over the geometric mean of some ratios: the price of a token where the machine's hour costs the same.

    The half-widths of the intervals, as logarithms, add up in quadrature: the loads are measured one after the other.
    """
    known = [_noisy(ratio) for ratio in ratios]
    middle = -sum(math.log(r.value) for r in known) / len(known)
    up = math.sqrt(sum(math.log(r.value / _low(r)) ** 2 for r in known)) / len(known)
    down = math.sqrt(sum(math.log(_high(r) / r.value) ** 2 for r in known)) / len(known)
    return Figure(value=math.exp(middle), low=math.exp(middle - down), high=math.exp(middle + up), unit="x")


def latency_ratio(samples: Sequence[Sample], baseline: Sequence[Sample], concurrency: int) -> Figure | None:
    """Return the median end-to-end time over the baseline's at one concurrency, in times ("x"); None if nothing is shared.

    Both medians are taken over the prompts that both answered in the same round; the interval is a 95 % bootstrap over
    these pairs (Efron and Tibshirani 1993, chapter 8).
    """
    ours, theirs = (
        {
            (s.round, s.prompt_id): s.end - s.scheduled
            for s in side
            if not s.warmup and s.error is None and s.concurrency == concurrency
        }
        for side in (samples, baseline)
    )
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    times = np.array([(ours[key], theirs[key]) for key in shared])
    value = float(np.divide(*np.median(times, axis=0)))
    if len(shared) < 2:
        return Figure(value=value, unit="x")
    drawn = np.random.default_rng(0).integers(len(shared), size=(bootstrap.RESAMPLES, len(shared)))
    middles = np.median(times[drawn], axis=1)
    low, high = bootstrap.interval(middles[:, 0] / middles[:, 1])
    return Figure(value=value, low=min(low, value), high=max(high, value), unit="x")


def picks(points: Sequence[Point], max_loss: float, *, cost: str | None, latency: str | None) -> list[Pick]:
    """Choose the recipes of the presets from the front.

    `cost` and `latency` are the recipe that won for that goal, which needs no second choice: it was raced longer than those
    that the front compares it with. `balanced` is the point of the front that is nearest to the ideal one, which would have
    the best price, the best latency and no loss at once (compromise programming: Yu 1973, Zeleny 1973; Marler and Arora 2004,
    section 3.4). Each axis runs from 0, what the preset for it has, to 1: for price and latency the as-is model, on a logarithmic
    scale, and for quality the loss that is allowed. What a short race has beyond a winner counts for nothing.
    """
    chosen = sorted((p for p in points if p.on_front), key=lambda p: (p.label not in (cost, latency), p.label))
    if not chosen:
        return []
    by_label = {p.label: p for p in points}
    cheapest = by_label.get(cost or "") or min(chosen, key=lambda p: (p.cost.value, p.latency.value))
    quickest = by_label.get(latency or "") or min(chosen, key=lambda p: (p.latency.value, p.cost.value))
    best_cost, best_latency = cheapest.cost.value, quickest.latency.value
    knee = min(chosen, key=lambda p: math.hypot(*axes(p, best_cost, best_latency, max_loss)))
    given_up = axes(knee, best_cost, best_latency, max_loss)
    words = [
        f"{100 * share:.0f} % of {what}"
        for share, what in zip(given_up, ("the gain in price", "the gain in latency", "the loss allowed"), strict=False)
    ]
    spent = f"{words[0]} and {words[1]} given up" + (f", {words[2]} taken" if knee.loss is not None else "")
    return [
        Pick("cost", cheapest.label, f"the lowest price per token: {cheapest.cost.value:.2f}x the as-is model's"),
        Pick("balanced", knee.label, f"nearest to the best price, the best latency and no loss at once: {spent}"),
        Pick("latency", quickest.label, f"the shortest answer for one user: {quickest.latency.value:.2f}x as-is"),
    ]


def axes(point: Point, best_cost: float, best_latency: float, max_loss: float) -> tuple[float, float, float]:
    """Return a point's distance from the ideal in price, latency and quality; 1 is the as-is model's, or the loss allowed.

    None is below 0: what is better than the ideal is as good as it.
    """

    def given_up(value: float, best: float) -> float:
        return max(0.0, math.log(value / best)) / max(SMALL_GAIN, -math.log(best))

    lost = point.loss.value if point.loss is not None else 0.0
    return (
        given_up(point.cost.value, best_cost),
        given_up(point.latency.value, best_latency),
        lost / max_loss if max_loss > 0 else lost,
    )


def _loss(score: Score, *, baseline: bool) -> Figure | None:
    """Return the quality loss, where a gain counts as none: a perplexity that falls by chance is no better quality."""
    found = score.quality.loss if score.quality is not None else None
    if found is None:
        return None
    if baseline:
        return Figure(value=0.0, low=0.0, high=0.0, unit="%")
    low, value, high = (max(0.0, x) for x in (_low(found), found.value, _high(found)))
    return found.model_copy(update={"value": value, "low": min(low, value), "high": max(high, value)})


def _noisy(figure: Figure) -> Figure:
    """Give a figure without an interval one."""
    if figure.low is not None and figure.high is not None:
        return figure
    return figure.model_copy(
        update={"low": figure.value / (1 + UNKNOWN_NOISE), "high": figure.value * (1 + UNKNOWN_NOISE)}
    )


def _low(figure: Figure) -> float:
    return figure.value if figure.low is None else min(figure.low, figure.value)


def _high(figure: Figure) -> float:
    return figure.value if figure.high is None else max(figure.high, figure.value)
