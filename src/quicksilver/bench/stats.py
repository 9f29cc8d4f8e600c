"""From raw Samples to figures with their intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quicksilver.nouns.sample import Sample
from quicksilver.nouns.score import Figure, Latency, Speed

Floats = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95


def percentiles(values: ArrayLike, points: Sequence[float]) -> list[float]:
    """Return percentiles by linear interpolation between the order statistics (numpy's default, Hyndman and Fan's 7th).

    `values` is one-dimensional and not empty, `points` are percents.
    """
    return [float(value) for value in np.percentile(np.asarray(values, dtype=np.float64), points, method="linear")]


def latency(values_ms: Sequence[float]) -> Latency:
    """Return the percentiles of some durations, ms. Without any, all are 0 and `count` says that they mean nothing."""
    if not values_ms:
        return Latency(p50=0.0, p90=0.0, p95=0.0, p99=0.0, count=0)
    p50, p90, p95, p99 = percentiles(values_ms, (50, 90, 95, 99))
    return Latency(p50=p50, p90=p90, p95=p95, p99=p99, count=len(values_ms))


def bootstrap_sums(rows: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Resample rows with replacement and return the sums of their columns.

    `rows` is (n, k) with n at least 1; the result is (resamples, k). How often each row was drawn is multinomial, so one
    matrix product gives all the sums. Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 6.
    """
    table = np.asarray(rows, dtype=np.float64)
    count = len(table)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    sums: Floats = draws.astype(np.float64) @ table
    return sums


