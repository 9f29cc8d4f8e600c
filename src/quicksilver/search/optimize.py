"""Optimise: build, prove and race the recipes of a space, and choose one for a goal.

Quality comes first and once for each set of weights and numerics, since serving settings don't change it; only what
passes is raced. The race is short for all, longer for the best, always side by side with the as-is model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from quicksilver.build import build as building
from quicksilver.build import plan as planning
from quicksilver.errors import BadInputError, BuildError, IllegalRecipeError, NotEnoughError
from quicksilver.nouns.recipe import Recipe
from quicksilver.nouns.result import Result
from quicksilver.nouns.technique import Technique
from quicksilver.nouns.workload import Prompt
from quicksilver.search import proof, space
from quicksilver.search.outcome import result_of, standing, with_speculation
from quicksilver.search.state import Entry, Search, artifact_of

BUILD_SHARE = 0.4
"""Share of the budget after which no new weights are built."""
FINALISTS = 2
LEADERS = 2
FINAL_COST = 2.6
"""A round of the final over a short round, in time (measured on hotpotqa)."""
FAR_OFF = 4
"""Quality losses over this many times the limit are beyond mending by other numerics."""
SHORT_TOKENS = 128
"""Answers of a short race end here: with few prompts, the longest answer would be waited for by all."""


def optimize(search: Search, recipes: Sequence[Recipe] | None = None) -> Result:
    """Carry a search through and return its result. Raises QuicksilverError if the as-is model itself can't be had."""
    run = search.run
    if not search.workload.evaluation or not search.workload.search:
        raise BadInputError(f"The workload {search.workload.name} has no prompts to measure with.")
    _add(search, ())
    baseline = search.baseline
    _build(search, baseline, must=True)
    with run.phase("quality"):
        proof.prove_baseline(search, baseline)
    if recipes is None:
        _explore(search)
    else:
        _prove_given(search, recipes)
    _final(search)
    return with_speculation(search, result_of(search))


def _add(search: Search, stack: Sequence[Technique]) -> Entry:
    recipe = space.recipe(search.model, stack, search.engine)
    entry = Entry(recipe=recipe, stack=tuple(stack))
    search.entries.append(entry)
    return entry


def _build(search: Search, entry: Entry, *, must: bool = False) -> None:
    """Build an entry's artefact; one that fails is out of the race, with its reason, unless it must succeed."""
    run = search.run
    begun = time.monotonic()
    try:
        with run.phase("build"):
            plan = planning.make(entry.recipe, search.model, search.workload.calibration)
            had = not plan.missing
            run.tell("build", entry.recipe.label)
            entry.artifact = building.build(plan, say=lambda text: run.tell("build", text), log=run.log)
            entry.build_s = 0.0 if had else time.monotonic() - begun
    except (BuildError, NotEnoughError, IllegalRecipeError) as error:
        if must:
            raise
        entry.status, entry.reason = "failed", str(error)


def _prove_given(search: Search, recipes: Sequence[Recipe]) -> None:
    """Build and prove the recipes that the user gave; all that pass are raced."""
    for recipe in recipes:
        if recipe.hash in {entry.hash for entry in search.entries}:
            continue
        entry = Entry(recipe=recipe, stack=recipe.techniques)
        search.entries.append(entry)
        _build(search, entry)
        proof.prove(search, entry)
    _race(search, [e for e in search.entries[1:] if e.status == "measured"], "all recipes")


def _explore(search: Search) -> None:
    """Try the ways of rounding weights, then stack what serves faster on the best of them."""
    ways, search.left_out = space.weights(search.model)
    for way in sorted(ways, key=lambda way: _expected_build_s(search, (way,))):
        if hopeless := _hopeless(search, way):
            search.left_out.append(space.LeftOut(way.label, hopeless))
        elif entry := _try(search, (way,)):
            _try_numerics(search, entry)
            _try_prepared(search, entry)
    survivors = [e for e in search.entries[1:] if e.status == "measured" and e.artifact is not None]
    _race(search, survivors, "weights")
    leaders: dict[str, Entry] = {}
    for entry in sorted([search.baseline, *survivors], key=lambda e: -standing(search, e)):
        leaders.setdefault(_rounding(entry.stack), entry)
    _explore_serving(search, list(leaders.values())[:LEADERS])


def _rounding(stack: Sequence[Technique]) -> str:
    """Return the name of what rounds the weights in a stack."""
    return next((t.name() for t in stack if "float weights" in t.takes), "as-is")


