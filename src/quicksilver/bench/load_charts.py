"""The charts of a Benchmark, as drawings: an SLO's terms by load, figures by load, and how long requests waited."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quicksilver.bench import charts
from quicksilver.bench.charts import Chart
from quicksilver.bench.findings import number
from quicksilver.bench.load_table import load_words, samples_of
from quicksilver.bench.slo_search import amount
from quicksilver.bench.stats import percentiles
from quicksilver.nouns.benchmark import Benchmark
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.score import Speed
from quicksilver.nouns.slo_search import LoadUnit, SloSearch

COLOURS = tuple(f"var(--series-{n})" for n in (6, 1, 3, 2, 4, 5))
HEIGHT = 260
FARTHEST = 4.0
"""Times the limit up to which a search's chart reaches; what is farther is drawn at its edge."""
POINTS = (*range(1, 100, 2), 99)


def draw(found: Benchmark, samples: Sequence[Sample]) -> list[Chart]:
    """Draw what there are figures for."""
    drawn = [_search(found.search) if found.search is not None else None, *_by_load(found), _waiting(found, samples)]
    return [chart for chart in drawn if chart is not None]


def _search(search: SloSearch) -> Chart | None:
    import altair as alt

    rows: list[dict[str, Any]] = []
    for attempt in search.attempts:
        for finding in attempt.judgement.findings:
            limit = finding.term.limit
            if not limit:
                continue
            low, high = finding.figure.low, finding.figure.high
            if finding.term.metric == "errors":
                # It is judged by what was seen; what that shows for certain would fill the chart.
                low = high = finding.figure.value
            rows.append(
                {
                    "load": attempt.load,
                    "term": str(finding.term),
                    "share": min(finding.figure.value / limit, FARTHEST),
                    "low": min((finding.figure.value if low is None else low) / limit, FARTHEST),
                    "high": FARTHEST if high is None else min(high / limit, FARTHEST),
                }
            )
    if not rows:
        return None
    terms = list(dict.fromkeys(row["term"] for row in rows))
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "load:Q",
            title=search.unit,
            scale=alt.Scale(type="log", base=2, nice=False, padding=14),
            axis=_ticks(search),
        ),
        color=_colour("term", terms, columns=1),
    )
    y = alt.Y("share:Q", title="share of the limit", axis=alt.Axis(format="%", tickCount=5))
    layers = [
        base.mark_rule(strokeWidth=2, opacity=0.45).encode(y=alt.Y("low:Q", title=None), y2="high:Q"),
        base.mark_line(strokeWidth=2).encode(y=y),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=y),
        alt.Chart(alt.Data(values=[{"share": 1}]))
        .mark_rule(strokeDash=[5, 4], strokeWidth=1.5, color="var(--limit)")
        .encode(y="share:Q"),
    ]
    if search.best is not None:
        best = alt.Chart(alt.Data(values=[{"load": search.best}]))
        layers.append(best.mark_rule(strokeWidth=6, opacity=0.18, color="var(--winner)").encode(x="load:Q"))
    title = "How near each load comes to the limits"
    words = f"Bars are 95 % intervals; the dashed line is the limit; drawn up to {FARTHEST:g} times it."
    words += " The broad line is the highest load that surely meets the SLO." if search.best is not None else ""
    described = f"{title}. {search.verdict}"
    chart = alt.layer(*layers, description=described)
    return charts.finish(chart, HEIGHT, name="search", title=title, text=words, section="search")


def _ticks(search: SloSearch) -> Any:
    import altair as alt

    return alt.Axis(values=[attempt.load for attempt in search.attempts], format="~g", labelOverlap="greedy")


