"""The engine in a process of its own: it answers as one in the gateway's would, and its death is told, not shared."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import psutil
import pytest
from gateways import CHAT, refused, running

from quicksilver.engines.fake import Fake
from quicksilver.engines.process import serve_process
from quicksilver.errors import EngineError
from quicksilver.nouns import Burst, Request, Settings
from quicksilver.nouns.engine import DecoderStats
from quicksilver.serve.backend import Backend
from quicksilver.serve.gateway import Gateway
from quicksilver.sources.text import Tokenizer
from quicksilver.testing.engine_contract import ask, open_answer, until

SLOW = Settings(max_streams=4, properties={"decode_ms": 20})
ENDLESS = Request([1, 2, 3], max_tokens=100_000, ignore_eos=True)


@pytest.fixture
def backend(folder: Path) -> Iterator[Backend]:
    backend = Backend("fake", folder, SLOW.model_dump_json())
    backend.wait()
    yield backend
    backend.close()


def decoded(decoder: Any, request: Request) -> list[Burst]:
    """Decode a sequence to its end."""
    bursts: Queue[Burst] = Queue()
    decoder.submit(request, bursts.put)
    found = [bursts.get(timeout=30)]
    while found[-1].finish is None:
        found.append(bursts.get(timeout=30))
    return found


def test_it_gives_what_the_decoder_gives(folder: Path, backend: Backend) -> None:
    request = Request([5, 6, 7, 8], max_tokens=20, temperature=1.0, seed=3, logprobs=True, echo=True, top_logprobs=2)
    decoder = Fake().open(folder, SLOW)
    assert decoded(backend, request) == decoded(decoder, request)
    decoder.close()


def test_a_cancelled_sequence_is_freed_and_the_stats_say_so(backend: Backend) -> None:
    bursts: Queue[Burst] = Queue()
    number = backend.submit(ENDLESS, bursts.put)
    assert bursts.get(timeout=30).tokens
    until(lambda: backend.stats().running == 1)
    backend.cancel(number)
    while bursts.get(timeout=30).finish is None:
        pass
    until(lambda: backend.stats().running == 0)
    backend.cancel(number)  # once more is nothing


def test_what_the_engine_refuses_says_why(backend: Backend) -> None:
    (burst,) = decoded(backend, Request([1], grammar="start: nowhere"))
    assert burst.finish == "refused"
    assert burst.error


def test_a_sequence_cancelled_while_its_grammar_is_compiled_ends(backend: Backend) -> None:
    for _ in range(20):
        bursts: Queue[Burst] = Queue()
        request = Request([1], max_tokens=100_000, grammar=r"start: /(.|\n)*/", ignore_eos=True)
        backend.cancel(backend.submit(request, bursts.put))
        while bursts.get(timeout=30).finish != "cancelled":
            pass


def test_a_crash_ends_what_is_in_flight_and_the_engine_comes_back(backend: Backend) -> None:
    bursts: Queue[Burst] = Queue()
    backend.submit(ENDLESS, bursts.put)
    assert bursts.get(timeout=30).tokens
    for _ in range(2):  # the second time it pauses before it starts
        before = backend.pid
        os.kill(before, signal.SIGKILL)
        until(lambda: not backend.ready)
        assert backend.stats() == DecoderStats()
        with pytest.raises(EngineError, match="being started again"):
            backend.submit(ENDLESS, bursts.put)
        until(lambda: backend.ready)
        assert backend.pid != before
    found = [bursts.get(timeout=30) for _ in range(bursts.qsize())]
    assert [burst.finish for burst in found if burst.finish] == ["lost"]
    assert decoded(backend, Request([1, 2], max_tokens=3, ignore_eos=True))[-1].finish == "length"


def test_what_the_engine_logs_has_the_servers_format(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    backend = Backend("fake", folder, SLOW.model_dump_json(), "json")
    backend.wait()
    not_a_token: Any = "x"
    assert decoded(backend, Request([not_a_token], max_tokens=1))[-1].finish == "error"
    backend.close()
    (line,) = map(json.loads, capfd.readouterr().err.splitlines())
    assert (line["level"], line["message"]) == ("error", "The engine failed to take a sequence in.")
    assert "TypeError" in line["exception"]


def test_an_engine_that_dies_while_it_loads_is_an_error(folder: Path) -> None:
    backend = Backend("fake", folder, Settings(properties={"load_ms": 60_000}).model_dump_json())
    os.kill(backend.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=r"^The engine ended by SIGKILL \(perhaps there was not enough memory\)\.$"):
        backend.wait()
    backend.close()


def test_it_can_be_closed_while_it_loads_while_it_works_and_after_a_crash(folder: Path) -> None:
    loading = Backend("fake", folder, Settings(properties={"load_ms": 60_000}).model_dump_json())
    loading.close()
    working = Backend("fake", folder, SLOW.model_dump_json())
    working.wait()
    bursts: Queue[Burst] = Queue()
    working.submit(ENDLESS, bursts.put)
    bursts.get(timeout=30)
    working.close()
    while (last := bursts.get(timeout=30)).finish is None:
        pass
    assert last.finish == "cancelled"
    crashed = Backend("fake", folder, SLOW.model_dump_json())
    crashed.wait()
    os.kill(crashed.pid, signal.SIGKILL)
    crashed.close()
    for backend in (loading, working, crashed):
        assert not psutil.pid_exists(backend.pid)


def test_clients_are_told_of_a_crash_and_the_server_of_their_next_request_answers(
    tokenizer: Tokenizer, backend: Backend
) -> None:
    gateway = Gateway("tiny")
    with running(gateway, lambda: (tokenizer, backend)) as endpoint:
        body = CHAT | {"max_tokens": 2000, "ignore_eos": True}
        stream = open_answer(endpoint, "/chat/completions", body | {"stream": True})
        stream.readline()
        whole: list[tuple[int, dict[str, Any]]] = []
        asking = threading.Thread(
            target=lambda: whole.append(refused(endpoint, "/v1/chat/completions", body)), daemon=True
        )
        asking.start()
        until(lambda: backend.stats().running == 2)
        os.kill(backend.pid, signal.SIGKILL)
        rest = stream.read()
        assert b'"code": "engine_died"' in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        asking.join(30)
        ((status, error),) = whole
        assert (status, error["code"]) == (503, "engine_died")
        until(lambda: backend.ready)
        assert ask(endpoint, "//ready") == {"status": "ready"}
        assert ask(endpoint, "//health")["running"] == 0
        assert ask(endpoint, "/chat/completions", CHAT | {"max_tokens": 3})["usage"]["completion_tokens"] <= 3


def test_a_server_tells_that_its_engine_is_gone_until_it_is_back(folder: Path) -> None:
    settings = Settings(properties={"load_ms": 1500})
    with serve_process("fake", folder, settings) as endpoint:
        assert endpoint.pid is not None
        (engine,) = psutil.Process(endpoint.pid).children()
        engine.kill()
        until(lambda: open_answer(endpoint, "//ready", None).status == 503)
        for path in ("/ready", "/health"):
            status, error = refused(endpoint, path, b"", "GET")
            assert (status, error["code"]) == (503, "engine_died")
        status, error = refused(endpoint, "/v1/chat/completions", CHAT)
        assert (status, error["code"]) == (503, "engine_died")
        until(lambda: open_answer(endpoint, "//ready", None).status == 200)
        assert ask(endpoint, "/chat/completions", CHAT | {"max_tokens": 3})["choices"]


def test_the_engine_dies_with_its_server(folder: Path) -> None:
    with pytest.raises(EngineError, match="SIGKILL"), serve_process("fake", folder, Settings()) as endpoint:
        assert endpoint.pid is not None
        (engine,) = psutil.Process(endpoint.pid).children()
        os.kill(endpoint.pid, signal.SIGKILL)
        until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)
        ask(endpoint, "/models")
