"""Recipes of a plan by words: which layouts a user wants to see, and with which acceptance of guesses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import get_args

from pydantic import ValidationError

from quicksilver.errors import BadInputError, unknown
from quicksilver.nouns.prediction import CachePrecision, Guessing, Layout, Precision

_DEGREE = re.compile(r"(tp|pp)([0-9]{1,3})")
_ACCEPTANCE = re.compile(r"\s*(-?[0-9]+(?:\.[0-9]+)?)\s*/\s*(-?[0-9]+)\s*")
_WORDS = (
    *get_args(Precision),
    *(f"{precision}-cache" for precision in get_args(CachePrecision)),
    *("tp1", "tp2", "tp4", "tp8", "pp2", "guess", "plain"),
)


def parse(text: str) -> tuple[tuple[str, ...], ...]:
    """Read recipes such as `fp8,int4+tp4,bf16+guess`: each by words that all have to fit. Raises BadInputError for a word."""
    found = []
    for part in text.lower().split(","):
        words = tuple(word.strip() for word in part.split("+"))
        for word in words:
            if word not in _WORDS and _DEGREE.fullmatch(word) is None:
                raise unknown("word for recipes", word, _WORDS)
        found.append(words)
    return tuple(found)


def chosen(layouts: Sequence[Layout], recipes: Sequence[Sequence[str]]) -> list[Layout]:
    """Return the layouts that fit all words of a recipe; all, if there are no recipes."""
    if not recipes:
        return list(layouts)
    return [layout for layout in layouts if any(all(_fits(layout, word) for word in words) for words in recipes)]


def acceptance(text: str) -> Guessing:
    """Read `2.0/3`: of three guessed tokens two are accepted in the mean. Raises BadInputError."""
    found = _ACCEPTANCE.fullmatch(text)
    if found is None:
        raise BadInputError(
            f"{text!r} is no acceptance; write 2.0/3 if of 3 guessed tokens 2.0 are accepted in the mean."
        )
    accepted, tokens = float(found[1]), int(found[2])
    try:
        return Guessing(tokens=tokens, accepted=accepted)
    except ValidationError as error:
        if accepted > tokens > 0:
            raise BadInputError(f"Of {tokens} guessed tokens {accepted:g} can't be accepted.") from error
        raise BadInputError(
            f"{text!r}: 1 to 16 tokens are guessed in a step, of which 0 or more are accepted."
        ) from error


def guessed(layouts: Sequence[Layout], given: Guessing | None) -> list[Layout]:
    """Return layouts whose speculation has this length and acceptance; where none guesses, each one guesses besides.

    It is taken for a draft's where there are drafts: prompt lookup costs nothing, and seldom has a stated acceptance.
    """
    if given is None:
        return list(layouts)
    found: dict[Layout, None] = {}
    for layout in layouts:
        if layout.guessing is None:
            found[layout] = None
    every = [layout for layout in layouts if layout.guessing is not None]
    guessing = [one for one in every if one.guessing and one.guessing.draft_parameters] or every or list(found)
    for layout in guessing:
        drafted = layout.guessing.draft_parameters if layout.guessing is not None else 0
        own = given.model_copy(update={"draft_parameters": drafted})
        found[layout.model_copy(update={"guessing": own})] = None
    return list(found)


def _fits(layout: Layout, word: str) -> bool:
    if (degree := _DEGREE.fullmatch(word)) is not None:
        own = layout.tensor_parallel if degree[1] == "tp" else layout.pipeline_parallel
        return own == int(degree[2])
    if word == "guess":
        return layout.guessing is not None
    if word == "plain":
        return layout.guessing is None
    if word.endswith("-cache"):
        return layout.cache == word.removesuffix("-cache")
    return layout.weights == word
