"""Hardware: a machine and its price."""

from __future__ import annotations

from pydantic import Field

from quicksilver.nouns.base import Noun


class Hardware(Noun):
    """A machine: `local` is detected, the rest come from the catalogue."""

    name: str
    cpu: str
    cores: int
    memory_gb: float
    isa: tuple[str, ...] = Field((), description="the vector instruction sets that matter to engines")
    accelerators: tuple[str, ...] = ()


class Price(Noun):
    """What an hour of a machine costs, and where that figure comes from."""

    usd_per_hour: float = Field(gt=0)
    source: str
    discount: float = Field(0.0, ge=0, lt=1)
    input_output_ratio: float = Field(3.0, ge=0, description="input tokens for each output token, in blended prices")