def _try(search: Search, stack: tuple[Technique, ...]) -> Entry | None:
    """Build and prove a stack, if the budget has room for it."""
    expected = _expected_build_s(search, stack)
    if search.run.elapsed_s + expected > BUILD_SHARE * search.run.budget_s:
        reason = f"its build takes about {expected:.0f} s, which would leave too little of the budget for measuring"
        label = space.recipe(search.model, stack, search.engine).label
        search.left_out.append(space.LeftOut(label, reason))
        return None
    entry = _add(search, stack)
    _build(search, entry)
    proof.prove(search, entry)
    return entry


def _hopeless(search: Search, way: Technique) -> str | None:
    """Say why a calibrated way can't pass when the same grid without calibration is far off, or None.

    AWQ and GPTQ take away half of what rounding to nearest loses, at most (arXiv 2306.00978, table 4: Llama-2 7B in
    groups of 128 rises by 0.26 rounded, 0.13 with AWQ, 0.22 with GPTQ).
    """
    if not way.calibrated:
        return None
    shared = {"group_size", "mode"}
    grid = way.model_dump(include=shared)
    for entry in search.entries:
        plain = entry.stack[0] if len(entry.stack) == 1 else None
        if plain is None or plain.calibrated or entry.quality is None or entry.quality.loss_percent is None:
            continue
        same = (
            plain.model_dump(include=shared) == grid
            and grid.keys() == shared
            and plain.size_mb(search.model.facts) == way.size_mb(search.model.facts)
        )
        low = entry.quality.loss_percent.low
        if same and low is not None and low / 2 > search.goal.max_quality_loss:
            return (
                f"{plain.label} rounds to the same grid without calibration and loses {entry.quality.loss_percent.value:.1f} %; "
                f"calibration takes away half of that at most, and {search.goal.max_quality_loss:g} % is the limit"
            )
    return None


def _try_numerics(search: Search, entry: Entry) -> None:
    """Try what changes the numerics of an entry's weights without building: on its own merits, and to mend its quality.

    The last option is the most careful: more so than the engine's default, which the entry itself has.
    """
    options = space.numerics(entry.stack[-1], search.model, search.left_out)
    if _far_off(search, entry) or not options:
        return
    if entry.status != "measured":
        _try(search, (*entry.stack, options[-1]))
    elif bolder := _boldest(search, entry.stack, options[:-1]):
        entry.status, entry.reason = "screened", f"{bolder.recipe.label} rounds more boldly and passes, too"


def _boldest(search: Search, stack: tuple[Technique, ...], options: Sequence[Technique]) -> Entry | None:
    """Return the boldest numerics on a stack that pass, or None. More careful ones aren't tried then."""
    for technique in options:
        entry = _try(search, (*stack, technique))
        if entry is not None and entry.status == "measured":
            return entry
    return None


def _try_prepared(search: Search, entry: Entry) -> None:
    """Prepare the model's files first, in one way after the other until one passes, where the rounding alone is near it."""
    way = entry.stack[-1]
    if _far_off(search, entry) or way.calibrated:
        return
    for before in space.preparations(search.model, search.left_out):
        stack = (before, way)
        try:
            planning.order(stack)
        except IllegalRecipeError:
            continue  # such as a grid that the preparation would turn away from
        options = space.numerics(way, search.model, search.left_out)
        prepared = _boldest(search, stack, options[:-1]) or _try(search, stack)
        if prepared is not None and prepared.status == "measured":
            return


def _far_off(search: Search, entry: Entry) -> bool:
    """Whether an entry failed, or loses so much that changes to its numerics can't mend it."""
    if entry.artifact is None or entry.status == "failed":
        return True
    loss = entry.quality.loss_percent if entry.quality is not None else None
    return loss is not None and loss.value > FAR_OFF * max(search.goal.max_quality_loss, 0.25)


def _explore_serving(search: Search, leaders: Sequence[Entry]) -> None:
    """Stack serving techniques on the leaders one at a time, and then those that helped on the best of them."""
    options = space.serving()
    pairs = [(leader, option) for option in options for leader in leaders if leader is leaders[0] or option.space()]
    singles = [(leader, _stacked(search, leader, (option,))) for leader, option in pairs]
    _race(search, [entry for _, entry in singles if entry.artifact is not None], "one serving technique")
    raced = [(leader, entry) for leader, entry in singles if entry.status == "measured" and entry.rounds]
    if not raced:
        return
    leader, _ = max(raced, key=lambda pair: standing(search, pair[1]))
    helped = [e for base, e in raced if base is leader and standing(search, e) > standing(search, leader)]
    helped.sort(key=lambda e: -standing(search, e))
    more = [
        stack
        for stack in space.stacks(leader.stack, [e.stack[-1] for e in helped])
        if len(stack) > len(leader.stack) + 1
    ]
    stacked = [_stacked(search, leader, stack[len(leader.stack) :]) for stack in more[:2]]
    _race(search, [e for e in stacked if e.artifact is not None], "stacks")


