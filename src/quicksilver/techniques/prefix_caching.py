"""Prefix caching: prompts that begin alike share the work of their beginning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quicksilver.nouns.technique import Technique


class PrefixCaching(Technique):
    """Keep the KV blocks of finished prompts and reuse those that a new prompt begins with."""

    needs = frozenset({"no prefix cache"})
    takes = frozenset({"no prefix cache"})
    gives = frozenset({"prefix cache"})
    lossless = True

    def settings(self) -> Mapping[str, Any]:
        return {"prefix_caching": True}
