"""Handover: a server gives its listening socket to the one that replaces it, so that no connection is refused or lost.

The one that serves waits at a Unix socket; whoever connects is handed the listening socket and the names that the models
go by. When the successor accepts connections it says so, and the other one stops accepting: connections that wait to be
accepted belong to the socket, not to a process. A successor that fails before that changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

log = logging.getLogger("quicksilver.serve")

TAKEN = b"taken"
MESSAGE_BYTES = 65_536


class Predecessor:
    """The server that is to be replaced, and what it gave."""

    def __init__(self, line: socket.socket, listener: socket.socket, names: Sequence[str]) -> None:
        self._line = line
        self.listener = listener
        self.names = names
        """What its clients call the model."""

    def retire(self) -> None:
        """Tell it that connections are accepted here now."""
        with self._line, contextlib.suppress(OSError):  # if it has ended meanwhile, all the better
            self._line.sendall(TAKEN)


def take_over(port: int) -> Predecessor | None:
    """Return what the server on a port hands over; None if no server of this user's is there."""
    path = _path(port)
    if path is None:
        return None
    line = socket.socket(socket.AF_UNIX)
    try:
        line.connect(str(path))
        message, handles, _, _ = socket.recv_fds(line, MESSAGE_BYTES, 1)
    except OSError:
        line.close()
        return None
    if not handles:
        line.close()
        return None
    return Predecessor(line, socket.socket(fileno=handles[0]), json.loads(message)["names"])


@contextlib.asynccontextmanager
async def offered(
    listener: socket.socket, names: Sequence[str], leave: Callable[[], Awaitable[None]]
) -> AsyncIterator[None]:
    """Hand over to whoever asks while the block runs; `leave` is called when a successor has taken the listening socket over."""
    port: int = listener.getsockname()[1]
    path = _path(port)
    if path is None:
        yield
        return
    with socket.socket(socket.AF_UNIX) as control:
        control.setblocking(False)
        # A server that was killed leaves its path; renaming takes it over at once.
        own = path.with_suffix(f".{os.getpid()}")
        own.unlink(missing_ok=True)
        control.bind(str(own))
        control.listen()
        inode = own.stat().st_ino
        own.rename(path)
        waiting = asyncio.create_task(_hand_over(control, listener, names, leave))
        try:
            yield
        finally:
            waiting.cancel()
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == inode:
                    path.unlink()


async def _hand_over(
    control: socket.socket, listener: socket.socket, names: Sequence[str], leave: Callable[[], Awaitable[None]]
) -> None:
    loop = asyncio.get_running_loop()
    said = json.dumps({"names": list(names)}).encode()
    while True:
        line, _ = await loop.sock_accept(control)
        with line:
            try:
                socket.send_fds(line, [said], [listener.fileno()])
                taken = await loop.sock_recv(line, len(TAKEN)) == TAKEN
            except OSError:
                taken = False
        if taken:
            await leave()
            return
        log.warning("A server that was to replace this one gave up.")


def _path(port: int) -> Path | None:
    """Return where the server on a port can be asked; None where the system has no such place, or it isn't safe."""
    if not hasattr(socket, "send_fds"):
        return None
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime or tempfile.gettempdir()) / f"quicksilver-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        log.warning("%s can't be used, so no server can replace this one: %s.", folder, error.strerror)
        return None
    # Whoever can write there could take the connections.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        log.warning("%s belongs to others, or they can write there, so no server can replace this one.", folder)
        return None
    return folder / f"serve-{port}.sock"
