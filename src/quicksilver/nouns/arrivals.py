"""Arrivals: when the requests of a load are sent."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

from pydantic import Field, model_validator

from quicksilver.nouns.base import Noun

ArrivalKind = Literal["closed", "poisson", "constant", "trace"]
KINDS: tuple[ArrivalKind, ...] = get_args(ArrivalKind)


class Arrivals(Noun):
    """When requests are sent: as answers end (a closed loop), or at moments of their own (an open loop).

    A closed loop keeps `streams` requests under way, and waits whenever the server does: it hides queues. An open loop sends
    `rate_per_s` requests a second, evenly or as a Poisson process, or at the moments of a trace. Both can rise to a second
    level, evenly or in steps.
    """

    kind: ArrivalKind = "closed"
    streams: int | None = Field(None, ge=1, description="requests that a closed loop keeps under way, at first")
    rate_per_s: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="requests a second of an open loop, at first"
    )
    streams_to: int | None = Field(None, ge=1, description="what the streams rise to over the run")
    rate_to_per_s: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="what the rate rises to over the run"
    )
    steps: int | None = Field(None, ge=2, le=1000, description="levels of a rise; None rises evenly")
    times_s: tuple[float, ...] = Field(
        (), description="moments of a trace, seconds in order; without any they are the prompts' own"
    )
    seed: int = 0

    @model_validator(mode="after")
    def _makes_sense(self) -> Arrivals:
        closed, trace = self.kind == "closed", self.kind == "trace"
        if closed != (self.streams is not None):
            raise ValueError("a closed loop has streams, and nothing else has")
        if (not closed and not trace) != (self.rate_per_s is not None):
            raise ValueError("poisson and constant arrivals have a rate, and nothing else has")
        if self.streams_to is not None and (self.streams is None or self.streams_to <= self.streams):
            raise ValueError("streams rise to more than they begin with")
        if self.rate_to_per_s is not None and (self.rate_per_s is None or self.rate_to_per_s <= self.rate_per_s):
            raise ValueError("a rate rises to more than it begins with")
        if self.steps is not None and not self.rises:
            raise ValueError("steps are those of a rise")
        if self.times_s and not trace:
            raise ValueError("only a trace has moments")
        if self.times_s and (self.times_s[0] < 0 or any(a > b for a, b in pairwise(self.times_s))):
            raise ValueError("the moments of a trace are seconds in order, 0 or more")
        return self

    @classmethod
    def closed(cls, streams: int) -> Arrivals:
        """Return a closed loop."""
        return cls(streams=streams)

    @classmethod
    def poisson(cls, rate_per_s: float, seed: int = 0) -> Arrivals:
        """Return an open loop with a Poisson process of arrivals."""
        return cls(kind="poisson", rate_per_s=rate_per_s, seed=seed)

    @property
    def is_open(self) -> bool:
        """Whether requests are sent at moments of their own, whatever the server does."""
        return self.kind != "closed"

    @property
    def rises(self) -> bool:
        """Whether the load grows over the run."""
        return self.streams_to is not None or self.rate_to_per_s is not None

    @property
    def label(self) -> str:
        """The load in a few words: `8 streams`, `2.5/s`, `1 to 8/s, constant`, `trace`. It is told apart by it."""
        rise = f" in {self.steps} steps" if self.steps else ""
        if self.streams is not None:
            most = self.streams_to or self.streams
            levels = f"{self.streams} to {most}" if self.rises else f"{self.streams}"
            return f"{levels} stream{'s' if most > 1 else ''}{rise}"
        if self.rate_per_s is None:
            return "trace"
        levels = f"{self.rate_per_s:g} to {self.rate_to_per_s:g}" if self.rate_to_per_s else f"{self.rate_per_s:g}"
        return f"{levels}/s{rise}{', constant' if self.kind == 'constant' else ''}"

    @property
    def load_name(self) -> str:
        """What its Samples are told apart by beside their concurrency: nothing for a fixed number of streams."""
        return self.label if self.is_open or self.rises else ""
