"""A machine that is made up: the steps and predictions of it, where the arithmetic on them is proved."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.prediction import (
    Basis,
    Layout,
    MemoryFit,
    MemoryLine,
    PlannedLoad,
    Precision,
    Prediction,
    Times,
)
from quicksilver.nouns.steps import StepSet, StepShape, TimedStep, shapes
from quicksilver.testing.large import BILLION, SMALL

READ_MS = {"bf16": 60.0, "int8": 40.0, "int4": 25.0}
"""What the made-up machine takes to read 10^9 weights."""
TOKEN_MS = {"bf16": 5.0, "int8": 4.0, "int4": 6.0}
"""What a further token costs it for each 10^9 weights."""
LAYER_MS, ATTEND_MS = 0.2, 2.0
"""For a layer, and for 10^9 operations of attention."""


def made_up_ms(
    facts: ModelFacts, weights: Precision, shape: StepShape, *, new: bool = False, share: float = 1.0
) -> float:
    """Return a step's ms on a machine that is exactly a roofline with overheads; `share` of its cores compute."""
    head = facts.vocab_size * facts.hidden_size / 1e9
    body = facts.parameters / 1e9 - head * (1 if facts.tied_embeddings else 2)
    last: Precision = "int8" if weights == "int4" else weights
    attends = (
        shape.streams * shape.ahead * (shape.context + shape.ahead / 2) + shape.prompt**2 / 2 + shape.padding**2 / 2
    )
    scaled = (
        body * (READ_MS[weights] + TOKEN_MS[weights] * (shape.tokens - 1))
        + head * (READ_MS[last] + TOKEN_MS[last] * (shape.rows - 1))
        + ATTEND_MS * 4 * facts.layers * facts.heads * facts.head_dim * attends / 1e9
    )
    return LAYER_MS * facts.layers * (2 if new else 1) + scaled / share


def made_up_steps(
    models: Sequence[ModelFacts] = (SMALL, BILLION),
    weights: Sequence[Precision] = ("bf16", "int8", "int4"),
    *,
    noise: Callable[[], float] = lambda: 1.0,
    threads: int = 2,
    machine: str = "made up",
) -> list[StepSet]:
    """Return what timing steps on that machine would give; `noise` is a factor for each time."""
    return [
        StepSet(
            date="2026-11-28T00:00:00+00:00",
            machine=machine,
            engine="made up 1.0",
            threads=threads,
            cores=2,
            model=f"{facts.parameters / 1e6:.0f}M",
            facts=facts,
            weights=each,
            steps=tuple(
                TimedStep(
                    shape=shape,
                    ms=None if shape.prompt else made_up_ms(facts, each, shape, share=threads / 2) * noise(),
                    new_ms=made_up_ms(facts, each, shape, new=True, share=threads / 2) * noise(),
                )
                for shape in shapes()
            ),
        )
        for facts in models
        for each in weights
    ]


def made_up_prediction(
    *,
    model: str = "smollm2-135m-instruct",
    instance: str = "local",
    layout: Layout | None = None,
    load: PlannedLoad | None = None,
    basis: Basis = "fitted",
    tokens_per_s: float = 100.0,
) -> Prediction:
    """Return a prediction with figures that mean nothing."""
    return Prediction(
        model=model,
        instance=instance,
        layout=layout or Layout(),
        replicas=1,
        load=load or PlannedLoad(input_tokens=600, output_tokens=100, streams=8),
        fit=MemoryFit(
            lines=(MemoryLine(what="weights", gb=0.3, how="135M x 2 bytes"),), capacity_gb=20, capacity_how="of 24 GB"
        ),
        basis=basis,
        origin="made up",
        ttft_ms=Times(p50=500, p95=900),
        itl_ms=Times(p50=60, p95=70),
        e2e_ms=Times(p50=6500, p95=7500),
        tokens_per_s=tokens_per_s,
    )
