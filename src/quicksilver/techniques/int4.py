"""INT4 weights, rounded to nearest, one scale a group."""

from __future__ import annotations

from quicksilver.nouns.technique import Step
from quicksilver.techniques._weights import FOR_VLLM_TOO, Grouped


class Int4(Grouped):
    """Round the weights to 4 bits without looking at data; the embeddings stay in 8."""

    formats = FOR_VLLM_TOO

    def build(self, step: Step) -> None:
        from quicksilver.engines.openvino import ir

        ir.compress(step, mode=self.nncf_mode, group_size=self.group_size)
