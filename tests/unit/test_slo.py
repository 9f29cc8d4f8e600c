"""Slo: what is written is what is meant, typos get a sentence, and Samples are judged with as much certainty as they have."""

from __future__ import annotations

import math
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver.bench.slo import good, goodput, judge, requests_needed
from quicksilver.errors import BadInputError
from quicksilver.nouns import Sample, Slo, Term
from quicksilver.nouns.slo import DURATIONS, RATES, STATISTICS

LIMITS = st.floats(min_value=1e-6, max_value=1e9, allow_nan=False)


@st.composite
def slos(draw: st.DrawFn) -> Slo:
    """Any Slo that doesn't contradict itself."""
    terms: list[Term] = []
    for metric in DURATIONS:
        chosen = sorted(draw(st.sets(st.sampled_from(STATISTICS[:4]))))
        limits = sorted(draw(st.lists(LIMITS, min_size=len(chosen), max_size=len(chosen))))
        relation = st.sampled_from(("<", "<="))
        terms += [
            Term.model_validate({"metric": metric, "statistic": s, "relation": draw(relation), "limit": limit})
            for s, limit in zip(chosen, limits, strict=True)
        ]
        if draw(st.booleans()):
            terms.append(
                Term.model_validate({"metric": metric, "statistic": "mean", "relation": "<", "limit": draw(LIMITS)})
            )
    if draw(st.booleans()) or not terms:
        terms.append(Term(metric="errors", relation="<=", limit=draw(st.floats(min_value=0, max_value=99.9))))
    terms += [
        Term.model_validate({"metric": m, "relation": ">", "limit": draw(LIMITS)}) for m in RATES if draw(st.booleans())
    ]
    return Slo(terms=tuple(draw(st.permutations(terms))))


@given(slos())
def test_what_is_written_is_read_again(slo: Slo) -> None:
    assert Slo.parse(str(slo)) == slo
    assert Slo.parse(re.sub("(,|[<>]=?)", r" \1 ", str(slo))) == slo


def test_units_and_forms() -> None:
    slo = Slo.parse(
        "ttft_p95<500ms, itl_p95 <= 40 ms,errors<0.1%,e2e_p99<2s,tpot_mean<30ms,tokens_per_s>100,requests_per_s>=0.5"
    )
    assert [(term.name, term.relation, term.limit, term.unit) for term in slo.terms] == [
        ("ttft_p95", "<", 500, "ms"),
        ("itl_p95", "<=", 40, "ms"),
        ("errors", "<", 0.1, "%"),
        ("e2e_p99", "<", 2000, "ms"),
        ("tpot_mean", "<", 30, "ms"),
        ("tokens_per_s", ">", 100, "tokens/s"),
        ("requests_per_s", ">=", 0.5, "requests/s"),
    ]
    assert str(slo) == (
        "ttft_p95<500ms,itl_p95<=40ms,errors<0.1%,e2e_p99<2000ms,tpot_mean<30ms,tokens_per_s>100,requests_per_s>=0.5"
    )
    assert [term.name for term in slo.floors] == ["tokens_per_s", "requests_per_s"]
    assert Slo.parse("errors<=0.02").terms[0].limit == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "The SLO is empty; write it as ttft_p95<500ms,"),
        ("ttft_p95<500ms,", "A term of the SLO is empty"),
        ("tttf_p95<500ms", "There is no SLO term named 'tttf_p95'; did you mean 'ttft_p95'?"),
        ("ttft-p95<500ms", "'ttft-p95<500ms' is not a term of an SLO; write one as ttft_p95<500ms."),
        ("error<1%", "did you mean 'errors'?"),
        ("throughput>5", "There is no SLO term named 'throughput'"),
        ("ttft<500ms", "'ttft' alone says too little; say of which requests, such as ttft_p95 or ttft_mean."),
        ("ttft_p101<500ms", "There is no percentile p101; known: p50, p90, p95, p99."),
        ("ttft_p97<500ms", "The percentile p97 isn't kept"),
        ("ttft_p95<500", "lacks its unit; write ttft_p95<500ms or ttft_p95<500s."),
        ("ttft_p95<5%", "ttft_p95 is a time, in ms or s."),
        ("ttft_p95<500us", "'500us' is not a number with ms or s."),
        ("ttft_p95>500ms", "ttft_p95 is limited from above; write ttft_p95<…."),
        ("ttft_p95=500ms", "ttft_p95 is limited from above"),
        ("tokens_per_s<100", "tokens_per_s is limited from below; write tokens_per_s>…."),
        ("tokens_per_s>100ms", "tokens_per_s is a rate, written without a unit."),
        ("ttft_p95<-5ms", "ttft_p95 can't be negative."),
        ("ttft_p95<0ms", "no ttft_p95 is below 0."),
        ("errors<0%", "write errors<=0% if none may fail."),
        ("errors<-1%", "errors can't be negative."),
        ("errors<100%", "a share of 100 % allows every request to fail"),
        ("errors<3", "a share of 300 % allows every request to fail"),
        ("errors<5ms", "errors is a share of the requests, in %."),
        ("ttft_p95<nanms", "'nanms' is not a number with ms or s."),
        ("ttft_p95<infs", "is not a number"),
        ("ttft_p95<1e999ms", "1e999 is too large to be a limit."),
        ("ttft_p95<1e308s", "is too large to be a limit."),
        ("ttft_p95<ms", "is not a number with ms or s."),
        ("ttft_p95<500ms,ttft_p95<300ms", "The SLO limits ttft_p95 twice: ttft_p95<500ms and ttft_p95<300ms; keep one"),
        (
            "ttft_p50<500ms,ttft_p99<300ms",
            "contradicts itself: with ttft_p99<300ms a limit of ttft_p50<500ms can't matter",
        ),
    ],
)
def test_what_can_not_be_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(BadInputError) as raised:
        Slo.parse(text)
    assert sentence in str(raised.value)
    assert str(raised.value).count("\n") == 0


