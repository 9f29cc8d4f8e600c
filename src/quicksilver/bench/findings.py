"""What a Result says, in words and formatted figures: what every face of the report (terminal, Markdown, HTML) shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quicksilver.nouns import Candidate, Figure, Goal, Latency, Result, Speed

NOTHING = "-"
GOALS = {
    "cost": "the lowest price per token",
    "throughput": "the most tokens a second",
    "latency": "the shortest time per request",
}


@dataclass(frozen=True, slots=True)
class Card:
    """A key figure of the winner."""

    title: str
    value: str
    note: str
    source: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Recipes that are out for one kind of reason; recipes that share a sentence are folded."""

    title: str
    meaning: str
    reasons: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def count(self) -> int:
        """How many recipes."""
        return sum(len(labels) for _, labels in self.reasons)


def number(value: float | None) -> str:
    """Format a figure with three or so significant digits: 1,190 · 352 · 63.1 · 8.60 · 0.034."""
    if value is None or not math.isfinite(value):
        return NOTHING
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.1 or value == 0 else f"{value:.2g}"


def percent(value: float | None) -> str:
    """Format percent, two decimals below 10; a rounded minus zero is a zero."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def dollars(value: float | None) -> str:
    """Format a price in $: two decimals from 1 on, two significant digits below."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.2f}" if value >= 0.995 or value == 0 else f"{value:.3f}" if value >= 0.01 else f"{value:.2g}"


def plain(text: str) -> str:
    """Replace control characters in what a user wrote: they would steer a terminal, and are no XML."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def streams(count: int) -> str:
    """`1 stream`, `8 streams`."""
    return f"{count} stream" if count == 1 else f"{count} streams"


def timed(latency: Latency) -> bool:
    """Whether there was anything to take percentiles over: with nothing they are all 0."""
    return latency.p99 > 0


def loss(candidate: Candidate) -> Figure | None:
    """The quality loss in percent, if it could be measured."""
    return candidate.score.quality.loss if candidate.score.quality is not None else None


def interval(figure: Figure, form: Callable[[float], str] = number) -> str:
    """`0.52..1.31`, or nothing when the figure has no interval."""
    if figure.low is None or figure.high is None:
        return ""
    return f"{form(figure.low)}..{form(figure.high)}"


def measured(result: Result) -> list[Candidate]:
    """Measured candidates: as-is first, then the winner, then by the goal, those that can't win last."""
    won = winner(result)

    def order(candidate: Candidate) -> tuple[bool, bool, bool, float]:
        return (
            not candidate.baseline,
            candidate is not won,
            not candidate.eligible,
            _by_goal(result.goal, candidate),
        )

    return sorted((c for c in result.candidates if c.status == "measured"), key=order)


def _by_goal(goal: Goal, candidate: Candidate) -> float:
    """What the goal would have small."""
    speeds = sorted(candidate.score.speed, key=lambda s: s.concurrency)
    if goal.metric == "cost" and candidate.score.cost is not None:
        return candidate.score.cost.measured
    if not speeds:
        return math.inf
    return speeds[0].e2e_ms.p50 if goal.metric == "latency" else -speeds[-1].tokens_per_s.value


def winner(result: Result) -> Candidate | None:
    """The candidate that won, if one did."""
    return result.candidate(result.best) if result.best is not None else None


def concurrencies(result: Result) -> list[int]:
    """Every concurrency that some recipe was measured at, ascending."""
    return sorted({s.concurrency for c in result.candidates if c.status == "measured" for s in c.score.speed})


def ratio(result: Result, candidate: Candidate, concurrency: int) -> Figure | None:
    """Tokens/s against the as-is model: the paired figure, or else the quotient, without an interval."""
    speed, base = candidate.score.at(concurrency), result.baseline
    if speed is None or base is None:
        return None
    if candidate is base:
        return Figure(value=1.0, unit="x", source=speed.tokens_per_s.source)
    if speed.ratio is not None:
        return speed.ratio
    reference = base.score.at(concurrency)
    if reference is None or reference.tokens_per_s.value <= 0:
        return None
    both = {speed.tokens_per_s.source, reference.tokens_per_s.source}
    return Figure(
        value=speed.tokens_per_s.value / reference.tokens_per_s.value,
        unit="x",
        source="predicted" if "predicted" in both else "measured",
    )


