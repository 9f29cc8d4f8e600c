"""Memory: what the fit says of a server against the peak that it was measured to take, for each recipe of an engine, at a load.

Each recipe is served in processes of its own, which answer prompts of random tokens; the peak is that of the server and of what it started.
The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from quicksilver import engines
from quicksilver.api import build
from quicksilver.engines.process import LOCAL
from quicksilver.errors import QuicksilverError
from quicksilver.nouns import Endpoint, Recipe
from quicksilver.search.fit import Load, as_is_mb, fit
from quicksilver.sources.models import resolve
from quicksilver.techniques import make
from stamp import stamp

MODEL = "smollm2-135m-instruct"
RECIPES: dict[str, list[list[dict[str, Any]]]] = {
    "openvino": [[], [{"name": "int8"}], [{"name": "int4"}]],
    "llamacpp": [[], [{"name": "k-quant", "type": "q8_0"}], [{"name": "k-quant", "type": "q4_k_m"}]],
}
LOADS = (Load(1, 272), Load(8, 272))
"""Streams, and tokens of a prompt with its answer."""
ANSWER = 16


def main() -> int:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", default=",".join(RECIPES))
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for engine in parser.parse_args().engines.split(","):
        try:
            for stack in RECIPES[engine]:
                rows += compare(engine, stack)
        except QuicksilverError as error:
            left_out[engine] = str(error)
            print(f"{engine} is left out: {error}", file=sys.stderr)
    errors = [abs(row["error_percent"]) for row in rows]
    summary = {"median_percent": statistics.median(errors), "worst_percent": max(errors)} if errors else {}
    print(json.dumps({"benchmark": "fit", **summary, "rows": rows, "left_out": left_out, **stamp()}))
    return 0


def compare(engine: str, stack: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Serve a recipe under each load, and return the fit's lines beside the peak memory, MB."""
    driven, techniques, model = engines.find(engine), [make(technique) for technique in stack], resolve(MODEL)
    recipe = Recipe(MODEL, techniques, engine=engine)
    artifact, settings = build(recipe), recipe.effective_settings()
    # The first start may compile and keep a graph, which takes more memory for a moment: measured is what a server takes from then on.
    with driven.serve(artifact.path, settings) as endpoint:
        ask(endpoint, 1, seed=0)
    rows = []
    for load in LOADS:
        with driven.serve(artifact.path, settings) as endpoint, ThreadPoolExecutor(load.streams) as pool:
            tokens = load.context - ANSWER
            list(pool.map(lambda seed, at=endpoint, count=tokens: ask(at, count, seed), range(load.streams)))
            measured = endpoint.peak_memory_mb()
        if measured is None:
            raise QuicksilverError(f"The memory of {engine}'s server isn't known.")
        found = fit(model.facts, techniques, settings, load, engine=driven, as_is=as_is_mb(model, driven))
        lines = {
            "weights": found.weights,
            "kv_cache": found.kv_cache,
            "activations": found.activations,
            "runtime": found.runtime,
        }
        rows.append(
            {
                "engine": engine,
                "recipe": recipe.label,
                "streams": load.streams,
                "tokens": load.context,
                "predicted_mb": round(found.total, 1),
                "measured_mb": round(measured, 1),
                "error_percent": round(100 * (found.total / measured - 1), 2),
                "lines": {name: round(mb, 1) for name, mb in lines.items()},
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def ask(endpoint: Endpoint, tokens: int, seed: int) -> None:
    """Have a prompt of random tokens answered."""
    rng = random.Random(seed)
    prompt = [rng.randrange(100, 40_000) for _ in range(tokens)]
    body = {"model": endpoint.model, "prompt": prompt, "max_tokens": ANSWER, "ignore_eos": True, "temperature": 0}
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{endpoint.url}/completions", json.dumps(body).encode(), head)
    with LOCAL.open(request, timeout=300) as answer:
        answer.read()


if __name__ == "__main__":
    sys.exit(main())
