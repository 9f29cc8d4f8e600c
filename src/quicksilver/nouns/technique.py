"""Technique: one step of a recipe. Its annotated fields are the search space, the flags and the schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from quicksilver.nouns.base import Noun
from quicksilver.nouns.choices import Choices, choices_of

__all__ = ["Choices", "Step", "Technique"]

if TYPE_CHECKING:
    from quicksilver.nouns.model import Model, ModelFacts


@dataclass(slots=True)
class Step:
    """What a build step gets: folders, calibration texts and a place to say how far it is."""

    source: Path
    """The folder that the step before it left (a Hugging Face directory for the first)."""
    target: Path
    """An empty folder to fill."""
    format: str
    facts: ModelFacts
    calibration: Sequence[Sequence[int]] = ()
    """Token ids of the workload's calibration split."""
    say: Callable[[str], None] = field(default=lambda _: None)
    apart_mb: float = 0.0
    """Peak resident memory of a process that the step started for its work, MB: it says so, and the worker adds its own."""


class Technique(Noun):
    """One step of a recipe. `needs` must hold before it, `takes` stops holding, `gives` holds after it."""

    needs: ClassVar[frozenset[str]] = frozenset()
    takes: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()
    formats: ClassVar[frozenset[str]] = frozenset()
    """The formats of engines that it is for; none: any, as far as the engine doesn't refuse it (`Engine.check`)."""
    builds: ClassVar[bool] = False
    """Whether it writes files (and so runs in a worker), or only sets how the engine serves."""
    calibrated: ClassVar[bool] = False
    """Whether the build reads the workload's calibration split."""
    changes_output: ClassVar[bool] = False
    """Whether greedy output may differ from the as-is model's by more than rounding."""
    lossless: ClassVar[bool] = False
    """Whether it claims that greedy answers are what they are without it: it changes how a token is come by, never which.

    Such a technique can be switched off by its settings alone; `certify` does that and holds it to its claim.
    """
    each: ClassVar[bool] = False
    """Whether a search tries it with each of its choices, and not with the finest that fits alone."""
    revision: ClassVar[int] = 1
    """Raised when the same fields would build something else than before."""

    @classmethod
    def name(cls) -> str:
        """The name in recipes and on the command line: the file's name, with dashes."""
        return cls.__module__.rpartition(".")[2].replace("_", "-")

    @property
    def label(self) -> str:
        """A short form for tables, with the fields that differ from their defaults."""
        changed = [
            f"{key}={value.name if isinstance(value, Path) else value}"
            for key, value in self.model_dump(exclude_defaults=True).items()
            if value is not None
        ]
        return self.name() + (f"({', '.join(changed)})" if changed else "")

    @classmethod
    def space(cls) -> Mapping[str, tuple[Any, ...]]:
        """The values that a search tries, for each field that says so."""
        return choices_of(cls)

    def identity(self) -> Any:
        return {"technique": self.name(), "revision": self.revision, **self.model_dump(mode="json")}

    def document(self) -> dict[str, Any]:
        """Return its name and fields as a JSON object, which `techniques.make` reads back."""
        return {"name": self.name(), **self.model_dump(mode="json")}

    def check(self, facts: ModelFacts) -> None:
        """Raise IllegalRecipeError if it can't be applied to a model of such a shape."""

    def check_model(self, model: Model) -> None:
        """Raise IllegalRecipeError if it can't be applied to this very model, whose files it may read."""

    def build(self, step: Step) -> None:
        """Fill `step.target` from `step.source`. Runs in a process of its own, which has the heavy stack."""
        raise TypeError(f"{self.name()} builds nothing")

    def settings(self) -> Mapping[str, Any]:
        """The engine settings that it sets."""
        return {}

    def build_memory_mb(self, facts: ModelFacts) -> float:
        """Estimate the peak resident memory of the build step, MB."""
        return 0.0

    def size_mb(self, facts: ModelFacts) -> float | None:
        """Estimate the weights on disk after the step, MB; None if it leaves them as they are."""
        return None

    def disk_mb(self, facts: ModelFacts) -> float:
        """Estimate the most that the build step has on disk at once beyond what was there, MB."""
        return self.size_mb(facts) or 0.0
