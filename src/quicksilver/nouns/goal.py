"""Goal: what to maximise or minimise, under which limits."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from quicksilver.nouns.base import Noun

TASK_GUARD = 10.0
"""Percent of the task's score. Some fifty answers tell a broken task from a whole one, and not 1 % from 5 %: so without a limit of the user's
own nothing has to be proved, and what is shown to lose more than this is broken (docs/decisions/0005-gate.md)."""


class Goal(Noun):
    """What a search optimises, and what a recipe must keep to."""

    metric: Literal["cost", "throughput", "latency"] = "cost"
    max_quality_loss: float = Field(1.0, ge=0, description="percent, against the as-is model")
    max_task_loss: float | None = Field(
        None,
        ge=0,
        description=f"percent of the task's score, to be proved; without it a recipe may not be shown to lose over {TASK_GUARD:g} %",
    )
    ttft_p95_ms: float | None = Field(None, gt=0)
    itl_p95_ms: float | None = Field(None, gt=0)
    memory_mb: float | None = Field(None, gt=0)

    def identity(self) -> Any:
        # Without a limit of the task the hash is the one that it was before there was such a limit: runs are taken up again by it.
        return self.model_dump(mode="json", exclude={"max_task_loss"} if self.max_task_loss is None else None)
