"""Connections: uvicorn's, with an end to everything that it would wait for without one."""

from __future__ import annotations

import asyncio
import json
import uuid
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from quicksilver.serve.access import record
from quicksilver.serve.asgi import DRAIN_BODY
from quicksilver.serve.limits import Limits
from quicksilver.serve.wire import ApiError

MAX_HEAD = 65_536
"""Bytes of a request before its body."""
MAX_REQUEST = DRAIN_BODY + MAX_HEAD
"""Bytes of a request in all, what frames the chunks of its body included."""


def make_server(app: ASGIApp, limits: Limits, *, grace_s: int | None = None) -> uvicorn.Server:
    """Return an HTTP server for the application; when told to end it leaves `grace_s` to requests in flight."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=cast("type[asyncio.Protocol]", partial(Connection, limits=limits)),
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


class Connection(HttpToolsProtocol):
    """One client's connection: it has `client_timeout_s` to send a whole request, and to take what it is sent."""

    def __init__(self, *args: Any, limits: Limits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patience_s = limits.client_timeout_s
        self._in_head = True
        self._received = 0
        """Bytes of the request that comes in."""
        self._late: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        super().connection_lost(exc)
        for timer in (self._late, self._stuck):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Take in a part of a request."""
        self._wait()
        self._received += len(data)
        super().data_received(data)
        if self._received > (MAX_HEAD if self._in_head else MAX_REQUEST) and not self.transport.is_closing():
            self._refuse(ApiError(431, f"The request's head is larger than {MAX_HEAD} bytes.", code="head_too_large"))

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of a request, which may have come behind another one."""
        self._wait()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start on a request whose head is there."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that a request is whole."""
        self._in_head = True
        self._received = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None
        super().on_message_complete()

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self._patience_s, self._give_up)

    def _give_up(self) -> None:
        self._late = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait()  # an answer is under way, or its handler waits for the body and says so itself
        elif self._in_head and self._received:
            self._refuse(
                ApiError(408, f"The request took longer than {self._patience_s:g} s.", code="request_too_slow")
            )
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(ApiError(400, "The request is not HTTP/1.1.", code="invalid_http"))

    def _refuse(self, error: ApiError) -> None:
        """Answer what doesn't reach the application, and close."""
        if self.cycle is None or self.cycle.response_complete:  # else it would end up inside another answer
            body, number = json.dumps(error.body()).encode(), uuid.uuid4().hex
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
            self.transport.write(STATUS_LINE[error.status] + f"{head}x-request-id: {number}\r\n\r\n".encode() + body)
            client = self.client[0] if self.client else None
            record(request_id=number, client=client, method=None, path=None, status=error.status, duration_ms=0, error=error.code)  # fmt: skip
        self.transport.close()
        self._watch_rest()

    def pause_writing(self) -> None:
        """Hold answers back: the client doesn't read."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """Send on: the client has read."""
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def on_response_complete(self) -> None:
        """Note that an answer is whole."""
        super().on_response_complete()
        self._watch_rest()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()
        self._watch_rest()

    def _watch_rest(self) -> None:
        # A closed connection waits for its client to read the rest, for ever if need be.
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._watch()

    def _watch(self) -> None:
        if self._stuck is None:
            self._stuck = self.loop.call_later(self._patience_s, self.transport.abort)
