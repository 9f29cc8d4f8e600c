"""Prediction: how a model would run on a machine that isn't here; with what it was taken from, and how wrong that has been."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from quicksilver.nouns.base import Noun
from quicksilver.nouns.instance import Commitment
from quicksilver.nouns.score import Cost

Basis = Literal["operators", "roofline", "fitted"]
"""What step times come from: measured operators of the same chip (aiconfigurator), a roofline, or a model fitted to this machine's steps."""
Precision = Literal["bf16", "fp8", "int8", "int4", "int3"]
"""Of weights: int8 with 8-bit activations (W8A8), int4 and int3 in groups of 128 with 16-bit activations (AWQ, GPTQ)."""
CachePrecision = Literal["bf16", "fp8", "int8"]


class Guessing(Noun):
    """Speculation as far as a plan needs it."""

    tokens: int = Field(ge=1, le=16, description="guessed for each stream in a step")
    accepted: float = Field(ge=0, description="of these, in the mean")
    draft_parameters: int = Field(0, ge=0, description="of the draft model or the heads; 0 for prompt lookup")
    origin: str = Field("stated", description="`stated`, or what measured the acceptance")

    @model_validator(mode="after")
    def _possible(self) -> Guessing:
        if self.accepted > self.tokens:
            raise ValueError(f"of {self.tokens} guessed tokens {self.accepted:g} can't be accepted")
        return self


class Layout(Noun):
    """How a model is laid onto a machine: the recipe of a plan."""

    weights: Precision = "bf16"
    cache: CachePrecision = "bf16"
    tensor_parallel: int = Field(1, ge=1)
    pipeline_parallel: int = Field(1, ge=1)
    guessing: Guessing | None = None

    @property
    def devices(self) -> int:
        """Accelerators that one copy of the model takes."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def tokens_per_step(self) -> float:
        """Tokens that one step gives each stream, in the mean."""
        return 1.0 + (self.guessing.accepted if self.guessing else 0.0)

    @property
    def label(self) -> str:
        """A short name: `int4 · TP4 · guess 3 (2 accepted)`."""
        parts: list[str] = [self.weights]
        if self.cache != "bf16":
            parts.append(f"{self.cache} cache")
        if self.tensor_parallel > 1:
            parts.append(f"TP{self.tensor_parallel}")
        if self.pipeline_parallel > 1:
            parts.append(f"PP{self.pipeline_parallel}")
        if self.guessing:
            drafted = self.guessing.draft_parameters / 1e9
            draft = f" with {drafted:.2g}B" if drafted else ""
            parts.append(f"guess {self.guessing.tokens}{draft} ({self.guessing.accepted:g} accepted)")
        return " · ".join(parts)


class StepTimes(Noun):
    """How long steps of one model take on one machine in one layout: what every source of predictions gives.

    With speculation a step guesses and checks; its time is all of that, and what it gives is `Layout.tokens_per_step`.
    """

    basis: Basis
    origin: str = Field(description="the source with its version, and how it was asked; one short line")
    streams: tuple[int, ...] = Field(min_length=1, description="ascending, from 1")
    contexts: tuple[int, ...] = Field(min_length=1, description="tokens in each stream's cache, ascending")
    decode_ms: tuple[tuple[float, ...], ...] = Field(description="a row for each number of streams, by context")
    prompts: tuple[int, ...] = Field(min_length=1, description="prompt tokens in one step, ascending")
    beside: tuple[int, ...] = Field(min_length=1, description="streams that decode in the same step, ascending from 0")
    prefill_ms: tuple[tuple[float, ...], ...] = Field(description="a row for each number of prompt tokens, by `beside`")
    remarks: tuple[str, ...] = Field((), description="what a reader has to know, such as operators without data")

    @model_validator(mode="after")
    def _whole(self) -> StepTimes:
        for values, first in ((self.streams, 1), (self.contexts, None), (self.prompts, None), (self.beside, 0)):
            if list(values) != sorted(set(values)) or (first is not None and values[0] != first):
                raise ValueError("streams ascend from 1, streams beside from 0, contexts and prompts ascend")
        for rows, columns, table in (
            (self.streams, self.contexts, self.decode_ms),
            (self.prompts, self.beside, self.prefill_ms),
        ):
            if len(table) != len(rows) or any(len(row) != len(columns) for row in table):
                raise ValueError(
                    "a table has a row for each value of its first axis and a figure for each of its second"
                )
            if any(not ms > 0 for row in table for ms in row):
                raise ValueError("a step takes time")
        return self


class MemoryLine(Noun):
    """One line of the arithmetic of memory."""

    what: str
    gb: float = Field(description="10^9 bytes on one accelerator, or of the machine's memory for a CPU")
    how: str = Field(description="the arithmetic, to be followed with a pencil")


class MemoryFit(Noun):
    """Whether a layout fits, line by line."""

    lines: tuple[MemoryLine, ...]
    capacity_gb: float = Field(description="what may be used of one accelerator, or of the machine's memory")
    capacity_how: str

    @property
    def total_gb(self) -> float:
        return sum(line.gb for line in self.lines)

    @property
    def fits(self) -> bool:
        return self.total_gb <= self.capacity_gb


class PlannedLoad(Noun):
    """What is asked of a machine: lengths, and how many at once."""

    input_tokens: int = Field(gt=0, description="of a prompt, in the mean")
    output_tokens: int = Field(gt=0)
    streams: int = Field(gt=0, description="over all copies of the model on the machine")


class Times(Noun):
    """Percentiles over requests, ms."""

    p50: float
    p95: float


class Prediction(Noun):
    """What one instance with one layout would give under a load. Never measured: `StepTimes.origin` and `error_percent` say how far to trust it."""

    source: Literal["predicted"] = "predicted"
    model: str
    instance: str
    layout: Layout
    replicas: int = Field(ge=1, description="copies of the model on the instance")
    load: PlannedLoad
    fit: MemoryFit
    basis: Basis
    origin: str
    remarks: tuple[str, ...] = ()
    ttft_ms: Times
    itl_ms: Times = Field(description="between tokens of one stream, bursts of speculation spread over their tokens")
    e2e_ms: Times
    tokens_per_s: float = Field(description="output tokens, all streams")
    commitment: Commitment = "on-demand"
    cost: Cost | None = Field(None, description="None where no price is known")
    error_percent: float | None = Field(
        None, description="median of |predicted / measured - 1| where this source's predictions were measured later"
    )
    error_count: int = Field(0, description="measurements that this is taken over")

    @property
    def tokens_per_s_user(self) -> float:
        """Output tokens a second that one stream gets."""
        return self.tokens_per_s / self.load.streams


class Refused(Noun):
    """A pair of instance and layout without figures, and why: it doesn't fit, or no source knows it."""

    instance: str
    layout: Layout
    why: str
    fit: MemoryFit | None = None
