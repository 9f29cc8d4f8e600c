"""Result: what an optimisation measured, what it chose and why."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from quicksilver.nouns.base import Noun
from quicksilver.nouns.goal import Goal
from quicksilver.nouns.hardware import Hardware, Price
from quicksilver.nouns.preset import Preset
from quicksilver.nouns.score import Figure, Score
from quicksilver.nouns.speculation import SpeculationTable
from quicksilver.nouns.tradeoff import Crossover, Interactions, Point

RESULT_VERSION = 1


class Candidate(Noun):
    """One recipe of a search: what it is, how far it came, and what was measured of it."""

    label: str
    recipe: dict[str, Any] = Field(description="the recipe as a JSON document")
    recipe_hash: str
    baseline: bool = False
    status: Literal["measured", "screened", "left out", "failed"] = "measured"
    reason: str = Field("", description="why it was left out, failed, or can't win; one sentence")
    eligible: bool = Field(False, description="measured, and within every limit of the goal")
    score: Score = Score()
    build_s: float | None = Field(None, description="seconds its build took; 0 when it was there already")


class Lengths(Noun):
    """Lengths that were really seen, in tokens."""

    prompt_min: int
    prompt_p50: int
    prompt_max: int
    answer_p50: int
    answer_max: int


class Result(Noun):
    """An optimisation from end to end; `result.json` is this document."""

    version: int = RESULT_VERSION
    id: str
    created: str = Field(description="ISO 8601, UTC")
    command: str
    model: str
    model_remark: str = ""
    workload: str
    workload_remark: str = ""
    lengths: Lengths | None = None
    goal: Goal
    price: Price
    hardware: Hardware
    tools: dict[str, str] = Field(default_factory=dict, description="versions of the engine and the libraries")
    candidates: tuple[Candidate, ...] = ()
    best: str | None = Field(None, description="label of the winner; None if nothing meets the limits")
    why: str = Field("", description="why it won, or which limit binds and what comes nearest")
    remarks: tuple[str, ...] = Field((), description="what a reader of the figures has to know")
    seconds: dict[str, float] = Field(default_factory=dict, description="where the time of the run went, by phase")
    peak_memory_mb: float | None = None
    speculation: SpeculationTable | None = Field(None, description="what guessing costs and gains the winner, by load")
    points: tuple[Point, ...] = Field(
        (), description="recipes by price, latency and quality, and the Pareto front of them"
    )
    presets: tuple[Preset, ...] = Field((), description="recipes from the front by name: cost, balanced, latency")
    interactions: Interactions | None = Field(None, description="what the winner's techniques give alone and together")
    crossovers: tuple[Crossover, ...] = Field((), description="pairs of recipes, and where one overtakes the other")
    cost_model_error: Figure | None = Field(
        None,
        description="median absolute error of the cost model on recipes that it hadn't seen, percent; `count` says how many",
    )

    def candidate(self, label: str) -> Candidate | None:
        """The candidate of that label."""
        return next((c for c in self.candidates if c.label == label), None)

    @property
    def baseline(self) -> Candidate | None:
        """The as-is model that the others are compared with."""
        return next((c for c in self.candidates if c.baseline), None)
