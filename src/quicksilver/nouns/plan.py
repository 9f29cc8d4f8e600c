"""Plan: which machine and which recipe meet an SLO for the least money; every figure is predicted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quicksilver.nouns.base import Noun
from quicksilver.nouns.instance import Commitment
from quicksilver.nouns.prediction import Basis, Layout, PlannedLoad, Prediction, Refused, Times
from quicksilver.nouns.slo import Slo, Term


class Held(Noun):
    """One limit of an SLO, and what is predicted for it."""

    term: Term
    value: float = Field(description="in the limit's unit")
    holds: bool
    share: float = Field(description="of the limit: above 1 it is broken, by so much")


class Option(Noun):
    """One instance with one layout, held to the SLO."""

    prediction: Prediction
    held: tuple[Held, ...] = ()
    meets: bool | None = Field(None, description="None without an SLO")
    on_front: bool = Field(False, description="no other option has both a lower price per token and a shorter answer")

    @property
    def label(self) -> str:
        """What it is called in sentences: `ml.p5.48xlarge with fp8 · TP8`."""
        return f"{self.prediction.instance} with {self.prediction.layout.label}"

    @property
    def worst(self) -> Held | None:
        """The limit that is nearest to being broken, or most broken; None without an SLO."""
        return max(self.held, key=lambda held: held.share, default=None)


class CurvePoint(Noun):
    """A closed loop of some streams."""

    streams: int
    tokens_per_s: float
    ttft_ms: Times
    itl_ms: Times
    e2e_ms: Times


class Curve(Noun):
    """How one instance with its best layout trades latency for throughput as streams are added."""

    instance: str
    layout: Layout
    points: tuple[CurvePoint, ...]


class FleetPoint(Noun):
    """Some machines under one load of requests that come at moments of their own."""

    machines: int
    requests_per_s: float = Field(description="that arrive")
    tokens_per_s: float = Field(description="output tokens that they ask for")
    share: float = Field(description="of the load that the fleet is sized for")
    ttft_ms: Times
    itl_ms: Times
    e2e_ms: Times
    held: tuple[Held, ...] = ()
    keeps_up: bool = Field(description="whether answers end as fast as requests come")
    meets: bool


class Fleet(Noun):
    """How many machines of one kind a load takes, with queues: requests come as a Poisson process or as they were recorded."""

    instance: str
    layout: Layout
    replicas: int = Field(description="copies of the model on a machine")
    basis: Basis
    arrivals: Literal["poisson", "trace"]
    requests_per_s: float
    tokens_per_s: float
    machines: int | None = Field(None, description="the fewest that meet the SLO; None if no number does")
    usd_per_hour: float | None = Field(None, description="of all of them, after the discount; None without a price")
    by_machines: tuple[FleetPoint, ...] = Field((), description="at the load that is asked for")
    by_load: tuple[FleetPoint, ...] = Field((), description="with that many machines")
    why: str = Field("", description="why no number of machines meets the SLO")


class SourceError(Noun):
    """How wrong a source of predictions has been, where they were measured later."""

    basis: Basis
    median_percent: float
    count: int


class Plan(Noun):
    """All options for a model under a load, the best first."""

    version: Literal[1] = 1
    source: Literal["predicted"] = "predicted"
    created: str = Field(description="ISO 8601, UTC")
    command: str
    model: str
    workload: str
    load: PlannedLoad
    slo: Slo | None = None
    commitment: Commitment = "on-demand"
    discount: float = 0.0
    input_output_ratio: float = 3.0
    options: tuple[Option, ...]
    refused: tuple[Refused, ...] = ()
    cheapest: int | None = Field(None, description="place of the cheapest option that meets the SLO")
    nearest: int | None = Field(None, description="place of the option that breaks it least, if none meets it")
    verdict: str
    warnings: tuple[str, ...] = Field((), description="prices that are old or missing")
    remarks: tuple[str, ...] = ()
    errors: tuple[SourceError, ...] = ()
    curves: tuple[Curve, ...] = Field((), description="of the first instances, each with its best layout")
    fleets: tuple[Fleet, ...] = Field((), description="one for each instance, the cheapest first")
