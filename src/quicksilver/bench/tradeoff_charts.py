"""The charts of trade-offs: price against latency with the Pareto front, and tokens/s against the load by preset."""

from __future__ import annotations

from typing import Any

from quicksilver.bench import charts, findings, tradeoffs
from quicksilver.bench.charts import Chart
from quicksilver.nouns import Result

COST, LATENCY = "price of a token, as-is is 1", "time of an answer for one user, as-is is 1"


def draw(result: Result) -> list[Chart]:
    """Draw what there are figures for."""
    found = [_front(result), _loads(result)]
    return [chart for chart in found if chart is not None]


def _front(result: Result) -> Chart | None:
    import altair as alt

    names, colour, shape = charts.looks(result)
    named = {p.label: ", ".join(q.name for q in result.presets if q.label == p.label) for p in result.points}
    rows = [
        {
            "recipe": p.label,
            "series": names[p.label],
            "cost": p.cost.value,
            "cost_low": p.cost.value if p.cost.low is None else p.cost.low,
            "cost_high": p.cost.value if p.cost.high is None else p.cost.high,
            "latency": p.latency.value,
            "latency_low": p.latency.value if p.latency.low is None else p.latency.low,
            "latency_high": p.latency.value if p.latency.high is None else p.latency.high,
            "cost_text": tradeoffs.ranged(p.cost),
            "latency_text": tradeoffs.ranged(p.latency),
            "loss_text": findings.NOTHING if p.loss is None else f"{findings.percent(p.loss.value)} %",
            "front_text": "yes" if p.on_front else "no",
            "front": p.on_front,
            "words": named[p.label]
            or ("as-is" if result.baseline is not None and p.label == result.baseline.label else ""),
        }
        for p in result.points
        if p.label in names
    ]
    if len(rows) < 2:
        return None
    base = alt.Chart(alt.Data(values=rows)).encode(color=colour)
    scale = alt.Scale(zero=False, nice=True, padding=18)
    x = alt.X("latency:Q", title=LATENCY, scale=scale, axis=alt.Axis(tickCount=6))
    y = alt.Y("cost:Q", title=COST, scale=scale, axis=alt.Axis(tickCount=6))
    seen = alt.condition("datum.front", alt.value(1), alt.value(0.45))
    bars = [
        base.mark_rule(strokeWidth=1.5).encode(
            x=alt.X("latency_low:Q", title=LATENCY), x2="latency_high:Q", y=y, opacity=_half()
        ),
        base.mark_rule(strokeWidth=1.5).encode(
            x=x, y=alt.Y("cost_low:Q", title=COST), y2="cost_high:Q", opacity=_half()
        ),
    ]
    points = base.mark_point(filled=True, size=110).encode(
        x=x,
        y=y,
        shape=shape,
        opacity=seen,
        tooltip=charts.hover(
            ("recipe", "recipe"),
            ("cost_text", "price of a token"),
            ("latency_text", "time of an answer"),
            ("loss_text", "quality loss"),
            ("front_text", "on the front"),
        ),
    )
    text: list[Any] = []
    if any(row["words"] for row in rows):
        some = base.transform_filter("datum.words != ''").encode(x=x, y=y)
        text = charts.lettered(some, "words:N", dy=-14)
    title = "Price against latency"
    words = "Down and to the left is better. Faint recipes are beaten by another in price, latency and quality; bars are 95 % intervals."
    count = sum(p.on_front for p in result.points)
    described = f"{title}: {count} of {len(rows)} recipes are on the front. " + "; ".join(
        f"{row['recipe']} ({row['words']}): price {row['cost_text']}, latency {row['latency_text']}"
        for row in rows
        if row["words"]
    )
    chart = alt.layer(*bars, *text, points, description=described)
    return charts.finish(chart, 340, name="front", title=title, text=words, section="tradeoffs")


def _half() -> Any:
    import altair as alt

    return alt.condition("datum.front", alt.value(0.7), alt.value(0.3))


def _loads(result: Result) -> Chart | None:
    import altair as alt

    names, colour, shape = charts.looks(result)
    rows: list[dict[str, Any]] = []
    for named, preset in tradeoffs.named(result):
        last = max((s.concurrency for s in preset.benchmark), default=0)
        for speed in preset.benchmark:
            between = findings.interval(speed.tokens_per_s)
            rows.append(
                {
                    "recipe": preset.label,
                    "preset": named,
                    "series": names.get(preset.label, charts.OTHERS),
                    "streams": speed.concurrency,
                    "tokens_per_s": speed.tokens_per_s.value,
                    "tokens_text": findings.number(speed.tokens_per_s.value) + (f" ({between})" if between else ""),
                    "ratio_text": tradeoffs.times(speed.ratio),
                    "ttft_text": f"{findings.number(speed.ttft_ms.p50)} ms",
                    "words": named if speed.concurrency == last else "",
                }
            )
    loads = sorted({row["streams"] for row in rows})
    if len(loads) < 2:
        return None
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "streams:Q",
            title="streams at once",
            scale=alt.Scale(type="log", base=2, domain=[loads[0], loads[-1]], nice=False, padding=24),
            axis=alt.Axis(values=loads, format="d"),
        ),
        y=alt.Y(
            "tokens_per_s:Q", title="tokens/s, all streams", scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=6)
        ),
        color=colour,
        detail="recipe:N",
    )
    points = base.mark_point(filled=True, size=90).encode(
        shape=shape,
        tooltip=charts.hover(
            ("preset", "preset"),
            ("recipe", "recipe"),
            ("streams", "streams"),
            ("tokens_text", "tokens/s"),
            ("ratio_text", "against as-is"),
            ("ttft_text", "TTFT p50"),
        ),
    )
    text = charts.lettered(base.transform_filter("datum.words != ''"), "words:N", dy=-14, align="right", dx=6)
    title = "Presets as the load grows"
    ends = [row for row in rows if row["words"]]
    described = f"{title}: " + "; ".join(
        f"{row['preset']} ({row['recipe']}): {row['tokens_text']} tokens/s at {row['streams']} streams" for row in ends
    )
    chart = alt.layer(base.mark_line(strokeWidth=2), *text, points, description=described)
    words = "Tokens/s of all streams. The loads of the race were measured in several rounds, the others in one."
    return charts.finish(chart, 340, name="presets", title=title, text=words, section="tradeoffs")
