"""What driving an engine through us costs: its own server as we start it against the same command by hand, interleaved, over HTTP.

The command and its environment are read from the process that `quicksilver serve` started, so that both have the same arguments.
Answers have one length. An engine that can't be driven here is named. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from decoder import ratio
from gateway import over_http
from quicksilver.api import build
from quicksilver.engines.process import serve_command
from quicksilver.errors import EngineError, QuicksilverError
from quicksilver.nouns import Artifact, Command, Endpoint, Recipe
from quicksilver.sources import workloads
from quicksilver.sources.text import Tokenizer
from stamp import stamp

ENGINES = ("llamacpp", "vllm")
MODEL = "smollm2-135m-instruct"
STREAMS = {1: 3, 8: 16}
"""Prompts of a round at each concurrency."""
WARM_UP = 4
READY_S = 600
LIMIT = 0.97
"""What is left of the throughput, at least."""


@dataclass(frozen=True, slots=True)
class Found:
    """A server that runs: how it was started."""

    words: tuple[str, ...]
    environment: Mapping[str, str]


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workload", default="hotpotqa")
    options = parser.parse_args(words)
    results: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for engine in options.engines:
        try:
            results[engine] = measure(engine, options.rounds, options.workload)
        except QuicksilverError as error:
            failed[engine] = str(error)
            print(f"{engine} can't be measured: {error}", file=sys.stderr)
    document = {"benchmark": "through", "model": MODEL, "rounds": options.rounds, "engines": results, "failed": failed}
    print(json.dumps(document | stamp()))
    return 0


def measure(engine: str, rounds: int, workload: str) -> dict[str, Any]:
    """Return an engine's tokens/s as we start it and by hand, and what the first is of the second."""
    artifact = build(Recipe(MODEL, engine=engine))
    tokenizer = Tokenizer(build(Recipe(MODEL)).path)
    found = workloads.load(workload, prompts=60 + 2 * (WARM_UP + rounds * sum(STREAMS.values())))
    prompts = [
        tokenizer.encode(tokenizer.chat([m.model_dump() for m in p.messages or ()], open_answer=True), special=False)
        for p in [*found.search, *found.evaluation]
    ]
    with tempfile.TemporaryDirectory() as folder, through_us(artifact, Path(folder) / "ours.log") as ours:
        server = server_of(ours)

        def make(port: int) -> Command:
            return Command(by_hand(server.words, port), server.environment)

        with serve_command(make, log=Path(folder) / "hand.log", ready_timeout_s=READY_S) as theirs:
            rates = compare({"through us": ours, "by hand": theirs}, prompts, rounds)
    ratios = {str(c): ratio(rates["through us"][c], rates["by hand"][c]) for c in STREAMS}
    return {
        "recipe": artifact.label,
        "arguments": nameless(server.words),
        "ratio": ratios,
        "reached": all(figure["value"] >= LIMIT for figure in ratios.values()),
        "tokens_per_s": rates,
    }


@contextmanager
def through_us(artifact: Artifact, log: Path) -> Iterator[Endpoint]:
    """Start what a user would: `quicksilver serve ARTEFACT`."""

    def make(port: int) -> Command:
        return Command([sys.executable, "-m", "quicksilver", "serve", str(artifact.path), "--port", str(port)])

    with serve_command(make, log=log, ready_timeout_s=READY_S) as endpoint:
        yield endpoint


def server_of(endpoint: Endpoint) -> Found:
    """Return how the engine's own server was started. Raises EngineError if there is none below the endpoint's process."""
    below = psutil.Process(endpoint.pid).children(recursive=True)
    candidates = [p for p in below if "--port" in p.cmdline()]
    leaves = [p for p in candidates if not any(child in candidates for child in p.children())]
    own = [p for p in leaves if "quicksilver" not in p.cmdline()]
    if len(own) != 1:
        raise EngineError(f"There are {len(own)} processes that may be the engine's server.")
    return Found(tuple(own[0].cmdline()), own[0].environ())


def by_hand(words: Sequence[str], port: int) -> list[str]:
    """Return a server's command for another port."""
    changed = list(words)
    changed[changed.index("--port") + 1] = str(port)
    return changed


def nameless(words: Sequence[str]) -> list[str]:
    """Return a command without the places of this machine: of a path its last name."""
    return [Path(word).name if Path(word).is_absolute() else word for word in words]


def compare(
    sides: Mapping[str, Endpoint], prompts: Sequence[list[int]], rounds: int
) -> dict[str, dict[int, list[float]]]:
    """Return each side's tokens/s by streams and round. They take turns with the same prompts, each of which a side sees once."""
    rates: dict[str, dict[int, list[float]]] = {side: {c: [] for c in STREAMS} for side in sides}
    left = iter(prompts)
    warm = [next(left) for _ in range(WARM_UP)]
    for endpoint in sides.values():
        over_http(endpoint, warm, WARM_UP)
    for number in range(rounds):
        for turn, (streams, count) in enumerate(STREAMS.items()):
            chosen = [next(left) for _ in range(count)]
            order = list(sides) if (number + turn) % 2 == 0 else list(sides)[::-1]
            for side in order:
                rates[side][streams].append(over_http(sides[side], chosen, streams))
                print(f"round {number + 1}: {side}, {streams} streams: {rates[side][streams][-1]:.1f}", file=sys.stderr)
    return rates


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QuicksilverError as error:
        sys.exit(f"error: {error}")
