"""The nouns: frozen values, one file each. Each is imported when it is first used: a server needs few of them, and soon."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quicksilver.nouns.arrivals import Arrivals
    from quicksilver.nouns.artifact import Artifact
    from quicksilver.nouns.benchmark import Benchmark
    from quicksilver.nouns.certificate import Certificate, Difference, Trial, Verdict
    from quicksilver.nouns.engine import Burst, Command, Decoder, Endpoint, Engine, Request
    from quicksilver.nouns.goal import Goal
    from quicksilver.nouns.hardware import Hardware, Price
    from quicksilver.nouns.model import Model, ModelFacts
    from quicksilver.nouns.preset import Preset
    from quicksilver.nouns.recipe import Recipe
    from quicksilver.nouns.result import Candidate, Lengths, Result
    from quicksilver.nouns.sample import Sample
    from quicksilver.nouns.score import Acceptance, Cost, Figure, Latency, Quality, Score, Speed, Steady
    from quicksilver.nouns.settings import Settings, Speculation
    from quicksilver.nouns.slo import Slo, Term
    from quicksilver.nouns.speculation import SpeculationTable
    from quicksilver.nouns.technique import Choices, Step, Technique
    from quicksilver.nouns.tradeoff import Crossover, Interactions, Part, Point
    from quicksilver.nouns.workload import Message, Prompt, Split, Workload

_HOMES = {
    **dict.fromkeys(("Certificate", "Difference", "Trial", "Verdict"), "certificate"),
    **dict.fromkeys(("Burst", "Command", "Decoder", "Endpoint", "Engine", "Request"), "engine"),
    **dict.fromkeys(("Settings", "Speculation"), "settings"),
    **dict.fromkeys(("Hardware", "Price"), "hardware"),
    **dict.fromkeys(("Model", "ModelFacts"), "model"),
    **dict.fromkeys(("Candidate", "Lengths", "Result"), "result"),
    **dict.fromkeys(("Slo", "Term"), "slo"),
    **dict.fromkeys(("Acceptance", "Cost", "Figure", "Latency", "Quality", "Score", "Speed", "Steady"), "score"),
    "SpeculationTable": "speculation",
    **dict.fromkeys(("Choices", "Step", "Technique"), "technique"),
    **dict.fromkeys(("Crossover", "Interactions", "Part", "Point"), "tradeoff"),
    **dict.fromkeys(("Message", "Prompt", "Split", "Workload"), "workload"),
    **{name: name.lower() for name in ("Arrivals", "Artifact", "Benchmark", "Goal", "Preset", "Recipe", "Sample")},
}

__all__ = [
    "Acceptance", "Arrivals", "Artifact", "Benchmark", "Burst", "Candidate", "Certificate", "Choices", "Command", "Cost", "Crossover", "Decoder", "Difference",
    "Endpoint", "Engine", "Figure", "Goal", "Hardware", "Interactions", "Latency", "Lengths", "Message", "Model",
    "ModelFacts", "Part", "Point", "Preset", "Price", "Prompt", "Quality", "Recipe", "Request", "Result", "Sample",
    "Score", "Settings", "Slo", "Speculation", "SpeculationTable", "Speed", "Split", "Steady", "Step", "Technique", "Term", "Trial",
    "Verdict", "Workload",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
