"""Compile ahead of time: the build leaves the compiled graph, so that the first start is as fast as those after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quicksilver.nouns.technique import Technique


class Compile(Technique):
    """Compile the graph at build, for this machine and engine version; it is kept in the user's cache folder."""

    needs = frozenset({"engine format", "uncompiled"})
    takes = frozenset({"uncompiled"})
    formats = frozenset({"openvino-ir", "hf", "fake"})
    gives = frozenset({"compiled"})
    lossless = True

    def settings(self) -> Mapping[str, Any]:
        return {"compiled_cache": True}
