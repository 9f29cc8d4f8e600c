"""Start an engine's server in a process of its own, know when it is ready, and never leave it behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns import Command, Endpoint, Settings

HOST = "127.0.0.1"
GUARD = Path(__file__).with_name("guard.py")
POLL_S = 0.02
GRACE_S = 10
"""Seconds between SIGTERM and SIGKILL."""
DYING_S = 0.5
"""Seconds that a broken connection may be ahead of the end of the process."""
PROMPT = "The capital of France is"
FIRST_TOKEN_TIMEOUT_S = 60
LOG_TAIL = 16_384
"""Bytes of a log that are searched for why its server ended."""
LONG_LOG_TAIL = 262_144
"""The same of another program, which may print the whole traceback of each of its processes."""
# A proxy that the environment names is not for this machine.
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def serve_process(
    engine: str,
    artifact: Path,
    settings: Settings,
    *,
    port: int = 0,
    log: Path | None = None,
    python: str = sys.executable,
    ready_timeout_s: float = 300,
) -> Iterator[Endpoint]:
    """Serve an artefact by `python -m quicksilver.serve` on loopback; port 0 takes a free one.

    The server ends with the context, and with this process however that ends. Raises BadInputError if the port is
    taken, EngineError if the server can't be started, isn't ready in time, or died before the context ended.
    """
    _check_port(port)
    command = [python, "-m", "quicksilver.serve", "--engine", engine, "--artifact", str(artifact), "--port", str(port)]
    command += ["--settings", settings.model_dump_json(), "--grace", str(GRACE_S - 2), "--with-parent"]
    begun = time.monotonic()
    with _open_log(log) as output, _start(command, output) as server:
        deadline = begun + ready_timeout_s
        url = f"http://{HOST}:{_read_port(server, deadline)}"
        _wait_ready(server, url, deadline)
        with _watched(server, url, begun) as endpoint:
            yield endpoint


@contextmanager
def serve_command(
    make: Callable[[int], Command],
    *,
    host: str = HOST,
    port: int = 0,
    log: Path | None = None,
    ready_timeout_s: float | None = None,
    ready: str = "/health",
) -> Iterator[Endpoint]:
    """Serve by another program's own OpenAI server; `make` says how that is started for a port.

    It is ready when it answers GET `ready` with success (503 means not yet), for which it has the command's time or `ready_timeout_s`. The server ends with the context, and with this
    process however that ends. Raises as `make` and `serve_process` do.
    """
    _check_port(port, host)
    port = port or free_port()
    command = make(port)
    begun = time.monotonic()
    guarded = [sys.executable, "-I", "-S", str(GUARD), *command.words]
    with _open_log(log) as output, _start(guarded, output, command=command) as server:
        url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '') else host}:{port}"  # noqa: S104
        _wait_ready(server, url, begun + (ready_timeout_s or command.ready_timeout_s), ready)
        with _watched(server, url, begun) as endpoint:
            yield endpoint


def free_port() -> int:
    """Return a port of loopback that nobody listens at, for a server that can't choose one by itself."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _watched(server: _Server, url: str, begun: float) -> Iterator[Endpoint]:
    """Yield the endpoint of a server that is ready. Raises EngineError if it dies before the context ends."""
    load_s = time.monotonic() - begun
    try:
        yield Endpoint(
            url=f"{url}/v1",
            model=_first_model(url),
            pid=server.process.pid,
            load_s=load_s,
            begun=begun,
            peak_memory_mb=_peak_memory_of(server.process),
            alive=lambda: server.process.poll() is None,
        )
    except Exception as error:
        # What went wrong may be that the server died (or is about to be gone): its own words say more.
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(DYING_S)
            raise server.death() from error
        raise
    if server.process.poll() is not None:
        raise server.death()


