"""Model: where weights come from, with a fingerprint of the bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from quicksilver.nouns.base import Noun


class ModelFacts(Noun):
    """What a model's config.json says of its shape; sizes are in elements, not bytes."""

    architecture: str
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    parameters: int
    tied_embeddings: bool = False
    experts: int = 0
    experts_per_token: int = Field(0, description="of a mixture of experts; `intermediate_size` is that of one expert")
    instruct: bool = Field(False, description="has a chat template")

    @property
    def kv_elements_per_token(self) -> int:
        """Elements of KV cache that one token takes, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding, and of the output layer where that is another matrix."""
        return self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)

    def forward_elements(self, tokens: int, split: int = 1) -> float:
        """Elements that one layer of a forward pass over so many tokens holds at once: four of the hidden size, three of the feed-forward.

        `split` is over how many devices the feed-forward network is divided; of a mixture each token passes several.
        """
        each = self.intermediate_size * max(1, self.experts_per_token)
        return tokens * (4 * self.hidden_size + 3 * each / split)


class Model(Noun):
    """Weights on this machine: a Hugging Face directory or a GGUF file, resolved from what the user named."""

    name: str = Field(description="a short name for tables and for the API's model field")
    source: str = Field(description="what the user gave: a catalogue name, a path or a hub id")
    kind: Literal["hf", "gguf"]
    path: Path
    fingerprint: str = Field(description="SHA-256 over the files that make the model")
    facts: ModelFacts
    licence: str = "not stated"
    remark: str = Field("", description="what a reader of its figures has to know")

    def identity(self) -> Any:
        """The bytes alone: the same weights under another path are the same model."""
        return {"fingerprint": self.fingerprint}
