"""Remote: a URL becomes an endpoint, or one clear sentence."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Exchange, serving

from quicksilver.engines.remote import Remote, connect, request_json
from quicksilver.errors import BadInputError, EngineError, QuicksilverError
from quicksilver.nouns import Engine, Settings


def models(*names: str) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.answer(200, {"object": "list", "data": [{"id": name} for name in names]})


def reply(document: Any, status: int = 200) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.answer(status, document)


def test_any_form_of_its_url_finds_the_server() -> None:
    with serving(v1_models=models("tiny")) as server:
        root = server.url.removesuffix("/v1")
        for url in (
            root,
            f"{root}/",
            server.url,
            f"{server.url}/",
            f"{server.url}/chat/completions",
            f" {server.url}/models",
        ):
            endpoint = connect(url)
            assert (endpoint.url, endpoint.model, endpoint.api_key) == (server.url, "tiny", None)


def test_the_model_is_picked_or_checked() -> None:
    with serving(v1_models=models("llama-8b", "llama-70b")) as server:
        assert connect(server.url, "llama-70b").model == "llama-70b"
        with pytest.raises(BadInputError, match="serves several models, name one of them: llama-8b, llama-70b"):
            connect(server.url)
        with pytest.raises(BadInputError, match=r"no model at .* named 'lama-8b'; did you mean 'llama-8b'"):
            connect(server.url, "lama-8b")
    with serving(v1_models=models()) as server, pytest.raises(EngineError, match="serves no model"):
        connect(server.url)


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def guarded(exchange: Exchange) -> None:
        right = exchange.headers.get("Authorization") == "Bearer right"
        exchange.answer(200 if right else 401, {"data": [{"id": "m"}]} if right else {"error": "no"})

    monkeypatch.delenv("THE_KEY", raising=False)
    with serving(v1_models=guarded) as server:
        with pytest.raises(EngineError, match="wants an API key"):
            connect(server.url)
        with pytest.raises(BadInputError, match=r"variable THE_KEY.*isn't set"):
            connect(server.url, api_key_env="THE_KEY")
        monkeypatch.setenv("THE_KEY", "wrong")
        with pytest.raises(EngineError, match=r"refused the API key in THE_KEY \(HTTP 401\)") as caught:
            connect(server.url, api_key_env="THE_KEY")
        assert "wrong" not in str(caught.value)
        monkeypatch.setenv("THE_KEY", "right\n")
        assert connect(server.url, api_key_env="THE_KEY").api_key == "right"


@pytest.mark.parametrize(
    "script",
    [
        reply("<html>hello</html>"),
        reply({"models": []}),
        reply({"data": ["m"]}),
        reply({"data": [{"name": "m"}]}),
        reply([1]),
        reply({"error": "x"}, 500),
    ],
)
def test_a_server_of_another_kind_is_named(script: Callable[[Exchange], None]) -> None:
    with serving(v1_models=script) as server, pytest.raises(EngineError, match="doesn't speak the OpenAI API"):
        connect(server.url)


@contextmanager
def raw(answer: bytes) -> Iterator[str]:
    """A TCP server that answers one connection with these bytes and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        thread.join()


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort"]
)
def test_a_port_that_does_not_speak_http(answer: bytes) -> None:
    with raw(answer) as url, pytest.raises(EngineError, match="No HTTP answer came from"):
        connect(url)


def test_a_dead_url_is_one_sentence() -> None:
    with serving() as server:
        url = server.url
    with pytest.raises(EngineError, match=rf"No HTTP answer came from {url}/models: .*refused"):
        connect(url)


def test_a_server_that_says_nothing_is_given_up() -> None:
    hold = threading.Event()

    def script(exchange: Exchange) -> None:
        hold.wait(30)

    with serving(v1_models=script) as server:
        try:
            with pytest.raises(EngineError, match=r"didn't answer within 0\.2 s"):
                request_json(f"{server.url}/models", timeout_s=0.2)
        finally:
            hold.set()


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1", "http://a b/v1"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(BadInputError, match="is not the URL of a server"):
        connect(url)


def test_its_artefact_is_a_small_file(tmp_path: Path) -> None:
    engine: Engine = Remote()
    with serving(v1_models=models("tiny")) as server:
        (tmp_path / "remote.json").write_text(json.dumps({"url": server.url, "model": "tiny"}), encoding="utf-8")
        for artifact in (tmp_path, tmp_path / "remote.json"):
            with engine.serve(artifact, Settings()) as endpoint:
                assert (endpoint.url, endpoint.model, endpoint.pid, endpoint.peak_memory_mb()) == (
                    server.url,
                    "tiny",
                    None,
                    None,
                )
    assert (engine.name, engine.format) == ("remote", "remote")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "can't be read"),
        ("{", "is not JSON"),
        ("[]", "has no 'url'"),
        ('{"url": 3}', "has no 'url'"),
        ('{"url": "http://h", "modle": "m"}', "'modle'; did you mean 'model'"),
    ],
)
def test_a_bad_artefact_is_one_sentence(tmp_path: Path, text: str | None, sentence: str) -> None:
    file = tmp_path / "remote.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(QuicksilverError, match=sentence), Remote().serve(file, Settings()):
        pass
