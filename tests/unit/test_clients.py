"""Clients of others, unmodified: the openai package, sync and async, and curl. More of them: docs/clients.md."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from gateways import faked
from pydantic import BaseModel, Field

from quicksilver.nouns import Endpoint
from quicksilver.serve.limits import Limits
from quicksilver.sources.text import Tokenizer

KEY = "secret"
MESSAGES: Any = [{"role": "user", "content": "Is it warm in Oslo?"}]


class City(BaseModel):
    name: str = Field(max_length=9)
    degrees: int = Field(ge=-90, le=60)


class Weather(BaseModel):
    """The weather of a city."""

    city: str = Field(max_length=9)


TOOL = openai.pydantic_function_tool(Weather)


@pytest.fixture(scope="module")
def endpoint(folder: Path, tokenizer: Tokenizer) -> Iterator[Endpoint]:
    with faked(folder, tokenizer, Limits(api_keys=(KEY,))) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=endpoint.url, api_key=KEY, max_retries=0)


def test_openai_async_streams_side_by_side(endpoint: Endpoint) -> None:
    async def ask_all() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=endpoint.url, api_key=KEY) as client:

            async def whole(seed: int) -> str:
                answer = await client.chat.completions.create(model="tiny", messages=MESSAGES, seed=seed)
                return answer.choices[0].message.content or ""

            async def streamed(seed: int) -> str:
                stream = await client.chat.completions.create(model="tiny", messages=MESSAGES, seed=seed, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            wholes = await asyncio.gather(*(whole(seed) for seed in range(8)))
            return wholes, await asyncio.gather(*(streamed(seed) for seed in range(8)))

    wholes, streams = asyncio.run(ask_all())
    assert wholes == streams
    assert len(set(wholes)) == 8


def test_openai_lists_and_retrieves_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "quicksilver")
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")


def test_openai_parses_an_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="tiny", messages=MESSAGES, response_format=City, temperature=0)
    assert isinstance(answer.choices[0].message.parsed, City)
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, response_format=City, temperature=0) as stream:
        events = [event.type for event in stream]
        assert stream.get_final_completion().choices[0].message.parsed == answer.choices[0].message.parsed
    assert events.count("content.done") == 1


def test_openai_parses_calls_of_tools(client: openai.OpenAI) -> None:
    asked: Any = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "temperature": 0}
    answer = client.chat.completions.parse(model="tiny", messages=MESSAGES, **asked)
    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, **asked) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [(one.name, one.parsed_arguments) for one in done] == [("Weather", call.function.parsed_arguments)]


def test_openai_shows_the_raw_answer(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": MESSAGES, "extra_headers": {"x-request-id": "mine"}}
    raw = client.chat.completions.with_raw_response.create(**asked)
    assert raw.headers["x-request-id"] == raw.request_id == "mine"
    assert raw.parse().choices
    with client.chat.completions.with_streaming_response.create(**asked, stream=True) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert [line for line in response.iter_lines() if line][-1] == "data: [DONE]"


def test_openai_takes_token_ids_for_a_prompt(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    text = "The river is"
    asked: Any = {"model": "tiny", "temperature": 0, "max_tokens": 8, "logprobs": 2, "echo": True}
    by_text = client.completions.create(prompt=text, **asked)
    by_ids = client.completions.create(prompt=tokenizer.encode(text), **asked)
    assert by_text.choices == by_ids.choices
    assert by_text.choices[0].text.startswith(text)
    several = client.completions.create(prompt=[tokenizer.encode(text)] * 2, **asked)
    assert [choice.text for choice in several.choices] == [by_ids.choices[0].text] * 2


def test_openai_s_errors_have_their_classes(client: openai.OpenAI, endpoint: Endpoint) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=9)
    assert (refused.value.param, refused.value.code, refused.value.type) == (
        "temperature", "invalid_value", "invalid_request_error",
    )  # fmt: skip
    assert refused.value.request_id
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=endpoint.url, api_key="wrong").models.list()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl isn't installed")
def test_curl_streams(endpoint: Endpoint) -> None:
    def curl(*more: str, path: str = "/chat/completions", given: str = "") -> subprocess.CompletedProcess[str]:
        command = ["curl", "--silent", "--no-buffer", "--fail-with-body", endpoint.url + path, *more]
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=60)

    key = ("--header", f"Authorization: Bearer {KEY}")
    body = json.dumps({"messages": MESSAGES, "stream": True, "temperature": 0})
    *events, end = [line for line in curl(*key, "--data", body).stdout.splitlines() if line]
    assert end == "data: [DONE]"
    assert [json.loads(event[6:])["object"] for event in events] == ["chat.completion.chunk"] * len(events)
    # A body over 1 KB: curl asks first whether it is wanted.
    long = json.dumps({"messages": MESSAGES, "user": "x" * 2_000_000})
    assert json.loads(curl(*key, "--data-binary", "@-", given=long).stdout)["choices"]
    assert (
        curl(
            *key,
            path="/models",
        ).returncode
        == 0
    )
    refused = curl(path="/models")
    assert refused.returncode == 22
    assert json.loads(refused.stdout)["error"]["code"] == "invalid_api_key"
