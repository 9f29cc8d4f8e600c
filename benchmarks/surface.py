"""The search's policy on synthetic response surfaces: how near it comes to the optimum of 5,000 configurations in 60 evaluations.

The policy is the one that `optimize` drives; only the races are answered by `quicksilver.testing.surface`. An evaluation is a
short race of one configuration at two loads, or the measurement of its quality if that is what it fails. The longer races of the
survivors count double. The last line is one JSON document. Seeds from 1000 on were held out while the policy was made.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quicksilver.search.policy import Policy, Shown, search
from quicksilver.testing.surface import LIMIT, LOADS, Surface, optimum, space
from stamp import stamp

HELD_OUT = 1000


@dataclass(slots=True)
class Outcome:
    """One search on one surface."""

    seed: int
    share: float
    """The true value of what it chose over that of the optimum."""
    evaluations: int
    infeasible: float
    """Share of configurations that lose too much quality."""
    error_percent: float
    """Median absolute error of the cost model on configurations that it hadn't seen, of tokens/s."""
    ruled_out: int
    stopped: str


def one(seed: int, *, size: int = 5000, trials: int = 60, noise: float = 0.05) -> Outcome:
    """Search one surface."""
    where = space(size, seed)
    surface = Surface(seed, noise=noise)
    policy = Policy(where, loads=len(LOADS), seed=seed)
    policy.start(0)
    spent = 0

    def race(batch: Sequence[int], weight: int) -> Mapping[int, Shown]:
        nonlocal spent
        found: dict[int, Shown] = {}
        for index in batch:
            configuration = where.configurations[index]
            spent += weight
            loss = surface.loss(configuration) / LIMIT
            found[index] = Shown(surface.measure(configuration, weight) if loss <= 1 else None, loss)
        return found

    ranked = search(policy, race, trials=trials)
    chosen = sum(surface.gains(where.configurations[ranked[0]])) / len(LOADS)
    best = optimum(surface, where.configurations)
    errors = [
        abs(math.exp(predicted - measured) - 1)
        for forecast in policy.forecasts
        for predicted, measured in zip(forecast.predicted, forecast.measured, strict=True)
    ]
    return Outcome(
        seed=seed,
        share=math.exp(chosen - best),
        evaluations=spent,
        infeasible=sum(surface.loss(c) > LIMIT for c in where.configurations) / len(where),
        error_percent=100 * statistics.median(errors),
        ruled_out=len(policy.ruled_out()),
        stopped=policy.stopped,
    )


def main() -> int:
    """Search the surfaces of some seeds, and print what became of each on stderr and the figures on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=HELD_OUT)
    parser.add_argument("--size", type=int, default=5000)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--noise", type=float, default=0.05, help="standard deviation of a short race's log gain")
    options = parser.parse_args()
    outcomes = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        begun = time.perf_counter()
        found = one(seed, size=options.size, trials=options.trials, noise=options.noise)
        print(
            f"seed {seed}: {100 * found.share:.1f} % of the optimum in {found.evaluations} evaluations, {100 * found.infeasible:.0f} % "
            f"infeasible, error {found.error_percent:.1f} %, {found.ruled_out} ruled out, {time.perf_counter() - begun:.1f} s; {found.stopped}",
            file=sys.stderr,
        )
        outcomes.append(found)
    shares = sorted(o.share for o in outcomes)
    document = {
        "benchmark": "surface",
        "configurations": options.size,
        "seeds": [o.seed for o in outcomes],
        "noise": options.noise,
        "share_of_optimum": {"median": statistics.median(shares), "low": shares[0], "high": shares[-1]},
        "evaluations": {
            "median": statistics.median(o.evaluations for o in outcomes),
            "most": max(o.evaluations for o in outcomes),
        },
        "cost_model_error_percent": statistics.median(o.error_percent for o in outcomes),
        "infeasible_share": statistics.mean(o.infeasible for o in outcomes),
    }
    print(json.dumps(document | stamp()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
