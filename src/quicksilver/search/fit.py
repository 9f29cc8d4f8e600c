"""Fit: the memory that a recipe's server takes under a load, line by line, before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quicksilver.nouns.engine import Engine
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.settings import Settings
from quicksilver.nouns.technique import Technique
from quicksilver.techniques.as_is import AsIs

KV_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "u8": 1.13, "u4": 0.63, "fp8": 1.0}
"""Bytes of a cached key or value; the rounded ones carry their scales (blocks of 32 tokens: 40 x 64 and 32 x 72 for 32 x 64 values)."""
RUNTIME_MB = 250.0
"""Interpreter, libraries and gateway, until a server has shown what it takes."""
WRONG = 0.8
"""An estimate has to be over a limit by this share of it, before what was never measured is dropped for it."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a server has to hold at once."""

    streams: int
    context: int
    """Tokens of a prompt with its answer, at most."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Megabytes by what they are for."""

    weights: float
    kv_cache: float
    activations: float
    runtime: float
    detail: str = ""
    """How the KV cache comes to its size."""

    @property
    def total(self) -> float:
        return self.weights + self.kv_cache + self.activations + self.runtime

    def sentence(self, limit_mb: float) -> str:
        """Return the arithmetic, and what it is compared with."""
        return (
            f"it needs about {self.total:,.0f} MB: weights {self.weights:,.0f}, KV cache {self.kv_cache:,.0f} ({self.detail}), "
            f"activations {self.activations:,.0f}, runtime {self.runtime:,.0f}; {limit_mb:,.0f} MB are allowed"
        )

    def exceeds(self, limit_mb: float) -> bool:
        """Whether it is over a limit even if the estimate is too high by a fifth."""
        return WRONG * self.total > limit_mb


def weights_mb(facts: ModelFacts, stack: Sequence[Technique]) -> float:
    """Return the size of a stack's weights, MB; 0 if it isn't known."""
    sizes = [size for technique in stack if (size := technique.size_mb(facts)) is not None]
    return (sizes[-1] if sizes else AsIs().size_mb(facts)) or 0.0


def fit(
    facts: ModelFacts,
    stack: Sequence[Technique],
    settings: Settings,
    load: Load,
    runtime_mb: float = RUNTIME_MB,
    *,
    engine: Engine | None = None,
) -> Fit:
    """Estimate what a stack's server takes under a load. `settings` are those with what the techniques set.

    The cache is counted as far as the load fills it, unless the `engine` takes it whole at its start. Activations are those of one forward
    pass: hidden states, the two halves of the feed-forward network and attention, in 32 bits, and a row of logits for each stream.
    """
    each = facts.kv_elements_per_token * KV_BYTES.get(settings.kv_precision, 2.0) / 1e3
    streams = min(load.streams, settings.max_streams)
    filled = streams * load.context
    tokens = filled if engine is None else engine.cache_tokens(settings, facts, filled)
    held = tokens * each / 1e3
    detail = f"{streams} streams of {load.context:,} tokens at {each:.1f} kB"
    if tokens != filled:
        detail = f"{tokens:,} tokens at {each:.1f} kB, which {engine.name if engine else ''} takes at its start"
    if settings.kv_cache_gb and settings.kv_cache_gb * 1e3 < held:
        held, detail = settings.kv_cache_gb * 1e3, f"limited to {settings.kv_cache_gb:g} GB"
    tokens = min(settings.max_batched_tokens, filled)
    wide = 4 * facts.hidden_size + 2 * facts.intermediate_size
    activations = 4 * (tokens * wide + streams * facts.vocab_size) / 1e6
    return Fit(weights_mb(facts, stack), held, activations, runtime_mb, detail)
