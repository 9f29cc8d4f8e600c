"""Trade-offs: after the race, measure what the tables of interactions and presets still lack, and draw them up.

Nothing here changes who won. Techniques are measured alone as far as the budget has room. The presets' loads come after that, for
which a part of it was kept: without their benchmark the next user of the model would have to search again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quicksilver.bench import stats
from quicksilver.build import build as building
from quicksilver.build import plan as planning
from quicksilver.errors import EngineError, NotEnoughError, QuicksilverError
from quicksilver.nouns.preset import STREAMS
from quicksilver.nouns.recipe import Recipe
from quicksilver.nouns.result import Candidate, Result
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.score import Figure, Speed
from quicksilver.nouns.tradeoff import Crossover, Interactions, Point
from quicksilver.nouns.workload import Prompt
from quicksilver.search import budget, interactions, memory, pareto, presets
from quicksilver.search.choice import excess
from quicksilver.search.entries import as_is
from quicksilver.search.interactions import Stack
from quicksilver.search.outcome import candidate_of, score_of
from quicksilver.search.run import Raced
from quicksilver.search.state import Entry, Search, artifact_of

SHORT_TOKENS = 128
"""Answers of techniques alone end here, as in the short races that they are compared with."""
NEW_BUILD_S = 30.0
"""A step's time where nothing is known of it, for a model of 135M."""
MARGIN = 1.15
"""What measuring presets may take over what is expected: their loads were never measured before."""
ALONE = "measured alone after the race, for the table of interactions"


@dataclass(slots=True)
class _Measured:
    """Which rounds of the presets' benchmark measured a load."""

    rounds: dict[tuple[str, int], int] = field(default_factory=dict)

    def of(self, entry: Entry, concurrency: int) -> list[int]:
        """Return the rounds that an entry's figures at a load come from: the benchmark's, or those of its race."""
        found = self.rounds.get((entry.hash, concurrency))
        return list(entry.rounds) if found is None else [found]


def with_tradeoffs(search: Search, result: Result) -> Result:
    """Add the front, the presets with their benchmark, the interactions and the crossovers to a result."""
    winner = next((e for e in search.entries if e.label == result.best), None)
    before = len(search.entries)
    found = _interactions(search, winner) if winner is not None and winner is not search.baseline else None
    more = [candidate_of(search, e).model_copy(update={"reason": ALONE}) for e in search.entries[before:] if e.rounds]
    candidates = (*result.candidates, *more)
    points = pareto.front(_points(search, candidates))
    chosen = _picks(search, result, points)
    by_label = {e.label: e for e in search.entries}
    entries = list({e.hash: e for pick in chosen if (e := by_label.get(pick.label)) is not None}.values())
    measured = _benchmark(search, entries)
    kept = [
        presets.make(search, pick, by_label[pick.label], _speeds(search, by_label[pick.label], measured), result.id)
        for pick in chosen
    ]
    presets.keep(kept)
    crossed = _crossovers(search, result, winner, entries, measured)
    search.run.spent["total"] = search.run.elapsed_s
    return result.model_copy(
        update={
            "candidates": candidates,
            "points": tuple(points),
            "presets": tuple(kept),
            "interactions": found,
            "crossovers": tuple(crossed),
            "remarks": tuple(search.run.remarks),
            "seconds": {name: round(value, 1) for name, value in search.run.spent.items()},
        }
    )


def _points(search: Search, candidates: Sequence[Candidate]) -> list[Point]:
    """Return the points of what was measured within every limit; one whose quality isn't known is none, if others' is."""
    by_hash = {e.hash: e for e in search.entries}
    lowest = min(search.workload.concurrencies)
    found = []
    for candidate in candidates:
        entry = by_hash.get(candidate.recipe_hash)
        if entry is None or candidate.status != "measured" or not candidate.score.speed:
            continue
        if not candidate.eligible and excess(candidate, search.goal):
            continue
        samples = search.run.samples(entry.hash, entry.rounds)
        base = search.run.samples(search.baseline.hash, entry.rounds)
        latency = pareto.latency_ratio(samples, base, lowest)
        point = pareto.point(candidate.label, candidate.score, latency, baseline=candidate.baseline)
        if point is not None:
            found.append(point)
    known = [point for point in found if point.loss is not None]
    return known if len(known) > 1 else found


