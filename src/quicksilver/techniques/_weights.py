"""What the techniques that round weights have in common."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from quicksilver.errors import IllegalRecipeError
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.technique import Choices, Technique

GroupSize = Annotated[int, Choices(32, 64, 128), Field(description="weights that share a scale; -1: a whole row")]
Mode = Annotated[
    Literal["asymmetric", "symmetric"],
    Choices("asymmetric"),
    Field(description="asymmetric: a zero point beside each scale"),
]


class Weights(Technique):
    """Rounds weights, once: it takes float weights and leaves integers."""

    needs = frozenset({"float weights", "uncompiled"})
    takes = frozenset({"float weights"})
    gives = frozenset({"integer weights"})
    formats = frozenset({"openvino-ir", "fake"})
    builds = True
    changes_output = True

    bits_per_weight: ClassVar[float] = 8.1

    def build_memory_mb(self, facts: ModelFacts) -> float:
        # Measured on the 135M: 1.0 GB without calibration, 1.5 to 2.0 GB with it.
        return (1500 + facts.parameters * 10 / 1e6) if self.calibrated else (500 + facts.parameters * 6 / 1e6)

    def size_mb(self, facts: ModelFacts) -> float:
        return facts.parameters * self.bits_per_weight / 8 / 1e6


FOR_VLLM_TOO = Weights.formats | {"hf"}
"""The formats of techniques that llm-compressor builds for vLLM, besides NNCF for OpenVINO."""


class Grouped(Weights):
    """Rounds linear layers to 4 bits in groups, and embeddings to 8."""

    bits_per_weight = 5.4

    group_size: GroupSize = 32
    mode: Mode = "asymmetric"

    @property
    def nncf_mode(self) -> str:
        """NNCF's name of the mode."""
        return "int4_asym" if self.mode == "asymmetric" else "int4_sym"

    def check(self, facts: ModelFacts) -> None:
        check_group_size(self, self.group_size, facts)


def check_group_size(technique: Technique, group_size: int, facts: ModelFacts) -> None:
    """Raise IllegalRecipeError if a group size doesn't divide the rows of the model's matrices."""
    if group_size == -1:
        return
    if group_size < 1:
        raise IllegalRecipeError(f"{technique.name()}: a group size is positive, or -1 for whole rows.")
    widths = {
        "hidden size": facts.hidden_size,
        "intermediate size": facts.intermediate_size,
        "attention width": facts.heads * facts.head_dim,
    }
    for what, width in widths.items():
        if width % group_size:
            raise IllegalRecipeError(
                f"{technique.name()} with groups of {group_size} doesn't fit this model: "
                f"{group_size} doesn't divide its {what} of {width}."
            )
