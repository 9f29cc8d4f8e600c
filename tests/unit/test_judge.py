"""A model as the judge: pairs in both orders, ties, what is kept, and judges that can't."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_server import Exchange, serving

from quicksilver.bench import gate, judge
from quicksilver.bench.judge import Judge, Pair
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns import Endpoint, Goal, Prompt


def pairs(*texts: tuple[str, str]) -> list[Pair]:
    return [Pair(Prompt(id=f"p{n}", prompt=f"Question {n}?"), as_is, ours) for n, (as_is, ours) in enumerate(texts)]


def judging(verdict: Callable[[str, str], str]) -> Callable[[Exchange], None]:
    """Script a judge: what it says of the answers A and B."""

    def script(exchange: Exchange) -> None:
        text = exchange.body["messages"][1]["content"]
        first, second = (text.split(f"[Answer {name}]\n")[1].split(f"\n[End of answer {name}]")[0] for name in "AB")
        exchange.answer(200, {"choices": [{"message": {"role": "assistant", "content": verdict(first, second)}}]})

    return script


def longer(first: str, second: str) -> str:
    if len(first) == len(second):
        return "Both do. [[C]]"
    return f"One might say [[C]], but no: [[{'A' if len(first) > len(second) else 'B'}]]"


def test_a_preference_counts_if_it_stays_when_answers_change_places(tmp_path: Path) -> None:
    said = pairs(("short", "much longer"), ("much longer", "short"), ("same", "size"), ("equal", "equal "))
    with serving(v1_chat_completions=judging(longer)) as server:
        judge_ = Judge(Endpoint(url=server.url, model="j", api_key="key"), tmp_path / "verdicts.jsonl")
        seen: list[tuple[int, int]] = []
        found, rows = judge_.compare(said, lambda *x: seen.append(x))
        asked = server.bodies("/v1/chat/completions")
        assert len(asked) == 6, "the same text isn't asked about"
        assert all(body["temperature"] == 0 and body["model"] == "j" for body in asked)
        assert sum("Question 0?" in body["messages"][1]["content"] for body in asked) == 2
        assert all(headers["Authorization"] == "Bearer key" for _, _, headers in server.seen)
        again, _ = judge_.compare(said)
        assert len(server.bodies("/v1/chat/completions")) == 6, "what was judged is kept"
    assert again == found
    assert (found.wins, found.losses, found.ties, found.swayed, found.unread) == (1, 1, 2, 0, 0)
    assert found.rate.value == 0.5
    assert rows == {"p0": (-1.0, 1.0), "p1": (1.0, 1.0), "p2": (0.0, 1.0), "p3": (0.0, 1.0)}
    assert seen[-1] == (4, 4)


def test_a_judge_that_always_takes_the_first_finds_ties() -> None:
    with serving(v1_chat_completions=judging(lambda *_: "[[A]]")) as server:
        found, rows = Judge(Endpoint(url=server.url, model="j")).compare(pairs(("a", "b"), ("c", "d")))
    assert (found.ties, found.swayed, found.rate.value) == (2, 2, 0.5)
    assert all(row[0] == 0 for row in rows.values())


def as_is_is_better(first: str, _: str) -> str:
    return "[[A]]" if first.startswith("as-is") else "[[B]]"


@pytest.mark.parametrize(
    ("verdict", "count", "outcome"),
    [(as_is_is_better, 12, "fails"), (lambda *_: "[[C]]", 12, "undecided"), (lambda *_: "[[C]]", 40, "passes")],
)
def test_answers_that_are_worse_fail_the_gate_and_equal_ones_pass(
    verdict: Callable[[str, str], str], count: int, outcome: str
) -> None:
    said = pairs(*[(f"as-is {n}", f"ours {n}") for n in range(count)])
    with serving(v1_chat_completions=judging(verdict)) as server:
        _, rows = Judge(Endpoint(url=server.url, model="j")).compare(said)
    found = gate.judge([judge.loss(rows, Goal(max_task_loss=10))])
    assert found is not None
    assert found.outcome == outcome
    assert "judge" in found.reason


def test_a_judge_without_verdicts_is_one_sentence() -> None:
    for script, kind, sentence in (
        (judging(lambda *_: "Hard to say."), BadInputError, "gave no verdict that can be read on 2 of 2 pairs"),
        (lambda exchange: exchange.answer(500, {"error": "boom"}), EngineError, "HTTP 500"),
        (lambda exchange: exchange.answer(200, {"choices": []}), EngineError, "no answer in the form"),
    ):
        with serving(v1_chat_completions=script) as server, pytest.raises(kind, match=sentence):
            Judge(Endpoint(url=server.url, model="j")).compare(pairs(("a", "b"), ("c", "d")))


def test_a_judge_that_dies_in_the_middle_keeps_what_it_said(tmp_path: Path) -> None:
    calls = [0]

    def dies(exchange: Exchange) -> None:
        calls[0] += 1
        if calls[0] > 8:
            exchange.answer(503, "gone")
        else:
            judging(longer)(exchange)

    kept = tmp_path / "verdicts.jsonl"
    said = pairs(*[("short", f"much longer {n}") for n in range(20)])
    with serving(v1_chat_completions=dies) as server, pytest.raises(EngineError, match="503"):
        Judge(Endpoint(url=server.url, model="j"), kept).compare(said)
    before = len(kept.read_text(encoding="utf-8").splitlines())
    assert before > 0
    kept.write_text(kept.read_text(encoding="utf-8") + '{"key": "cut o', encoding="utf-8")
    with serving(v1_chat_completions=judging(longer)) as server:
        found, _ = Judge(Endpoint(url=server.url, model="j"), kept).compare(said)
        assert len(server.bodies("/v1/chat/completions")) == 2 * (20 - before)
    assert found.wins == 20
