"""Steps that were timed: what a forward pass of one model takes on this machine, by what is in it."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from quicksilver.nouns.base import Noun
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.prediction import Precision


class StepShape(Noun):
    """What a step computes: tokens of streams that decode, and of one prompt that is read beside them."""

    streams: int = Field(0, ge=0, description="that decode")
    context: int = Field(0, ge=0, description="tokens in the cache of each of them")
    ahead: int = Field(1, ge=1, description="tokens that each computes: its last one and those guessed")
    prompt: int = Field(0, ge=0, description="tokens of a prompt, from its beginning")
    padding: int = Field(0, ge=0, description="tokens computed besides and dropped")

    @property
    def tokens(self) -> int:
        """All tokens that go through the layers."""
        return self.streams * self.ahead + self.prompt + self.padding

    @property
    def rows(self) -> int:
        """Tokens whose logits are computed: of a prompt the last."""
        return self.streams * self.ahead + self.padding + (1 if self.prompt else 0)

    @property
    def sequences(self) -> int:
        return self.streams + bool(self.prompt) + bool(self.padding)


class TimedStep(Noun):
    """One shape and its times, each the median of several steps."""

    shape: StepShape
    ms: float | None = Field(None, gt=0, description="after a step of the same shape; None for one with a prompt")
    new_ms: float | None = Field(None, gt=0, description="after a step of another shape")


class StepTimings(Noun):
    """What an engine says of an artefact's steps, and under which conditions they were timed."""

    machine: str
    engine: str = Field(description="name and version")
    threads: int = Field(ge=1)
    steps: tuple[TimedStep, ...]


class StepSet(Noun):
    """All that was timed of one artefact under one number of threads."""

    version: int = 1
    date: str = Field(description="ISO 8601, UTC")
    machine: str
    engine: str = Field(description="name and version")
    threads: int = Field(ge=1)
    cores: int = Field(ge=1, description="that the machine had")
    model: str
    facts: ModelFacts
    weights: Precision
    group: int = Field(0, ge=0, description="weights that share a scale; 0 for a row")
    steps: tuple[TimedStep, ...]

    def identity(self) -> list[object]:
        """What a later measurement takes the place of: the same model, weights and threads on the same machine."""
        return [self.machine, self.engine, self.threads, self.facts.model_dump(mode="json"), self.weights, self.group]


def shapes(
    *,
    streams: Sequence[int] = (1, 2, 4, 8, 16, 32),
    contexts: Sequence[int] = (128, 1024),
    guesses: Sequence[tuple[int, int]] = ((1, 1), (1, 3), (1, 7), (4, 1), (4, 3), (8, 7)),
    prompts: Sequence[int] = (16, 64, 256, 768, 2048),
    beside: Sequence[tuple[int, int]] = ((256, 4), (512, 12)),
) -> tuple[StepShape, ...]:
    """Return the shapes that a fit wants: streams by contexts, (streams, guesses), prompts, and (prompt, streams beside it)."""
    found = [StepShape(streams=n, context=c) for c in contexts for n in streams]
    found += [StepShape(streams=n, context=contexts[-1], ahead=1 + k) for n, k in guesses]
    found += [StepShape(prompt=tokens) for tokens in prompts]
    found += [StepShape(prompt=tokens, streams=n, context=contexts[-1]) for tokens, n in beside]
    return tuple(found)
