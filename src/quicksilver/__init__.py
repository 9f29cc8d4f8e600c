"""Quicksilver: find, prove and deploy the best way to serve a language model on your own machine."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from quicksilver.api import Optimization, benchmark, compare, optimize, plan_deployment
    from quicksilver.errors import QuicksilverError
    from quicksilver.nouns import Artifact, Benchmark, Goal, Recipe, Result, Workload

_HOMES = {
    # `build`, `plan` and `serve` are called in quicksilver.api: here those names are packages, now or later. `plan` there is that of a
    # build; what `quicksilver plan` does is `plan_deployment`.
    **dict.fromkeys(("Optimization", "benchmark", "compare", "optimize", "plan_deployment"), "quicksilver.api"),
    **dict.fromkeys(("Artifact", "Benchmark", "Goal", "Recipe", "Result", "Workload"), "quicksilver.nouns"),
    "QuicksilverError": "quicksilver.errors",
}

__all__ = [
    "Artifact", "Benchmark", "Goal", "Optimization", "QuicksilverError", "Recipe", "Result", "Workload",
    "__version__", "benchmark", "compare", "optimize", "plan_deployment",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import quicksilver` costs nothing."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    from quicksilver.techniques import by_class_name

    found = by_class_name(name)
    if found is None:
        raise AttributeError(f"module 'quicksilver' has no attribute {name!r}")
    return found
