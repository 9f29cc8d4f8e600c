"""Memory: what the servers of a search take, by estimate or as they were seen, and how many are up at once."""

from __future__ import annotations

from collections.abc import Sequence

from quicksilver import engines
from quicksilver.hardware import available_memory
from quicksilver.nouns.settings import Settings
from quicksilver.nouns.technique import Technique
from quicksilver.search import entries, fit, space
from quicksilver.search.state import Entry, Search

SHARE = 0.8
"""Share of the memory that is free which servers may take together."""


def over_memory(
    search: Search, stack: Sequence[Technique], engine: str, settings: Sequence[tuple[str, object]] = ()
) -> str | None:
    """Say with the arithmetic why a stack on an engine can't keep to the goal's memory, or None."""
    limit = search.goal.memory_mb
    if limit is None:
        return None
    needed = _needed(search, stack, engine, space.recipe(search.model, stack, engine, settings).effective_settings())
    return needed.sentence(limit) if needed.exceeds(limit) else None


def fit_together(search: Search, racing: Sequence[Entry]) -> bool:
    """Say whether the servers of some entries can be up at once: by the memory that they were seen to take, or else an estimate.

    One that takes a whole device for itself has no others beside it.
    """
    if any(engines.find(entry.engine).takes_device() for entry in racing):
        return False
    return sum(_taken_mb(search, entry) for entry in racing) <= SHARE * available_memory() / 1e6


def _taken_mb(search: Search, entry: Entry) -> float:
    # Before its first race it may have been served to be read, which takes no less.
    for racing in (True, False):
        seen = [mb for served in search.run.servers(entry.hash, racing=racing) if (mb := served["memory_mb"])]
        if seen:
            return max(seen)
    return _needed(search, entry.stack, entry.engine, entry.recipe.effective_settings()).total


def _needed(search: Search, stack: Sequence[Technique], engine: str, effective: Settings) -> fit.Fit:
    runtime_mb, driven = _runtime_mb(search, engine), engines.find(engine)
    as_is = fit.as_is_mb(search.model, driven)
    return fit.fit(search.model.facts, stack, effective, _load(search), runtime_mb, engine=driven, as_is=as_is)


def _load(search: Search) -> fit.Load:
    workload = search.workload
    longest = max((len(ids) for ids in search.token_ids.values()), default=0)
    answer = max((p.max_tokens or workload.max_tokens for p in workload.evaluation), default=workload.max_tokens)
    return fit.Load(max(workload.concurrencies), longest + answer)


def _runtime_mb(search: Search, engine: str) -> float | None:
    """What an engine's server of the as-is model was seen to take beyond weights, cache and activations; None before its race."""
    as_is = entries.as_is(search, engine)
    seen = [m for served in search.run.servers(as_is.hash) if (m := served["memory_mb"])] if as_is is not None else []
    if as_is is None or not seen:
        return None
    settings = as_is.recipe.effective_settings()
    driven = engines.find(engine)
    weights = fit.as_is_mb(search.model, driven)
    rest = fit.fit(search.model.facts, as_is.stack, settings, _load(search), 0.0, engine=driven, as_is=weights)
    return max(0.0, max(seen) - rest.total)
