"""INT8 weights, rounded to nearest, one scale a row."""

from __future__ import annotations

from quicksilver.nouns.technique import Step
from quicksilver.techniques._weights import FOR_VLLM_TOO, Mode, Weights


class Int8(Weights):
    """Round the weights to 8 bits without looking at data."""

    formats = FOR_VLLM_TOO

    mode: Mode = "asymmetric"

    def build(self, step: Step) -> None:
        from quicksilver.engines.openvino import ir

        ir.compress(step, mode="int8_asym" if self.mode == "asymmetric" else "int8_sym")
