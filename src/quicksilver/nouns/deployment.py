"""Deployment: how to run a model on an instance for one way of use, with a benchmark that is predicted or was measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quicksilver.nouns.base import Noun
from quicksilver.nouns.hardware import Price
from quicksilver.nouns.prediction import Basis, Layout
from quicksilver.nouns.preset import PresetName


class DeploymentPoint(Noun):
    """The benchmark at one number of users."""

    users: int = Field(gt=0, description="concurrent ones, in a closed loop")
    ttft_p50_s: float | None = Field(description="None where no answer was streamed")
    tokens_per_s_user: float = Field(description="output tokens that one user gets a second while an answer comes, p50")
    tokens_per_s: float = Field(description="output tokens of all users")
    usd_per_million: float | None = Field(None, description="output tokens, by the throughput; None without a price")


class Deployment(Noun):
    """One named configuration of a model on an instance."""

    config_name: PresetName
    model: str
    instance: str
    layout: Layout | None = Field(None, description="of a predicted one")
    label: str = Field(description="the recipe")
    source: Literal["predicted", "measured"]
    basis: Basis | None = Field(None, description="what a prediction was taken from")
    origin: str = Field(description="the source with its version, or when it was measured and with what")
    workload: str
    why: str
    benchmark: tuple[DeploymentPoint, ...]
    rate: Price | None = Field(None, description="of an hour; None where no price is known")
    remarks: tuple[str, ...] = ()
