"""Prompt lookup: speculate with what followed the same few tokens earlier in the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from quicksilver.nouns.technique import Choices, Technique


class PromptLookup(Technique):
    """N-gram speculation from the prompt and the answer so far (github.com/apoorvumang/prompt-lookup-decoding).

    How many tokens are guessed follows the load and how often such guesses were right.
    """

    needs = frozenset({"plain decoding"})
    takes = frozenset({"plain decoding"})
    gives = frozenset({"speculation"})
    lossless = True

    tokens: Annotated[
        int,
        Choices(12, 5, 3),
        Field(ge=1, le=32, description="tokens guessed ahead at most; fewer where they don't pay"),
    ] = 12
    max_ngram: Annotated[int, Field(ge=1, le=8, description="longest n-gram that is looked up")] = 8

    def settings(self) -> Mapping[str, Any]:
        return {"speculation": {"kind": "prompt_lookup", "tokens": self.tokens, "max_ngram": self.max_ngram}}
