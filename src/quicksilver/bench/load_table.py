"""The tables of a Benchmark: a row for each load, as every export of it shows them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from quicksilver.bench.findings import dollars, interval, number, plain
from quicksilver.bench.slo_search import amount, room
from quicksilver.nouns.benchmark import Benchmark
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.score import Cost, Latency, Speed
from quicksilver.nouns.slo_search import Goodput, SloSearch

MEANINGS = (
    "TTFT is the time to the first token, ITL the gap between pieces of the stream, TPOT a request's time per token after the "
    "first, all in ms; TTFT and end to end count from the scheduled moment."
)


@dataclass(frozen=True, slots=True)
class Table:
    """Heads and rows of text; the columns in `words` aren't numbers."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[int, ...] = (0,)


def loads_table(found: Benchmark) -> Table:
    """The figures of each load, and below them those of the steps of a ramp."""
    every = list(_columns(found, 0)) if found.speeds else []
    rows = tuple(tuple(_columns(found, place).values()) for place in range(len(found.speeds) + len(found.steps)))
    # What no load has a figure for needs no column.
    kept = [n for n in range(len(every)) if n == 0 or any(row[n] for row in rows)]
    return Table(tuple(every[n] for n in kept), tuple(tuple(row[n] for n in kept) for row in rows))


def _columns(found: Benchmark, place: int) -> dict[str, str]:
    speed = (*found.speeds, *found.steps)[place]
    cost: Cost | None = found.costs[place] if place < len(found.costs) else None
    met: Goodput | None = found.goodputs[place] if place < len(found.goodputs) else None
    return {
        "load": load_words(speed),
        "requests": f"{speed.requests:,}",
        "errors": f"{speed.errors:,}",
        "tokens/s": _ranged(speed),
        "requests/s": number(speed.requests_per_s),
        "TTFT p50": _at(speed.ttft_ms, "p50"),
        "p95": _at(speed.ttft_ms, "p95"),
        "p99": _at(speed.ttft_ms, "p99"),
        "ITL p50": _at(speed.itl_ms, "p50"),
        "ITL p95": _at(speed.itl_ms, "p95"),
        "TPOT p50": _at(speed.tpot_ms, "p50"),
        "end to end p50": _at(speed.e2e_ms, "p50"),
        "end to end p95": _at(speed.e2e_ms, "p95"),
        "good requests": share(met) if met else "",
        "$/1M": dollars(cost.measured) if cost else "",
    }


def load_words(speed: Speed) -> str:
    """A load in words, and whether its figures stand."""
    words = speed.load or amount(speed.concurrency, "streams")
    return words if speed.valid else f"{words}: invalid"


def samples_of(samples: Sequence[Sample], speed: Speed) -> list[Sample]:
    """Return the Samples that a load's figures come from."""
    return [
        s
        for s in samples
        if not s.warmup and s.load == speed.load and (speed.load or s.concurrency == speed.concurrency)
    ]


def share(met: Goodput) -> str:
    """Goodput in words: `97 % (84 to 99), 3.10/s`."""
    ends = interval(met.share, lambda value: f"{100 * value:.0f}")
    text = f"{100 * met.share.value:.0f} %" + (f" ({ends})" if ends else "")
    return text + (f", {number(met.requests_per_s)}/s" if met.requests_per_s is not None else "")


def attempts_table(search: SloSearch) -> Table:
    """What each load of a search showed."""
    rows = tuple(
        (
            amount(attempt.load, search.unit),
            {"meets": "meets it", "fails": "doesn't", "unsure": "open"}[attempt.judgement.outcome],
            f"{100 * attempt.judgement.probability:.0f} %",
            room(attempt.judgement.binding),
            f"{attempt.judged:,} of {attempt.requests:,}",
            share(attempt.goodput),
            number(attempt.speed.tokens_per_s.value),
        )
        for attempt in search.attempts
    )
    heads = ("load", "outcome", "draws that meet it", "what binds", "requests judged", "good requests", "tokens/s")
    return Table(heads, rows, words=(0, 1, 3))


def facts(found: Benchmark) -> dict[str, str]:
    """What it was measured with, by name."""
    machine = found.hardware
    described = f"{machine.cores} cores of {machine.cpu} ({', '.join(machine.isa)}), {machine.memory_gb:g} GB"
    return {
        "made": f"{found.created}, document version {found.version}",
        "server": found.target,
        "machine of the load client": described,
        **({"SLO": str(found.slo)} if found.slo else {}),
        **({"cold start": f"{found.cold_start_s:.2f} s"} if found.cold_start_s is not None else {}),
        **{name: value if isinstance(value, str) else json.dumps(value) for name, value in found.settings.items()},
        **{f"version of {name}": value for name, value in found.tools.items()},
    }


def _at(latency: Latency, point: str) -> str:
    value: float = getattr(latency, point)
    return number(value) if latency.count else ""


def _ranged(speed: Speed) -> str:
    ends = interval(speed.tokens_per_s)
    return plain(number(speed.tokens_per_s.value) + (f" ({ends})" if ends else ""))
