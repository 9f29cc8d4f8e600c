"""Space: the recipes that a search may try, from the techniques' own fields and from the engine's settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quicksilver import techniques
from quicksilver.build import plan
from quicksilver.errors import IllegalRecipeError
from quicksilver.nouns.engine import Engine
from quicksilver.nouns.model import Model
from quicksilver.nouns.recipe import Recipe
from quicksilver.nouns.settings import Settings
from quicksilver.nouns.technique import Technique
from quicksilver.sources.gguf_grid import has_grid

AUTOMATIC = ("as-is",)
"""Techniques that every recipe has anyway."""
ENGINE = "engine"
"""The dimension of engines, where a space has several."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A technique, or a setting of one, that isn't tried, and why."""

    label: str
    reason: str


def start_of(model: Model) -> frozenset[str]:
    """Return what holds of a model before any technique."""
    return plan.START | ({"gguf grid"} if model.kind == "gguf" and has_grid(model.path) else frozenset())


def variants(cls: type[Technique]) -> Iterator[Technique]:
    """Yield a technique with every combination of the values that its fields name for a search."""
    space = cls.space()
    if any(field.is_required() for field in cls.model_fields.values()):
        return  # such as a draft's folder: the user has to bring it
    for values in itertools.product(*space.values()):
        yield cls(**dict(zip(space, values, strict=True)))


def weights(model: Model, engine: Engine) -> tuple[list[Technique], list[LeftOut]]:
    """Return the ways to round the model's weights for an engine, and those that don't fit, with the reason.

    Of a technique that fits in several ways, such as group sizes, the first is tried: its finest. Of one that says `each` all are.
    """
    start = start_of(model)
    found: list[Technique] = []
    left_out: list[LeftOut] = []
    for cls in _classes():
        if not (cls.builds and "float weights" in cls.takes):
            continue
        fitting = [t for t in variants(cls) if does(engine, t) and _fits(t, model, start, left_out)]
        if cls.each:
            found += fitting
            continue
        found += fitting[:1]
        left_out += [LeftOut(t.label, f"{fitting[0].label} is tried for this technique") for t in fitting[1:]]
    return found, left_out


def preparations(model: Model, engine: Engine, left_out: list[LeftOut]) -> list[Technique]:
    """Return what can be done to the model's files before an engine's weights are rounded; what doesn't fit is noted."""
    return [
        variant
        for cls in _classes()
        if cls.builds and cls.needs <= plan.START and "hf" in cls.needs - cls.takes
        for variant in variants(cls)
        if does(engine, variant) and _suits(variant, model, left_out)
    ]


def numerics(way: Technique, model: Model, engine: Engine, left_out: list[LeftOut]) -> list[Technique]:
    """Return the settings that change what a way of rounding weights computes, boldest first; what doesn't fit is noted."""
    return [
        variant
        for cls in _classes()
        if not cls.builds and cls.changes_output and cls.needs - plan.START <= way.gives and cls.needs - plan.START
        for variant in variants(cls)
        if does(engine, variant) and _suits(variant, model, left_out)
    ]


def serving(engine: Engine) -> list[Technique]:
    """Return the techniques of an engine that are switched on by settings alone, without regard to how weights were rounded."""
    return [
        variant
        for cls in _classes()
        if not cls.builds and cls.needs <= plan.START
        for variant in variants(cls)
        if variant.settings() and does(engine, variant)
    ]


