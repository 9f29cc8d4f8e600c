"""The page of a Plan: one file that asks for nothing from outside."""

from __future__ import annotations

import base64
import hashlib

from quicksilver.bench import charts as drawing
from quicksilver.bench import pages
from quicksilver.bench.findings import Card, dollars, number, streams
from quicksilver.bench.report import date
from quicksilver.nouns.plan import Option, Plan
from quicksilver.planner import charts, table

TEMPLATE = "plan.html.jinja"
MOST_ROWS = 60
"""Options that the page's table has all of; of more, the best of each instance and those that are marked."""


def html(plan: Plan) -> str:
    """Write the page; with charts if altair and vl-convert are there. Raises QuicksilverError without jinja2."""
    environment = pages.environment()
    missing = pages.charts_missing()
    drawn = [] if missing else charts.draw(plan)
    script = drawing.script(environment.get_template("report.js").render()) if drawn else ""
    best = chosen(plan)
    return environment.get_template(TEMPLATE).render(
        plan=plan,
        best=best,
        cards=_cards(plan, best) if best is not None else [],
        table=table,
        rows=table.rows(plan, every=len(plan.options) <= MOST_ROWS),
        refused=table.refused(plan),
        charts=drawn,
        charts_missing=missing,
        legend=charts.legend(plan),
        created=date(plan.created),
        number=number,
        streams=streams,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def chosen(plan: Plan) -> Option | None:
    """Return the option that the page is about: the cheapest, else the nearest, else the first; None without any."""
    if not plan.options:
        return None
    places = [place for place in (plan.cheapest, plan.nearest) if place is not None]
    return plan.options[places[0] if places else 0]


def _cards(plan: Plan, best: Option) -> list[Card]:
    made = best.prediction
    at = streams(plan.load.streams)
    found = [
        Card("tokens/s", number(made.tokens_per_s), at, "predicted"),
        Card("TTFT p95", f"{number(made.ttft_ms.p95)} ms", f"p50 {number(made.ttft_ms.p50)} ms", "predicted"),
        Card("ITL p50", f"{number(made.itl_ms.p50)} ms", f"p95 {number(made.itl_ms.p95)} ms", "predicted"),
    ]
    if made.cost is not None:
        found.append(
            Card("$ per 1M tokens", dollars(made.cost.measured), f"at ${made.cost.usd_per_hour:g} an hour", "predicted")
        )
    if plan.fleets and plan.fleets[0].machines is not None:
        fleet = plan.fleets[0]
        paid = f", ${dollars(fleet.usd_per_hour)} an hour" if fleet.usd_per_hour is not None else ""
        found.append(Card("machines", f"{fleet.machines:,}", f"{fleet.instance}{paid}", "predicted"))
    return found
