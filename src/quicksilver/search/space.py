"""Space: the recipes that a search may try, from the techniques' own fields."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from quicksilver import techniques
from quicksilver.build import plan
from quicksilver.errors import IllegalRecipeError
from quicksilver.nouns.model import Model
from quicksilver.nouns.recipe import Recipe
from quicksilver.nouns.technique import Technique
from quicksilver.sources.gguf_grid import has_grid

AUTOMATIC = ("as-is",)
"""Techniques that every recipe has anyway."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A technique, or a setting of one, that isn't tried, and why."""

    label: str
    reason: str


def variants(cls: type[Technique]) -> Iterator[Technique]:
    """Yield a technique with every combination of the values that its fields name for a search."""
    space = cls.space()
    if any(field.is_required() for field in cls.model_fields.values()):
        return  # such as a draft's folder: the user has to bring it
    for values in itertools.product(*space.values()):
        yield cls(**dict(zip(space, values, strict=True)))


def weights(model: Model) -> tuple[list[Technique], list[LeftOut]]:
    """Return the ways to round the model's weights, and those that don't fit, with the reason.

    Of a technique that fits in several ways, such as group sizes, the first is tried: its finest.
    """
    start = plan.START | ({"gguf grid"} if model.kind == "gguf" and has_grid(model.path) else frozenset())
    found: list[Technique] = []
    left_out: list[LeftOut] = []
    for cls in _classes():
        if not (cls.builds and "float weights" in cls.takes):
            continue
        fitting = [t for t in variants(cls) if _fits(t, model, start, left_out)]
        found += fitting[:1]
        left_out += [LeftOut(t.label, f"{fitting[0].label} is tried for this technique") for t in fitting[1:]]
    return found, left_out


def preparations(model: Model, left_out: list[LeftOut]) -> list[Technique]:
    """Return what can be done to the model's files before its weights are rounded; what doesn't fit is noted."""
    return [
        variant
        for cls in _classes()
        if cls.builds and cls.needs <= plan.START and "hf" in cls.needs - cls.takes
        for variant in variants(cls)
        if _suits(variant, model, left_out)
    ]


def numerics(way: Technique, model: Model, left_out: list[LeftOut]) -> list[Technique]:
    """Return the settings that change what a way of rounding weights computes, boldest first; what doesn't fit is noted."""
    return [
        variant
        for cls in _classes()
        if not cls.builds and cls.changes_output and cls.needs - plan.START <= way.gives and cls.needs - plan.START
        for variant in variants(cls)
        if _suits(variant, model, left_out)
    ]


def serving() -> list[Technique]:
    """Return the techniques that change how tokens are served and not which; those with values to choose come first."""
    return [
        variant
        for cls in sorted(_classes(), key=lambda cls: not cls.space())
        if not cls.builds and not cls.changes_output and cls.needs <= plan.START
        for variant in variants(cls)
    ]


def stacks(first: Sequence[Technique], more: Iterable[Technique]) -> Iterator[tuple[Technique, ...]]:
    """Yield the legal stacks of `first` with any subset of `more`, small ones first."""
    options = list(more)
    for size in range(1, len(options) + 1):
        for subset in itertools.combinations(options, size):
            stack = (*first, *subset)
            try:
                plan.order(stack, plan.START | {"gguf grid"})
            except IllegalRecipeError:
                continue
            yield stack


def recipe(model: Model, stack: Sequence[Technique], engine: str) -> Recipe:
    """Return the recipe of a stack for a model."""
    return Recipe(model=model.source, techniques=tuple(stack), engine=engine)


def _classes() -> list[type[Technique]]:
    return [techniques.find(name) for name in techniques.names() if name not in AUTOMATIC]


def _suits(technique: Technique, model: Model, left_out: list[LeftOut]) -> bool:
    try:
        technique.check(model.facts)
    except IllegalRecipeError as error:
        note = LeftOut(technique.label, str(error))
        if note not in left_out:
            left_out.append(note)
        return False
    return True


def _fits(technique: Technique, model: Model, start: frozenset[str], left_out: list[LeftOut]) -> bool:
    if not _suits(technique, model, left_out):
        return False
    try:
        plan.order([technique], start)
    except IllegalRecipeError as error:
        left_out.append(LeftOut(technique.label, str(error)))
        return False
    return True
