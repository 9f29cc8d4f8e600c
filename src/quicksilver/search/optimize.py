"""Optimise: build, prove and race the recipes of a space, and choose one for a goal.

Several engines are measured in one run, side by side: the as-is model on the first is what all are compared with, and that on each
other is a candidate. Quality comes first and once for each set of weights and numerics, since serving settings don't change it; only what
passes is raced. The race is short for all, longer for the best, always side by side with the as-is model. Ways to round
weights are few and take a build each, so they go one by one; how to serve them is left to the policy (`serving`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from quicksilver import engines
from quicksilver.build import plan as planning
from quicksilver.errors import BadInputError, IllegalRecipeError
from quicksilver.nouns.recipe import Recipe
from quicksilver.nouns.result import Result
from quicksilver.nouns.technique import Technique
from quicksilver.search import budget, entries, memory, proof, race, serving, space
from quicksilver.search.outcome import result_of, with_speculation
from quicksilver.search.state import Entry, Search
from quicksilver.search.tradeoffs import with_tradeoffs

BUILD_SHARE = 0.4
"""Share of the budget after which no new weights are built."""
FAR_OFF = 4
"""Quality losses over this many times the limit are beyond mending by other numerics."""


def optimize(search: Search, recipes: Sequence[Recipe] | None = None) -> Result:
    """Carry a search through and return its result. Raises QuicksilverError if the as-is model itself can't be had."""
    run = search.run
    if not search.workload.evaluation or not search.workload.search:
        raise BadInputError(f"The workload {search.workload.name} has no prompts to measure with.")
    entries.add(search, ())
    baseline = search.baseline
    entries.build(search, baseline, must=True)
    with run.phase("quality"):
        proof.prove_baseline(search, baseline)
    for name in search.others:
        _bring_in(search, name)
    if recipes is None:
        _explore(search)
    else:
        _prove_given(search, recipes)
    _settle(search)
    return with_speculation(search, with_tradeoffs(search, result_of(search)))


def _bring_in(search: Search, engine: str) -> None:
    """Build the model as it comes on a further engine, and judge it: a candidate, and what tells whether the engine works here."""
    entry = entries.add(search, (), engine=engine)
    if unfit := memory.over_memory(search, (), engine):
        entry.status, entry.reason = "left out", unfit
        return
    entries.build(search, entry)
    if entry.artifact is not None:
        proof.prove(search, entry)
    if entry.status == "failed":
        search.lose(engine, entry.reason)


def _settle(search: Search) -> None:
    """Race the best to the end and judge their answers; if all of them break the task, the next best have their turn."""
    while True:
        begun = time.monotonic()
        finalists, rounds = race.final(search)
        proof.judge_answers(search, finalists, rounds)
        broken = {entry.hash: why for entry in finalists[1:] if (why := proof.objection(entry))}
        others = [e for e in search.entries[1:] if e.status == "measured" and e.rounds and e not in finalists]
        if not others or len(broken) < len(finalists) - 1:
            return
        if search.run.left_s < budget.after_s(search) + time.monotonic() - begun:
            search.run.remark("What came next wasn't raced to the end, since the budget was used up.")
            return
        for entry in finalists[1:]:
            entry.status, entry.reason = "screened", broken[entry.hash]
        for entry in others:
            entry.reason = ""


def _prove_given(search: Search, recipes: Sequence[Recipe]) -> None:
    """Build and prove the recipes that the user gave; all that pass are raced."""
    for recipe in recipes:
        if recipe.hash in {entry.hash for entry in search.entries}:
            continue
        entry = entries.join(search, recipe)
        if recipe.engine in search.lost:
            entry.status, entry.reason = "failed", search.lost[recipe.engine]
            continue
        entries.build(search, entry)
        proof.prove(search, entry)
    race.race(search, [e for e in search.entries[1:] if e.status == "measured"], "all recipes")


def _explore(search: Search) -> None:
    """Try the ways of rounding weights on each engine, race those that pass, then look for how to serve the best of them."""
    for name in search.lost:
        search.left_out.append(space.LeftOut(f"{name}: all recipes", search.lost[name]))
    ways: list[tuple[str, Technique]] = []
    for name in (name for name in search.engines if name not in search.lost):
        found, left_out = space.weights(search.model, engines.find(name))
        ways += [(name, way) for way in found]
        search.left_out += [space.LeftOut(search.label_of(name, item.label), item.reason) for item in left_out]
    facts = search.model.facts

    def order(one: tuple[str, Technique]) -> tuple[float, float]:
        # Of those that take the same time to build, what is rounded least comes first: it is the likeliest to pass.
        name, way = one
        return entries.expected_build_s(search, (way,), name), -(way.size_mb(facts) or 0)

    for name, way in sorted(ways, key=order):
        label = search.label_of(name, way.label)
        if unfit := memory.over_memory(search, (way,), name):
            search.left_out.append(space.LeftOut(label, unfit))
        elif search.quick and way.calibrated:
            search.left_out.append(space.LeftOut(label, "a quick search tries nothing that is calibrated"))
        elif hopeless := _hopeless(search, way, name):
            search.left_out.append(space.LeftOut(label, hopeless))
        elif entry := _try(search, (way,), name):
            _try_numerics(search, entry)
            if not search.quick:
                _try_prepared(search, entry)
    survivors = [e for e in search.entries[1:] if e.status == "measured" and e.artifact is not None]
    race.race(search, survivors, "weights", share=budget.WEIGHTS_SHARE)
    serving.explore(search)


