"""The search against an exhaustive sweep of the same real space: what it finds, in what share of the time, and how steadily.

SmolLM2-135M on hotpotqa at 1 and 8 streams. The sweep races every configuration, beside the as-is model, as long as `--weight`
(three) short races; a search of each seed races what its policy asks for. What searches chose and the sweep's best are then raced
once more, together. The last line is one JSON document. It needs hours and a machine that does nothing else: `--limit`, `--weight` and
`--seeds` make it shorter.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quicksilver.bench import stats
from quicksilver.bench.price import price
from quicksilver.nouns import Goal, Workload
from quicksilver.search import entries, policy, race, space
from quicksilver.search.events import Event
from quicksilver.search.run import open_run
from quicksilver.search.space import Space
from quicksilver.search.state import Search
from quicksilver.sources import models, workloads
from quicksilver.techniques import make
from stamp import stamp

BASES = ((), ("int8",), ("int8", {"name": "activations", "group_size": 64}))
MORE = ("prompt-lookup", "chunked-prefill", "prefix-caching")
SETTINGS: dict[str, tuple[Any, ...]] = {"max_streams": (64, 4)}
SWEEP_WEIGHT = 3
"""Short races that each configuration of the sweep is measured for, unless said."""
TIME_SHARE = 0.1
LEVEL = 1.96


@dataclass(slots=True)
class Sweep:
    """What every configuration gains, mean log over the loads."""

    gains: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Budget:
    """What a search may take: so long in all; and what a short race of one configuration took in the sweep."""

    total_s: float = math.inf
    each_s: float = 1.0


@dataclass(slots=True)
class Found:
    """What one search chose, by its own measurements, and in what time."""

    index: int
    gain: float
    sd: float
    seconds: float
    raced: int
    stopped: str
    errors: tuple[float, ...] = ()
    """How far the cost model was off on what it hadn't seen, percent, by load and configuration."""


def reduced(limit: int | None = None) -> Space:
    """Return a space that can be swept: weights that are known to pass, each with what serves it."""
    bases = [tuple(make(entry) for entry in base) for base in BASES]
    more = [variant for name in MORE for variant in space.variants(type(make(name)))]
    whole = space.combine(bases, more, SETTINGS)
    kept = list(range(len(whole)))
    if limit and limit < len(whole):
        # Drawn, as every n-th would leave out the same values of what varies fastest; the as-is model stays.
        kept = [0, *sorted(1 + np.random.default_rng(limit).permutation(len(whole) - 1)[: limit - 1])]
    return Space(tuple(whole.configurations[i] for i in kept), whole.dimensions, whole.codes[kept])


def start(folder: Path, model: str, load: Workload, engine: str, name: str) -> Search:
    """Begin a search without a budget, with the as-is model built."""
    run = open_run(folder, name, {"benchmark": name}, run_id=name, budget_s=1e9, progress=_tell)
    found = Search(run, models.resolve(model), load, Goal(), price(None, None, 0.0, 3.0, cores=2), engine, name)
    entries.build(found, entries.add(found, ()), must=True)
    return found


def measure(search: Search, where: Space, batch: Sequence[int], weight: int) -> tuple[dict[int, list[float]], float]:
    """Race configurations beside the as-is model: log gains by load, and the seconds that it took."""
    joined = {i: entries.add(search, where.configurations[i].stack, where.configurations[i].settings) for i in batch}
    for entry in joined.values():
        if entry.artifact is None:
            entries.build(search, entry, must=True)
    counts = race.short(search.workload.concurrencies, weight)
    others = [entry for entry in joined.values() if entry is not search.baseline]
    seconds = race.go(search, [search.baseline, *others], race.take(search, counts), "race", race.kind_of(weight))
    rounds = [search.next_round - 1]
    found: dict[int, list[float]] = {}
    for index, entry in joined.items():
        gains = [0.0] * len(counts) if entry is search.baseline else race.gains(search, entry, rounds)
        if gains is not None:
            found[index] = gains
    return found, seconds


def sweep(search: Search, where: Space, weight: int = SWEEP_WEIGHT) -> Sweep:
    """Race everything, in batches beside the as-is model."""
    swept = Sweep()
    for first in range(0, len(where), policy.BATCH):
        batch = range(first, min(first + policy.BATCH, len(where)))
        found, seconds = measure(search, where, batch, weight)
        swept.gains |= {index: statistics.mean(gains) for index, gains in found.items()}
        swept.seconds += seconds
    return swept


def look(search: Search, where: Space, trials: int, seed: int, budget: Budget) -> Found:
    """Let the policy choose what to race, for so many short races and seconds at most."""
    chooser = policy.Policy(where, loads=len(search.workload.concurrencies), seed=seed)
    for configuration in where.configurations:
        chooser.proven(configuration, passes=True)
    chooser.start(0)
    spent = 0.0
    raced = races = 0

    def room(weight: int) -> int:
        each = spent / races if races else budget.each_s
        beside = math.floor(min(1000.0, (budget.total_s - spent) / (weight * each)))
        return max(0, beside - 1)  # the as-is model runs in every race

    def run(batch: Sequence[int], weight: int) -> Mapping[int, policy.Shown]:
        nonlocal spent, raced, races
        found, seconds = measure(search, where, batch, weight)
        spent, raced = spent + seconds, raced + weight * len(batch)
        races += weight * (1 + len(batch))
        return {index: policy.Shown(gains) for index, gains in found.items()}

    best, *_ = policy.search(chooser, run, trials=trials, room=room)
    merits = chooser.merits()
    errors = tuple(
        100 * abs(math.expm1(said - seen))
        for forecast in chooser.forecasts
        for said, seen in zip(forecast.predicted, forecast.measured, strict=True)
    )
    return Found(best, float(merits.mean[best]), float(merits.sd[best]), spent, raced, chooser.stopped, errors)


