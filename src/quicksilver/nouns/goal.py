"""Goal: what to maximise or minimise, under which limits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quicksilver.nouns.base import Noun


class Goal(Noun):
    """What a search optimises, and what a recipe must keep to."""

    metric: Literal["cost", "throughput", "latency"] = "cost"
    max_quality_loss: float = Field(1.0, ge=0, description="percent, against the as-is model")
    ttft_p95_ms: float | None = Field(None, gt=0)
    itl_p95_ms: float | None = Field(None, gt=0)
    memory_mb: float | None = Field(None, gt=0)
