"""The errors that reach a user: one clear sentence each, never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QuicksilverError(Exception):
    """Something the user can act on; the message is one whole sentence."""

    exit_code = 1


class BadInputError(QuicksilverError):
    """What was given can't be used: a missing file, a broken line, a wrong value."""

    exit_code = 2


class IllegalRecipeError(BadInputError):
    """The techniques of a recipe can't be stacked, or don't fit the model."""


class NotEnoughError(QuicksilverError):
    """The machine lacks memory or disk for what was asked."""

    exit_code = 3


class BuildError(QuicksilverError):
    """A build step failed."""

    exit_code = 4


class EngineError(QuicksilverError):
    """An engine could not be started, or died."""

    exit_code = 5


def said(error: BaseException) -> str:
    """Return what a library's error says, on one line and without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # OpenVINO's first lines say where in its source; what it says is the last.
    return (lines[-1] if lines[0].startswith("Exception from") else lines[0]).rstrip(".:")


def unknown(kind: str, name: str, known: Iterable[str]) -> BadInputError:
    """Make the error for an unknown name, with the nearest known one as a suggestion."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}."
    return BadInputError(f"There is no {kind} named {name!r}; {hint}")
