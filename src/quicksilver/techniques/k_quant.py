"""K-quants: llama.cpp's own weight formats in 3 to 8 bits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quicksilver.errors import IllegalRecipeError
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.technique import Choices, Step, Technique

BITS = {"q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q4_k_m": 4.9, "q4_0": 4.6, "iq4_nl": 4.6, "q3_k_m": 3.9}
"""Mean bits a weight, scales included, of a model of some billions whose rows are multiples of 256."""
Type = Literal["q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_nl", "q3_k_m"]


class KQuant(Technique):
    """Round the weights to one of llama.cpp's types without looking at data (github.com/ggml-org/llama.cpp/pull/1684).

    The types in blocks of 256 need rows that are multiples of that; a matrix whose rows aren't takes a type in blocks of 32
    that is about a bit larger.
    """

    needs = frozenset({"float weights", "engine format"})
    takes = frozenset({"float weights"})
    gives = frozenset({"k-quants"})
    formats = frozenset({"gguf"})
    builds = True
    changes_output = True
    each = True

    type: Annotated[
        Type,
        Choices("q8_0", "q6_k", "q4_k_m", "q4_0"),
        Field(description="bits and blocks; _k types mix in more bits where it hurts"),
    ] = "q4_k_m"

    def check(self, facts: ModelFacts) -> None:
        if facts.hidden_size % 32:
            raise IllegalRecipeError(
                f"{self.name()} rounds blocks of 32 weights, which the model's hidden size of {facts.hidden_size} is no multiple of."
            )

    def build(self, step: Step) -> None:
        from quicksilver.engines.llamacpp import files

        files.quantize(step, self.type)

    def build_memory_mb(self, facts: ModelFacts) -> float:
        # One tensor at a time: what was there, as float32, and rounded; and the libraries.
        return 400 + facts.vocab_size * facts.hidden_size * 10 / 1e6

    def size_mb(self, facts: ModelFacts) -> float:
        return facts.parameters * BITS[self.type] / 8 / 1e6
