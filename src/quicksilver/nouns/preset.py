"""Preset: a recipe from the Pareto front for one way of use, with its benchmark and where that comes from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from quicksilver.nouns.base import Noun, content_hash
from quicksilver.nouns.hardware import Hardware, Price
from quicksilver.nouns.score import Cost, Quality, Speed
from quicksilver.nouns.settings import Settings

PRESET_VERSION = 1
PresetName = Literal["cost", "balanced", "latency"]
PRESETS: tuple[PresetName, ...] = ("cost", "balanced", "latency")
STREAMS = (1, 4, 8, 16)
"""The loads that every preset is measured at."""


def machine_key(hardware: Hardware) -> str:
    """Return what tells machines apart on which a figure would be another: processor, cores, instruction sets, accelerators."""
    return content_hash(hardware.model_dump(mode="json", include={"cpu", "cores", "isa", "accelerators"}))


class Preset(Noun):
    """How to serve one model on one machine for one way of use; found by a search, measured and not predicted."""

    version: int = PRESET_VERSION
    name: PresetName
    why: str = Field(description="how it was chosen from the front; one sentence")
    label: str
    recipe: dict[str, Any] = Field(description="the recipe as a JSON document")
    recipe_hash: str
    settings: Settings
    artifact: str = Field(description="the artefact's key in the store")
    model: str
    source: str = Field(description="what the user gave for the model: a catalogue name, a path or a hub id")
    fingerprint: str = Field(description="of the model's bytes")
    workload: str
    workload_hash: str
    max_quality_loss: float = Field(description="the limit that it keeps, percent")
    benchmark: tuple[Speed, ...] = Field(description="at 1, 4, 8 and 16 streams, as far as there was time")
    costs: tuple[Cost | None, ...] = Field(description="the price of a million tokens at each of these")
    quality: Quality | None = None
    price: Price
    hardware: Hardware
    tools: dict[str, str] = Field(default_factory=dict, description="versions of the engine and the libraries")
    commit: str = Field("", description="of the checkout that it was measured with, if it was one")
    run: str
    created: str = Field(description="ISO 8601, UTC")

    @property
    def machine(self) -> str:
        """The key of the machine that it was measured on."""
        return machine_key(self.hardware)
