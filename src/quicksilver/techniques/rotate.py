"""Rotate: turn the model's hidden states so that no channel stands out, which lets activations be rounded more boldly."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quicksilver.errors import IllegalRecipeError
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.technique import Choices, Step, Technique
from quicksilver.techniques._rotation import ARCHITECTURES, SHARD_BYTES


class Rotate(Technique):
    """Multiply the weights by random orthogonal matrices that cancel out (QuaRot, arXiv 2404.00456, without its online part).

    In exact arithmetic the model stays what it is, and serving costs nothing more. Its activations lose their outliers, so
    that one scale does for many of them. Weights that lie on a grid already lose it: that rarely pays with 4 bits.
    """

    needs = frozenset({"hf", "unrotated"})
    takes = frozenset({"unrotated"})
    formats = frozenset({"openvino-ir", "fake"})
    gives = frozenset({"rotated"})
    builds = True
    revision = 2

    # Which one is drawn matters (SpinQuant, arXiv 2405.16406, section 3.1).
    seed: Annotated[int, Choices(0, 1, 2), Field(ge=0, description="of the random signs")] = 0

    def check(self, facts: ModelFacts) -> None:
        if facts.architecture not in ARCHITECTURES:
            raise IllegalRecipeError(
                f"rotate doesn't know the architecture {facts.architecture}; it knows {', '.join(ARCHITECTURES)}."
            )

    def build(self, step: Step) -> None:
        from quicksilver.techniques import _rotation

        _rotation.rotate(step.source, step.target, seed=self.seed)

    def build_memory_mb(self, facts: ModelFacts) -> float:
        # torch, one file of rotated weights, and a matrix (the embeddings are the largest) three times in 32 bits.
        return 700 + (1.2 * min(2 * facts.parameters, SHARD_BYTES) + 12 * facts.vocab_size * facts.hidden_size) / 1e6

    def size_mb(self, facts: ModelFacts) -> float:
        untied = facts.vocab_size * facts.hidden_size if facts.tied_embeddings else 0
        return 2 * (facts.parameters + untied) / 1e6
