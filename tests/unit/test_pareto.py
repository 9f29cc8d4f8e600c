"""The Pareto front under noise, and which of its recipes the presets name."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver.nouns import Figure, Point, Quality, Sample, Score
from quicksilver.search import pareto


def figure(value: float, noise: float = 0.0) -> Figure:
    return Figure(value=value, low=value * (1 - noise), high=value * (1 + noise), unit="x")


def point(label: str, cost: float, latency: float, loss: float | None = 0.0, noise: float = 0.02) -> Point:
    return Point(
        label=label,
        cost=figure(cost, noise),
        latency=figure(latency, noise),
        loss=None if loss is None else Figure(value=loss, low=max(0.0, loss - 0.1), high=loss + 0.1),
        on_front=False,
    )


values = st.floats(0.05, 2.0)
noises = st.sampled_from([0.0, 0.01, 0.1, 0.9])


@st.composite
def clouds(draw: st.DrawFn, losses: bool = True) -> list[Point]:
    count = draw(st.integers(1, 8))
    return [
        Point(
            label=f"recipe {i}",
            cost=figure(draw(values), draw(noises)),
            latency=figure(draw(values), draw(noises)),
            loss=figure(draw(values), draw(noises)) if losses else None,
            on_front=False,
        )
        for i in range(count)
    ]


@given(clouds())
def test_nothing_dominates_the_front_and_something_dominates_the_rest(points: list[Point]) -> None:
    found = pareto.front(points)
    assert any(p.on_front for p in found)
    for one in found:
        assert one.on_front != any(pareto.dominates(other, one) for other in found)


@given(clouds(), st.integers())
def test_the_order_of_the_points_changes_nothing(points: list[Point], seed: int) -> None:
    mixed = random.Random(seed).sample(points, len(points))
    assert {p.label: p.on_front for p in pareto.front(points)} == {p.label: p.on_front for p in pareto.front(mixed)}


@given(clouds(), st.sampled_from(["cost", "latency", "loss"]))
def test_the_best_in_each_objective_is_on_the_front(points: list[Point], objective: str) -> None:
    found = pareto.front(points)
    best = min(getattr(p, objective).value for p in found)
    assert any(p.on_front for p in found if getattr(p, objective).value == best)


@given(clouds())
def test_nobody_dominates_back(points: list[Point]) -> None:
    for a in points:
        for b in points:
            assert not (pareto.dominates(a, b) and pareto.dominates(b, a))


@pytest.mark.parametrize(
    ("other", "on_front"),
    [
        (point("b", 0.6, 0.6), False),  # worse in two, beyond the noise
        (point("b", 0.51, 0.505), True),  # worse, and within the noise
        (point("b", 0.49, 0.9), True),  # nominally better in one
        (point("b", 0.6, 0.6, noise=0.5), True),  # too noisy to say
        (point("b", 0.5, 0.5, loss=0.5), False),  # only the quality is worse
    ],
)
def test_dominated_is_worse_beyond_the_noise_and_better_nowhere(other: Point, on_front: bool) -> None:
    a, b = pareto.front([point("a", 0.5, 0.5), other])
    assert a.on_front
    assert b.on_front == on_front


def test_quality_that_is_not_known_of_all_is_no_objective() -> None:
    a, b = pareto.front([point("a", 0.5, 0.5, loss=None), point("b", 0.8, 0.8, loss=0.0)])
    assert (a.on_front, b.on_front) == (True, False)


def test_presets_are_the_extremes_and_what_is_nearest_to_the_ideal() -> None:
    points = pareto.front(
        [
            point("as-is", 1.0, 1.0, noise=0.0),
            point("cheap", 0.4, 0.9, 0.9),
            point("quick", 0.9, 0.4, 0.9),
            point("both", 0.5, 0.5, 0.2),
        ]
    )
    found = {p.name: p.label for p in pareto.picks(points, 1.0, cost=None, latency=None)}
    assert found == {"cost": "cheap", "balanced": "both", "latency": "quick"}


def test_the_goals_winner_is_the_goals_preset() -> None:
    points = pareto.front([point("as-is", 1.0, 1.0), point("short race", 0.49, 0.5), point("won", 0.5, 0.5)])
    found = {p.name: p for p in pareto.picks(points, 1.0, cost="won", latency=None)}
    assert found["cost"].label == "won"
    assert "0.50x" in found["cost"].why
    assert found["latency"].label != "as-is"


def test_balanced_gives_up_nothing_against_what_only_a_short_race_has_seen() -> None:
    points = pareto.front([point("as-is", 1.0, 1.0), point("a short race", 0.85, 0.95), point("won", 0.9, 0.9)])
    balanced = pareto.picks(points, 1.0, cost="won", latency="won")[1]
    assert balanced.label == "won"
    assert "0 % of the gain in price and 0 % of the gain in latency given up" in balanced.why


def test_no_points_no_presets() -> None:
    assert pareto.picks([], 1.0, cost="gone", latency=None) == []


@given(clouds(), st.floats(0.0, 5.0))
def test_every_preset_is_of_the_front(points: list[Point], limit: float) -> None:
    found = pareto.front(points)
    labels = {p.label for p in found if p.on_front}
    chosen = pareto.picks(found, limit, cost=None, latency=None)
    assert [p.name for p in chosen] == ["cost", "balanced", "latency"]
    assert {p.label for p in chosen} <= labels


@given(st.lists(st.floats(0.2, 5.0), min_size=1, max_size=5), noises)
def test_the_price_is_one_over_the_mean_ratio_and_its_interval_holds_it(ratios: list[float], noise: float) -> None:
    noise = min(noise, 0.5)
    found = pareto.inverse_mean([figure(r, noise) for r in ratios])
    assert found.value == pytest.approx(1 / math.prod(ratios) ** (1 / len(ratios)))
    assert found.low is not None and found.high is not None
    assert found.low <= found.value * (1 + 1e-9) and found.high >= found.value * (1 - 1e-9)


def sample(prompt: str, seconds: float, *, number: int = 0, error: str | None = None) -> Sample:
    return Sample(prompt, 1, scheduled=10.0, sent=10.0, end=10.0 + seconds, round=number, error=error)


def test_latency_is_compared_over_the_prompts_that_both_answered() -> None:
    base = [sample("a", 2.0), sample("b", 4.0), sample("c", 6.0), sample("d", 100.0)]
    ours = [sample("a", 1.0), sample("b", 2.0), sample("c", 3.0), sample("d", 0.1, error="it died")]
    found = pareto.latency_ratio(ours, base, 1)
    assert found is not None
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5) and found.high == pytest.approx(0.5)
    assert pareto.latency_ratio(ours, [sample("a", 1.0, number=3)], 1) is None
    assert pareto.latency_ratio(ours, base, 8) is None


def test_a_gain_in_quality_counts_as_none() -> None:
    better = Figure(value=-0.3, low=-0.6, high=0.1)
    score = Score(quality=Quality(perplexity=9.0, loss_percent=better, tokens=100, prompts=4))
    found = pareto.point("x", score.model_copy(update={"speed": ()}), figure(0.5), baseline=True)
    assert found is not None and found.loss is not None and found.loss.value == 0.0
    assert pareto.point("x", score, figure(0.5), baseline=False) is None  # no speed
