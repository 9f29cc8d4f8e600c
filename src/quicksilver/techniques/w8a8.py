"""W8A8: weights and activations in INT8, with SmoothQuant; it speeds up prefill, which is bound by arithmetic."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.technique import Choices, Step
from quicksilver.techniques._weights import FOR_VLLM_TOO, Weights


class W8a8(Weights):
    """Static INT8 of weights and activations; outliers are moved into the weights (SmoothQuant, arXiv 2211.10438)."""

    gives = frozenset({"int8 activations"})
    formats = FOR_VLLM_TOO
    calibrated = True
    revision = 2

    alpha: Annotated[float, Choices(0.95), Field(ge=0, le=1, description="SmoothQuant's migration strength")] = 0.95

    def build(self, step: Step) -> None:
        from quicksilver.engines.openvino import ir

        ir.quantize_activations(step, alpha=self.alpha)

    def build_memory_mb(self, facts: ModelFacts) -> float:
        # Statistics are taken of every layer's activations at once, for a prompt of up to 256 tokens at a time.
        values = 256 * facts.layers * (12 * facts.hidden_size + 6 * facts.intermediate_size)
        return super().build_memory_mb(facts) + values * 4 * 1.3 / 1e6
