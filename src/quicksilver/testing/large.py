"""The facts of a model of 8B, where estimates are proved and no weights are needed."""

from __future__ import annotations

from quicksilver.nouns import ModelFacts

LARGE = ModelFacts(
    architecture="llama",
    layers=32,
    hidden_size=4096,
    intermediate_size=14_336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab_size=128_256,
    max_positions=8192,
    parameters=8_000_000_000,
)
