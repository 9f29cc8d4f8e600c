"""Budget: what comes next takes so long, by what this run has shown, and what is kept back for what has to come after it."""

from __future__ import annotations

from dataclasses import dataclass

from quicksilver.search.state import Search

FINAL_COST, START_COST = 2.2, 0.4
"""A whole round of the final over a short race, an entry in time (measured on hotpotqa: 2.6); the second part is there for any share of it."""
FINAL_SHARE = 0.25
"""Share of the budget that a round of the final may take; it gets smaller where it would take longer."""
AFTER_S = 20.0
"""Seconds that the winner's table of guesses takes at least."""
AFTER_COST = 1.3
"""The same over an entry of a short race."""
PRESETS_SHARE = 0.08
"""Share of the budget that is kept for the presets' benchmark."""
ALONE, ALONE_SHARE = 4, 0.12
"""So many of the winner's techniques can be raced alone after the final, in this share of the budget at most: what each is worth is an answer, too."""
SLOW = 25
"""With no room for so many entries of a short race in the budget, nothing is kept for these two: they have what is left."""
WEIGHTS_SHARE = 0.5
"""Share of what is left before the final that the race of weights may take: how to serve them is worth as much."""
UNKNOWN = 64
"""Entries that there is room for while nobody knows how long one takes."""


@dataclass(frozen=True, slots=True)
class Final:
    """How large a final is: recipes beside the as-is model, and the share of a whole round's prompts."""

    finalists: int
    share: float

    def round_s(self, search: Search) -> float:
        """Seconds that a round of it takes; 0 while nothing was raced."""
        return (
            (START_COST + FINAL_COST * self.share)
            * (self.finalists + 1 + bool(search.others))
            * (search.entry_s or 0.0)
        )


SIZES = (Final(2, 1.0), Final(2, 0.5), Final(1, 0.5))
"""Finals, the largest first. The last is there however late it is: answers are judged by it."""


def table_s(search: Search) -> float:
    """Seconds that the winner's table of guesses is likely to take."""
    return max(AFTER_S, AFTER_COST * (search.entry_s or 0.0))


def after_s(search: Search) -> float:
    """Seconds that are kept for what comes last: the winner's table, and the presets but for a quick search."""
    return table_s(search) + (0.0 if _narrow(search) else PRESETS_SHARE * search.run.budget_s)


def alone_s(search: Search) -> float:
    """Seconds that are kept between the final and that, for the winner's techniques alone."""
    return 0.0 if _narrow(search) else min(ALONE_SHARE * search.run.budget_s, (ALONE + 1) * (search.entry_s or 0.0))


def _narrow(search: Search) -> bool:
    """Whether the search is a quick one, or its budget small for this machine."""
    return search.quick or (search.entry_s is not None and SLOW * search.entry_s > search.run.budget_s)


def left_s(search: Search) -> float:
    """Seconds that are left before the final has to begin."""
    most = FINAL_SHARE * search.run.budget_s
    kept = next((cost for size in SIZES if (cost := size.round_s(search)) <= most), SIZES[-1].round_s(search))
    return search.run.left_s - kept - alone_s(search) - after_s(search)


def room(search: Search, weight: int = 1) -> int:
    """Return how many entries budget and trials have room for in a race beside the as-is model, before the final."""
    left = UNKNOWN if search.trials is None else max(0, search.trials - search.trials_used) // weight
    if search.entry_s is None:
        return left
    return min(left, max(0, int(left_s(search) / (search.entry_s * weight)) - 1))


def has_room(search: Search, seconds: float, entries: int) -> bool:
    """Whether there is room for something that takes so long, and for racing so many entries beside the as-is model."""
    return seconds == 0 or seconds + (entries + 1) * (search.entry_s or 0.0) <= left_s(search)


def final(search: Search) -> Final:
    """Return the largest final that there is room for, or the smallest."""
    left = search.run.left_s - after_s(search)
    if search.entry_s is None:
        return SIZES[0] if left >= FINAL_SHARE * search.run.budget_s else SIZES[-1]
    return next((size for size in SIZES if size.round_s(search) <= left), SIZES[-1])