def _picks(search: Search, result: Result, points: Sequence[Point]) -> list[pareto.Pick]:
    latency = search.goal.metric == "latency"
    return pareto.picks(
        points,
        search.goal.max_quality_loss,
        cost=None if latency else result.best,
        latency=result.best if latency else None,
    )


def _interactions(search: Search, winner: Entry) -> Interactions | None:
    """Measure the winner's techniques alone where that wasn't done yet, and set them beside the stack."""
    base, own = search.baseline.recipe.settings, winner.recipe.settings
    usual = base.model_dump(mode="json")
    words = ", ".join(f"{key}={v}" for key, v in own.model_dump(mode="json").items() if v != usual[key])
    parts = interactions.needed(winner.stack, settings=bool(words))
    if not parts and (winner.engine == search.engine or not winner.stack):
        return None
    recipes = {
        stack: winner.recipe.model_copy(update={"techniques": stack, "settings": base if stack else own})
        for stack in parts
    }
    known = {e.hash: e for e in search.entries if e.rounds}
    missing = _measure_alone(search, {s: r for s, r in recipes.items() if r.hash not in known})
    known = {e.hash: e for e in search.entries if e.rounds}
    measured = {stack: _ratios(search, known[r.hash]) for stack, r in recipes.items() if r.hash in known}
    return interactions.table(
        winner.stack,
        sorted(search.workload.concurrencies),
        _ratios(search, winner),
        measured,
        missing,
        settings=words and f"settings({words})",
        engine=_on_engine(search, winner.engine),
        prefix=search.label_of(winner.engine, ""),
    )


def _on_engine(search: Search, engine: str) -> interactions.OnEngine | None:
    """What an engine gives with the model as it comes, if it is another than that of the as-is model that all is compared with."""
    if engine == search.engine:
        return None
    plain = as_is(search, engine)
    return interactions.OnEngine(engine, _ratios(search, plain) if plain is not None and plain.rounds else {})


def _ratios(search: Search, entry: Entry) -> dict[int, Figure]:
    return {s.concurrency: s.ratio for s in score_of(search, entry).speed if s.ratio is not None}


def _measure_alone(search: Search, recipes: Mapping[Stack, Recipe]) -> dict[Stack, str]:
    """Race techniques alone beside the as-is model, one short round; return the reasons why some weren't."""
    run = search.run
    missing: dict[Stack, str] = {}
    counts = {c: (3 if c == 1 else c) for c in search.workload.concurrencies}
    each_s = search.entry_s or _expected_s(search, counts)
    ready: dict[Stack, Entry] = {}
    for stack, recipe in recipes.items():
        entry = next((e for e in search.entries if e.hash == recipe.hash and e.artifact is not None), None)
        entry = entry or Entry(recipe=recipe, stack=stack, label=search.label(recipe))
        try:
            made = planning.make(recipe, search.model, search.workload.calibration)
            scale = max(1.0, search.model.facts.parameters / 135e6)
            build_s = sum(step.last_s or scale * NEW_BUILD_S for step in made.missing)
            if build_s + each_s * (len(ready) + 2) > run.left_s - budget.after_s(search):
                missing[stack] = "the budget was used up"
                continue
            run.tell("alone", f"{entry.label}, for the table of interactions")
            with run.phase("build"):
                entry.artifact = building.build(made, say=lambda text: run.tell("build", text), log=run.log)
        except QuicksilverError as error:
            missing[stack] = str(error).rstrip(".")
            continue
        ready[stack] = entry
    if not ready:
        return missing
    loads = _loads(search, counts, most_tokens=SHORT_TOKENS)
    taken = _round(search, [search.baseline, *ready.values()], loads, "alone")
    if taken is None:
        return missing | dict.fromkeys(ready, "its measurement failed")
    number, failed = taken
    for stack, entry in ready.items():
        if entry.hash in failed:
            missing[stack] = failed[entry.hash].rstrip(".")
            continue
        entry.rounds = [number]
        plain = as_is(search, entry.engine)
        if entry.quality is None and plain is not None and not any(t.changes_output for t in stack):
            entry.quality = plain.quality
        if entry not in search.entries:
            search.entries.append(entry)
    return missing


