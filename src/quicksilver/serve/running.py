"""One run of the server: from the start of its engine until it is told to end or is replaced."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from quicksilver.errors import QuicksilverError
from quicksilver.serve.backend import Backend, unopened
from quicksilver.serve.connection import make_server
from quicksilver.serve.gateway import Gateway
from quicksilver.serve.handover import Predecessor, offered
from quicksilver.serve.limits import Limits
from quicksilver.serve.server import Place
from quicksilver.sources.text import Tokenizer

if TYPE_CHECKING:
    from quicksilver.serve.recording import Recorder

log = logging.getLogger("quicksilver.serve")

LOOK_S = 0.05
"""Between two looks at the connections that are left."""


@dataclass
class Server:
    """One run of the server."""

    backend: Backend
    artifact: Path
    listener: socket.socket
    place: Place
    limits: Limits
    model: str
    say: Callable[[str], None]
    recorder: Recorder | None = None
    begun: float = field(default_factory=time.monotonic)
    gateway: Gateway = field(init=False)
    http: uvicorn.Server = field(init=False)

    async def run(self, predecessor: Predecessor | None) -> None:
        """Load, take the place of a predecessor, and answer until told to end. Raises what loading raises."""
        names = [self.model]
        if predecessor is not None:
            names += [name for name in predecessor.names if name != self.model]
        self.gateway = Gateway(self.model, self.limits, names[1:], self.recorder)
        self.http = make_server(self.gateway.app(), self.limits, grace_s=self.place.grace_s)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def end(*_: object) -> None:
            self.http.should_exit = True
            loop.call_soon_threadsafe(ended.cancel)

        # Until uvicorn takes the signals; and when it is done it raises them again, which must not end us before our turn.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        loaded: asyncio.Future[Tokenizer] = loop.create_future()
        threading.Thread(target=self._load, args=(loop, loaded), daemon=True).start()
        # With a predecessor the port is its until all is loaded.
        serving = ended if predecessor is not None else self._serve()
        waiting: set[asyncio.Future[Any]] = {loaded, serving}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not loaded.done():  # told to end while it loads
            if predecessor is None:
                await serving
            return
        if loaded.exception() is not None:
            end()
            await asyncio.wait([serving])
        self.gateway.attach(loaded.result(), self.backend)
        try:
            if predecessor is not None:
                serving = self._serve()
                while not self.http.started and not serving.done():  # noqa: ASYNC110 (uvicorn has no event)
                    await asyncio.sleep(0.001)
                predecessor.retire()
            self.say(f"Ready after {time.monotonic() - self.begun:.1f} s.")
            if self.place.replaceable:
                async with offered(self.listener, names, self._leave):
                    await serving
            else:
                await serving
        finally:
            self.gateway.close()

    def _serve(self) -> asyncio.Future[None]:
        return asyncio.create_task(self.http.serve(sockets=[self.listener]))

    def _load(self, loop: asyncio.AbstractEventLoop, loaded: asyncio.Future[Tokenizer]) -> None:
        """Wait for tokenizer and engine, on a thread of its own, so that /health answers meanwhile."""
        try:
            tokenizer = Tokenizer(self.artifact)
            self.backend.wait()
        except QuicksilverError as error:
            loop.call_soon_threadsafe(loaded.set_exception, error)
        except Exception as error:
            log.info("The tokenizer can't be opened.", exc_info=True)
            loop.call_soon_threadsafe(loaded.set_exception, unopened(self.artifact, error))
        else:
            loop.call_soon_threadsafe(loaded.set_result, tokenizer)

    async def _leave(self) -> None:
        """Stop accepting connections, answer on those that there are, and end."""
        self.say("Another server has taken the port over; this one ends when its connections have.")
        self.gateway.drain()
        for accepting in self.http.servers:
            accepting.close()
        until = time.monotonic() + self.place.grace_s
        # uvicorn would close a connection whose request is still on its way.
        while self.http.server_state.connections and time.monotonic() < until:  # noqa: ASYNC110 (nor here)
            await asyncio.sleep(LOOK_S)
        self.http.should_exit = True
