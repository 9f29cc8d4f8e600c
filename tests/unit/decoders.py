"""Decoders driven without a gateway: sequences together, what was heard of each, and a tiny artefact."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from quicksilver import api
from quicksilver.nouns import Burst, Decoder, Recipe, Request
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.techniques import make
from quicksilver.testing.tiny import make_tiny_model

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
LOOKUP = {"kind": "prompt_lookup", "tokens": 6}


@dataclass
class Heard:
    """What a decoder delivered for one sequence."""

    bursts: list[Burst] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def __call__(self, burst: Burst) -> None:
        self.bursts.append(burst)
        if burst.finish is not None:
            self.over.set()

    @property
    def tokens(self) -> list[int]:
        return [token for burst in self.bursts for token in burst.tokens]

    @property
    def last(self) -> Burst:
        return self.bursts[-1]


def decode(decoder: Decoder, *requests: Request) -> list[Heard]:
    """Run some requests at once, and return what was heard of each."""
    heard = [Heard() for _ in requests]
    for request, one in zip(requests, heard, strict=True):
        decoder.submit(request, one)
    for one in heard:
        assert one.over.wait(60)
    return heard


@contextmanager
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Build a tiny model in 32 bits, in a store of its own."""
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", "llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(tmp_path_factory.mktemp("home")))
        yield api.build(Recipe(str(folder), [make({"name": "as-is", "precision": "fp32"})])).path
