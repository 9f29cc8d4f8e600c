"""A server that takes the port over from another: no request fails, and what can't be taken over is left alone."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gateways import CHAT

from quicksilver.nouns import Endpoint
from quicksilver.serve.handover import offered, take_over
from quicksilver.testing.engine_contract import ask, open_answer, until
from quicksilver.testing.tiny import make_tiny_model

SERVE = """
import json, sys
from pathlib import Path
from quicksilver.errors import QuicksilverError
from quicksilver.serve.server import Place, Recording, serve

engine, folder, settings, place, record = sys.argv[1:]
try:
    serve(engine, Path(folder), settings, Place(**json.loads(place)), say=lambda said: print(said, file=sys.stderr, flush=True),
          recording=Recording(Path(record)) if record else None)
except QuicksilverError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the places where servers can be asked out of the user's own; their paths have to be short."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@contextmanager
def server(
    folder: Path, log: Path, properties: dict[str, Any] | None = None, record: Path | None = None, **place: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Serve with the fake engine in a process of its own, which ends with the context."""
    settings = json.dumps({"max_streams": 8, "properties": properties or {}})
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, "fake", str(folder), settings, json.dumps(place), str(record or "")],
            stdout=subprocess.PIPE,
            stderr=said,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def port_of(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    port: int = json.loads(process.stdout.readline())["port"]
    return port


def endpoint_at(port: int, model: str = "model") -> Endpoint:
    return Endpoint(url=f"http://127.0.0.1:{port}/v1", model=model)


def hears(log: Path, said: str) -> bool:
    return said in log.read_text(encoding="utf-8")


def test_no_request_fails_while_a_server_replaces_another(folder: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other")
    first, second, record = tmp_path / "first.log", tmp_path / "second.log", tmp_path / "record.jsonl"
    pace = {"decode_ms": 4}
    over = threading.Event()
    failures: list[str] = []
    answered = 0

    def client(keeps: bool, port: int) -> None:
        nonlocal answered
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while not over.is_set():
            body = json.dumps(CHAT | {"model": folder.name, "max_tokens": 20, "ignore_eos": True, "stream": True})
            try:
                connection.request("POST", "/v1/chat/completions", body)
                response = connection.getresponse()
                data = response.read()
                if response.status != 200 or not data.endswith(b"data: [DONE]\n\n"):
                    failures.append(f"{response.status} {data[-200:]!r}")
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error))
            answered += 1
            if not keeps or response.will_close:
                connection.close()

    with server(folder, first, pace, record, port=0) as old:
        port = port_of(old)
        until(lambda: hears(first, "Ready"))
        threads = [threading.Thread(target=client, args=(n % 2 == 0, port), daemon=True) for n in range(6)]
        for thread in threads:
            thread.start()
        slow = open_answer(
            endpoint_at(port, folder.name),
            "/completions",
            {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True},
        )
        assert slow.status == 200, slow.read()
        slow.readline()
        with server(other, second, {"load_ms": 300, **pace}, record, port=port, replace=True) as new:
            assert port_of(new) == port
            until(lambda: old.poll() is not None)
            assert slow.read().endswith(b"data: [DONE]\n\n")  # it was finished by the one that left
            so_far = answered
            until(lambda: answered > so_far + 20)
            over.set()
            for thread in threads:
                thread.join(60)
            assert failures == []
            assert old.returncode == 0
            assert hears(first, "taken the port over")
            models = [model["id"] for model in ask(endpoint_at(port), "/models")["data"]]
            assert models == ["other", folder.name]  # its clients need not know
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == answered + 1  # both wrote into one record, and each request is there once
    assert {tuple(line["finish_reasons"]) for line in lines} == {("length",)}
    arrivals = {name: [line["arrival_s"] for line in lines if line["model"] == name] for name in ("other", folder.name)}
    assert min(arrivals["other"]) > min(arrivals[folder.name])
    assert min(arrivals["other"]) < max(arrivals["other"])


def test_it_can_be_replaced_again_and_by_one_that_comes_after_a_crash(
    folder: Path, tmp_path: Path, runtime: Path
) -> None:
    logs = [tmp_path / f"{n}.log" for n in range(4)]
    with server(folder, logs[0], port=0) as first:
        port = port_of(first)
        until(lambda: hears(logs[0], "Ready"))
        with server(folder, logs[1], port=port, replace=True) as second:
            until(lambda: first.poll() is not None)
            with server(folder, logs[2], port=port, replace=True) as third:
                until(lambda: second.poll() is not None)
                until(lambda: hears(logs[2], "Ready"))
                third.kill()
                third.wait()
                with server(folder, logs[3], port=port, replace=True):
                    until(lambda: hears(logs[3], "Ready"))
                    assert ask(endpoint_at(port), "/models")["data"]
    assert list(runtime.glob("quicksilver-*/*")) == []


def test_one_that_can_t_be_loaded_leaves_the_other_alone(folder: Path, tmp_path: Path) -> None:
    logs = [tmp_path / f"{n}.log" for n in range(4)]
    with server(folder, logs[0], port=0) as old:
        port = port_of(old)
        until(lambda: hears(logs[0], "Ready"))
        for n, properties in ((1, {"nonsense": 1}), (2, {"load_ms": 60_000})):
            with server(folder, logs[n], properties, port=port, replace=True) as new:
                port_of(new)
                if n == 2:
                    new.send_signal(signal.SIGTERM)
                new.wait(30)
        assert "no property 'nonsense'" in logs[1].read_text(encoding="utf-8")
        assert ask(endpoint_at(port), "/models")["data"]
        with server(folder, logs[3], port=port, replace=True):  # and it can be replaced still
            until(lambda: old.poll() is not None)
            assert ask(endpoint_at(port), "/models")["data"]


def test_another_program_s_port_is_not_taken(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with server(folder, log, port=port, replace=True) as process:
            assert process.wait(30) == 1
    assert log.read_text(encoding="utf-8") == (
        f"error: Port {port} on 127.0.0.1 can't be used: address already in use."
        " No server that can be replaced was found there.\n"
    )


def test_a_socket_that_others_reach_is_not_taken_over_without_a_key(folder: Path, tmp_path: Path) -> None:
    logs = tmp_path / "first", tmp_path / "second"
    with server(folder, logs[0], host="0.0.0.0", port=0, insecure=True) as old:
        port = port_of(old)
        until(lambda: hears(logs[0], "Ready"))
        with server(folder, logs[1], port=port, replace=True) as new:
            assert new.wait(30) == 1
        assert "0.0.0.0 can be reached from other machines" in logs[1].read_text(encoding="utf-8")
        assert ask(endpoint_at(port), "/models")["data"]


def test_a_folder_that_others_can_write_to_is_not_used(runtime: Path) -> None:
    async def offer(listener: socket.socket) -> None:
        async with offered(listener, ["a"], lambda: asyncio.sleep(0)):
            assert take_over(listener.getsockname()[1]) is None

    folder = runtime / f"quicksilver-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(offer(listener))
    assert list(folder.iterdir()) == []
