"""The server: an artefact's engine behind the gateway, from its start until it is told to end or is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quicksilver.errors import BadInputError, QuicksilverError
from quicksilver.nouns import Artifact, Settings
from quicksilver.nouns.artifact import RECIPE
from quicksilver.serve.backend import Backend, unopened
from quicksilver.serve.handover import Predecessor, offered, take_over
from quicksilver.serve.limits import Limits
from quicksilver.sources.text import Tokenizer

if TYPE_CHECKING:
    import uvicorn

    from quicksilver.serve.gateway import Gateway

log = logging.getLogger("quicksilver.serve")

LOOK_S = 0.05
"""Between two looks at the connections that are left."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how a server is reached."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    insecure: bool = False
    """Whether others may reach it without a key."""
    replace: bool = False
    """Whether it takes the port over from the server that is there, if one is."""
    replaceable: bool = True
    """Whether another may take the port over from it."""
    grace_s: int = 30
    """Seconds that requests in flight have when it is told to end."""


def serve(
    engine: str,
    artifact: Path,
    settings: Settings,
    place: Place,
    *,
    model: str | None = None,
    limits: Limits | None = None,
    say: Callable[[str], None] = log.info,
) -> None:
    """Serve an artefact until SIGTERM or Ctrl-C; prints {"port": N} on stdout once it is bound.

    `model` is the name in the API, by default the artefact's; `limits` are those of the settings if not given; `say` hears
    what is going on. Raises BadInputError for what can't be served, EngineError if the engine fails to open it.
    """
    limits = limits or Limits(max_streams=settings.max_streams)
    predecessor = take_over(place.port) if place.replace and place.port else None
    with contextlib.closing(predecessor.listener if predecessor else _bind(place)) as listener:
        host, port = listener.getsockname()[:2]
        if not place.insecure and not limits.api_keys and not _loopback(host):
            raise BadInputError(
                f"{host} can be reached from other machines; set an API key, or add --insecure if that is meant."
            )
        # Before anything else is imported here: it takes the longest.
        backend = Backend(engine, artifact, settings)
        print(json.dumps({"port": port}), flush=True)
        # What native libraries print must not end up in a pipe that nobody reads.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        name, label = _described(artifact)
        meanwhile = " The server that is there goes on until then." if predecessor else ""
        say(f"Loading {label}; it will answer at {url} (GET /ready says when).{meanwhile} Ctrl-C ends it.")
        try:
            server = _Server(backend, artifact, listener, place, limits, model or name, say)
            asyncio.run(server.run(predecessor))
        finally:
            backend.close()


@dataclass
class _Server:
    """One run of the server."""

    backend: Backend
    artifact: Path
    listener: socket.socket
    place: Place
    limits: Limits
    model: str
    say: Callable[[str], None]
    begun: float = field(default_factory=time.monotonic)
    gateway: Gateway = field(init=False)
    http: uvicorn.Server = field(init=False)

    async def run(self, predecessor: Predecessor | None) -> None:
        """Load, take the place of a predecessor, and answer until told to end. Raises what loading raises."""
        from quicksilver.serve.gateway import Gateway

        names = [self.model]
        if predecessor is not None:
            names += [name for name in predecessor.names if name != self.model]
        self.gateway = Gateway(self.model, self.limits, aliases=names[1:])
        self.http = _http_server(self.gateway, self.place.grace_s)
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


def _http_server(gateway: Gateway, grace_s: int) -> uvicorn.Server:
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            gateway.app(),
            http="httptools",
            loop="asyncio",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=grace_s,
        )
    )


def _bind(place: Place) -> socket.socket:
    """Return a listening socket. Raises BadInputError if the port is taken."""
    try:
        family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
        listener = socket.create_server((place.host, place.port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        # create_server adds the address in brackets.
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0].lower()
        more = " No server that can be replaced was found there." if place.replace else ""
        raise BadInputError(f"Port {place.port} on {place.host} can't be used: {reason}.{more}") from error
    return listener


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _described(folder: Path) -> tuple[str, str]:
    """Return the name of the model in a folder, and what to call the folder."""
    if not (folder / RECIPE).is_file():
        return folder.resolve().name, str(folder)
    artifact = Artifact.open(folder)
    return artifact.model, f"{artifact.label} of {artifact.model}"
