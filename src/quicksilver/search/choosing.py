"""Choosing engines: which of them a search drives, in what order, and why others are left out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from quicksilver import engines
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns.engine import Engine
from quicksilver.search.space import LeftOut

ALL = "all"
FIRST = "openvino"
"""The engine of the as-is model that all are compared with, where nobody says another."""


@dataclass(frozen=True, slots=True)
class Driven:
    """The engines of a search, the one of the as-is model first."""

    names: tuple[str, ...]
    versions: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    reader: str = ""
    """Where none of them tells the log-probabilities of a prompt: an installed engine that does, whose as-is model reads answers."""

    @property
    def identity(self) -> str | dict[str, str]:
        """What tells runs apart: of one engine its version, as it was before there were several."""
        return self.versions[0] if len(self.names) == 1 else dict(zip(self.names, self.versions, strict=True))


def chosen_engines(wanted: str | Sequence[str]) -> Driven:
    """Return the engines of a list of names (also one text with commas), or of `all`, which leaves out what isn't installed.

    The first that tells the log-probabilities of a prompt comes first: by it all recipes are judged. Raises BadInputError for an unknown
    name or none, EngineError for a named engine that isn't installed.
    """
    names = [n.strip() for n in wanted.split(",")] if isinstance(wanted, str) else list(wanted)
    names = list(dict.fromkeys(n for n in names if n))
    if not names:
        raise BadInputError(f"Name at least one engine, such as {FIRST}, or {ALL}.")
    if names == [ALL]:
        return _all()
    if ALL in names:
        raise BadInputError(f"{ALL} stands for every engine: name no others beside it.")
    found = [engines.find(name) for name in names]
    if len(found) > 1 and (alien := next((e for e in found if not e.abilities.owned), None)) is not None:
        raise BadInputError(
            f"The engine {alien.name} is a server that somebody else started, so it can't be raced beside others: "
            "quicksilver bench measures it, and quicksilver compare judges its answers."
        )
    return _driven([(engine, engines.installed(engine.name).version()) for engine in found], [])


def _all() -> Driven:
    ready: list[tuple[Engine, str]] = []
    left_out: list[LeftOut] = []
    for name in _ordered():
        engine = engines.find(name)
        if engine.abilities.pretends or not engine.abilities.owned:
            continue
        try:
            ready.append((engine, engines.installed(name).version()))
        except EngineError as error:
            # Its own sentence names the one command that adds it.
            left_out.append(LeftOut(f"{name}: all recipes", str(error).rstrip(".")))
    if not ready:
        raise EngineError("No engine is installed; `quicksilver engine list` says how to add one.")
    return _driven(ready, left_out)


def _driven(ready: Sequence[tuple[Engine, str]], left_out: Sequence[LeftOut]) -> Driven:
    ordered = sorted(ready, key=lambda one: not one[0].abilities.prompt_logprobs)  # stable: the order given, else
    names, versions = zip(*((engine.name, version) for engine, version in ordered), strict=True)
    first = ordered[0][0]
    reader = "" if first.abilities.prompt_logprobs or not first.abilities.owned else _reader()
    return Driven(names, versions, tuple(left_out), reader)


def _reader() -> str:
    """Return the first engine that is installed and tells the log-probabilities of a prompt; empty without any."""
    for engine in map(engines.find, _ordered()):
        if engine.abilities.prompt_logprobs and engine.abilities.owned and not engine.abilities.pretends:
            with contextlib.suppress(EngineError):
                return engines.installed(engine.name).name
    return ""


def _ordered() -> list[str]:
    return sorted(engines.names(), key=lambda name: (name != FIRST, name))
