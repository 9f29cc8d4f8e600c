"""EngineContract: what every engine that is served through the gateway has to do, as a pytest class to inherit.

    class TestMine(EngineContract):
        @pytest.fixture(scope="class")
        @classmethod
        def engine(cls): return Mine()

        @pytest.fixture(scope="class")
        @classmethod
        def artifact(cls, tmp_path_factory): return build_something_tiny(...)

The artefact's model needs a chat template and a context of at least 512 tokens.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest

from quicksilver.engines.process import cold_start_s
from quicksilver.errors import EngineError, QuicksilverError
from quicksilver.nouns import Endpoint, Engine, Settings

WAIT_S = 60
MESSAGES = [{"role": "user", "content": "Which city has the river, the bridge and the market? ¿Qué? 你好 🎉"}]
PROMPT = "The question is which of these answers is right, and"


def open_answer(endpoint: Endpoint, path: str, body: dict[str, Any] | None) -> http.client.HTTPResponse:
    """Send a request (GET without a body) and return the answer, unread. `path` comes after /v1, or begins with //."""
    parts = urlsplit(endpoint.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=WAIT_S)
    target = path[1:] if path.startswith("//") else parts.path + path
    if body is None:
        connection.request("GET", target)
    else:
        connection.request("POST", target, json.dumps({"model": endpoint.model} | body).encode())
    return connection.getresponse()