def agreement(found: Sequence[Found]) -> dict[str, Any]:
    """Return how often searches chose the most frequent winner, or one that differs from it by less than their intervals."""
    (usual, times), *_ = Counter(one.index for one in found).most_common(1)
    best = next(one for one in found if one.index == usual)
    equal = sum(abs(one.gain - best.gain) <= LEVEL * math.hypot(one.sd, best.sd) for one in found if one.index != usual)
    return {"runs": len(found), "same_winner": times, "equal_within_intervals": equal}


def rematch(search: Search, where: Space, swept: Sweep, found: Sequence[Found], weight: int) -> dict[int, float]:
    """Race the sweep's best and what searches chose once more, all in one race: what each gains, mean log over the loads.

    The best of a sweep is also its luckiest, and by the sweep's own figures nothing else comes near it.
    """
    chosen = sorted({top(swept), *(one.index for one in found)})
    again, _ = measure(search, where, chosen, weight)
    return {index: statistics.mean(gains) for index, gains in again.items()}


def top(swept: Sweep) -> int:
    """Return the configuration that a sweep found best."""
    return max(swept.gains, key=lambda index: swept.gains[index])


def document(
    where: Space, swept: Sweep, found: Sequence[Found], weight: int, again: Mapping[int, float] | None = None
) -> dict[str, Any]:
    """Return the figures; shares of the best are those of the rematch (`again`), if there was one, else the sweep's own."""
    values = swept.gains if again is None else again
    best = swept.gains[top(swept)]
    shares = [math.exp(values[one.index] - values[top(swept)]) for one in found]
    times = [one.seconds / swept.seconds for one in found]
    labels = {
        i: (" + ".join(t.label for t in c.stack) or "as-is")
        + "".join(f", {k}={v}" for k, v in dict(c.settings).items())
        for i, c in enumerate(where.configurations)
    }
    errors = [error for one in found for error in one.errors]
    return {
        "benchmark": "search_quality",
        "configurations": len(where),
        "races_each": weight,
        "sweep": {"seconds": swept.seconds, "best": labels[top(swept)], "gain": math.exp(best)},
        "searches": [
            {"winner": labels[one.index], "share_of_best": share,
             "share_by_the_sweep": math.exp(swept.gains[one.index] - best), "time_share": time, "raced": one.raced, "stopped": one.stopped}
            for one, share, time in zip(found, shares, times, strict=True)
        ],
        "share_of_best": {"median": stats.percentiles(shares, (50,))[0], "low": min(shares), "high": max(shares)},
        "time_share": {"median": stats.percentiles(times, (50,))[0], "low": min(times), "high": max(times)},
        "rematch": None if again is None else {labels[index]: math.exp(gain) for index, gain in again.items()},
        "stability": agreement(found),
        "cost_model_error_percent": stats.percentiles(errors, (50,))[0] if errors else None,
    }  # fmt: skip


def main() -> int:
    """Sweep once, search with each seed, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=int, help="configurations of the space, drawn at random")
    parser.add_argument(
        "--trials", type=int, help="short races of a search; by default a tenth of the sweep's, and a tenth of its time"
    )
    parser.add_argument(
        "--weight", type=int, default=SWEEP_WEIGHT, help="short races that each is measured for in the sweep"
    )
    parser.add_argument("--folder", type=Path, help="keep what was measured there, and go on with it")
    options = parser.parse_args()
    load = workloads.load("hotpotqa").model_copy(update={"concurrencies": (1, 8)})
    where = reduced(options.limit)
    trials = options.trials or max(4, int(TIME_SHARE * options.weight * len(where)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        model = "smollm2-135m-instruct"
        sweeping = start(folder, model, load, "openvino", "sweep")
        swept = sweep(sweeping, where, options.weight)
        races = options.weight * (len(where) + math.ceil(len(where) / policy.BATCH))
        budget = Budget() if options.trials else Budget(TIME_SHARE * swept.seconds, swept.seconds / races)
        found = []
        for seed in range(options.seeds):
            # Each search draws its prompts from another place of the split.
            search = start(folder, model, load, "openvino", f"search-{seed}")
            search.used = 37 * seed
            found.append(look(search, where, trials, seed, budget))
            print(json.dumps(document(where, swept, found, options.weight)), file=sys.stderr)
        again = rematch(sweeping, where, swept, found, 2 * options.weight)
    print(json.dumps(document(where, swept, found, options.weight, again) | stamp()))
    return 0


def _tell(event: Event) -> None:
    if event.done in (None, 0):
        print(f"{event.phase}: {event.text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
