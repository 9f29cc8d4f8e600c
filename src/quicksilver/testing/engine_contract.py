"""EngineContract: what every engine has to do, as a pytest class to inherit.

    class TestMine(EngineContract):
        @pytest.fixture(scope="class")
        @classmethod
        def engine(cls): return Mine()

        @pytest.fixture(scope="class")
        @classmethod
        def artifact(cls, tmp_path_factory): return build_something_tiny(...)

The artefact's model needs a chat template and a context of at least 512 tokens. What an engine says of itself in `abilities` is
held to: what it says it can is tested, and what it says it can't must not be there.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import psutil
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
        said = json.dumps({"model": endpoint.model} | body).encode()
        connection.request("POST", target, said, {"Content-Type": "application/json"})
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


def token_ids(endpoint: Endpoint, text: str) -> list[int]:
    """Return a text's tokens, by the server's /tokenize; vLLM (and ours) calls the text `prompt`, llama.cpp `content`."""
    for body in ({"prompt": text}, {"content": text, "add_special": True}):
        response = open_answer(endpoint, "//tokenize", body)
        answer = json.loads(response.read())
        if response.status == 200 and answer.get("tokens"):
            return list(answer["tokens"])
    raise AssertionError(answer)


def running(endpoint: Endpoint, gauge: str) -> float:
    """Return how many answers a server works on, by the gauge of that name in its /metrics."""
    response = open_answer(endpoint, "//metrics", None)
    text = response.read().decode()
    found = re.findall(rf"^{re.escape(gauge)}(?:{{.*}})? ([0-9.e+]+)$", text, re.MULTILINE)
    assert found, f"/metrics has no {gauge}: {text[:2000]}"
    return sum(map(float, found))


def counts(usage: dict[str, Any]) -> dict[str, int]:
    """Return the numbers of tokens that are told under the same names everywhere."""
    return {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds; fails after a minute."""
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _kill_and_ask(endpoint: Endpoint) -> None:
    assert endpoint.pid is not None
    os.kill(endpoint.pid, signal.SIGKILL)
    until(lambda: not _runs(endpoint.pid or 0))
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

    def test_its_start_and_its_memory_are_accounted_for(self, engine: Engine, endpoint: Endpoint) -> None:
        if not engine.abilities.owned:
            assert endpoint.pid is endpoint.load_s is endpoint.begun is None
            assert endpoint.peak_memory_mb() is None
            return
        assert endpoint.load_s is not None
        assert endpoint.load_s > 0
        first_token_s = cold_start_s(endpoint)
        assert first_token_s is not None
        assert first_token_s > endpoint.load_s
        assert endpoint.pid is not None
        family = psutil.Process(endpoint.pid)
        now_mb = sum(p.memory_info().rss for p in [family, *family.children(recursive=True)]) / 1e6
        peak_mb = endpoint.peak_memory_mb()
        assert peak_mb is not None
        assert peak_mb > now_mb / 2  # pages that its processes share are counted in each

    def test_answers_a_conversation(self, endpoint: Endpoint) -> None:
        answer = ask(endpoint, "/chat/completions", {"messages": MESSAGES, "max_tokens": 12, "ignore_eos": True})
        assert answer["choices"][0]["message"]["role"] == "assistant"
        assert isinstance(answer["choices"][0]["message"]["content"], str)
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 12

    def test_answers_a_text_and_the_same_in_token_ids(self, engine: Engine, endpoint: Endpoint) -> None:
        if not engine.abilities.token_prompts:
            assert open_answer(endpoint, "/completions", {"prompt": [[5, 6]], "max_tokens": 1}).status >= 400
            return
        tokens = token_ids(endpoint, PROMPT)
        body = {"max_tokens": 12, "temperature": 0}
        by_text = ask(endpoint, "/completions", {"prompt": PROMPT, **body})
        by_ids = ask(endpoint, "/completions", {"prompt": [tokens], **body})
        assert by_text["usage"]["prompt_tokens"] == len(tokens)
        assert by_text["choices"] == by_ids["choices"]
        assert counts(by_text["usage"]) == counts(by_ids["usage"])

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
        assert counts(usage["usage"]) == counts(whole["usage"])

    def test_streams_the_same_text(self, endpoint: Endpoint) -> None:
        body = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0}
        whole = ask(endpoint, "/completions", body)
        chunks = listen(endpoint, "/completions", body)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]

    def test_gives_a_logprob_for_each_token(self, engine: Engine, endpoint: Endpoint) -> None:
        body = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "logprobs": 0, "ignore_eos": True}
        if not engine.abilities.logprobs:
            assert _tells_no_logprobs(endpoint, body)
            return
        found = ask(endpoint, "/completions", body)["choices"][0]["logprobs"]
        assert len(found["tokens"]) == len(found["token_logprobs"]) == 6
        assert all(value <= 1e-6 for value in found["token_logprobs"])

    @pytest.mark.parametrize("max_tokens", [0, 1])
    def test_gives_a_logprob_for_each_token_of_the_prompt(
        self, engine: Engine, endpoint: Endpoint, max_tokens: int
    ) -> None:
        body = {"prompt": PROMPT, "max_tokens": max_tokens, "temperature": 0, "logprobs": 0, "echo": True}
        if not engine.abilities.prompt_logprobs:
            assert _tells_no_logprobs(endpoint, body, more_than=max_tokens)
            return
        answer = ask(endpoint, "/completions", body | {"ignore_eos": True})
        found = answer["choices"][0]["logprobs"]
        count = answer["usage"]["prompt_tokens"]
        assert answer["choices"][0]["text"].startswith(PROMPT)
        assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["text_offset"]) == count + max_tokens
        first, *rest = found["token_logprobs"]
        assert first is None
        assert all(value is not None and value <= 1e-6 for value in rest)

    def test_prompt_logprobs_are_the_model_s(self, engine: Engine, endpoint: Endpoint) -> None:
        """What it says of a token in a prompt doesn't depend on what comes after it."""
        if not engine.abilities.prompt_logprobs:
            pytest.skip("it says that it tells none, and another test holds it to that")
        tokens = token_ids(endpoint, PROMPT)
        body = {"max_tokens": 1, "temperature": 0, "logprobs": 0, "echo": True}
        one, other = (
            ask(endpoint, "/completions", {"prompt": prompt, **body})["choices"][0]["logprobs"]["token_logprobs"]
            for prompt in (tokens, tokens[:-1])
        )
        assert one[1 : len(tokens) - 1] == pytest.approx(other[1 : len(tokens) - 1], abs=0.05)

    def test_the_likeliest_tokens_in_a_prompt_s_places_are_the_model_s(
        self, engine: Engine, endpoint: Endpoint
    ) -> None:
        if not engine.abilities.prompt_top_logprobs:
            pytest.skip("it says that it doesn't tell them")
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

    def test_frees_the_sequence_of_a_client_that_goes_away(self, engine: Engine, endpoint: Endpoint) -> None:
        body = {"prompt": PROMPT, "max_tokens": 400, "ignore_eos": True, "stream": True}
        response = open_answer(endpoint, "/completions", body)
        response.readline()
        response.close()
        until(lambda: running(endpoint, engine.abilities.running) == 0)

    def test_says_that_a_port_is_in_use(self, engine: Engine, artifact: Path) -> None:
        if not engine.abilities.owned:
            pytest.skip("it starts no server")
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(QuicksilverError, match=str(port)), engine.serve(artifact, self.settings, port=port):
                pass

    def test_says_that_there_is_nothing_to_serve(self, engine: Engine, tmp_path: Path) -> None:
        with pytest.raises(QuicksilverError) as caught, engine.serve(tmp_path, self.settings):
            pass
        assert "\n" not in str(caught.value)
        assert "Traceback" not in str(caught.value)

    def test_says_that_the_server_died_and_starts_again_on_its_port(
        self, engine: Engine, artifact: Path, tmp_path: Path
    ) -> None:
        """Killed by its process id; then started again, told to end while it answers, and nothing of it is left."""
        if not engine.abilities.owned:
            pytest.skip("it starts no server")
        port = _free_port()
        with (
            pytest.raises(EngineError, match="SIGKILL"),
            engine.serve(artifact, self.settings, port=port, log=tmp_path / "log") as endpoint,
        ):
            _kill_and_ask(endpoint)
        with engine.serve(artifact, self.settings, port=port) as endpoint:
            assert urlsplit(endpoint.url).port == port
            assert endpoint.pid is not None
            family = [endpoint.pid, *(p.pid for p in psutil.Process(endpoint.pid).children(recursive=True))]
            body = {"prompt": PROMPT, "max_tokens": 200, "ignore_eos": True, "stream": True}
            response = open_answer(endpoint, "/completions", body)
            first = response.readline()
            rest: list[bytes] = []
            reader = threading.Thread(target=lambda: rest.append(_read_all(response)))
            reader.start()
        reader.join(WAIT_S)
        assert not reader.is_alive()  # whoever was answered isn't left hanging
        assert first.startswith(b"data: ")
        if engine.abilities.drains:
            assert rest[0].rstrip().endswith(b"data: [DONE]")
        until(lambda: not any(map(_runs, family)))


def _tells_no_logprobs(endpoint: Endpoint, body: dict[str, Any], *, more_than: int = 0) -> bool:
    """Say whether a request for log-probabilities is refused, or answered without those in question."""
    response = open_answer(endpoint, "/completions", body)
    answer = json.loads(response.read())
    if response.status != 200:
        return True
    found = answer["choices"][0].get("logprobs") or {}
    return len(found.get("token_logprobs") or found.get("content") or ()) <= more_than


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


def _read_all(response: http.client.HTTPResponse) -> bytes:
    """Read a stream to its end, however it ends."""
    lines: list[bytes] = []
    with contextlib.suppress(OSError, http.client.HTTPException):  # broken off: the lines that came are what there is
        lines.extend(iter(response.readline, b""))
    return b"".join(lines)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
