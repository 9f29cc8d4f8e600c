"""SloSearch: the loads that were tried to find the highest one that meets an Slo, and what each of them showed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quicksilver.nouns.base import Noun
from quicksilver.nouns.score import Figure, Speed
from quicksilver.nouns.slo import Slo, Term

Outcome = Literal["meets", "fails", "unsure"]
LoadUnit = Literal["streams", "requests/s"]


class Finding(Noun):
    """What Samples say of one term."""

    term: Term
    figure: Figure = Field(description="in the term's unit; no high end where too few requests were seen to have one")
    outcome: Outcome
    probability: float = Field(description="share of bootstrap draws that keep to it, 0 to 1")
    margin: float = Field(
        description="room under the limit (over it, for a rate) as a share of it; negative when it is broken"
    )
    requests: int
    remark: str = ""


class Judgement(Noun):
    """What Samples say of an Slo, and which of its terms binds."""

    findings: tuple[Finding, ...] = Field(min_length=1)
    outcome: Outcome
    probability: float = Field(description="share of bootstrap draws that keep to all terms at once, 0 to 1")

    @property
    def binding(self) -> Finding:
        """The term with the least room, or that is broken by most."""
        return min(self.findings, key=lambda finding: finding.margin)


class Goodput(Noun):
    """Requests that met the limits of their own: DistServe's goodput (Zhong et al., OSDI 2024, arXiv 2401.09670)."""

    good: int
    requests: int
    share: Figure = Field(description="good requests of all, failed ones among these; 0 to 1, Wilson's interval")
    requests_per_s: float | None = Field(None, description="good requests a second; None where no time passed")


class Attempt(Noun):
    """One load that was tried."""

    load: float = Field(gt=0, description="streams, or requests a second")
    runs: int = Field(description="2 where the first left it open")
    requests: int = Field(description="requests sent")
    judged: int = Field(description="of these, the ones that were sent at full load")
    seconds: float
    judgement: Judgement
    goodput: Goodput
    speed: Speed


class SloSearch(Noun):
    """The highest load that meets an Slo, and how sure that is."""

    slo: Slo
    unit: LoadUnit
    needed: int = Field(description="requests that one look at a load takes, to judge the Slo's percentiles")
    attempts: tuple[Attempt, ...] = Field((), description="by load")
    best: float | None = Field(None, description="the highest load that surely meets it; None if none does")
    above: float | None = Field(
        None, description="the lowest load above that doesn't, or can't be said to; None if none was found"
    )
    sure: float | None = Field(
        None, description="that `best` meets it and `above` doesn't, 0 to 1, by the spread of requests within the runs"
    )
    verdict: str = Field("", description="the answer in a sentence or two")
    ended: str = Field("", description="why it ended before it was done")

    def at(self, load: float) -> Attempt | None:
        """The attempt at a load."""
        return {attempt.load: attempt for attempt in self.attempts}.get(load)
