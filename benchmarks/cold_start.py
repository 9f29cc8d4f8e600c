"""Seconds from a process's start to its first token: our server with a compiled graph kept and without, and OpenVINO GenAI's own pipeline.

All of them load the same artefact, one after the other in each round. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from quicksilver.api import build
from quicksilver.engines.process import PROMPT, cold_start_s, serve_process
from quicksilver.nouns import Artifact, Recipe
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.techniques import make
from stamp import stamp

RECIPES: dict[str, list[dict[str, Any]]] = {"as-is": [], "int8": [{"name": "int8"}]}
KEPT, ANEW, GENAI = "kept", "anew", "GenAI"
PIPELINE = """
import sys
import openvino_genai
pipeline = openvino_genai.LLMPipeline(sys.argv[1], "CPU")
print("ready_s", flush=True)
pipeline.generate(sys.argv[2], max_new_tokens=1, apply_chat_template=False)
print("first_token_s", flush=True)
"""
Figures = dict[str, float]


def main() -> int:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    document: dict[str, Any] = {"benchmark": "cold_start", "rounds": rounds, "recipes": {}}
    for name, stack in RECIPES.items():
        artifact = build(Recipe("smollm2-135m-instruct", [make(technique) for technique in stack]))
        found: dict[str, list[Figures]] = {KEPT: [], ANEW: [], GENAI: []}
        with tempfile.TemporaryDirectory() as home:
            start(KEPT, artifact, home)  # reads the files once, and leaves a compiled graph
            for number in range(rounds):
                for kind in list(found) if number % 2 == 0 else reversed(list(found)):
                    figures = start(kind, artifact, home)
                    found[kind].append(figures)
                    words = ", ".join(f"{key} {value:.2f}" for key, value in figures.items())
                    print(f"{name}, round {number + 1}: {kind}: {words}", file=sys.stderr)
        pairs = zip(found[KEPT], found[GENAI], strict=True)
        saved = [1 - ours["first_token_s"] / theirs["first_token_s"] for ours, theirs in pairs]
        every = {kind: {key: spread([f[key] for f in all_]) for key in all_[0]} for kind, all_ in found.items()}
        document["recipes"][name] = {**every, "saved": spread(saved)}
    print(json.dumps({**document, **stamp()}))
    return 0


def start(kind: str, artifact: Artifact, home: str) -> Figures:
    """Start a process, and return the seconds until it was ready and until its first token."""
    if kind == GENAI:
        begun = time.monotonic()
        command = [sys.executable, "-c", PIPELINE, str(artifact.path), PROMPT]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            figures = {line.strip(): time.monotonic() - begun for line in process.stdout}
        if process.returncode:
            raise RuntimeError(f"GenAI's pipeline ended with exit code {process.returncode}.")
        return figures
    with (
        tempfile.TemporaryDirectory() as empty,
        using(home if kind == KEPT else empty),
        serve_process("openvino", artifact.path, artifact.settings) as endpoint,
    ):
        first_token_s = cold_start_s(endpoint)
        assert endpoint.load_s is not None
        assert first_token_s is not None
        return {"ready_s": endpoint.load_s, "first_token_s": first_token_s}


@contextmanager
def using(home: str) -> Iterator[None]:
    """Give the processes started inside another cache folder."""
    previous = os.environ.get(HOME_VARIABLE)
    os.environ[HOME_VARIABLE] = home
    try:
        yield
    finally:
        if previous is None:
            del os.environ[HOME_VARIABLE]
        else:
            os.environ[HOME_VARIABLE] = previous


def spread(values: Sequence[float]) -> Figures:
    """Return median and range."""
    return {"value": statistics.median(values), "low": min(values), "high": max(values)}


if __name__ == "__main__":
    sys.exit(main())
