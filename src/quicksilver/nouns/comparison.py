"""Comparison: what the quality gate says about one server beside another, without a search."""

from __future__ import annotations

from pydantic import Field

from quicksilver.nouns.base import Noun
from quicksilver.nouns.goal import Goal
from quicksilver.nouns.score import Quality

COMPARISON_VERSION = 1


class Comparison(Noun):
    """One candidate held against the model as it is."""

    version: int = COMPARISON_VERSION
    created: str = Field(description="ISO 8601, UTC")
    command: str
    as_is: str
    candidate: str
    workload: str
    goal: Goal
    quality: Quality
    remarks: tuple[str, ...] = ()
    seconds: float

    @property
    def passes(self) -> bool:
        """Whether the candidate has passed: what is undecided has not."""
        return self.quality.judgement is not None and self.quality.judgement.outcome == "passes"
