"""Steady state, requests under way, whether a server keeps up, and intervals over requests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver.bench.bootstrap import ratio_figure
from quicksilver.bench.clock import ClockWatch
from quicksilver.bench.spread import Spread
from quicksilver.bench.stats import figures, latency
from quicksilver.bench.steady import in_flight, keeps_up, mser, onset
from quicksilver.nouns import Arrivals, Sample

OPEN = Arrivals.poisson(2.0)


def answered(due: float, seconds: float, tokens: int = 10, *, load: str = "", round: int = 0) -> Sample:  # noqa: A002
    return Sample(
        prompt_id="p",
        concurrency=1,
        scheduled=due,
        sent=due,
        first=due + seconds / 2,
        arrivals=[due + seconds / 2, due + seconds],
        end=due + seconds,
        completion_tokens=tokens,
        load=load,
        round=round,
    )


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40))
def test_the_cut_leaves_at_least_five(series: list[float]) -> None:
    assert 0 <= mser(np.array(series)) <= max(0, len(series) - 5)


def test_a_slow_start_is_cut_off() -> None:
    noise = np.random.default_rng(0).normal(1.0, 0.05, 100)
    slow = [answered(float(i), 3.0 if i < 15 else noise[i]) for i in range(100)]
    found = onset(slow)
    assert found is not None
    assert found.reached
    assert len(found.before) in (15, 20)
    assert found.requests == 100
    speed = figures(slow, Arrivals.closed(1))
    assert speed.steady is not None
    assert speed.steady.warm_up == len(found.before)
    assert speed.steady.ratio == pytest.approx(3.0, rel=0.35)
    assert (speed.requests, speed.steady.counted) == (100, 100)
    cut = figures(slow, Arrivals.closed(1), steady_only=True)
    assert cut.requests == 100 - len(found.before)
    assert cut.e2e_ms.p99 < 1500


def test_latencies_that_grow_to_the_end_have_no_steady_state() -> None:
    growing = [answered(float(i), 1.0 + i * i) for i in range(60)]
    found = onset(growing)
    assert found is not None
    assert not found.reached
    assert figures(growing, Arrivals.closed(1), steady_only=True).requests == 60, "and nothing is cut off"


def test_few_requests_are_not_looked_at() -> None:
    assert onset([answered(float(i), 1.0) for i in range(29)]) is None
    assert figures([answered(0.0, 1.0)], Arrivals.closed(1)).steady is None


def test_requests_under_way() -> None:
    assert in_flight([]) == (0.0, 0)
    # One second each, half of which two overlap: 3 s of requests in 2 s.
    assert in_flight([answered(0.0, 1.0), answered(0.5, 1.0), answered(1.0, 1.0)]) == (1.5, 2)


def queued(rate: float, capacity: float, count: int) -> list[Sample]:
    """A server that takes 1 / capacity s for each answer, one at a time, behind arrivals that are even."""
    free, found = 0.0, []
    for index in range(count):
        due = index / rate
        free = max(free, due) + 1 / capacity
        found.append(answered(due, free - due, load="x"))
    return found


@pytest.mark.parametrize(
    ("rate", "capacity", "count", "keeps"),
    [
        (5.0, 10.0, 100, True),
        (9.9, 10.0, 400, True),
        (20.0, 10.0, 100, False),
        (12.0, 10.0, 1000, False),
        (200.0, 10.0, 200, False),
    ],
)
def test_whether_a_server_keeps_up(rate: float, capacity: float, count: int, keeps: bool) -> None:
    assert keeps_up(queued(rate, capacity, count)) is keeps


def test_a_run_too_short_to_tell() -> None:
    assert keeps_up(queued(5.0, 10.0, 5)) is None
    assert keeps_up([answered(index / 10, 30.0) for index in range(40)]) is None


def test_an_open_load_says_what_was_asked_for() -> None:
    samples = [answered(index / 2, 0.1, load=OPEN.load_name) for index in range(20)]
    found = figures([*samples, answered(3.0, 9.0)], OPEN)
    assert (found.requests, found.load, found.arrivals, found.rate_per_s) == (20, "2/s", "poisson", 2.0)
    assert found.keeps_up is True
    assert found.in_flight_max == 1
    assert found.concurrency == 0
    trace = figures([answered(index / 4, 0.1, load="trace") for index in range(9)], Arrivals(kind="trace"))
    assert trace.rate_per_s == pytest.approx(4.0)
    assert figures(samples, Arrivals.closed(1)).requests == 0


rows = st.lists(st.lists(st.floats(0.01, 1e5), max_size=3), max_size=90)


@given(rows)
def test_intervals_are_ordered_around_their_percentiles(values: list[list[float]]) -> None:
    found = Spread(len(values)).latency(values)
    plain = latency([value for row in values for value in row])
    assert (found.p50, found.p90, found.p95, found.p99, found.count) == (
        plain.p50,
        plain.p90,
        plain.p95,
        plain.p99,
        plain.count,
    )
    for value, ci, least in (
        (found.p50, found.p50_ci, 6),
        (found.p90, found.p90_ci, 36),
        (found.p95, found.p95_ci, 72),
        (found.p99, found.p99_ci, 368),
    ):
        if sum(bool(row) for row in values) < least:
            assert ci is None
        else:
            assert ci is not None
            assert ci[0] <= value <= ci[1]
    assert found == Spread(len(values)).latency(values)


def test_the_interval_of_a_median_covers_it() -> None:
    random = np.random.default_rng(5)
    hits = 0
    for _ in range(50):
        ci = Spread(60, resamples=400).latency([[value] for value in random.exponential(10.0, 60)]).p50_ci
        assert ci is not None
        hits += ci[0] <= 10 * np.log(2) <= ci[1]
    assert hits >= 43


def test_gaps_of_one_answer_are_no_evidence_of_their_own() -> None:
    random = np.random.default_rng(1)
    levels = random.normal(20, 5, 20)
    alike = [[level] * 50 for level in levels]
    once = [[level] for level in levels]
    assert Spread(20).latency(alike).p50_ci == Spread(20).latency(once).p50_ci
    apart = Spread(1000).latency([[level] for level in levels for _ in range(50)]).p50_ci
    wide = Spread(20).latency(alike).p50_ci
    assert apart is not None
    assert wide is not None
    assert wide[1] - wide[0] > 2 * (apart[1] - apart[0])


def test_many_values_are_binned_without_much_loss() -> None:
    values = np.random.default_rng(2).exponential(10.0, 4000)
    found = Spread(4000).latency([[value] for value in values])
    assert found.p99_ci is not None
    half = (
        1.96 * np.sqrt(0.99 * 0.01 / 4000) / (0.01 / 10)
    )  # of an exponential's quantile: its density there is 0.01 / 10
    assert found.p99_ci[1] - found.p99_ci[0] == pytest.approx(2 * half, rel=0.4)


def test_a_ratio_of_sums_has_an_interval_over_rows() -> None:
    assert ratio_figure([(3, 6)]).value == 0.5
    assert ratio_figure([(3, 6)]).low is None
    same = ratio_figure([(1, 2)] * 8, scale=10)
    assert (same.value, same.low, same.high) == pytest.approx((5, 5, 5))


def test_clocks_that_agree_raise_no_doubt() -> None:
    watch = ClockWatch()
    for tick in range(50):
        now = 5.0 + tick / 10
        watch.look(now - 0.001, now, 1e9 + now * 1.0001, 77 + now)
    assert (watch.stalled_s, watch.asleep_s, watch.step_s) == (0, 0, 0)
    assert watch.late_p99_ms() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("late", "wall", "boot", "said"),
    [
        (0.0, 3600.0, 0.0, (0, 0, 3600)),
        (0.0, -30.0, 0.0, (0, 0, 30)),
        (0.0, 90.0, 90.0, (0, 90, 0)),
        (0.0, 95.0, 90.0, (0, 90, 5)),
        (2.5, 0.0, 0.0, (2.5, 0, 0)),
    ],
    ids=["set forwards", "set backwards", "asleep", "asleep and set", "stood still"],
)
def test_a_clock_that_jumps_is_seen(late: float, wall: float, boot: float, said: tuple[float, float, float]) -> None:
    watch = ClockWatch()
    watch.look(10.0, 10.0, 1000.0, 500.0)
    watch.look(10.1, 10.1 + late, 1000.1 + late + wall, 500.1 + late + boot)
    watch.look(10.2 + late, 10.2 + late, 1000.2 + late + wall, 500.2 + late + boot)
    assert (watch.stalled_s, watch.asleep_s, watch.step_s) == pytest.approx(said)
