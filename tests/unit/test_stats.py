"""Figures derived from raw Samples."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver.bench.stats import (
    bootstrap_sums,
    figures,
    interval,
    itl_ms,
    latency,
    mean_figure,
    ratio,
    speed,
    tpot_ms,
)
from quicksilver.nouns import Arrivals, Latency, Sample, Speed

durations = st.floats(min_value=0.001, max_value=1e6)


def sample(
    name: str = "p",
    sent: float = 0.0,
    tokens: int = 5,
    gap: float = 0.01,
    *,
    concurrency: int = 1,
    round: int = 0,  # noqa: A002  the Sample's word
    wait: float = 0.1,
    queued: float = 0.0,
    warmup: bool = False,
) -> Sample:
    """A request whose tokens arrive one by one, the first after `wait` s."""
    arrivals = [sent + wait + gap * i for i in range(tokens)]
    return Sample(
        prompt_id=name,
        concurrency=concurrency,
        scheduled=sent - queued,
        sent=sent,
        first=arrivals[0] if arrivals else None,
        arrivals=arrivals,
        end=arrivals[-1] if arrivals else sent + wait,
        prompt_tokens=100,
        completion_tokens=tokens,
        warmup=warmup,
        round=round,
    )


def failed(name: str, sent: float, end: float) -> Sample:
    return Sample(prompt_id=name, concurrency=1, scheduled=sent, sent=sent, end=end, error="connect: refused")


samples_of_a_round = st.lists(
    st.builds(
        sample,
        name=st.uuids().map(str),
        sent=st.floats(0, 100),
        tokens=st.integers(0, 40),
        gap=st.floats(0.001, 0.1),
        wait=st.floats(0.001, 1),
    ),
    min_size=1,
    max_size=12,
)


@given(st.lists(durations, min_size=1, max_size=50))
def test_percentiles_are_ordered_and_within_the_values(values: list[float]) -> None:
    found = latency(values)
    lowest, highest = min(values), max(values)
    assert lowest <= found.p50 * (1 + 1e-12)
    assert found.p99 <= highest * (1 + 1e-12)
    assert found.p50 <= found.p90 <= found.p95 <= found.p99
    assert found.count == len(values)
    assert found == latency(list(reversed(values)))


def test_percentiles_interpolate_linearly() -> None:
    found = latency([10.0, 20.0, 30.0, 40.0])
    assert (found.p50, found.p90, found.p95) == pytest.approx((25.0, 37.0, 38.5))


@given(st.floats(-1e6, 1e6), st.integers(2, 40), st.integers(0, 5))
def test_the_interval_of_constant_data_is_that_constant(value: float, count: int, seed: int) -> None:
    figure = mean_figure([value] * count, seed=seed)
    assert (figure.value, figure.low, figure.high) == pytest.approx((value, value, value), rel=1e-9, abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.integers(0, 5))
def test_the_interval_of_a_mean_is_ordered_within_the_values_and_repeatable(values: list[float], seed: int) -> None:
    figure = mean_figure(values, seed=seed)
    assert figure.low is not None
    assert figure.high is not None
    assert min(values) - 1e-9 <= figure.low <= figure.high <= max(values) + 1e-9
    assert figure == mean_figure(values, seed=seed)


def test_a_single_value_has_no_interval() -> None:
    assert mean_figure([0.5]).low is None


def test_bootstrap_matches_the_normal_interval_of_a_mean() -> None:
    values = np.random.default_rng(7).normal(10.0, 2.0, size=400)
    low, high = interval(bootstrap_sums(values[:, None], resamples=4000)[:, 0] / len(values))
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_bootstrap_draws_rows_whole() -> None:
    sums = bootstrap_sums([[1.0, 10.0], [2.0, 20.0], [5.0, 50.0]], resamples=50)
    assert sums.shape == (50, 2)
    assert np.allclose(sums[:, 1], 10 * sums[:, 0])
    assert np.all((sums[:, 0] >= 3) & (sums[:, 0] <= 15))
    assert len(set(sums[:, 0])) > 1


def test_one_round_by_hand() -> None:
    # Two streams: 0.0 to 0.14 and 0.05 to 0.39; 5 + 10 tokens in 0.39 s.
    found = speed([sample("a", concurrency=2), sample("b", 0.05, tokens=10, gap=0.02, wait=0.16, concurrency=2)], 2)
    assert found.tokens_per_s.value == pytest.approx(15 / 0.39)
    assert found.input_tokens_per_s == pytest.approx(200 / 0.39)
    assert found.requests_per_s == pytest.approx(2 / 0.39)
    assert found.ttft_ms.p50 == pytest.approx(130)
    assert found.itl_ms.count == 13
    assert found.itl_ms.p50 == pytest.approx(20)
    assert found.tpot_ms.p50 == pytest.approx(15)
    assert found.e2e_ms.p50 == pytest.approx(240)
    assert (found.requests, found.errors, found.rounds) == (2, 0, 1)
    assert (found.prompt_tokens_p50, found.completion_tokens_p50) == (100, 7.5)


def test_latency_counts_from_the_schedule() -> None:
    found = speed([sample(sent=5.0, queued=2.0)], 1)
    assert found.ttft_ms.p50 == pytest.approx(2100)
    assert found.e2e_ms.p50 == pytest.approx(2140)


def test_rounds_give_the_median_and_the_spread() -> None:
    rounds = [sample(f"p{i}", 100.0 * i, tokens=tokens, gap=0.0, round=i) for i, tokens in enumerate((10, 30, 20))]
    found = speed(rounds, 1)
    figure = found.tokens_per_s
    assert (figure.value, figure.low, figure.high) == pytest.approx((200, 100, 300))
    assert found.rounds == 3


def test_what_a_server_waits_between_turns_is_not_its_time() -> None:
    turns = [replace(sample(f"p{n}", 100.0 * n, tokens=11, wait=0.1, gap=0.01), turn=n) for n in range(3)]
    found = speed(turns, 1)
    assert found.tokens_per_s.value == pytest.approx(33 / 0.6)
    assert found.in_flight_mean == pytest.approx(1.0)
    assert (found.rounds, found.in_flight_max) == (1, 1)


@given(samples_of_a_round, st.lists(st.floats(0, 1000), min_size=12, max_size=12))
def test_when_turns_come_changes_no_figure(samples: list[Sample], moments: list[float]) -> None:
    turns = [replace(s, turn=number) for number, s in enumerate(samples)]
    moved = [
        replace(s, scheduled=s.scheduled + by, sent=s.sent + by, end=s.end + by)
        for s, by in zip(turns, moments, strict=False)
    ]
    assert speed(moved, 1).tokens_per_s.value == pytest.approx(speed(turns, 1).tokens_per_s.value)
    assert speed(moved, 1).requests_per_s == pytest.approx(speed(turns, 1).requests_per_s)


def test_answers_of_one_length_in_an_open_loop_have_no_interval() -> None:
    load = Arrivals(kind="constant", rate_per_s=2)
    same = [replace(sample(f"p{n}", n / 2, tokens=20), load=load.load_name) for n in range(12)]
    figure = figures(same, load).tokens_per_s
    assert (figure.low, figure.high) == (None, None)  # and not 40 to 40, as if that had been found out
    longer = [replace(s, completion_tokens=s.completion_tokens + n % 5) for n, s in enumerate(same)]
    figure = figures(longer, load).tokens_per_s
    assert figure.low is not None and figure.high is not None and figure.low < figure.value < figure.high


def test_warmup_and_other_concurrencies_are_left_out() -> None:
    one = [sample("a"), sample("b", 1.0)]
    noise = [sample("w", -50.0, warmup=True), sample("c", 70.0, concurrency=8)]
    assert speed([*noise, *one], 1) == speed(one, 1)


def test_failed_requests_cost_time_and_bring_no_tokens() -> None:
    good = sample("a", tokens=10, gap=0.1, wait=0.1)
    found = speed([good, replace(failed("b", 1.0, 2.0), completion_tokens=7)], 1)
    assert (found.requests, found.errors) == (2, 1)
    assert found.tokens_per_s.value == pytest.approx(5)
    assert found.ttft_ms.count == 1


def test_errors_are_counted_by_kind() -> None:
    broken = [
        replace(failed("a", 0.0, 1.0), error=error) for error in ("http 503: busy", "http 503: no", "timeout: 5 s")
    ]
    assert speed([sample("b"), *broken], 1).errors_by_kind == {"http 503": 2, "timeout": 1}


def test_speculation_shows_in_gaps_and_not_in_time_per_token() -> None:
    # Four tokens at once every 80 ms: the gaps are 80, and a token takes 20.
    burst = replace(
        sample("a", tokens=0), first=0.1, arrivals=[0.1 + 0.08 * i for i in range(6)], end=0.5, completion_tokens=21
    )
    found = speed([burst], 1)
    assert found.itl_ms.p50 == pytest.approx(80)
    assert found.tpot_ms.p50 == pytest.approx(20)
    assert found.tokens_per_piece == 3.5


@pytest.mark.parametrize("samples", [[], [failed("a", 0.0, 0.0)], [failed("a", 0.0, 1.0), failed("b", 1.0, 2.0)]])
def test_nothing_that_succeeded_is_a_speed_of_zero(samples: list[Sample]) -> None:
    found = speed(samples, 1)
    assert found.errors == found.requests == len(samples)
    assert found.tokens_per_s.value == 0
    assert {found.ttft_ms.count, found.itl_ms.count, found.tpot_ms.count, found.e2e_ms.count} == {0}
    assert Speed.model_validate_json(found.model_dump_json()) == found


def test_answers_of_no_and_of_one_token() -> None:
    found = speed([sample("none", tokens=0), sample("one", 1.0, tokens=1)], 1)
    assert found.errors == 0
    assert (found.ttft_ms.count, found.itl_ms.count, found.tpot_ms.count, found.e2e_ms.count) == (1, 0, 0, 2)
    assert found.tokens_per_s.value == pytest.approx(1 / 1.1)
    assert tpot_ms(sample(tokens=1)) is None


def test_pieces_of_one_read_leave_no_gap() -> None:
    burst = replace(sample(), arrivals=[1.0, 1.0, 1.0, 1.5, 1.5, 2.5])
    assert itl_ms(burst) == [500, 1000]


@given(samples_of_a_round)
def test_every_speed_is_ordered_and_can_be_stored(samples: list[Sample]) -> None:
    found = speed(samples, 1)
    figure = found.tokens_per_s
    assert figure.value >= 0
    if figure.low is not None and figure.high is not None:
        assert figure.low <= figure.high
    assert Speed.model_validate_json(found.model_dump_json()) == found


@given(samples_of_a_round)
def test_the_ratio_of_identical_samples_is_one(samples: list[Sample]) -> None:
    found = ratio(samples, samples, 1)
    if found is None:
        assert speed(samples, 1).tokens_per_s.value == 0
    else:
        assert found.value == pytest.approx(1)
        assert (found.low or 1) == pytest.approx(1)
        assert (found.high or 1) == pytest.approx(1)
        assert found.unit == "x"


def test_the_ratio_is_paired_by_round() -> None:
    # The machine is twice as slow in round 1; the ratio is 2 in both rounds all the same.
    slow = [sample("a", 0.0, tokens=10, gap=0.1, wait=0.1), sample("b", 50.0, tokens=10, gap=0.2, wait=0.2, round=1)]
    fast = [sample("a", 9.0, tokens=10, gap=0.05, wait=0.05), sample("b", 70.0, tokens=10, gap=0.1, wait=0.1, round=1)]
    found = ratio(fast, slow, 1)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))
    lone = [*fast, sample("c", 200.0, tokens=1000, round=2)]
    assert ratio(lone, slow, 1) == found, "a round without its pair counts for nothing"


def test_the_ratio_of_three_rounds_spans_their_spread() -> None:
    base = [sample("a", 10.0 * i, tokens=10, gap=0.0, round=i) for i in range(3)]
    fast = [sample("a", 10.0 * i, tokens=n, gap=0.0, round=i) for i, n in enumerate((20, 40, 80))]
    found = ratio(fast, base, 1)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((4, 2, 8))


def test_the_ratio_of_one_round_has_an_interval_over_prompts() -> None:
    base = [sample(f"p{i}", float(i), tokens=10) for i in range(20)]
    fast = [sample(f"p{i}", float(i), tokens=10 + i) for i in range(20)]
    found = ratio(fast, base, 1)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high


@given(
    st.lists(st.tuples(st.integers(2, 250), st.integers(2, 250), st.floats(0.01, 3)), min_size=1, max_size=6),
    st.floats(0.3, 3),
)
def test_where_an_answer_ends_does_not_change_the_ratio_at_lengths(
    answers: list[tuple[int, int, float]], faster: float
) -> None:
    """A side that does everything so many times as fast is that for one user, whatever it answers."""
    theirs = [replace(sample(f"p{n}", 9.0 * n, tokens=t, wait=w), turn=n) for n, (t, _, w) in enumerate(answers)]
    mine = [
        replace(sample(f"p{n}", 9.0 * n, tokens=t, wait=w / faster, gap=0.01 / faster), turn=n)
        for n, (_, t, w) in enumerate(answers)
    ]
    found = ratio(mine, theirs, 1, at_lengths=True)
    assert found is not None
    assert found.value == pytest.approx(faster)


def test_of_several_streams_short_answers_to_long_prompts_are_no_slower_server() -> None:
    """Four prompts that are read for six seconds: what was measured of int8 activations once, when they seemed to be half as fast."""

    def wave(lengths: tuple[int, ...]) -> list[Sample]:
        return [sample(f"p{n}", 0.0, tokens, wait=6.0, gap=0.03, concurrency=4) for n, tokens in enumerate(lengths)]

    theirs, mine = wave((69, 128, 58, 128)), wave((21, 58, 37, 128))
    plain, at_lengths = ratio(mine, theirs, 4), ratio(mine, theirs, 4, at_lengths=True)
    assert plain is not None
    assert at_lengths is not None
    assert plain.value < 0.65
    assert 0.85 < at_lengths.value < 1.1


def test_at_the_same_lengths_the_ratio_is_that_of_rates() -> None:
    base = [sample("a", 0.0, 5), sample("b", 1.0, 9), sample("c", 0.0, 5, round=1)]
    ours = [sample("a", 0.0, 5, 0.005), sample("b", 1.0, 9, 0.002), sample("c", 0.0, 5, 0.001, round=1)]
    for mine in (ours, base, [*ours, failed("d", 3.0, 4.0)], [replace(s, prompt_id="other") for s in ours]):
        assert ratio(mine, base, 1, at_lengths=True) == ratio(mine, base, 1)
    assert ratio([failed("a", 0.0, 1.0)], base, 1, at_lengths=True) is None


def test_there_is_no_ratio_to_nothing() -> None:
    assert ratio([sample()], [failed("a", 0.0, 1.0)], 1) is None
    assert ratio([], [sample()], 1) is None
    assert ratio([sample(round=1)], [sample(round=0)], 1) is None


def test_a_latency_without_values_is_null_in_json_and_comes_back_as_it_was() -> None:
    none, some = latency([]), latency([0.0, 3.0])
    assert json.loads(none.model_dump_json()) | {"p50": None, "p90": None, "p95": None, "p99": None, "count": 0} == (
        json.loads(none.model_dump_json())
    )
    assert json.loads(some.model_dump_json())["p50"] is not None
    for one in (none, some):
        assert Latency.model_validate_json(one.model_dump_json()) == one
    assert none.p50 == 0.0
    with pytest.raises(ValueError, match="p50"):
        Latency.model_validate_json('{"p50": "slow", "p90": 1, "p95": 1, "p99": 1}')
