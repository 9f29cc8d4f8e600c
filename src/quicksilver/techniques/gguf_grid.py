"""A GGUF's own 4-bit grid, kept: what was rounded once is not rounded again."""

from __future__ import annotations

from quicksilver.nouns.technique import Step
from quicksilver.techniques._weights import Weights


class GgufGrid(Weights):
    """Put a Q4_0 or Q4_1 GGUF's integers, scales and offsets into the graph as they are.

    Converting such a file to 16 bits and quantising anew rounds twice. The offset of a group is rarely a whole
    multiple of its scale, so it stays a 16-bit number where other 4-bit formats round it to an integer.
    """

    needs = Weights.needs | {"gguf grid", "unrotated"}
    # Rotated weights lie on no grid.
    takes = Weights.takes | {"unrotated"}
    gives = frozenset()
    bits_per_weight = 5.6

    def build(self, step: Step) -> None:
        from quicksilver.engines.openvino import grid

        grid.keep(step)
