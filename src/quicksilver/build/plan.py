"""Plan: the steps of a recipe in a legal order, what each needs, and whether the machine has it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quicksilver import engines
from quicksilver.build import store
from quicksilver.errors import IllegalRecipeError, NotEnoughError
from quicksilver.hardware import available_memory
from quicksilver.nouns.base import content_hash
from quicksilver.nouns.engine import Engine
from quicksilver.nouns.model import Model
from quicksilver.nouns.recipe import Recipe
from quicksilver.nouns.technique import Technique
from quicksilver.nouns.workload import Prompt
from quicksilver.sources.gguf import SHARD_BYTES
from quicksilver.sources.gguf_grid import has_grid
from quicksilver.techniques.as_is import AsIs

START = frozenset(
    {
        "hf",
        "unrotated",
        "default kv cache",
        "no prefix cache",
        "whole prefill",
        "plain decoding",
        "uncompiled",
        "default activations",
    }
)
IMPORT_REVISION = 2
ARTIFACT_REVISION = 1
CALIBRATION_PROMPTS = 32
IMPORT_LABEL = "convert GGUF"


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One build step: what it makes, under which key, and what it needs."""

    label: str
    key: str
    technique: Technique | None
    """None for the import of a GGUF."""
    built: bool
    memory_mb: float
    disk_mb: float
    last_s: float | None
    """Seconds that such a step took last time on this machine."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The build of one recipe, from the model's files to an artefact."""

    recipe: Recipe
    model: Model
    steps: tuple[PlannedStep, ...]
    calibration: tuple[Prompt, ...]
    key: str
    """Of the artefact."""
    built: bool = False
    """Whether the artefact is there already."""

    @property
    def missing(self) -> tuple[PlannedStep, ...]:
        """The steps that have yet to be built: those after the last that is there."""
        done = max((number for number, step in enumerate(self.steps, start=1) if step.built), default=0)
        return () if self.built else self.steps[done:]

    @property
    def expected_s(self) -> float | None:
        """Seconds that the missing steps took last time; None if one of them was never built here."""
        times = [step.last_s for step in self.missing]
        return None if None in times else sum(t for t in times if t is not None)


def order(techniques: Sequence[Technique], start: frozenset[str] = START) -> list[Technique]:
    """Put techniques into a legal order by what they need, take and give, staying near the order given.

    The as-is export is added unless it's there. Raises IllegalRecipeError with a sentence that names the two steps that
    can't be stacked, or the step that lacks something.
    """
    stack = list(techniques)
    if not any(isinstance(t, AsIs) for t in stack):
        stack.insert(0, AsIs())
    found = _deepest(stack, start)
    if len(found) < len(stack):
        raise IllegalRecipeError(_why_illegal(stack, found, start))
    return [stack[index] for index in found]


def _deepest(stack: Sequence[Technique], start: frozenset[str]) -> tuple[int, ...]:
    """Return the first of the longest legal orders, by index; depth-first, the order given before any other."""
    best: tuple[int, ...] = ()
    seen: set[tuple[frozenset[int], frozenset[str]]] = set()
    to_try: list[tuple[tuple[int, ...], frozenset[str]]] = [((), start)]
    while to_try and len(best) < len(stack):
        done, state = to_try.pop()
        if (here := (frozenset(done), state)) in seen:
            continue
        seen.add(here)
        if len(done) > len(best):
            best = done
        to_try += [
            ((*done, index), (state - technique.takes) | technique.gives)
            for index, technique in reversed(list(enumerate(stack)))
            if index not in done and technique.needs <= state
        ]
    return best


def _why_illegal(stack: Sequence[Technique], legal: Sequence[int], start: frozenset[str]) -> str:
    """Say which two steps clash, or what a step lacks; `legal` is the longest part of the stack that has an order."""
    for what in sorted(frozenset[str]().union(*(t.takes for t in stack))):
        takers = [t for t in stack if what in t.takes & t.needs]
        supply = (what in start) + sum(what in t.gives for t in stack)
        if len(takers) > max(supply, 1):
            first, second = takers[:2]
            if first.name() == second.name():
                return f"{second.name()} stands twice in the recipe: it can be applied once."
            return f"{second.name()} can't be stacked on {first.name()}: both need {what}, which the first uses up."
    state = start
    for index in legal:
        state = (state - stack[index].takes) | stack[index].gives
    left = [technique for index, technique in enumerate(stack) if index not in legal]
    for technique in left:
        others = frozenset[str]().union(start, *(t.gives for t in stack if t is not technique))
        if nowhere := technique.needs - state - others:
            return f"{technique.name()} needs {min(nowhere)}, which neither the model nor another step of the recipe gives."
    for technique in left:
        for before in (stack[index] for index in reversed(legal)):
            if gone := (technique.needs - state) & before.takes:
                return (
                    f"{technique.name()} can't be stacked on {before.name()}: it needs {min(gone)}, which that uses up."
                )
    return f"{left[0].name()} and {left[1].name()} can't be stacked: each waits for what another step would give."


