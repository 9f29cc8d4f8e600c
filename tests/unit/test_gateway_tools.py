"""Structured answers over HTTP: response formats and tools, as the openai client asks for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from gateways import Puppet, refused, running

from quicksilver.engines.fake import Fake
from quicksilver.nouns import Burst, Endpoint, Settings
from quicksilver.serve.gateway import Gateway
from quicksilver.sources.text import Tokenizer
from quicksilver.testing.engine_contract import ask, listen

MESSAGES: Any = [{"role": "user", "content": "Is it warm in Oslo?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "degrees": {"type": "integer", "minimum": -90, "maximum": 60}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}  # fmt: skip
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now", "description": "The time."}}
TOOLS: Any = [WEATHER, NOW]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "degrees": 3}}\n</tool_call>'


@pytest.fixture(scope="module")
def endpoint(folder: Path, tokenizer: Tokenizer) -> Iterator[Endpoint]:
    decoder = Fake().open(folder, Settings())
    with running(Gateway("tiny"), lambda: (tokenizer, decoder)) as endpoint:
        yield endpoint
    decoder.close()


@pytest.fixture
def puppet(tokenizer: Tokenizer) -> Iterator[tuple[Puppet, Endpoint]]:
    puppet = Puppet()
    with running(Gateway("tiny"), lambda: (tokenizer, puppet)) as endpoint:
        yield puppet, endpoint


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=endpoint.url, api_key="none")


def fits(value: Any) -> bool:
    return list(value) == ["city", "degrees"] and len(value["city"]) <= 9 and -90 <= value["degrees"] <= 60


@pytest.mark.parametrize("temperature", [0, 1])
def test_an_answer_fits_its_schema(client: openai.OpenAI, temperature: float) -> None:
    asked: dict[str, Any] = {"temperature": temperature, "seed": 4, "response_format": FORMAT}
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, **asked)
    text = whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"
    assert fits(json.loads(text or ""))
    stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, **asked)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
    several = client.chat.completions.create(model="tiny", messages=MESSAGES, n=3, **asked)
    assert all(fits(json.loads(choice.message.content or "")) for choice in several.choices)


def test_any_json_is_an_object(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(whole.choices[0].message.content or ""), dict)


@pytest.mark.parametrize(("choice", "parallel"), [(NAMED, True), ("required", False), ("required", True)], ids=str)
def test_a_call_that_has_to_be_made_is_made(client: openai.OpenAI, choice: Any, parallel: bool) -> None:
    asked: dict[str, Any] = {
        "temperature": 0, "tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": parallel, "max_tokens": 400,
    }  # fmt: skip
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, **asked).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content is None
    calls = [call for call in whole.message.tool_calls or [] if call.type == "function"]
    assert calls
    assert len(calls) == 1 or (parallel and choice == "required")
    for call in calls:
        assert call.id.startswith("call_")
        assert call.function.name in (("weather",) if choice is NAMED else ("weather", "now"))
        arguments = json.loads(call.function.arguments)
        assert fits(arguments) if call.function.name == "weather" else arguments == {}
    chunks = list(client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, **asked))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    streamed: list[list[str]] = []
    for chunk in chunks:
        for delta in chunk.choices[0].delta.tool_calls or []:
            assert delta.function is not None
            if delta.function.name:
                assert (delta.index, delta.type) == (len(streamed), "function")
                assert delta.id
                streamed.append([delta.function.name, ""])
            streamed[delta.index][1] += delta.function.arguments or ""
    assert streamed == [[call.function.name, call.function.arguments] for call in calls]


def test_tools_that_may_be_called_leave_the_text(client: openai.OpenAI) -> None:
    for choice in ("auto", "none"):
        answer = client.chat.completions.create(
            model="tiny", messages=MESSAGES, temperature=0, tools=TOOLS, tool_choice=choice
        ).choices[0]  # fmt: skip
        assert answer.finish_reason == "stop"
        assert answer.message.content
        assert answer.message.tool_calls is None


def scripted(puppet: Puppet, tokenizer: Tokenizer, text: str, size: int) -> None:
    """Make the engine say a text, some tokens at a time."""
    tokens = tokenizer.encode(text, special=False)
    puppet.script = [Burst(tokens[at : at + size]) for at in range(0, len(tokens), size)]
    puppet.script.append(Burst([*tokenizer.eos], finish="stop"))


@pytest.mark.parametrize("size", [1, 3, 100])
def test_calls_in_a_free_answer_are_found(puppet: tuple[Puppet, Endpoint], tokenizer: Tokenizer, size: int) -> None:
    decoder, endpoint = puppet
    scripted(decoder, tokenizer, "Let me see.\n" + CALL + "\n" + CALL.replace("Oslo", "Åsl"), size)
    body = {"messages": MESSAGES, "tools": TOOLS}
    choice = ask(endpoint, "/chat/completions", body)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    arguments = [json.loads(call["function"]["arguments"])["city"] for call in choice["message"]["tool_calls"]]
    assert arguments == ["Oslo", "Åsl"]
    chunks = [chunk["choices"][0] for chunk in listen(endpoint, "/chat/completions", body | {"stream": True})]
    assert "".join(chunk["delta"].get("content") or "" for chunk in chunks) == "Let me see."
    deltas = [delta for chunk in chunks for delta in chunk["delta"].get("tool_calls", [])]
    assert [delta["index"] for delta in deltas if "id" in delta] == [0, 1]
    for index in (0, 1):
        text = "".join(delta["function"]["arguments"] for delta in deltas if delta["index"] == index)
        assert text == choice["message"]["tool_calls"][index]["function"]["arguments"]
    assert chunks[-1]["finish_reason"] == "tool_calls"
    assert "tool_calls" not in chunks[-1]["delta"]
    assert decoder.requests[0].grammar is None


def test_text_that_only_looks_like_a_call_comes_through(puppet: tuple[Puppet, Endpoint], tokenizer: Tokenizer) -> None:
    decoder, endpoint = puppet
    for text in ('{"name": "Anna", "age": 3}', "a <tool_call> b", "x <tool"):
        scripted(decoder, tokenizer, text, 1)
        body = {"messages": MESSAGES, "tools": TOOLS}
        choice = ask(endpoint, "/chat/completions", body)["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
        assert "tool_calls" not in choice["message"]
        chunks = listen(endpoint, "/chat/completions", body | {"stream": True})
        assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == text


def test_a_call_is_text_where_no_tool_is_offered(puppet: tuple[Puppet, Endpoint], tokenizer: Tokenizer) -> None:
    decoder, endpoint = puppet
    scripted(decoder, tokenizer, CALL, 2)
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = ask(endpoint, "/chat/completions", {"messages": MESSAGES, **fields})["choices"][0]
        assert choice["message"]["content"] == CALL
    assert decoder.requests[0].prompt == decoder.requests[1].prompt


def test_a_call_cut_short_says_length(puppet: tuple[Puppet, Endpoint], tokenizer: Tokenizer) -> None:
    decoder, endpoint = puppet
    decoder.script = [Burst(tokenizer.encode(CALL[:60], special=False), finish="length")]
    choice = ask(endpoint, "/chat/completions", {"messages": MESSAGES, "tools": TOOLS})["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"


def test_log_probabilities_come_with_calls(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "temperature": 0,
        "tools": TOOLS,
        "tool_choice": NAMED,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, **asked).choices[0]
    assert whole.logprobs is not None
    assert "".join(entry.token for entry in whole.logprobs.content or []).startswith("<tool_call>")
    stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, **asked)
    streamed = [
        e.token for chunk in stream for e in (chunk.choices[0].logprobs and chunk.choices[0].logprobs.content) or []
    ]
    assert streamed == [entry.token for entry in whole.logprobs.content or []]


def test_a_conversation_goes_on_with_a_result(client: openai.OpenAI, endpoint: Endpoint) -> None:
    called = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, tools=TOOLS, tool_choice=NAMED
    ).choices[0].message  # fmt: skip
    assert called.tool_calls
    turns: Any = [
        *MESSAGES, called.model_dump(), {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "It snows."}
    ]  # fmt: skip
    answer = client.chat.completions.create(model="tiny", messages=turns, temperature=0, tools=TOOLS)
    assert answer.choices[0].message.content
    counts = [ask(endpoint, "//tokenize", {"messages": turns, **fields})["count"] for fields in ({}, {"tools": TOOLS})]
    assert answer.usage is not None
    assert counts[0] < counts[1] == answer.usage.prompt_tokens


HOSTILE = {"allOf": [{"type": "string", "pattern": f".*{char}.*"} for char in "abcdefghijklmnopqrstuvwxyz"]}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "objct"}}}},
         "response_format", "objct"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": HOSTILE}}},
         "response_format", "too long"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"properties": {"b": {"format": "c"}}}}}],
          "tool_choice": "required"}, "tools", "Unknown format: c"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"not": {}}}}],
          "response_format": FORMAT}, "tools", "not"),
    ],
)  # fmt: skip
def test_a_schema_that_can_t_be_followed_names_its_field(
    endpoint: Endpoint, fields: dict[str, Any], param: str, said: str
) -> None:
    status, error = refused(endpoint, "/v1/chat/completions", {"messages": MESSAGES, **fields})
    assert (status, error["param"], error["code"]) == (400, param, "invalid_schema")
    assert said in error["message"]


def test_a_completion_has_no_response_format(endpoint: Endpoint) -> None:
    status, error = refused(endpoint, "/v1/completions", {"prompt": "a", "response_format": {"type": "json_object"}})
    assert (status, error["param"]) == (400, "response_format")
