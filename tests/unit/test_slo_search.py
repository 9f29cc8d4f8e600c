"""The search for the highest load under an SLO, on servers that are pure functions of the load with noise."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from quicksilver.bench.slo import requests_needed
from quicksilver.bench.slo_search import Loads, Measure, rates, search, streams
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns import Sample, Slo
from quicksilver.nouns.slo_search import Attempt, SloSearch


def server(
    ttft_ms: Callable[[float], float],
    *,
    seed: int = 0,
    spread: float = 0.15,
    fail: Callable[[float], bool] = lambda _: False,
) -> tuple[Measure, list[tuple[float, int]]]:
    """A server whose median TTFT is a function of the load, with lognormal noise; and what is asked of it."""
    rng = random.Random(seed)
    asked: list[tuple[float, int]] = []

    def measure(load: float, requests: int, number: int) -> Sequence[Sample]:
        asked.append((load, requests))
        found = []
        for n in range(requests):
            begun = 1000.0 * number + n / load
            first = begun + ttft_ms(load) / 1000 * rng.lognormvariate(0, spread)
            arrivals = [first + 0.01 * k for k in range(5)]
            bad = fail(load) and n % 4 == 0
            found.append(
                Sample(
                    prompt_id=f"{len(asked)}-{n}", concurrency=max(1, round(load)), scheduled=begun, sent=begun,
                    first=None if bad else first, arrivals=[] if bad else arrivals, end=arrivals[-1],
                    completion_tokens=0 if bad else 5, error="http 429: full" if bad else None, round=number,
                )
            )  # fmt: skip
        return found

    return measure, asked


SLO = Slo.parse("ttft_p95<500ms,errors<1%")
P95 = 1.2798  # exp(0.15 * 1.6449), of the noise


def cliff(most: float) -> Callable[[float], float]:
    """A TTFT that is far from the limit up to a load, and far over it above."""
    return lambda load: 100 if load <= most else 900


def linear(limit_at: float) -> Callable[[float], float]:
    """A TTFT whose true p95 reaches 500 ms at a load."""
    return lambda load: 500 / P95 * (0.3 + 0.7 * load / limit_at)


def test_the_answer_is_right_over_fifty_seeds_in_few_runs() -> None:
    """The true answer is 11 streams: 11.5 would be at the limit."""
    answers, looks = [], []
    for seed in range(50):
        measure, asked = server(linear(11.5), seed=seed)
        found = search(measure, SLO, streams())
        assert found.best is not None
        answers.append(found.best)
        looks.append(len(asked))
    # A load that can't be told from one over the limit counts as not met, so the answer leans to the safe side.
    assert max(answers) <= 12, answers
    assert sum(answer > 11 for answer in answers) <= 5, answers
    assert sum(9 <= answer <= 11 for answer in answers) >= 40, answers
    assert max(looks) <= 12, looks


def test_a_cliff_is_found_exactly() -> None:
    for most in (1, 2, 3, 7, 8, 9, 100):
        measure, asked = server(cliff(most))
        found = search(measure, SLO, streams())
        assert (found.best, found.above) == (most, most + 1) if most < 40 else most * 0.95 <= (found.best or 0) <= most
        assert len({load for load, _ in asked}) == len(asked), "no look was needed twice"
        assert found.sure is not None
        assert found.sure > 0.95
        assert "meet ttft_p95<500ms,errors<1%" in found.verdict or most == 1


def test_each_look_is_long_enough_to_judge_the_percentile() -> None:
    measure, asked = server(lambda load: 100 if load <= 6 else 900)
    found = search(measure, SLO, streams())
    assert found.needed == requests_needed(SLO) == 72
    for load, requests in asked:
        assert requests == 72 + 2 * (load - 1)
    for attempt in found.attempts:
        assert attempt.judged == 72
        assert attempt.requests == 72 + 2 * (attempt.load - 1)
        assert attempt.goodput.requests == 72


def test_what_is_open_is_looked_at_longer_once_and_said() -> None:
    measure, asked = server(lambda load: 100 if load < 4 else 500 / P95)
    heard: list[tuple[Attempt, int]] = []
    found = search(measure, SLO, streams(), on_attempt=lambda *x: heard.append(x))
    assert [load for load, _ in asked] == [1, 2, 4, 4, 3]
    assert (found.best, found.above, found.sure) == (3, 4, None)
    four = found.at(4)
    assert four is not None
    assert (four.runs, four.judged, four.judgement.outcome) == (2, 3 * 72, "unsure")
    assert "Whether 4 streams would can't be said" in found.verdict
    assert [attempt.load for attempt, _ in heard] == [1, 2, 4, 4, 3]
    assert heard[-1][1] == 0


def test_where_even_one_stream_is_too_much_the_binding_term_is_named() -> None:
    measure, asked = server(lambda _: 900)
    found = search(measure, Slo.parse("ttft_p95<500ms,itl_p95<40ms"), streams())
    assert (found.best, found.above, len(asked)) == (None, 1, 1)
    assert found.verdict.startswith("Not even 1 stream meets ttft_p95<500ms,itl_p95<40ms: ttft_p95 binds (ttft_p95 is ")
    assert "over 500 ms" in found.verdict


def test_failing_requests_end_the_climb() -> None:
    measure, _ = server(lambda _: 100, fail=lambda load: load > 5)
    found = search(measure, SLO, streams())
    assert (found.best, found.above) == (5, 6)
    over = found.at(6)
    assert over is not None
    assert over.judgement.binding.term.metric == "errors"
    bare = search(server(lambda _: 100, fail=lambda load: load > 5)[0], Slo.parse("ttft_p95<500ms"), streams())
    assert bare.best == 5, "without a term on errors they count as requests that never end"
    assert "without end" in bare.verdict


def test_nothing_is_too_much() -> None:
    measure, asked = server(lambda _: 100)
    found = search(measure, SLO, streams(most=24))
    assert [load for load, _ in asked] == [1, 2, 4, 8, 16, 24]
    assert (found.best, found.above, found.sure) == (24, None, None)
    assert found.verdict.endswith("It is the most that was tried.")


def test_a_floor_on_a_rate_is_judged_at_the_highest_load() -> None:
    def at(floor: str) -> SloSearch:
        return search(
            server(lambda load: 100 if load <= 6 else 900)[0], Slo.parse(f"ttft_p95<500ms,{floor}"), streams()
        )

    assert at("requests_per_s>3").best == 6
    low = at("requests_per_s>60")
    assert low.best is None
    assert low.verdict.startswith("No load meets ttft_p95<500ms,requests_per_s>60: 6 streams is the most")
    with pytest.raises(BadInputError, match="no limit that a higher load could break"):
        search(server(lambda _: 1)[0], Slo.parse("tokens_per_s>5"), streams())


def test_rates_are_bisected_too_also_below_the_first() -> None:
    for limit in (0.2, 3.0, 41.0):
        measure, asked = server(cliff(limit))
        found = search(measure, SLO, rates())
        assert found.best is not None
        assert found.above is not None
        assert found.best <= limit < found.above <= 1.12 * found.best
        assert len(asked) <= 14
        assert f"{found.best:g} requests/s" in found.verdict
    assert search(server(lambda _: 900)[0], SLO, rates()).best is None


def test_a_server_that_dies_leaves_what_was_seen() -> None:
    measure, _ = server(lambda _: 100)

    def dying(load: float, requests: int, number: int) -> Sequence[Sample]:
        if number == 3:
            raise EngineError("It stopped answering.")
        return measure(load, requests, number)

    found = search(dying, SLO, streams())
    assert (found.best, found.ended) == (4, "It stopped answering.")
    assert [attempt.load for attempt in found.attempts] == [1, 2, 4]

    def dead(load: float, requests: int, number: int) -> Sequence[Sample]:
        raise EngineError("It stopped answering.")

    with pytest.raises(EngineError):
        search(dead, SLO, streams())


def test_the_document_is_read_again() -> None:
    found = search(server(linear(5.5))[0], SLO, streams())
    assert SloSearch.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("loads", [streams(), rates()], ids=str)
def test_there_is_nothing_between_neighbours_and_progress_ends_at_none(loads: Loads) -> None:
    assert loads.between(8, 8 * (1 + loads.tolerance)) is None
    middle = loads.between(8, 16)
    assert middle is not None
    assert 8 < middle < 16
    assert loads.left(8, 8.5) in (0, 1)
    assert loads.left(8, 16) >= 3
