"""Predict: how a model would run on an instance in a layout under a load, and what that would cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from quicksilver.bench.price import cost_at
from quicksilver.errors import BadInputError, EngineError, unknown
from quicksilver.nouns.hardware import Price
from quicksilver.nouns.instance import Commitment, Instance
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.plan import Held
from quicksilver.nouns.prediction import Layout, MemoryFit, PlannedLoad, Prediction, Refused, StepTimes, Times
from quicksilver.nouns.score import Cost
from quicksilver.nouns.settings import Settings
from quicksilver.nouns.slo import Slo, Term
from quicksilver.planner.asked import Asked
from quicksilver.planner.fit import batched_tokens, fit
from quicksilver.planner.simulate import Server, Simulated, closed_loop
from quicksilver.planner.step_times import step_times

REQUESTS = 320
"""Requests of a closed loop at least: a p95 is then taken over 16 of them and more."""

Errors = Mapping[str, tuple[float, int]]
"""How wrong each basis has been: the median of |predicted / measured - 1| in percent, and over how many measurements."""


@dataclass(frozen=True, slots=True)
class Payment:
    """How the hours of a machine are paid."""

    commitment: Commitment = "on-demand"
    discount: float = 0.0
    input_output_ratio: float = 3.0

    def price(self, instance: Instance) -> Price | None:
        """Return what an hour costs; None where that isn't known."""
        rate = instance.rate(self.commitment)
        if rate is None:
            return None
        return Price(
            usd_per_hour=rate.usd_per_hour,
            source=f"{instance.name}, {rate.where}, {self.commitment} of {rate.date} ({rate.source})",
            discount=self.discount,
            input_output_ratio=self.input_output_ratio,
        )


ON_DEMAND = Payment()


def payment(commitment: str = "on-demand", discount: float = 0.0, input_output_ratio: float = 3.0) -> Payment:
    """Check how hours are paid. Raises BadInputError."""
    for known in get_args(Commitment):
        if commitment == known and 0 <= discount < 1 and 0 <= input_output_ratio < math.inf:
            return Payment(known, discount, input_output_ratio)
    if commitment not in get_args(Commitment):
        raise unknown("commitment", commitment, get_args(Commitment))
    raise BadInputError(
        f"A discount is a share from 0 to below 1 and a ratio 0 or more, not {discount:g} and {input_output_ratio:g}."
    )


@dataclass(frozen=True, slots=True)
class Stand:
    """A model on an instance, ready to be put under a load."""

    instance: Instance
    layout: Layout
    fit: MemoryFit
    server: Server
    remarks: tuple[str, ...]

    @property
    def times(self) -> StepTimes:
        return self.server.times


