"""What building llama.cpp for this CPU buys: its server out of the wheel against the one that `engine add llamacpp --native` built.

The same artefact and settings, both servers up, interleaved over HTTP with the same prompts. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from decoder import ratio
from quicksilver import engines, environments
from quicksilver.api import build
from quicksilver.bench.load import run_load
from quicksilver.errors import EngineError, QuicksilverError
from quicksilver.nouns import Endpoint, Prompt, Recipe, Sample, Settings
from quicksilver.sources import workloads
from quicksilver.techniques import make
from stamp import stamp

MODEL = "smollm2-135m-instruct"
STACKS = {"as-is": (), "q8_0": ("q8_0",), "q4_0": ("q4_0",)}
BUILDS = ("prebuilt", "native")
STREAMS = {1: 3, 8: 8}
"""Prompts of a round, at each number of streams."""
TOKENS = 128
WARM_UP = 2


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stacks", nargs="+", choices=STACKS, default=list(STACKS))
    options = parser.parse_args(words)
    if environments.native("llamacpp") is None:
        raise EngineError("There is no native build to measure; `quicksilver engine add llamacpp --native` makes one.")
    needed = len(options.stacks) * (WARM_UP + options.rounds * sum(STREAMS.values()))
    found = workloads.load("hotpotqa", prompts=60 + needed)
    prompts = iter([*found.search, *found.evaluation])
    results = {name: measure(STACKS[name], prompts, options.rounds) for name in options.stacks}
    document = {"benchmark": "native", "model": MODEL, "rounds": options.rounds, "tokens": TOKENS, "stacks": results}
    print(json.dumps(document | {"version": engines.find("llamacpp").version()} | stamp()))
    return 0


def measure(kinds: Sequence[str], prompts: Any, rounds: int) -> dict[str, Any]:
    """Return tokens/s, ms to the first token and ms a token of both builds by streams, and what native is of prebuilt."""
    artifact = build(Recipe(MODEL, [make({"name": "k-quant", "type": kind}) for kind in kinds], engine="llamacpp"))
    engine = engines.find("llamacpp")
    taken: dict[str, dict[int, list[list[Sample]]]] = {each: {n: [] for n in STREAMS} for each in BUILDS}
    with ExitStack() as stack:
        sides: dict[str, Endpoint] = {}
        for name in BUILDS:
            settings = Settings(max_streams=max(STREAMS), properties={"build": name, "ctx-size": 8192})
            sides[name] = stack.enter_context(engine.serve(artifact.path, settings))
        warm = [next(prompts) for _ in range(WARM_UP)]
        for endpoint in sides.values():
            ask(endpoint, warm, 1)
        for number in range(rounds):
            for streams, count in STREAMS.items():
                chosen = [next(prompts) for _ in range(count)]
                for name in BUILDS if number % 2 else BUILDS[::-1]:
                    taken[name][streams].append(ask(sides[name], chosen, streams))
                    print(f"{artifact.label}, round {number + 1}: {name}, {streams} streams", file=sys.stderr)
    rates = {
        name: {n: [tokens_per_s(each) for each in samples] for n, samples in taken[name].items()} for name in BUILDS
    }
    return {
        "ratio": {str(n): ratio(rates["native"][n], rates["prebuilt"][n]) for n in STREAMS},
        "tokens_per_s": rates,
        "one_stream": {name: alone([s for each in taken[name][1] for s in each]) for name in BUILDS},
    }


def ask(endpoint: Endpoint, prompts: Sequence[Prompt], streams: int) -> list[Sample]:
    """Send each prompt once, with answers of one length. Raises EngineError if a request fails."""
    asked = [prompt.model_copy(update={"max_tokens": TOKENS, "ignore_eos": True}) for prompt in prompts]
    with tempfile.TemporaryDirectory() as folder:
        samples = run_load(endpoint, asked, concurrency=streams, max_tokens=TOKENS, out=Path(folder) / "samples.jsonl")
    failed = [sample.error for sample in samples if sample.error is not None]
    if failed:
        raise EngineError(f"{len(failed)} requests failed: {failed[0]}.")
    return samples


def tokens_per_s(samples: Sequence[Sample]) -> float:
    """Return the tokens of all answers by the seconds that they took together."""
    begun = min(sample.sent for sample in samples)
    return sum(sample.completion_tokens for sample in samples) / (max(sample.end for sample in samples) - begun)


def alone(samples: Sequence[Sample]) -> Mapping[str, float]:
    """Return the medians of one stream: ms to the first token, and ms for each after it."""
    first = [(s.first - s.sent) * 1e3 for s in samples if s.first is not None]
    after = [
        (s.end - s.first) * 1e3 / (s.completion_tokens - 1) for s in samples if s.first and s.completion_tokens > 1
    ]
    return {"ttft_ms": statistics.median(first), "token_ms": statistics.median(after)}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QuicksilverError as error:
        sys.exit(f"error: {error}")
