"""What the as-is model holds against answers, from what its server tells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from quicksilver.bench import gate, quality, regret
from quicksilver.bench.quality import Evaluation, UnmeasurableError
from quicksilver.bench.regret import Said
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns import Endpoint, Goal, Prompt, Sample

SERVER = Endpoint(url="http://127.0.0.1:1/v1", model="m")
PROMPT = [7, 8]
END = 2
# Token → log-probability in the places after the prompt: what the server tells of the likeliest.
FIRST = {11: -0.1, 12: -2.0, 13: -4.0}
SECOND = {21: -0.5, 22: -0.75, END: -3.0}
LAST = {END: -0.2, 31: -2.2}


def sample(text: str, finish: str = "stop", error: str | None = None) -> Sample:
    return Sample(prompt_id="p", concurrency=1, scheduled=0.0, sent=0.0, text=text, finish=finish, error=error)


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A server that splits a text at its spaces into numbers."""
    says: dict[str, Any] = {"rows": [FIRST, SECOND, LAST]}

    def tokenize(endpoint: Endpoint, prompt: Prompt, *, special: bool, timeout_s: float) -> list[int]:
        assert not special, "an answer is the middle of a text"
        return [int(part) for part in (prompt.prompt or "").split()]

    def echo(endpoint: Endpoint, tokens: Sequence[int], wanted: Any, timeout_s: float) -> Any:
        rows = says["rows"][: len(tokens) - len(PROMPT) + 1]
        named = [{f"token_id:{token}": value for token, value in row.items()} for row in rows]
        logprobs = [None, -1.0, *(row.get(t, -9.0) for row, t in zip(rows, tokens[len(PROMPT) :], strict=False))]
        return logprobs, says.get("told", [None, None, *named])

    monkeypatch.setattr(regret, "tokenize", tokenize)
    monkeypatch.setattr(regret, "echo", echo)
    return says


def read(answer: Sample, eos: tuple[int, ...] = (END,)) -> Said:
    (found,) = regret.read(SERVER, [answer], {"p": PROMPT}, eos=eos)
    return found


@pytest.mark.parametrize(
    ("answer", "nats", "tokens"),
    [
        (sample("11 21"), 0.0, 3),  # what it would have said itself, and ended there
        (sample("11 22"), 0.25, 3),
        (sample("13 22"), 3.9 + 0.25, 3),
        (sample("99 21"), 8.9, 3),  # none of the likeliest
        (sample("11 22", "length"), 0.25, 2),  # cut off: nobody chose that end
        (sample("11"), 2.5, 2),  # ended where the as-is model would have gone on
        (sample(""), 3.9, 1),  # at once: no end is among the likeliest, the least of which is at -4
    ],
)
def test_each_token_is_held_against_the_likeliest_in_its_place(answer: Sample, nats: float, tokens: int) -> None:
    found = read(answer)
    assert found.regret == pytest.approx(nats)
    assert found.tokens == tokens
    assert found.prompt == len(PROMPT)


def test_without_known_ends_they_are_not_counted() -> None:
    assert read(sample("11"), eos=()).tokens == 1


def test_a_server_that_leaves_out_the_end_has_ended_there_itself(server: dict[str, Any]) -> None:
    server["rows"] = [FIRST, SECOND]
    found = read(sample("11 21"))
    assert (found.regret, found.tokens) == (0.0, 3)


def test_a_server_that_tells_too_little_is_told_of(server: dict[str, Any]) -> None:
    server["told"] = None
    with pytest.raises(UnmeasurableError, match="doesn't tell the likeliest tokens"):
        read(sample("11 21"))


def test_an_answer_that_failed_is_no_answer() -> None:
    with pytest.raises(EngineError, match="The prompt 'p' got no answer: disconnect"):
        read(sample("", error="disconnect"))


def said(prompt: str, nats: float, tokens: int) -> Said:
    return Said(prompt, "…", "stop", nats, tokens)


def test_what_the_as_is_models_own_answers_have_is_taken_off() -> None:
    found = regret.rows(
        [said("a", 3.0, 10), said("b", 1.0, 5), said("c", 0.0, 4)], [said("a", 4.0, 20), said("b", 1.0, 5)]
    )
    assert found == {"a": (-1.0, 10.0), "b": (0.0, 5.0)}


def test_the_gate_judges_by_answers_where_there_are_no_log_probabilities() -> None:
    own = [said(str(n), 0.0, 50) for n in range(48)]
    goal = Goal(max_quality_loss=1.0)

    def judge(each: Sequence[float]) -> Any:
        theirs = [said(str(n), nats, 50) for n, nats in enumerate(each)]
        found = quality.compare(Evaluation(said=theirs), Evaluation(said=own), goal=goal)
        assert found.loss is found.answer_loss_percent is not None
        assert found.loss_percent is None and found.perplexity is None
        assert found.judgement is not None
        return found.judgement

    good = judge([0.1 * (n % 3) for n in range(48)])
    assert (good.outcome, good.binds) == ("passes", regret.NAME)
    assert judge([2.0 + n % 3 for n in range(48)]).outcome == "fails"
    # A few answers that go astray, and many that don't: 48 don't show where the mean is.
    assert judge([12.0 if n % 16 == 0 else 0.0 for n in range(48)]).outcome == "undecided"


def test_it_looks_at_no_fewer_than_sixteen() -> None:
    assert regret.looks(48) == [16, 32, 48]
    assert regret.looks(10) == [10]
    assert set(regret.looks(48)) <= set(gate.looks(48))


def test_what_was_read_is_read_back(tmp_path: Path) -> None:
    items = [said("a", 0.25, 3), Said("b", "", "length", 0.0, 0, 12)]
    regret.write(tmp_path / "said.jsonl", items)
    assert regret.load(tmp_path / "said.jsonl") == items
    (tmp_path / "said.jsonl").write_text("{\n", encoding="utf-8")
    with pytest.raises(BadInputError, match="holds no answers"):
        regret.load(tmp_path / "said.jsonl")
