"""From raw Samples to figures with their intervals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from quicksilver.bench.bootstrap import (
    LEVEL,
    Floats,
    bootstrap_sums,
    interval,
    latency,
    mean_figure,
    percentiles,
    ratio_figure,
    wilson,
)
from quicksilver.bench.spread import Spread
from quicksilver.bench.steady import by_turn, described, in_flight, keeps_up, onset
from quicksilver.nouns.arrivals import Arrivals
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.score import Acceptance, Figure, Speed

__all__ = [
    "LEVEL", "Floats", "acceptance", "bootstrap_sums", "error_kind", "figures", "interval", "itl_ms", "latency", "mean_figure", "of_load",
    "percentiles", "ratio", "speed", "tpot_ms", "wilson",
]  # fmt: skip


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
    """Derive the speed of a closed loop with a fixed number of streams; see `figures`."""
    return figures(samples, Arrivals.closed(concurrency))


def figures(samples: Sequence[Sample], arrivals: Arrivals, *, steady_only: bool = False) -> Speed:
    """Derive the speed under one load from its Samples; warm-up and other loads are left out.

    tokens/s of a round: output tokens of its answers over the time from its first request to its last end, failed ones
    included. `tokens_per_s` is the median of the rounds and its interval their minimum and maximum; with one round it
    is a 95 % bootstrap over its requests, whose spread is taken from tokens over busy time (in a closed loop tokens/s is
    concurrency times that; in an open one from tokens alone, since requests come when they come). With one request there
    is none, nor in an open loop if all answers have the same length: tokens/s is then what was asked for. Latencies are taken over requests that succeeded, TTFT and end to end from the scheduled moment. If all failed,
    `errors` equals `requests`, tokens/s is 0 and each Latency has a count of 0.

    With `steady_only` the requests of each round before its steady state are left out, where it
    came in the round's first half.
    """
    every = _rounds(s for s in of_load(samples, arrivals) if not s.warmup)
    onsets = {} if arrivals.rises else {number: onset(batch) for number, batch in every.items()}
    if steady_only:
        early = {number: len(o.before) for number, o in onsets.items() if o is not None and o.reached}
        every = {number: _from(batch, early.get(number, 0)) for number, batch in every.items()}
    rounds = list(every.values())
    chosen = [s for batch in rounds for s in batch]
    good = [s for s in chosen if s.error is None]
    rates = [_rate(batch) for batch in rounds]
    spread = Spread(len(good))
    first = [[] if s.first is None else [(s.first - s.scheduled) * 1000] for s in good]
    per_token = [[] if (value := tpot_ms(s)) is None else [value] for s in good]
    flying = [in_flight(batch) for batch in rounds]
    pieces = [(s.completion_tokens, len(set(s.arrivals))) for s in good if s.arrivals]
    kept = [keeps_up(batch) for batch in rounds] if arrivals.is_open else [None]
    return Speed(
        concurrency=arrivals.streams_to or arrivals.streams or 0,
        requests=len(chosen),
        errors=len(chosen) - len(good),
        tokens_per_s=_spread(rates, rounds, busy=not arrivals.is_open),
        input_tokens_per_s=_median(rate.prompt_tokens for rate in rates),
        requests_per_s=_median(rate.requests for rate in rates),
        ttft_ms=spread.latency(first),
        itl_ms=spread.latency([itl_ms(s) for s in good]),
        tpot_ms=spread.latency(per_token),
        e2e_ms=spread.latency([[(s.end - s.scheduled) * 1000] for s in good]),
        prompt_tokens_p50=_median(s.prompt_tokens for s in good),
        completion_tokens_p50=_median(s.completion_tokens for s in good),
        rounds=max(1, len(rounds)),
        load=arrivals.load_name,
        arrivals=arrivals.kind,
        rate_per_s=_asked(arrivals, rounds),
        errors_by_kind=dict(Counter(error_kind(s.error) for s in chosen if s.error is not None).most_common()),
        in_flight_mean=_median(mean for mean, _ in flying),
        in_flight_max=max((most for _, most in flying), default=0),
        keeps_up=False if False in kept else True if True in kept else None,
        acceptance=acceptance(good),
        tokens_per_piece=sum(t for t, _ in pieces) / sum(p for _, p in pieces) if pieces else None,
        steady=described(list(onsets.values()), len(chosen)),
    )


def of_load(samples: Iterable[Sample], arrivals: Arrivals) -> list[Sample]:
    """Return the Samples of one load, warm-up included."""
    name, streams = arrivals.load_name, arrivals.streams
    return [s for s in samples if s.load == name and (name or s.concurrency == streams)]


def acceptance(samples: Sequence[Sample]) -> Acceptance | None:
    """Return how much of what was guessed ahead was right; None where the server doesn't say, or nothing was guessed."""
    rows = [(s.accepted, s.drafted) for s in samples if s.accepted is not None and s.drafted]
    if not rows:
        return None
    p10, p50, p90 = percentiles([right / guessed for right, guessed in rows], (10, 50, 90))
    return Acceptance(
        share=ratio_figure(rows),
        p10=p10,
        p50=p50,
        p90=p90,
        guessed=sum(guessed for _, guessed in rows),
        accepted=sum(right for right, _ in rows),
        prompts=len(rows),
    )


