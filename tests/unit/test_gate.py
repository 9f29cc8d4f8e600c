"""The quality gate: what passes, fails or stays undecided, how sure it is, and what would decide."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quicksilver.bench import columns, gate
from quicksilver.bench.quality import Evaluation, PromptLogprobs, compare
from quicksilver.bench.report import load_result, markdown
from quicksilver.nouns import Goal, Prompt, Sample
from quicksilver.nouns.score import Judgement
from quicksilver.search.choice import choose, excess


def rows(loss: float, noise: float, prompts: int, seed: int = 0, *, drawn: bool = False) -> dict[str, gate.Row]:
    """Prompts that lose `loss` percent of perplexity, with a spread of `noise` percent; on average, or `drawn` from such prompts."""
    tokens = 500
    draws = np.random.default_rng(seed).standard_normal(prompts)
    gaps = -(math.log1p(loss / 100) + noise / 100 * (draws if drawn else draws - draws.mean())) * tokens
    return {f"p{n}": (float(gap), float(tokens)) for n, gap in enumerate(gaps)}


def judged(losses: list[gate.Loss], groups: Mapping[str, str | None] | None = None) -> Judgement:
    found = gate.judge(losses, groups=groups)
    assert found is not None
    return found


GOAL = Goal(max_quality_loss=1.0)


@pytest.mark.parametrize(
    ("loss", "noise", "prompts", "outcome"),
    [(0.5, 0.5, 32, "passes"), (2.0, 0.5, 32, "fails"), (0.9, 1.0, 32, "undecided"), (1.1, 1.0, 32, "undecided"),
     (0.9, 0.1, 32, "passes"), (0.5, 0.5, 4, "undecided"), (50.0, 0.5, 4, "undecided"), (0.0, 0.0, 8, "passes")],
)  # fmt: skip
def test_the_interval_decides_and_not_the_value(loss: float, noise: float, prompts: int, outcome: str) -> None:
    found = judged([gate.quality_loss(rows(loss, noise, prompts), GOAL)])
    assert (found.outcome, found.binds, found.prompts) == (outcome, "quality loss", prompts)
    assert "\n" not in found.reason and "quality loss" in found.reason
    term = found.term
    assert (term.decide_at is not None) == (outcome == "undecided" and prompts > 5)
    if prompts < 6:
        assert "too few" in found.reason


def test_the_words_say_what_binds_how_sure_and_what_would_decide() -> None:
    passes = judged([gate.quality_loss(rows(0.5, 0.5, 32), GOAL)]).reason
    assert "at most" in passes and "95 % confidence" in passes and "32 prompts" in passes
    fails = judged([gate.quality_loss(rows(2.0, 0.5, 32), GOAL)]).reason
    assert "over 1 %" in fails and "at least" in fails
    some = judged([gate.quality_loss(rows(0.75, 1.0, 32), GOAL)]).reason
    assert "undecided" in some and "prompts would decide, 32 prompts were read" in some


def test_what_would_decide_is_told_by_the_width_and_not_when_it_is_too_near() -> None:
    # Half of the interval is 0.4, the distance 0.2: four times the prompts halve it.
    assert gate.to_decide(0.7, 0.3, 1.1, 0.9, 10) == (40, True)
    assert gate.to_decide(0.7, 0.3, 1.1, 1.0, 10) == (18, False)
    assert gate.to_decide(0.99, 0.5, 1.5, 1.0, 10) == (40, True)
    assert gate.to_decide(1.3, 0.9, 2.0, 1.0, 9) == (16, False), "above the limit the lower half counts"


@given(st.floats(0.2, 1.9), st.floats(0.3, 2.0), st.integers(6, 60), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_the_prompts_that_would_decide_are_more_than_were_read(
    loss: float, noise: float, count: int, seed: int
) -> None:
    term = judged([gate.quality_loss(rows(loss, noise, count, seed), GOAL)]).term
    assert term.loss.low is not None and term.loss.high is not None
    assert term.loss.low <= term.loss.value <= term.loss.high
    if term.outcome == "undecided":
        assert term.decide_at is not None and term.decide_at > count
        assert term.loss.low <= term.limit < term.loss.high
    elif term.outcome == "passes":
        assert term.loss.high <= term.limit + 1e-6
    else:
        assert term.loss.low > term.limit


def test_a_model_at_the_limit_is_rarely_let_through() -> None:
    """A loss that is just over the limit passes in no more than the 2.5 % that one side of the interval allows, roughly."""
    outcomes = [judged([gate.quality_loss(rows(1.01, 1.0, 16, seed, drawn=True), GOAL)]).outcome for seed in range(120)]
    assert outcomes.count("passes") <= 9
    assert outcomes.count("fails") <= 9


def test_looks_double_and_spend_no_more_than_alpha() -> None:
    assert gate.looks(48) == [8, 16, 32, 48]
    assert gate.looks(8) == [8]
    assert gate.looks(5) == [5]
    assert gate.looks(0) == []
    for planned in (5, 8, 9, 48, 100, 1000):
        spent = sum(1 - gate.level(at, planned) for at in gate.looks(planned))
        assert spent == pytest.approx(gate.ALPHA)


def test_looking_again_and_again_does_not_let_more_through() -> None:
    """A loss just over the limit, looked at after 8, 16, 32 and 48 prompts: one wrong pass in forty at most, roughly."""
    passed = 0
    for seed in range(80):
        every = rows(1.01, 1.0, 48, seed, drawn=True)
        for at in gate.looks(48):
            some = dict(list(every.items())[:at])
            outcome = judged([gate.quality_loss(some, GOAL, gate.level(at, 48))]).outcome
            if outcome != "undecided":
                passed += outcome == "passes"
                break
    assert passed <= 6


@pytest.mark.parametrize(
    ("chance", "freedom", "quantile"),
    [(0.975, 4, 2.776), (0.975, 7, 2.365), (0.975, 47, 2.012), (0.995, 4, 4.604), (0.995, 7, 3.499), (0.998, 7, 4.207)],
)
def test_students_quantiles_are_the_tables(chance: float, freedom: int, quantile: float) -> None:
    assert gate._student(chance, freedom) == pytest.approx(quantile, rel=0.01)
    assert gate._student(chance, 10**6) == pytest.approx(NormalDist().inv_cdf(chance), rel=1e-4)


def test_few_prompts_cannot_be_sure() -> None:
    """Six prompts that are all worse happen to a model that isn't in 1 of 32 cases; ten in 1 of 512."""
    assert [gate.fewest(level) for level in (0.5, 0.95, 1 - 1 / 32, 0.99, 0.9975)] == [2, 6, 6, 8, 10]
    few = rows(3.0, 0.1, 7)
    assert judged([gate.quality_loss(few, GOAL)]).outcome == "fails"
    assert judged([gate.quality_loss(few, GOAL, 0.99)]).outcome == "undecided"


