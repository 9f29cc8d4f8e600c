"""Trade-offs: what recipes cost each other: points on a front, techniques in a stack, recipes that overtake one another."""

from __future__ import annotations

from pydantic import Field

from quicksilver.nouns.base import Noun
from quicksilver.nouns.score import Figure


class Point(Noun):
    """A recipe by the three things that one pays with; smaller is better in each."""

    label: str
    cost: Figure = Field(description='price of a token against the as-is model ("x"), geometric mean over the loads')
    latency: Figure = Field(
        description='median time of an answer against the as-is model ("x"), at the lowest concurrency'
    )
    loss: Figure | None = Field(None, description="quality loss, percent; a gain counts as none. None if not measured")
    on_front: bool = Field(description="no other recipe is surely better in one of them and at least as good in all")


class Part(Noun):
    """One technique of a stack, alone or with what it can't run without."""

    technique: str
    label: str = Field(description="the recipe that was measured for it")
    ratios: tuple[Figure | None, ...] = Field(description="tokens/s against the as-is model, by load")
    remark: str = Field("", description="what it can't run without, or why it wasn't measured; one sentence")


class Interactions(Noun):
    """What each technique of a stack gives alone, what the stack gives, and what the product would have promised."""

    label: str = Field(description="the stack")
    concurrencies: tuple[int, ...]
    parts: tuple[Part, ...]
    stack: tuple[Figure | None, ...] = Field(description="tokens/s of the whole stack against the as-is model, by load")
    product: tuple[Figure | None, ...] = Field(
        description="the parts' ratios multiplied, by load; None where one of them wasn't measured"
    )


class Crossover(Noun):
    """Two recipes, and whether one overtakes the other as the load grows."""

    first: str = Field(description="the recipe that is ahead at the lowest load where one is, or just one of the two")
    second: str
    concurrencies: tuple[int, ...] = Field(description="the loads at which both were measured side by side")
    ahead: bool = Field(description="whether the first is ahead beyond the noise at any load")
    between: tuple[int, int] | None = Field(
        None, description="the measured loads between which the second overtakes the first, beyond the noise at both"
    )
    streams: Figure | None = Field(
        None, description="where they are level, by interpolation; None if rounds are too few for an interval"
    )