def stand(
    facts: ModelFacts,
    instance: Instance,
    layout: Layout,
    load: PlannedLoad,
    *,
    name: str,
    most_streams: int | None = None,
    times: StepTimes | None = None,
) -> Stand | Refused:
    """Lay a model onto an instance, as often as it fits beside itself, with room for the load's streams or as many as fit.

    `most_streams` of one copy is what room is made for, else what the load puts on each copy; `times` saves asking their source again.
    """
    devices = instance.accelerators if instance.accelerator is not None else 1
    if layout.devices > devices:
        has = f"{devices} accelerator{'s' if devices > 1 else ''}" if instance.accelerator else "no accelerators"
        return Refused(
            instance=instance.name,
            layout=layout,
            why=f"It takes {layout.devices} accelerators; the instance has {has}.",
        )
    replicas = devices // layout.devices
    wanted = most_streams or -(-load.streams // replicas)
    slots = _slots(facts, instance, layout, load, wanted=wanted, replicas=replicas)
    needed = fit(facts, layout, instance, _on(load, max(slots, 1), replicas))
    if not slots:
        why = f"One stream takes {needed.total_gb:.1f} GB of the {needed.capacity_gb:.1f} GB that may be used."
        return Refused(instance=instance.name, layout=layout, why=why, fit=needed)
    try:
        times = times or step_times(facts, instance, layout, name=name)
    except (BadInputError, EngineError) as error:
        return Refused(instance=instance.name, layout=layout, why=str(error), fit=needed)
    device = instance.accelerator
    batched = batched_tokens(device) if device is not None else Settings().max_batched_tokens
    server = Server(
        times,
        replicas=replicas,
        slots=slots,
        # What a step takes at most is also what the source was asked for at most.
        step_tokens=min(batched, times.prompts[-1]),
        tokens_per_step=layout.tokens_per_step,
        stages=layout.pipeline_parallel,
    )
    remarks = list(times.remarks)
    if slots < wanted and most_streams is None:
        remarks.append(f"Memory holds {slots} streams a copy; of {wanted} the others wait.")
    return Stand(instance, layout, needed, server, tuple(remarks))


def predict(
    facts: ModelFacts,
    instance: Instance,
    layout: Layout,
    load: PlannedLoad,
    *,
    name: str,
    asked: Asked | None = None,
    payment: Payment | None = None,
    errors: Errors | None = None,
    seed: int = 0,
) -> Prediction | Refused:
    """Predict latency, throughput and price of a closed loop; Refused, with the reason, where nothing can be said.

    `name` is the model's. Lengths are drawn from `asked`, or all are the load's means. The closed loop's users don't begin at
    once: see `simulate.closed_loop`. The price is by the throughput, and by the headline's formula (`bench.price.cost`).
    """
    found = stand(facts, instance, layout, load, name=name)
    if isinstance(found, Refused):
        return found
    return prediction(found, load, run(found, load, asked, seed), name=name, payment=payment, errors=errors)


def run(found: Stand, load: PlannedLoad, asked: Asked | None = None, seed: int = 0) -> Simulated:
    """Simulate a closed loop of the load's streams."""
    requests = asked or Asked("", ((load.input_tokens, load.output_tokens),))
    return closed_loop(found.server, requests.draw(max(REQUESTS, 8 * load.streams), seed), load.streams)


def prediction(
    found: Stand,
    load: PlannedLoad,
    simulated: Simulated,
    *,
    name: str,
    payment: Payment | None = None,
    errors: Errors | None = None,
) -> Prediction:
    """Put what was simulated into a Prediction, with its price and with how wrong its source has been."""
    payment = payment or ON_DEMAND
    gap = simulated.itl_ms(50)
    remarks = list(found.remarks)
    layout = found.layout
    if layout.guessing is not None:
        remarks.append(
            f"Bursts are spread over their tokens: a client sees a piece of {layout.tokens_per_step:g} tokens every "
            f"{gap * layout.tokens_per_step:.1f} ms (p50), and the blended price takes {gap:.1f} ms."
        )
    wrong = (errors or {}).get(found.times.basis)
    return Prediction(
        model=name,
        instance=found.instance.name,
        layout=layout,
        replicas=found.server.replicas,
        load=load,
        fit=found.fit,
        basis=found.times.basis,
        origin=found.times.origin,
        remarks=tuple(remarks),
        ttft_ms=percentiles(simulated.ttft_ms),
        itl_ms=Times(p50=gap, p95=simulated.itl_ms(95)),
        e2e_ms=percentiles(simulated.e2e_ms),
        tokens_per_s=simulated.tokens_per_s,
        commitment=payment.commitment,
        cost=_cost(found, load, simulated.tokens_per_s, gap, payment),
        error_percent=wrong[0] if wrong else None,
        error_count=wrong[1] if wrong else 0,
    )


def hold(slo: Slo | None, simulated: Simulated) -> tuple[Held, ...]:
    """Hold what was simulated to each limit of an SLO. Raises BadInputError for a limit that a simulation says nothing of."""
    return tuple(_held(term, simulated) for term in slo.terms) if slo is not None else ()


def percentiles(values: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]) -> Times:
    """Return the p50 and the p95 of some times."""
    p50, p95 = np.percentile(values, (50, 95))
    return Times(p50=float(p50), p95=float(p95))


def _held(term: Term, simulated: Simulated) -> Held:
    value = _value(term, simulated)
    share = value / term.limit if term.ceiling and term.limit else term.limit / value if value else 1e6
    return Held(term=term, value=value, holds=term.holds(value), share=min(share, 1e6))


def _value(term: Term, simulated: Simulated) -> float:
    match term.metric:
        case "errors":
            raise BadInputError(f"A plan can't be held to {term}: nothing fails in a simulation; leave it out.")
        case "tokens_per_s":
            return simulated.tokens_per_s
        case "requests_per_s":
            return simulated.requests_per_s
        case "itl":
            return simulated.itl_mean_ms if term.percentile is None else simulated.itl_ms(term.percentile)
        case "ttft":
            values = simulated.ttft_ms
        case "tpot":
            values = simulated.tpot_ms
        case _:
            values = simulated.e2e_ms
    if not len(values):
        return 0.0
    return float(np.mean(values) if term.percentile is None else np.percentile(values, term.percentile))


def _cost(found: Stand, load: PlannedLoad, tokens_per_s: float, gap_ms: float, payment: Payment) -> Cost | None:
    price = payment.price(found.instance)
    return cost_at(tokens_per_s, load.streams, gap_ms, price) if price is not None else None


def _slots(
    facts: ModelFacts, instance: Instance, layout: Layout, load: PlannedLoad, *, wanted: int, replicas: int
) -> int:
    """Return how many streams one copy has room for, up to what is wanted; 0 if it has none."""

    def fits(slots: int) -> bool:
        found: MemoryFit = fit(facts, layout, instance, _on(load, slots, replicas))
        return found.fits

    if fits(wanted):
        return wanted
    low, high = 0, wanted
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _on(load: PlannedLoad, slots: int, replicas: int) -> PlannedLoad:
    return load.model_copy(update={"streams": slots * replicas})
