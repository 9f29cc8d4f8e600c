"""Tokens/s of our decoder against OpenVINO GenAI's own pipeline: the same artefact, in this process, without HTTP, without speculation.

The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quicksilver.api import build
from quicksilver.bench.stats import bootstrap_sums, interval
from quicksilver.engines.openvino.genai import GenAiDecoder
from quicksilver.engines.openvino.paged import PagedDecoder
from quicksilver.nouns import Burst, Decoder, Recipe, Request, Settings
from quicksilver.sources import workloads
from quicksilver.sources.text import Tokenizer
from stamp import stamp

PROMPTS = {1: 4, 8: 32}
"""Prompts of a round at each concurrency."""
DECODERS: dict[str, Callable[[Path, Settings], Decoder]] = {"GenAI": GenAiDecoder, "ours": PagedDecoder}


def main() -> int:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    rounds = parser.parse_args().rounds
    artifact = build(Recipe("smollm2-135m-instruct")).path
    tokenizer = Tokenizer(artifact)
    load = workloads.load("hotpotqa", prompts=60 + 2 * rounds * sum(PROMPTS.values()))
    prompts = [
        tokenizer.encode(tokenizer.chat([m.model_dump() for m in p.messages or ()], open_answer=True), special=False)
        for p in [*load.search, *load.evaluation]
    ]
    rates: dict[str, dict[int, list[float]]] = {name: {c: [] for c in PROMPTS} for name in DECODERS}
    start = 0
    for number in range(rounds):
        for concurrency, count in PROMPTS.items():
            chosen = prompts[start : start + count]
            start += count
            for name in list(DECODERS) if number % 2 == 0 else reversed(DECODERS):
                decoder = DECODERS[name](artifact, Settings())
                try:
                    drive(decoder, chosen[:1], 1, tokens=8)
                    rate = drive(decoder, chosen, concurrency, tokens=load.max_tokens)
                finally:
                    decoder.close()
                rates[name][concurrency].append(rate)
                print(f"round {number + 1}: {name}, {concurrency} streams: {rate:.1f} tokens/s", file=sys.stderr)
    ratios = {f"{c} stream{'s' if c > 1 else ''}": ratio(rates["ours"][c], rates["GenAI"][c]) for c in PROMPTS}
    print(json.dumps({"benchmark": "decoder", "rounds": rounds, "ratio": ratios, "tokens_per_s": rates, **stamp()}))
    return 0


def drive(
    decoder: Decoder, prompts: Sequence[list[int]], concurrency: int, *, tokens: int, ignore_eos: bool = False
) -> float:
    """Keep `concurrency` sequences running until the prompts are used up, and return tokens per second."""
    todo: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for prompt in prompts:
        todo.put(prompt)
    counts: list[int] = []

    def stream() -> None:
        while True:
            try:
                prompt = todo.get_nowait()
            except queue.Empty:
                return
            over = threading.Event()

            def hear(burst: Burst, over: threading.Event = over) -> None:
                counts.append(len(burst.tokens))
                if burst.finish is not None:
                    over.set()

            decoder.submit(Request(prompt=prompt, max_tokens=tokens, ignore_eos=ignore_eos), hear)
            over.wait()

    threads = [threading.Thread(target=stream) for _ in range(concurrency)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begun)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Return the geometric mean of the rounds' ratios with a 95 % bootstrap interval over rounds."""
    import numpy as np

    logs = np.log(np.array(ours) / np.array(theirs))
    low, high = interval(np.exp(bootstrap_sums(logs[:, None])[:, 0] / len(logs)))
    return {"value": float(np.exp(logs.mean())), "low": low, "high": high}


if __name__ == "__main__":
    sys.exit(main())
