"""Surface: a synthetic machine, workload and model, for searches that have to be repeated hundreds of times in seconds.

It says what a configuration of real techniques and settings would serve, from a small mechanistic model of prefill, decode
steps, speculation and batching whose coefficients a seed draws, with oddities of single pairs and triples of choices on top. It
knows nothing of the cost model that a search fits: its terms multiply, saturate and depend on one another.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from quicksilver import engines, techniques
from quicksilver.errors import IllegalRecipeError
from quicksilver.nouns import Technique
from quicksilver.search.space import Configuration, Space, combine, does, variants
from quicksilver.testing.large import LARGE

LOADS = (1, 8)
"""Concurrencies that it is measured at."""
PROMPT, ANSWER = 700, 128
"""Tokens."""
WEIGHTS = ("int8", "int4", "awq", "gptq", "mixed", "w8a8")
SERVING = ("prompt-lookup", "chunked-prefill", "kv-cache")
SETTINGS: dict[str, tuple[Any, ...]] = {"threads": (0, 4), "max_streams": (64, 4)}
LIMIT = 1.0
"""Quality loss that may be had, percent."""


def space(size: int | None = 5000, seed: int = 0) -> Space:
    """Return the space of the techniques' own fields; with `size` that many of its configurations, drawn by a seed, as-is among them."""
    rounded = [t for name in WEIGHTS for t in _fitting(name)]
    numerics = _fitting("activations")
    bases: list[tuple[Technique, ...]] = [(), *((t,) for t in rounded)]
    bases += [(t, n) for t in rounded if "integer weights" in t.gives for n in numerics]
    whole = combine(bases, [t for name in SERVING for t in _fitting(name)], SETTINGS)
    if size is None or size >= len(whole):
        return whole
    kept = np.random.default_rng(seed).choice(len(whole) - 1, size - 1, replace=False) + 1
    chosen = [0, *sorted(kept.tolist())]  # the first is the model as it comes
    return Space(tuple(whole.configurations[i] for i in chosen), whole.dimensions, whole.codes[chosen])


def _fitting(name: str) -> list[Technique]:
    """The variants of a technique that one engine has: a search never meets those of several engines on one."""
    engine = engines.find("openvino")
    found = []
    for variant in variants(techniques.find(name)):
        if not does(engine, variant):
            continue
        try:
            variant.check(LARGE)
        except IllegalRecipeError:
            continue
        found.append(variant)
    return found


@dataclass(frozen=True, slots=True)
class _Machine:
    """Milliseconds and shares that a seed draws."""

    prefill_ms: float
    decode_ms: float
    stream_ms: float
    attention_ms: float
    guess_cost: float
    right: float
    parallel: float
    interference: float