def _benchmark(search: Search, entries: Sequence[Entry]) -> _Measured:
    """Measure presets at the loads that they all should have and don't yet, beside the as-is model, as time allows."""
    run, measured = search.run, _Measured()
    final = set(search.baseline.rounds)
    raced = {c for c in search.workload.concurrencies if c in STREAMS}
    late = [e for e in entries if set(e.rounds) != final]
    base = [search.baseline]
    rounds = [
        ([*base, *(e for e in entries if e is not search.baseline)], [c for c in STREAMS if c not in raced]),
        ([*base, *late], sorted(raced) if late else []),
    ]
    plans = [(who, loads) for who, loads in rounds if loads and entries]
    # The last thing of a search is the winner's table of guesses.
    room_s = run.left_s - budget.table_s(search)
    for who, loads in plans:
        chosen, counts = _fitting(search, len(who), loads, room_s)
        if len(chosen) < len(loads):
            left = ", ".join(str(c) for c in loads if c not in chosen)
            run.remark(f"Presets were not measured at {left} streams: the budget has no room for it.")
        if not chosen:
            continue
        run.tell("presets", f"{len(who)} recipes at {', '.join(map(str, chosen))} streams")
        begun = time.monotonic()
        taken = _round(search, who, _loads(search, counts), "presets")
        room_s -= time.monotonic() - begun
        if taken is not None:
            number, failed = taken
            measured.rounds |= {(e.hash, c): number for e in who for c in chosen if e.hash not in failed}
    return measured


def _fitting(search: Search, entries: int, loads: Sequence[int], room_s: float) -> tuple[list[int], dict[int, int]]:
    """Choose loads and prompts for each that a round has room for: all with two prompts a stream, with one, or fewer loads."""
    for last in range(len(loads), 0, -1):
        for each in (2, 1):
            counts = {c: (2 + 2 * each if c == 1 else each * c) for c in loads[:last]}
            if MARGIN * entries * _expected_s(search, counts) <= room_s:
                return list(loads[:last]), counts
    return [], {}


def _expected_s(search: Search, counts: Mapping[int, int]) -> float:
    """Seconds that one entry takes for so many prompts by load, by the as-is model's pace at the nearest load below."""
    score = score_of(search, search.baseline)
    speeds = [s for s in sorted(score.speed, key=lambda s: s.concurrency) if s.requests_per_s > 0]
    if not speeds:
        return math.inf
    total = score.cold_start_s or 0.0
    for concurrency, count in counts.items():
        below = [s for s in speeds if s.concurrency <= concurrency] or speeds[:1]
        total += count / below[-1].requests_per_s
    return total


def _loads(search: Search, counts: Mapping[int, int], *, most_tokens: int | None = None) -> dict[int, Sequence[Prompt]]:
    """Take prompts for each load, none twice in a round as long as there are enough."""
    prompts = [*search.workload.search, *search.workload.evaluation]
    if sum(counts.values()) > len(prompts) and any(
        e.recipe.effective_settings().prefix_caching for e in search.entries
    ):
        search.run.remark("The workload has too few prompts: some came twice in a round after the race.")
    taken: dict[int, Sequence[Prompt]] = {}
    for concurrency, count in counts.items():
        chosen = [prompts[(search.used + i) % len(prompts)] for i in range(count)]
        search.used += count
        if most_tokens is not None:
            limits = [min(p.max_tokens or search.workload.max_tokens, most_tokens) for p in chosen]
            chosen = [p.model_copy(update={"max_tokens": n}) for p, n in zip(chosen, limits, strict=True)]
        taken[concurrency] = chosen
    return taken


