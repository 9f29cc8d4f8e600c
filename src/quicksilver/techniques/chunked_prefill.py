"""Chunked prefill: long prompts are read in pieces, between which the other streams go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from quicksilver.nouns.technique import Choices, Technique


class ChunkedPrefill(Technique):
    """Bound the tokens of a forward pass, so that a long prompt holds up no stream for long (arXiv 2308.16369)."""

    needs = frozenset({"whole prefill"})
    takes = frozenset({"whole prefill"})
    gives = frozenset({"chunked prefill"})
    lossless = True

    tokens: Annotated[
        int,
        Choices(256, 512, 128),
        Field(ge=16, description="in a forward pass at most; those of running streams come first"),
    ] = 256

    def settings(self) -> Mapping[str, Any]:
        return {"max_batched_tokens": self.tokens}
