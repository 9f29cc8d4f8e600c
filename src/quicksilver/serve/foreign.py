"""Serve in the foreground by an engine's own server, which the gateway doesn't embed."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from quicksilver.engines.process import free_port, serve_command
from quicksilver.errors import EngineError
from quicksilver.nouns import Artifact, Command, Engine
from quicksilver.serve.server import Place, check_reach

LOOK_S = 0.2
"""Between two looks at whether the server still runs."""


def serve(
    engine: Engine, artifact: Artifact, place: Place, *, api_keys: Sequence[str] = (), say: Callable[[str], None]
) -> None:
    """Serve an artefact until SIGTERM or Ctrl-C; prints {"port": N} on stdout before it starts.

    Raises BadInputError for what can't be served, EngineError if the server doesn't start or dies.
    """
    check_reach(place, place.host, has_keys=bool(api_keys))
    port = place.port or free_port()

    def make(port: int) -> Command:
        command = engine.command(artifact.path, artifact.settings, host=place.host, port=port, api_keys=api_keys)
        if command is None:
            raise EngineError(f"The engine {engine.name} has no server of its own.")
        return command

    ended, loaded = threading.Event(), threading.Event()
    begun = time.monotonic()
    with _until_told(ended, loaded), ExitStack() as running:
        print(json.dumps({"port": port}), flush=True)
        say(
            f"Loading {artifact.label} of {artifact.model}; it will answer at http://{place.host}:{port}/v1. "
            "Ctrl-C ends it."
        )
        endpoint = running.enter_context(serve_command(make, host=place.host, port=port))
        loaded.set()
        say(f"Ready after {time.monotonic() - begun:.1f} s.")
        while endpoint.alive() and not ended.wait(LOOK_S):
            pass


@contextmanager
def _until_told(ended: threading.Event, loaded: threading.Event) -> Iterator[None]:
    """Set `ended` at SIGTERM and Ctrl-C; what isn't loaded yet, which may take minutes, is broken off."""

    def end(*_: object) -> None:
        ended.set()
        if not loaded.is_set():
            raise KeyboardInterrupt

    kept = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except KeyboardInterrupt:
        if not ended.is_set():
            raise
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
