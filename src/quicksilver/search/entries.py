"""Entries: recipes that join a search, and their artefacts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from quicksilver.build import build as building
from quicksilver.build import plan as planning
from quicksilver.build.plan import Plan, PlannedStep
from quicksilver.errors import BuildError, EngineError, IllegalRecipeError, NotEnoughError
from quicksilver.nouns.recipe import Recipe
from quicksilver.nouns.technique import Technique
from quicksilver.search import space
from quicksilver.search.state import Entry, Search

PLAIN_BUILD_S, CALIBRATED_BUILD_S = 15.0, 90.0
"""What a build step takes that was never built here, measured on the 135M."""


def add(
    search: Search, stack: Sequence[Technique], settings: Sequence[tuple[str, Any]] = (), engine: str = ""
) -> Entry:
    """Let a recipe join the search, or return the entry that it is already; on its first engine if none is named."""
    return join(search, space.recipe(search.model, stack, engine or search.engine, settings))


def join(search: Search, recipe: Recipe) -> Entry:
    """Let a recipe join the search, or return the entry that it is already."""
    known = next((entry for entry in search.entries if entry.hash == recipe.hash), None)
    if known is not None:
        return known
    entry = Entry(recipe=recipe, stack=recipe.techniques, label=search.label(recipe))
    search.entries.append(entry)
    return entry


def as_is(search: Search, engine: str) -> Entry | None:
    """Return the model as it comes on an engine; None if it hasn't joined."""
    if engine == search.engine:
        return search.baseline
    recipe = space.recipe(search.model, (), engine)
    return next((entry for entry in search.entries if entry.hash == recipe.hash), None)


def build(search: Search, entry: Entry, *, must: bool = False) -> None:
    """Build an entry's artefact; one that fails is out of the race, with its reason, unless it must succeed."""
    run = search.run
    begun = time.monotonic()
    try:
        with run.phase("build"):
            plan = planning.make(entry.recipe, search.model, search.workload.calibration)
            had = not plan.missing
            run.tell("build", entry.label)
            entry.artifact = building.build(plan, say=lambda text: run.tell("build", text), log=run.log)
            entry.build_s = 0.0 if had else time.monotonic() - begun
            guessed = sum(_guess_s(search, step) for step in plan.missing)
            if guessed and all(step.last_s is None for step in plan.missing):
                search.build_pace = max(search.build_pace, entry.build_s / guessed)
    except (BuildError, NotEnoughError, IllegalRecipeError, EngineError) as error:
        if must:
            raise
        entry.status, entry.reason = "failed", str(error)


def plan_of(search: Search, stack: Sequence[Technique], engine: str) -> Plan:
    """Plan the build of a stack for an engine, to see what it would take."""
    return planning.make(space.recipe(search.model, stack, engine), search.model, search.workload.calibration)


def expected_build_s(search: Search, stack: Sequence[Technique], engine: str) -> float:
    """Seconds that the missing steps took last time; a guess by kind for those that are new, by the pace of those before."""
    missing = plan_of(search, stack, engine).missing
    return sum(search.build_pace * _guess_s(search, step) if step.last_s is None else step.last_s for step in missing)


def _guess_s(search: Search, step: PlannedStep) -> float:
    usual = CALIBRATED_BUILD_S if step.technique and step.technique.calibrated else PLAIN_BUILD_S
    return usual * max(1.0, search.model.facts.parameters / 135e6)
