"""The charts of a report: Vega-Lite specifications by Altair, each with a static SVG beside it.

Colours are CSS variables of the page, so one drawing serves light, dark and paper. Why Vega is embedded:
docs/decisions/0003-charts.md.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quicksilver.bench import findings
from quicksilver.nouns import Candidate, Result, Speed

# Shapes in a box from -1 to 1, as Vega's symbols and the legend's SVG both take them: told apart without colour.
CIRCLE = "M-1,0A1,1,0,1,1,1,0A1,1,0,1,1,-1,0Z"
SHAPES = (
    "M0,-1.1L1.1,0L0,1.1L-1.1,0Z",
    "M0,-1.1L1.05,0.8L-1.05,0.8Z",
    "M0,1.1L1.05,-0.8L-1.05,-0.8Z",
    "M-1,-0.4H-0.4V-1H0.4V-0.4H1V0.4H0.4V1H-0.4V0.4H-1Z",
    "M-1,-0.5H1V0.5H-1Z",
    "M-0.5,-1H0.5V1H-0.5Z",
)
SQUARE = "M-0.9,-0.9H0.9V0.9H-0.9Z"
OTHERS = "other recipes"
BARS = 12
"""Recipes in a bar chart; the table has them all."""
STATIC_WIDTH = 480


@dataclass(frozen=True, slots=True)
class Series:
    """How one recipe, or all the rest, looks in every chart."""

    label: str
    colour: str
    shape: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart: a specification for a browser with scripts, and a drawing for one without."""

    name: str
    title: str
    text: str
    section: str
    spec: dict[str, Any]
    svg: str


def legend(result: Result) -> list[Series]:
    """Give the as-is model, the winner and the six next best a look of their own, and the rest one together."""
    rows, won = findings.measured(result), findings.winner(result)
    found, plain = [], 0
    for candidate in rows:
        if candidate is won:
            found.append(Series(candidate.label, "var(--winner)", CIRCLE))
        elif candidate.baseline:
            found.append(Series(candidate.label, "var(--as-is)", SQUARE))
        elif plain < len(SHAPES):
            found.append(Series(candidate.label, f"var(--series-{plain + 1})", SHAPES[plain]))
            plain += 1
    if len(found) < len(rows):
        found.append(Series(OTHERS, "var(--others)", CIRCLE))
    return found


def draw(result: Result) -> list[Chart]:
    """Draw what there are figures for: none of it needs more than one recipe at one concurrency."""
    every = findings.concurrencies(result)
    if not every:
        return []
    found = [_throughput(result), _quality(result, every[0])]
    found += [_request(result, concurrency) for concurrency in dict.fromkeys((every[0], every[-1]))]
    found += [_price(result, "measured"), _price(result, "blended")]
    return [chart for chart in found if chart is not None]


