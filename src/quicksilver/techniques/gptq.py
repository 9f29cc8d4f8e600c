"""GPTQ: 4-bit weights, rounded column by column, the error of each spread over those to come."""

from __future__ import annotations

from quicksilver.nouns.technique import Step
from quicksilver.techniques._weights import FOR_VLLM_TOO, Grouped


class Gptq(Grouped):
    """GPTQ (arXiv 2210.17323), calibrated on the workload's calibration split."""

    formats = FOR_VLLM_TOO
    calibrated = True

    def build(self, step: Step) -> None:
        from quicksilver.engines.openvino import ir

        ir.compress(step, mode=self.nncf_mode, group_size=self.group_size, gptq=True)
