"""The facts of a model of 8B, and of one of 135M, where estimates are proved and no weights are needed."""

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

SMALL = ModelFacts(
    architecture="llama",
    layers=30,
    hidden_size=576,
    intermediate_size=1536,
    heads=9,
    kv_heads=3,
    head_dim=64,
    vocab_size=49152,
    max_positions=8192,
    parameters=134_515_008,
    tied_embeddings=True,
)
"""Those of SmolLM2-135M."""