@functools.cache  # over a second each, of three and a half for a report
def script(page: str) -> str:
    """Bundle Vega, Vega-Lite, vega-embed and the page's own script, which calls `vegaEmbed`, about 0.9 MB."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle(page, vl_version=_version())
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _version() -> str:
    """The Vega-Lite that Altair writes for, as vl-convert names it: `6.4`."""
    import altair as alt

    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def finish(chart: Any, height: int, *, name: str, title: str, text: str, section: str) -> Chart:
    """Add the page's look; the specification fills its container, the SVG has a width of its own."""
    import vl_convert

    line = {"domainColor": "var(--line)", "gridColor": "var(--line)", "tickColor": "var(--line)"}
    words = {"labelColor": "var(--muted)", "titleColor": "var(--muted)", "labelFontSize": 12, "titleFontSize": 12}
    # vl-convert aborts the process on a character that isn't XML.
    spec: dict[str, Any] = _plain(
        chart.properties(width=STATIC_WIDTH, height=height, background="transparent")
        .configure(font="system-ui, sans-serif", padding=4, autosize={"type": "fit-x", "contains": "padding"})
        .configure_view(stroke=None)
        .configure_axis(**line, **words, titleFontWeight="normal", labelPadding=6, titlePadding=10)
        .configure_text(color="var(--ink)", fontSize=12)
        .to_dict()
    )
    svg: str = vl_convert.vegalite_to_svg(spec, vl_version=_version(), allowed_base_urls=[])
    # Vega counts clips through the life of the process: the same result has to give the same page.
    clips = {clip: f"{name}-clip-{i}" for i, clip in enumerate(dict.fromkeys(re.findall(r'id="(clip\d+)"', svg)))}
    svg = re.sub(r"(?<=[\"#])clip\d+(?=[\")])", lambda found: clips[found.group()], svg)
    spec.pop("$schema")
    return Chart(name, title, text, section, spec | {"width": "container"}, svg)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return findings.plain(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _faint() -> Any:
    import altair as alt

    return alt.condition(f"datum.series === '{OTHERS}'", alt.value(0.6), alt.value(1))


def looks(result: Result) -> tuple[dict[str, str], Any, Any]:
    """Name the series of each recipe, and encode colour and shape by it."""
    import altair as alt

    series = legend(result)
    own = {s.label for s in series}
    names = {c.label: c.label if c.label in own else OTHERS for c in findings.measured(result)}
    domain = [s.label for s in series]
    colour = alt.Color("series:N", legend=None, scale=alt.Scale(domain=domain, range=[s.colour for s in series]))
    shape = alt.Shape("series:N", legend=None, scale=alt.Scale(domain=domain, range=[s.shape for s in series]))
    return names, colour, shape


def lettered(base: Any, text: str, **look: Any) -> list[Any]:
    """Text with a rim in the colour of the page, so that lines below don't cross it out."""
    rim = {"stroke": "var(--card)", "strokeWidth": 4, "strokeJoin": "round"}
    return [
        base.mark_text(fontSize=11, **look, **rim).encode(text=text),
        base.mark_text(fontSize=11, **look).encode(text=text),
    ]


def _drawn(result: Result) -> list[Candidate]:
    """The candidates in the order of drawing: the most important last, on top."""
    return findings.measured(result)[::-1]


def hover(*fields: tuple[str, str]) -> list[Any]:
    import altair as alt

    return [alt.Tooltip(f"{name}:N", title=title) for name, title in fields]


def _point(result: Result, names: dict[str, str], candidate: Candidate, speed: Speed) -> dict[str, Any]:
    times = findings.ratio(result, candidate, speed.concurrency)
    spread = findings.interval(speed.tokens_per_s)
    return {
        "recipe": candidate.label,
        "series": names[candidate.label],
        "streams": speed.concurrency,
        "words": findings.streams(speed.concurrency),
        "tokens_per_s": speed.tokens_per_s.value,
        "tpot_ms": speed.tpot_ms.p50,
        "tokens_text": findings.number(speed.tokens_per_s.value) + (f" ({spread})" if spread else ""),
        "tpot_text": f"{findings.number(speed.tpot_ms.p50)} ms",
        "ratio_text": f"{times.value:.2f}x" if times else findings.NOTHING,
        "source": speed.tokens_per_s.source,
        "strong": _strong(result, candidate),
        "as_is": candidate.baseline,
    }


def _throughput(result: Result) -> Chart | None:
    import altair as alt

    names, colour, shape = looks(result)
    rows = [_point(result, names, c, s) for c in _drawn(result) for s in c.score.speed if findings.timed(s.tpot_ms)]
    if not rows:
        return None
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "tpot_ms:Q",
            title="time per token for one user (median TPOT), ms",
            scale=alt.Scale(zero=False, nice=True, padding=16),
            axis=alt.Axis(tickCount=7),
        ),
        y=alt.Y(
            "tokens_per_s:Q",
            title="tokens/s, all streams",
            scale=alt.Scale(zero=True),
            axis=alt.Axis(tickCount=6),
        ),
        color=colour,
        detail="recipe:N",
    )
    line = base.mark_line(strokeWidth=2).encode(
        order="streams:Q", opacity=alt.condition("datum.strong", alt.value(1), alt.value(0.55))
    )
    points = base.mark_point(filled=True, size=90).encode(
        opacity=_faint(),
        shape=shape,
        tooltip=hover(
            ("recipe", "recipe"),
            ("streams", "streams"),
            ("tokens_text", "tokens/s"),
            ("ratio_text", "against as-is"),
            ("tpot_text", "time per token"),
            ("source", "figures"),
        ),
    )
    text: list[Any] = []
    # The as-is model is mostly the lowest line: below it there is room. An empty layer would make Vega complain.
    for as_is, dy in ((False, -13), (True, 15)):
        if any(row["strong"] and row["as_is"] == as_is for row in rows):
            some = base.transform_filter(f"datum.strong && datum.as_is === {str(as_is).lower()}")
            text += lettered(some, "words:N", dy=dy)
    several = len(findings.concurrencies(result)) > 1
    words = "Up and to the left is better. " + (
        "Each line is one recipe, from few streams at once to many." if several else "Each point is one recipe."
    )
    title = "Throughput against latency"
    chart = alt.layer(line, *text, points, description=_described(title, result, rows, "tokens_per_s", "tokens/s"))
    return finish(chart, 340, name="throughput", title=title, text=words, section="speed")