def _by_load(found: Benchmark) -> list[Chart | None]:
    """Throughput and latency by load, where there are several."""
    if len(found.speeds) < 2:
        return []
    ordered = sorted(found.speeds, key=_load)
    unit: LoadUnit = "streams" if ordered[0].arrivals == "closed" else "requests/s"
    rates = [
        {
            "load": _load(s),
            "name": "tokens/s",
            "value": s.tokens_per_s.value,
            "low": s.tokens_per_s.value if s.tokens_per_s.low is None else s.tokens_per_s.low,
            "high": s.tokens_per_s.value if s.tokens_per_s.high is None else s.tokens_per_s.high,
        }
        for s in ordered
    ]
    times = [
        {"load": _load(s), "name": name, "value": value, "low": value, "high": value}
        for s in ordered
        for name, latency in (("TTFT p95", s.ttft_ms), ("ITL p95", s.itl_ms))
        if latency.count and (value := latency.p95)
    ]
    return [
        _lines(
            rates, "throughput", "Throughput by load", "tokens/s", "Bars are the intervals of the table.", load=unit
        ),
        _lines(
            times,
            "latency",
            "Latency by load",
            "ms",
            "p95 of all requests; the scale is logarithmic.",
            load=unit,
            log=True,
        ),
    ]


def _load(speed: Speed) -> float:
    return speed.rate_per_s if speed.arrivals != "closed" and speed.rate_per_s is not None else speed.concurrency


def _lines(
    rows: list[dict[str, Any]], name: str, title: str, unit: str, words: str, *, load: LoadUnit, log: bool = False
) -> Chart | None:
    import altair as alt

    if not rows:
        return None
    loads = sorted({row["load"] for row in rows})
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "load:Q",
            title=load,
            scale=alt.Scale(type="log", base=2, nice=False, padding=14),
            axis=alt.Axis(values=loads, format="~g", labelOverlap="greedy"),
        ),
        color=_colour("name", list(dict.fromkeys(row["name"] for row in rows))),
    )
    scale = alt.Scale(type="log") if log else alt.Scale(zero=True)
    y = alt.Y("value:Q", title=unit, scale=scale, axis=alt.Axis(tickCount=5, format=",.3~r"))
    bars = base.mark_rule(strokeWidth=2, opacity=0.45).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
    line, points = (
        base.mark_line(strokeWidth=2).encode(y=y),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=y),
    )
    said = "; ".join(f"{row['name']} at {amount(row['load'], load)}: {number(row['value'])}" for row in rows)
    chart = alt.layer(*([] if log else [bars]), line, points, description=f"{title}. {said}")
    return charts.finish(chart, HEIGHT, name=name, title=title, text=words, section="loads")


def _waiting(found: Benchmark, samples: Sequence[Sample]) -> Chart | None:
    """The share of requests whose first token came within a time, for the six highest loads at most."""
    import altair as alt

    rows: list[dict[str, Any]] = []
    for speed in sorted(found.speeds, key=_load)[-len(COLOURS) :]:
        times = [
            (s.first - s.scheduled) * 1000
            for s in samples_of(samples, speed)
            if s.first is not None and s.error is None
        ]
        if len(times) > 1:
            values = percentiles(times, POINTS)
            rows += [
                {"load": load_words(speed), "ms": v, "share": p / 100} for p, v in zip(POINTS, values, strict=True)
            ]
    if not rows:
        return None
    names = list(dict.fromkeys(row["load"] for row in rows))
    chart = (
        alt.Chart(
            alt.Data(values=rows), description=f"Share of requests by their time to first token, at {', '.join(names)}"
        )
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X(
                "ms:Q",
                title="time to first token, ms",
                scale=alt.Scale(zero=True, nice=True),
                axis=alt.Axis(tickCount=6),
            ),
            y=alt.Y(
                "share:Q", title="requests", axis=alt.Axis(format="%", tickCount=5), scale=alt.Scale(domain=[0, 1])
            ),
            color=_colour("load", names),
            order="share:Q",
        )
    )
    words = "Up and to the left is better: the share of requests whose first token came within a time."
    return charts.finish(chart, HEIGHT, name="waiting", title="Time to first token", text=words, section="loads")


def _colour(field: str, names: Sequence[str], *, columns: int = 3) -> Any:
    import altair as alt

    words = {"labelColor": "var(--ink)", "labelFontSize": 12, "labelLimit": 400, "columnPadding": 28}
    legend = alt.Legend(orient="top", title=None, columns=columns, symbolOpacity=1, **words) if len(names) > 1 else None
    colours = [COLOURS[n % len(COLOURS)] for n in range(len(names))]
    return alt.Color(f"{field}:N", sort=None, legend=legend, scale=alt.Scale(domain=list(names), range=colours))
