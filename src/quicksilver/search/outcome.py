"""From what a search measured to its result, and to the artefact that it leaves."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from quicksilver import engines
from quicksilver.bench import stats
from quicksilver.bench.price import cost
from quicksilver.build import build as building
from quicksilver.build import store
from quicksilver.errors import EngineError
from quicksilver.hardware import detect
from quicksilver.nouns.result import Candidate, Lengths, Result
from quicksilver.nouns.score import Figure, Score
from quicksilver.nouns.speculation import FILE
from quicksilver.search import budget
from quicksilver.search.choice import choose
from quicksilver.search.run import Run
from quicksilver.search.state import Entry, Search

ANSWERS = 100
"""Answers that guesses are replayed on, at most."""


def score_of(search: Search, entry: Entry) -> Score:
    run = search.run
    samples = run.samples(entry.hash, entry.rounds)
    base = run.samples(search.baseline.hash, entry.rounds)
    speeds = []
    for concurrency in sorted({s.concurrency for s in samples if not s.warmup}):
        speed = stats.speed(samples, concurrency)
        ratio = (
            Figure(value=1.0, unit="x")
            if entry is search.baseline
            else stats.ratio(samples, base, concurrency, at_lengths=True)
        )
        speeds.append(speed.model_copy(update={"ratio": ratio}))
    served = run.servers(entry.hash)
    return Score(
        speed=tuple(speeds),
        quality=entry.quality,
        cost=cost(speeds[-1], search.price) if speeds else None,
        memory_mb=max((s["memory_mb"] for s in served if s["memory_mb"]), default=None),
        disk_mb=entry.artifact.disk_mb if entry.artifact else None,
        load_s=_middle(served, "load_s"),
        cold_start_s=_middle(served, "cold_start_s"),
    )


def _middle(served: Sequence[Mapping[str, float | None]], name: str) -> float | None:
    values = [value for entry in served if (value := entry.get(name)) is not None]
    return stats.percentiles(values, (50,))[0] if values else None


def candidate_of(search: Search, entry: Entry) -> Candidate:
    recipe = entry.recipe
    return Candidate(
        label=entry.label,
        recipe=recipe.model_dump(mode="json") | {"techniques": [t.identity() for t in recipe.techniques]},
        recipe_hash=entry.hash,
        baseline=entry is search.baseline,
        status=entry.status,
        reason=entry.reason,
        score=score_of(search, entry),
        build_s=entry.build_s,
    )


def result_of(search: Search) -> Result:
    run = search.run
    candidates = [candidate_of(search, entry) for entry in search.entries]
    final = set(search.baseline.rounds)
    in_final = {e.hash for e in search.entries if set(e.rounds) == final}
    behind = [c for c in candidates if c.status == "measured" and c.recipe_hash not in in_final]
    judged, best, why = choose([c for c in candidates if c not in behind], search.goal)
    extra = [
        Candidate(label=item.label, recipe={}, recipe_hash="", status="left out", reason=item.reason)
        for item in search.left_out
    ]
    run.spent["total"] = run.elapsed_s
    return Result(
        id=run.folder.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=search.command,
        model=search.model.name,
        model_remark=search.model.remark,
        workload=search.workload.name,
        workload_remark=search.workload.remark,
        lengths=_lengths(search),
        goal=search.goal,
        price=search.price,
        hardware=detect(),
        tools=_tools(search),
        candidates=(*judged, *behind, *extra),
        best=best,
        why=why,
        remarks=tuple(run.remarks),
        seconds=_seconds(run),
        peak_memory_mb=round(run.peak_memory_mb),
        cost_model_error=search.cost_model_error,
    )


def _tools(search: Search) -> dict[str, str]:
    """The versions of what was measured with: of the first engine, and of each further one under its name."""
    found = building.tools(search.engine)
    for name in (name for name in search.others if name not in search.lost):
        more = building.tools(name)
        found |= {f"engine {name}": more.pop("engine")} | {
            key: value for key, value in more.items() if key not in found
        }
    return found


def _seconds(run: Run) -> dict[str, float]:
    return {name: round(value, 1) for name, value in run.spent.items()}


def _lengths(search: Search) -> Lengths | None:
    samples = [s for s in search.run.samples(search.baseline.hash, search.baseline.rounds) if s.error is None]
    if not samples:
        return None
    prompts = sorted(s.prompt_tokens for s in samples)
    answers = sorted(s.completion_tokens for s in samples)
    return Lengths(
        prompt_min=prompts[0],
        prompt_p50=round(stats.percentiles(prompts, (50,))[0]),
        prompt_max=prompts[-1],
        answer_p50=round(stats.percentiles(answers, (50,))[0]),
        answer_max=answers[-1],
    )


def with_speculation(search: Search, result: Result) -> Result:
    """Measure what guessing costs and gains the winner by load, and keep that in its artefact and the result."""
    winner = next((e for e in search.entries if e.label == result.best), None)
    if winner is None or winner.artifact is None or winner.artifact.settings.speculation is None:
        return result
    run, artifact = search.run, winner.artifact
    if run.left_s < budget.table_s(search) / 2:
        run.remark(
            "What guessing costs and gains by load wasn't measured, since the budget was used up: the server learns it as it goes."
        )
        return result.model_copy(update={"remarks": tuple(run.remarks)})
    prompts = {p.id: p for p in search.workload.evaluation}
    samples = [s for s in run.samples(winner.hash, winner.rounds) if s.text and s.prompt_id in prompts]
    answers = [(prompts[s.prompt_id], s.text) for s in samples[:ANSWERS]]
    run.tell("speculation", f"{winner.label}: steps by streams and guessed tokens")
    with run.phase("speculation"):
        try:
            table = engines.find(winner.engine).speculation_table(artifact.path, artifact.settings, answers)
        except EngineError as error:
            run.remark(str(error))
            return result.model_copy(update={"remarks": tuple(run.remarks)})
        if table is None:
            return result
        table = table.model_copy(update={"workload": search.workload.name})
        store.amend(artifact.key, FILE, table.model_dump_json(indent=1))
    run.spent["total"] = run.elapsed_s
    return result.model_copy(update={"speculation": table, "seconds": _seconds(run)})


def keep_artifact(search: Search, result: Result) -> None:
    """Put the winner's artefact into the run's folder, by hard links."""
    from quicksilver.sources.links import link_all

    winner = next((e for e in search.entries if e.label == result.best), None)
    if winner is None or winner.artifact is None:
        return
    target = search.run.folder / "artifact"
    if not target.exists():
        part = search.run.folder / "artifact.part"
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed here
        part.mkdir()
        link_all(store.path(winner.artifact.key), part)
        part.rename(target)