def ask(endpoint: Endpoint, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Send a request and return the JSON object that answers it. Fails unless the status is 200."""
    response = open_answer(endpoint, path, body)
    answer: dict[str, Any] = json.loads(response.read())
    assert response.status == 200, answer
    return answer


def listen(endpoint: Endpoint, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Send a request for a stream and return its chunks. Fails unless it ends with [DONE]."""
    response = open_answer(endpoint, path, body | {"stream": True})
    assert response.status == 200, response.read()
    events = [line[6:] for line in response.read().split(b"\n") if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]"
    return [json.loads(event) for event in events[:-1]]


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds; fails after a minute."""
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _kill_and_ask(endpoint: Endpoint) -> None:
    assert endpoint.pid is not None
    os.kill(endpoint.pid, signal.SIGKILL)
    ask(endpoint, "/models")


class EngineContract:
    """Inherit it, and give the fixtures `engine` and `artifact`."""

    settings: ClassVar[Settings] = Settings(max_streams=4, kv_cache_gb=1)

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Engine:
        """Return the engine. To be overridden."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def artifact(cls) -> Path:
        """Return the folder of something small that the engine serves. To be overridden."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def endpoint(cls, engine: Engine, artifact: Path) -> Iterator[Endpoint]:
        """Serve the artefact for the whole class."""
        with engine.serve(artifact, cls.settings) as endpoint:
            yield endpoint

    def test_states_its_version(self, engine: Engine) -> None:
        assert engine.version().strip()

    def test_is_ready_when_it_is_yielded(self, endpoint: Endpoint) -> None:
        models = ask(endpoint, "/models")["data"]
        assert endpoint.model in [model["id"] for model in models]
        assert endpoint.load_s is not None
        assert endpoint.load_s > 0
        first_token_s = cold_start_s(endpoint)
        assert first_token_s is not None
        assert first_token_s > endpoint.load_s
        memory = endpoint.peak_memory_mb()
        assert memory is not None
        assert memory > 1

    def test_answers_a_conversation(self, endpoint: Endpoint) -> None:
        answer = ask(endpoint, "/chat/completions", {"messages": MESSAGES, "max_tokens": 12, "ignore_eos": True})
        assert answer["choices"][0]["message"]["role"] == "assistant"
        assert isinstance(answer["choices"][0]["message"]["content"], str)
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 12

    def test_answers_a_text_and_the_same_in_token_ids(self, endpoint: Endpoint) -> None:
        tokens = ask(endpoint, "//tokenize", {"prompt": PROMPT})["tokens"]
        body = {"max_tokens": 12, "temperature": 0}
        by_text = ask(endpoint, "/completions", {"prompt": PROMPT, **body})
        by_ids = ask(endpoint, "/completions", {"prompt": [tokens], **body})
        assert by_text["usage"]["prompt_tokens"] == len(tokens)
        assert by_text["choices"] == by_ids["choices"]
        assert by_text["usage"] == by_ids["usage"]

    def test_repeats_itself_when_greedy(self, endpoint: Endpoint) -> None:
        body = {"messages": MESSAGES, "max_tokens": 24, "temperature": 0}
        first, second = (ask(endpoint, "/chat/completions", body) for _ in range(2))
        assert first["choices"] == second["choices"]

    def test_repeats_itself_with_a_seed(self, endpoint: Endpoint) -> None:
        body = {"prompt": PROMPT, "max_tokens": 24, "temperature": 1, "seed": 5}
        first, second = (ask(endpoint, "/completions", body) for _ in range(2))
        assert first["choices"] == second["choices"]

    def test_streams_the_same_conversation(self, endpoint: Endpoint) -> None:
        body: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 24, "temperature": 0}
        whole = ask(endpoint, "/chat/completions", body)
        *chunks, usage = listen(endpoint, "/chat/completions", body | {"stream_options": {"include_usage": True}})
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        assert text == whole["choices"][0]["message"]["content"]
        assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
        assert usage["choices"] == []
        assert usage["usage"] == whole["usage"]

    def test_streams_the_same_text(self, endpoint: Endpoint) -> None:
        body = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0}
        whole = ask(endpoint, "/completions", body)
        chunks = listen(endpoint, "/completions", body)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]

    def test_gives_a_logprob_for_each_token(self, endpoint: Endpoint) -> None:
        body = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "logprobs": 0, "ignore_eos": True}
        found = ask(endpoint, "/completions", body)["choices"][0]["logprobs"]
        assert len(found["tokens"]) == len(found["token_logprobs"]) == 6
        assert all(value <= 1e-6 for value in found["token_logprobs"])

    @pytest.mark.parametrize("max_tokens", [0, 1])
    def test_gives_a_logprob_for_each_token_of_the_prompt(self, endpoint: Endpoint, max_tokens: int) -> None:
        body = {"prompt": PROMPT, "max_tokens": max_tokens, "temperature": 0, "logprobs": 0, "echo": True}
        answer = ask(endpoint, "/completions", body | {"ignore_eos": True})
        found = answer["choices"][0]["logprobs"]
        count = answer["usage"]["prompt_tokens"]
        assert answer["choices"][0]["text"].startswith(PROMPT)
        assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["text_offset"]) == count + max_tokens
        first, *rest = found["token_logprobs"]
        assert first is None
        assert all(value is not None and value <= 1e-6 for value in rest)

    def test_prompt_logprobs_are_the_model_s(self, endpoint: Endpoint) -> None:
        """What it says of a token that it chose is what it says when the same token stands in a prompt."""
        tokens = ask(endpoint, "//tokenize", {"prompt": PROMPT})["tokens"]
        body = {"max_tokens": 1, "temperature": 0, "logprobs": 0, "echo": True}
        one, other = (
            ask(endpoint, "/completions", {"prompt": prompt, **body})["choices"][0]["logprobs"]["token_logprobs"]
            for prompt in (tokens, tokens[:-1])
        )
        assert one[1 : len(tokens) - 1] == pytest.approx(other[1 : len(tokens) - 1], abs=0.05)

    def test_the_likeliest_tokens_in_a_prompt_s_places_are_the_model_s(self, endpoint: Endpoint) -> None:
        body = {"prompt": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
        found = ask(endpoint, "/completions", body)["choices"][0]["logprobs"]
        assert found["top_logprobs"][0] is None
        told = zip(found["tokens"][1:], found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True)
        for token, value, top in told:
            assert top[token] == value or "\ufffd" in token
            assert max(top.values()) >= value

    def test_serves_more_streams_than_it_runs_at_once(self, endpoint: Endpoint) -> None:
        bodies = [{"prompt": f"{n} {PROMPT}", "max_tokens": 16, "ignore_eos": True} for n in range(10)]
        with ThreadPoolExecutor(len(bodies)) as pool:
            answers = list(pool.map(lambda body: ask(endpoint, "/completions", body), bodies))
        assert [answer["usage"]["completion_tokens"] for answer in answers] == [16] * len(bodies)

    def test_frees_the_sequence_of_a_client_that_goes_away(self, endpoint: Endpoint) -> None:
        body = {"prompt": PROMPT, "max_tokens": 400, "ignore_eos": True, "stream": True}
        response = open_answer(endpoint, "/completions", body)
        response.readline()
        response.close()
        until(lambda: ask(endpoint, "//health")["running"] == 0)

    def test_says_that_a_port_is_in_use(self, engine: Engine, artifact: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(QuicksilverError, match=str(port)), engine.serve(artifact, self.settings, port=port):
                pass

    def test_says_that_there_is_nothing_to_serve(self, engine: Engine, tmp_path: Path) -> None:
        with pytest.raises(QuicksilverError) as caught, engine.serve(tmp_path, self.settings):
            pass
        assert "\n" not in str(caught.value)
        assert "Traceback" not in str(caught.value)

    def test_says_that_the_server_died(self, engine: Engine, artifact: Path) -> None:
        with pytest.raises(EngineError, match="SIGKILL"), engine.serve(artifact, self.settings) as endpoint:
            _kill_and_ask(endpoint)

    def test_leaves_no_process_behind(self, engine: Engine, artifact: Path) -> None:
        with engine.serve(artifact, self.settings) as endpoint:
            pid = endpoint.pid
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
