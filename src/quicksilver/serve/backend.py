"""Backend: a decoder in a process of its own. Its work never holds up the gateway, and its death is not the server's."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from quicksilver.errors import EngineError, QuicksilverError, said
from quicksilver.nouns.engine import Burst, Decoder, DecoderStats, Request
from quicksilver.serve.access import LogFormat

log = logging.getLogger("quicksilver.serve")

LONGEST_PAUSE_S = 30.0
"""Between two starts of an engine that keeps dying."""
STEADY_S = 60.0
"""An engine that lived as long as this is started again without a pause."""
CLOSING_S = 10.0
"""Seconds that an engine has to end by itself."""


@dataclass(slots=True)
class Submit:
    """To the worker: decode a sequence. The numbers are the gateway's."""

    number: int
    request: Request


@dataclass(slots=True)
class Cancel:
    """To the worker: stop a sequence."""

    number: int


@dataclass(slots=True)
class Opened:
    """From the worker: the artefact is open."""


@dataclass(slots=True)
class Failed:
    """From the worker, for the last time: the artefact can't be opened."""

    error: QuicksilverError


@dataclass(slots=True)
class News:
    """From the worker: what its sequences got since the last time, and what it is doing now."""

    bursts: list[tuple[int, Burst]]
    stats: DecoderStats


@dataclass(slots=True)
class _Worker:
    """One life of the process."""

    process: subprocess.Popen[bytes]
    connection: Connection
    outbox: SimpleQueue[Submit | Cancel | None] = field(default_factory=SimpleQueue)
    sender: threading.Thread = field(init=False)
    """The event loop must not wait for a worker that is slow to read."""

    def __post_init__(self) -> None:
        self.sender = threading.Thread(target=self._send, name="backend-outbox", daemon=True)
        self.sender.start()

    def _send(self) -> None:
        """Send what is put into the outbox, until None comes or nobody listens."""
        try:
            while (message := self.outbox.get()) is not None:
                self.connection.send(message)
            with socket.socket(fileno=os.dup(self.connection.fileno())) as hung_up:
                hung_up.shutdown(socket.SHUT_WR)
        except OSError:
            return  # who listens hears of it, too, and says so

    def ended(self) -> str:
        """Wait for the end of the process and say how it ended."""
        self.outbox.put(None)
        self.sender.join()
        self.connection.close()
        code = self.process.wait()
        if code < 0:
            why = " (perhaps there was not enough memory)" if code == -signal.SIGKILL else ""
            return f"by {signal.Signals(-code).name}{why}"
        return f"with exit code {code}"


class Backend(Decoder):
    """Decodes in a process of its own, `python -m quicksilver.serve.worker`, which is started again when it dies.

    Sequences that were in flight then end as `lost`, and what the engine refuses ends as `refused`: neither can be said
    when they are submitted. `settings` are JSON, which the process checks: nothing that takes long is imported to start it.
    """

    def __init__(self, engine: str, artifact: Path, settings: str, log_format: LogFormat = "text") -> None:
        worker = [sys.executable, "-m", "quicksilver.serve.worker"]
        self._command = [*worker, engine, str(artifact), settings, log_format]
        self._numbers = count()
        self._flying: dict[int, Callable[[Burst], None]] = {}
        self._stats = DecoderStats()
        self._lock = threading.Lock()
        self._ready = False
        self._opened: Future[None] = Future()
        self._closing = threading.Event()
        self._worker = self._start()
        self._thread = threading.Thread(target=self._supervise, name="backend", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        return self._ready

    @property
    def pid(self) -> int:
        """The engine's process."""
        return self._worker.process.pid

    def wait(self) -> None:
        """Wait until the artefact is open. Raises BadInputError or EngineError if it can't be opened."""
        self._opened.result()

    def submit(self, request: Request, deliver: Callable[[Burst], None]) -> int:
        with self._lock:
            if not self._ready:
                raise EngineError("The engine has ended and is being started again")
            number = next(self._numbers)
            self._flying[number] = deliver
            self._worker.outbox.put(Submit(number, request))
        return number

    def cancel(self, number: int) -> None:
        with self._lock:
            if number in self._flying:
                self._worker.outbox.put(Cancel(number))

    def stats(self) -> DecoderStats:
        return self._stats

    def close(self) -> None:
        self._closing.set()
        self._worker.outbox.put(None)
        if self._ready:  # one that is still loading doesn't listen
            self._thread.join(CLOSING_S)
        if self._thread.is_alive():
            self._worker.process.kill()
            self._thread.join()

    def _start(self) -> _Worker:
        """Start the process. Raises EngineError if the system has no room for one."""
        ours, its = socket.socketpair()
        try:
            process = subprocess.Popen(
                [*self._command, str(its.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),  # what native libraries print is no data
                pass_fds=[its.fileno()],
            )
        except OSError as error:
            ours.close()
            raise EngineError(f"The engine's process could not be started: {error.strerror}.") from error
        finally:
            its.close()
        return _Worker(process, Connection(ours.detach()))

    def _supervise(self) -> None:
        """Hand on what the worker says, and start another when it ends."""
        deaths = 0
        while True:
            begun = time.monotonic()
            if self._closing.is_set():  # it was while this one was started
                self._worker.outbox.put(None)
            error = self._listen()
            self._drop(Burst([], finish="cancelled" if self._closing.is_set() else "lost"))
            how = self._worker.ended()
            if self._closing.is_set():
                return
            failure = error or EngineError(f"The engine ended {how}.")
            if not self._opened.done():
                self._opened.set_exception(failure)
                return
            deaths = 1 if time.monotonic() - begun > STEADY_S else deaths + 1
            if not self._start_again(str(failure), deaths):
                return

    def _start_again(self, why: str, deaths: int) -> bool:
        """Start a worker after a pause that grows with each death; return False if the backend is closed meanwhile."""
        while True:
            pause_s = 0.0 if deaths == 1 else min(0.5 * 2 ** min(deaths - 2, 10), LONGEST_PAUSE_S)
            log.error("%s It is started again%s.", why, f" in {pause_s:g} s" if pause_s else "")
            if self._closing.wait(pause_s):
                return False
            try:
                self._worker = self._start()
            except EngineError as error:
                why, deaths = str(error), deaths + 1
            else:
                return True

    def _listen(self) -> QuicksilverError | None:
        """Deliver what the worker says until it ends; return its last words."""
        while True:
            try:
                message: Opened | Failed | News = self._worker.connection.recv()
            except (EOFError, OSError):
                return None
            if isinstance(message, News):
                self._stats = message.stats
                for number, burst in message.bursts:
                    self._deliver(number, burst)
            elif isinstance(message, Opened):
                self._ready = True
                if not self._opened.done():
                    self._opened.set_result(None)
            else:
                return message.error

    def _deliver(self, number: int, burst: Burst) -> None:
        deliver = self._flying.get(number)
        if deliver is None:
            return
        if burst.finish is not None:
            with self._lock:
                del self._flying[number]
        deliver(burst)

    def _drop(self, burst: Burst) -> None:
        """End all that is in flight, and take nothing more."""
        with self._lock:
            self._ready = False
            flying, self._flying = self._flying, {}
            self._stats = DecoderStats()
        for deliver in flying.values():
            deliver(burst)


def unopened(artifact: Path, error: Exception) -> EngineError:
    """Return what to say of an artefact that a library failed to open."""
    return EngineError(
        f"The engine could not open {artifact}: {said(error)}. `quicksilver store verify` says whether files are damaged."
    )
