"""Interactions: what techniques give alone and together, and where one recipe overtakes another as the load grows."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quicksilver.bench import bootstrap
from quicksilver.build import plan
from quicksilver.errors import IllegalRecipeError
from quicksilver.nouns.score import Figure
from quicksilver.nouns.technique import Technique
from quicksilver.nouns.tradeoff import Crossover, Interactions, Part

Stack = tuple[Technique, ...]
Ratios = Mapping[int, Figure]
"""Tokens/s against the as-is model by concurrency."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class OnEngine:
    """An engine that isn't the one of the as-is model that all is compared with, and what it gives with the model as it comes."""

    name: str
    ratios: Ratios


@dataclass(frozen=True, slots=True)
class Alone:
    """A technique of a stack as it can be measured: with the least that it can't run without."""

    technique: Technique
    stack: Stack
    rest: Stack
    """The same without the technique: what it adds is the ratio of the two."""


def alone(stack: Sequence[Technique]) -> list[Alone]:
    """Return each technique of a legal stack with the smallest legal part of the stack that holds it."""
    return [_least(stack, index) for index in range(len(stack))]


def _least(stack: Sequence[Technique], index: int) -> Alone:
    for size in range(1, len(stack) + 1):
        for chosen in itertools.combinations(range(len(stack)), size):
            part = tuple(stack[i] for i in chosen)
            if index in chosen and _legal(part):
                return Alone(stack[index], part, tuple(stack[i] for i in chosen if i != index))
    return Alone(stack[index], tuple(stack), tuple(t for i, t in enumerate(stack) if i != index))


def _legal(stack: Stack) -> bool:
    try:
        plan.order(stack, plan.START | {"gguf grid"})
    except IllegalRecipeError:
        return False
    return True


def needed(stack: Sequence[Technique], *, settings: bool = False) -> list[Stack]:
    """Return the stacks whose ratios the table of a stack is made of, each once; not as-is, and not the stack itself.

    With `settings` the stack has engine settings of its own: then these alone are a part (the empty stack), and the stack without
    them is not the stack itself.
    """
    found = [part for one in alone(stack) for part in (one.rest, one.stack)]
    parts = list(dict.fromkeys(part for part in found if part and (settings or part != tuple(stack))))
    return [(), *parts] if settings else parts


def table(
    stack: Sequence[Technique],
    concurrencies: Sequence[int],
    together: Ratios,
    measured: Mapping[Stack, Ratios],
    missing: Mapping[Stack, str],
    *,
    settings: str = "",
    engine: OnEngine | None = None,
    prefix: str = "",
) -> Interactions:
    """Set the measured ratios of a stack's techniques beside that of the stack and the product that they would have promised.

    `together` has the ratios of the stack, `measured` those of the stacks of `needed` that were measured; `missing` says why
    others weren't. A technique that can't run alone counts in the product by what it adds to what it needs. `settings` names the
    engine settings of the stack, where it has any. `engine` is its engine, if the as-is model was served by another: then that is a part
    of its own, and what is measured on it counts by what it adds. `prefix` comes before each label.
    """
    known: dict[Stack | None, Ratios] = dict(measured.items())
    if not settings:
        known[tuple(stack)] = together

    def part(technique: str, label: str, stack: Stack, remark: str) -> Part:
        unknown = "" if stack in known else f"not measured: {missing.get(stack, 'there was no time for it')}"
        ratios = tuple(known.get(stack, {}).get(c) for c in concurrencies)
        remarks = "; ".join(filter(None, (remark, unknown)))
        return Part(technique=technique, label=prefix + label, ratios=ratios, remark=remarks)

    parts: list[Part] = []
    powers: Counter[Stack | None] = Counter()
    on = f"with what {engine.name} gives alone" if engine is not None else ""
    if engine is not None:
        known[None] = engine.ratios
        ratios = tuple(engine.ratios.get(c) for c in concurrencies)
        parts.append(Part(technique=f"engine {engine.name}", label=f"{prefix}as-is", ratios=ratios))
        powers[None] += 1
    if settings:
        parts.append(part("settings", settings, (), on))
        powers[()] += 1
        powers[None] -= engine is not None
    for one in alone(stack):
        remark = f"{one.technique.name()} can't run without {_label(one.rest)}, so they are shown together"
        parts.append(part(one.technique.label, _label(one.stack), one.stack, remark if one.rest else on))
        powers[one.stack] += 1
        if one.rest:
            powers[one.rest] -= 1
        elif engine is not None:
            powers[None] -= 1
    return Interactions(
        label=prefix + " + ".join(filter(None, (_label(tuple(stack)), settings))),
        concurrencies=tuple(concurrencies),
        parts=tuple(parts),
        stack=tuple(together.get(c) for c in concurrencies),
        product=tuple(
            product([(known.get(part, {}).get(c), power) for part, power in powers.items() if power])
            for c in concurrencies
        ),
    )


