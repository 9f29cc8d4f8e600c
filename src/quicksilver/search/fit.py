"""Fit: the memory that a recipe's server takes under a load, line by line, before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quicksilver.nouns.engine import Engine
from quicksilver.nouns.model import Model, ModelFacts
from quicksilver.nouns.settings import Settings
from quicksilver.nouns.technique import Technique
from quicksilver.techniques.as_is import AsIs

KV_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "u8": 1.13, "u4": 0.63, "fp8": 1.0}
"""Bytes of a cached key or value; the rounded ones carry their scales (blocks of 32 tokens: 40 x 64 and 32 x 72 for 32 x 64 values)."""
RUNTIME_MB = Engine.runtime_mb
"""Of a server of which not even the engine is known."""
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


def weights_mb(facts: ModelFacts, stack: Sequence[Technique], as_is: float | None = None) -> float:
    """Return the size of a stack's weights, MB; 0 if it isn't known. `as_is` is that of the model as it comes, if not 16 bits a weight."""
    sizes = [size for technique in stack if (size := technique.size_mb(facts)) is not None]
    return (sizes[-1] if sizes else as_is or AsIs().size_mb(facts)) or 0.0


def as_is_mb(model: Model, engine: Engine) -> float | None:
    """Return the MB of a model that an engine serves as the file that it comes as; None if it is converted to 16 bits."""
    return model.path.stat().st_size / 1e6 if model.kind == "gguf" and engine.reads_gguf else None


def fit(
    facts: ModelFacts,
    stack: Sequence[Technique],
    settings: Settings,
    load: Load,
    runtime_mb: float | None = None,
    *,
    engine: Engine | None = None,
    as_is: float | None = None,
) -> Fit:
    """Estimate what a stack's server takes under a load. `settings` are those with what the techniques set.

    The cache is counted as far as the load fills it, unless the `engine` takes it whole at its start. How often weights are in memory and
    what a step holds is the engine's, too; without one it is once, and one layer's elements in 32 bits with a row of logits for each stream.
    `runtime_mb` is what its server was seen to take besides; the engine's usual if not given. `as_is` is as in `weights_mb`.
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
    size = weights_mb(facts, stack, as_is)
    if engine is None:
        weights, step = size, 4 * (facts.forward_elements(tokens) + streams * facts.vocab_size) / 1e6
        runtime = RUNTIME_MB
    else:
        weights = engine.weights_mb(facts, size, streams)
        step = engine.step_mb(facts, tokens, streams, rounded=size < 1.5 * facts.parameters / 1e6)
        runtime = engine.runtime_mb
    return Fit(weights, held, step, runtime if runtime_mb is None else runtime_mb, detail)
