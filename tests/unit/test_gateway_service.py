"""What makes the gateway a service: several answers a request, keys, readiness, metrics, limits."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from gateways import CHAT, Puppet, faked, refused, running
from prometheus_client.parser import text_string_to_metric_families

from quicksilver.nouns import Burst, Endpoint
from quicksilver.serve.gateway import Gateway
from quicksilver.serve.limits import Admission, Limits
from quicksilver.serve.wire import ApiError
from quicksilver.sources.text import Tokenizer
from quicksilver.testing.engine_contract import ask, listen, open_answer, until

SMALL = Limits(max_streams=2, max_waiting=1)


@pytest.fixture(scope="module")
def endpoint(folder: Path, tokenizer: Tokenizer) -> Iterator[Endpoint]:
    with faked(folder, tokenizer) as endpoint:
        yield endpoint


def metrics(endpoint: Endpoint) -> dict[str, float]:
    """Read /metrics: each sample by its name and the labels that aren't the model's."""
    text = open_answer(endpoint, "//metrics", None).read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels.pop("model_name") == "tiny"
            found["/".join([sample.name, *sample.labels.values()])] = sample.value
    return found


def test_several_answers_to_several_prompts(endpoint: Endpoint) -> None:
    prompts = ["The river", "A bridge over"]
    body = {"max_tokens": 12, "temperature": 1, "seed": 3}
    answer = ask(endpoint, "/completions", body | {"prompt": prompts, "n": 3})
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    alone = [ask(endpoint, "/completions", body | {"prompt": prompt}) for prompt in prompts]
    assert [answer["choices"][n]["text"] for n in (0, 3)] == [one["choices"][0]["text"] for one in alone]
    assert len({choice["text"] for choice in answer["choices"]}) == 6
    assert answer["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone)


@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
def test_a_stream_of_several_answers_says_what_they_say_unstreamed(endpoint: Endpoint, path: str) -> None:
    body: dict[str, Any] = {"n": 4, "temperature": 1, "seed": 8, "max_tokens": 30}
    body |= {"messages": CHAT["messages"]} if path.startswith("/chat") else {"prompt": ["The river is", [5, 6, 7]]}
    whole = ask(endpoint, path, body)
    *chunks, usage = listen(endpoint, path, body | {"stream_options": {"include_usage": True}})
    texts = [""] * len(whole["choices"])
    finishes: list[str | None] = [None] * len(texts)
    for chunk in chunks:
        (choice,) = chunk["choices"]
        assert finishes[choice["index"]] is None
        texts[choice["index"]] += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
        finishes[choice["index"]] = choice["finish_reason"]
    assert texts == [c["text"] if "text" in c else c["message"]["content"] for c in whole["choices"]]
    assert finishes == [choice["finish_reason"] for choice in whole["choices"]]
    assert usage["usage"] == whole["usage"]


def test_what_was_guessed_is_in_the_usage_of_each_request(tokenizer: Tokenizer) -> None:
    puppet = Puppet()
    with running(Gateway("tiny"), lambda: (tokenizer, puppet)) as endpoint:
        puppet.script = [
            Burst([5, 6], drafted=3, accepted=1),
            Burst([7]),
            Burst([8, 9, 10], drafted=3, accepted=2, finish="length"),
        ]
        body: dict[str, Any] = {"prompt": "a", "max_tokens": 6}
        whole = ask(endpoint, "/completions", body)
        details = {"accepted_prediction_tokens": 3, "rejected_prediction_tokens": 3}
        assert whole["usage"]["completion_tokens_details"] == details
        *_, last = listen(endpoint, "/completions", body | {"stream_options": {"include_usage": True}})
        assert last["usage"] == whole["usage"]
        puppet.script = [Burst([5], finish="length")]
        assert "completion_tokens_details" not in ask(endpoint, "/completions", body)["usage"]


def test_one_answer_that_fails_fails_the_request(tokenizer: Tokenizer) -> None:
    puppet = Puppet()
    with running(Gateway("tiny"), lambda: (tokenizer, puppet)) as endpoint:
        puppet.script = [Burst([5], finish="lost")]
        status, error = refused(endpoint, "/v1/completions", {"prompt": "a", "n": 2})
        assert (status, error["code"], error["type"]) == (503, "engine_died", "server_error")
        puppet.script = [Burst([70])]
        response = open_answer(endpoint, "/completions", {"prompt": "a", "n": 2, "stream": True})
        response.readline()
        puppet.deliver[3](Burst([], finish="lost"))
        *_, failed, done = [line for line in response.read().split(b"\n") if line]
        assert json.loads(failed[6:])["error"]["code"] == "engine_died"
        assert done == b"data: [DONE]"
        until(lambda: puppet.cancelled == [2])


def test_without_the_key_nothing_is_answered(tokenizer: Tokenizer, folder: Path) -> None:
    with faked(folder, tokenizer, Limits(api_keys=("one", "zwei"))) as endpoint:
        for key in ("one", "zwei"):
            client = openai.OpenAI(base_url=endpoint.url, api_key=key)
            assert client.chat.completions.create(model="tiny", **CHAT).choices
        for key in ("on", "one1", "drei", "é", ""):
            status, error = _with_header(endpoint, "/v1/models", f"Bearer {key}")
            assert (status, error["type"], error["code"]) == (401, "authentication_error", "invalid_api_key")
        assert _with_header(endpoint, "/v1/models", "Basic one")[0] == 401
        assert refused(endpoint, "/v1/completions", {"prompt": "a"})[0] == 401
        assert refused(endpoint, "/metrics", b"", "GET")[0] == 401
        for path in ("//health", "//ready"):
            assert ask(endpoint, path)["status"] in ("ok", "ready")


def _with_header(endpoint: Endpoint, path: str, authorization: str) -> tuple[int, dict[str, Any]]:
    host, port = endpoint.url.removeprefix("http://").removesuffix("/v1").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.request("GET", path, headers={"Authorization": authorization.encode()})
    response = connection.getresponse()
    assert response.headers["www-authenticate"] == "Bearer"
    return response.status, json.loads(response.read())["error"]


def test_ready_tells_the_truth(tokenizer: Tokenizer) -> None:
    puppet = Puppet()
    puppet.script = [Burst([70])]
    with running(Gateway("tiny"), None) as endpoint:
        assert refused(endpoint, "/ready", b"", "GET")[0] == 503
    gateway = Gateway("tiny", SMALL)
    with running(gateway, lambda: (tokenizer, puppet)) as endpoint:
        assert ask(endpoint, "//ready") == {"status": "ready"}
        streams = [open_answer(endpoint, "/completions", {"prompt": "a", "n": 3, "stream": True})]
        until(lambda: len(puppet.deliver) == 3)
        assert refused(endpoint, "/ready", b"", "GET")[0] == 429
        for number in range(3):
            puppet.deliver[number](Burst([5], finish="stop"))
        assert b"[DONE]" in streams[0].read()
        assert ask(endpoint, "//ready") == {"status": "ready"}
        gateway.drain()
        assert refused(endpoint, "/ready", b"", "GET")[1]["code"] == "draining"


def test_more_than_may_wait_are_told_to_come_again(tokenizer: Tokenizer) -> None:
    puppet = Puppet()
    puppet.script = [Burst([70])]
    with running(Gateway("tiny", SMALL), lambda: (tokenizer, puppet)) as endpoint:
        response = open_answer(endpoint, "/completions", {"prompt": "a", "n": 2, "stream": True})
        until(lambda: len(puppet.deliver) == 2)
        late = open_answer(endpoint, "/completions", {"prompt": "a", "n": 2})
        assert late.status == 429
        assert int(late.headers["retry-after"]) >= 1
        assert json.loads(late.read())["error"]["type"] == "rate_limit_error"
        assert refused(endpoint, "/v1/completions", {"prompt": "a", "n": 4})[0] == 400
        assert len(puppet.deliver) == 2
        assert metrics(endpoint)["quicksilver:requests_rejected_total"] == 2
        response.close()
        until(lambda: sorted(puppet.cancelled) == [0, 1])


def test_an_answer_that_takes_too_long_is_ended(tokenizer: Tokenizer) -> None:
    puppet = Puppet()
    with running(Gateway("tiny", Limits(request_timeout_s=0.3)), lambda: (tokenizer, puppet)) as endpoint:
        status, error = refused(endpoint, "/v1/completions", {"prompt": "a"})
        assert (status, error["code"]) == (503, "request_timeout")
        assert puppet.cancelled == [0]
        puppet.script = [Burst([70])]
        text = open_answer(endpoint, "/completions", {"prompt": "a", "stream": True}).read()
        assert b'"request_timeout"' in text
        assert text.endswith(b"data: [DONE]\n\n")
        assert puppet.cancelled == [0, 1]


def test_metrics_count_what_was_answered(folder: Path, tokenizer: Tokenizer) -> None:
    with faked(folder, tokenizer) as endpoint:
        before = metrics(endpoint)
        assert before["vllm:num_requests_running"] == before["vllm:num_requests_waiting"] == 0
        usage = ask(endpoint, "/completions", {"prompt": "a b c", "max_tokens": 9, "n": 2, "ignore_eos": True})["usage"]
        after = metrics(endpoint)
    assert after["vllm:prompt_tokens_total"] == 2 * usage["prompt_tokens"]
    assert after["vllm:generation_tokens_total"] == usage["completion_tokens"] == 18
    assert after["vllm:request_success_total/length"] == 2
    for name in ("time_to_first_token_seconds", "request_time_per_output_token_seconds", "e2e_request_latency_seconds"):
        assert after[f"vllm:{name}_count"] == 2


def test_metrics_count_guessed_tokens_once(tokenizer: Tokenizer) -> None:
    with running(Gateway("tiny"), lambda: (tokenizer, Puppet())) as endpoint:
        for _ in range(2):
            found = metrics(endpoint)
            assert found["vllm:spec_decode_num_draft_tokens_total"] == 10
            assert found["vllm:spec_decode_num_accepted_tokens_total"] == 7


def test_what_the_engine_refuses_is_no_answer_in_the_metrics(tokenizer: Tokenizer) -> None:
    with running(Gateway("tiny"), lambda: (tokenizer, Puppet())) as endpoint:
        assert refused(endpoint, "/v1/completions", {"prompt": "a b c", "top_k": 13})[0] == 400
        found = metrics(endpoint)
    assert found["vllm:prompt_tokens_total"] == 0
    assert not [name for name in found if name.startswith("vllm:request_success_total")]


def test_embeddings_are_refused_with_a_reason(endpoint: Endpoint) -> None:
    status, error = refused(endpoint, "/v1/embeddings", {"input": "a"})
    assert (status, error["code"]) == (400, "unsupported_endpoint")


@pytest.mark.parametrize(("each_s", "wait"), [(0.01, "1"), (30, "15"), (10_000, "60")])
def test_the_wait_that_is_told_follows_how_long_answers_take(each_s: float, wait: str) -> None:
    admission = Admission(SMALL)
    for _ in range(500):
        admission.learn(each_s)
    with pytest.raises(ApiError) as caught:
        admission.check(1, 3)
    assert caught.value.headers["retry-after"] == wait
