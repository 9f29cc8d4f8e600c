"""Settings: how an engine serves an artefact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from quicksilver.nouns.base import Noun
from quicksilver.nouns.choices import Choices


class Speculation(Noun):
    """How an engine guesses tokens ahead of the model."""

    kind: Literal["prompt_lookup", "draft", "eagle", "eagle3"]
    tokens: Annotated[int, Field(ge=1, le=32)] = 12
    max_ngram: Annotated[int, Field(ge=1, le=8)] = 8
    draft: str | None = Field(None, description="the folder of the draft, or of the EAGLE head, inside the artefact")
    adapts: bool = Field(
        True, description="take fewer where the load makes them cost more than they gain, where the engine can"
    )


class Settings(Noun):
    """How an engine serves; techniques fill in their part, the user may set the rest.

    `Choices` are what a search tries, as far as the engine has a use for them (`Engine.choices`). A field that a technique sets
    is searched through that technique.
    """

    threads: Annotated[int, Choices(0, 32, 16, 8, 4, 2, 1), Field(ge=0)] = Field(
        0, description="inference threads; 0 takes every core"
    )
    max_streams: Annotated[int, Choices(64, 32, 16, 8, 4), Field(ge=1)] = Field(
        64, description="sequences decoded at once"
    )
    max_batched_tokens: Annotated[int, Choices(2048, 512, 256, 128), Field(ge=16)] = Field(
        2048, description="tokens in one forward pass"
    )
    kv_cache_gb: Annotated[float, Choices(0, 16, 4, 1), Field(ge=0)] = Field(
        0, description="upper limit of the KV cache, GB; 0 is what the streams can use, as far as the machine has room"
    )
    kv_precision: Annotated[str, Choices("default", "f16", "u8")] = Field(
        "default", description="default, f16, bf16, u8, u4 or fp8, as far as the engine knows it"
    )
    activation_group_size: Annotated[int, Field(ge=0)] | None = Field(
        None, description="activations that share a scale when they are rounded on the fly; 0 keeps 16 bits"
    )
    prefix_caching: bool = False
    speculation: Speculation | None = None
    compiled_cache: bool = Field(True, description="keep the compiled graph from one start to the next")
    properties: Mapping[str, str | int | float | bool] = Field(
        default_factory=dict, description="handed to the engine as they are"
    )
