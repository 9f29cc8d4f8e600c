"""What sources of step times share: the points that are asked for, between which one interpolates, and what links there are."""

from __future__ import annotations

from quicksilver.nouns.model import ModelFacts

STREAMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PROMPTS = (64, 256, 512, 1024, 2048, 4096, 8192)
BESIDE = (0, 4, 16, 64, 256)
_CONTEXTS = (128, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 131_072)


def contexts(model: ModelFacts) -> tuple[int, ...]:
    """Return the numbers of tokens in a stream's cache, up to what a model can take."""
    return tuple(context for context in _CONTEXTS if context <= model.max_positions) or (model.max_positions,)


HOST_LINK_GB_S = 64.0
"""A link up to this is PCIe, through the host; above it devices are joined to each other (NVLink, NeuronLink)."""
