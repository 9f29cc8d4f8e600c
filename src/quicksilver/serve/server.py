"""The server: an artefact's engine behind the gateway, from its start until it is told to end or is replaced."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
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
    from quicksilver.serve.recording import Recorder

log = logging.getLogger("quicksilver.serve")

USUAL_LIMIT_MB = 100.0
"""The size of a record."""


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


@dataclass(frozen=True, slots=True)
class Recording:
    """Where traffic is recorded, and how much of it."""

    path: Path
    prompts: bool = False
    """Whether those who ask consent to their prompts being kept."""
    answers: bool = False
    """Whether answers are kept as well; with the prompts only."""
    limit_mb: float = USUAL_LIMIT_MB
    """The size of the file at which recording stops, MB."""

    @property
    def notice(self) -> str:
        """What is recorded, in one sentence."""
        if not self.prompts:
            return "This server records when requests come and how long they and their answers are, but no text."
        what = "THE PROMPTS AND THE ANSWERS" if self.answers else "THE PROMPTS"
        return f"THIS SERVER RECORDS {what} OF ALL REQUESTS: whoever asks it has to know, and to consent."


def make_recording(path: Path | None, *, prompts: bool, answers: bool, limit_mb: float | None) -> Recording | None:
    """Return what to record, None without a path. Raises BadInputError for what makes no sense."""
    if path is None:
        if prompts or answers or limit_mb is not None:
            raise BadInputError("What is recorded needs a file to go to: add --record FILE.jsonl.")
        return None
    limit_mb = USUAL_LIMIT_MB if limit_mb is None else limit_mb
    if not limit_mb > 0:
        raise BadInputError(f"A record of {limit_mb:g} MB holds nothing; give --record-limit more than 0.")
    return Recording(path.absolute(), prompts=prompts or answers, answers=answers, limit_mb=limit_mb)


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
    recording: Recording | None = None,
) -> None:
    """Serve an artefact until SIGTERM or Ctrl-C; prints {"port": N} on stdout once it is bound.

    `settings` are JSON; `model` is the name in the API, by default the artefact's; `limits` are those of the settings if not given; `say` hears
    what is going on, `log_format` is that of stderr, and `recording` where traffic is recorded. Raises BadInputError for what can't be served,
    EngineError if the engine fails to open it.
    """
    set_up_logs(log_format)
    predecessor = _predecessor(place)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(predecessor.listener if predecessor else _bind(place)))
        host, port = listener.getsockname()[:2]
        check_reach(place, host, has_keys=bool(limits and limits.api_keys))
        recorder = stack.enter_context(_recorder(recording, say))
        # It takes the longest: nearly all that is needed here is imported while it loads.
        backend = stack.enter_context(contextlib.closing(Backend(engine, artifact, settings, log_format)))
        print(json.dumps({"port": port}), flush=True)
        # What native libraries print must not end up in a pipe that nobody reads.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        import asyncio

        from quicksilver.serve.limits import Limits
        from quicksilver.serve.running import Server

        limits = limits or Limits(max_streams=_checked(settings).max_streams)
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        name, label = _described(artifact)
        meanwhile = " The server that is there goes on until then." if predecessor else ""
        say(f"Loading {label}; it will answer at {url} (GET /ready says when).{meanwhile} Ctrl-C ends it.")
        server = Server(backend, artifact, listener, place, limits, model or name, say, recorder)
        asyncio.run(server.run(predecessor))


@contextlib.contextmanager
def _recorder(recording: Recording | None, say: Callable[[str], None]) -> Iterator[Recorder | None]:
    """Record traffic while the block runs, and say so."""
    if recording is None:
        yield None
        return
    from quicksilver.serve.recording import Recorder

    with contextlib.closing(Recorder(recording)) as recorder:
        # What is kept of people is said whatever the log's style, and whoever listens.
        (log.warning if recording.prompts else say)(f"{recording.notice} It goes to {recording.path}.")
        yield recorder


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


def check_reach(place: Place, host: str, *, has_keys: bool) -> None:
    """Raise BadInputError for a server that others could reach without a key, unless that is meant."""
    if not place.insecure and not has_keys and not _loopback(host):
        raise BadInputError(
            f"{host} can be reached from other machines; set an API key, or add --insecure if that is meant."
        )


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
