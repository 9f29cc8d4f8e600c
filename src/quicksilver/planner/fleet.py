"""Fleet: how many machines a load takes whose requests come at moments of their own, with the queues that they make."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quicksilver.errors import BadInputError
from quicksilver.nouns.plan import Fleet, FleetPoint, Held
from quicksilver.nouns.prediction import Times
from quicksilver.nouns.slo import Slo
from quicksilver.planner.asked import Asked
from quicksilver.planner.predict import Payment, Stand, hold, percentiles
from quicksilver.planner.simulate import Server, Simulated, closed_loop, open_loop

MOST_MACHINES = 1024
MOST_STREAMS = 256
"""Streams that one copy takes at most, if memory holds them: vLLM's default."""
FEWEST_REQUESTS, MOST_REQUESTS, TURNOVERS = 2000, 40_000, 20
"""A run is long enough for every place to be taken so many times, within these bounds."""
ALONE = 200
"""Requests that are answered one after the other, to see what a machine does for one that is alone on it."""
GROWTH = 0.05
"""Share of the requests of a run by which those under way may grow before it counts as falling behind."""
LOADS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5)
_FORM = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(tok|tokens|req|requests)/s\s*")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a fleet has to take."""

    requests_per_s: float
    tokens_per_s: float


def wanted(text: str, asked: Asked) -> Wanted:
    """Read `2000tok/s` (output tokens) or `8req/s`. Raises BadInputError."""
    found = _FORM.fullmatch(text)
    if found is None or float(found[1]) <= 0:
        raise BadInputError(f"{text!r} is no load of a fleet; write it as 2000tok/s (output tokens) or 8req/s.")
    value, answer = float(found[1]), sum(answer for _, answer in asked.lengths) / len(asked.lengths)
    if found[2].startswith("tok"):
        return Wanted(value / answer, value)
    return Wanted(value, value * answer)


def capacity(found: Stand, asked: Asked, seed: int = 0) -> float:
    """Return the requests a second that one machine answers when all of its slots are always taken."""
    one = replace(found.server, replicas=1)
    simulated = closed_loop(one, asked.draw(max(64, 6 * one.slots), seed), one.slots)
    return simulated.requests_per_s * found.server.replicas


def size(found: Stand, asked: Asked, slo: Slo, load: Wanted, *, payment: Payment, seed: int = 0) -> Fleet:
    """Find the fewest machines that keep to an SLO at a load.

    The search doubles from what throughput alone takes, then bisects: more machines never make a request wait longer.
    Every number of machines gets the same requests at the same moments.
    """
    price = payment.price(found.instance)
    fleet = Fleet(
        instance=found.instance.name,
        layout=found.layout,
        replicas=found.server.replicas,
        basis=found.times.basis,
        arrivals="trace" if asked.times_s and asked.times_s[-1] > asked.times_s[0] else "poisson",
        requests_per_s=load.requests_per_s,
        tokens_per_s=load.tokens_per_s,
        machines=None,
    )
    alone = _alone(found, asked, seed)
    if why := _hopeless(slo, alone, load):
        return fleet.model_copy(update={"why": why})
    count = _count(alone, load)
    tried: dict[int, FleetPoint] = {}

    def at(machines: int) -> FleetPoint:
        if machines not in tried:
            tried[machines] = _point(found, asked, slo, load, machines=machines, share=1.0, count=count, seed=seed)
        return tried[machines]

    low = max(1, math.ceil(load.requests_per_s / capacity(found, asked, seed)))
    fails, enough = low - 1, low
    while enough <= MOST_MACHINES and not at(enough).meets:
        fails, enough = enough, 2 * enough
    if enough > MOST_MACHINES:
        return fleet.model_copy(update={"why": f"More than {MOST_MACHINES} machines would be needed."})
    while enough - fails > 1:
        middle = (fails + enough) // 2
        fails, enough = (fails, middle) if at(middle).meets else (middle, enough)
    if enough > 1:
        at(enough - 1)
    at(enough + 1)
    usd = (1 - price.discount) * price.usd_per_hour * enough if price is not None else None
    points = tuple(tried[machines] for machines in sorted(tried))
    return fleet.model_copy(update={"machines": enough, "usd_per_hour": usd, "by_machines": points})