class Surface:
    """The response of one synthetic machine. `gains` is the truth, `measure` what a race would show of it."""

    def __init__(self, seed: int, *, noise: float = 0.05) -> None:
        draw = np.random.default_rng([seed, 7919])
        self.seed = seed
        self.noise = noise
        self._draw = draw
        self._machine = _Machine(
            prefill_ms=float(draw.uniform(0.3, 1.2)),
            decode_ms=float(draw.uniform(10, 30)),
            stream_ms=float(draw.uniform(0.6, 3.0)),
            attention_ms=float(draw.uniform(0.2, 1.5)),
            guess_cost=float(draw.uniform(0.02, 0.12)),
            right=float(draw.uniform(0.3, 0.8)),
            parallel=float(draw.uniform(0.5, 0.95)),
            interference=float(draw.uniform(0.1, 0.6)),
        )
        # Of each way to round weights: time of a step's weights, of prefill, of a guessed token, and loss in percent.
        self._ways = {
            name: (draw.uniform(0.45, 0.95), draw.uniform(0.6, 1.3), draw.uniform(0.6, 2.2), draw.uniform(0.1, 2.4))
            for name in WEIGHTS
        }
        self._bold = float(draw.uniform(0.0, 0.35))
        self._bold_loss = float(draw.uniform(0.1, 1.2))
        self._base = [self._answer_ms(Configuration(()), load) for load in LOADS]
        self._noise = np.random.default_rng([seed, 104_729])

    def loss(self, configuration: Configuration) -> float:
        """The quality loss of a configuration's numerics, percent."""
        loss = 0.0
        for technique in configuration.numerics:
            fields = technique.model_dump()
            name = technique.name()
            if name in self._ways:
                loss += self._ways[name][3] * (fields.get("group_size", 64) / 64) ** 0.4
            elif name == "activations":
                size = fields["group_size"]
                loss += -0.1 if size == 0 else self._bold_loss * math.log2(size / 32) / 3
            else:
                loss += 0.15 + 0.3 * _unit(self.seed, "kv")
        return max(0.0, loss)

    def gains(self, configuration: Configuration) -> tuple[float, ...]:
        """The true log gains over the model as it comes, by load."""
        return tuple(
            math.log(base / self._answer_ms(configuration, load)) for base, load in zip(self._base, LOADS, strict=True)
        )

    def measure(self, configuration: Configuration, weight: float = 1.0) -> tuple[float, ...]:
        """What a race shows of it; one that is `weight` times as long is less noisy by the root of that."""
        sd = self.noise / math.sqrt(weight)
        return tuple(gain + float(self._noise.normal(0, sd)) for gain in self.gains(configuration))

    def _answer_ms(self, configuration: Configuration, load: int) -> float:
        """Milliseconds that an answer takes at a load, per answer finished."""
        at = self._machine
        fields = {t.name(): t.model_dump() for t in configuration.stack}
        way = next((name for name in fields if name in self._ways), None)
        step, prefill, guess = self._ways[way][:3] if way else (1.0, 1.0, 1.0)
        if way and "group_size" in fields[way]:
            step *= 1 + 0.06 * math.log2(128 / fields[way]["group_size"])
            prefill *= 1 + 0.03 * math.log2(128 / fields[way]["group_size"])
        if "activations" in fields:
            size = fields["activations"]["group_size"]
            prefill *= 1.35 if size == 0 else 1 - self._bold * math.log2(size / 32) / 3
            step *= 1.1 if size == 0 else 1 - 0.2 * self._bold * math.log2(size / 32) / 3
        settings = dict(configuration.settings)
        streams = min(load, settings.get("max_streams", 64))
        cores = 0.5 if settings.get("threads") else 1.0
        slower = 1 / ((1 - at.parallel) + at.parallel * cores)
        calm = 0.92 if settings.get("threads") else 1.0  # fewer threads get in each other's way less
        kv = 1.0 if "kv-cache" not in fields else 0.8 + 0.5 * _unit(self.seed, "kv speed")
        attention = at.attention_ms * streams * kv
        tokens = fields["prompt-lookup"]["tokens"] if "prompt-lookup" in fields else 0
        given = (1 - at.right ** (tokens + 1)) / (1 - at.right)
        weights_ms = at.decode_ms * step * (calm if streams == 1 else 1.0)
        compute_ms = at.stream_ms * streams * (1 + at.guess_cost * guess * 4 * tokens) * slower
        step_ms = weights_ms + compute_ms + attention * (1 + 0.1 * tokens)
        read_ms = at.prefill_ms * PROMPT * prefill * slower
        waits = at.interference * read_ms * (streams - 1) / 8
        if "chunked-prefill" in fields:
            size = fields["chunked-prefill"]["tokens"]
            waits *= 0.4 + 0.5 * size / 2048 * (1 + 0.05 * tokens)
            read_ms *= 1 + 25 / size * (1.6 if way else 1.0)
        answer_ms = read_ms + waits + ANSWER * step_ms / given / streams
        return float(answer_ms * math.exp(self._oddities(configuration, load)))

    def _oddities(self, configuration: Configuration, load: int) -> float:
        """What single pairs and triples of choices do for no reason that a model could know: some 2 and 1 percent each."""
        names = sorted([*(t.label for t in configuration.stack), *(f"{k}={v}" for k, v in configuration.settings)])
        total = 0.0
        for size, sd in ((2, 0.02), (3, 0.01)):
            for chosen in combinations(names, size):
                total += sd * math.sqrt(12) * (_unit(self.seed, load, *chosen) - 0.5)
        return total


def _unit(*values: Any) -> float:
    """Return a number between 0 and 1 that is the same on every machine."""
    digest = hashlib.blake2b(repr(values).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def optimum(surface: Surface, configurations: Sequence[Configuration]) -> float:
    """Return the highest mean log gain among configurations that keep the quality."""
    return max(sum(surface.gains(c)) / len(LOADS) for c in configurations if surface.loss(c) <= LIMIT)
