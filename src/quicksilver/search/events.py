"""Event: what a long run tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """How far a run is. Counts go into `done` and `total`: a new `text` means that something else has begun."""

    phase: str
    """What the time is spent on, in a word or two: `build`, `quality`, `race`."""
    text: str
    """What is being done, such as the recipe that is built or measured."""
    done: float | None = None
    """How much of the phase is done, in the unit of `total`."""
    total: float | None = None
    left_s: float | None = None
    """Seconds that the whole run is expected to take from now; None while nothing is known."""
    best: str = ""
    """What is best so far, in a few words."""
