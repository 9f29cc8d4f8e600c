"""Results that a report has to cope with, all derived from the golden one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quicksilver.bench.report import load_certificate, load_result
from quicksilver.nouns import Candidate, Certificate, Result

GOLDEN = Path(__file__).parent
BARE = {"points": (), "presets": (), "interactions": None, "crossovers": (), "cost_model_error": None}
"""What a search that measured nothing after its race leaves empty."""
EVIL = "int8 <script>alert('x')</script> & \"q\" | [red]`b`[/red] \x1b[31m"


def golden() -> Result:
    """The fixed result: a winner, the as-is model, recipes over the limit, failed, screened and left out."""
    return load_result(GOLDEN / "result.json")


def certificate() -> Certificate:
    """The fixed certificate of the fixed result's winner."""
    found = load_certificate(GOLDEN / "certificate.json")
    assert found is not None
    return found


def one_concurrency() -> Result:
    return _each(golden(), lambda c: _scored(c, speed=c.score.speed[:1]))


def no_quality() -> Result:
    return _each(golden(), lambda c: _scored(c, quality=None))


def all_failed() -> Result:
    failed = [
        c.model_copy(
            update={"status": "failed", "reason": "The server died.", "eligible": False, "score": type(c.score)()}
        )
        for c in golden().candidates
    ]
    return golden().model_copy(
        update={"candidates": tuple(failed), "best": None, "why": "Every recipe failed.", "lengths": None, **BARE}
    )


def nothing_at_all() -> Result:
    return golden().model_copy(update={"candidates": (), "best": None, "why": "", **BARE})


def no_winner() -> Result:
    base = golden()
    out = _each(
        base, lambda c: c.model_copy(update={"eligible": False, "reason": c.reason or "Its TTFT p95 is over 100 ms."})
    )
    why = "No recipe keeps TTFT p95 under 100 ms; w8a8 comes nearest with 375 ms."
    goal = base.goal.model_copy(update={"ttft_p95_ms": 100.0})
    return out.model_copy(update={"best": None, "why": why, "goal": goal})


def no_baseline() -> Result:
    """One server that was measured and compared with nothing, as `bench URL` does it."""
    one = next(c for c in golden().candidates if c.label == "w8a8")
    one = _scored(one, quality=None, memory_mb=None, disk_mb=None, load_s=None, cold_start_s=None)
    speeds = tuple(s.model_copy(update={"ratio": None}) for s in one.score.speed)
    one = _scored(one, speed=speeds)
    return golden().model_copy(update={"candidates": (one,), "best": None, "why": "", **BARE})


def old() -> Result:
    """A document of the time before presets."""
    return load_result(GOLDEN / "result-before-presets.json")


def forty() -> Result:
    base = golden()
    measured = [c for c in base.candidates if c.status == "measured"]
    more = []
    for i in range(34):
        like = measured[1 + i % 5]
        speeds = tuple(
            s.model_copy(
                update={
                    "tokens_per_s": s.tokens_per_s.model_copy(update={"value": s.tokens_per_s.value * (0.8 + i / 100)}),
                    "ratio": None,
                }
            )
            for s in like.score.speed
        )
        more.append(_scored(like, speed=speeds).model_copy(update={"label": f"{like.label} + variant-{i}"}))
    return base.model_copy(update={"candidates": (*base.candidates, *more)})


def beaten() -> Result:
    """Forty recipes of which a short race left most behind, the last of them on an engine of its own."""
    base = forty()
    names = {c.label for c in golden().candidates}
    lost = [
        c if c.label in names else c.model_copy(update={"eligible": False, "reason": "The short race left it behind."})
        for c in base.candidates
    ]
    one = min((c for c in lost if c.label not in names), key=lambda c: c.score.cost.measured if c.score.cost else 0.0)
    cost = one.score.cost
    assert cost is not None
    dear = _scored(one, cost=cost.model_copy(update={"measured": 1000.0}))
    last = dear.model_copy(update={"recipe": {**dear.recipe, "engine": "vllm"}, "label": "vllm: as-is"})
    return base.model_copy(update={"candidates": (*(c for c in lost if c is not one), last)})


def evil() -> Result:
    """A user whose labels and remarks are markup for every face of the report."""
    base = golden()
    renamed = [
        c.model_copy(update={"label": EVIL, "reason": EVIL, "recipe": {"label": EVIL}}) if c.label == base.best else c
        for c in base.candidates
    ]
    traded = {
        "points": tuple(p.model_copy(update={"label": EVIL}) if p.label == base.best else p for p in base.points),
        "presets": tuple(
            p.model_copy(update={"label": EVIL, "why": EVIL}) if p.label == base.best else p for p in base.presets
        ),
        "interactions": base.interactions
        and base.interactions.model_copy(
            update={"parts": tuple(p.model_copy(update={"label": EVIL}) for p in base.interactions.parts)}
        ),
        "crossovers": tuple(c.model_copy(update={"first": EVIL}) for c in base.crossovers),
    }
    words = dict.fromkeys(
        ("best", "why", "model", "model_remark", "workload", "workload_remark", "command", "id"), EVIL
    )
    return base.model_copy(
        update={
            "candidates": tuple(renamed),
            "remarks": (EVIL,),
            "tools": {EVIL: EVIL},
            "seconds": {EVIL: 1.0},
            **traded,
            **words,
        }
    )


def predicted() -> Result:
    def change(candidate: Candidate) -> Candidate:
        if candidate.baseline:
            return candidate
        speeds = tuple(
            s.model_copy(update={"tokens_per_s": s.tokens_per_s.model_copy(update={"source": "predicted"})})
            for s in candidate.score.speed
        )
        return _scored(candidate, speed=speeds)

    return _each(golden(), change)


def _scored(candidate: Candidate, **changes: object) -> Candidate:
    return candidate.model_copy(update={"score": candidate.score.model_copy(update=changes)})


def _each(result: Result, change: Callable[[Candidate], Candidate]) -> Result:
    measured = (change(c) if c.status == "measured" else c for c in result.candidates)
    return result.model_copy(update={"candidates": tuple(measured)})
