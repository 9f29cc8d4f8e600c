"""Find the highest load that meets an Slo: doubling until one doesn't, then bisection, each load with fresh prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from quicksilver.bench.slo import goodput, judge, requests_needed
from quicksilver.bench.stats import figures, speed
from quicksilver.errors import BadInputError, QuicksilverError
from quicksilver.nouns.arrivals import Arrivals
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.score import Figure
from quicksilver.nouns.slo import Slo
from quicksilver.nouns.slo_search import Attempt, Finding, Judgement, LoadUnit, SloSearch

Measure = Callable[[float, int, int], Sequence[Sample]]
"""Put a load on for so many requests, none of which was sent before, in a round of that number; return the Samples."""

AGAIN = 2
"""How much longer than the first a second look is, at a load that the first left open."""
MOST_STREAMS = 256
MOST_RATE = 1024.0


@dataclass(frozen=True, slots=True)
class Loads:
    """The loads that can be tried: whole numbers of streams, or rates of requests a second."""

    unit: LoadUnit = "streams"
    first: float = 1.0
    most: float = MOST_STREAMS
    tolerance: float = 0.05
    """How far apart, as a share, two loads are that need nothing tried between them."""

    def arrivals(self, load: float) -> Arrivals:
        """A load as one that can be put on."""
        return Arrivals.closed(round(load)) if self.unit == "streams" else Arrivals.poisson(load)

    def more(self, load: float) -> float | None:
        """The next load up; None at the end."""
        return min(2 * load, self.most) if load < self.most else None

    def less(self, load: float) -> float | None:
        """The next load down, where even the first is too much; None at the end."""
        return load / 2 if self.unit != "streams" and load > self.first / 64 else None

    def between(self, low: float, high: float) -> float | None:
        """A load in the middle of two; None if they are near enough."""
        if self.unit == "streams":
            return float((low + high) // 2) if high - low > max(1.0, self.tolerance * low) else None
        return float(f"{math.sqrt(low * high):.3g}") if high / low > 1 + self.tolerance else None

    def left(self, low: float | None, high: float | None) -> int:
        """About how many more loads will be tried; while nothing is too much, it is taken that four times as much is."""
        if low is None:
            return 1
        above = high if high is not None else 4 * low
        step = max(1.0, self.tolerance * low) if self.unit == "streams" else self.tolerance * low
        return (0 if high is not None else 2) + max(0, math.ceil(math.log2(max(1.0, (above - low) / step))))

    def lead(self, load: float) -> int:
        """Requests at each end of a run that don't have the load's full company: of n streams, all but one."""
        return math.ceil(load) - 1 if self.unit == "streams" else math.ceil(2 * math.sqrt(load))


def streams(most: float = MOST_STREAMS) -> Loads:
    """Loads in a closed loop."""
    return Loads(most=most)


def rates(first: float = 1.0, most: float = MOST_RATE) -> Loads:
    """Loads in an open loop."""
    return Loads("requests/s", first, most, 0.1)


@dataclass(slots=True)
class Looks:
    """What was seen at each load so far."""

    slo: Slo
    loads: Loads
    measure: Measure
    needed: int
    on_attempt: Callable[[Attempt, int], None]
    seen: dict[float, list[list[Sample]]] = field(default_factory=dict)
    attempts: dict[float, Attempt] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    rounds: int = 0

    def settle(self, load: float) -> bool:
        """Look at a load, once more and longer if that leaves it open, and return whether it surely meets the Slo."""
        for size in (self.needed, AGAIN * self.needed):
            found = self.measure(load, size + 2 * self.loads.lead(load), self.rounds)
            self.rounds += 1
            self.seen.setdefault(load, []).append([s for s in found if not s.warmup])
            attempt = self._attempt(load)
            self.attempts[load] = attempt
            # A rate that is too low gets better with the load: it is no reason to try less.
            outcome = _ceilings(attempt.judgement, self.slo)
            if outcome != "unsure" or size != self.needed:
                break
            self.on_attempt(attempt, 1 + self.loads.left(self.low, self.high))
        if outcome == "meets":
            self.low = load
        else:
            self.high = load
        self.on_attempt(attempt, self.loads.left(self.low, self.high))
        return outcome == "meets"

    def _attempt(self, load: float) -> Attempt:
        runs = self.seen[load]
        judged = [s for run in runs for s in steady(run, self.loads.lead(load))]
        every = [s for run in runs for s in run]
        return Attempt(
            load=load,
            runs=len(runs),
            requests=len(every),
            judged=len(judged),
            seconds=sum(max(s.end for s in run) - min(s.sent for s in run) for run in runs),
            judgement=judge(judged, self.slo),
            goodput=goodput(judged, self.slo),
            speed=speed(every, every[0].concurrency)
            if not every[0].load
            else figures(every, self.loads.arrivals(load)),
        )


def search(
    measure: Measure,
    slo: Slo,
    loads: Loads,
    *,
    on_attempt: Callable[[Attempt, int], None] = lambda *_: None,
) -> SloSearch:
    """Return the highest load that surely meets an Slo.

    The load is doubled until one doesn't surely meet it, then bisected. Each is looked at for as many requests as the Slo's
    percentiles take (`requests_needed`), and for twice as many more if that leaves it open; what is still open then counts as
    not met, and is said. Terms on rates are judged at the load that is found. `on_attempt` hears of each look, with about
    how many loads are left. An error of `measure` ends the search with what was seen before. Raises BadInputError for an
    Slo without any limit from above.
    """
    check(slo)
    looks = Looks(slo, loads, measure, requests_needed(slo), on_attempt)
    load: float | None = loads.first
    ended = ""
    try:
        while load is not None:
            looks.settle(load)
            load = _next(looks)
    except QuicksilverError as error:
        ended = str(error)
        if not looks.attempts:
            raise
    return _conclude(looks, ended)


def check(slo: Slo) -> None:
    """Raise BadInputError for an Slo that every load above some other would meet."""
    if not slo.ceilings:
        raise BadInputError(f"{slo} has no limit that a higher load could break; add one, such as ttft_p95<500ms.")


def steady(samples: Sequence[Sample], lead: int) -> list[Sample]:
    """The Samples that were sent while the load was full: without the first and last `lead`; all of them if that leaves none."""
    ordered = sorted(samples, key=lambda s: s.sent)
    return ordered[lead : len(ordered) - lead] or ordered


def _next(looks: Looks) -> float | None:
    if looks.low is None:
        return None if looks.high is None else looks.loads.less(looks.high)
    if looks.high is None:
        return looks.loads.more(looks.low)
    return looks.loads.between(looks.low, looks.high)


def _ceilings(judgement: Judgement, slo: Slo) -> str:
    """The outcome without the terms on rates."""
    if not slo.floors:
        return judgement.outcome
    outcomes = {finding.outcome for finding in judgement.findings if finding.term.ceiling}
    return next(outcome for outcome in ("fails", "unsure", "meets") if outcome in outcomes)


def _conclude(looks: Looks, ended: str) -> SloSearch:
    attempts = tuple(looks.attempts[load] for load in sorted(looks.attempts))
    found = SloSearch(
        slo=looks.slo, unit=looks.loads.unit, needed=looks.needed, attempts=attempts, above=looks.high, ended=ended
    )
    highest = looks.attempts.get(looks.low) if looks.low is not None else None
    best = highest if highest is not None and highest.judgement.outcome == "meets" else None
    over = looks.attempts.get(looks.high) if looks.high is not None else None
    sure = None
    if best is not None and over is not None and over.judgement.outcome == "fails":
        sure = best.judgement.probability * (1 - over.judgement.probability)
    found = found.model_copy(update={"best": best.load if best else None, "sure": sure})
    return found.model_copy(update={"verdict": verdict(found, highest)})


def verdict(found: SloSearch, highest: Attempt | None) -> str:
    """Say what was found in a sentence or two. `highest` is the highest load that met all but the terms on rates."""
    if highest is None:
        return _nothing(found)
    at = amount(highest.load, found.unit)
    if found.best is None:
        floors = [f for f in highest.judgement.findings if not f.term.ceiling]
        low = next((f for f in floors if f.outcome != "meets"), floors[0])
        less = f"{low.term.name} is {figure(low.figure)} there, and {low.term} is asked for"
        return f"No load meets {found.slo}: {at} is the most that its other limits allow, and {less}."
    text = f"{at} {_verb(highest.load, found.unit, 'meets', 'meet')} {found.slo}: {room(highest.judgement.binding)}."
    over = found.at(found.above) if found.above is not None else None
    if over is None:
        return f"{text} It is the most that was tried."
    if over.judgement.outcome == "unsure":
        text += f" Whether {amount(over.load, found.unit)} would can't be said: {_open(over.judgement)}."
    else:
        text += f" {amount(over.load, found.unit)} {_verb(over.load, found.unit, 'does', 'do')} not: {room(over.judgement.binding)}."
    if (gap := over.load - highest.load) > 1 and found.unit == "streams" and not found.ended:
        text += f" What is between them, {gap - 1:g} loads, is too near to both to be worth a look."
    if found.sure is None:
        return text
    # Draws know no more than the requests do: that a machine drifts from one run to the next isn't in them.
    sure = "over 99" if found.sure > 0.99 else f"{100 * found.sure:.0f}"
    return f"{text} By the spread of requests within the runs that is {sure} % sure."


def _nothing(found: SloSearch) -> str:
    """The answer if no load that was tried surely meets the Slo: which term binds, and how near it comes."""
    least = found.attempts[0]
    binding = least.judgement.binding
    at = amount(least.load, found.unit)
    if least.judgement.outcome == "unsure":
        return f"Whether even {at} meets {found.slo} can't be said: {_open(least.judgement)}."
    return f"Not even {at} meets {found.slo}: {binding.term.name} binds ({room(binding)}); that is the nearest."


def _open(judgement: Judgement) -> str:
    """Why a load is open: the share of draws that keep to the Slo, and the term that is nearest to its limit."""
    near = next((f for f in judgement.findings if f.outcome == "unsure"), judgement.binding)
    share = (
        "" if near.term.metric == "errors" else f"{100 * judgement.probability:.0f} % of its bootstrap draws do, and "
    )
    return f"{share}{room(near)}"


def room(finding: Finding) -> str:
    """How far a figure is from its limit: `ttft_p95 is 362 ms, 95 % interval 310 to 420, 28 % under 500 ms`."""
    term = finding.term
    side = (
        ("under" if finding.margin >= 0 else "over") if term.ceiling else ("over" if finding.margin >= 0 else "under")
    )
    by = (
        ""
        if term.limit == 0
        else f"{100 * abs(finding.margin):.0f} % {side} "
        if abs(finding.margin) < 100
        else f"far {side} "
    )
    limit = f"{term.limit:g} {term.unit}"
    more = f"; {finding.remark}" if finding.remark else ""
    return f"{term.name} is {figure(finding.figure)}, {by or 'against '}{limit}{more}"


def figure(value: Figure) -> str:
    """A figure with its unit and its interval in words."""
    if value.value >= 1e12:
        return "without end, as requests failed"
    text = f"{number(value.value)} {value.unit}"
    if value.low is None and value.high is None:
        return text
    if value.high is None:
        return f"{text}, at least {number(value.low or 0.0)}"
    return f"{text}, 95 % interval {number(value.low or 0.0)} to {number(value.high)}"


def number(value: float) -> str:
    """Three significant digits, whole from a hundred on."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def amount(load: float, unit: LoadUnit) -> str:
    """A load in words: `8 streams`, `2.5 requests/s`."""
    if unit == "streams":
        return f"{load:g} stream{'' if load == 1 else 's'}"
    return f"{load:g} {unit}"


def _verb(load: float, unit: LoadUnit, one: str, many: str) -> str:
    return one if load == 1 and unit == "streams" else many
