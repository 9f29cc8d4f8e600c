"""Techniques: one file each; the file's name, with dashes, is the technique's name."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from quicksilver.errors import BadInputError, unknown
from quicksilver.nouns.technique import Technique


@cache
def names() -> tuple[str, ...]:
    """Return the names of all techniques found, sorted. Nothing is imported for it."""
    here = {m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")}
    return tuple(sorted(here | {e.name for e in entry_points(group="quicksilver.techniques")}))


@cache
def find(name: str) -> type[Technique]:
    """Return the technique class of a name. Raises BadInputError with the nearest name for an unknown one."""
    plain = name.lower().replace("_", "-")
    if plain not in names():
        raise unknown("technique", name, names())
    outside = [e for e in entry_points(group="quicksilver.techniques") if e.name == plain]
    module_name = outside[0].module if outside else f"{__name__}.{plain.replace('-', '_')}"
    module = importlib.import_module(module_name)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Technique) and value.__module__ == module_name
    ]
    if len(found) != 1:
        raise TypeError(f"{module_name} has to define exactly one Technique, not {len(found)}")
    return found[0]


def by_class_name(class_name: str) -> type[Technique] | None:
    """Return the technique of a class name, such as PromptLookup, or None."""
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", class_name).lower()
    return find(plain) if plain in names() and find(plain).__name__ == class_name else None


def make(document: Mapping[str, Any] | str) -> Technique:
    """Make a technique from its name, or from a mapping with `name` and fields. Raises BadInputError."""
    fields = {"name": document} if isinstance(document, str) else dict(document)
    name = fields.pop("name", None) or fields.pop("technique", None)
    fields.pop("revision", None)
    if not isinstance(name, str):
        raise BadInputError("A technique needs a name.")
    cls = find(name)
    for key in fields:
        if key not in cls.model_fields:
            raise unknown(f"field of {cls.name()}", key, cls.model_fields)
    try:
        return cls.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInputError(f"{cls.name()}: {where}: {first['msg']}.") from error