def interval(draws: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """Return the percentile interval of bootstrap draws (Efron and Tibshirani 1993, section 13.3)."""
    tail = 100 * (1 - level) / 2
    low, high = percentiles(draws, (tail, 100 - tail))
    return low, high


def mean_figure(values: Sequence[float], *, unit: str = "", seed: int = 0) -> Figure:
    """Return the mean of at least one value with its bootstrap interval; a single value has none."""
    value = float(np.mean(values))
    if len(values) < 2:
        return Figure(value=value, unit=unit)
    low, high = interval(bootstrap_sums(np.reshape(values, (-1, 1)), seed=seed)[:, 0] / len(values))
    return Figure(value=value, low=low, high=high, unit=unit)


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share of at least one trial (Wilson 1927); it means something at none and at all, too."""
    z = 1.959964
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * float(np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)))
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == count else middle + half)


def itl_ms(sample: Sample) -> list[float]:
    """Return the gaps between an answer's pieces, ms. What arrived in one read is one piece: it leaves no gap."""
    moments = sorted(set(sample.arrivals))
    return [(later - earlier) * 1000 for earlier, later in pairwise(moments)]


def tpot_ms(sample: Sample) -> float | None:
    """Return an answer's time per output token after its first, ms; None for answers of fewer than two tokens."""
    if sample.first is None or sample.completion_tokens < 2:
        return None
    return (sample.end - sample.first) * 1000 / (sample.completion_tokens - 1)


def speed(samples: Sequence[Sample], concurrency: int) -> Speed:
    """Derive the speed at one concurrency from its Samples; warm-up and other concurrencies are left out.

    tokens/s of a round: output tokens of its answers over the time from its first request to its last end, failed ones
    included. `tokens_per_s` is the median of the rounds and its interval their minimum and maximum; with one round it
    is a 95 % bootstrap over its requests, whose spread is taken from tokens over busy time (in a closed loop tokens/s is
    concurrency times that); with one request there is none. Latencies are taken over requests that succeeded, TTFT and
    end to end from the scheduled moment. If all failed, `errors` equals `requests`, tokens/s is 0 and each Latency
    has a count of 0.
    """
    chosen = [s for s in samples if not s.warmup and s.concurrency == concurrency]
    good = [s for s in chosen if s.error is None]
    rounds = list(_rounds(chosen).values())
    rates = [_rate(batch) for batch in rounds]
    first = [(s.first - s.scheduled) * 1000 for s in good if s.first is not None]
    return Speed(
        concurrency=concurrency,
        requests=len(chosen),
        errors=len(chosen) - len(good),
        tokens_per_s=_spread(rates, rounds),
        input_tokens_per_s=_median(rate.prompt_tokens for rate in rates),
        requests_per_s=_median(rate.requests for rate in rates),
        ttft_ms=latency(first),
        itl_ms=latency([gap for s in good for gap in itl_ms(s)]),
        tpot_ms=latency([value for s in good if (value := tpot_ms(s)) is not None]),
        e2e_ms=latency([(s.end - s.scheduled) * 1000 for s in good]),
        prompt_tokens_p50=_median(s.prompt_tokens for s in good),
        completion_tokens_p50=_median(s.completion_tokens for s in good),
        rounds=max(1, len(rounds)),
    )


def ratio(samples: Sequence[Sample], baseline: Sequence[Sample], concurrency: int) -> Figure | None:
    """Return tokens/s over the baseline's at one concurrency, paired by round, in times ("x").

    The value is the geometric mean of the rounds' ratios, its interval a 95 % bootstrap over rounds (of three or fewer it
    is their minimum and maximum). With one shared round it is a bootstrap over the prompts that both answered, drawn
    in pairs, of tokens over busy time. None if no round is shared in which both have tokens.
    """
    mine, theirs = (
        _rounds(s for s in side if not s.warmup and s.concurrency == concurrency) for side in (samples, baseline)
    )
    pairs = [(mine[number], theirs[number]) for number in sorted(mine.keys() & theirs.keys())]
    rates = [(_rate(ours).tokens, _rate(base).tokens) for ours, base in pairs]
    logs = np.log([ours / base for ours, base in rates if ours > 0 and base > 0])
    if not len(logs):
        return None
    value = float(np.exp(np.mean(logs)))
    if len(logs) > 1:
        low, high = interval(np.exp(bootstrap_sums(logs[:, None])[:, 0] / len(logs)))
        return Figure(value=value, low=low, high=high, unit="x")
    ours, base = next(pair for pair, rate in zip(pairs, rates, strict=True) if min(rate) > 0)
    spread = _paired_spread(ours, base)
    return (
        Figure(value=value, unit="x")
        if spread is None
        else Figure(value=value, low=value * spread[0], high=value * spread[1], unit="x")
    )


@dataclass(slots=True)
class _Rate:
    """What a round did, per second."""

    tokens: float = 0.0
    prompt_tokens: float = 0.0
    requests: float = 0.0


def _rounds(samples: Iterable[Sample]) -> dict[int, list[Sample]]:
    batches: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        batches[sample.round].append(sample)
    return batches


def _rate(batch: Sequence[Sample]) -> _Rate:
    good = [s for s in batch if s.error is None]
    seconds = max(s.end for s in batch) - min(s.sent for s in batch)
    if not good or seconds <= 0:
        return _Rate()
    return _Rate(
        tokens=sum(s.completion_tokens for s in good) / seconds,
        prompt_tokens=sum(s.prompt_tokens for s in good) / seconds,
        requests=len(good) / seconds,
    )


def _median(values: Iterable[float]) -> float:
    known = list(values)
    return float(np.median(known)) if known else 0.0


def _spread(rates: Sequence[_Rate], rounds: Sequence[Sequence[Sample]]) -> Figure:
    tokens = [rate.tokens for rate in rates]
    value = _median(tokens)
    if len(tokens) > 1:
        return Figure(value=value, low=min(tokens), high=max(tokens), unit="tokens/s")
    work = [_work(s) for s in rounds[0] if s.error is None] if rounds else []
    if len(work) < 2 or value == 0:
        return Figure(value=value, unit="tokens/s")
    total, busy = np.sum(work, axis=0)
    sums = bootstrap_sums(work)
    low, high = interval(value * (sums[:, 0] / sums[:, 1]) / (total / busy))
    return Figure(value=value, low=low, high=high, unit="tokens/s")


def _work(sample: Sample) -> tuple[float, float]:
    """An answer's tokens, and the seconds that it kept a stream busy."""
    return float(sample.completion_tokens), max(sample.end - sample.sent, 1e-9)


def _paired_spread(ours: Sequence[Sample], base: Sequence[Sample]) -> tuple[float, float] | None:
    """The interval of the ratio of tokens over busy time, relative to its value; None for fewer than two shared prompts."""
    mine, theirs = ({s.prompt_id: _work(s) for s in side if s.error is None} for side in (ours, base))
    rows = np.array([(*mine[name], *theirs[name]) for name in sorted(mine.keys() & theirs.keys())])
    if len(rows) < 2 or not rows[:, 0].any() or not rows[:, 2].any():
        return None

    def of(sums: Floats) -> Floats:
        result: Floats = (sums[..., 0] / sums[..., 1]) / (sums[..., 2] / sums[..., 3])
        return result

    sums = bootstrap_sums(rows)
    sums = sums[sums[:, 2] > 0]  # a draw of empty baseline answers only has no ratio
    return interval(of(sums) / of(rows.sum(axis=0)))
