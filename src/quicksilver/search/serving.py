"""Serving: which techniques and settings to serve the proven weights with, by the policy and in races."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from quicksilver import engines
from quicksilver.bench import stats
from quicksilver.errors import IllegalRecipeError
from quicksilver.hardware import detect
from quicksilver.nouns.recipe import Recipe
from quicksilver.nouns.score import Figure
from quicksilver.nouns.technique import Technique
from quicksilver.search import budget, entries, memory, policy, proof, race, space
from quicksilver.search.policy import Policy, Rungs, Shown
from quicksilver.search.run import took_part
from quicksilver.search.space import Configuration, LeftOut, Space
from quicksilver.search.state import Entry, Search

RUNGS: Rungs = ((4, 2),)
"""The last rung is the final."""


def explore(search: Search) -> None:
    """Race what the policy asks for: every proven way to round weights with any techniques and settings that serve it.

    Each technique comes alone first, on the best weights: that is what a stack is set against. Quality is measured only for
    numerics that are new, since settings and lossless techniques leave it as it is.
    """
    proven = [search.baseline, *(e for e in search.entries[1:] if e.status == "measured" and e.artifact is not None)]
    where = _space(search, proven)
    chooser = Policy(where, loads=1 if search.goal.metric == "latency" else len(search.workload.concurrencies))
    _drop_what_does_not_fit(search, chooser)
    for entry in proven:
        index = where.index(Configuration(entry.stack, engine=entry.engine))
        if index is None:
            continue
        chooser.proven(where.configurations[index], passes=True, loss=_loss(search, entry))
        _tell(search, chooser, index, entry)
    hashes = {name: index for index, name in enumerate(_hashes(search, where))} if search.run.resumed else {}
    alone_first = iter([alone(chooser)])

    def before() -> Sequence[int] | None:
        """What an interrupted run has raced next, and to begin with each technique alone."""
        first = next(alone_first, [])
        kept = search.run.records().get(search.next_round)
        if kept is None:
            return first[: budget.room(search)] or None
        return kept_of(1)

    def kept_of(weight: int) -> list[int]:
        """What an interrupted run has raced next, if that was a race of such a length."""
        kept = search.run.records().get(search.next_round, {})
        names = took_part(kept) if kept.get("kind") == race.kind_of(weight) else []
        return [hashes[name] for name in names if name in hashes and name != search.baseline.hash]

    def measure(batch: Sequence[int], weight: int) -> Mapping[int, Shown]:
        batch = kept_of(weight) or batch
        joined: dict[int, Entry] = {}
        for index in batch:
            joined[index] = _join(search, chooser, index, racing=len(joined) + 1)
        ready = [entry for entry in joined.values() if entry.status == "measured"]
        raced = race.race(search, ready, f"{len(ready)} ways to serve", weight)
        found: dict[int, Shown] = {}
        for index, entry in joined.items():
            if entry.status == "screened":
                found[index] = Shown(None, _loss(search, entry))
            elif entry in raced and (gains := race.gains(search, entry, [search.next_round - 1])) is not None:
                found[index] = Shown(gains, _loss(search, entry))
        return found

    left = max(0, (search.trials or len(where)) - search.trials_used)
    policy.search(
        chooser,
        measure,
        trials=left,
        rungs=RUNGS,
        room=lambda weight: budget.room(search, weight),
        before=before,
        tell=lambda chooser, batch: _say(search, chooser, batch),
        breaks=lambda index: race.breaks_a_limit(search, _entry(search, where, index)),
    )
    search.stopped = chooser.stopped
    _account(search, chooser)


def _space(search: Search, proven: Sequence[Entry]) -> Space:
    """The space over the proven stacks: all legal choices of serving techniques and of settings, on the engine of each."""
    streams = max(search.workload.concurrencies)
    options = []
    for name in search.engines:
        engine = engines.find(name)
        bases = [entry.stack for entry in proven if entry.engine == name]
        more = []
        for technique in space.serving(engine) if bases else ():
            try:
                technique.check(search.model.facts)
            except IllegalRecipeError as error:
                note = LeftOut(technique.label, str(error))
                search.left_out += [note] if note not in search.left_out else []
                continue
            more.append(technique)
        start = space.start_of(search.model)
        options.append(space.Options(bases, more, engine.choices(detect(), streams), start, name))
    return space.union([each for each in options if each.bases])


def _recipe(search: Search, configuration: Configuration) -> Recipe:
    engine = configuration.engine or search.engine
    return space.recipe(search.model, configuration.stack, engine, configuration.settings)


def _hashes(search: Search, where: Space) -> list[str]:
    return [_recipe(search, configuration).hash for configuration in where.configurations]


def _loss(search: Search, entry: Entry) -> float | None:
    """An entry's quality loss as a share of the limit; None if it isn't known."""
    loss = entry.quality.loss if entry.quality is not None else None
    return None if loss is None else loss.value / max(search.goal.max_quality_loss, 1e-3)


def alone(chooser: Policy) -> list[int]:
    """The configurations of the best weights with one technique more, in its first form; of those that need no proof.

    With several engines the best for one user may be another's: then the best weights of that one have their turn, too.
    """
    chooser.learn()  # until then it knows nothing of what it was told
    ranked = chooser.ranked()
    every = chooser.space.configurations
    bases = [every[ranked[0]] if ranked else every[0]]
    if ranked:
        quickest = every[chooser.quickest()]
        bases += [quickest] if quickest.engine != bases[0].engine else []
    found: dict[tuple[str, str], int] = {}
    for best in bases:
        for index, configuration in enumerate(every):
            same = (configuration.engine, configuration.base) == (best.engine, best.base)
            if same and len(configuration.serving) == 1 and not configuration.settings:
                technique = configuration.serving[0]
                if not technique.changes_output and chooser.may(index):
                    found.setdefault((best.engine, technique.name()), index)
    return list(found.values())


def _entry(search: Search, where: Space, index: int) -> Entry:
    configuration = where.configurations[index]
    return entries.join(search, _recipe(search, configuration))


def _join(search: Search, chooser: Policy, index: int, racing: int) -> Entry:
    """Build a configuration's entry. Its quality is that of its weights and numerics, which is measured if it never was.

    It is left out if the budget has no room for that and for a race of so many.
    """
    configuration = chooser.space.configurations[index]
    entry = _entry(search, chooser.space, index)
    computes = (entry.engine, set(configuration.numerics))
    same = next((e for e in search.entries if e.quality is not None and (e.engine, _numerics(e)) == computes), None)
    if entry.artifact is None and entry.status == "measured":
        proof_s = proof.expected_s(search, configuration.stack, entry.engine) if same is None else 0.0
        build_s = entries.expected_build_s(search, configuration.stack, entry.engine)
        if not budget.has_room(search, build_s + proof_s, racing):
            entry.status, entry.reason = "left out", "the budget had no room for its build and proof"
    if entry.artifact is None and entry.status == "measured":
        entries.build(search, entry)
    if entry.status != "measured" or entry.quality is not None:
        return entry
    if same is not None:
        entry.quality, entry.logprobs, entry.said = same.quality, same.logprobs, same.said
    else:
        proof.prove(search, entry)
    return entry


def _numerics(entry: Entry) -> set[Technique]:
    return {t for t in entry.stack if t.builds or t.changes_output}


def _tell(search: Search, chooser: Policy, index: int, entry: Entry) -> None:
    """Tell the policy what earlier races have shown of an entry."""
    if entry is search.baseline:
        chooser.start(index)
    elif entry.rounds and (gains := race.gains(search, entry)) is not None:
        chooser.tell(index, gains, len(entry.rounds))
        if race.breaks_a_limit(search, entry):
            chooser.close([index])


def _drop_what_does_not_fit(search: Search, chooser: Policy) -> None:
    """Close what the memory limit rules out, with one line of arithmetic for each stack."""
    said: set[tuple[str, tuple[Technique, ...]]] = set()
    dropped = []
    for index, configuration in enumerate(chooser.space.configurations):
        if search.goal.memory_mb is None:
            return
        engine = configuration.engine or search.engine
        if (why := memory.over_memory(search, configuration.stack, engine, configuration.settings)) is None:
            continue
        dropped.append(index)
        if (engine, configuration.stack) not in said:
            said.add((engine, configuration.stack))
            search.left_out.append(LeftOut(search.label(_recipe(search, configuration)), why))
    chooser.close(dropped)


def _say(search: Search, chooser: Policy, batch: Sequence[int]) -> None:
    """Tell whoever watches what is best so far, and why the search goes on."""
    ranked = chooser.ranked()
    if ranked:
        configuration = chooser.space.configurations[ranked[0]]
        label = search.label(_recipe(search, configuration))
        factor = math.exp(chooser.merits().mean[ranked[0]])
        search.run.best = f"best so far: {label}, {factor:.2f}x"
    why = f"{len(batch)} more, {chooser.why}" if chooser.why else f"{len(batch)} more"
    search.run.tell("search", why, search.trials_used, search.trials)


def _account(search: Search, chooser: Policy) -> None:
    """Keep what the cost model ruled out, and how far it was off on what it hadn't seen."""
    where = chooser.space
    ruled = chooser.ruled_out()
    ranked = chooser.ranked()
    if ruled and ranked:
        most = max(ruled, key=lambda index: float(chooser.merits().high[index]))
        best = chooser.space.configurations[ranked[0]]
        label = search.label(_recipe(search, best))
        search.left_out.append(
            LeftOut(
                f"{len(ruled)} of {len(where):,} configurations",
                f"fitted to {chooser.measured} that were measured, the cost model gives them at most "
                f"{math.exp(chooser.merits().high[most]):.2f}x of as-is even at its optimistic end, where {label} has "
                f"{math.exp(chooser.merits().mean[ranked[0]]):.2f}x",
            )
        )
    errors = [
        100 * abs(math.exp(predicted - measured) - 1)
        for forecast in chooser.forecasts
        for predicted, measured in zip(forecast.predicted, forecast.measured, strict=True)
    ]
    if errors:
        (median,) = stats.percentiles(errors, (50,))
        search.cost_model_error = Figure(value=median, unit="%", count=len(errors))
    untried = len(where) - chooser.measured - len(ruled)
    search.run.remark(
        f"The search measured {chooser.measured} of {len(where):,} configurations and ended because {search.stopped}; "
        f"{len(ruled):,} were ruled out by the cost model and {untried:,} not tried."
    )