def _stacked(search: Search, base: Entry, more: tuple[Technique, ...]) -> Entry:
    """Put serving techniques on a proven entry: its weights and numerics, and so its quality, stay what they are."""
    entry = _add(search, (*base.stack, *more))
    entry.quality, entry.logprobs = base.quality, base.logprobs
    _build(search, entry)
    return entry


def _expected_build_s(search: Search, stack: tuple[Technique, ...]) -> float:
    """Seconds that the missing steps took last time; a guess by kind for those that are new (measured on the 135M)."""
    recipe = space.recipe(search.model, stack, search.engine)
    made = planning.make(recipe, search.model, search.workload.calibration)
    scale = max(1.0, search.model.facts.parameters / 135e6)
    guesses = (scale * (90.0 if s.technique and s.technique.calibrated else 15.0) for s in made.missing)
    return sum(guess if s.last_s is None else s.last_s for s, guess in zip(made.missing, guesses, strict=True))


def _take(search: Search, counts: dict[int, int]) -> dict[int, Sequence[Prompt]]:
    """Take the next prompts of the search split for a short race; no two races share one while there are enough."""
    prompts = search.workload.search
    taken: dict[int, Sequence[Prompt]] = {}
    for concurrency, count in counts.items():
        chosen = [prompts[(search.used + i) % len(prompts)] for i in range(min(count, len(prompts)))]
        most = [min(p.max_tokens or search.workload.max_tokens, SHORT_TOKENS) for p in chosen]
        taken[concurrency] = [p.model_copy(update={"max_tokens": n}) for p, n in zip(chosen, most, strict=True)]
        search.used += count
    return taken


def _race(search: Search, entries: Sequence[Entry], what: str) -> None:
    """One short round of some entries beside the as-is model; those that the budget has no room for are left out."""
    if not entries:
        return
    fitting = list(entries)
    if search.entry_s is not None:
        room = search.run.left_s - FINAL_COST * search.entry_s * (FINALISTS + 1)
        fitting = fitting[: max(0, int(room / search.entry_s) - 1)]
    for entry in entries[len(fitting) :]:
        entry.status, entry.reason = "left out", "the budget was used up before its turn"
    if not fitting:
        return
    counts = {c: (3 if c == 1 else c) for c in search.workload.concurrencies}
    begun = time.monotonic()
    _round(search, [search.baseline, *fitting], _take(search, counts), f"short race: {what}")
    search.entry_s = (time.monotonic() - begun) / (len(fitting) + 1)


def _round(search: Search, entries: Sequence[Entry], loads: dict[int, Sequence[Prompt]], phase: str) -> None:
    number = search.next_round
    search.next_round += 1
    with search.run.phase("race"):
        search.run.round(
            number,
            [(e.hash, artifact_of(e)) for e in entries],
            loads,
            search.workload.max_tokens,
            search.workload.calibration or search.workload.search,
            phase=phase,
        )
    for entry in entries:
        entry.rounds.append(number)


def _final(search: Search) -> None:
    """Race the best again, longer and on prompts that nothing was raced on: the evaluation split, which the gate has read."""
    ready = [e for e in search.entries[1:] if e.status == "measured" and e.rounds and e.artifact is not None]
    ranked = sorted(ready, key=lambda e: -standing(search, e))
    finalists = ranked[:FINALISTS]
    for entry in ranked[FINALISTS:]:
        entry.reason = "the short race left it behind"
    prompts = list(search.workload.evaluation)
    counts = {c: (4 if c == 1 else 2 * c) for c in search.workload.concurrencies}
    per_round = sum(counts.values())
    rounds = max(1, min(3, len(prompts) // max(1, per_round)))
    entries = [search.baseline, *finalists]
    taken: list[int] = []
    for index in range(rounds):
        batch = prompts[index * per_round : (index + 1) * per_round] or prompts
        loads: dict[int, Sequence[Prompt]] = {}
        start = 0
        for concurrency, count in counts.items():
            loads[concurrency] = batch[start : start + count] or batch[:count]
            start += count
        begun = time.monotonic()
        _round(search, entries, loads, "final race")
        taken.append(search.next_round - 1)
        if search.run.left_s < time.monotonic() - begun:
            break
    for entry in entries:
        entry.rounds = taken
    proof.judge_answers(search, entries, taken)
