"""Choice: which recipe wins for a goal, and why; or which limit binds, and what comes nearest."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quicksilver.nouns.goal import Goal
from quicksilver.nouns.result import Candidate
from quicksilver.nouns.score import Score, Speed


def merit(score: Score, goal: Goal, base: Score | None = None) -> float:
    """Return what a goal makes of a score, larger being better.

    `cost` and `throughput`: the geometric mean of tokens/s over the concurrencies measured, since on one machine the
    price of a token is the price of an hour over it; where the ratio to the as-is model was measured, whose score is `base`, it is
    that times the as-is model's tokens/s, which where answers end doesn't change. `latency`: answers per second of one user,
    1 / p50 end to end at the lowest concurrency.
    """
    speeds = [s for s in score.speed if s.tokens_per_s.value > 0]
    if not speeds:
        return 0.0
    if goal.metric == "latency":
        lowest = min(speeds, key=lambda s: s.concurrency)
        return 1000 / lowest.e2e_ms.p50 if lowest.e2e_ms.count else 0.0
    return math.exp(sum(math.log(_tokens_per_s(s, base)) for s in speeds) / len(speeds))


def _tokens_per_s(speed: Speed, base: Score | None) -> float:
    theirs = base.at(speed.concurrency) if base is not None else None
    if speed.ratio is None or speed.ratio.value <= 0 or theirs is None or theirs.tokens_per_s.value <= 0:
        return speed.tokens_per_s.value
    return speed.ratio.value * theirs.tokens_per_s.value


def excess(candidate: Candidate, goal: Goal) -> list[tuple[str, float]]:
    """Return the limits that a candidate breaks: a sentence's end, and how far over the limit it is (1 is at it)."""
    score = candidate.score
    over: list[tuple[str, float]] = []

    def limit(what: str, value: float | None, most: float | None, unit: str) -> None:
        if most is not None and value is not None and value > most:
            over.append((f"{what} {value:.4g}{unit} is over {most:g}{unit}", value / most if most else math.inf))

    judged = score.quality.judgement if score.quality is not None else None
    if judged is not None and judged.outcome != "passes" and not candidate.baseline:
        # What is undecided hasn't passed, however small its loss looks.
        over.append(
            (judged.reason, max(1.0, judged.term.loss.value / judged.term.limit) if judged.term.limit else math.inf)
        )
    elif judged is None and score.quality is not None and score.quality.loss is not None and not candidate.baseline:
        limit("quality loss", score.quality.loss.value, goal.max_quality_loss, " %")
    limit("memory", score.memory_mb, goal.memory_mb, " MB")
    for speed in score.speed:
        at = _streams(speed)
        limit(f"TTFT p95 at {at},", _p95(speed, "ttft"), goal.ttft_p95_ms, " ms")
        limit(f"inter-token latency p95 at {at},", _p95(speed, "itl"), goal.itl_p95_ms, " ms")
        if speed.errors:
            over.append((f"{speed.errors} of {speed.requests} requests failed at {at}", math.inf))
    return over


def choose(candidates: Sequence[Candidate], goal: Goal) -> tuple[list[Candidate], str | None, str]:
    """Mark who is eligible and pick the winner: the candidates, the winner's label or None, and why."""
    judged = [_judge(candidate, goal) for candidate in candidates]
    eligible = [c for c in judged if c.eligible]
    if not eligible:
        return judged, None, _nearest(judged, goal)
    base = next((c.score for c in judged if c.baseline), None)
    best = max(eligible, key=lambda c: merit(c.score, goal, base))
    return judged, best.label, _why(best, eligible, judged, goal, base)


def _judge(candidate: Candidate, goal: Goal) -> Candidate:
    if candidate.status != "measured":
        return candidate
    over = excess(candidate, goal)
    if not candidate.score.speed or merit(candidate.score, goal) == 0:
        return candidate.model_copy(update={"eligible": False, "reason": candidate.reason or "no speed was measured"})
    if over:
        return candidate.model_copy(update={"eligible": False, "reason": "; ".join(text for text, _ in over)})
    return candidate.model_copy(update={"eligible": True})


def _why(
    best: Candidate, eligible: Sequence[Candidate], judged: Sequence[Candidate], goal: Goal, base: Score | None
) -> str:
    def standing(candidate: Candidate) -> float:
        return merit(candidate.score, goal, base)

    words = {
        "cost": "the lowest price per token over the loads measured",
        "throughput": "the most tokens/s over the loads measured",
        "latency": "the shortest answer time for one user",
    }[goal.metric]
    sentences = [f"{best.label} has {words}, within every limit."]
    gains = [f"{s.ratio.value:.2f}x at {_streams(s)}" for s in best.score.speed if s.ratio is not None]
    if gains and not best.baseline:
        sentences.append(f"Against the model as it comes it serves {' and '.join(gains)}.")
    judged_quality = best.score.quality.judgement if best.score.quality is not None else None
    if judged_quality is not None:
        sentences.append(f"It passes the gate: {judged_quality.reason}.")
    rivals = sorted((c for c in eligible if c is not best), key=lambda c: -standing(c))
    if rivals:
        lag = 100 * (1 - standing(rivals[0]) / standing(best))
        close = "; runs vary by more than that, so take them as equal" if lag < 5 else ""
        behind = f"{lag:.0f} % behind" if round(lag) else "less than 1 % behind"
        sentences.append(f"Next comes {rivals[0].label}, {behind}{close}.")
    faster = [c for c in judged if c.status == "measured" and not c.eligible and standing(c) > standing(best)]
    if faster:
        top = max(faster, key=standing)
        sentences.append(f"{top.label} is faster, but {top.reason}.")
    return " ".join(sentences)


def _nearest(judged: Sequence[Candidate], goal: Goal) -> str:
    broken = [(c, excess(c, goal)) for c in judged if c.status == "measured" and c.score.speed]
    broken = [(c, over) for c, over in broken if over]
    if not broken:
        return "Nothing was measured that could win."
    nearest, over = min(broken, key=lambda pair: max(factor for _, factor in pair[1]))
    worst = max(over, key=lambda pair: pair[1])
    return f"No recipe meets every limit. {nearest.label} comes nearest: its {worst[0]}, which is the limit that binds."


def _p95(speed: Speed, which: str) -> float | None:
    latency = speed.ttft_ms if which == "ttft" else speed.itl_ms
    return latency.p95 if latency.count else None


def _streams(speed: Speed) -> str:
    return f"{speed.concurrency} stream{'s' if speed.concurrency > 1 else ''}"