def _quality(result: Result, concurrency: int) -> Chart | None:
    import altair as alt

    names, colour, shape = looks(result)
    rows: list[dict[str, Any]] = []
    for candidate in _drawn(result):
        speed, loss = candidate.score.at(concurrency), findings.loss(candidate)
        if speed is None or loss is None:
            continue
        between = findings.interval(loss, findings.percent)
        rows.append(
            _point(result, names, candidate, speed)
            | {
                "loss": loss.value,
                "low": loss.value if loss.low is None else loss.low,
                "high": loss.value if loss.high is None else loss.high,
                "loss_text": f"{findings.percent(loss.value)} %" + (f" ({between})" if between else ""),
                "words": "as-is" if candidate.baseline else "winner",
            }
        )
    if not rows:
        return None
    limit = result.goal.max_quality_loss
    low: float = min(0.0, *(row["low"] for row in rows))
    top: float = max(limit, *(row["high"] for row in rows))
    # One recipe that ruins the model must not press all the others onto the axis.
    unit = max(limit, 0.5)
    wide = top > 8 * unit
    ticks = [0.0, *(step * unit for step in (1, 3, 10, 30, 100, 300, 1000, 3000) if step * unit <= top)]
    if wide:
        scale = alt.Scale(type="symlog", constant=unit, domain=[low, 1.2 * top], nice=False, padding=12)
        axis = alt.Axis(values=ticks, format="~g")
    else:
        scale, axis = alt.Scale(zero=True, nice=True, padding=12), alt.Axis(tickCount=6, format="~g")
    y = alt.Y("loss:Q", title="quality loss, %", scale=scale, axis=axis)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "tokens_per_s:Q",
            title=f"tokens/s at {findings.streams(concurrency)}",
            scale=alt.Scale(zero=False, nice=True, padding=16),
            axis=alt.Axis(tickCount=7),
        ),
        color=colour,
    )
    tooltip = hover(
        ("recipe", "recipe"),
        ("loss_text", "quality loss"),
        ("tokens_text", "tokens/s"),
        ("ratio_text", "against as-is"),
    )
    bars = base.mark_rule(strokeWidth=1.5, opacity=0.7).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
    points = base.mark_point(filled=True, size=110).encode(opacity=_faint(), y=y, shape=shape, tooltip=tooltip)
    text: list[Any] = []
    if any(row["strong"] for row in rows):
        text = lettered(base.transform_filter("datum.strong").encode(y=y), "words:N", dx=9, dy=-10, align="left")
    bound = alt.Chart(alt.Data(values=[{"loss": limit, "words": f"limit {limit:g} %"}])).encode(y="loss:Q")
    line = bound.mark_rule(strokeDash=[5, 4], strokeWidth=1.5, color="var(--limit)")
    name = lettered(bound.encode(x=alt.value(4)), "words:N", align="left", dy=-7, color="var(--limit)")
    title = "Quality loss against speed"
    words = "Down and to the right is better; above the line a recipe can't win. Bars are 95 % intervals."
    words += " The scale is logarithmic." if wide else ""
    described = _described(title, result, rows, "loss", "% loss")
    chart = alt.layer(line, *name, bars, *text, points, description=described)
    return finish(chart, 340, name="quality", title=title, text=words, section="speed")


def _bars(result: Result) -> list[Candidate]:
    """The candidates that bar charts show: the first of the table's order."""
    return [c for c in findings.measured(result) if c.score.speed][:BARS]


def _mark(result: Result, candidate: Candidate) -> str:
    return ("★ " if candidate is findings.winner(result) else "") + candidate.label


def _strong(result: Result, candidate: Candidate) -> bool:
    """Whether a chart names it in words: the winner, and what it is compared with."""
    return candidate.baseline or candidate is findings.winner(result)


def _described(title: str, result: Result, rows: Sequence[dict[str, Any]], field: str, unit: str) -> str:
    """Alternative text: what the chart says of the winner and the as-is model."""
    parts = [f"{r['recipe']}: {findings.number(r[field])} {unit}" for r in rows if r.get("strong")]
    return f"{title}, {len({r['recipe'] for r in rows})} recipes of {result.model}. " + "; ".join(parts)


