"""The gateway over HTTP, around the fake engine and around a decoder that the test drives."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from gateways import CHAT, Puppet, faked, refused, running
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from quicksilver.nouns import Burst, Endpoint, Request
from quicksilver.serve.asgi import MAX_BODY
from quicksilver.serve.gateway import Gateway
from quicksilver.sources.text import Tokenizer
from quicksilver.testing.engine_contract import ask, listen, open_answer, until


@pytest.fixture(scope="module")
def endpoint(folder: Path, tokenizer: Tokenizer) -> Iterator[Endpoint]:
    with faked(folder, tokenizer) as endpoint:
        yield endpoint


@pytest.fixture
def puppet(tokenizer: Tokenizer) -> Iterator[tuple[Puppet, Endpoint]]:
    puppet = Puppet()
    with running(Gateway("tiny"), lambda: (tokenizer, puppet)) as endpoint:
        yield puppet, endpoint


def test_the_openai_client_gets_answers(endpoint: Endpoint) -> None:
    client = openai.OpenAI(base_url=endpoint.url, api_key="none")
    whole = client.chat.completions.create(model="tiny", **CHAT)
    stream = client.chat.completions.create(model="tiny", stream=True, stream_options={"include_usage": True}, **CHAT)
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage
    assert whole.choices[0].finish_reason == "stop"
    assert [model.id for model in client.models.list()] == ["tiny"]
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.chat.completions.create(model="other", **CHAT)
    with pytest.raises(openai.BadRequestError, match="min_p"):
        client.chat.completions.create(model="tiny", extra_body={"min_p": 0.5}, **CHAT)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"prompt": "a", "temperature": "1"}, "temperature", "number"),
        ({"prompt": "a", "temperature": 3}, "temperature", "less than or equal to 2"),
        ({"prompt": "a", "top_p": 0}, "top_p", "greater than 0"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens", "integer"),
        ({"prompt": "a", "n": 129}, "n", "less than or equal to 128"),
        ({"prompt": "a", "best_of": 2}, "best_of", "not supported"),
        ({"prompt": "a", "logit_bias": {"5": 101}}, "logit_bias.5", "less than or equal to 100"),
        ({"prompt": "a", "logit_bias": {"512": 1}}, "logit_bias", "0 to 511"),
        ({"prompt": "a", "logit_bias": {"five": 1}}, "logit_bias.five.[key]", "integer"),
        ({"prompt": "a", "min_p": 0.1}, "min_p", "not supported"),
        ({"prompt": "a", "temprature": 0.1}, "temprature", "not supported"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "echo"),
        ({"prompt": "a", "min_tokens": 20}, "min_tokens", "20"),
        ({"prompt": "a", "stop": ["x"] * 1000}, "stop", "1000"),
        ({"prompt": "a", "stop": [""]}, "stop", "1 to 256"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options", "stream"),
        ({"prompt": "a", "stream": True, "stream_options": {"usage": 1}}, "stream_options.usage", "not supported"),
        ({"prompt": ["a"] * 129}, "prompt", "129 prompts"),
        ({"prompt": [[1, 2, 512]]}, "prompt", "0 to 511"),
        ({"prompt": [-1]}, "prompt", "0 to 511"),
        ({"prompt": [1, "a"]}, "prompt", "token ids"),
        ({"prompt": []}, "prompt", "no tokens"),
        ({}, "prompt", "missing"),
        ([], None, "object"),
    ],
)
def test_a_completion_that_can_t_be_honoured_names_the_field(
    endpoint: Endpoint, body: Any, param: str | None, said: str
) -> None:
    status, error = refused(endpoint, "/v1/completions", body)
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert said in error["message"]


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages.0.role", "'user'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "text parts"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "text parts"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "missing"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'json_object'"),
        ({"top_logprobs": 1}, "top_logprobs", "'logprobs' to be true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "disagree"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"echo": True}, "echo", "not supported"),
    ],
)
def test_a_conversation_that_can_t_be_honoured_names_the_field(
    endpoint: Endpoint, change: dict[str, Any], param: str | None, said: str
) -> None:
    status, error = refused(endpoint, "/v1/chat/completions", CHAT | change)
    assert (status, error["param"]) == (400, param)
    assert said in error["message"]


def test_values_that_ask_for_nothing_are_accepted(endpoint: Endpoint) -> None:
    nothing: dict[str, Any] = {
        "n": 1, "logit_bias": None, "tools": [], "response_format": {"type": "text"}, "user": "me", "stop": None,
        "parallel_tool_calls": True, "store": False, "top_k": -1, "repetition_penalty": 1.0, "max_tokens": None,
    }  # fmt: skip
    assert (
        ask(endpoint, "/chat/completions", CHAT | nothing)["choices"]
        == ask(endpoint, "/chat/completions", CHAT)["choices"]
    )


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null x", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}', b'{"temperature": NaN, "prompt": ""'],
)
def test_what_is_not_json_is_refused(endpoint: Endpoint, body: Any) -> None:
    status, error = refused(endpoint, "/v1/completions", body)
    assert (status, error["code"]) == (400, "invalid_json")


def test_nan_is_refused(endpoint: Endpoint) -> None:
    status, error = refused(endpoint, "/v1/completions", b'{"prompt": "a", "temperature": NaN}')
    assert (status, error["param"]) == (400, "temperature")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(
    ["prompt", "messages", "temperature", "top_p", "stop", "seed", "n", "stream_options", "logprobs", "echo", "min_tokens",
     "model", "tools", "tool_choice", "response_format"]
)  # fmt: skip


@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/completions", "/chat/completions", "//tokenize"]), body=st.dictionaries(fields, json_values)
)
def test_no_json_makes_the_server_fail(endpoint: Endpoint, path: str, body: Any) -> None:
    response = open_answer(endpoint, path, body)
    assert response.status in (200, 400, 404)
    json.loads(response.read())


def test_a_body_that_is_too_large_is_refused(endpoint: Endpoint) -> None:
    status, error = refused(endpoint, "/v1/completions", b"x" * (MAX_BODY + 1))
    assert (status, error["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(("method", "path", "status"), [("POST", "/v1/audio", 404), ("PUT", "/v1/completions", 405)])
def test_unknown_paths_and_methods_answer_in_openai_s_shape(
    endpoint: Endpoint, method: str, path: str, status: int
) -> None:
    found, error = refused(endpoint, path, {}, method)
    assert found == status
    assert path in error["message"]


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(endpoint: Endpoint) -> None:
    status, error = refused(endpoint, "/v1/completions", {"prompt": [5] * 2049})
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert "2049" in error["message"]
    assert "2048" in error["message"]
    status, error = refused(endpoint, "/v1/completions", {"prompt": [5] * 2000, "max_tokens": 49})
    assert (status, error["param"]) == (400, "max_tokens")


def test_a_long_text_is_counted_too(endpoint: Endpoint) -> None:
    status, error = refused(endpoint, "/v1/completions", {"prompt": "word " * 50_000})
    assert (status, error["code"]) == (400, "context_length_exceeded")


def test_nothing_is_ready_before_the_model_is_loaded() -> None:
    with running(Gateway("tiny"), None) as endpoint:
        for path in ("/health", "/v1/models"):
            status, error = refused(endpoint, path, b"", "GET")
            assert (status, error["code"]) == (503, "not_ready")
        assert refused(endpoint, "/v1/completions", {"prompt": "a"})[0] == 503


def test_tokenize_counts_texts_and_conversations(endpoint: Endpoint, tokenizer: Tokenizer) -> None:
    text = ask(endpoint, "//tokenize", {"prompt": "the river"})
    assert text == {"tokens": tokenizer.encode("the river"), "count": len(text["tokens"]), "max_model_len": 2048}
    messages = CHAT["messages"]
    open_turn, closed = (
        ask(endpoint, "//tokenize", {"messages": messages, "add_generation_prompt": on})["tokens"]
        for on in (True, False)
    )
    assert open_turn == tokenizer.encode(tokenizer.chat(messages), special=False)
    assert len(closed) < len(open_turn)
    assert ask(endpoint, "/chat/completions", CHAT)["usage"]["prompt_tokens"] == len(open_turn)


def test_sampling_reaches_the_engine(puppet: tuple[Puppet, Endpoint]) -> None:
    decoder, endpoint = puppet
    decoder.script = [Burst([5], finish="length")]
    asked: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3, "presence_penalty": 0.1, "frequency_penalty": -0.2,
        "ignore_eos": True, "min_tokens": 2,
    }  # fmt: skip
    ask(endpoint, "/completions", {"prompt": [1, 2], "max_tokens": 9, **asked})
    assert decoder.requests == [Request(prompt=[1, 2], max_tokens=9, **asked)]
    ask(endpoint, "/chat/completions", {"messages": CHAT["messages"]})
    assert decoder.requests[1].max_tokens == 2048 - len(decoder.requests[1].prompt)
    assert decoder.requests[1].temperature == 1


def test_what_the_engine_refuses_is_a_400(puppet: tuple[Puppet, Endpoint]) -> None:
    _, endpoint = puppet
    status, error = refused(endpoint, "/v1/completions", {"prompt": "a", "top_k": 13})
    assert (status, error["message"]) == (400, "This engine has no top_k of 13.")


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_is_a_typed_500(puppet: tuple[Puppet, Endpoint], stream: bool) -> None:
    decoder, endpoint = puppet
    decoder.script = [Burst([], finish="error", error="no memory")]
    status, error = refused(endpoint, "/v1/completions", {"prompt": "a", "stream": stream})
    assert (status, error["type"], error["code"]) == (500, "server_error", "engine_error")
    assert "no memory" in error["message"]


def test_an_engine_that_fails_later_ends_the_stream_with_the_error(puppet: tuple[Puppet, Endpoint]) -> None:
    decoder, endpoint = puppet
    client = openai.OpenAI(base_url=endpoint.url, api_key="none")
    decoder.script = [Burst([70])]
    stream = iter(client.completions.create(model="tiny", prompt="a", stream=True))
    assert next(stream).choices[0].text
    decoder.deliver[0](Burst([], finish="error", error="no memory"))
    with pytest.raises(openai.APIError, match="no memory"):
        next(stream)


def bursts(tokens: list[int], size: int) -> list[Burst]:
    """Cut tokens into bursts as speculation would, the last of which ends the answer."""
    parts = [
        Burst(tokens[at : at + size], logprobs=[-0.5] * len(tokens[at : at + size]))
        for at in range(0, len(tokens), size)
    ]
    parts[-1].finish = "length"
    return parts


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize("stop", [None, "river", "wat", ["zzz", "你"], "."])
def test_streamed_is_unstreamed_with_stops_and_bursts(
    puppet: tuple[Puppet, Endpoint], tokenizer: Tokenizer, size: int, stop: str
) -> None:
    decoder, endpoint = puppet
    text = "Water flows 你好🎉 down the river. It is water"
    tokens = tokenizer.encode(text, special=False)
    decoder.script = bursts(tokens, size)
    body = {"prompt": "a", "max_tokens": 100, "stop": stop}
    whole = ask(endpoint, "/completions", body)
    chunks = listen(endpoint, "/completions", body | {"stream": True, "stream_options": {"include_usage": True}})
    expected = text
    for one in [stop] if isinstance(stop, str) else stop or []:
        expected = expected.split(one)[0]
    assert whole["choices"][0]["text"] == expected
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == expected
    assert whole["choices"][0]["finish_reason"] == ("length" if expected == text else "stop")
    assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert chunks[-1]["usage"] == whole["usage"]
    # The count doesn't depend on how many tokens came in one step.
    said = tokenizer.encode(text, special=False)[: whole["usage"]["completion_tokens"]]
    assert tokenizer.decode(said).startswith(expected)


def test_a_stop_string_frees_the_sequence(puppet: tuple[Puppet, Endpoint], tokenizer: Tokenizer) -> None:
    decoder, endpoint = puppet
    decoder.script = [Burst(tokenizer.encode("one two", special=False))]
    assert ask(endpoint, "/completions", {"prompt": "a", "stop": " t"})["choices"][0]["text"] == "one"
    assert decoder.cancelled == [0]
    assert ask(endpoint, "//health")["running"] == 0


def test_a_stop_string_within_min_tokens_does_not_count(puppet: tuple[Puppet, Endpoint], tokenizer: Tokenizer) -> None:
    decoder, endpoint = puppet
    tokens = tokenizer.encode("a b a b a", special=False)
    decoder.script = bursts(tokens, 1)
    asked = {"prompt": "x", "stop": "b", "min_tokens": len(tokens) - 3}
    assert ask(endpoint, "/completions", asked)["choices"][0]["text"] == "a b a "


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_sequence(puppet: tuple[Puppet, Endpoint], stream: bool) -> None:
    decoder, endpoint = puppet
    host, port = endpoint.url.removeprefix("http://").removesuffix("/v1").split(":")
    connection = http.client.HTTPConnection(host, int(port))
    connection.request("POST", "/v1/completions", json.dumps({"prompt": "a", "stream": stream}))
    until(lambda: bool(decoder.deliver))
    decoder.deliver[0](Burst([70]))
    connection.close()
    until(lambda: decoder.cancelled == [0])
    until(lambda: ask(endpoint, "//health")["running"] == 0)


def test_the_end_token_is_counted_and_has_no_text(puppet: tuple[Puppet, Endpoint], tokenizer: Tokenizer) -> None:
    decoder, endpoint = puppet
    (end,) = tokenizer.eos
    decoder.script = [Burst([*tokenizer.encode("yes", special=False), end], finish="stop")]
    answer = ask(endpoint, "/completions", {"prompt": "a"})
    assert answer["choices"][0]["text"] == "yes"
    assert answer["usage"]["completion_tokens"] == len(tokenizer.encode("yes", special=False)) + 1


def test_echoed_logprobs_fit_the_text(endpoint: Endpoint) -> None:
    text = "The river 你好 is"
    answer = ask(
        endpoint, "/completions", {"prompt": text, "echo": True, "logprobs": 1, "max_tokens": 5, "temperature": 0}
    )
    found = answer["choices"][0]["logprobs"]
    whole = answer["choices"][0]["text"]
    assert whole.startswith(text)
    for token, start in zip(found["tokens"], found["text_offset"], strict=True):
        assert "\ufffd" in token or token.startswith("<|") or whole[start:].startswith(token)
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    for token, value, top in [*zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)][1:]:
        assert top[token] == value
    assert [*found["top_logprobs"][-1].values()] == [found["token_logprobs"][-1]]
    chunks = listen(
        endpoint, "/completions", {"prompt": text, "echo": True, "logprobs": 1, "max_tokens": 5, "temperature": 0}
    )
    streamed = [value for chunk in chunks for value in chunk["choices"][0]["logprobs"]["token_logprobs"]]
    assert streamed == found["token_logprobs"]
    offsets = [value for chunk in chunks for value in chunk["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == found["text_offset"]


def test_chat_logprobs_give_the_bytes_of_each_token(puppet: tuple[Puppet, Endpoint], tokenizer: Tokenizer) -> None:
    decoder, endpoint = puppet
    decoder.script = bursts(tokenizer.encode("你 a", special=False), 2)
    answer = ask(endpoint, "/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 1})
    entries = answer["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == "你 a"
    assert {entry["logprob"] for entry in entries} == {-0.5}
    assert all(entry["top_logprobs"][0]["token"] == entry["token"] for entry in entries)


def test_tokens_can_be_told_by_their_ids(puppet: tuple[Puppet, Endpoint], tokenizer: Tokenizer) -> None:
    decoder, endpoint = puppet
    ids = tokenizer.encode("你 a", special=False)
    decoder.script = bursts(ids, 2)
    asked = {"logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True}
    entries = ask(endpoint, "/chat/completions", CHAT | asked)["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == [f"token_id:{number}" for number in ids]
    assert [entry["top_logprobs"][0]["token"] for entry in entries] == [f"token_id:{number}" for number in ids]
    body = {"prompt": "x", "logprobs": 1, "return_tokens_as_token_ids": True}
    told = ask(endpoint, "/completions", body)["choices"][0]["logprobs"]
    assert (
        told["tokens"] == [next(iter(row)) for row in told["top_logprobs"]] == [f"token_id:{number}" for number in ids]
    )


def test_the_likeliest_tokens_are_told_and_the_chosen_one_with_them(endpoint: Endpoint) -> None:
    body = {"prompt": "The river is", "logprobs": 3, "max_tokens": 20, "temperature": 1.5, "seed": 2}
    found = ask(endpoint, "/completions", body)["choices"][0]["logprobs"]
    for token, value, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert top[token] == value
        assert len(top) in (3, 4) or "\ufffd" in "".join(top)
        assert sum(other > value for other in top.values()) <= 3
    chat = ask(endpoint, "/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 3, "max_tokens": 5})
    for entry in chat["choices"][0]["logprobs"]["content"]:
        values = [likely["logprob"] for likely in entry["top_logprobs"]]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert entry["top_logprobs"][0]["token"] == entry["token"]


def test_a_bias_forces_and_forbids_a_token(endpoint: Endpoint, tokenizer: Tokenizer) -> None:
    body = {"prompt": "The river is", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    (token,) = tokenizer.encode("a", special=False)
    forced = ask(endpoint, "/completions", body | {"logit_bias": {str(token): 100}})
    assert forced["choices"][0]["text"] == "aaaa"
    free = ask(endpoint, "/completions", body | {"logprobs": 0})["choices"][0]
    first = ask(endpoint, "//tokenize", {"prompt": free["logprobs"]["tokens"][0], "add_special_tokens": False})[
        "tokens"
    ]
    forbidden = ask(endpoint, "/completions", body | {"logit_bias": {str(first[0]): -100}})
    assert forbidden["choices"][0]["text"] != free["text"]


def test_usage_can_come_with_every_chunk(endpoint: Endpoint) -> None:
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    first, *chunks = listen(endpoint, "/chat/completions", CHAT | options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert counts == sorted(counts)
    assert counts[-1] == ask(endpoint, "/chat/completions", CHAT)["usage"]["completion_tokens"]


def test_a_developer_is_a_system_to_the_template(endpoint: Endpoint) -> None:
    counts = [
        ask(endpoint, "//tokenize", {"messages": [{"role": role, "content": "Be kind."}]})["tokens"]
        for role in ("system", "developer")
    ]
    assert counts[0] == counts[1]
