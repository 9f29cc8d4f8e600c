"""Dynamic activation precision: how the engine rounds activations when the weights are integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from quicksilver.nouns.technique import Choices, Technique


class Activations(Technique):
    """Set the group over which activations are rounded to INT8 on the fly; 0 keeps them in 16 bits.

    Large groups are faster in prefill and lose more quality; 0 is the most exact and the slowest.
    """

    needs = frozenset({"integer weights", "default activations"})
    takes = frozenset({"default activations"})
    gives = frozenset({"chosen activations"})
    changes_output = True

    group_size: Annotated[
        int, Choices(64, 0), Field(ge=0, description="activations that share a scale; 0: no rounding")
    ] = 0

    def settings(self) -> Mapping[str, Any]:
        return {"activation_group_size": self.group_size}