def limits(goal: Goal) -> list[str]:
    """The limits of a goal, in words."""
    found = [f"quality loss at most {goal.max_quality_loss:g} %"]
    if goal.max_task_loss is not None:
        found.append(f"task loss at most {goal.max_task_loss:g} %")
    if goal.ttft_p95_ms is not None:
        found.append(f"TTFT p95 at most {number(goal.ttft_p95_ms)} ms")
    if goal.itl_p95_ms is not None:
        found.append(f"ITL p95 at most {number(goal.itl_p95_ms)} ms")
    if goal.memory_mb is not None:
        found.append(f"memory at most {number(goal.memory_mb)} MB")
    return found


def source(candidate: Candidate) -> str:
    """Whether the speed of a recipe, and so its price, was measured or predicted."""
    return "predicted" if any(s.tokens_per_s.source == "predicted" for s in candidate.score.speed) else "measured"


def verdict(result: Result) -> str:
    """The outcome in one sentence that needs no glossary."""
    best, base = winner(result), result.baseline
    if best is None:
        if not measured(result):
            return "Nothing could be measured" + ("; the reasons are below." if result.candidates else ".")
        if bound(result):
            return "No recipe keeps to the limits that were set."
        plainly = [_plain_speed(c) for c in measured(result) if c.score.speed]
        return plainly[0] if len(plainly) == 1 else "No winner was chosen."
    if best is base:
        return "Nothing that was tried beats this model as it comes."
    speeds = sorted(best.score.speed, key=lambda s: s.concurrency)
    words = f"{best.label} {_faster(result, best, speeds)}"
    more = [part for part in (_loss_words(best), _price_words(result, best)) if part]
    return words + (f", at {' and '.join(more)}" if more else "") + "."


def bound(result: Result) -> bool:
    """Whether a limit kept every recipe that was measured from winning."""
    found = measured(result)
    return bool(found) and result.best is None and all(c.reason and not c.eligible for c in found)


def _plain_speed(candidate: Candidate) -> str:
    speeds = sorted(candidate.score.speed, key=lambda s: s.concurrency)
    words = [f"{number(s.tokens_per_s.value)} tokens/s with {streams(s.concurrency)}" for s in speeds]
    return f"{candidate.label} serves {', '.join(words)}."


def _faster(result: Result, best: Candidate, speeds: Sequence[Speed]) -> str:
    if not speeds:
        return "is the choice for this goal"
    first = speeds[0]
    times = ratio(result, best, first.concurrency)
    if times is None:
        return f"serves this model at {number(first.tokens_per_s.value)} tokens/s with {streams(first.concurrency)}"
    if times.value >= 1.05:
        words = f"serves this model {times.value:.1f}x faster than as it comes"
    elif times.value > 0.95:
        words = "serves this model as fast as it comes"
    else:
        words = f"serves this model at {times.value:.2f}x the speed it has as it comes"
    last = speeds[-1]
    loaded = ratio(result, best, last.concurrency) if last is not first else None
    return words + (f" ({loaded.value:.1f}x with {streams(last.concurrency)})" if loaded else "")


def _loss_words(best: Candidate) -> str:
    figure = loss(best)
    if figure is None:
        return "a quality loss that was not measured"
    return f"{figure.value:.1f} % quality loss" if figure.value >= 0.05 else "no loss of quality"


def price_change(result: Result, candidate: Candidate) -> float | None:
    """Change of the measured price against as-is, percent; negative is cheaper."""
    base = result.baseline
    if base is None or candidate is base or candidate.score.cost is None or base.score.cost is None:
        return None
    return 100 * (candidate.score.cost.measured / base.score.cost.measured - 1)


def _price_words(result: Result, best: Candidate) -> str:
    change = price_change(result, best)
    if change is None:
        return ""
    if abs(change) < 0.5:
        return "the same price per token"
    return f"{abs(change):.0f} % {'lower' if change < 0 else 'higher'} price per token"


def shown(result: Result) -> Candidate | None:
    """The candidate that the key figures are of: the winner, or else the as-is model, or else the only one."""
    found = measured(result)
    return winner(result) or result.baseline or (found[0] if len(found) == 1 else None)


