"""An HTTP server on loopback whose answers a test scripts, piece by piece."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Exchange(BaseHTTPRequestHandler):
    """One request under way; a script reads `body` and answers through it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    body: dict[str, Any]

    def do_GET(self) -> None:
        self._serve({})

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _serve(self, body: dict[str, Any]) -> None:
        server = self.server
        assert isinstance(server, _Server)
        self.body = body
        server.state.seen.append((self.path, body, dict(self.headers)))
        script = server.state.routes.get(self.path)
        try:
            if script is None:
                self.answer(404, {"error": {"message": f"no {self.path} here"}})
            else:
                script(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def answer(self, status: int, document: Any, content_type: str = "application/json") -> None:
        data = document.encode() if isinstance(document, str) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def open_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send(self, data: bytes) -> None:
        """Send one chunk, as one write."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def close_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        pass


@dataclass
class State:
    """What the server answers and what it was asked."""

    url: str = ""
    routes: dict[str, Callable[[Exchange], None]] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for where, body, _ in self.seen if where == path]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    state: State


@contextmanager
def serving(**routes: Callable[[Exchange], None]) -> Iterator[State]:
    """Serve until the context ends; `v1_completions=…` scripts /v1/completions."""
    server = _Server(("127.0.0.1", 0), Exchange)
    paths = {
        "/" + name.replace("v1_", "v1/").replace("chat_completions", "chat/completions"): script
        for name, script in routes.items()
    }
    server.state = State(f"http://127.0.0.1:{server.server_address[1]}/v1", paths)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def event(text: str = "", *, chat: bool = False, finish: str | None = None, **more: Any) -> bytes:
    """One server-sent event with a piece of text."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    choice |= {"delta": {"content": text}} if chat else {"text": text}
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


def usage(prompt: int, completion: int) -> bytes:
    """The last event, which counts the tokens."""
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return b"data: " + json.dumps({"choices": [], "usage": counts}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def words(count: int, *, pause_s: float = 0.005, chat: bool = False) -> Callable[[Exchange], None]:
    """Script an answer of so many words, each in a chunk of its own after a pause."""

    def script(exchange: Exchange) -> None:
        exchange.open_stream()
        for number in range(count):
            time.sleep(pause_s)
            exchange.send(event(f"w{number} ", chat=chat, finish="stop" if number == count - 1 else None))
        exchange.send(usage(7, count))
        exchange.send(DONE)
        exchange.close_stream()

    return script
