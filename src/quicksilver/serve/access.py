"""Each request's number, and its line in the log: who asked what and how it went, never prompts or answers."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("quicksilver.access")

LogFormat = Literal["json", "text", "none"]
SANE_ID = re.compile(r"[!-~]{1,128}")
MAX_PATH = 256
"""Characters of a path that are logged."""


PROBES = ("/health", "/ready", "/metrics")
"""Paths that are asked every few seconds, and not logged."""


ARRIVED = "quicksilver.arrived_s"


def arrived_s(scope: Scope) -> float:
    """Return when a request's head had been read, by time.monotonic(): what the log, metrics and a record count from."""
    moment: float = scope[ARRIVED]
    return moment


def notes(scope: Scope) -> dict[str, Any]:
    """Return what the log will say of a request; its handlers add to it."""
    said: dict[str, Any] = scope["state"]
    return said


class Access:
    """Around an application: gives each answer its x-request-id, and logs the request once it is over."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ARRIVED] = began = time.monotonic()
        given = next((value.decode("latin-1") for key, value in scope["headers"] if key == b"x-request-id"), "")
        number = given if SANE_ID.fullmatch(given) else uuid.uuid4().hex
        stamp = (b"x-request-id", number.encode())
        status = None

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], stamp]}
            await send(message)

        scope["state"] = said = {"request_id": number}
        try:
            await self._app(scope, receive, stamped)
        finally:
            if status is None:
                said.setdefault("error", "client_gone")
            if scope["path"] not in PROBES:
                record(
                    # As it came: decoded it could hold the end of a line.
                    client=scope["client"][0] if scope["client"] else None,
                    method=scope["method"],
                    path=scope["raw_path"].decode("latin-1")[:MAX_PATH],
                    status=status,
                    duration_ms=round((time.monotonic() - began) * 1e3, 1),
                    **said,
                )


def record(**facts: Any) -> None:
    """Log a request."""
    log.info("%(client)s %(method)s %(path)s %(status)s in %(duration_ms)s ms, %(request_id)s", facts)


class JsonLines(logging.Formatter):
    """A record as one line of JSON, a traceback included; a request's facts are fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname.lower(), "logger": record.name}
        facts = record.args if isinstance(record.args, dict) else {"message": record.getMessage()}
        if record.exc_info:
            facts = facts | {"exception": self.formatException(record.exc_info)}
        return json.dumps(line | facts)


def set_up_logs(style: LogFormat) -> None:
    """Log to stderr, a line a request; `none` leaves warnings and failures, as text."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonLines() if style == "json" else text)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    log.setLevel(logging.WARNING if style == "none" else logging.INFO)