def cards(result: Result) -> list[Card]:
    """Key figures of the candidate that `shown` gives."""
    one = shown(result)
    if one is None or one.status != "measured":
        return []
    base, found = result.baseline, []
    against = base if base is not one else None
    for speed in sorted(one.score.speed, key=lambda s: s.concurrency):
        if speed.concurrency not in (concurrencies(result)[0], concurrencies(result)[-1]):
            continue
        times = ratio(result, one, speed.concurrency) if against else None
        before = against.score.at(speed.concurrency) if against else None
        note = f"{times.value:.2f}x as-is" if times else f"spread {interval(speed.tokens_per_s)}"
        if before:
            note += f" ({number(before.tokens_per_s.value)})"
        found.append(
            Card(
                f"Tokens/s, {streams(speed.concurrency)}",
                number(speed.tokens_per_s.value),
                note,
                speed.tokens_per_s.source,
            )
        )
    if one.score.cost is not None:
        change = price_change(result, one)
        note = (
            f"{change:+.0f} % against as-is" if change is not None else f"at ${one.score.cost.usd_per_hour:g} an hour"
        )
        found.append(Card("Per 1M output tokens", f"${dollars(one.score.cost.measured)}", note, source(one)))
    lost = loss(one)
    if lost is not None and against:
        between = interval(lost, percent)
        found.append(
            Card("Quality loss", f"{percent(lost.value)} %", f"95 % interval {between}" if between else "", lost.source)
        )
    if one.score.speed:
        first = min(one.score.speed, key=lambda s: s.concurrency)
        before = against.score.at(first.concurrency) if against else None
        note = f"median; as-is {number(before.ttft_ms.p50)} ms" if before else f"median at {streams(first.concurrency)}"
        found.append(Card("To the first token", f"{number(first.ttft_ms.p50)} ms", note, first.tokens_per_s.source))
    if one.score.memory_mb is not None:
        was = against.score.memory_mb if against else None
        note = f"as-is {number(was)} MB" if was is not None else "peak of the server"
        found.append(Card("Memory", f"{number(one.score.memory_mb)} MB", note, "measured"))
    return found


def left_out(result: Result) -> list[LeftOut]:
    """Recipes that can't win, by how far they came; recipes with the same reason are folded."""
    won = winner(result)
    kinds: list[tuple[str, str, list[Candidate]]] = [
        (
            "Can't win",
            "measured, and over a limit or behind after the short race",
            [c for c in measured(result) if c is not won and not c.eligible and c.reason],
        ),
        ("Failed", "tried, and something broke", [c for c in result.candidates if c.status == "failed"]),
        ("Screened out", "a short test was enough", [c for c in result.candidates if c.status == "screened"]),
        ("Left out", "not tried", [c for c in result.candidates if c.status == "left out"]),
    ]
    found = []
    for title, meaning, candidates in kinds:
        reasons: dict[str, list[str]] = {}
        for candidate in candidates:
            reasons.setdefault(candidate.reason or "no reason was given", []).append(candidate.label)
        if reasons:
            found.append(LeftOut(title, meaning, tuple((reason, tuple(labels)) for reason, labels in reasons.items())))
    return found


def cautions(result: Result) -> list[str]:
    """What the figures alone would hide: failed requests, the spread between rounds, what wasn't measured."""
    found, rows = [], measured(result)
    failed = [
        f"{c.label} {s.errors} of {s.requests} at {streams(s.concurrency)}"
        for c in rows
        for s in c.score.speed
        if s.errors
    ]
    if failed:
        found.append(f"Requests failed: {'; '.join(failed)}.")
    spreads = [
        (100 * (s.tokens_per_s.high - s.tokens_per_s.low) / 2 / s.tokens_per_s.value, c, s)
        for c in rows
        for s in c.score.speed
        if s.rounds > 1 and s.tokens_per_s.low is not None and s.tokens_per_s.high is not None and s.tokens_per_s.value
    ]
    if spreads:
        most, candidate, speed = max(spreads, key=lambda item: item[0])
        found.append(
            f"Rounds of one recipe differ by up to ±{most:.0f} % in tokens/s ({candidate.label}, {streams(speed.concurrency)})."
        )
    if rows and all(loss(c) is None for c in rows):
        found.append("Quality loss was not measured.")
    if rows and len(concurrencies(result)) == 1:
        found.append(f"Speed was measured at one concurrency only: {streams(concurrencies(result)[0])}.")
    if any(source(c) == "predicted" for c in rows):
        found.append("Figures marked ~ are predicted; all others were measured.")
    return found


def price_words(result: Result) -> str:
    """The price of the machine and where it comes from, in one sentence."""
    price = result.price
    off = f", less {100 * price.discount:g} % discount" if price.discount else ""
    return f"Price of the machine: ${price.usd_per_hour:g} an hour{off} ({price.source})."
