"""Choices: the values that a search tries for a field, written down at the field itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Choices:
    """Field metadata: the values that a search tries. `Annotated[int, Choices(32, 64)]`."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        object.__setattr__(self, "values", values)


def choices_of(model: type[BaseModel]) -> Mapping[str, tuple[Any, ...]]:
    """Return the values that a search tries, for each field of a model that says so."""
    return {
        key: meta.values
        for key, info in model.model_fields.items()
        for meta in info.metadata
        if isinstance(meta, Choices)
    }
