"""Instance: a machine that can be rented: what it has, and what an hour of it costs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quicksilver.nouns.base import Noun

Commitment = Literal["on-demand", "one-year"]


class Accelerator(Noun):
    """One device: its memory, its bandwidth, and what it computes by precision, as its maker states them."""

    name: str = Field(description="as people say it: H100 SXM")
    memory_gb: float = Field(gt=0, description="10^9 bytes")
    bandwidth_gb_s: float = Field(gt=0, description="of its memory")
    tflops: dict[str, float] = Field(description="dense, by precision: bf16, fp8, int8 …; without sparsity")
    link_gb_s: float = Field(gt=0, description="to a neighbour in the same machine, one direction")
    system: str = Field("", description="its name in aiconfigurator's database; empty if it isn't there")
    source: str


class Rate(Noun):
    """What an hour costs, by how it is paid, with where and when that was so."""

    usd_per_hour: float = Field(gt=0)
    commitment: Commitment = "on-demand"
    where: str
    date: str = Field(pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$", description="ISO 8601, to the year at least")
    source: str


class Instance(Noun):
    """A machine by its name in a price list; `ml.` in front is SageMaker's rate for the same machine."""

    name: str
    accelerator: Accelerator | None = Field(None, description="None for a machine that computes on its CPU")
    accelerators: int = Field(0, ge=0)
    cpu: str
    vcpus: int = Field(gt=0)
    cores: int = Field(gt=0, description="physical ones")
    memory_gb: float = Field(gt=0)
    bandwidth_gb_s: float | None = Field(None, gt=0, description="of the CPU's memory, as far as it is known")
    tflops: dict[str, float] = Field(default_factory=dict, description="of the CPU, dense, by precision")
    rates: tuple[Rate, ...] = Field((), description="the user's own before the list's, the newest first")
    source: str

    def rate(self, commitment: Commitment = "on-demand", date: str = "") -> Rate | None:
        """Return the newest price of an hour as it is paid, or that of a date, such as `2024`; None if it isn't known."""
        return next((r for r in self.rates if r.commitment == commitment and r.date.startswith(date)), None)