@given(st.text(max_size=40))
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        slo = Slo.parse(text)
    except BadInputError:
        return
    assert Slo.parse(str(slo)) == slo


def sample(
    number: int, ttft_ms: float = 100.0, gap_ms: float = 10.0, tokens: int = 11, error: str | None = None
) -> Sample:
    begun = 0.5 * number
    arrivals = [] if error else [begun + ttft_ms / 1000 + gap_ms / 1000 * n for n in range(tokens)]
    return Sample(
        prompt_id=f"p{number}",
        concurrency=1,
        scheduled=begun,
        sent=begun,
        first=arrivals[0] if arrivals else None,
        arrivals=arrivals,
        end=arrivals[-1] if arrivals else begun + 0.01,
        completion_tokens=len(arrivals),
        error=error,
    )


def noisy(count: int, middle_ms: float, seed: int = 0, spread: float = 0.2) -> list[Sample]:
    rng = random.Random(seed)
    return [sample(n, ttft_ms=middle_ms * rng.lognormvariate(0, spread)) for n in range(count)]


def test_how_many_requests_a_percentile_takes() -> None:
    needed = {
        text: requests_needed(Slo.parse(text)) for text in ("ttft_p50<1s", "ttft_p90<1s", "ttft_p95<1s", "ttft_p99<1s")
    }
    assert list(needed.values()) == [6, 36, 72, 368]
    assert requests_needed(Slo.parse("ttft_p50<1s,e2e_p95<2s,errors<1%")) == 72
    # With one fewer the chance that none is above the p95 is over 2.5 %.
    assert 0.95**72 < 0.025 < 0.95**71


def test_far_from_the_limit_is_sure_and_near_it_is_not() -> None:
    slo = Slo.parse("ttft_p95<500ms")
    assert judge(noisy(80, 200), slo).outcome == "meets"
    assert judge(noisy(80, 800), slo).outcome == "fails"
    near = judge(noisy(80, 355), slo)
    assert near.outcome == "unsure"
    (finding,) = near.findings
    assert finding.figure.low is not None
    assert finding.figure.high is not None
    assert finding.figure.low < 500 < finding.figure.high
    assert 0.025 < near.probability < 0.975


def test_too_few_requests_meet_nothing_but_may_fail() -> None:
    slo = Slo.parse("ttft_p95<500ms")
    (finding,) = judge(noisy(71, 100), slo).findings
    assert finding.outcome == "unsure"
    assert finding.figure.high is None
    assert finding.remark == "too few requests to be sure"
    assert judge(noisy(20, 2000), slo).outcome == "fails"
    assert judge(noisy(3, 2000), slo).outcome == "unsure"


