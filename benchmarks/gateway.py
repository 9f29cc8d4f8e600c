"""What the endpoint costs: the same decoder driven in this process without HTTP, and over HTTP; interleaved. The last line is JSON.

Tokens/s at 8 and 16 streams, with answers of one length; and the time to the first token at one stream, request by request in turn.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decoder import drive, ratio
from quicksilver.api import build
from quicksilver.bench.load import run_load
from quicksilver.bench.stats import interval
from quicksilver.engines import find
from quicksilver.engines.openvino.paged import PagedDecoder
from quicksilver.nouns import Burst, Endpoint, Prompt, Request
from quicksilver.recipes import load_recipe
from quicksilver.sources import workloads
from quicksilver.sources.text import Tokenizer
from stamp import stamp

STREAMS = {8: 32, 16: 64}
"""Prompts of a round at each concurrency."""
TOKENS = 64
SHORT = 32
"""Tokens of a prompt whose first token is waited for."""


def main() -> int:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=120)
    options = parser.parse_args()
    artifact = build(load_recipe(options.recipe))
    tokenizer = Tokenizer(artifact.path)
    count = options.rounds * sum(STREAMS.values())
    found = workloads.load("hotpotqa", prompts=count + 60)
    prompts = [
        tokenizer.encode(tokenizer.chat([m.model_dump() for m in p.messages or ()], open_answer=True), special=False)
        for p in [*found.search, *found.evaluation]
    ]
    rates: dict[str, dict[int, list[float]]] = {side: {c: [] for c in STREAMS} for side in ("HTTP", "in process")}
    decoder = PagedDecoder(artifact.path, artifact.settings)
    with find(artifact.engine).serve(artifact.path, artifact.settings) as endpoint:
        first_ms = first_tokens(decoder, endpoint, prompts, options.pairs)
        start = 0
        for number in range(options.rounds):
            for concurrency, each in STREAMS.items():
                chosen = prompts[start : start + each]
                start += each
                for side in ("HTTP", "in process") if number % 2 == 0 else ("in process", "HTTP"):
                    if side == "HTTP":
                        rate = over_http(endpoint, chosen, concurrency)
                    else:
                        rate = drive(decoder, chosen, concurrency, tokens=TOKENS, ignore_eos=True)
                    rates[side][concurrency].append(rate)
                    print(f"round {number + 1}: {side}, {concurrency} streams: {rate:.1f} tokens/s", file=sys.stderr)
    decoder.close()
    document = {
        "benchmark": "gateway",
        "recipe": artifact.label,
        "rounds": options.rounds,
        "ratio": {f"{c} streams": ratio(rates["HTTP"][c], rates["in process"][c]) for c in STREAMS},
        "tokens_per_s": rates,
        "ttft_ms": first_ms,
    }
    print(json.dumps(document | stamp()))
    return 0


def over_http(endpoint: Endpoint, prompts: Sequence[list[int]], concurrency: int) -> float:
    """Send each prompt once, `concurrency` at a time, and return tokens per second."""
    asked = [Prompt(id=str(n), token_ids=tuple(p), max_tokens=TOKENS, ignore_eos=True) for n, p in enumerate(prompts)]
    with tempfile.TemporaryDirectory() as folder:
        samples = run_load(
            endpoint, asked, concurrency=concurrency, max_tokens=TOKENS, out=Path(folder) / "samples.jsonl"
        )
    failed = [sample.error for sample in samples if sample.error is not None]
    if failed:
        raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")
    begun = min(sample.sent for sample in samples)
    return sum(sample.completion_tokens for sample in samples) / (max(sample.end for sample in samples) - begun)


def first_tokens(decoder: PagedDecoder, endpoint: Endpoint, prompts: Sequence[list[int]], pairs: int) -> dict[str, Any]:
    """Return the time to the first token of short prompts on both sides, and what HTTP adds, ms: medians, 95 % interval of the last."""
    host = endpoint.url.removeprefix("http://").removesuffix("/v1")
    connection = http.client.HTTPConnection(host)
    took: dict[str, list[float]] = {"HTTP": [], "in process": []}
    for number in range(pairs + 5):
        prompt = prompts[number % len(prompts)][-SHORT - number % 7 :]
        for side in ("HTTP", "in process") if number % 2 else ("in process", "HTTP"):
            took[side].append(_over_http(connection, prompt) if side == "HTTP" else _in_process(decoder, prompt))
    added = [http_ms - own_ms for http_ms, own_ms in zip(took["HTTP"][5:], took["in process"][5:], strict=True)]
    import numpy as np

    draws = np.random.default_rng(0).choice(added, (2000, len(added)))
    low, high = interval(np.median(draws, axis=1))
    return {
        **{side: statistics.median(times[5:]) for side, times in took.items()},
        "added": {"value": statistics.median(added), "low": low, "high": high},
    }


def _over_http(connection: http.client.HTTPConnection, prompt: Sequence[int]) -> float:
    body = json.dumps({"prompt": [list(prompt)], "max_tokens": 2, "ignore_eos": True, "stream": True, "temperature": 0})
    begun = time.perf_counter()
    connection.request("POST", "/v1/completions", body)
    response = connection.getresponse()
    line = response.readline()
    took = (time.perf_counter() - begun) * 1000
    if response.status != 200 or not line.startswith(b"data: "):
        raise SystemExit(f"The endpoint answers {response.status}: {line.decode()}")
    response.read()
    return took


def _in_process(decoder: PagedDecoder, prompt: Sequence[int]) -> float:
    first, over = threading.Event(), threading.Event()

    def hear(burst: Burst) -> None:
        first.set()
        if burst.finish is not None:
            over.set()

    begun = time.perf_counter()
    decoder.submit(Request(prompt=list(prompt), max_tokens=2, ignore_eos=True), hear)
    first.wait()
    took = (time.perf_counter() - begun) * 1000
    over.wait()
    return took


if __name__ == "__main__":
    sys.exit(main())
