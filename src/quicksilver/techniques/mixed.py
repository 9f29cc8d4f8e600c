"""Mixed INT4 and INT8 weights under a budget of bits: the layers that suffer most keep 8."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.technique import Choices, Step
from quicksilver.techniques._weights import Grouped


class Mixed(Grouped):
    """Spend a mean number of bits a weight: 4 where activations vary least, 8 elsewhere."""

    calibrated = True

    bits: Annotated[float, Choices(6.0), Field(gt=4, lt=8, description="mean bits of a linear layer's weight")] = 6.0
    awq: Annotated[bool, Field(description="scale salient channels up first, as AWQ does")] = True

    def build(self, step: Step) -> None:
        from quicksilver.engines.openvino import ir

        ir.compress(
            step,
            mode=self.nncf_mode,
            group_size=self.group_size,
            ratio=(8 - self.bits) / 4,
            awq=self.awq,
            sensitivity="max_activation_variance",
        )

    def size_mb(self, facts: ModelFacts) -> float:
        return facts.parameters * (self.bits + 1.2) / 8 / 1e6
