"""Importance-matrix quantisation: llama.cpp's types, rounded so that what the workload uses most stays exact."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.technique import Choices, Step, Technique
from quicksilver.techniques.k_quant import BITS, KQuant


class Imatrix(Technique):
    """K-quants whose rounding error is weighted by the squares of the inputs, measured on the workload's calibration split.

    (github.com/ggml-org/llama.cpp/pull/4861). It costs nothing when the model is served.
    """

    needs = KQuant.needs
    takes = KQuant.takes
    gives = KQuant.gives
    formats = KQuant.formats
    builds = True
    calibrated = True
    changes_output = True
    each = True

    type: Annotated[
        Literal["q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_nl", "q3_k_m"],
        Choices("q4_k_m", "q4_0", "q3_k_m"),
        Field(description="bits and blocks; _k types mix in more bits where it hurts"),
    ] = "q4_k_m"

    def check(self, facts: ModelFacts) -> None:
        KQuant(type=self.type).check(facts)

    def build(self, step: Step) -> None:
        from quicksilver.engines.llamacpp import files

        files.quantize(step, self.type, calibrated=True)

    def build_memory_mb(self, facts: ModelFacts) -> float:
        # The float32 model in torch, which read it from float16.
        return 1300 + facts.parameters * 6.5 / 1e6

    def size_mb(self, facts: ModelFacts) -> float:
        return facts.parameters * BITS[self.type] / 8 / 1e6

    def disk_mb(self, facts: ModelFacts) -> float:
        return self.size_mb(facts) + facts.parameters * 2 / 1e6
