"""`quicksilver compare`: two servers through the gate, without a search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Exchange, serving

from quicksilver import api
from quicksilver.cli import run
from quicksilver.errors import BadInputError


def server(shift: float = 0.0, answer: str = "Paris", *, plain: bool = False) -> dict[str, Any]:
    """Script a server whose text is less likely by `shift` nats a token, a little more or less by prompt."""

    def models(exchange: Exchange) -> None:
        exchange.answer(200, {"data": [{"id": "m"}]})

    def tokenize(exchange: Exchange) -> None:
        text = exchange.body["messages"][0]["content"] if "messages" in exchange.body else exchange.body["prompt"]
        exchange.answer(200, {"tokens": [ord(c) for c in text]})

    def completions(exchange: Exchange) -> None:
        body = exchange.body
        if body.get("echo"):
            if plain:
                exchange.answer(400, {"error": "echo is not supported"})
                return
            ids = body["prompt"]
            values = [None, *(-1 - t / 100 - shift * (1 + (t % 7) / 50) for t in ids[1:]), -0.5]
            tops = [
                None,
                *({f"token_id:{t}": value, "token_id:1": -2.0} for t, value in zip(ids[1:], values[1:-1], strict=True)),
                None,
            ]
            told = {"token_logprobs": values, "top_logprobs": tops}
            exchange.answer(200, {"choices": [{"text": "…", "logprobs": told}]})
        elif body.get("stream"):
            exchange.open_stream()
            piece = {"choices": [{"index": 0, "text": answer, "finish_reason": "stop"}]}
            exchange.send(b"data: " + json.dumps(piece).encode() + b"\n\ndata: [DONE]\n\n")
            exchange.close_stream()
        else:
            told = {"tokens": ["token_id:7", "token_id:9"], "token_logprobs": [-0.1, -0.2]}
            exchange.answer(200, {"choices": [{"text": "ab", "logprobs": told, "finish_reason": "stop"}]})

    routes: dict[str, Any] = {"v1_models": models, "v1_completions": completions}
    return routes if plain else routes | {"tokenize": tokenize}


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "questions.jsonl"
    lines = [{"prompt": f"What is the capital of the country {n}?", "reference": "Paris"} for n in range(60)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("candidate", "outcome", "binds"),
    [
        ((0.002, "Paris"), "passes", "quality loss"),
        ((0.05, "Paris"), "fails", "quality loss"),
        ((0.002, "Bananas"), "fails", "task loss (f1)"),
    ],
)
def test_a_candidate_passes_or_fails(
    candidate: tuple[float, str], outcome: str, binds: str, questions: str, tmp_path: Path
) -> None:
    with serving(**server()) as base, serving(**server(*candidate)) as other:
        found = api.compare(base.url, other.url, questions, metric="f1", out=tmp_path / "out")
        read = [body for body in other.bodies("/v1/completions") if body.get("echo")]
    judged = found.quality.judgement
    assert judged is not None
    assert (judged.outcome, judged.binds, found.passes) == (outcome, binds, outcome == "passes")
    assert len(read) == 8, "clear cases are decided at the first look"
    assert found.quality.kl is not None and found.quality.kl.value >= 0
    assert found.quality.own_loss_percent is not None
    assert found.remarks == ()
    names = ["answers-as-is.jsonl", "answers-candidate.jsonl", "logprobs-as-is.jsonl", "logprobs-candidate.jsonl"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_the_command_says_it_in_words_and_by_its_exit_code(
    questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(**server()) as base, serving(**server(0.002)) as good, serving(**server(0.05)) as bad:
        line = ["--workload", questions, "--out", str(tmp_path / "out")]
        assert run(["compare", base.url, good.url, *line]) == 0
        out = capsys.readouterr().out
        assert "passes: quality loss" in out and "KL divergence" in out and "task loss (contains)" in out
        assert run(["compare", base.url, bad.url, *line, "--json"]) == 1
        document = json.loads(capsys.readouterr().out)
        assert document["quality"]["judgement"]["outcome"] == "fails"
        assert document["command"].startswith("quicksilver compare http://")


def test_servers_without_logprobs_are_compared_by_their_answers(questions: str, tmp_path: Path) -> None:
    with serving(**server(plain=True)) as base, serving(**server(plain=True, answer="Rome")) as other:
        found = api.compare(base.url, other.url, questions, out=tmp_path / "out")
    assert not found.passes
    assert found.quality.perplexity is None
    assert "can't split a text into tokens" in found.remarks[0]


def test_with_nothing_to_compare_by_it_says_what_to_give(tmp_path: Path) -> None:
    path = tmp_path / "bare.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{n}"}) + "\n" for n in range(20)), encoding="utf-8")
    with serving(**server(plain=True)) as base, serving(**server(plain=True)) as other:
        with pytest.raises(BadInputError, match=r"nothing to compare by: .*Give a workload with references"):
            api.compare(base.url, other.url, path, out=tmp_path / "out")
        with pytest.raises(BadInputError, match="no task whose loss could have a limit"):
            api.compare(base.url, other.url, path, max_task_loss=5, out=tmp_path / "out")


def test_other_tokens_are_no_ground_for_perplexity(questions: str, tmp_path: Path) -> None:
    def other_tokens(exchange: Exchange) -> None:
        exchange.answer(200, {"tokens": [1, 2, 3]})

    with serving(**server()) as base, serving(**server() | {"tokenize": other_tokens}) as other:
        found = api.compare(base.url, other.url, questions, out=tmp_path / "out")
    assert found.quality.loss_percent is None
    assert any("other tokens" in remark for remark in found.remarks)
    assert found.passes, "the answers are the same, and nothing of the task has to be proved"
