"""SpeculationTable: what guessing costs and gains by load, as it was measured for an artefact on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from quicksilver.nouns.base import Noun

FILE = "speculation.json"

Counts = tuple[tuple[int, ...], ...]


class SpeculationTable(Noun):
    """A step's time by running streams and guessed tokens, and how often guesses held on a workload."""

    version: Literal[1] = 1
    machine: str
    engine: str = Field(description="name and version")
    threads: int = Field(ge=1)
    workload: str = ""
    context_tokens: int = Field(ge=1, description="of each stream while steps were timed")
    streams: tuple[int, ...] = Field(min_length=1, description="ascending")
    lengths: tuple[int, ...] = Field(min_length=1, description="guessed tokens of each stream, ascending from 0")
    step_ms: tuple[tuple[float, ...], ...] = Field(description="a row for each number of streams, by length")
    new_shape_ms: float = Field(0.0, ge=0, description="what a step takes longer than one of the same shape after it")
    guessed: tuple[float, ...] = Field(
        description="tokens guessed in a stream's step, by length: a text isn't always found again"
    )
    gained: tuple[float, ...] = Field(description="tokens that a stream's step gives, by length; 1 at length 0")
    tried: Counts = Field((), description="guessed tokens whose predecessors were right, by length of match and place")
    right: Counts = Field((), description="those of them that were right themselves")

    @model_validator(mode="after")
    def _whole(self) -> SpeculationTable:
        for values in (self.streams, self.lengths):
            if list(values) != sorted(set(values)):
                raise ValueError("streams and lengths ascend")
        if self.lengths[0] != 0 or self.streams[0] < 1:
            raise ValueError("lengths begin with 0, and streams with at least 1")
        if len(self.step_ms) != len(self.streams):
            raise ValueError("step_ms has a row for each number of streams")
        if any(len(row) != len(self.lengths) for row in (*self.step_ms, self.guessed, self.gained)):
            raise ValueError("step_ms, guessed and gained have a figure for each length")
        if any(ms <= 0 for row in self.step_ms for ms in row):
            raise ValueError("a step takes time")
        if [len(row) for row in self.tried] != [len(row) for row in self.right]:
            raise ValueError("tried and right have the same form")
        return self

    @property
    def tokens_per_s(self) -> tuple[tuple[float, ...], ...]:
        """Tokens/s of all streams in decoding, a row for each number of streams, by length."""
        return tuple(
            tuple(
                1000 * streams * gained / _between(guessed, self.lengths, row)
                for guessed, gained in zip(self.guessed, self.gained, strict=True)
            )
            for streams, row in zip(self.streams, self.step_ms, strict=True)
        )

    @classmethod
    def read(cls, artifact: Path) -> SpeculationTable | None:
        """Read an artefact's table; None if it has none. Raises ValueError for one that can't be read."""
        file = artifact / FILE
        return cls.model_validate_json(file.read_bytes()) if file.is_file() else None


def _between(at: float, places: tuple[int, ...], values: tuple[float, ...]) -> float:
    """Interpolate values at ascending places linearly."""
    for (left, low), (right, high) in zip(
        zip(places, values, strict=True), zip(places[1:], values[1:], strict=True), strict=False
    ):
        if at <= right:
            return low + (high - low) * (at - left) / (right - left)
    return values[-1]
