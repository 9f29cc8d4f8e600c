"""Engines: what runs an artefact. One file (or folder) here is one engine, and its file's name is its name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType

from quicksilver import environments
from quicksilver.errors import EngineError, unknown
from quicksilver.hardware import lacking
from quicksilver.nouns import Engine

GROUP = "quicksilver.engines"
"""The entry-point group for engines of other packages."""
NOT_ENGINES = {"grammar", "grammar_check", "guard", "process"}


def names() -> list[str]:
    """Return the names of all engines, without importing any of them."""
    return sorted(_here() | set(_outside()))


def find(name: str) -> Engine:
    """Return an engine. Raises BadInputError for an unknown name, EngineError if it can't be imported."""
    here = _here()
    if name in here:
        module = f"{__name__}.{name}"
    elif name in (outside := _outside()):
        module = outside[name]
    else:
        raise unknown("engine", name, here | set(outside))
    try:
        return _engine_in(importlib.import_module(module), name)
    except ImportError as error:
        raise EngineError(f"The engine {name!r} can't be imported: {error}.") from error


def installed(name: str) -> Engine:
    """Return an engine that is installed and runs on this CPU. Raises EngineError, which says the one command that mends it."""
    engine = find(name)
    engine.version()
    lacks = lacking(engine.isa)
    if lacks and not (engine.abilities.native and environments.native(engine.environment)):
        raise EngineError(
            f"The packages of the engine {name} are built for {', '.join(lacks)}, which this CPU doesn't have. "
            f"What helps: {without_instructions(engine)}"
        )
    return engine


def without_instructions(engine: Engine) -> str:
    """Say what to do where this CPU lacks instructions that an engine's packages are built for."""
    if engine.abilities.native:
        return f"quicksilver engine add {engine.environment} --native"
    return "use another engine on this machine, or another machine."


def _here() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(__path__)} - NOT_ENGINES


def _outside() -> dict[str, str]:
    return {entry.name: entry.module for entry in entry_points(group=GROUP)}


def _engine_in(module: ModuleType, name: str) -> Engine:
    found = [
        value
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, Engine) and not inspect.isabstract(value) and value.__module__.startswith(module.__name__)
    ]
    if len(found) != 1 or found[0].name != name:
        raise EngineError(f"{module.__name__} has to define one Engine whose name is {name!r}.")
    engine: Engine = found[0]()
    return engine
