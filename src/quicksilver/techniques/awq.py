"""AWQ: 4-bit weights whose salient channels are scaled up first, found on the workload's own prompts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quicksilver.nouns.technique import Choices, Step
from quicksilver.techniques._weights import FOR_VLLM_TOO, Grouped


class Awq(Grouped):
    """Activation-aware weight quantisation (arXiv 2306.00978), calibrated on the workload's calibration split."""

    formats = FOR_VLLM_TOO
    calibrated = True

    bits: Annotated[Literal[4], Field(description="of each weight of a linear layer")] = 4
    scale_estimation: Annotated[bool, Choices(True), Field(description="fit each scale to the activations, too")] = True

    def build(self, step: Step) -> None:
        from quicksilver.engines.openvino import ir

        ir.compress(
            step,
            mode=self.nncf_mode,
            group_size=self.group_size,
            awq=True,
            scale_estimation=self.scale_estimation,
        )
