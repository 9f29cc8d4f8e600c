"""ASGI by hand: reading bodies, answering in JSON, and errors in OpenAI's shape wherever they are raised."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from quicksilver.serve.access import notes
from quicksilver.serve.wire import ApiError

log = logging.getLogger("quicksilver.serve")

MAX_BODY = 10_000_000
"""Bytes of a request's body."""
DRAIN_BODY = 10 * MAX_BODY
"""Bytes of a body that is too large which are read and dropped, so that its sender gets to read the answer."""

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]


class GoneError(Exception):
    """The client went away before its request was whole."""


class Endpoint:
    """A handler as an ASGI application: its ApiErrors become answers."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._handler(scope, receive, watched)
        except ApiError as error:
            notes(scope)["error"] = error.code
            await send_error(send, error)
        except GoneError:
            return
        except Exception:  # the last resort: no client sees a traceback, and the log has it
            log.exception("Request %s failed.", notes(scope)["request_id"])
            notes(scope)["error"] = "internal_error"
            if started:
                raise
            failed = ApiError(500, "The server failed to answer; its log says why.", code="internal_error")
            await send_error(send, failed)


async def send_error(send: Send, error: ApiError) -> None:
    """Answer with an error."""
    headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    if error.status in (408, 413):
        headers.append((b"connection", b"close"))
    await send_json(send, error.status, error.body(), headers)


async def send_json(send: Send, status: int, value: Any, headers: Headers = ()) -> None:
    """Answer with a JSON value."""
    await send_body(send, status, json.dumps(value).encode(), b"application/json", headers)


async def send_body(send: Send, status: int, body: bytes, kind: bytes, headers: Headers = ()) -> None:
    """Answer with a body of a content type."""
    said = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": said})
    await send({"type": "http.response.body", "body": body})


def closing(send: Send) -> Send:
    """Return a `send` that says that the connection ends with this answer."""

    async def wrapped(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await send(message)

    return wrapped


async def refuse(http: HttpRequest, error: Exception) -> JSONResponse:
    """Answer an unknown path or method in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    failed = ApiError(error.status_code, f"There is no {http.method} {http.url.path} here.", code="not_found")
    notes(http.scope)["error"] = failed.code
    return JSONResponse(failed.body(), error.status_code, headers=error.headers)


async def read_body(receive: Receive, timeout_s: float) -> bytes:
    """Return a request's body. Raises ApiError 413, once its sender has finished or sent far too much, and 408."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise GoneError
                part = message.get("body", b"")
                size += len(part)
                if size <= MAX_BODY:
                    parts.append(part)
                elif parts:
                    parts.clear()
                if not message.get("more_body", False) or size > DRAIN_BODY:
                    break
    except TimeoutError as error:
        raise ApiError(408, f"The body took longer than {timeout_s:g} s.", code="request_too_slow") from error
    if size > MAX_BODY:
        raise ApiError(413, f"The body is larger than {MAX_BODY} bytes.", code="request_too_large")
    return b"".join(parts)


@contextlib.asynccontextmanager
async def until_gone(receive: Receive, leave: Callable[[], None]) -> AsyncIterator[None]:
    """Call `leave` when the client goes away, and in any case at the end."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        leave()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        leave()


def header(scope: Scope, name: bytes) -> str | None:
    """Return a request header's value; None if it isn't there."""
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return next((value.decode("latin-1") for key, value in headers if key == name), None)
