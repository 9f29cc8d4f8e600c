"""What a search knows: its inputs, and each recipe on its way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from quicksilver.bench.judge import Judge
from quicksilver.bench.metrics import TaskMetric
from quicksilver.bench.quality import PromptLogprobs
from quicksilver.errors import BuildError
from quicksilver.nouns.artifact import Artifact
from quicksilver.nouns.goal import Goal
from quicksilver.nouns.hardware import Price
from quicksilver.nouns.model import Model
from quicksilver.nouns.recipe import Recipe
from quicksilver.nouns.score import Figure, Quality
from quicksilver.nouns.technique import Technique
from quicksilver.nouns.workload import Workload
from quicksilver.search import space
from quicksilver.search.run import Run


@dataclass(slots=True)
class Entry:
    """A recipe on its way through the search."""

    recipe: Recipe
    stack: tuple[Technique, ...]
    artifact: Artifact | None = None
    build_s: float | None = None
    quality: Quality | None = None
    logprobs: list[PromptLogprobs] = field(default_factory=list)
    status: Literal["measured", "screened", "left out", "failed"] = "measured"
    reason: str = ""
    rounds: list[int] = field(default_factory=list)
    """The rounds that its speed is taken from."""

    @property
    def hash(self) -> str:
        return self.recipe.hash


@dataclass(slots=True)
class Search:
    """One optimisation: what it is given, and what it has found so far."""

    run: Run
    model: Model
    workload: Workload
    goal: Goal
    price: Price
    engine: str
    command: str
    metrics: tuple[TaskMetric, ...] = ()
    """What answers are scored by; the gate looks at the first."""
    judge: Judge | None = None
    entries: list[Entry] = field(default_factory=list)
    left_out: list[space.LeftOut] = field(default_factory=list)
    token_ids: dict[str, list[int]] = field(default_factory=dict)
    own: dict[str, list[int]] = field(default_factory=dict)
    """Token ids of the as-is model's greedy answers to some prompts, which its recipes are scored on, too."""
    next_round: int = 0
    used: int = 0
    """Prompts of the search split that rounds have taken."""
    entry_s: float | None = None
    """Seconds that one entry took in the last short round."""
    proofs_s: list[float] = field(default_factory=list)
    """Seconds that reading prompts took, the as-is model's and each recipe's whose proof had something to read."""
    build_pace: float = 1.0
    """What builds took that were new to this machine, over what was guessed; 1 if they were quicker."""
    trials: int | None = None
    """Recipes to race at most, besides the as-is model and the final; a race that is twice as long counts twice."""
    trials_used: int = 0
    quick: bool = False
    """Try only what builds without calibration, and race the final once."""
    stopped: str = ""
    """Why the search ended, after `because`."""
    cost_model_error: Figure | None = None
    """The cost model's median absolute error on recipes that it hadn't seen, percent."""

    @property
    def baseline(self) -> Entry:
        """The as-is model, which is always the first entry."""
        return self.entries[0]


def artifact_of(entry: Entry) -> Artifact:
    if entry.artifact is None:
        raise BuildError(f"{entry.recipe.label} has no artefact.")
    return entry.artifact
