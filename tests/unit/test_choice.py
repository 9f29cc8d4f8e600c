"""Which recipe wins, and what is said of the one that comes next."""

from __future__ import annotations

from pathlib import Path

import pytest

from quicksilver.bench.report import load_result
from quicksilver.nouns import Candidate, Figure, Result
from quicksilver.search.choice import choose

GOLDEN = Path(__file__).parents[1] / "golden" / "result.json"


@pytest.fixture
def result() -> Result:
    return load_result(GOLDEN)


def paced(candidate: Candidate, label: str, factor: float) -> Candidate:
    """Return a copy of another name that is `factor` times as fast."""
    speed = tuple(
        s.model_copy(
            update={"tokens_per_s": s.tokens_per_s.model_copy(update={"value": s.tokens_per_s.value * factor})}
        )
        for s in candidate.score.speed
    )
    score = candidate.score.model_copy(update={"speed": speed})
    return candidate.model_copy(update={"label": label, "score": score})


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (0.5, "Next comes slow, 50 % behind."),
        (0.65, "Next comes slow, 35 % behind."),
        (0.97, "Next comes slow, 3 % behind; runs vary by more than that, so take them as equal."),
        (1.0, "Next comes slow, less than 1 % behind; runs vary by more than that, so take them as equal."),
    ],
)
def test_how_far_the_next_is_behind_is_a_share_of_the_winner(result: Result, factor: float, said: str) -> None:
    baseline = next(c for c in result.candidates if c.baseline)
    _, best, why = choose([paced(baseline, "fast", 1.0), paced(baseline, "slow", factor)], result.goal)
    assert best == "fast"
    assert said in why


def test_what_ends_its_answers_early_is_not_slower_for_that(result: Result) -> None:
    """Its ratio to as-is is for answers of the same lengths, tokens/s and what a user pays are those of its own."""
    baseline = next(c for c in result.candidates if c.baseline)
    short = paced(baseline, "short", 0.9).model_copy(update={"baseline": False})
    speed = [s.model_copy(update={"ratio": Figure(value=1.2, unit="x")}) for s in short.score.speed]
    short = short.model_copy(update={"score": short.score.model_copy(update={"speed": tuple(speed)})})
    _, best, why = choose([baseline, short], result.goal)
    assert best == "short"
    assert f"Next comes {baseline.label}, 17 % behind." in why
