"""Benchmark: what a load on one endpoint measured, and all that it was measured with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from quicksilver.nouns.base import Noun
from quicksilver.nouns.hardware import Hardware
from quicksilver.nouns.score import Cost, Speed
from quicksilver.nouns.slo import Slo
from quicksilver.nouns.slo_search import Goodput, SloSearch

BENCHMARK_VERSION = 1


class Benchmark(Noun):
    """What a load on one endpoint measured; `quicksilver bench --json` prints this document."""

    version: int = BENCHMARK_VERSION
    created: str = Field(description="ISO 8601, UTC")
    command: str = Field(description="the call that made it, to be typed again")
    target: str
    model: str
    workload: str
    settings: dict[str, Any] = Field(default_factory=dict, description="the load's settings, by name")
    hardware: Hardware = Field(description="the machine that the load client ran on")
    tools: dict[str, str] = Field(default_factory=dict, description="versions of what measured, and of the engine")
    speeds: tuple[Speed, ...] = ()
    steps: tuple[Speed, ...] = Field((), description="by step, where a load is a ramp in steps")
    costs: tuple[Cost | None, ...] = Field((), description="one for each speed; None where no token came")
    cold_start_s: float | None = Field(
        None, description="from process start to the first token; None for a server that somebody else started"
    )
    samples: Path = Field(description="the raw Samples, JSON Lines")
    slo: Slo | None = Field(None, description="what the load was held to, if to anything")
    goodputs: tuple[Goodput, ...] = Field((), description="under `slo`, one for each speed")
    search: SloSearch | None = Field(
        None, description="how the highest load that meets `slo` was looked for, if it was"
    )
    server_gone: bool = Field(
        False,
        description="nothing answered any more at the end of the loads; a note says since when (a search has `ended`)",
    )
    notes: tuple[str, ...] = Field((), description="doubts about the figures, a sentence each")

    @property
    def answered(self) -> int:
        """How many requests succeeded."""
        return sum(speed.requests - speed.errors for speed in self.speeds)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON document."""
        return self.model_dump(mode="json")
