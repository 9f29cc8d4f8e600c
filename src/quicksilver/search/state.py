"""What a search knows: its inputs, and each recipe on its way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from quicksilver.bench.judge import Judge
from quicksilver.bench.metrics import TaskMetric
from quicksilver.bench.quality import PromptLogprobs
from quicksilver.bench.regret import Said
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
    said: list[Said] = field(default_factory=list)
    """Its answers as the as-is model reads them, where its engine tells no log-probabilities of a prompt."""
    status: Literal["measured", "screened", "left out", "failed"] = "measured"
    reason: str = ""
    rounds: list[int] = field(default_factory=list)
    """The rounds that its speed is taken from."""
    label: str = ""
    """What tables call it: the recipe's label, after its engine's name where a search has several."""

    def __post_init__(self) -> None:
        self.label = self.label or self.recipe.label

    @property
    def hash(self) -> str:
        return self.recipe.hash

    @property
    def engine(self) -> str:
        return self.recipe.engine


@dataclass(slots=True)
class Search:
    """One optimisation: what it is given, and what it has found so far."""

    run: Run
    model: Model
    workload: Workload
    goal: Goal
    price: Price
    engine: str
    """The engine whose as-is model is what everything is compared with."""
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
    others: tuple[str, ...] = ()
    """Further engines, whose recipes are measured beside those of the first."""
    reader_engine: str = ""
    """An engine whose as-is model reads answers, where the first tells no log-probabilities of a prompt."""
    reader: Entry | None = None
    """The model as it comes on that engine; it isn't in the race."""
    lost: dict[str, str] = field(default_factory=dict)
    """Of these the ones that failed with the model as it comes, and why: nothing more is tried on them."""

    @property
    def engines(self) -> tuple[str, ...]:
        """All engines, the one of the as-is model first."""
        return (self.engine, *self.others)

    def label(self, recipe: Recipe) -> str:
        """What tables call a recipe."""
        return self.label_of(recipe.engine, recipe.label)

    def label_of(self, engine: str, label: str) -> str:
        """What tables call something of an engine: where there are several, the engine's name comes first."""
        return f"{engine}: {label}" if self.others else label

    def lose(self, engine: str, reason: str) -> None:
        """Give an engine up that fails with the model as it comes: what was built for it is out of the race, and nothing more is tried."""
        self.lost.setdefault(engine, reason)
        for entry in self.entries:
            if entry.engine == engine and entry.status == "measured":
                entry.status, entry.reason = "failed", reason

    @property
    def baseline(self) -> Entry:
        """The as-is model, which is always the first entry."""
        return self.entries[0]


def artifact_of(entry: Entry) -> Artifact:
    if entry.artifact is None:
        raise BuildError(f"{entry.label} has no artefact.")
    return entry.artifact