def _try(search: Search, stack: tuple[Technique, ...], engine: str) -> Entry | None:
    """Build and prove a stack on an engine, if the budget has room for it."""
    expected = entries.expected_build_s(search, stack, engine) + proof.expected_s(search, stack, engine)
    # What an interrupted run has built and proven costs nothing now, however late it is.
    late = search.run.here_s + expected > BUILD_SHARE * search.run.budget_s
    if expected and (late or expected > search.run.left_s):
        reason = (
            f"its build and proof take about {expected:.0f} s, which would leave too little of the budget for measuring"
        )
        search.left_out.append(space.LeftOut(search.label(space.recipe(search.model, stack, engine)), reason))
        return None
    entry = entries.add(search, stack, engine=engine)
    entries.build(search, entry)
    proof.prove(search, entry)
    return entry


def _hopeless(search: Search, way: Technique, engine: str) -> str | None:
    """Say why a calibrated way can't pass when the same grid without calibration is far off, or None.

    AWQ and GPTQ take away half of what rounding to nearest loses, at most (arXiv 2306.00978, table 4: Llama-2 7B in
    groups of 128 rises by 0.26 rounded, 0.13 with AWQ, 0.22 with GPTQ).
    """
    if not way.calibrated:
        return None
    shared = {"group_size", "mode"}
    grid = way.model_dump(include=shared)
    for entry in search.entries:
        plain = entry.stack[0] if len(entry.stack) == 1 and entry.engine == engine else None
        if plain is None or plain.calibrated or entry.quality is None or entry.quality.loss is None:
            continue
        same = (
            plain.model_dump(include=shared) == grid
            and grid.keys() == shared
            and plain.size_mb(search.model.facts) == way.size_mb(search.model.facts)
        )
        low = entry.quality.loss.low
        if same and low is not None and low / 2 > search.goal.max_quality_loss:
            return (
                f"{plain.label} rounds to the same grid without calibration and loses {entry.quality.loss.value:.1f} %; "
                f"calibration takes away half of that at most, and {search.goal.max_quality_loss:g} % is the limit"
            )
    return None


def _try_numerics(search: Search, entry: Entry) -> None:
    """Try what changes the numerics of an entry's weights without building: on its own merits, and to mend its quality.

    The last option is the most careful: more so than the engine's default, which the entry itself has.
    """
    options = space.numerics(entry.stack[-1], search.model, engines.find(entry.engine), search.left_out)
    if _far_off(search, entry) or not options:
        return
    if entry.status != "measured":
        _try(search, (*entry.stack, options[-1]), entry.engine)
    elif bolder := _boldest(search, entry.stack, entry.engine, options[:-1]):
        entry.status, entry.reason = "screened", f"{bolder.label} rounds more boldly and passes, too"


def _boldest(search: Search, stack: tuple[Technique, ...], engine: str, options: Sequence[Technique]) -> Entry | None:
    """Return the boldest numerics on a stack that pass, or None. More careful ones aren't tried then."""
    for technique in options:
        entry = _try(search, (*stack, technique), engine)
        if entry is not None and entry.status == "measured":
            return entry
    return None


def _try_prepared(search: Search, entry: Entry) -> None:
    """Prepare the model's files first, in one way after the other until one passes, where the rounding alone is near it."""
    way, engine = entry.stack[-1], engines.find(entry.engine)
    if _far_off(search, entry) or way.calibrated:
        return
    for before in space.preparations(search.model, engine, search.left_out):
        stack = (before, way)
        try:
            planning.order(stack)
        except IllegalRecipeError:
            continue  # such as a grid that the preparation would turn away from
        options = space.numerics(way, search.model, engine, search.left_out)
        prepared = _boldest(search, stack, engine.name, options[:-1]) or _try(search, stack, engine.name)
        if prepared is not None and prepared.status == "measured":
            return


def _far_off(search: Search, entry: Entry) -> bool:
    """Whether an entry failed, or loses so much that changes to its numerics can't mend it."""
    if entry.artifact is None or entry.status == "failed":
        return True
    loss = entry.quality.loss if entry.quality is not None else None
    return loss is not None and loss.value > FAR_OFF * max(search.goal.max_quality_loss, 0.25)
