"""The figures of a ramp's steps: which requests are whose, and that no token is lost between two of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver.bench.ramp import steps
from quicksilver.bench.schedule import moments, streams_at
from quicksilver.bench.stats import figures
from quicksilver.nouns import Arrivals, Sample
from quicksilver.nouns.arrivals import ArrivalKind


def answered(load: Arrivals, number: int, sent: float, *, took: float = 0.5, tokens: int = 5, round: int = 0) -> Sample:  # noqa: A002
    arrivals = [sent + took * (n + 1) / tokens for n in range(tokens)]
    return Sample(
        f"p{number}", 9, sent, sent, first=arrivals[0], arrivals=arrivals, end=arrivals[-1], prompt_tokens=10,
        completion_tokens=tokens, finish="stop", load=load.load_name, round=round,
    )  # fmt: skip


def opened(load: Arrivals, count: int, **more: float) -> list[Sample]:
    return [answered(load, n, 100 + due, **more) for n, due in enumerate(moments(load, count))]  # type: ignore[arg-type]


def test_the_steps_of_a_rate() -> None:
    load = Arrivals(kind="constant", rate_per_s=1, rate_to_per_s=3, steps=2)
    slow, fast = steps(opened(load, 41, took=0.25), load)
    assert (slow.load, slow.rate_per_s, slow.requests) == ("at 1/s", 1, 10)
    assert (fast.load, fast.rate_per_s, fast.requests) == ("at 3/s", 3, 31)
    # Ten seconds each, at one and at three requests a second of five tokens each.
    assert slow.requests_per_s == pytest.approx(1, rel=0.1)
    assert fast.requests_per_s == pytest.approx(3, rel=0.1)
    assert slow.tokens_per_s.value == pytest.approx(5, rel=0.1)
    assert fast.tokens_per_s.value == pytest.approx(15, rel=0.1)
    assert slow.in_flight_mean == pytest.approx(0.25, rel=0.1)
    assert fast.in_flight_mean == pytest.approx(0.75, rel=0.1)
    assert slow.keeps_up is None and slow.tokens_per_s.low is None


def test_an_answer_that_runs_into_the_next_step_counts_where_its_tokens_come() -> None:
    load = Arrivals(streams=1, streams_to=2, steps=2)
    samples = [answered(load, n, sent, took=10, tokens=10) for n, sent in enumerate((0.0, 10.0, 20.0, 21.0))]
    one, two = steps(samples, load)
    assert [s.load for s in (one, two)] == ["at 1 stream", "at 2 streams"]
    assert [s.concurrency for s in (one, two)] == [1, 2]
    # Up to 20 s all tokens of the first answer, and of the second all but the one that comes with the next step's first request.
    assert one.tokens_per_s.value == pytest.approx(19 / 20)
    assert two.tokens_per_s.value == pytest.approx(21 / 11)
    assert (one.requests, two.requests) == (2, 2)


@given(
    st.sampled_from(("closed", "poisson", "constant")), st.integers(2, 6), st.integers(1, 60), st.floats(0.01, 30), st.integers(1, 3)
)  # fmt: skip
def test_every_request_and_every_token_is_in_one_step(
    kind: ArrivalKind, levels: int, count: int, took: float, rounds: int
) -> None:
    if kind == "closed":
        load = Arrivals(streams=1, streams_to=8, steps=levels)
        sent = [n * took / max(1, level) for n, level in enumerate(streams_at(load, count))]
    else:
        load = Arrivals(kind=kind, rate_per_s=0.5, rate_to_per_s=4, steps=levels)
        sent = moments(load, count)
    samples = [answered(load, n, 7 + due, took=took, round=r) for r in range(rounds) for n, due in enumerate(sent)]
    found = steps(samples, load)
    assert sum(step.requests for step in found) == len(samples)
    assert [step.concurrency or step.rate_per_s for step in found] == sorted(
        {s.concurrency or s.rate_per_s for s in found}
    )  # type: ignore[type-var]
    assert sum(step.ttft_ms.count for step in found) == len(samples)
    whole = figures(samples, load)
    if len(found) == 1:
        assert found[0].tokens_per_s.value == pytest.approx(whole.tokens_per_s.value)
    assert min(s.tokens_per_s.value for s in found) <= whole.tokens_per_s.value * 1.000001
    assert max(s.tokens_per_s.value for s in found) >= whole.tokens_per_s.value * 0.999999


@pytest.mark.parametrize(
    "load",
    [Arrivals.closed(4), Arrivals.poisson(2), Arrivals(kind="poisson", rate_per_s=1, rate_to_per_s=2),
     Arrivals(kind="trace", times_s=tuple(map(float, range(20))))],
)  # fmt: skip
def test_other_loads_have_no_steps(load: Arrivals) -> None:
    sent = moments(load, 20) if load.is_open else [float(n) for n in range(20)]
    assert steps([answered(load, n, due) for n, due in enumerate(sent)], load) == ()


def test_streams_that_rise_evenly_have_a_step_for_each_number() -> None:
    load = Arrivals(streams=2, streams_to=5)
    found = steps([answered(load, n, float(n)) for n in range(40)], load)
    assert [(s.load, s.requests) for s in found] == [(f"at {n} streams", 10) for n in range(2, 6)]
    assert steps([], load) == ()


def test_of_several_rounds_rates_have_a_range() -> None:
    load = Arrivals(streams=1, streams_to=2, steps=2)
    samples = [answered(load, n, 100.0 * r + n * (1 + r), round=r) for r in range(2) for n in range(10)]
    one, _ = steps(samples, load)
    assert one.tokens_per_s.low == pytest.approx(2.5)
    assert one.tokens_per_s.high == pytest.approx(5)
    assert one.tokens_per_s.value == pytest.approx(3.75)
    assert one.requests == 10