def cold_start_s(endpoint: Endpoint) -> float | None:
    """Ask a server that has just started for a token, and return the seconds from its process's start until that came.

    None for a server that somebody else started. Raises EngineError if it doesn't answer.
    """
    if endpoint.begun is None:
        return None
    body = json.dumps({"model": endpoint.model, "prompt": PROMPT, "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{endpoint.url}/completions", body, {"Content-Type": "application/json"})
    try:
        with LOCAL.open(request, timeout=FIRST_TOKEN_TIMEOUT_S) as answer:
            answer.read()
    except OSError as error:
        raise EngineError(f"The server is ready, but gives no first token: {error}.") from error
    return time.monotonic() - endpoint.begun


@dataclass(slots=True)
class _Server:
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    log_start: int
    command: Command | None = None

    def death(self) -> EngineError:
        """Say in one sentence how it ended: the last line of its log that means something, or the signal."""
        code = self.process.wait()
        tail = LOG_TAIL if self.command is None else LONG_LOG_TAIL
        self.log.seek(max(self.log_start, self.log.seek(0, os.SEEK_END) - tail))
        lines = [line.strip() for line in self.log.read().decode(errors="replace").splitlines()]
        # Without letters it is a rule, a caret line of a traceback or an empty line.
        telling = [line for line in lines if re.search(r"[A-Za-z]{2}", line)]
        last = telling[-1] if telling else ""
        if last.startswith("error: "):
            return EngineError(last.removeprefix("error: "))
        if self.command is not None and (why := self.command.explain(telling)):
            return EngineError(why)
        if code < 0:
            why = " (perhaps there was not enough memory)" if code == -signal.SIGKILL else ""
            return EngineError(f"The server was ended by {signal.Signals(-code).name}{why}.")
        how = f"The server ended with exit code {code}"
        return EngineError(f"{how}: {last.rstrip('.')}." if last else f"{how}.")


def _check_port(port: int, host: str = HOST) -> None:
    if port == 0:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
            raise BadInputError(f"Port {port} on {host} can't be used: {reason}.") from error


@contextmanager
def _open_log(log: Path | None) -> Iterator[IO[bytes]]:
    if log is None:
        with tempfile.TemporaryFile("a+b") as output:
            yield output
        return
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("a+b")
    except OSError as error:
        raise BadInputError(f"The log {log} can't be written: {error.strerror}.") from error
    with output:
        yield output


@contextmanager
def _start(words: Sequence[str], log: IO[bytes], *, command: Command | None = None) -> Iterator[_Server]:
    """Run a server until the context ends, and then end it and all that it started: SIGTERM, later SIGKILL.

    The stdout of another program's `command` goes into its log: it doesn't talk to us.
    """
    start = log.seek(0, os.SEEK_END)
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if command is None else log,
            stderr=log,
            env=None if command is None else {**os.environ, **command.environment},
            start_new_session=True,
        )
    except OSError as error:
        raise EngineError(f"The server could not be started with {words[0]}: {error.strerror}.") from error
    try:
        yield _Server(process, log, start, command)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    finally:
        # After a failure nothing in flight is worth waiting for.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _read_port(server: _Server, deadline: float) -> int:
    """Return the port that the server names on the first line of its stdout."""
    pipe = server.process.stdout
    assert pipe is not None
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise EngineError("The server did not start in time.")
            part = os.read(pipe.fileno(), 1)
            if not part:
                raise server.death()
            line += part
    port: int = json.loads(line)["port"]
    return port


def _wait_ready(server: _Server, url: str, deadline: float, path: str = "/health") -> None:
    while server.process.poll() is None:
        try:
            with LOCAL.open(url + path, timeout=5):
                return
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise EngineError(f"The server answers {error.code} to {path}.") from error
        except OSError:
            pass  # not listening yet, or dying: the next turn tells which
        if time.monotonic() > deadline:
            raise EngineError("The server was not ready in time.")
        time.sleep(POLL_S)
    raise server.death()


def _first_model(url: str) -> str:
    with LOCAL.open(f"{url}/v1/models", timeout=30) as response:
        model: str = json.load(response)["data"][0]["id"]
        return model


def _peak_memory_of(process: subprocess.Popen[bytes]) -> Callable[[], float | None]:
    """Return a function for the peak resident memory, MB, of a process and those it started; after its end it repeats the last figure."""
    last: float | None = None

    def read() -> float | None:
        nonlocal last
        now = _family_memory_mb(process.pid) if process.poll() is None else None
        last = last if now is None else max(now, last or 0.0)
        return last

    return read


def _family_memory_mb(pid: int) -> float | None:
    """Return the sum of the peak resident memory of a process and of those that it started, MB."""
    import psutil

    try:
        family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return None
    return sum(_peak_memory_mb(one) or 0.0 for one in family) or None


def _peak_memory_mb(pid: int) -> float | None:
    """Return a process's peak resident memory, MB (where the system doesn't keep it, what it has now)."""
    import psutil

    try:
        if Path("/proc/self/status").exists():
            found = re.search(
                r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"), re.MULTILINE
            )
            return int(found[1]) * 1024 / 1e6 if found else None
        resident: int = psutil.Process(pid).memory_info().rss
    except (psutil.Error, OSError):  # it has ended
        return None
    return resident / 1e6
