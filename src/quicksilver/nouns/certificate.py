"""Certificate: whether the techniques that claim to leave greedy answers as they are do so."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from quicksilver.nouns.base import Noun
from quicksilver.nouns.hardware import Hardware
from quicksilver.nouns.score import Figure

CERTIFICATE_VERSION = 1
Verdict = Literal["identical", "near ties only", "fault", "not exercised"]


class Difference(Noun):
    """Where an answer first parts from the reference's."""

    prompt_id: str
    position: int = Field(ge=0, description="of the token in the answer, from 0")
    expected: str = Field(description="the reference's token")
    got: str = Field(description="the other run's token")
    gap: float | None = Field(
        description="nats by which the reference's likeliest token leads the other's; None: not among its 20 likeliest"
    )
    gap_read: float | None = Field(
        None,
        description="the same where the reference reads prompt and answer up to here at once, in steps of another shape; only "
        "looked up for gaps that are no near tie",
    )
    near_tie: bool


class Trial(Noun):
    """One run of all prompts beside the reference run."""

    name: str
    changes: dict[str, Any] = Field(description="engine settings that differ from the reference's")
    streams: int = Field(ge=1)
    passes: int = Field(ge=1, description="times that the prompts were sent; the last is compared")
    prompts: int = Field(ge=1)
    identical: int = Field(ge=0, description="answers that are the reference's, token by token")
    share: Figure = Field(description="of identical answers, with a 95 % Wilson interval")
    tokens: int = Field(ge=0, description="tokens that were compared: those up to each first difference")
    first_min: int | None = Field(None, description="earliest position of a first difference")
    first_median: float | None = None
    gap_median: float | None = Field(None, description="over the differences that have a gap")
    gap_max: float | None = None
    drift_p99: float | None = Field(None, description="of |log p - log p of the reference|, nats, over those tokens")
    differences: tuple[Difference, ...] = ()
    guessed: int | None = Field(None, description="tokens guessed ahead; None where the server doesn't tell")
    accepted: int | None = Field(None, description="guessed tokens that were right")
    exercised: bool | None = Field(None, description="whether the changes did anything; None if that can't be known")
    verdict: Verdict


class Certificate(Noun):
    """What became of greedy answers with each technique that claims to leave them as they are."""

    version: int = CERTIFICATE_VERSION
    created: str = Field(description="ISO 8601, UTC")
    key: str = Field(description="of the artefact")
    label: str
    model: str
    engine: str
    hardware: Hardware
    tools: dict[str, str] = Field(description="versions of the engine and the libraries")
    workload: str
    prompts: int
    streams: int
    max_tokens: int = Field(description="of the longest answer allowed")
    prompt_tokens_max: int
    near_tie: float = Field(description="nats up to which a gap is called a near tie")
    near_tie_share: float = Field(
        description="of the reference's tokens, those whose runner-up is that near: where parting is no fault"
    )
    control: Trial = Field(description="the reference beside itself at another number of streams: the noise floor")
    techniques: tuple[Trial, ...] = Field(description="each technique alone")
    together: Trial | None = Field(None, description="all of them, where there are several")
    verdict: Verdict = Field(description="of the whole recipe")
    remarks: tuple[str, ...] = ()
    seconds: float

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The runs that the verdict is about."""
        return (*self.techniques, *([self.together] if self.together is not None else []))
