"""The charts of a Plan: latency against throughput by instance, price against latency with its front, and a fleet's p95 against its load."""

from __future__ import annotations

from typing import Any

from quicksilver.bench import charts
from quicksilver.bench.charts import SHAPES, SQUARE, Chart, Series
from quicksilver.bench.findings import dollars, number, streams
from quicksilver.nouns.plan import Option, Plan
from quicksilver.planner import table

HEIGHT = 340
REST = "other instances"
METRICS = {"ttft": "time to first token, p95", "itl": "gap between tokens, p95", "e2e": "time of an answer, p95"}
FARTHEST = 20.0
"""Times its p95 at the load asked for up to which a fleet's line is drawn: above, it only says that it is overloaded."""


def legend(plan: Plan) -> list[Series]:
    """Give each of the first instances a colour and a shape of its own, and the rest one together."""
    names = list(
        dict.fromkeys([fleet.instance for fleet in plan.fleets] + [o.prediction.instance for o in plan.options])
    )
    best = plan.options[plan.cheapest].prediction.instance if plan.cheapest is not None else None
    plain = [name for name in names if name != best]
    found = [Series(best, "var(--winner)", SQUARE)] if best is not None else []
    found += [
        Series(name, f"var(--series-{n + 1})", shape)
        for n, (name, shape) in enumerate(zip(plain, SHAPES, strict=False))
    ]
    if len(plain) > len(SHAPES):
        found.append(Series(REST, "var(--others)", charts.CIRCLE))
    return found


