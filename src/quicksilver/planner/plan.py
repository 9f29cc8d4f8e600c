"""Plan: every sensible layout of a model on every instance, held to an SLO and priced; the cheapest that meets it, or what binds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime

from quicksilver.errors import BadInputError
from quicksilver.nouns.instance import Instance
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.plan import Curve, CurvePoint, Fleet, Option, Plan, SourceError
from quicksilver.nouns.prediction import Basis, Guessing, Layout, PlannedLoad, Refused, Times
from quicksilver.nouns.slo import Slo
from quicksilver.planner import acceptance, models, recipes, record
from quicksilver.planner import fleet as fleets
from quicksilver.planner.asked import Asked
from quicksilver.planner.fleet import Wanted
from quicksilver.planner.layouts import layouts
from quicksilver.planner.predict import ON_DEMAND, Errors, Payment, Stand, hold, percentiles, prediction, run, stand
from quicksilver.planner.step_times import prepare
from quicksilver.sources import instances as catalogue

Tell = Callable[[str, str, int, int], None]
"""Called with what is done (`predict`, `fleet`), of what, and how many of how many are over."""
MOST_FLEETS = 8
"""Instances for which a fleet is sized: those that would be the cheapest by throughput alone."""
SIZED = 2
"""Layouts of one instance that are tried as a fleet besides its best one."""
MOST_CURVES = 7
_BASES: dict[Basis, str] = {
    "operators": "from measured operators",
    "roofline": "by a roofline",
    "fitted": "from steps timed on this machine",
}
CURVE_STREAMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Question:
    """What a plan is asked."""

    asked: Asked
    load: PlannedLoad
    slo: Slo | None = None
    payment: Payment = ON_DEMAND
    recipes: tuple[tuple[str, ...], ...] = ()
    guessing: Guessing | None = None
    fleet: Wanted | None = None
    seed: int = 0
    measured: Guessing | None = None
    """Prompt lookup as it was measured for the model, instead of what is stated; `plan` looks for it."""


def plan(
    model: str,
    question: Question,
    *,
    instances: Sequence[str] = (),
    command: str = "",
    tell: Tell | None = None,
    today: date | None = None,
) -> Plan:
    """Answer a question for some instances, by name (`local` is this machine), or for all that are known. Raises BadInputError, one clear sentence."""
    if question.fleet is not None and question.slo is None:
        raise BadInputError("A fleet is sized for an SLO: without one any queue is allowed; give --slo.")
    if question.slo is not None and question.slo.allows_errors:
        raise BadInputError("A plan can't be held to a limit on errors: nothing fails in a simulation; leave it out.")
    chosen = [catalogue.find(name) for name in dict.fromkeys(instances)] or list(catalogue.instances().values())
    facts = models.facts(model)
    question = replace(question, measured=question.measured or acceptance.measured(facts))
    prepare(chosen)
    known = record.errors()
    made, refused = _options(model, facts, chosen, question, known=known, tell=tell or _silent)
    if not made and not refused:
        raise BadInputError("No layout of this model on these instances fits the words of --recipes; leave some out.")
    made.sort(key=lambda one: _order(one[0]))
    options = front([option for option, _ in made])
    record.expect(option.prediction for option in options)
    stands = [found for _, found in made]
    sized = _fleets(model, facts, question, stands, tell or _silent) if question.fleet is not None else []
    cheapest = _cheapest(options)
    nearest = _nearest(options) if question.slo is not None and not any(o.meets for o in options) else None
    return Plan(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        model=model,
        workload=question.asked.label,
        load=question.load,
        slo=question.slo,
        commitment=question.payment.commitment,
        discount=question.payment.discount,
        input_output_ratio=question.payment.input_output_ratio,
        options=tuple(options),
        refused=tuple(refused),
        cheapest=cheapest,
        nearest=nearest,
        verdict=_verdict(options, refused, question.slo, cheapest, nearest),
        warnings=tuple(_warnings(chosen, question.payment, today or datetime.now(UTC).date())),
        remarks=(*question.asked.remarks, *_remarks(options, question)),
        errors=tuple(
            SourceError.model_validate({"basis": basis, "median_percent": wrong[0], "count": wrong[1]})
            for basis, wrong in known.items()
        ),
        curves=tuple(_curves(model, facts, question, stands)),
        fleets=tuple(fleets.best_first(sized)),
    )


def _options(
    model: str, facts: ModelFacts, chosen: Sequence[Instance], question: Question, *, known: Errors, tell: Tell
) -> tuple[list[tuple[Option, Stand]], list[Refused]]:
    pairs = [(instance, layout) for instance in chosen for layout in _layouts(facts, instance, question)]
    options: list[tuple[Option, Stand]] = []
    refused: list[Refused] = []
    # Another process answers for step times: while it does, what it has said is simulated.
    ahead = ThreadPoolExecutor(1)
    try:
        stands = ahead.map(lambda pair: stand(facts, pair[0], pair[1], question.load, name=model), pairs)
        for number, ((instance, _), found) in enumerate(zip(pairs, stands, strict=True)):
            tell("predict", instance.name, number, len(pairs))
            if isinstance(found, Refused):
                refused.append(found)
                continue
            simulated = run(found, question.load, question.asked, question.seed)
            held = hold(question.slo, simulated)
            made = prediction(found, question.load, simulated, name=model, payment=question.payment, errors=known)
            meets = all(one.holds for one in held) if question.slo is not None else None
            options.append((Option(prediction=made, held=held, meets=meets), found))
    finally:
        ahead.shutdown(wait=False, cancel_futures=True)
    return options, refused


def front(options: Sequence[Option]) -> list[Option]:
    """Mark the options that no other beats in the price of a token and in the median time of an answer; without a price none is."""
    priced = [(o.prediction.cost.measured, o.prediction.e2e_ms.p50) for o in options if o.prediction.cost is not None]

    def beaten(option: Option) -> bool:
        cost = option.prediction.cost
        if cost is None:
            return True
        mine = (cost.measured, option.prediction.e2e_ms.p50)
        return any(all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for other in priced)

    return [option.model_copy(update={"on_front": not beaten(option)}) for option in options]


def _layouts(facts: ModelFacts, instance: Instance, question: Question) -> list[Layout]:
    known = acceptance.put(layouts(facts, instance), question.measured)
    return recipes.chosen(recipes.guessed(known, question.guessing), question.recipes)


def _by_instance(stands: Sequence[Stand]) -> dict[str, list[Stand]]:
    found: dict[str, list[Stand]] = {}
    for one in stands:
        found.setdefault(one.instance.name, []).append(one)
    return found


def _curves(model: str, facts: ModelFacts, question: Question, stands: Sequence[Stand]) -> list[Curve]:
    """Add streams to the best layout of each of the first instances."""
    found = []
    for best, *_ in list(_by_instance(stands).values())[:MOST_CURVES]:
        loads = sorted({*CURVE_STREAMS, question.load.streams})
        most = question.load.model_copy(update={"streams": max(loads)})
        ready = stand(facts, best.instance, best.layout, most, name=model, times=best.times)
        if isinstance(ready, Refused):
            continue
        points = []
        for streams in loads:
            simulated = run(ready, question.load.model_copy(update={"streams": streams}), question.asked, question.seed)
            points.append(
                CurvePoint(
                    streams=streams,
                    tokens_per_s=simulated.tokens_per_s,
                    ttft_ms=percentiles(simulated.ttft_ms),
                    itl_ms=Times(p50=simulated.itl_ms(50), p95=simulated.itl_ms(95)),
                    e2e_ms=percentiles(simulated.e2e_ms),
                )
            )
        found.append(Curve(instance=best.instance.name, layout=best.layout, points=tuple(points)))
    return found


def _fleets(model: str, facts: ModelFacts, question: Question, stands: Sequence[Stand], tell: Tell) -> list[Fleet]:
    """Size a fleet of each instance whose throughput alone would make it cheap enough to be looked at."""
    load, slo = question.fleet, question.slo
    assert load is not None
    assert slo is not None
    found: list[tuple[float, str, list[Stand]]] = []
    for name, mine in _by_instance(stands).items():
        ranked = []
        for place, one in enumerate(mine):
            ready = stand(
                facts, one.instance, one.layout, question.load, name=model, times=one.times,
                most_streams=min(fleets.MOST_STREAMS, max(one.times.streams[-1], one.server.slots)),
            )  # fmt: skip
            if not isinstance(ready, Refused):
                ranked.append((fleets.capacity(ready, question.asked, question.seed), -place, ready))
        if not ranked:
            continue
        # The layout that is best at the load of the table comes first, then those with the most throughput.
        first, *others = ranked
        others.sort(key=lambda one: one[:2], reverse=True)
        price = question.payment.price(mine[0].instance)
        most = max(one[0] for one in ranked)
        usd = price.usd_per_hour * load.requests_per_s / most if price is not None else float("inf")
        found.append((usd, name, [ready for _, _, ready in (first, *others[:SIZED])]))
    found.sort(key=lambda one: one[:2])
    sized = []
    for number, (_, name, tried) in enumerate(found[:MOST_FLEETS]):
        tell("fleet", name, number, min(len(found), MOST_FLEETS))
        own = {
            fleets.size(one, question.asked, slo, load, payment=question.payment, seed=question.seed): one
            for one in tried
        }
        best = fleets.best_first(list(own))[0]
        sized.append(fleets.loaded(best, own[best], question.asked, slo, load, seed=question.seed))
    return sized


def _order(option: Option) -> tuple[bool, float, float, float, str, str]:
    """Options that meet the SLO first, by price, or by throughput without one; the others by how far they are from it."""
    made = option.prediction
    price = made.cost.measured if made.cost is not None else float("inf")
    broken = option.worst.share if option.worst is not None and not option.meets else 0.0
    return option.meets is False, broken, price, -made.tokens_per_s, made.instance, made.layout.label


def _cheapest(options: Sequence[Option]) -> int | None:
    """Return the place of the cheapest option that meets the SLO, or of all where there is none."""
    priced = [
        (option.prediction.cost.measured, place)
        for place, option in enumerate(options)
        if option.meets is not False and option.prediction.cost is not None
    ]
    return min(priced)[1] if priced else None


def _nearest(options: Sequence[Option]) -> int | None:
    shares = [(option.worst.share, place) for place, option in enumerate(options) if option.worst is not None]
    return min(shares)[1] if shares else None


def _verdict(
    options: Sequence[Option], refused: Sequence[Refused], slo: Slo | None, cheapest: int | None, nearest: int | None
) -> str:
    if not options:
        why = Counter(one.why for one in refused).most_common(1)
        return f"Nothing can be predicted on these instances: {why[0][0] if why else 'there are no layouts.'}"
    if cheapest is not None:
        best = options[cheapest]
        made = best.prediction
        price = made.cost.measured if made.cost is not None else 0.0
        words = (
            f"{best.label}: ${price:.2f} per 1M output tokens, {made.tokens_per_s:,.0f} tokens/s, {_BASES[made.basis]}"
        )
        return f"The cheapest that meets {slo} is {words}." if slo else f"The cheapest, without an SLO, is {words}."
    meeting = [option for option in options if option.meets is not False]
    if meeting:
        return f"{meeting[0].label} {'meets ' + str(slo) if slo else 'runs it'}, but no price is known for it."
    assert nearest is not None
    near = options[nearest]
    worst = near.worst
    assert worst is not None
    # The limit that most options break worst is what the choice of a machine can't get around.
    binding = Counter(str(o.worst.term) for o in options if o.worst is not None).most_common(1)[0]
    return (
        f"No option meets {slo}. The nearest is {near.label}: its {worst.term.name} is {worst.value:.3g} {worst.term.unit}, "
        f"{worst.share:.2f} times its limit. What binds is {binding[0]}, broken worst by {binding[1]} of {len(options)} options."
    )


def _warnings(chosen: Sequence[Instance], payment: Payment, today: date) -> list[str]:
    """Say which prices are missing, and which are old."""
    rates = [(instance.name, instance.rate(payment.commitment)) for instance in chosen]
    missing = [name for name, rate in rates if rate is None]
    old: dict[str, list[str]] = {}
    for name, rate in rates:
        if rate is not None and catalogue.stale(rate, today) is not None:
            old.setdefault(f"{rate.date} ({rate.source})", []).append(name)
    found = []
    if missing:
        found.append(
            f"No {payment.commitment} price is known for {_some(missing)}; put it into {catalogue.users_file()}."
        )
    found += [
        f"The prices of {_some(names)} are of {when}, more than a year old: put what you pay into {catalogue.users_file()}."
        for when, names in old.items()
    ]
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _remarks(options: Sequence[Option], question: Question) -> list[str]:
    found = []
    if any(option.prediction.layout.weights in {"int8", "int4", "int3", "fp8"} for option in options):
        found.append("What quantising costs in quality isn't predicted: measure it with `quicksilver optimize`.")
    origins = dict.fromkeys(g.origin for o in options if (g := o.prediction.layout.guessing) is not None)
    found += [
        f"Acceptance of guesses: {origin}"
        + ("; it depends on the draft and on what is asked, so measure yours." if origin.startswith("stated") else ".")
        for origin in origins
    ]
    if question.fleet is not None:
        found.append(f"A fleet was sized for at most {MOST_FLEETS} instances: the cheapest by throughput alone.")
    return found


def _silent(phase: str, text: str, done: int, total: int) -> None:
    pass
