"""The server: an artefact's engine behind the gateway, from its start until it is told to end or is replaced."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quicksilver.errors import BadInputError
from quicksilver.serve.access import LogFormat, set_up_logs
from quicksilver.serve.backend import Backend

if TYPE_CHECKING:
    from quicksilver.nouns.settings import Settings
    from quicksilver.serve.handover import Predecessor
    from quicksilver.serve.limits import Limits

log = logging.getLogger("quicksilver.serve")


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
    settings: str,
    place: Place,
    *,
    model: str | None = None,
    limits: Limits | None = None,
    say: Callable[[str], None] = log.info,
    log_format: LogFormat = "none",
) -> None:
    """Serve an artefact until SIGTERM or Ctrl-C; prints {"port": N} on stdout once it is bound.

    `settings` are JSON; `model` is the name in the API, by default the artefact's; `limits` are those of the settings if not given; `say` hears
    what is going on, and `log_format` is that of stderr. Raises BadInputError for what can't be served, EngineError if the engine fails to open it.
    """
    set_up_logs(log_format)
    predecessor = _predecessor(place)
    with contextlib.closing(predecessor.listener if predecessor else _bind(place)) as listener:
        host, port = listener.getsockname()[:2]
        if not place.insecure and not (limits and limits.api_keys) and not _loopback(host):
            raise BadInputError(
                f"{host} can be reached from other machines; set an API key, or add --insecure if that is meant."
            )
        # It takes the longest: nearly all that is needed here is imported while it loads.
        backend = Backend(engine, artifact, settings, log_format)
        print(json.dumps({"port": port}), flush=True)
        # What native libraries print must not end up in a pipe that nobody reads.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            import asyncio

            from quicksilver.serve.limits import Limits
            from quicksilver.serve.running import Server

            limits = limits or Limits(max_streams=_checked(settings).max_streams)
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
            name, label = _described(artifact)
            meanwhile = " The server that is there goes on until then." if predecessor else ""
            say(f"Loading {label}; it will answer at {url} (GET /ready says when).{meanwhile} Ctrl-C ends it.")
            server = Server(backend, artifact, listener, place, limits, model or name, say)
            asyncio.run(server.run(predecessor))
        finally:
            backend.close()


def _predecessor(place: Place) -> Predecessor | None:
    if not (place.replace and place.port):
        return None
    from quicksilver.serve.handover import take_over

    return take_over(place.port)


def _bind(place: Place) -> socket.socket:
    """Return a listening socket. Raises BadInputError if the port is taken."""
    try:
        family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
        listener = socket.create_server((place.host, place.port), family=family, backlog=2048)
        # Accepted sockets inherit it. asyncio sets it only on those that name their protocol, which these don't: without it
        # the first token of a client that keeps its connection waits 40 ms for an acknowledgement (Nagle 1984, RFC 896).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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


def _checked(settings: str) -> Settings:
    """Return engine settings read from JSON. Raises BadInputError."""
    from pydantic import ValidationError

    from quicksilver.nouns.settings import Settings

    try:
        return Settings.model_validate_json(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInputError(f"The engine settings can't be used: {where} {first['msg']}.") from error


def _described(folder: Path) -> tuple[str, str]:
    """Return the name of the model in a folder, and what to call the folder."""
    from quicksilver.nouns.artifact import RECIPE, Artifact

    if not (folder / RECIPE).is_file():
        return folder.resolve().name, str(folder)
    artifact = Artifact.open(folder)
    return artifact.model, f"{artifact.label} of {artifact.model}"