def loaded(fleet: Fleet, found: Stand, asked: Asked, slo: Slo, load: Wanted, *, seed: int = 0) -> Fleet:
    """Return a fleet with what it does at other loads; one without a size stays as it is."""
    if fleet.machines is None:
        return fleet
    machines, count = fleet.machines, _count(_alone(found, asked, seed), load)
    points = tuple(
        _point(found, asked, slo, load, machines=machines, share=share, count=count, seed=seed) for share in LOADS
    )
    return fleet.model_copy(update={"by_load": points})


def _alone(found: Stand, asked: Asked, seed: int) -> Simulated:
    """Answer requests one after the other on one copy."""
    return closed_loop(replace(found.server, replicas=1), asked.draw(ALONE, seed), 1)


def _count(alone: Simulated, load: Wanted) -> int:
    """Return how many requests a run takes."""
    in_flight = load.requests_per_s * float(alone.e2e_ms.mean()) / 1000
    return min(MOST_REQUESTS, max(FEWEST_REQUESTS, math.ceil(TURNOVERS * in_flight)))


def _hopeless(slo: Slo, alone: Simulated, load: Wanted) -> str:
    """Say why no number of machines meets an SLO: a request that is alone on one breaks it, or the load is below its floor."""
    for held in hold(slo, alone):
        if held.term.ceiling and not held.holds:
            return f"{held.term} isn't met even by a request that is alone on a machine: {held.value:.3g} {held.term.unit}."
        asked_for = {"tokens_per_s": load.tokens_per_s, "requests_per_s": load.requests_per_s}.get(held.term.metric)
        if asked_for is not None and not held.term.holds(asked_for):
            return f"{held.term} isn't met by the load itself, which is {asked_for:g} {held.term.unit}."
    return ""


def _point(
    found: Stand, asked: Asked, slo: Slo, load: Wanted, *, machines: int, share: float, count: int, seed: int
) -> FleetPoint:
    rate = share * load.requests_per_s
    server: Server = replace(found.server, replicas=machines * found.server.replicas)
    simulated = open_loop(server, *asked.arrive(count, rate, seed))
    held = tuple(_floored(one, share, load) for one in hold(slo, simulated))
    keeps_up = _keeps_up(simulated)
    return FleetPoint(
        machines=machines,
        requests_per_s=rate,
        tokens_per_s=share * load.tokens_per_s,
        share=share,
        ttft_ms=percentiles(simulated.ttft_ms),
        itl_ms=Times(p50=simulated.itl_ms(50), p95=simulated.itl_ms(95)),
        e2e_ms=percentiles(simulated.e2e_ms),
        held=held,
        keeps_up=keeps_up,
        meets=keeps_up and all(one.holds for one in held),
    )


def _floored(held: Held, share: float, load: Wanted) -> Held:
    """Take a floor on a rate from the load: what a run of some length sees of it is chance."""
    rates = {"tokens_per_s": share * load.tokens_per_s, "requests_per_s": share * load.requests_per_s}
    if held.term.metric not in rates:
        return held
    value = rates[held.term.metric]
    return held.model_copy(
        update={"value": value, "holds": held.term.holds(value), "share": min(1e6, held.term.limit / value)}
    )


def _keeps_up(simulated: Simulated) -> bool:
    """Whether about as many requests are under way at the last arrival as after the warm-up."""
    arrival, end = simulated.arrival, simulated.end
    begin, until = float(arrival[simulated.steady][0]), float(arrival[-1])

    def under_way(moment: float) -> int:
        return int((arrival <= moment).sum() - (end <= moment).sum())

    return under_way(until) - under_way(begin) <= GROWTH * float(simulated.steady.sum())


def best_first(fleets: Sequence[Fleet]) -> list[Fleet]:
    """Order fleets by what they cost, those without a price after them by their size, and those that can't be last."""
    return sorted(
        fleets,
        key=lambda f: (
            f.machines is None,
            f.usd_per_hour is None,
            f.usd_per_hour or 0.0,
            f.machines or 0,
            f.instance,
        ),
    )
