"""A Benchmark as one page without scripts, which asks for nothing from outside."""

from __future__ import annotations

from collections.abc import Sequence

from quicksilver.bench import load_charts, pages
from quicksilver.bench.findings import Card, dollars, interval, number
from quicksilver.bench.load_table import MEANINGS, attempts_table, facts, load_words, loads_table, share
from quicksilver.bench.report import date
from quicksilver.bench.slo_search import amount
from quicksilver.nouns.benchmark import Benchmark
from quicksilver.nouns.sample import Sample

TEMPLATE = "benchmark.html.jinja"


def html(found: Benchmark, samples: Sequence[Sample]) -> str:
    """Write the page; with drawings if altair and vl-convert are there. Raises QuicksilverError without jinja2."""
    missing = pages.charts_missing()
    return (
        pages.environment()
        .get_template(TEMPLATE)
        .render(
            found=found,
            headline=headline(found),
            cards=cards(found),
            loads=loads_table(found),
            attempts=attempts_table(found.search) if found.search is not None else None,
            charts=[] if missing else load_charts.draw(found, samples),
            charts_missing=missing,
            facts=facts(found),
            meanings=MEANINGS,
            created=date(found.created),
        )
    )


def headline(found: Benchmark) -> str:
    """What was found, in a line."""
    if found.search is not None:
        if found.search.best is None:
            return f"No load surely meets {found.slo}"
        return f"{amount(found.search.best, found.search.unit)} within {found.slo}"
    if not found.speeds:
        return "Nothing was measured"
    best = max(found.speeds, key=lambda s: s.tokens_per_s.value)
    return f"{number(best.tokens_per_s.value)} tokens/s at {load_words(best)}"


def cards(found: Benchmark) -> list[Card]:
    """Key figures: of the load that a search found, else of the one with the most tokens/s."""
    places = range(len(found.speeds))
    if not found.speeds:
        return []
    place = max(places, key=lambda n: found.speeds[n].tokens_per_s.value)
    if found.search is not None and found.search.best is not None:
        loads = [attempt.load for attempt in found.search.attempts]
        place = loads.index(found.search.best)
    speed, at = found.speeds[place], load_words(found.speeds[place])
    shown = [Card("tokens/s", number(speed.tokens_per_s.value), interval(speed.tokens_per_s) or at, "measured")]
    if speed.ttft_ms.count:
        shown.append(
            Card("TTFT p95", f"{number(speed.ttft_ms.p95)} ms", f"p50 {number(speed.ttft_ms.p50)} ms, {at}", "measured")
        )
    if speed.itl_ms.count:
        shown.append(
            Card("ITL p95", f"{number(speed.itl_ms.p95)} ms", f"p50 {number(speed.itl_ms.p50)} ms, {at}", "measured")
        )
    if found.goodputs:
        met = found.goodputs[place]
        shown.append(Card("good requests", f"{100 * met.share.value:.0f} %", share(met), "measured"))
    shown.append(Card("errors", f"{speed.errors:,}", f"of {speed.requests:,} requests, {at}", "measured"))
    cost = found.costs[place] if place < len(found.costs) else None
    if cost is not None:
        shown.append(
            Card(
                "$ per 1M tokens",
                dollars(cost.measured),
                f"by throughput, at ${cost.usd_per_hour:g} an hour",
                "measured",
            )
        )
    return shown