def _round(
    search: Search, entries: Sequence[Entry], loads: dict[int, Sequence[Prompt]], phase: str
) -> tuple[int, Mapping[str, str]] | None:
    """Measure entries in turn, one round; return its number, and whose server failed in it, by recipe hash, and why.

    None if that of the as-is model did: the race stands without the round.
    """
    number = search.next_round
    search.next_round += 1
    try:
        with search.run.phase(phase):
            taken = search.run.round(
                number,
                [Raced(e.hash, e.label, artifact_of(e)) for e in entries],
                loads,
                search.workload.max_tokens,
                search.workload.calibration or search.workload.search,
                phase=phase,
                together=memory.fit_together(search, entries),
            )
    except (EngineError, NotEnoughError) as error:
        search.run.remark(f"A measurement after the race failed: {error}")
        return None
    for entry in entries:
        if entry.hash in taken.failed:
            search.run.remark(f"After the race {entry.label} failed: {taken.failed[entry.hash]}")
    return number, taken.failed


def _samples(search: Search, entry: Entry, rounds: Sequence[int], concurrency: int) -> list[Sample]:
    return [s for s in search.run.samples(entry.hash, rounds) if s.concurrency == concurrency and not s.warmup]


def _speeds(search: Search, entry: Entry, measured: _Measured) -> list[Speed]:
    """Return an entry's speed at every load of the presets that it was measured at, each with its ratio to as-is."""
    found = []
    for concurrency in STREAMS:
        rounds = measured.of(entry, concurrency)
        samples = _samples(search, entry, rounds, concurrency)
        if not samples:
            continue
        base = _samples(search, search.baseline, rounds, concurrency)
        ratio = None if entry is search.baseline else stats.ratio(samples, base, concurrency, at_lengths=True)
        found.append(stats.speed(samples, concurrency).model_copy(update={"ratio": ratio}))
    return found


def _crossovers(
    search: Search, result: Result, winner: Entry | None, chosen: Sequence[Entry], measured: _Measured
) -> list[Crossover]:
    """Compare the winner with the one that came next and with as-is, and the presets with each other."""
    final = set(search.baseline.rounds)
    in_final = {e.label: e for e in search.entries if set(e.rounds) == final}
    second = next((c for c in result.candidates if c.eligible and c.label in in_final and c.label != result.best), None)
    pairs: list[tuple[Entry, Entry]] = []
    if winner is not None:
        pairs.append((search.baseline, winner))
        if second is not None and not second.baseline:
            pairs.append((in_final[second.label], winner))
    pairs += [(a, b) for index, a in enumerate(chosen) for b in chosen[index + 1 :]]
    different = {frozenset((a.hash, b.hash)): (a, b) for a, b in pairs if a is not b}
    found = (_compared(search, a, b, measured) for a, b in different.values())
    return [one for one in found if one is not None]


def _compared(search: Search, a: Entry, b: Entry, measured: _Measured) -> Crossover | None:
    """Compare two entries at every load that one round or more has of both; None if there is no such."""
    sides, rounds = {}, {}
    for concurrency in sorted({*search.workload.concurrencies, *STREAMS}):
        shared = sorted({*measured.of(a, concurrency)} & {*measured.of(b, concurrency)})
        ours, theirs = (_samples(search, e, shared, concurrency) for e in (b, a))
        ratio = stats.ratio(ours, theirs, concurrency, at_lengths=True)
        if ratio is None:
            continue
        sides[concurrency] = ratio
        rounds[concurrency] = {
            number: math.log(one.value)
            for number in shared
            if (one := _in_round(ours, theirs, number, concurrency)) is not None
        }
    return interactions.crossover((a.label, b.label), sides, rounds) if sides else None


def _in_round(ours: Sequence[Sample], theirs: Sequence[Sample], number: int, concurrency: int) -> Figure | None:
    mine, other = ([s for s in side if s.round == number] for side in (ours, theirs))
    return stats.ratio(mine, other, concurrency, at_lengths=True)