def _label(stack: Stack) -> str:
    return " + ".join(t.label for t in stack)


def product(factors: Sequence[tuple[Figure | None, int]]) -> Figure | None:
    """Return the product of ratios, each to a power, as a prediction; None if one of them is missing.

    The half-widths of their intervals, as logarithms, add up in quadrature, as those of independent measurements do.
    """
    known = [(figure, power) for figure, power in factors if figure is not None and figure.value > 0]
    if len(known) < len(factors) or not known:
        return None
    value = math.prod(figure.value**power for figure, power in known)
    if any(figure.low is None or figure.high is None or figure.low <= 0 for figure, _ in known):
        return Figure(value=value, unit="x", source="predicted")
    down = up = 0.0
    for figure, power in known:
        below, above = math.log(figure.value / (figure.low or 1)), math.log((figure.high or 1) / figure.value)
        down += (power * (below if power > 0 else above)) ** 2
        up += (power * (above if power > 0 else below)) ** 2
    low, high = value * math.exp(-math.sqrt(down)), value * math.exp(math.sqrt(up))
    return Figure(value=value, low=low, high=high, unit="x", source="predicted")


def crossover(
    labels: tuple[str, str], sides: Mapping[int, Figure], rounds: Mapping[int, Mapping[int, float]]
) -> Crossover:
    """Say where one of two recipes overtakes the other as the load grows.

    `sides` is tokens/s of the second over the first by concurrency, with intervals: a side counts where the interval leaves
    out 1. `rounds` has the logarithm of that ratio by concurrency and round. The place is where the ratio, interpolated over
    the logarithm of the load between measured loads, is 1; its interval is a 95 % bootstrap over rounds (Efron and Tibshirani
    1993, chapter 8), and without two rounds at each load there is neither: then all that is known is between which loads.
    """
    loads = tuple(sorted(sides))
    clear = [(c, sign) for c in loads if (sign := _side(sides[c]))]
    if not clear:
        return Crossover(first=labels[0], second=labels[1], concurrencies=loads, ahead=False)
    first, second = labels if clear[0][1] < 0 else labels[::-1]
    turned = next((pair for pair in itertools.pairwise(clear) if pair[0][1] != pair[1][1]), None)
    if turned is None:
        return Crossover(first=first, second=second, concurrencies=loads, ahead=True)
    (low, _), (high, _) = turned
    streams = _place([c for c in loads if low <= c <= high], rounds)
    return Crossover(first=first, second=second, concurrencies=loads, ahead=True, between=(low, high), streams=streams)


def _side(ratio: Figure) -> int:
    """Return 1 where the second is surely ahead, -1 where it is surely behind, and 0 inside the noise."""
    if ratio.low is None or ratio.high is None:
        return 0
    return 1 if ratio.low > 1 else -1 if ratio.high < 1 else 0


def _place(loads: Sequence[int], rounds: Mapping[int, Mapping[int, float]]) -> Figure | None:
    if any(len(rounds.get(c, {})) < 2 for c in loads):
        return None
    logs = np.log(np.array(loads, dtype=np.float64))
    value = level(logs, np.array([np.mean(list(rounds[c].values())) for c in loads]))
    every = sorted({number for c in loads for number in rounds[c]})
    random = np.random.default_rng(0)
    # Rounds are drawn whole, where a round has several of the loads: what slowed one down slowed the others, too.
    weights = random.multinomial(len(every), np.full(len(every), 1 / len(every)), size=bootstrap.RESAMPLES)
    found = []
    for weight in weights:
        drawn = dict(zip(every, weight.tolist(), strict=True))
        counts = [sum(drawn[n] for n in rounds[c]) for c in loads]
        if all(counts):
            means = [
                sum(drawn[n] * ratio for n, ratio in rounds[c].items()) / count
                for c, count in zip(loads, counts, strict=True)
            ]
            found.append(level(logs, np.array(means)))
    low, high = bootstrap.interval(found)
    return Figure(value=value, low=min(low, value), high=max(high, value), unit="streams")


def level(logs: Floats, ratios: Floats) -> float:
    """Return the load at which the ratios' logarithms, interpolated over the loads' logarithms, first change their side.

    Where they never do, it is the end at which they come nearest to it.
    """
    for index, (before, after) in enumerate(itertools.pairwise(ratios.tolist())):
        if before * after <= 0 and before != after:
            share = before / (before - after)
            return float(np.exp(logs[index] + share * (logs[index + 1] - logs[index])))
    return float(np.exp(logs[0] if abs(ratios[0]) <= abs(ratios[-1]) else logs[-1]))
