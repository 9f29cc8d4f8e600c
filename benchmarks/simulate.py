"""How many requests a minute the planner's simulation answers on one core, by load. The last line is one JSON document."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable

from quicksilver.bench.schedule import moments
from quicksilver.nouns import Arrivals
from quicksilver.planner.simulate import Server, Simulated, closed_loop, open_loop
from quicksilver.testing.planning import linear
from stamp import stamp


def lengths(count: int, seed: int) -> list[tuple[int, int]]:
    """Return prompts of 300 to 900 tokens and answers of 50 to 450."""
    draw = random.Random(seed)
    return [(draw.randint(300, 900), draw.randint(50, 450)) for _ in range(count)]


def main() -> int:
    """Measure each load once, and print requests a minute on stderr and as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    options = parser.parse_args()
    asked = lengths(options.requests, 0)
    server, fleet = Server(linear(), slots=64), Server(linear(), slots=64, replicas=16)
    loads: dict[str, Callable[[], Simulated]] = {
        "closed loop, 16 streams": lambda: closed_loop(server, asked, 16),
        "closed loop, 64 streams, 3 tokens a step": lambda: closed_loop(
            Server(linear(), slots=64, tokens_per_step=3.0), asked, 64
        ),
        "open loop, 8 requests/s": lambda: open_loop(server, asked, moments(Arrivals.poisson(8.0), len(asked))),
        "open loop, 128 requests/s, 16 copies": lambda: open_loop(
            fleet, asked, moments(Arrivals.poisson(128.0), len(asked))
        ),
    }
    found = {}
    for name, run in loads.items():
        begun = time.process_time()
        simulated = run()
        seconds = time.process_time() - begun
        found[name] = round(60 * len(asked) / seconds)
        print(
            f"{name}: {found[name]:,} requests/min, {simulated.tokens_per_s:,.0f} tokens/s simulated", file=sys.stderr
        )
    document = {
        "benchmark": "simulate",
        "requests": options.requests,
        "requests_per_minute": found,
        "lowest": min(found.values()),
        "at_least": 1_000_000,
    }
    print(json.dumps(document | stamp()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