def data(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every chart by its name: what is drawn, as data."""
    options = [_point(plan, place, option) for place, option in enumerate(plan.options)]
    found = {"throughput": _curve_rows(plan), "price": [row for row in options if row["usd_per_1m"] is not None]}
    return found | {f"fleet_{metric}": _fleet_rows(plan, metric) for metric in _metrics(plan) if plan.fleets}


def draw(plan: Plan) -> list[Chart]:
    """Draw what there are figures for."""
    rows = data(plan)
    found = [_curves(plan, rows["throughput"]), _scatter(plan, rows["price"])]
    found += [_lines(plan, rows[f"fleet_{metric}"], metric) for metric in _metrics(plan) if plan.fleets]
    return [chart for chart in found if chart is not None]


def _point(plan: Plan, place: int, option: Option) -> dict[str, Any]:
    made = option.prediction
    cost = made.cost.measured if made.cost is not None else None
    special = table.mark(plan, place)
    return {
        "instance": made.instance,
        "recipe": made.layout.label,
        "tokens_per_s": made.tokens_per_s,
        "ttft_p95_ms": made.ttft_ms.p95,
        "itl_p50_ms": made.itl_ms.p50,
        "e2e_ms": made.e2e_ms.p50,
        "usd_per_1m": cost,
        "meets": option.meets,
        "front": option.on_front,
        "mark": special,
        "basis": made.basis,
    }


def _curve_rows(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "instance": curve.instance,
            "recipe": curve.layout.label,
            "streams": point.streams,
            "tokens_per_s": point.tokens_per_s,
            "ttft_p95_ms": point.ttft_ms.p95,
            "itl_p50_ms": point.itl_ms.p50,
            "e2e_ms": point.e2e_ms.p50,
        }
        for curve in plan.curves
        for point in curve.points
    ]


def _curves(plan: Plan, rows: list[dict[str, Any]]) -> Chart | None:
    import altair as alt

    if not rows:
        return None
    looked = [
        row
        | {
            "series": _series(plan, row["instance"]),
            "asked": row["streams"] == plan.load.streams,
            "tokens_text": number(row["tokens_per_s"]),
            "ttft_text": f"{number(row['ttft_p95_ms'])} ms",
            "itl_text": f"{number(row['itl_p50_ms'])} ms",
            "e2e_text": f"{number(row['e2e_ms'])} ms",
        }
        for row in rows
    ]
    colour, shape = _looks(plan)
    base = alt.Chart(alt.Data(values=looked)).encode(
        x=alt.X("tokens_per_s:Q", title="tokens/s, all streams", scale=_scale(looked, "tokens_per_s"), axis=_axis()),
        y=alt.Y("e2e_ms:Q", title="time of an answer (median), ms", scale=_scale(looked, "e2e_ms"), axis=_axis()),
        color=colour,
        detail="instance:N",
        order="streams:Q",
    )
    points = base.mark_point(filled=True).encode(
        shape=shape,
        size=alt.condition("datum.asked", alt.value(150), alt.value(45)),
        tooltip=charts.hover(
            ("instance", "instance"),
            ("recipe", "recipe"),
            ("streams", "streams"),
            ("tokens_text", "tokens/s"),
            ("ttft_text", "TTFT p95"),
            ("itl_text", "ITL p50"),
            ("e2e_text", "answer p50"),
        ),
    )
    title = "Latency against throughput"
    text = (
        f"Each line is an instance with its best recipe, from 1 stream on, doubled from point to point; large: {streams(plan.load.streams)}. "
        "Down and to the right is better. All predicted."
    )
    described = f"{title}, predicted, at {streams(plan.load.streams)}: " + "; ".join(
        f"{row['instance']} with {row['recipe']}: {row['tokens_text']} tokens/s, answer {row['e2e_text']}"
        for row in looked
        if row["asked"]
    )
    chart = alt.layer(base.mark_line(strokeWidth=2), points, description=described)
    return charts.finish(chart, HEIGHT, name="throughput", title=title, text=text, section="options")


def _scatter(plan: Plan, rows: list[dict[str, Any]]) -> Chart | None:
    import altair as alt

    if len(rows) < 2:
        return None
    looked = [_seen(plan, row) for row in rows]
    colour, shape = _looks(plan)
    base = alt.Chart(alt.Data(values=looked)).encode(
        x=alt.X("e2e_ms:Q", title="time of an answer (median), ms", scale=_scale(looked, "e2e_ms"), axis=_axis()),
        y=alt.Y("usd_per_1m:Q", title="$ per 1M output tokens", scale=_scale(looked, "usd_per_1m"), axis=_axis()),
        color=colour,
    )
    points = base.mark_point(filled=True, size=90).encode(
        shape=shape,
        opacity=alt.condition("datum.front", alt.value(1), alt.value(0.35)),
        tooltip=charts.hover(
            ("instance", "instance"),
            ("recipe", "recipe"),
            ("usd_text", "$/1M"),
            ("e2e_text", "answer p50"),
            ("tokens_text", "tokens/s"),
            ("ttft_text", "TTFT p95"),
            ("itl_text", "ITL p50"),
            ("slo_text", "SLO"),
            ("basis", "predicted from"),
        ),
    )
    edge = alt.Chart(alt.Data(values=sorted((r for r in looked if r["front"]), key=lambda r: float(r["e2e_ms"]))))
    layers: list[Any] = [
        edge.mark_line(strokeWidth=1.5, strokeDash=[4, 3], color="var(--muted)", interpolate="step-after").encode(
            x="e2e_ms:Q", y="usd_per_1m:Q"
        )
    ]
    if any(row["words"] for row in looked):
        layers += charts.lettered(base.transform_filter("datum.words != ''"), "words:N", dy=-13)
    title = "Price against latency"
    text = "Down and to the left is better. Faint options are beaten by another in both; the dashed line is the front. All predicted."
    described = (
        f"{title}, predicted: {sum(r['front'] for r in looked)} of {len(looked)} options are on the front. "
        + "; ".join(
            f"{row['instance']} with {row['recipe']} ({row['words']}): {row['usd_text']}, answer {row['e2e_text']}"
            for row in looked
            if row["words"]
        )
    )
    chart = alt.layer(*layers, points, description=described)
    return charts.finish(chart, HEIGHT, name="price", title=title, text=text, section="options")


def _seen(plan: Plan, row: dict[str, Any]) -> dict[str, Any]:
    """Add what a reader sees of a point."""
    words = {"cheapest": "cheapest" + (" within the SLO" if plan.slo else ""), "nearest": "nearest to the SLO"}
    return row | {
        "series": _series(plan, row["instance"]),
        "tokens_text": number(row["tokens_per_s"]),
        "ttft_text": f"{number(row['ttft_p95_ms'])} ms",
        "itl_text": f"{number(row['itl_p50_ms'])} ms",
        "e2e_text": f"{number(row['e2e_ms'])} ms",
        "usd_text": "no price" if row["usd_per_1m"] is None else f"${dollars(row['usd_per_1m'])}",
        "slo_text": {None: "none", True: "meets", False: "breaks"}[row["meets"]],
        "words": words.get(row["mark"], ""),
    }


def _metrics(plan: Plan) -> list[str]:
    """The durations that the SLO limits, or the time to the first token."""
    limited = [term.metric for term in plan.slo.terms if term.metric in METRICS] if plan.slo is not None else []
    return list(dict.fromkeys(limited)) or ["ttft"]


def _fleet_rows(plan: Plan, metric: str) -> list[dict[str, Any]]:
    return [
        {
            "instance": fleet.instance,
            "recipe": fleet.layout.label,
            "machines": point.machines,
            "requests_per_s": point.requests_per_s,
            "share": point.share,
            "p95_ms": getattr(point, f"{metric}_ms").p95,
            "keeps_up": point.keeps_up,
            "meets": point.meets,
        }
        for fleet in plan.fleets
        for point in fleet.by_load
    ]


def _lines(plan: Plan, rows: list[dict[str, Any]], metric: str) -> Chart | None:
    import altair as alt

    if not rows:
        return None
    limit = _limit(plan, metric)
    usual = {row["instance"]: row["p95_ms"] for row in rows if row["share"] == 1.0}
    looked = [
        row
        | {
            "series": _series(plan, row["instance"]),
            "shown_ms": min(row["p95_ms"], FARTHEST * usual[row["instance"]]),
            "text": f"{number(row['p95_ms'])} ms" + ("" if row["keeps_up"] else ", falls behind"),
            "fleet": f"{row['machines']} x {row['instance']}",
        }
        for row in rows
    ]
    colour, shape = _looks(plan)
    loads = sorted({row["requests_per_s"] for row in looked})
    base = alt.Chart(alt.Data(values=looked)).encode(
        x=alt.X(
            "requests_per_s:Q", title="requests/s", scale=alt.Scale(zero=False, nice=False, padding=14),
            axis=alt.Axis(values=loads, format=".3~g", labelOverlap="greedy"),
        ),
        y=alt.Y("shown_ms:Q", title=f"{METRICS[metric]}, ms", scale=alt.Scale(type="log", nice=False, padding=14), axis=_axis()),
        color=colour,
        detail="fleet:N",
    )  # fmt: skip
    layers: list[Any] = []
    asked = alt.Chart(alt.Data(values=[{"load": plan.fleets[0].requests_per_s}]))
    layers.append(asked.mark_rule(strokeWidth=6, opacity=0.15, color="var(--winner)").encode(x="load:Q"))
    if limit:
        rule = alt.Chart(alt.Data(values=[{"limit": limit}]))
        layers.append(rule.mark_rule(strokeDash=[5, 4], strokeWidth=1.5, color="var(--limit)").encode(y="limit:Q"))
    points = base.mark_point(filled=True, size=70).encode(
        shape=shape,
        tooltip=charts.hover(
            ("fleet", "fleet"), ("recipe", "recipe"), ("requests_per_s", "requests/s"), ("text", METRICS[metric])
        ),
    )
    title = f"Fleets: {METRICS[metric]} by load"
    words = "Each line is the smallest fleet of one instance that meets the SLO at the load of the broad line."
    words += " The dashed line is the limit." if limit else ""
    at = [row for row in looked if row["share"] == 1.0]
    described = f"{title}, predicted. " + "; ".join(f"{row['fleet']}: {row['text']}" for row in at)
    chart = alt.layer(*layers, base.mark_line(strokeWidth=2), points, description=described)
    return charts.finish(chart, HEIGHT, name=f"fleet-{metric}", title=title, text=words, section="fleets")


def _limit(plan: Plan, metric: str) -> float | None:
    terms = plan.slo.terms if plan.slo is not None else ()
    return next((t.limit for t in terms if t.metric == metric and t.statistic == "p95"), None)


def _scale(rows: list[dict[str, Any]], name: str) -> Any:
    """Logarithmic where values lie far apart."""
    import altair as alt

    values = [float(row[name]) for row in rows]
    wide = min(values) > 0 and max(values) / min(values) > 8
    return alt.Scale(type="log", nice=False, padding=18) if wide else alt.Scale(zero=False, nice=True, padding=18)


def _axis() -> Any:
    import altair as alt

    return alt.Axis(tickCount=6, format=",.3~r", labelOverlap="greedy")


def _series(plan: Plan, instance: str) -> str:
    own = {series.label for series in legend(plan)}
    return instance if instance in own else REST


def _looks(plan: Plan) -> tuple[Any, Any]:
    import altair as alt

    series = legend(plan)
    domain = [one.label for one in series]
    colour = alt.Color("series:N", legend=None, scale=alt.Scale(domain=domain, range=[one.colour for one in series]))
    shape = alt.Shape("series:N", legend=None, scale=alt.Scale(domain=domain, range=[one.shape for one in series]))
    return colour, shape
