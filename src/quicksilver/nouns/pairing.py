"""Pairing: a prediction beside what was measured of the same thing later."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field

from quicksilver.nouns.base import Noun, content_hash
from quicksilver.nouns.prediction import Prediction


class Measured(Noun):
    """What a report says of one closed loop."""

    model: str
    input_tokens: float = Field(gt=0, description="of a prompt, in the mean or the median")
    output_tokens: float = Field(gt=0)
    streams: int = Field(gt=0)
    tokens_per_s: float = Field(gt=0, description="output tokens, all streams")
    ttft_ms: float | None = Field(None, gt=0, description="p50")
    itl_ms: float | None = Field(None, gt=0, description="p50 between tokens of one stream, spread over bursts")
    requests: int = Field(gt=0)
    machine: str = Field("", description="that served, as far as the report says it")
    weights: str = Field("", description="what the report says of the recipe; empty if it says nothing")
    report: str = Field(description="the file's kind: quicksilver bench, quicksilver optimize or AIPerf")
    date: str = ""


class Pairing(Noun):
    """A prediction, what was measured of it, and where the two aren't quite of the same load."""

    prediction: Prediction
    measured: Measured
    remarks: tuple[str, ...] = ()

    @property
    def error_percent(self) -> float:
        """|predicted / measured - 1| of tokens/s, percent."""
        return 100 * abs(self.prediction.tokens_per_s / self.measured.tokens_per_s - 1)


def configuration(prediction: Prediction) -> str:
    """Return what is counted once, however often it is measured: the hash of source, model, instance, layout and load."""
    names = {"basis", "model", "instance", "layout", "replicas", "load"}
    return content_hash(prediction.model_dump(mode="json", include=names))


class RunningError(NamedTuple):
    """How far predictions were off: the median of |predicted / measured - 1| in percent, over so many configurations."""

    percent: float
    configurations: int
