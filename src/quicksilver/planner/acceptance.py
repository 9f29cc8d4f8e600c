"""Acceptance of guesses as it was measured: from the speculation tables of artefacts in the store."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quicksilver.build import store
from quicksilver.errors import BadInputError
from quicksilver.nouns.artifact import Artifact
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.prediction import Guessing, Layout
from quicksilver.nouns.speculation import SpeculationTable
from quicksilver.planner import models

MOST_TOKENS = 16
"""That a plan lets a step guess."""


def measured(facts: ModelFacts) -> Guessing | None:
    """Return prompt lookup as it was measured for a model, by the table that was made last; None if there is none.

    Of the lengths that the table has it is the one with the most tokens/s at its fewest streams. A step guesses fewer tokens than
    it may where the text isn't found again: `tokens` is that mean, rounded up.
    """
    objects = store.keys()
    found = [one for key in objects if (one := _of(key, facts)) is not None]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def put(layouts: Sequence[Layout], known: Guessing | None) -> tuple[Layout, ...]:
    """Return layouts whose prompt lookup is as it was measured, if it was; drafts and heads stay as they are stated."""
    if known is None:
        return tuple(layouts)
    return tuple(
        layout.model_copy(update={"guessing": known})
        if layout.guessing is not None and layout.guessing.draft_parameters == 0
        else layout
        for layout in layouts
    )


def _of(key: str, facts: ModelFacts) -> tuple[float, Guessing] | None:
    """Return when an object was made, and what its table says; None for what isn't such an artefact of the model."""
    try:
        table = SpeculationTable.read(store.path(key))
        if table is None:
            return None
        artifact, created = Artifact.open(store.path(key)), float(store.manifest(key).get("created", 0.0))
        mine = models.facts(artifact.model)
    except (BadInputError, ValueError):
        return None  # of a model that plans don't know, or a table of another version
    if mine.model_copy(update={"instruct": facts.instruct}) != facts:
        return None
    rates = table.tokens_per_s[0]
    place = max(range(len(rates)), key=lambda at: rates[at])
    gained, guessed = table.gained[place] - 1, math.ceil(table.guessed[place])
    if not 1 <= guessed <= MOST_TOKENS or not 0 <= gained <= guessed:
        return None  # guessing didn't pay
    origin = f"measured on {table.workload or 'its workload'} with {artifact.label} ({table.machine})"
    return created, Guessing(tokens=guessed, accepted=round(gained, 2), origin=origin)