def make(recipe: Recipe, model: Model, calibration: Sequence[Prompt] = ()) -> Plan:
    """Plan the build of a recipe; what's already built is known by its key.

    Raises IllegalRecipeError for a stack that has no legal order or doesn't fit the model or the engine.
    """
    engine = engines.find(recipe.engine)
    prompts = tuple(calibration[:CALIBRATION_PROMPTS])
    for technique in recipe.techniques:
        engine.check(technique)
        technique.check(model.facts)
        technique.check_model(model)
    start = START | ({"gguf grid"} if model.kind == "gguf" and has_grid(model.path) else frozenset())
    techniques = order(recipe.techniques, start)
    source = content_hash({"model": model.fingerprint})
    steps: list[PlannedStep] = []
    if model.kind == "gguf" and not engine.reads_gguf:
        source = content_hash({"import": IMPORT_REVISION, "source": source})
        steps.append(_planned(None, source, model, engine))
    made_with = [engine.name, engine.format, engine.version(), engine.tools()]
    read = [p.model_dump(mode="json", include={"prompt", "messages", "token_ids"}) for p in prompts]
    for technique in techniques:
        if technique.builds:
            source = content_hash(
                {
                    "engine": made_with,
                    "technique": technique.identity(),
                    "source": source,
                    "calibration": read if technique.calibrated else None,
                }
            )
            steps.append(_planned(technique, source, model, engine))
    key = content_hash(
        {
            "artifact": ARTIFACT_REVISION,
            "weights": source,
            "settings": recipe.effective_settings().identity(),
            "said of it": [model.name, model.licence, recipe.label],
        }
    )
    return Plan(recipe, model, tuple(steps), prompts, key, store.has(key))


def _planned(technique: Technique | None, key: str, model: Model, engine: Engine) -> PlannedStep:
    facts = model.facts
    known = store.history(_history_name(technique, model, engine.name))
    if technique is None:
        # float16 weights beside the grid that they were made of, at most one file of them in memory.
        weights_mb = facts.parameters * 2 / 1e6
        memory_mb = 250 + 1.5 * min(weights_mb, SHARD_BYTES / 1e6) + facts.vocab_size * facts.hidden_size * 8 / 1e6
        disk_mb = weights_mb * 1.35
    else:
        memory_mb, disk_mb = engine.build_needs_mb(technique, facts)
    return PlannedStep(
        label=technique.label if technique else IMPORT_LABEL,
        key=key,
        technique=technique,
        built=store.has(key),
        memory_mb=known["memory_mb"] if known else memory_mb,
        disk_mb=disk_mb,
        last_s=known["seconds"] if known else None,
    )


def _history_name(technique: Technique | None, model: Model, engine: str) -> str:
    return f"{technique.label if technique else IMPORT_LABEL} of {model.fingerprint[:16]} for {engine}"


def remember(step: PlannedStep, plan: Plan, seconds: float, memory_mb: float) -> None:
    """Keep how long a step took and how much memory, for the next plan."""
    name = _history_name(step.technique, plan.model, plan.recipe.engine)
    store.remember(name, {"seconds": seconds, "memory_mb": memory_mb})


def check_room(plan: Plan, folder: Path) -> None:
    """Raise NotEnoughError if memory or disk for the missing steps isn't there, before anything starts."""
    if not plan.missing:
        return
    available_mb = available_memory() / 1e6
    hungriest = max(plan.missing, key=lambda s: s.memory_mb)
    if hungriest.memory_mb > available_mb:
        raise NotEnoughError(
            f"The step {hungriest.label} needs about {hungriest.memory_mb:,.0f} MB of memory and {available_mb:,.0f} MB are free."
        )
    disk_mb = sum(step.disk_mb for step in plan.missing)
    free_mb = shutil.disk_usage(folder).free / 1e6
    if disk_mb > free_mb:
        raise NotEnoughError(
            f"Building {plan.recipe.label} needs about {disk_mb:,.0f} MB of disk and {free_mb:,.0f} MB are free at {folder}."
        )