def error_kind(error: str) -> str:
    """Return what is before an error's colon, such as `connect` or `http 503`."""
    return error.partition(":")[0]


def ratio(
    samples: Sequence[Sample], baseline: Sequence[Sample], concurrency: int, *, at_lengths: bool = False
) -> Figure | None:
    """Return tokens/s over the baseline's at one concurrency, paired by round, in times ("x").

    With `at_lengths` it is that had answers been as long as the baseline's, see `_at_lengths`.

    The value is the geometric mean of the rounds' ratios, its interval a 95 % bootstrap over rounds (of three or fewer it
    is their minimum and maximum). With one shared round it is a bootstrap over the prompts that both answered, drawn
    in pairs, of tokens over busy time. None if no round is shared in which both have tokens.
    """
    mine, theirs = (
        _rounds(s for s in side if not s.warmup and not s.load and s.concurrency == concurrency)
        for side in (samples, baseline)
    )
    pairs = [(mine[number], theirs[number]) for number in sorted(mine.keys() & theirs.keys())]
    rates = [
        (_at_lengths(ours, base) if at_lengths else _rate(ours).tokens, _rate(base).tokens) for ours, base in pairs
    ]
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


def _at_lengths(batch: Sequence[Sample], baseline: Sequence[Sample]) -> float:
    """Return a round's tokens/s had its answers been as long as the baseline's to the same prompts.

    Rounded weights end answers elsewhere, and where prompts are long and answers few that moves tokens/s by more than weights gain: the
    prompts take the same time whatever comes after. What answers lack, or have more, counts at the round's median time from piece to
    piece, shared by the streams that were under way, which is what a token more costs while nothing is read.
    """
    wanted = {s.prompt_id: s.completion_tokens for s in baseline if s.error is None}
    good = [s for s in batch if s.error is None]
    tokens = sum(s.completion_tokens for s in good)
    more = sum(wanted[s.prompt_id] - s.completion_tokens for s in good if s.prompt_id in wanted)
    gaps = [gap for s in good for gap in itl_ms(s)]
    seconds = _seconds(batch) if batch else 0.0
    under_way = sum(s.end - s.sent for s in batch) / seconds if seconds > 0 else 0.0
    if not more or not gaps or not under_way:
        return _rate(batch).tokens
    pieces = sum(len(set(s.arrivals)) for s in good)
    each_s = float(np.median(gaps)) / 1000 * pieces / tokens / under_way
    longer_s = seconds + more * each_s
    return (tokens + more) / longer_s if longer_s > 0 else _rate(batch).tokens


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


def _from(batch: Sequence[Sample], early: int) -> list[Sample]:
    """Return a round's Samples without those that were due before the first `early` that succeeded were over."""
    due = sorted(batch, key=lambda s: (s.scheduled, s.sent))
    good = [s for s in due if s.error is None]
    return due[due.index(good[early]) :] if early else due


def _seconds(batch: Sequence[Sample]) -> float:
    """Return what a round took: each of its turns from the first request to the last end."""
    return sum(max(s.end for s in turn) - min(s.sent for s in turn) for turn in by_turn(batch))


def _asked(arrivals: Arrivals, rounds: Sequence[Sequence[Sample]]) -> float | None:
    """Return the rate of an open loop that was asked for, requests a second: given, or the mean of its moments."""
    if not arrivals.is_open:
        return None
    if arrivals.rate_per_s is not None:
        return (arrivals.rate_per_s + (arrivals.rate_to_per_s or arrivals.rate_per_s)) / 2
    times = [sorted(s.scheduled for s in batch) for batch in rounds]
    spans = [(len(moments) - 1) / (moments[-1] - moments[0]) for moments in times if moments[-1] > moments[0]]
    return _median(spans) if spans else None


def _rate(batch: Sequence[Sample]) -> _Rate:
    good = [s for s in batch if s.error is None]
    seconds = _seconds(batch) if batch else 0.0
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


def _spread(rates: Sequence[_Rate], rounds: Sequence[Sequence[Sample]], *, busy: bool) -> Figure:
    tokens = [rate.tokens for rate in rates]
    value = _median(tokens)
    if len(tokens) > 1:
        return Figure(value=value, low=min(tokens), high=max(tokens), unit="tokens/s")
    work = [_work(s) for s in rounds[0] if s.error is None] if rounds else []
    if len(work) < 2 or value == 0:
        return Figure(value=value, unit="tokens/s")
    if not busy:
        work = [(tokens, 1.0) for tokens, _ in work]
        if len(set(work)) == 1:
            return Figure(value=value, unit="tokens/s")
    total, time_s = np.sum(work, axis=0)
    return ratio_figure(work, unit="tokens/s", scale=float(value / (total / time_s)))


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
