"""The server's process: `python -m quicksilver.serve --engine NAME --artifact FOLDER`."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quicksilver.errors import BadInputError, QuicksilverError
from quicksilver.nouns import Artifact, Settings
from quicksilver.nouns.artifact import RECIPE
from quicksilver.serve.backend import Backend, unopened
from quicksilver.serve.limits import Limits
from quicksilver.sources.text import Tokenizer

log = logging.getLogger("quicksilver.serve")


def main() -> int:
    """Serve until SIGTERM, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m quicksilver.serve", description=__doc__)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--artifact", required=True, type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default=8000, type=int, help="0 takes a free one; the first line of stdout names it")
    parser.add_argument("--settings", default="{}", help="engine settings, JSON")
    parser.add_argument("--model-name", help="the name in the API; by default the artefact's")
    parser.add_argument("--grace", default=30, type=int, help="seconds that SIGTERM leaves to requests in flight")
    parser.add_argument("--insecure", action="store_true", help="allow a host that others can reach")
    parser.add_argument("--with-parent", action="store_true", help="end when stdin does")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    if options.with_parent:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        try:
            settings = Settings.model_validate_json(options.settings)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BadInputError(f"The engine settings can't be used: {where} {first['msg']}.") from error
        serve(
            options.engine,
            options.artifact,
            settings,
            host=options.host,
            port=options.port,
            model=options.model_name,
            grace_s=options.grace,
            insecure=options.insecure,
        )
    except QuicksilverError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # A thread that is still inside the engine would hold up a normal exit.
        os._exit(error.exit_code)
    return 0


def serve(
    engine: str,
    artifact: Path,
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    model: str | None = None,
    grace_s: int = 30,
    insecure: bool = False,
    limits: Limits | None = None,
) -> None:
    """Serve an artefact in this process until SIGTERM or Ctrl-C; prints {"port": N} on stdout once it is bound.

    `limits` are those of the settings if not given. Raises BadInputError for what can't be served, EngineError if the engine fails to open it.
    """
    limits = limits or Limits(max_streams=settings.max_streams)
    if not insecure and not limits.api_keys and not _loopback(host):
        raise BadInputError(
            f"{host} can be reached from other machines; set an API key, or add --insecure if that is meant."
        )
    with _bind(host, port) as listener:
        # Before anything else is imported here: it takes the longest.
        backend = Backend(engine, artifact, settings)
        print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
        # What native libraries print must not end up in a pipe that nobody reads.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            asyncio.run(_serve(backend, artifact, listener, limits, model=model, grace_s=grace_s))
        finally:
            backend.close()


async def _serve(
    backend: Backend,
    artifact: Path,
    listener: socket.socket,
    limits: Limits,
    *,
    model: str | None,
    grace_s: int,
) -> None:
    import uvicorn

    from quicksilver.serve.gateway import Gateway

    gateway = Gateway(model or _model_name(artifact), limits)
    server = uvicorn.Server(
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

    def end(*_: object) -> None:
        gateway.drain()
        server.should_exit = True

    # Until uvicorn takes the signals; and when it is done it raises them again, which must not end us before our turn.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[Tokenizer] = loop.create_future()
    threading.Thread(target=_load, args=(backend, artifact, loop, loaded), daemon=True).start()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    waiting: set[asyncio.Future[Any]] = {loaded, serving}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if not loaded.done():  # told to end while it loads
        await serving
        return
    failure = loaded.exception()
    if failure is not None:
        server.should_exit = True
        await serving
        raise failure
    gateway.attach(loaded.result(), backend)
    try:
        await serving
    finally:
        gateway.close()


def _load(backend: Backend, artifact: Path, loop: asyncio.AbstractEventLoop, loaded: asyncio.Future[Tokenizer]) -> None:
    """Wait for tokenizer and engine, on a thread of its own, so that /health answers meanwhile."""
    try:
        tokenizer = Tokenizer(artifact)
        backend.wait()
    except QuicksilverError as error:
        loop.call_soon_threadsafe(loaded.set_exception, error)
    except Exception as error:
        log.info("The tokenizer can't be opened.", exc_info=True)
        loop.call_soon_threadsafe(loaded.set_exception, unopened(artifact, error))
    else:
        loop.call_soon_threadsafe(loaded.set_result, tokenizer)


def _bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises BadInputError if the port is taken."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        # create_server adds the address in brackets.
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0].lower()
        raise BadInputError(f"Port {port} on {host} can't be used: {reason}.") from error
    return listener


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _model_name(artifact: Path) -> str:
    return Artifact.open(artifact).model if (artifact / RECIPE).is_file() else artifact.resolve().name


def _end_with_stdin() -> None:
    """Die with the parent, however it ends: its end of the pipe closes with it."""
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
