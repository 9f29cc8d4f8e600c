"""Quality: what is asked of the server, and what is derived from its answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import Exchange, serving, words

from quicksilver.bench import divergence, text_metrics
from quicksilver.bench.quality import (
    Evaluation,
    PromptLogprobs,
    UnmeasurableError,
    answers,
    compare,
    evaluate_texts,
    perplexity,
    prompt_logprobs,
    read_logprobs,
    score,
    tokenize,
    write_logprobs,
)
from quicksilver.bench.text_metrics import common_prefix, contains, exact_match, f1, normalise, rouge_l
from quicksilver.errors import BadInputError, EngineError, QuicksilverError
from quicksilver.nouns import Endpoint, Message, Prompt, Sample

# --- metrics ---------------------------------------------------------------------------------------------------------


def test_normalise_is_squads() -> None:
    assert normalise("  The  U.S. Army's\tan apple, (A) day! ") == "us armys apple day"
    assert normalise("theatre") == "theatre"


@pytest.mark.parametrize(
    ("answer", "references", "em", "score"),
    [
        ("The Denver Broncos!", ["Denver Broncos"], 1.0, 1.0),
        ("Denver", ["Denver Broncos"], 0.0, 2 / 3),
        ("Carolina Panthers", ["Denver Broncos"], 0.0, 0.0),
        ("in 1066 at Hastings", ["1066", "the year 1066"], 0.0, 0.4),
        ("a a b", ["b b c"], 0.0, 0.5),  # "a" is an article: [b] against [b b c]
        ("x x y", ["x y y"], 0.0, 2 / 3),  # counts of words matter
        ("", ["something"], 0.0, 0.0),
        ("the", ["a"], 1.0, 0.0),  # v1.1 has no rule for empty answers: exact, and F1 0
    ],
)
def test_squad_known_values(answer: str, references: list[str], em: float, score: float) -> None:
    assert exact_match(answer, references) == em
    assert f1(answer, references) == pytest.approx(score)


def test_contains_takes_whole_words() -> None:
    assert contains("It was the Denver Broncos, in 2016.", ["Denver Broncos"]) == 1
    assert contains("I know it.", ["no"]) == 0
    assert contains("No, they aren't.", ["no"]) == 1
    assert contains("Broncos of Denver", ["Denver Broncos"]) == 0
    assert contains("anything", ["the"]) == 0
    assert contains("anything", []) == 0


def test_rouge_l_takes_the_best_reference() -> None:
    # LCS of "the cat sat" and "the cat ate": 2 of 3 words each.
    assert rouge_l("the cat sat", ["the cat ate"]) == pytest.approx(2 / 3)
    assert rouge_l("the cat sat", ["dogs", "the cat sat"]) == pytest.approx(1)
    assert rouge_l("anything", []) == 0


@given(st.text(max_size=40), st.lists(st.text(max_size=20), max_size=3))
def test_scores_lie_between_0_and_1(answer: str, references: list[str]) -> None:
    for metric in (exact_match, f1, contains):
        assert 0 <= metric(answer, references) <= 1
    if exact_match(answer, references) and normalise(answer):
        assert f1(answer, references) == pytest.approx(1)
        assert contains(answer, references) == 1


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("a b c d", "a b x d", 0.5),
        ("a b", "a b c d", 0.5),
        ("", "", 1.0),
        ("a", "", 0.0),
        ("same  words", "same words", 1.0),
    ],
)
def test_common_prefix(one: str, other: str, share: float) -> None:
    assert common_prefix(one, other) == common_prefix(other, one) == share


def test_a_missing_rouge_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    text_metrics._rouge.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(QuicksilverError, match="pip install"):
        rouge_l("a", ["b"])


# --- through HTTP ----------------------------------------------------------------------------------------------------


def tokens_of(text: str) -> list[int]:
    return [len(word) for word in text.split()]


def tokenizer(exchange: Exchange) -> None:
    body = exchange.body
    if "messages" in body:
        assert body["add_generation_prompt"] is True
        text = "system " + " ".join(m["content"] for m in body["messages"])
    else:
        text = body["prompt"]
    exchange.answer(200, {"tokens": tokens_of(text), "count": len(tokens_of(text)), "max_model_len": 99})


def model(exchange: Exchange) -> None:
    """Every token has the log-probability of minus its id, over ten; the first has a number that means nothing."""
    body = exchange.body
    assert (body["max_tokens"], body["echo"], body["logprobs"]) == (1, True, 1)
    values: list[float | None] = [1.0, *(-t / 10 for t in body["prompt"][1:]), -0.5]
    exchange.answer(200, {"choices": [{"text": "…", "logprobs": {"token_logprobs": values}}]})


def test_prompts_are_tokenised_by_the_server_and_measured() -> None:
    prompts = [
        Prompt(id="text", prompt="one three five"),
        Prompt(id="chat", messages=(Message(role="user", content="hello there"),)),
        Prompt(id="ids", token_ids=(9, 8, 7)),
    ]
    seen: list[tuple[int, int]] = []
    with serving(tokenize=tokenizer, v1_completions=model) as server:
        endpoint = Endpoint(url=server.url, model="m", api_key="key")
        assert tokenize(endpoint, prompts[1]) == [6, 5, 5]
        found = evaluate_texts(endpoint, prompts, concurrency=2, on_progress=lambda *x: seen.append(x))
        assert all(headers.get("Authorization") == "Bearer key" for _, _, headers in server.seen)
        before = len(server.bodies("/tokenize"))
        again = evaluate_texts(endpoint, prompts[:2], token_ids={"text": [3, 5, 4], "chat": [6, 5, 5]})
        assert len(server.bodies("/tokenize")) == before, "known tokens aren't asked for again"
    assert found == [
        PromptLogprobs("text", [3, 5, 4], [None, -0.5, -0.4]),
        PromptLogprobs("chat", [6, 5, 5], [None, -0.5, -0.5]),
        PromptLogprobs("ids", [9, 8, 7], [None, -0.8, -0.7]),
    ]
    assert again == found[:2]
    assert seen == [(1, 3), (2, 3), (3, 3)]


def reply(document: Any, status: int = 200) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.answer(status, document)


@pytest.mark.parametrize(
    ("script", "kind", "sentence"),
    [
        (
            reply({"error": "echo is not supported"}, 400),
            UnmeasurableError,
            "can't give the log-probabilities .* HTTP 400",
        ),
        (reply({"choices": [{"text": "x"}]}), UnmeasurableError, "can't give the log-probabilities"),
        (reply({"choices": [{"logprobs": None}]}), UnmeasurableError, "can't give the log-probabilities"),
        (reply({"choices": [{"logprobs": {"token_logprobs": [-1.0]}}]}), UnmeasurableError, "gave 1 for 3 tokens"),
        (reply("nonsense"), UnmeasurableError, "nonsense"),
        (reply({"error": "boom"}, 500), EngineError, "HTTP 500"),
        (reply('{"choices":[{"logprobs":{"token_logprobs":[null,NaN,-1.0]}}]}'), EngineError, "model is broken"),
        (reply('{"choices":[{"logprobs":{"token_logprobs":[null,-Infinity,-1]}}]}'), EngineError, "model is broken"),
        (reply({"choices": [{"logprobs": {"token_logprobs": [None, 0.7, -1.0]}}]}), EngineError, "model is broken"),
    ],
)
def test_a_server_without_prompt_logprobs_says_so(
    script: Callable[[Exchange], None], kind: type[QuicksilverError], sentence: str
) -> None:
    with serving(v1_completions=script) as server, pytest.raises(kind, match=sentence):
        prompt_logprobs(Endpoint(url=server.url, model="m"), [1, 2, 3])


def test_a_server_without_tokenize_says_so() -> None:
    prompt = Prompt(id="p", prompt="text")
    with serving() as server:
        endpoint = Endpoint(url=server.url, model="m")
        with pytest.raises(UnmeasurableError, match=r"can't split a text into tokens: HTTP 404"):
            evaluate_texts(endpoint, [prompt] * 5)
    with serving(tokenize=reply({"tokens": "abc"})) as server, pytest.raises(UnmeasurableError, match="no token ids"):
        tokenize(Endpoint(url=server.url, model="m"), prompt)
    with pytest.raises(EngineError, match="No HTTP answer came from"):
        tokenize(endpoint, prompt)


def test_answers_are_greedy_texts(tmp_path: Path) -> None:
    with serving(v1_completions=words(3)) as server:
        endpoint = Endpoint(url=server.url, model="m")
        (only,) = answers(endpoint, [Prompt(id="p", prompt="x")], concurrency=1, max_tokens=5, out=tmp_path / "a.jsonl")
        assert server.bodies("/v1/completions")[0]["temperature"] == 0
    assert only.text == "w0 w1 w2 "


# --- comparison ------------------------------------------------------------------------------------------------------


def logprobs(*rows: list[float]) -> list[PromptLogprobs]:
    return [PromptLogprobs(f"p{i}", list(range(len(row) + 1)), [None, *row]) for i, row in enumerate(rows)]


def said(**texts: str) -> list[Sample]:
    return [Sample(prompt_id=k, concurrency=1, scheduled=0, sent=0, end=1, text=v) for k, v in texts.items()]


def test_perplexity_and_loss_by_hand() -> None:
    base, worse = logprobs([-1.0, -2.0], [-3.0]), logprobs([-1.5, -2.0], [-3.1])
    found = compare(Evaluation(worse), Evaluation(base))
    assert perplexity(base) == pytest.approx((math.exp(2), 3))
    assert found.perplexity == pytest.approx(math.exp(2.2))
    assert found.loss_percent is not None
    assert found.loss_percent.value == pytest.approx(100 * (math.exp(0.2) - 1))
    assert found.loss_percent.low == pytest.approx(100 * math.expm1(0.1))
    assert found.loss_percent.high == pytest.approx(100 * math.expm1(0.25))
    assert found.divergence == pytest.approx(0.2)
    assert (found.tokens, found.prompts, found.agreement) == (3, 2, None)


rows = st.lists(st.lists(st.floats(-20, 0), min_size=1, max_size=6), min_size=2, max_size=8)


@given(rows)
def test_the_as_is_model_loses_nothing_against_itself(values: list[list[float]]) -> None:
    found = compare(Evaluation(logprobs(*values)), Evaluation(logprobs(*values)))
    assert found.loss_percent is not None
    assert (found.loss_percent.value, found.loss_percent.low, found.loss_percent.high) == (0, 0, 0)
    assert found.divergence == 0


@given(rows, st.floats(0.01, 2))
def test_a_constant_loss_has_a_sharp_interval(values: list[list[float]], shift: float) -> None:
    worse = [[value - shift for value in row] for row in values]
    found = compare(Evaluation(logprobs(*worse)), Evaluation(logprobs(*values))).loss_percent
    assert found is not None
    expected = 100 * math.expm1(shift)
    assert (found.value, found.low, found.high) == pytest.approx((expected, expected, expected), rel=1e-6)


def test_a_hopeless_model_is_still_a_number() -> None:
    found = compare(Evaluation(logprobs([-9999.0, -9999.0])), Evaluation(logprobs([-1.0, -1.0])))
    document = json.loads(found.model_dump_json())
    assert document["perplexity"] > 1e300
    assert document["loss_percent"]["value"] > 1e300


def test_what_only_one_side_has_is_left_out_of_the_pairs() -> None:
    base = logprobs([-1.0, -1.0], [-5.0])
    candidate = [PromptLogprobs("p0", [0, 1, 2], [None, None, -1.5]), PromptLogprobs("other", [1, 2], [None, -9.0])]
    found = compare(Evaluation(candidate), Evaluation(base))
    assert found.divergence == pytest.approx(0.5)


def test_other_tokens_and_other_prompts_are_refused() -> None:
    base = logprobs([-1.0, -1.0])
    with pytest.raises(BadInputError, match="'p0' has other tokens"):
        compare(Evaluation([PromptLogprobs("p0", [7, 8, 9], [None, -1.0, -1.0])]), Evaluation(base))
    with pytest.raises(BadInputError, match="not measured on the same prompts"):
        compare(Evaluation([PromptLogprobs("q", [7, 8], [None, -1.0])]), Evaluation(base))
    with pytest.raises(BadInputError, match="nothing to judge quality by"):
        compare(Evaluation(), Evaluation())


def test_answers_alone_make_a_quality() -> None:
    prompts = [
        Prompt(id=k, prompt="?", references=(r,))
        for k, r in (("a", "Paris"), ("b", "Rome"), ("c", "Oslo"), ("d", "Bern"))
    ]
    base = said(a="It is Paris.", b="It is Rome.", c="It is Oslo.", d="It is Berlin.")
    mine = said(a="It is Paris.", b="It is Rome.", c="It was Bergen.", d="It is Berlin.")
    found = compare(Evaluation(answers=mine), Evaluation(answers=base), prompts, task="qa")
    assert (found.perplexity, found.loss_percent, found.divergence, found.tokens) == (None, None, None, 0)
    assert (found.agreement, found.prompts) == (0.75, 4)
    assert found.common_prefix == pytest.approx((1 + 1 + 1 / 3 + 1) / 4)
    assert set(found.task) == {"contains", "f1", "exact_match", "rouge_l"}
    assert found.task["contains"].value == 0.5
    assert found.task["exact_match"].value == 0
    assert found.task["f1"].value == pytest.approx((0.5 + 0.5 + 0 + 0) / 4)
    assert found.task_loss_percent is not None
    assert found.task_loss_percent.value == pytest.approx(100 / 3)
    assert found.task_loss_percent.low == 0
    assert json.loads(found.model_dump_json())["perplexity"] is None


def test_an_answer_that_failed_is_no_evidence() -> None:
    base = said(a="same", b="same")
    mine = said(a="same", b="")
    mine[1].error = "timeout: it took over 9 s"
    mine += [Sample(prompt_id="b", concurrency=1, scheduled=0, sent=0, end=1, text="warm", warmup=True)]
    found = compare(Evaluation(answers=mine), Evaluation(answers=base))
    assert (found.agreement, found.prompts, found.task) == (1.0, 1, {})


def test_a_baseline_that_scores_nothing_has_no_task_loss() -> None:
    prompts = [Prompt(id="a", prompt="?", references=("Paris",))]
    found = compare(Evaluation(answers=said(a="Rome")), Evaluation(answers=said(a="Oslo")), prompts, task="qa")
    assert found.task["contains"].value == 0
    assert found.task_loss_percent is None


def test_code_has_no_score_by_reference() -> None:
    prompts = [Prompt(id="a", prompt="?", references=("return 1",))]
    found = compare(Evaluation(answers=said(a="x")), Evaluation(answers=said(a="x")), prompts, task="code")
    assert (found.task, found.task_loss_percent, found.agreement) == ({}, None, 1.0)


def test_logprobs_are_kept_as_they_are(tmp_path: Path) -> None:
    items = logprobs([-0.1, -1e-300], [-3.0])
    path = tmp_path / "logprobs.jsonl"
    write_logprobs(path, items)
    assert read_logprobs(path) == items
    assert list(tmp_path.iterdir()) == [path]
    path.write_text('{"prompt_id": "a"}\n', encoding="utf-8")
    with pytest.raises(BadInputError, match="holds no log-probabilities"):
        read_logprobs(path)
    with pytest.raises(BadInputError, match="can't be read"):
        read_logprobs(tmp_path / "none")


def test_the_as_is_models_own_answers_are_apart_from_the_text(tmp_path: Path) -> None:
    base = [
        PromptLogprobs("a", [1, 2, 3, 4], [None, -1.0, -2.0, -0.1], own=2),
        PromptLogprobs("b", [1, 2, 3], [None, -1.0, -0.2], own=1),
    ]
    ours = [
        PromptLogprobs("a", [1, 2, 3, 4], [None, -1.0, -2.5, -0.6], own=2),
        PromptLogprobs("b", [1, 2, 3], [None, -1.0, -0.7], own=1),
    ]
    found = compare(Evaluation(ours), Evaluation(base))
    assert perplexity(base) == pytest.approx((math.e, 2))
    assert found.loss_percent is not None and found.loss_percent.value == 0
    assert found.own_loss_percent is not None and found.own_loss_percent.value == pytest.approx(100 * math.expm1(0.5))
    plain = [PromptLogprobs("a", [1, 2], [None, -1.1]), PromptLogprobs("b", [1, 2], [None, -1.1])]
    without = compare(Evaluation(plain), Evaluation(base))
    assert without.own_loss_percent is None and without.loss_percent is not None
    items = [PromptLogprobs("a", [1, 2], [None, -1.0], 1, {1: {2: -1.0, 7: -2.0}})]
    write_logprobs(tmp_path / "kept.jsonl", items)
    assert read_logprobs(tmp_path / "kept.jsonl") == items


def test_likeliest_tokens_are_asked_for_with_an_answer_and_only_then() -> None:
    def told(exchange: Exchange) -> None:
        body = exchange.body
        if body["logprobs"] > 1 and body["prompt"][0] == 13:
            exchange.answer(400, {"error": "logprobs is 1 at the most"})
            return
        ids = body["prompt"]
        tops = [None, *({f"token_id:{t}": -1.0, "token_id:99": -1.5} for t in ids[1:]), None]
        values = [None, *(-1.0 for _ in ids[1:]), -0.5]
        exchange.answer(200, {"choices": [{"text": "", "logprobs": {"token_logprobs": values, "top_logprobs": tops}}]})

    with serving(v1_completions=told) as server:
        endpoint = Endpoint(url=server.url, model="m")
        found = score(endpoint, "p", list(range(10)), [20, 21])
        assert score(endpoint, "p", [1, 2]).likeliest == {}
        refused = score(endpoint, "p", [13, 2], [3])
        wanted = [body["logprobs"] for body in server.bodies("/v1/completions")]
    assert found.likeliest == {place: {token: -1.0, 99: -1.5} for place, token in ((8, 8), (10, 20), (11, 21))}
    assert (found.own, found.tokens[-2:]) == (2, [20, 21])
    assert wanted == [10, 1, 10, 1]
    assert refused.likeliest == {} and refused.logprobs == [None, -1.0, -1.0]


chances = st.lists(st.floats(0.01, 1), min_size=4, max_size=4)


@given(chances, chances, st.sets(st.integers(0, 3)), st.sets(st.integers(0, 3)))
def test_what_is_known_of_a_divergence_is_never_more_than_it_is(
    p: list[float], q: list[float], theirs: set[int], ours: set[int]
) -> None:
    p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
    exact = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    every = range(4)
    known = divergence.at_least({t: math.log(q[t]) for t in ours}, {t: math.log(p[t]) for t in theirs})
    assert -1e-12 <= known <= exact + 1e-9
    assert divergence.at_least({t: math.log(q[t]) for t in every}, {t: math.log(p[t]) for t in every}) == pytest.approx(
        exact, abs=1e-9
    )
