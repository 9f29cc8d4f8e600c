"""Race: entries measured side by side with the as-is model, in short rounds, longer ones and the final."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from quicksilver.bench import stats
from quicksilver.nouns.result import Candidate
from quicksilver.nouns.workload import Prompt
from quicksilver.search import budget, memory
from quicksilver.search.choice import excess
from quicksilver.search.fit import weights_mb
from quicksilver.search.outcome import score_of
from quicksilver.search.run import Raced, took_part
from quicksilver.search.state import Entry, Search, artifact_of

FINAL, FINAL_ROUNDS = "final", 3
SHORT_TOKENS = 128
"""Answers of a short race end here: with few prompts, the longest answer would be waited for by all."""


def race(search: Search, entries: Sequence[Entry], what: str, weight: int = 1, share: float = 1.0) -> list[Entry]:
    """Race some entries beside the as-is model, as long as `weight` short rounds; return those that took part.

    Those that the budget has no room for are left out: in the first race, once the as-is model has shown how long one takes,
    those with the largest weights. That one may take a `share` of the time before the final. A race that an interrupted run has
    finished is taken as it was.
    """
    if not entries:
        return []
    kept = search.run.records().get(search.next_round)
    if kept is not None and kept.get("kind") == kind_of(weight):
        fitting = [entry for entry in entries if entry.hash in took_part(kept)]
    else:
        fitting = list(entries)[: budget.room(search, weight)]
    if fitting:
        counts = short(search.workload.concurrencies, weight)
        phase, kind, most = f"short race: {what}", kind_of(weight), None
        if search.entry_s is None:
            # What was made to round more boldly has as many bytes, and comes first.
            fitting.sort(key=lambda entry: (weights_mb(search.model.facts, entry.stack), -len(entry.stack)))
            most = _most_of_the_first(search, share)
        taken_s = go(search, [search.baseline, *fitting], take(search, counts), phase, kind, most=most)
        fitting = [entry for entry in fitting if search.next_round - 1 in entry.rounds]
        search.entry_s = taken_s / weight / (len(fitting) + 1)
        search.trials_used += weight * len(fitting)
    for entry in entries:
        if entry not in fitting and not entry.rounds and entry.status == "measured":
            entry.status, entry.reason = "left out", "budget or trials were used up before its turn"
    return [entry for entry in fitting if entry.status == "measured"]


def _most_of_the_first(search: Search, share: float) -> Callable[[float], int]:
    """Return what says how many entries there is room for, one at least, once it hears how long the as-is model took."""

    def most(seconds: float) -> int:
        search.entry_s = seconds
        return max(1, int(share * budget.left_s(search) / seconds)) if seconds > 0 else budget.UNKNOWN

    return most


def kind_of(weight: int) -> str:
    """What a run notes of a race that is as long as so many short rounds."""
    return f"short race x{weight}"


def go(
    search: Search,
    entries: Sequence[Entry],
    loads: dict[int, Sequence[Prompt]],
    phase: str,
    kind: str,
    *,
    most: Callable[[float], int] | None = None,
) -> float:
    """Measure entries in the next round; return the seconds that it took, in this process or one before it.

    `most` hears how long the first took, and says how many of the others there is room for. What fails is out of the race, and with the
    as-is model of a further engine everything on that engine.
    """
    number = search.next_round
    search.next_round += 1
    with search.run.phase("race"):
        taken = search.run.round(
            number,
            [Raced(e.hash, e.label, artifact_of(e)) for e in entries],
            loads,
            search.workload.max_tokens,
            search.workload.calibration or search.workload.search,
            phase=phase,
            kind=kind,
            together=memory.fit_together(search, entries),
            # The final keeps streams busy, and its answers are what the gate reads.
            short=kind != FINAL,
            most=most,
        )
    measured = search.run.records()[number]["recipes"]
    for entry in entries:
        if (why := taken.failed.get(entry.hash)) is not None:
            entry.status, entry.reason = "failed", why
            if entry.engine != search.engine and not entry.stack and not entry.rounds:
                search.lose(entry.engine, why)
                search.run.remark(f"The engine {entry.engine} was given up in the race: {why}")
        elif entry.hash in measured:
            entry.rounds.append(number)
    return taken.seconds


def gains(
    search: Search, entry: Entry, rounds: Sequence[int] | None = None, metric: str | None = None
) -> list[float] | None:
    """Return what an entry makes of the as-is model's figures, the logarithm by load, paired by round; None without any.

    By tokens/s at each concurrency, or where latency counts by the median time of an answer at the lowest: what counts is said by the
    goal, or by another `metric`.
    """
    chosen = entry.rounds if rounds is None else rounds
    own = search.run.samples(entry.hash, chosen)
    base = search.run.samples(search.baseline.hash, chosen)
    loads = search.workload.concurrencies
    if (metric or search.goal.metric) == "latency":
        mine, theirs = (stats.speed(side, min(loads)).e2e_ms for side in (own, base))
        return [math.log(theirs.p50 / mine.p50)] if mine.count and theirs.count else None
    ratios = [stats.ratio(own, base, concurrency, at_lengths=True) for concurrency in loads]
    found = [math.log(ratio.value) for ratio in ratios if ratio is not None and ratio.value > 0]
    return found if len(found) == len(loads) else None


def gain(search: Search, entry: Entry, metric: str | None = None) -> float:
    """The mean of an entry's gains over the loads; 0 for the as-is model. By the goal's metric, or another."""
    if entry is search.baseline:
        return 0.0
    found = gains(search, entry, metric=metric)
    return sum(found) / len(found) if found else -math.inf


def breaks_a_limit(search: Search, entry: Entry) -> bool:
    """Whether what was measured of an entry so far is over a limit of the goal."""
    candidate = Candidate(label=entry.label, recipe={}, recipe_hash=entry.hash, score=score_of(search, entry))
    return bool(excess(candidate, search.goal))


def short(concurrencies: Sequence[int], weight: int) -> dict[int, int]:
    """Return the prompts of a race that is as long as so many short ones, by concurrency; of a single one it has twice as many."""
    return {c: weight * _alone(concurrencies) * (3 if c == 1 else c) for c in concurrencies}


def _alone(concurrencies: Sequence[int]) -> int:
    """How many times as many prompts a race has at each concurrency, so that one over a single load tells as much as one over two."""
    return 2 if len(concurrencies) == 1 else 1


def take(search: Search, counts: dict[int, int]) -> dict[int, Sequence[Prompt]]:
    """Take the next prompts of the search split for a short race; no two races share one while there are enough."""
    prompts = search.workload.search
    taken: dict[int, Sequence[Prompt]] = {}
    for concurrency, count in counts.items():
        chosen = [prompts[(search.used + i) % len(prompts)] for i in range(min(count, len(prompts)))]
        most = [min(p.max_tokens or search.workload.max_tokens, SHORT_TOKENS) for p in chosen]
        taken[concurrency] = [p.model_copy(update={"max_tokens": n}) for p, n in zip(chosen, most, strict=True)]
        search.used += count
    return taken


def final(search: Search) -> tuple[list[Entry], list[int]]:
    """Race the best again, longer and on prompts that nothing was raced on: the evaluation split, which the gate has read.

    Return those that took part to the end, the as-is model first, and the rounds.
    """
    size = budget.final(search)
    finalists = _finalists(search, size.finalists)
    prompts = list(search.workload.evaluation)
    alone = _alone(search.workload.concurrencies)
    counts = {c: round(size.share * alone * (4 if c == 1 else 2 * c)) for c in search.workload.concurrencies}
    per_round = sum(counts.values())
    rounds = max(1, min(1 if search.quick else FINAL_ROUNDS, len(prompts) // max(1, per_round)))
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
        go(search, entries, loads, "final race", FINAL)
        entries = [search.baseline, *(entry for entry in entries[1:] if entry.status == "measured")]
        taken.append(search.next_round - 1)
        if search.run.left_s < budget.after_s(search) + time.monotonic() - begun:
            break
    for entry in entries:
        entry.rounds = taken
    return entries, taken


def _finalists(search: Search, count: int) -> list[Entry]:
    """The best by what was measured so far. With several engines the best for one user, and over the loads, are among them.

    What one engine is best at may be another way of use than the goal's, and a preset of it should be as well founded.
    """
    ready = [e for e in search.entries[1:] if e.status == "measured" and e.rounds and e.artifact is not None]
    ranked = sorted(ready, key=lambda e: (breaks_a_limit(search, e), -gain(search, e)))
    kept = search.run.records().get(search.next_round, {})
    # What an interrupted run has raced is taken as it was, however little time is left now.
    chosen = [e for e in ranked if e.hash in took_part(kept)] if kept.get("kind") == FINAL else []
    if not chosen:
        chosen = ranked[:count]
        for use in ("latency", "cost") if search.others and ranked else ():
            best = min(ranked, key=lambda e: (breaks_a_limit(search, e), -gain(search, e, use)))
            chosen += [best] if best not in chosen else []
    for entry in ranked:
        if entry not in chosen:
            entry.reason = "the short race left it behind"
    return chosen