def does(engine: Engine, technique: Technique) -> bool:
    """Whether an engine can build and serve a technique. What is for other engines is no choice of its own, and isn't noted."""
    try:
        engine.check(technique)
    except IllegalRecipeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Configuration:
    """A legal stack with its settings on an engine: what a search can try."""

    base: tuple[Technique, ...]
    """What makes the weights and their numerics."""
    serving: tuple[Technique, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    """Those that aren't at their defaults."""
    engine: str = ""
    """Empty where there is one only, and it is known."""

    @property
    def stack(self) -> tuple[Technique, ...]:
        return (*self.base, *self.serving)

    @property
    def numerics(self) -> tuple[Technique, ...]:
        """The techniques that its quality depends on."""
        return (*self.base, *(t for t in self.serving if t.changes_output))

    @property
    def computes(self) -> tuple[str, frozenset[Technique]]:
        """What its quality depends on: configurations that share it have one quality."""
        return self.engine, frozenset(self.numerics)


@dataclass(frozen=True, slots=True)
class Dimension:
    """One thing that can be chosen. What has no meaning in a configuration, such as a group size without groups, is None there."""

    name: str
    values: tuple[Any, ...]
    ordered: bool
    """Whether neighbouring values are alike."""
    setting: bool = False
    """Whether it is a setting of the engine, whose default is a considered choice, and not a technique."""
    numeric: bool = False
    """Whether quality depends on it."""


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """Every legal configuration, and where each lies."""

    configurations: tuple[Configuration, ...]
    dimensions: tuple[Dimension, ...]
    codes: NDArray[np.int64]
    """(configurations, dimensions): an index into the dimension's values."""

    def __len__(self) -> int:
        return len(self.configurations)

    def index(self, configuration: Configuration) -> int | None:
        """Return the place of a configuration, or None."""
        return next((n for n, other in enumerate(self.configurations) if other == configuration), None)


@dataclass(frozen=True, slots=True)
class Options:
    """What can be chosen on one engine: some bases, with further techniques and settings.

    Techniques that take the same thing exclude each other. A setting that one of the techniques can set is chosen through it; the
    first of a setting's values is its default.
    """

    bases: Sequence[Sequence[Technique]]
    more: Sequence[Technique]
    choices: Mapping[str, Sequence[Any]]
    start: frozenset[str] = plan.START
    engine: str = ""

    @property
    def free(self) -> dict[str, tuple[Any, ...]]:
        """The settings that are chosen by themselves, with their values."""
        through = {name for technique in self.more for name in technique.settings()}
        return {n: tuple(values) for n, values in self.choices.items() if n not in through and len(values) > 1}

    def configurations(self) -> Iterator[Configuration]:
        """Yield every legal choice."""
        slots: dict[str, list[Technique]] = {}
        for technique in self.more:
            slots.setdefault(_slot(technique), []).append(technique)
        free = self.free
        settings = [
            tuple(
                (name, value) for (name, value), values in zip(named, free.values(), strict=True) if value != values[0]
            )
            for named in (tuple(zip(free, picked, strict=True)) for picked in itertools.product(*free.values()))
        ]
        legal: dict[tuple[str, ...], bool] = {}
        for base in self.bases:
            for picked in itertools.product(*((None, *options) for options in slots.values())):
                stack = tuple(t for t in picked if t is not None)
                names = tuple(t.name() for t in (*base, *stack))
                if names not in legal:
                    legal[names] = _has_order((*base, *stack), self.start)
                if legal[names]:
                    for chosen in settings:
                        yield Configuration(tuple(base), stack, chosen, self.engine)


def combine(
    bases: Sequence[Sequence[Technique]],
    more: Sequence[Technique],
    choices: Mapping[str, Sequence[Any]],
    start: frozenset[str] = plan.START,
) -> Space:
    """Return the space of some bases with any legal choice of further techniques and of settings (`Options`)."""
    return union([Options(bases, more, choices, start)])


def union(options: Sequence[Options]) -> Space:
    """Return the space of what can be chosen on several engines; which of them it is becomes a dimension.

    A setting that an engine has no use for is at its default there.
    """
    free: dict[str, tuple[Any, ...]] = {}
    for each in options:
        for name, values in each.free.items():
            free[name] = tuple(dict.fromkeys((*free.get(name, ()), *values)))
    return _located([c for each in options for c in each.configurations()], free)


def _slot(technique: Technique) -> str:
    """Return what a technique takes, which is what it excludes others from; its own name if it takes nothing."""
    return min(technique.takes, default=technique.name())


def _has_order(stack: Sequence[Technique], start: frozenset[str]) -> bool:
    try:
        plan.order(stack, start)
    except IllegalRecipeError:
        return False
    return True


def _located(configurations: Sequence[Configuration], free: Mapping[str, tuple[Any, ...]]) -> Space:
    """Find the dimensions along which configurations differ, and the place of each."""
    known: dict[str, list[Any]] = {name: list(values) for name, values in free.items()}
    places: list[dict[str, Any]] = []
    for configuration in configurations:
        place: dict[str, Any] = {ENGINE: configuration.engine}
        place |= {name: values[0] for name, values in free.items()} | dict(configuration.settings)
        for technique in configuration.stack:
            slot = _slot(technique)
            place[slot] = technique.name()
            for field, values in technique.space().items():
                place[f"{slot}: {field}"] = getattr(technique, field)
                order = known.setdefault(f"{slot}: {field}", [])
                order += [value for value in values if value not in order]
        for name, value in place.items():
            if value not in (order := known.setdefault(name, [])):
                order.append(value)
        places.append(place)
    numerics = {t for configuration in configurations for t in configuration.numerics}
    dimensions: list[Dimension] = []
    columns: list[list[int]] = []
    for name, order in known.items():
        used = {place.get(name) for place in places}
        values = tuple(value for value in [None, *order] if value in used)
        # A field with one value says what its technique's name says.
        if len(values) > 2 or (len(values) == 2 and not (": " in name and None in values)):
            ordered = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values if v is not None)
            numeric = name == ENGINE or any(name.partition(": ")[0] == _slot(t) for t in numerics)
            dimensions.append(Dimension(name, values, ordered, setting=name in free, numeric=numeric))
            columns.append([values.index(place.get(name)) for place in places])
    codes = np.array(columns, dtype=np.int64).reshape(len(columns), len(places)).T
    return Space(tuple(configurations), tuple(dimensions), codes)


def recipe(model: Model, stack: Sequence[Technique], engine: str, settings: Sequence[tuple[str, Any]] = ()) -> Recipe:
    """Return the recipe of a stack for a model, with settings that aren't at their defaults."""
    return Recipe(model=model.source, techniques=tuple(stack), engine=engine, settings=Settings(**dict(settings)))


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
