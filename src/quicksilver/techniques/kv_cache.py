"""KV-cache precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from quicksilver.nouns.technique import Choices, Technique


class KvCache(Technique):
    """Keep the keys and values of past tokens in a chosen precision; fewer bits hold more streams."""

    needs = frozenset({"default kv cache"})
    takes = frozenset({"default kv cache"})
    gives = frozenset({"chosen kv cache"})
    changes_output = True

    precision: Annotated[
        Literal["f32", "f16", "bf16", "u8", "u4", "fp8"],
        Choices("u8", "fp8"),
        Field(description="of cached keys and values; which of them an engine knows depends on it"),
    ] = "u8"

    def settings(self) -> Mapping[str, Any]:
        return {"kv_precision": self.precision}