# --- the task and the groups ---------------------------------------------------------------------------------------


def scores(share: float, prompts: int, before: float = 0.8) -> dict[str, gate.Row]:
    """A task where the as-is model is right on `before` of the prompts and the candidate on `share` of those."""
    right = [n < before * prompts for n in range(prompts)]
    kept = [was and n < share * before * prompts for n, was in enumerate(right)]
    return {
        f"p{n}": (float(was) - float(now), float(was)) for n, (was, now) in enumerate(zip(right, kept, strict=True))
    }


def test_a_fine_perplexity_and_a_broken_task_fails() -> None:
    fine, broken = gate.quality_loss(rows(0.1, 0.1, 40), GOAL), gate.task_loss("f1", scores(0.2, 40), GOAL)
    found = judged([fine, broken])
    assert (found.outcome, found.binds) == ("fails", "task loss (f1)")
    assert "task loss (f1) 78" in found.reason
    assert judged([fine, gate.task_loss("f1", scores(1.0, 40), GOAL)]).outcome == "passes"


def test_a_task_has_to_be_proved_only_where_a_limit_is_set() -> None:
    """Forty answers can't tell 5 % from 10 %: without a limit of the user's that is no reason to refuse a recipe."""
    fine = gate.quality_loss(rows(0.1, 0.1, 40), GOAL)
    for goal, outcome in ((GOAL, "passes"), (Goal(max_task_loss=5), "undecided"), (Goal(max_task_loss=40), "passes")):
        found = judged([fine, gate.task_loss("f1", scores(0.94, 40), goal)])
        assert found.outcome == outcome
    found = judged([fine, gate.task_loss("f1", scores(0.94, 40), Goal(max_task_loss=5))])
    assert found.binds == "task loss (f1)"
    assert "would decide" in found.reason


def test_a_task_that_the_as_is_model_cannot_do_is_not_judged() -> None:
    assert gate.judge([gate.task_loss("f1", {"a": (0.0, 0.0), "b": (-1.0, 0.0)}, GOAL)]) is None


def test_no_loss_seen_in_a_few_answers_proves_little() -> None:
    """Of 20 answers that were right none was lost: up to 17 % may be (1 - 0.025^(1/20)), whatever a bootstrap says."""
    for prompts, outcome in ((25, "undecided"), (100, "passes")):
        found = judged([gate.task_loss("f1", scores(1.0, prompts), Goal(max_task_loss=5))])
        assert found.outcome == outcome
    term = judged([gate.task_loss("f1", scores(1.0, 25), Goal(max_task_loss=5))]).term
    assert term.loss.value == 0
    assert term.loss.high == pytest.approx(16.8, abs=0.1)


def test_what_computes_the_same_passes_on_a_few_prompts() -> None:
    assert (
        judged([gate.quality_loss({"a": (0.0, 300.0), "b": (0.0, 400.0)}, Goal(max_quality_loss=0))]).outcome
        == "passes"
    )
    assert judged([gate.quality_loss({"a": (0.0, 300.0), "b": (-1e-3, 400.0)}, GOAL)]).outcome == "undecided"


