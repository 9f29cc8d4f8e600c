"""Gateways inside the test's own process, and a decoder that does what the test tells it to."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quicksilver.engines.fake import Fake
from quicksilver.nouns import Burst, Decoder, Endpoint, Request, Settings
from quicksilver.nouns.engine import DecoderStats
from quicksilver.serve.connection import make_server
from quicksilver.serve.gateway import Gateway
from quicksilver.serve.limits import Limits
from quicksilver.serve.recording import Recorder
from quicksilver.sources.text import Tokenizer

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Which is the river?"}], "temperature": 0}


class Puppet(Decoder):
    """Gives the bursts that a test tells it to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.deliver: list[Callable[[Burst], None]] = []
        self.cancelled: list[int] = []
        self.script: list[Burst] = []

    def submit(self, request: Request, deliver: Callable[[Burst], None]) -> int:
        if request.top_k == 13:
            raise ValueError("This engine has no top_k of 13.")
        self.requests.append(request)
        self.deliver.append(deliver)
        for burst in self.script:
            deliver(burst)
        return len(self.requests) - 1

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)
        self.deliver[number](Burst([], finish="cancelled"))

    def stats(self) -> DecoderStats:
        return DecoderStats(running=len(self.requests), drafted=10, accepted=7)

    def close(self) -> None:
        pass


@contextmanager
def running(
    gateway: Gateway, attach: Callable[[], tuple[Tokenizer, Decoder]] | None, limits: Limits | None = None
) -> Iterator[Endpoint]:
    """Serve a gateway from a thread of this process; `limits` are those of its connections."""
    server = make_server(gateway.app(), limits or Limits())
    listener = socket.create_server(("127.0.0.1", 0))
    # So that a client that doesn't read is felt soon: connections have the listener's.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)

    async def serve() -> None:
        if attach is not None:
            gateway.attach(*attach())
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        yield Endpoint(url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", model="tiny")
    finally:
        server.should_exit = True
        thread.join()
        gateway.close()


@contextmanager
def faked(
    folder: Path, tokenizer: Tokenizer, limits: Limits | None = None, recorder: Recorder | None = None
) -> Iterator[Endpoint]:
    """Serve a model's folder with the fake engine."""
    decoder = Fake().open(folder, Settings())
    gateway = Gateway("tiny", limits, recorder=recorder)
    with running(gateway, lambda: (tokenizer, decoder), limits) as endpoint:
        yield endpoint
    decoder.close()


def refused(
    endpoint: Endpoint, path: str, body: bytes | dict[str, Any], method: str = "POST"
) -> tuple[int, dict[str, Any]]:
    """Send what should fail; return the status and the error object."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    host, port = endpoint.url.removeprefix("http://").removesuffix("/v1").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.request(method, path, data)
    response = connection.getresponse()
    error = json.loads(response.read())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    return response.status, error