def test_intervals_hold_what_they_promise() -> None:
    """The true p95 of the distribution is inside of most intervals: 95 % bootstrap intervals of a p95 are a little short."""
    true = 300 * math.exp(0.2 * 1.6449)
    slo = Slo.parse("ttft_p95<500ms")
    inside = 0
    for seed in range(60):
        (finding,) = judge(noisy(150, 300, seed), slo, resamples=300).findings
        assert finding.figure.low is not None
        assert finding.figure.high is not None
        inside += finding.figure.low <= true <= finding.figure.high
    assert inside >= 49


def test_the_binding_term_is_the_one_with_the_least_room() -> None:
    slo = Slo.parse("ttft_p95<200ms,itl_p95<11ms,e2e_p50<10s,tokens_per_s>1")
    found = judge([sample(n) for n in range(80)], slo)
    assert found.outcome == "meets"
    assert found.binding.term.name == "itl_p95"
    assert found.binding.margin == pytest.approx(1 / 11)
    worse = judge([sample(n, ttft_ms=300) for n in range(80)], slo)
    assert worse.outcome == "fails"
    assert worse.binding.term.name == "ttft_p95"
    assert worse.binding.margin == pytest.approx(-0.5)


def test_failures_are_not_hidden_by_percentiles_of_the_rest() -> None:
    some = [sample(n, error="http 429: busy" if n % 10 == 0 else None) for n in range(100)]
    assert judge(some, Slo.parse("ttft_p95<500ms")).outcome == "fails"
    assert judge(some, Slo.parse("e2e_mean<500ms")).outcome == "fails"
    allowed = judge(some, Slo.parse("ttft_p95<500ms,errors<=30%"))
    assert allowed.outcome == "meets"
    assert judge(some, Slo.parse("ttft_p95<500ms,errors<1%")).outcome == "fails"
    assert judge(some, Slo.parse("errors<8%")).outcome == "unsure"


def test_no_failure_seen_says_what_it_shows() -> None:
    (finding,) = judge([sample(n) for n in range(80)], Slo.parse("errors<0.1%")).findings
    assert finding.outcome == "meets"
    assert finding.remark == "0 of 80 failed, which shows no more than errors below 4.6 %"


def test_rates_are_judged_from_below() -> None:
    every = [sample(n) for n in range(80)]  # two requests of 11 tokens a second, nearly
    assert judge(every, Slo.parse("requests_per_s>1.5,tokens_per_s>20")).outcome == "meets"
    assert judge(every, Slo.parse("requests_per_s>2.5")).outcome == "fails"
    assert judge(every, Slo.parse("tokens_per_s>30")).outcome == "fails"


def test_an_answer_without_gaps_has_no_itl() -> None:
    found = judge([sample(n, tokens=1) for n in range(80)], Slo.parse("itl_p95<40ms"))
    assert found.outcome == "unsure"
    assert found.findings[0].remark == "no request has such a time"


def test_warm_up_is_left_out() -> None:
    cold = sample(0, ttft_ms=10_000)
    cold.warmup = True
    assert (
        judge([cold, *(sample(n) for n in range(1, 80))], Slo.parse("ttft_p99<20s,ttft_p50<200ms"))
        .findings[0]
        .figure.value
        < 200
    )


def test_a_good_request_keeps_to_the_limits_of_its_own() -> None:
    slo = Slo.parse("ttft_p50<50ms,ttft_p95<200ms,itl_p95<20ms,errors<1%,tokens_per_s>1000")
    assert good(sample(0), slo), "the loosest limit on TTFT counts, and rates aren't a request's"
    assert not good(sample(0, ttft_ms=250), slo)
    assert not good(sample(0, gap_ms=25), slo)
    assert not good(sample(0, error="timeout: 600 s"), slo)
    assert good(sample(0, tokens=1, gap_ms=25), slo)


def test_goodput_counts_failures_as_not_good() -> None:
    every = [sample(n, ttft_ms=300 if n % 4 == 0 else 100, error="http 500: no" if n == 1 else None) for n in range(20)]
    found = goodput(every, Slo.parse("ttft_p95<200ms"))
    assert (found.good, found.requests, found.share.value) == (14, 20, 0.7)
    assert found.share.low is not None
    assert found.share.low < 0.7
    assert found.requests_per_s == pytest.approx(14 / (every[-1].end - every[0].sent))
    assert goodput([], Slo.parse("ttft_p95<200ms")).requests == 0