def test_one_bad_group_fails() -> None:
    good = rows(0.1, 0.2, 60)
    bad = {f"b{n}": row for n, row in enumerate(rows(4.0, 0.5, 8).values())}
    groups = dict.fromkeys(good, "prose") | dict.fromkeys(bad, "law")
    every = good | bad
    whole = Goal(max_quality_loss=2.0)
    assert judged([gate.quality_loss(every, whole)]).outcome == "passes", "over all prompts it would pass"
    found = judged([gate.quality_loss(every, whole)], groups)
    assert (found.outcome, found.binds) == ("fails", "quality loss in the group 'law'")


def test_a_group_that_proves_nothing_does_no_harm() -> None:
    """Eight groups of twelve prompts with the same loss: some look worse by chance, and with their share of the error hardly one fails."""
    failed = 0
    for seed in range(40):
        every = rows(0.9, 1.0, 96, seed, drawn=True)
        groups = {name: f"g{n % 8}" for n, name in enumerate(every)}
        failed += judged([gate.quality_loss(every, Goal(max_quality_loss=1.2))], groups).outcome == "fails"
    assert failed <= 3


def test_small_groups_and_a_single_group_are_not_judged() -> None:
    every = rows(0.1, 0.2, 20)
    few = {name: "rare" if n < 6 else "common" for n, name in enumerate(every)}
    terms = judged([gate.quality_loss(every, GOAL)], few).terms
    assert [term.name for term in terms] == ["quality loss", "quality loss in the group 'common'"]
    assert len(judged([gate.quality_loss(every, GOAL)], dict.fromkeys(every, "one")).terms) == 1


# --- from evaluations to a choice ------------------------------------------------------------------------------------


def read(shift: float, prompts: int = 12) -> list[PromptLogprobs]:
    return [PromptLogprobs(f"p{n}", [1, 2, 3], [None, -1.0 - shift, -2.0 - shift - n / 1e4]) for n in range(prompts)]


def said(text: str, prompts: int = 12) -> list[Sample]:
    return [Sample(prompt_id=f"p{n}", concurrency=1, scheduled=0, sent=0, end=1, text=text) for n in range(prompts)]


def test_synthetic_evaluations_go_through_the_gate() -> None:
    prompts = [Prompt(id=f"p{n}", prompt="?", references=("Paris",)) for n in range(12)]
    base = Evaluation(read(0), said("It is Paris."))
    for shift, text, outcome in (
        (0.001, "It is Paris.", "passes"),
        (0.001, "Bananas.", "fails"),
        (0.5, "It is Paris.", "fails"),
    ):
        found = compare(Evaluation(read(shift), said(text)), base, prompts, task="qa", goal=GOAL).judgement
        assert found is not None
        assert found.outcome == outcome
    assert compare(base, base, prompts, task="qa").judgement is None, "without a goal nothing is judged"


def test_what_has_not_passed_cannot_win() -> None:
    result = load_result(Path(__file__).parents[1] / "golden" / "result.json")
    base = next(c for c in result.candidates if c.baseline)
    fast = result.candidate(result.best or "")
    assert fast is not None
    noisy = [
        PromptLogprobs(i.prompt_id, i.tokens, [None, i.logprobs[1], -2.0 + (n % 2 - 0.5) / 5])
        for n, i in enumerate(read(0))
    ]
    undecided = compare(Evaluation(noisy), Evaluation(read(0)), goal=GOAL)
    assert undecided.judgement is not None and undecided.judgement.outcome == "undecided"
    held = fast.model_copy(update={"score": fast.score.model_copy(update={"quality": undecided})})
    found, best, why = choose([base, held], GOAL)
    assert best == base.label
    assert "undecided" in why and "would decide" in why
    assert not found[1].eligible
    assert excess(held, GOAL)[0][1] >= 1
    shown = result.model_copy(update={"candidates": tuple(found), "best": best, "why": why})
    heads, cells = columns.quality_details(shown)
    assert cells[1][1][heads.index("gate")].main == "undecided"
    quality = next(c for c in columns.columns(shown, [1]) if c.head == "quality")
    assert quality.cell(found[1]).over, "however small its value is"
    assert "would decide" in markdown(shown)


def test_why_a_winner_passes_is_said() -> None:
    result = load_result(Path(__file__).parents[1] / "golden" / "result.json")
    base, fast = next(c for c in result.candidates if c.baseline), result.candidate(result.best or "")
    assert fast is not None
    passing = compare(Evaluation(read(0.001)), Evaluation(read(0)), goal=GOAL)
    held = fast.model_copy(update={"score": fast.score.model_copy(update={"quality": passing})})
    _, best, why = choose([base, held], result.goal)
    assert best == fast.label
    assert "It passes the gate: quality loss 0.10 % is at most 0.10 %" in why
