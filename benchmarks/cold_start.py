"""Seconds from a process's start to its first token: the server, and our decoder against OpenVINO GenAI's own pipeline.

Cold, no compiled graph was kept; warm, one was. The decoders are alone in a process. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quicksilver.engines import find
from quicksilver.engines.process import LOCAL, serve_process
from quicksilver.nouns import Burst, Decoder, Recipe, Request, Settings
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.sources.text import Tokenizer
from quicksilver.techniques import make
from stamp import stamp

RECIPES: dict[str, list[dict[str, Any]]] = {
    "as-is": [],
    "int8": [{"name": "int8"}, {"name": "activations", "group_size": 64}],
}
PROMPT = "The capital of France is"
KINDS = ("server, cold", "server, warm", "ours, cold", "ours, warm", "GenAI")
Figures = dict[str, float]


def main() -> int:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--open", choices=("ours", "GenAI"), help=argparse.SUPPRESS)
    parser.add_argument("--artifact", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        decode_one(options.open, options.artifact)
        return 0
    from quicksilver.api import build  # the processes that are measured do without

    document: dict[str, object] = {"benchmark": "cold_start", "rounds": options.rounds}
    for name, stack in RECIPES.items():
        artifact = build(Recipe("smollm2-135m-instruct", [make(technique) for technique in stack])).path
        found: dict[str, list[Figures]] = {kind: [] for kind in KINDS}
        with tempfile.TemporaryDirectory() as warm:
            start("server, warm", artifact, Path(warm))  # reads the files once, and leaves a compiled graph
            for number in range(options.rounds):
                for kind in KINDS if number % 2 == 0 else reversed(KINDS):
                    with tempfile.TemporaryDirectory() as cold:
                        figures = start(kind, artifact, Path(cold if kind.endswith("cold") else warm))
                    found[kind].append(figures)
                    words = ", ".join(f"{key} {value:.2f}" for key, value in figures.items())
                    print(f"{name}, round {number + 1}: {kind}: {words}", file=sys.stderr)
        document[name] = {kind: spread(rounds) for kind, rounds in found.items()} | {"saved": saved(found)}
    print(json.dumps({**document, **stamp()}))
    return 0


def start(kind: str, artifact: Path, home: Path) -> Figures:
    """Start a process with its own cache folder, and return the seconds until it was ready and until its first token."""
    with using(home):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun = time.perf_counter()
        if kind.startswith("server"):
            figures = serve_one(artifact, begun)
        else:
            command = [sys.executable, __file__, "--open", kind.partition(",")[0], "--artifact", str(artifact)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                figures = {line.strip(): time.perf_counter() - begun for line in process.stdout}
            if process.returncode or "first_token_s" not in figures:
                raise RuntimeError(f"{command} ended with exit code {process.returncode}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of its whole life, the end included.
    figures["cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return figures


@contextmanager
def using(home: Path) -> Iterator[None]:
    """Give the processes started inside another cache folder."""
    previous = os.environ.get(HOME_VARIABLE)
    os.environ[HOME_VARIABLE] = str(home)
    try:
        yield
    finally:
        if previous is None:
            del os.environ[HOME_VARIABLE]
        else:
            os.environ[HOME_VARIABLE] = previous


def serve_one(artifact: Path, begun: float) -> Figures:
    """Start the server and ask for one token."""
    with serve_process("openvino", artifact, Settings()) as endpoint:
        ready = time.perf_counter()
        body = json.dumps({"model": endpoint.model, "prompt": PROMPT, "max_tokens": 1}).encode()
        headers = {"Content-Type": "application/json"}
        with LOCAL.open(urllib.request.Request(f"{endpoint.url}/completions", body, headers), timeout=60) as answer:
            json.load(answer)
        return {"ready_s": ready - begun, "first_token_s": time.perf_counter() - begun}


def decode_one(name: str, artifact: Path) -> None:
    """Open a decoder in this process and have it give one token; a line on stdout tells of each."""
    tokenizer = Tokenizer(artifact)
    decoder = find("openvino").open(artifact, Settings()) if name == "ours" else genai(artifact)
    print("ready_s", flush=True)
    over = threading.Event()

    def hear(burst: Burst) -> None:
        if burst.tokens:
            print("first_token_s", flush=True)
        if burst.finish is not None:
            over.set()

    decoder.submit(Request(prompt=tokenizer.encode(PROMPT), max_tokens=1, ignore_eos=True), hear)
    over.wait()
    decoder.close()


def genai(artifact: Path) -> Decoder:
    """Open GenAI's own pipeline."""
    from quicksilver.engines.openvino.genai import GenAiDecoder

    return GenAiDecoder(artifact, Settings())


def spread(rounds: list[Figures]) -> dict[str, Figures]:
    """Return median and range of each figure."""
    values = {name: sorted(figures[name] for figures in rounds) for name in rounds[0]}
    return {
        name: {"median": statistics.median(found), "low": found[0], "high": found[-1]} for name, found in values.items()
    }


def saved(found: dict[str, list[Figures]]) -> Figures:
    """Return which share of GenAI's seconds to the first token ours saves, in the same round: median and range."""
    pairs = zip(found["ours, warm"], found["GenAI"], strict=True)
    shares = sorted(1 - ours["first_token_s"] / theirs["first_token_s"] for ours, theirs in pairs)
    return {"median": statistics.median(shares), "low": shares[0], "high": shares[-1]}


if __name__ == "__main__":
    sys.exit(main())
