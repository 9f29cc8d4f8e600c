"""The model as it comes, exported to the engine's format in 16 or 32 bits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.technique import Step, Technique


class AsIs(Technique):
    """Export the weights without quantising them."""

    needs = frozenset({"hf"})
    takes = frozenset({"hf"})
    gives = frozenset({"engine format", "float weights"})
    builds = True
    revision = 3

    precision: Annotated[Literal["fp16", "bf16", "fp32"], Field(description="of the float weights")] = "fp16"

    def build(self, step: Step) -> None:
        from quicksilver.engines.openvino import ir

        ir.export(step.source, step.target, self.precision)

    def build_memory_mb(self, facts: ModelFacts) -> float:
        # Measured: the 135M (0.54 GB in fp32) peaks at 1.4 GB, of which 0.8 are the libraries.
        return 800 + facts.parameters * 4 * 1.2 / 1e6

    def size_mb(self, facts: ModelFacts) -> float:
        return facts.parameters * (4 if self.precision == "fp32" else 2) / 1e6

    def disk_mb(self, facts: ModelFacts) -> float:
        # The exporter writes the graph to a temporary folder first, at most in 32 bits.
        return (self.size_mb(facts) or 0.0) + facts.parameters * 4 / 1e6
