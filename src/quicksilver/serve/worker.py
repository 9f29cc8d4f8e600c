"""The engine's process: `python -m quicksilver.serve.worker ENGINE ARTIFACT SETTINGS LOG_FORMAT FD`. It ends when its gateway does."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from quicksilver.errors import QuicksilverError, said
from quicksilver.nouns.engine import Burst, Decoder, DecoderStats
from quicksilver.nouns.settings import Settings
from quicksilver.serve.access import LogFormat, set_up_logs
from quicksilver.serve.backend import Cancel, Failed, News, Opened, Submit, unopened

log = logging.getLogger("quicksilver.serve")

LOOK_S = 0.25
"""Seconds after which a change in what the decoder is doing is told without any burst."""
SWITCH_S = 0.001
"""Seconds that a thread may keep the interpreter while others wait: a burst is on its way before the next step."""


class Mailbox:
    """Carries bursts from the decoder's thread to the gateway, all that came in one step together."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._bursts: deque[tuple[int, Burst]] = deque()
        self._came = threading.Event()
        self._told = DecoderStats()

    def put(self, number: int, burst: Burst) -> None:
        """Send a burst. Doesn't wait."""
        self._bursts.append((number, burst))
        self._came.set()

    def send(self, decoder: Decoder) -> None:
        """Send what is put in, until nobody listens. Runs on a thread of its own."""
        while True:
            self._came.wait(LOOK_S)
            self._came.clear()
            bursts = [self._bursts.popleft() for _ in range(len(self._bursts))]
            stats = decoder.stats()
            if bursts or stats != self._told:
                self._told = stats
                try:
                    self._connection.send(News(bursts, stats))
                except OSError:
                    return  # the gateway has gone, and the main thread ends for it


class Orders:
    """Passes the gateway's orders on to the decoder, and knows its sequences by the gateway's numbers."""

    def __init__(self, decoder: Decoder, mailbox: Mailbox) -> None:
        self._decoder = decoder
        self._mailbox = mailbox
        self._lock = threading.Lock()
        self._numbers: dict[int, int | None] = {}
        """The decoder's number of each sequence; None until it has one."""
        self._cancelled: set[int] = set()
        """Those that were cancelled before they had one."""
        self._pool = ThreadPoolExecutor(2, "grammar")

    def obey(self, order: Submit | Cancel) -> None:
        """Do as the gateway says. Doesn't wait for a grammar to be compiled."""
        if isinstance(order, Cancel):
            self._cancel(order.number)
            return
        with self._lock:
            self._numbers[order.number] = None
        if order.request.grammar is None:
            self._submit(order)
        else:
            self._pool.submit(self._submit, order)

    def _submit(self, order: Submit) -> None:
        number = order.number

        def deliver(burst: Burst) -> None:
            if burst.finish is not None:
                with self._lock:
                    self._numbers.pop(number, None)
                    self._cancelled.discard(number)
            self._mailbox.put(number, burst)

        try:
            its = self._decoder.submit(order.request, deliver)
        except ValueError as error:
            deliver(Burst([], finish="refused", error=str(error)))
            return
        except Exception as error:
            log.exception("The engine failed to take a sequence in.")
            deliver(Burst([], finish="error", error=said(error)))
            return
        with self._lock:
            if number in self._numbers:
                self._numbers[number] = its
            cancelled = number in self._cancelled
            self._cancelled.discard(number)
        if cancelled:
            self._decoder.cancel(its)

    def _cancel(self, number: int) -> None:
        with self._lock:
            its = self._numbers.get(number)
            if its is None and number in self._numbers:
                self._cancelled.add(number)
        if its is not None:
            self._decoder.cancel(its)


def main() -> None:
    """Decode for the gateway at the other end of the socket until it hangs up."""
    engine, artifact, settings, log_format, handle = sys.argv[1:]
    set_up_logs(cast("LogFormat", log_format))
    # Those are the gateway's to obey: what is in flight is finished first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_S)
    with Connection(int(handle)) as connection:
        try:
            decoder = _open(engine, Path(artifact), Settings.model_validate_json(settings))
        except ValidationError:
            _leave()  # the gateway checks them, too, and says so
        except QuicksilverError as error:
            connection.send(Failed(error))
            _leave()
        mailbox = Mailbox(connection)
        orders = Orders(decoder, mailbox)
        threading.Thread(target=mailbox.send, args=(decoder,), name="mailbox", daemon=True).start()
        connection.send(Opened())
        try:
            while True:
                orders.obey(connection.recv())
        except (EOFError, OSError):
            _leave()


def _open(engine: str, artifact: Path, settings: Settings) -> Decoder:
    """Open an artefact. Raises BadInputError or EngineError."""
    from quicksilver.engines import find

    try:
        return find(engine).open(artifact, settings)
    except QuicksilverError:
        raise
    except Exception as error:
        log.info("The engine failed to open the artefact.", exc_info=True)
        raise unopened(artifact, error) from error


def _leave() -> None:
    """End at once: a thread inside the engine would hold up a normal exit, and nobody waits for what it does."""
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