def _bar_chart(rows: list[dict[str, Any]], field: str, colour: Any, tooltip: Any, description: str) -> Any:
    """Bars with their names and figures above instead of beside them: long names stay readable on a telephone."""
    import altair as alt

    order = list(dict.fromkeys(row["recipe"] for row in rows))
    y = alt.Y("recipe:N", sort=order, axis=None, scale=alt.Scale(paddingInner=0, paddingOuter=0))
    data = alt.Chart(alt.Data(values=rows)).encode(y=y)
    x = alt.X(f"{field}:Q", stack="zero", axis=None, scale=alt.Scale(nice=False))
    bars = data.mark_bar(height=13, yOffset=9, cornerRadiusEnd=2).encode(
        x=x, color=colour, order="place:Q", tooltip=tooltip
    )
    texts = data.transform_filter("datum.place == 0")
    names = texts.mark_text(align="left", yOffset=-8, limit={"expr": "width - 130"}).encode(
        x=alt.value(0), text="name:N"
    )
    values = texts.mark_text(align="right", yOffset=-8, color="var(--muted)").encode(
        x=alt.value("width"), text="words:N"
    )
    return alt.layer(bars, names, values, description=description)


def _request(result: Result, concurrency: int) -> Chart | None:
    import altair as alt

    rows = []
    for candidate in _bars(result):
        speed = candidate.score.at(concurrency)
        if speed is None or not findings.timed(speed.e2e_ms):
            continue
        first, whole = speed.ttft_ms.p50 / 1000, speed.e2e_ms.p50 / 1000
        answer = max(0.0, whole - first)
        for place, (part, seconds) in enumerate((("first token", first), ("answer", answer))):
            rows.append(
                {
                    "recipe": candidate.label,
                    "name": _mark(result, candidate),
                    "part": part,
                    "seconds": seconds,
                    "text": f"{findings.number(seconds)} s",
                    "words": f"{findings.number(first)} + {findings.number(answer)} s",
                    "whole_s": whole,
                    "place": place,
                    "strong": place == 0 and _strong(result, candidate),
                }
            )
    if not rows:
        return None
    parts = alt.Scale(domain=["first token", "answer"], range=["var(--waiting)", "var(--answering)"])
    title = f"With {findings.streams(concurrency)}"
    chart = _bar_chart(
        rows,
        "seconds",
        alt.Color("part:N", scale=parts, legend=None),
        hover(("recipe", "recipe"), ("part", "part"), ("text", "median")),
        _described(f"Where a request's time goes with {findings.streams(concurrency)}", result, rows, "whole_s", "s"),
    )
    words = "Seconds of a median request; medians, so the sum is approximate." + _more(result)
    height = 42 * len(rows) // 2
    return finish(chart, height, name=f"request-{concurrency}", title=title, text=words, section="request")


def _price(result: Result, which: str) -> Chart | None:
    import altair as alt

    rows = []
    for candidate in _bars(result):
        cost = candidate.score.cost
        if cost is None:
            continue
        price = cost.measured if which == "measured" else cost.blended
        if price is None:
            continue
        change = findings.price_change(result, candidate) if which == "measured" else None
        words = f"${findings.dollars(price)}" + (f" ({change:+.0f} %)" if change is not None else "")
        rows.append(
            {
                "recipe": candidate.label,
                "name": _mark(result, candidate),
                "price": price,
                "words": words,
                "place": 0,
                "look": "winner"
                if candidate is findings.winner(result)
                else "as-is"
                if candidate.baseline
                else "other",
                "strong": _strong(result, candidate),
            }
        )
    if not rows:
        return None
    if which == "measured":
        title, words = "Price per 1M output tokens", "By measured throughput."
    else:
        ratio = f"{result.price.input_output_ratio:g} input tokens to 1 output token"
        title = "Blended price per 1M tokens"
        words = f"A formula: concurrency / p50 ITL, at {ratio}. Not comparable with the price by measured throughput."
    looks = alt.Scale(domain=["winner", "as-is", "other"], range=["var(--winner)", "var(--as-is)", "var(--others)"])
    chart = _bar_chart(
        rows,
        "price",
        alt.Color("look:N", scale=looks, legend=None),
        hover(("recipe", "recipe"), ("words", "$ per 1M tokens")),
        _described(title, result, rows, "price", "$"),
    )
    words += _more(result)
    return finish(chart, 42 * len(rows), name=f"price-{which}", title=title, text=words, section="price")


def _more(result: Result) -> str:
    """Say so if a bar chart shows less than the table."""
    count = sum(1 for c in findings.measured(result) if c.score.speed)
    return f" The first {BARS} of {count} recipes; the table has them all." if count > BARS else ""
