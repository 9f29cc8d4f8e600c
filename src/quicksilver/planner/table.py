"""The tables of a Plan: options, fleets, and what was refused; for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quicksilver.bench.findings import NOTHING, dollars, number
from quicksilver.nouns.plan import Fleet, FleetPoint, Option, Plan
from quicksilver.nouns.prediction import Prediction, Refused, Times

TOP = 3
"""Options of one instance in the short table."""
MARKS = {"cheapest": "★", "nearest": "→", "front": "◆", "": ""}
MEANINGS = (
    "Every figure is predicted, nothing was measured. ★ the cheapest that meets the SLO if there is one, → the nearest to it if none does, "
    "◆ no other is both cheaper and quicker. Times in ms; ITL with bursts of speculation spread over their tokens; answer: "
    "from asking to its last token; $/1M: output tokens at the predicted throughput; blended: the formula concurrency / p50 ITL."
)
HEADS = (
    "instance", "recipe", "copies", "tokens/s", "TTFT p50", "TTFT p95", "ITL p50", "ITL p95", "answer p50", "$/1M", "blended", "SLO", "basis", "error so far",
)  # fmt: skip
RIGHT = tuple(range(2, 11))
"""Columns of numbers."""
PAGE = (
    ("tokens/s", "copies", 3, 2),
    ("TTFT p50", "p95", 4, 5),
    ("ITL p50", "p95", 6, 7),
    ("answer p50", "", 8, None),
    ("$/1M", "blended", 9, 10),
    ("SLO", "", 11, None),
    ("basis", "error so far", 12, 13),
)
"""Columns of the page: their heads, and the places of the main and the small text among the cells."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table of options: its mark, its cells, and what a column is sorted by (None: by its text)."""

    mark: str
    cells: tuple[str, ...]
    values: tuple[float | None, ...]


def shown(plan: Plan, *, every: bool = False) -> list[tuple[int, Option]]:
    """Return the options of the table with their places: the best of each instance and all that are marked, or every one."""
    seen: dict[str, int] = {}
    found = []
    for place, option in enumerate(plan.options):
        count = seen[option.prediction.instance] = seen.get(option.prediction.instance, 0) + 1
        if every or count <= TOP or option.on_front or place in {plan.cheapest, plan.nearest}:
            found.append((place, option))
    return found


def rows(plan: Plan, *, every: bool = False) -> list[Row]:
    """Lay the options out under HEADS."""
    return [_row(plan, place, option) for place, option in shown(plan, every=every)]


def mark(plan: Plan, place: int) -> str:
    """Return what is special about an option: `cheapest`, `nearest`, `front`, or nothing."""
    if place == plan.cheapest:
        return "cheapest"
    if place == plan.nearest:
        return "nearest"
    return "front" if plan.options[place].on_front else ""


def standing(option: Option) -> str:
    """Say how an option stands to the SLO: `meets`, or the limit that it breaks most and by how much."""
    worst = option.worst
    if worst is None:
        return NOTHING
    return "meets" if option.meets else f"{worst.term.name} {worst.share:.2f}x"


def trust(made: Prediction) -> str:
    """Say how wrong the source of a prediction has been."""
    if made.error_percent is None:
        return "not measured yet"
    return f"{made.error_percent:.0f} % over {made.error_count}"


def price_words(plan: Plan) -> str:
    """Say how prices are paid."""
    discount = f", less {100 * plan.discount:g} %" if plan.discount else ""
    return f"Prices: {plan.commitment}{discount}; blended at {plan.input_output_ratio:g} input tokens for each output token."


def refused(plan: Plan) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return why pairs have no figures: instance, reason, recipes; those that share both together."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in plan.refused:
        found.setdefault((one.instance, one.why), []).append(one.layout.label)
    return [(instance, why, tuple(labels)) for (instance, why), labels in found.items()]


def refused_shortly(plan: Plan) -> list[str]:
    """Return a sentence for each instance that some recipes don't fit, and one for each other reason."""
    found: list[str] = []
    large: dict[str, list[Refused]] = {}
    for one in plan.refused:
        if one.fit is not None and not one.fit.fits:
            large.setdefault(one.instance, []).append(one)
    for instance, those in large.items():
        needs = [(one.fit.total_gb, one.fit.capacity_gb, one.layout.label) for one in those if one.fit is not None]
        gb, capacity, label = min(needs)
        takes = f"takes {gb:.1f} of {capacity:.1f} GB for one stream."
        found.append(
            f"{instance}: {len(those)} recipes don't fit; the smallest of them, {label}, {takes}"
            if len(those) > 1
            else f"{instance}: {label} doesn't fit: it {takes}"
        )
    others: dict[str, list[Refused]] = {}
    for one in plan.refused:
        if one.fit is None or one.fit.fits:
            others.setdefault(one.why, []).append(one)
    for why, those in others.items():
        names = list(dict.fromkeys(one.instance for one in those))
        found.append(f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {why}")
    return found


FLEET_HEADS = ("instance", "recipe", "machines", "$/h", "TTFT p95", "ITL p95", "answer p95", "copies")
FLEET_RIGHT = tuple(range(2, 8))


def fleet_rows(plan: Plan) -> list[tuple[str, ...]]:
    """Lay the fleets out under FLEET_HEADS, at the load that is asked for."""
    return [_fleet_row(fleet) for fleet in plan.fleets]


POINT_HEADS = ("machines", "load", "requests/s", "tokens/s", "TTFT p95", "ITL p95", "answer p95", "")
POINT_RIGHT = tuple(range(7))


def point_rows(points: Sequence[FleetPoint]) -> list[tuple[str, ...]]:
    """Lay a fleet's points out under POINT_HEADS."""
    return [
        (
            str(point.machines),
            f"{100 * point.share:.0f} %",
            number(point.requests_per_s),
            number(point.tokens_per_s),
            *(number(times.p95) for times in (point.ttft_ms, point.itl_ms, point.e2e_ms)),
            "meets" if point.meets else "breaks the SLO" if point.keeps_up else "falls behind",
        )
        for point in points
    ]


def _fleet_row(fleet: Fleet) -> tuple[str, ...]:
    name = (fleet.instance, fleet.layout.label)
    if fleet.machines is None:
        return *name, "none", *([NOTHING] * 4), str(fleet.replicas)
    at = next(point for point in fleet.by_machines if point.machines == fleet.machines)
    return (
        *name,
        f"{fleet.machines:,}",
        dollars(fleet.usd_per_hour),
        *(number(times.p95) for times in (at.ttft_ms, at.itl_ms, at.e2e_ms)),
        str(fleet.replicas),
    )


def _row(plan: Plan, place: int, option: Option) -> Row:
    made = option.prediction
    cost = made.cost
    figures: tuple[tuple[str, float | None], ...] = (
        (str(made.replicas), made.replicas),
        (number(made.tokens_per_s), made.tokens_per_s),
        *_times(made.ttft_ms),
        *_times(made.itl_ms),
        (number(made.e2e_ms.p50), made.e2e_ms.p50),
        (dollars(cost.measured if cost else None), cost.measured if cost else None),
        (dollars(cost.blended if cost else None), cost.blended if cost else None),
        (standing(option), option.worst.share if option.worst else None),
        (made.basis, None),
        (trust(made), made.error_percent),
    )
    cells = (made.instance, made.layout.label, *(text for text, _ in figures))
    return Row(mark(plan, place), cells, (None, None, *(value for _, value in figures)))


def _times(times: Times) -> tuple[tuple[str, float], tuple[str, float]]:
    return (number(times.p50), times.p50), (number(times.p95), times.p95)
