"""Plans that reports have to cope with: of machines that don't exist, whose step times are formulas; nothing was measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from quicksilver.errors import BadInputError
from quicksilver.nouns import ModelFacts, Slo
from quicksilver.nouns.instance import Accelerator, Instance, Rate
from quicksilver.nouns.plan import Plan
from quicksilver.nouns.prediction import Guessing, Layout, MemoryFit, MemoryLine, PlannedLoad, StepTimes
from quicksilver.planner import fleet, models, predict, record
from quicksilver.planner import plan as planner
from quicksilver.planner.asked import Asked, asked
from quicksilver.sources import instances
from quicksilver.testing.planning import linear

EVIL = "tiny <script>alert('x')</script> & \"q\" | [red]`b`[/red] \x1b[31m"
SLO = Slo.parse("ttft_p95<1s,itl_p50<20ms")
FACTS = ModelFacts(
    architecture="LlamaForCausalLM", layers=32, hidden_size=4096, intermediate_size=14336, heads=32, kv_heads=8,
    head_dim=128, vocab_size=128256, max_positions=8192, parameters=8_000_000_000,
)  # fmt: skip
BYTES = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.55, "int3": 0.45}


def _instance(
    name: str, count: int, gb: float, bandwidth: float, *, usd: float | None, year: float | None = None
) -> Instance:
    where = {"where": "nowhere", "date": "2026-11-01", "source": "made up"}
    rates = [Rate(usd_per_hour=usd, **where)] if usd else []
    rates += [Rate(usd_per_hour=year, commitment="one-year", **where)] if year else []
    device = Accelerator(
        name=f"chip of {gb:g} GB",
        memory_gb=gb,
        bandwidth_gb_s=bandwidth,
        tflops={"bf16": 200.0},
        link_gb_s=100.0,
        source="made up",
    )
    return Instance(
        name=name, accelerator=device, accelerators=count, cpu="made up", vcpus=64, cores=32, memory_gb=512.0, rates=tuple(rates), source="made up"
    )  # fmt: skip


INSTANCES = {
    one.name: one
    for one in (
        _instance("big.8", 8, 80.0, 3000.0, usd=40.0, year=26.0),
        _instance("mid.4", 4, 48.0, 850.0, usd=9.0, year=6.0),
        _instance("small.1", 1, 24.0, 600.0, usd=1.2),
        _instance("odd.2", 2, 24.0, 300.0, usd=None),
        _instance("tiny.1", 1, 4.0, 100.0, usd=0.2),
    )
}


def layouts(_: ModelFacts, instance: Instance) -> tuple[Layout, ...]:
    """Three precisions, on one accelerator and on all; the fastest guesses besides."""
    degrees = sorted({1, instance.accelerators})
    plain = [Layout(weights=weights, tensor_parallel=tp) for weights in ("bf16", "fp8", "int4") for tp in degrees]
    guessing = Layout(weights="bf16", tensor_parallel=degrees[-1], guessing=Guessing(tokens=3, accepted=2.0))
    return (*plain, guessing)


def fit(facts: ModelFacts, layout: Layout, instance: Instance, load: PlannedLoad) -> MemoryFit:
    """Weights, and the caches of the streams that one copy has."""
    assert instance.accelerator is not None
    weights = facts.parameters * BYTES[layout.weights] / 1e9 / layout.devices
    streams = load.streams / (instance.accelerators // layout.devices)
    tokens = load.input_tokens + load.output_tokens
    cache = streams * tokens * facts.kv_elements_per_token * 2 / 1e9 / layout.devices
    return MemoryFit(
        lines=(
            MemoryLine(what="weights", gb=weights, how=f"8.0e9 x {BYTES[layout.weights]:g} bytes / {layout.devices}"),
            MemoryLine(what="KV cache", gb=cache, how=f"{streams:g} streams x {tokens} tokens"),
        ),
        capacity_gb=0.9 * instance.accelerator.memory_gb,
        capacity_how="90 % of the accelerator's memory",
    )


def step_times(facts: ModelFacts, instance: Instance, layout: Layout, *, name: str) -> StepTimes:
    """What reading the weights takes, and a bit for each stream."""
    if layout.weights == "fp8" and instance.name == "small.1":
        raise BadInputError("No source knows fp8 on this chip.")
    assert instance.accelerator is not None
    gb = facts.parameters * BYTES[layout.weights] / 1e9 / layout.devices
    step = 1000 * gb / (0.8 * instance.accelerator.bandwidth_gb_s) + 0.4 * (layout.devices > 1)
    found = linear(
        step_ms=step * (1.3 if layout.guessing else 1.0),
        stream_ms=step / 60,
        prompt_ms=step / 150,
        token_ms=131e-6 / layout.devices / instance.accelerator.bandwidth_gb_s * 1000,
    )
    return found.model_copy(update={"remarks": ("a formula stands for it",)})


@contextmanager
def world() -> Iterator[pytest.MonkeyPatch]:
    """Put machines and a model that don't exist in the place of the catalogue and the sources."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "fit", fit)
        patch.setattr(predict, "step_times", step_times)
        patch.setattr(planner, "layouts", layouts)
        patch.setattr(fleet, "FEWEST_REQUESTS", 400)
        patch.setattr(fleet, "MOST_STREAMS", 64)
        patch.setattr(models, "facts", lambda name: FACTS)
        patch.setattr(record, "errors", lambda: {"roofline": (12.0, 4)})
        patch.setattr(planner, "prepare", lambda chosen: None)
        patch.setattr(instances, "instances", lambda: INSTANCES)
        patch.setattr(instances, "find", lambda name: INSTANCES[name])
        patch.setattr(instances, "users_file", lambda: Path("~/.config/quicksilver/instances.toml"))
        yield patch


def question(**changes: Any) -> planner.Question:
    """Return what is asked: 16 streams of 622x250 within SLO."""
    requests: Asked = changes.pop("asked", asked("622x250"))
    streams = changes.pop("streams", 16)
    wanted = changes.pop("fleet", None)
    return planner.Question(
        asked=requests,
        load=requests.load(streams),
        fleet=fleet.wanted(wanted, requests) if wanted else None,
        **({"slo": SLO} | changes),
    )


def made(*names: str, model: str = "example-8b", **changes: Any) -> Plan:
    """Return a plan, at a time that is always the same."""
    with world():
        found = planner.plan(
            model,
            question(**changes),
            instances=names,
            command="quicksilver plan example-8b --slo ttft_p95<1s,itl_p50<20ms",
        )
    return found.model_copy(update={"created": "2026-11-28T07:00:00+00:00"})


def searched() -> Plan:
    """A plan with a fleet."""
    return made("big.8", "mid.4", "small.1", "odd.2", "tiny.1", fleet="2000tok/s")


def infeasible() -> Plan:
    """An SLO that nothing meets."""
    return made("mid.4", "small.1", slo=Slo.parse("itl_p50<1ms"))


def evil() -> Plan:
    """A name that would be markup or an escape sequence."""
    return made("mid.4", "small.1", model=EVIL)


def nothing() -> Plan:
    """Nothing fits."""
    return made("tiny.1")
