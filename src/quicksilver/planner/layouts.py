"""Which layouts are sensible for a model on an instance: precisions that the chip has, tensor and pipeline parallelism, speculation.

About twenty a pair. What they need of memory and time is judged elsewhere; here only what could not run, or never pays, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from quicksilver.nouns.instance import Accelerator, Instance
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.prediction import CachePrecision, Guessing, Layout, Precision
from quicksilver.planner import models
from quicksilver.planner.axes import HOST_LINK_GB_S
from quicksilver.planner.roofline import WEIGHT_BYTES


@dataclass(frozen=True, slots=True)
class Stated:
    """An acceptance that others measured: a lead until it is measured with the user's own prompts."""

    tokens: int
    accepted: float
    source: str


PROMPT_LOOKUP = Stated(
    4,
    0.64,
    "Spec-Bench's mean speed-up of prompt lookup, 1.64 (Vicuna-7B): a step gives at least as many tokens as it speeds up",
)
DRAFT = Stated(
    4,
    2.0,
    "arXiv 2302.01318: 2-2.5x on a 70B with 4 tokens of a 4B draft whose step takes 0.128 of the target's; at 2x a step gives "
    "2 (1 + 4 · 0.128) = 3.0 tokens",
)
EAGLE = Stated(
    3,
    1.4,
    "published EAGLE-3 heads in vLLM: 2.4 tokens a step at 3 guesses on summaries (Llama 4 Maverick, 2.37), and 2.88 at 7 on "
    "MT-Bench (Llama 3.3 70B), which is 2.40 at 3 if each guess is as likely as the one before",
)
ROOM = 0.8
"""Of the devices' memory, for weights: the rest is for caches and what computes."""
_DEGREES = (1, 2, 4, 8, 16, 32)
SMALLEST = 1_000_000_000
"""A target with fewer parameters is given no draft model: the draft's steps would take nearly as long as its own."""


def layouts(facts: ModelFacts, instance: Instance) -> tuple[Layout, ...]:
    """Return the layouts to compare, the plainest first; none for a machine that has nothing the model could be laid onto."""
    chip = instance.accelerator
    if chip is None:
        return tuple(
            Layout(weights=weights, guessing=guessing)
            for weights in ("bf16", "int8", "int4")
            for guessing in (None, _guessing(PROMPT_LOOKUP, 0))
        )
    found: list[Layout] = []
    for weights, cache in _precisions(chip):
        degrees = _parts(facts, weights, chip, instance.accelerators)
        found += [
            Layout(weights=weights, cache=cache, tensor_parallel=parts, guessing=guessing)
            for parts in degrees
            for guessing in _guessings(facts)
        ]
        found += [
            Layout(weights=weights, cache=cache, tensor_parallel=parts, pipeline_parallel=stages)
            for parts, stages in _pipelines(facts, chip, degrees)
        ]
    return tuple(found)


def _pipelines(facts: ModelFacts, chip: Accelerator, degrees: list[int]) -> list[tuple[int, int]]:
    """Tensor parallelism and stages of the pipelines on as many devices, where devices are joined over PCIe alone.

    There all-reduces take longer than computing does. Over links between devices tensor parallelism is quicker for one user and
    nearly as good for many. Without speculation, whose drafts lie on the last stage while the others wait.
    """
    if chip.link_gb_s > HOST_LINK_GB_S:
        return []
    shapes = [(parts, devices // parts) for devices in degrees for parts in (1, 2) if devices >= 2 * parts]
    return [(parts, stages) for parts, stages in shapes if facts.layers % stages == 0]


def _parts(facts: ModelFacts, weights: Precision, chip: Accelerator, accelerators: int) -> list[int]:
    """The smallest tensor parallelism whose devices hold the weights and have room beside them, and all of the machine.

    Over PCIe also two, which is the most that pays for one user there, and no pipeline should stand in for it.
    """
    could = [n for n in _DEGREES if n <= accelerators and facts.heads % n == 0 and facts.vocab_size % n == 0]
    size_gb = facts.parameters * WEIGHT_BYTES[weights] / 1e9
    holds = [n for n in could if size_gb <= ROOM * chip.memory_gb * n] or could[-1:]
    pair = {2} & set(holds) if chip.link_gb_s <= HOST_LINK_GB_S else set()
    return sorted({holds[0], *pair, holds[-1]})


def _precisions(chip: Accelerator) -> list[tuple[Precision, CachePrecision]]:
    """Those that the chip computes in; 4-bit weights are computed in bf16."""
    found: list[tuple[Precision, CachePrecision]] = []
    if "bf16" in chip.tflops:
        found.append(("bf16", "bf16"))
    if "fp8" in chip.tflops:
        found.append(("fp8", "fp8"))
    elif "int8" in chip.tflops:
        found.append(("int8", "bf16"))
    if "bf16" in chip.tflops:
        found.append(("int4", "bf16"))
    return found


def _guessings(facts: ModelFacts) -> list[Guessing | None]:
    found: list[Guessing | None] = [None, _guessing(PROMPT_LOOKUP, 0)]
    if facts.parameters >= SMALLEST:
        small = models.draft(facts)
        if small is not None:
            found.append(_guessing(DRAFT, small.parameters))
        found.append(_guessing(EAGLE, models.eagle_head(facts).parameters))
    return found


def _guessing(stated: Stated, parameters: int) -> Guessing:
    return Guessing(
        tokens=stated.tokens, accepted=stated.accepted, draft_parameters=parameters, origin=f"stated ({stated.source})"
    )
