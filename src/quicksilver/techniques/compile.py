"""Compile once: the engine keeps the compiled graph from its first start to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quicksilver.nouns.technique import Technique


class Compile(Technique):
    """Keep the compiled graph in the user's cache folder, for this artefact, instruction set and engine version."""

    needs = frozenset({"engine format", "uncompiled"})
    takes = frozenset({"uncompiled"})
    gives = frozenset({"compiled"})
    lossless = True

    def settings(self) -> Mapping[str, Any]:
        return {"compiled_cache": True}
