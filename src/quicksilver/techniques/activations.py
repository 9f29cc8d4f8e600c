"""Dynamic activation precision: how the engine rounds activations when the weights are integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.technique import Choices, Technique
from quicksilver.techniques._weights import check_group_size


class Activations(Technique):
    """Set the group over which activations are rounded to INT8 on the fly; 0 keeps them in 16 bits.

    Large groups are faster in prefill and lose more quality; 0 is the most exact and the slowest.
    """

    needs = frozenset({"integer weights", "default activations"})
    takes = frozenset({"default activations"})
    formats = frozenset({"openvino-ir", "fake"})
    gives = frozenset({"chosen activations"})
    changes_output = True

    group_size: Annotated[
        int, Choices(256, 192, 128, 64, 0), Field(ge=0, description="activations that share a scale; 0: no rounding")
    ] = 0

    def check(self, facts: ModelFacts) -> None:
        # Where a group doesn't divide a matrix's rows, the engine takes a path that is slower than with small groups.
        if self.group_size:
            check_group_size(self, self.group_size, facts)

    def settings(self) -> Mapping[str, Any]:
        return {"activation_group_size": self.group_size}
