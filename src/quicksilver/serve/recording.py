"""Recording: what an endpoint is asked, a line of JSON a request, in a file that is a workload. Texts only with consent."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import queue
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quicksilver.errors import BadInputError
from quicksilver.nouns import Request
from quicksilver.nouns.traffic import RecordedRequest
from quicksilver.serve.reply import Reply
from quicksilver.serve.server import Recording
from quicksilver.serve.wire import ChatRequest, CompletionRequest, Message

log = logging.getLogger("quicksilver.serve")

MOST_PENDING_BYTES = 64_000_000
"""What may wait to be written; what comes while so much does is left out of the record."""
LINE_BYTES = 1_000
"""What a request without its texts takes there, at most."""
MOST_LINES = 256
"""Lines written at once."""
CLOSING_S = 5.0
"""Seconds that the last lines have to be written when the server ends."""
CHUNK = 65_536
SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "ignore_eos",
    "logprobs",
    "top_logprobs",
    "echo",
)
"""Numbers and switches that say what is done for an answer, and nothing of what it is about."""


@dataclass(slots=True)
class _Entry:
    """A request that is over, on its way to the file."""

    arrived_s: float
    ended_s: float
    asked: ChatRequest | CompletionRequest
    model: str
    prompt_tokens: Sequence[int]
    reply: Reply | None
    error: str | None
    size: int


class Recorder:
    """Appends requests to a record from a thread of its own: no answer ever waits for a disk."""

    def __init__(self, recording: Recording) -> None:
        """Open the file, which is made if it isn't there. Raises BadInputError if it can't be written or isn't a record."""
        self.recording = recording
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pending = 0
        self.left_out = 0
        """Requests that the record lacks, as the disk was too slow."""
        self._stopped = False
        self._base_s: float | None = None
        self._handle, last_s = _open(recording.path)
        # A clock that is set meanwhile changes no distance between requests; one that was set back since the file was
        # written doesn't put them before those that are there.
        self._opened_s = max(time.time(), last_s)
        self._offset_s = self._opened_s - time.monotonic()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def note(
        self,
        asked: ChatRequest | CompletionRequest,
        requests: Sequence[Request],
        reply: Reply | None,
        *,
        model: str,
        arrived_s: float,
        error: str | None,
    ) -> None:
        """Record a request that is over, and came at `arrived_s` by time.monotonic(). Waits for nothing.

        `reply` is None if it was turned away, with the code `error`.
        """
        if self._stopped:
            return
        size = LINE_BYTES + (_characters(asked, reply) if self.recording.prompts else 0)
        lengths = [len(request.prompt) for request in requests]
        entry = _Entry(arrived_s, time.monotonic(), asked, model, lengths, reply, error, size)
        with self._lock:
            room = self._pending + size <= MOST_PENDING_BYTES
            self._pending += size if room else 0
            self.left_out += not room
            first = self.left_out == 1 and not room
        if room:
            self._queue.put(entry)
        elif first:
            log.warning("The record %s can't be written as fast as requests end: some are left out.", self._path)

    def close(self) -> None:
        """Write what is still to be written, for a few seconds at most."""
        self._queue.put(None)
        self._thread.join(CLOSING_S)
        if self.left_out:
            log.warning("%d requests were left out of the record %s.", self.left_out, self._path)

    @property
    def _path(self) -> Path:
        return self.recording.path

    def _run(self) -> None:
        """Write what is noted, until told to end."""
        going = True
        while going:
            batch = [self._queue.get()]
            while len(batch) < MOST_LINES and not self._queue.empty():
                batch.append(self._queue.get())
            entries = [entry for entry in batch if entry is not None]
            going = len(entries) == len(batch)
            if entries and not self._stopped:
                try:
                    self._append(entries)
                except OSError as error:
                    self._stop(f"can't be written: {(error.strerror or str(error)).lower()}")
            with self._lock:
                self._pending -= sum(entry.size for entry in entries)
        os.close(self._handle)

    def _append(self, entries: Sequence[_Entry]) -> None:
        """Add whole lines to the file, or nothing of them. Raises OSError."""
        with _locked(self._handle):
            start = os.fstat(self._handle).st_size
            if self._base_s is None:
                # A server that this one replaces, or replaced, counts from the same moment.
                base_s = _first_moment(self._handle) if start else None
                self._base_s = self._opened_s if base_s is None else base_s
            lines, size = [], start
            for line in map(self._line, entries):
                if size + len(line) > self.recording.limit_mb * 1e6:
                    self._stop(f"has reached its limit of {self.recording.limit_mb:g} MB")
                    break
                lines.append(line)
                size += len(line)
            _write_whole(self._handle, b"".join(lines), start)

    def _stop(self, why: str) -> None:
        self._stopped = True
        log.error("The record %s %s. Recording has stopped; serving goes on.", self._path, why)

    def _line(self, entry: _Entry) -> bytes:
        """Return a request's line; b"" for one that no JSON can hold."""
        asked, reply, base_s = entry.asked, entry.reply, self._base_s or 0.0
        arrived_s = entry.arrived_s + self._offset_s
        answers = len(entry.prompt_tokens) * asked.n
        first_s = [a.first_s for a in reply.answers if a.first_s is not None] if reply else []
        chat = isinstance(asked, ChatRequest)
        limit = asked.max_completion_tokens or asked.max_tokens if isinstance(asked, ChatRequest) else asked.max_tokens
        try:
            return RecordedRequest(
                record=1,
                time=datetime.fromtimestamp(arrived_s, UTC),
                arrival_s=round(max(0.0, arrived_s - base_s), 6),
                api="chat" if chat else "completions",
                model=entry.model,
                stream=asked.stream,
                n=asked.n,
                max_tokens=limit,
                prompt_tokens=tuple(entry.prompt_tokens),
                completion_tokens=tuple(a.completion_tokens for a in reply.answers) if reply else (0,) * answers,
                finish_reasons=tuple(reply.endings) if reply else ("abort",) * answers,
                ttft_ms=round((min(first_s) - entry.arrived_s) * 1e3, 3) if first_s else None,
                duration_ms=round((entry.ended_s - entry.arrived_s) * 1e3, 3),
                sampling=_sampling(asked),
                stop_strings=len(asked.stop),
                biased_tokens=len(asked.logit_bias),
                tools=len(asked.tools) if isinstance(asked, ChatRequest) else 0,
                response_format=asked.response_format.type if isinstance(asked, ChatRequest) else "text",
                error=entry.error or (reply.failure if reply else None),
                **(_texts(asked, reply) if self.recording.prompts else {}),
            ).line()
        except ValueError as error:  # the error's own words would quote the request
            log.warning("A request can't be put into the record %s (%s).", self._path, type(error).__name__)
            return b""


def _sampling(asked: ChatRequest | CompletionRequest) -> dict[str, bool | int | float]:
    """Return the sampling fields whose values aren't the API's own."""
    fields = type(asked).model_fields
    said = {name: getattr(asked, name) for name in SAMPLING if name in fields}
    return {name: value for name, value in said.items() if value is not None and value != fields[name].default}


def _texts(asked: ChatRequest | CompletionRequest, reply: Reply | None) -> dict[str, Any]:
    """Return what may be kept with consent only."""
    texts: dict[str, Any] = {"stop": asked.stop} if asked.stop else {}
    if isinstance(asked, ChatRequest):
        texts["messages"] = tuple(map(_message, asked.messages))
        if asked.tools:
            texts["tool_definitions"] = tuple(tool.model_dump(exclude_unset=True) for tool in asked.tools)
        if asked.response_format.json_schema is not None:
            texts["json_schema"] = asked.response_format.json_schema.model_dump(by_alias=True, exclude_unset=True)
    else:
        texts["prompts"] = tuple(one if isinstance(one, str) else tuple(one) for one in asked.prompt)
    if reply is not None and reply.texts is not None:
        texts["answers"] = tuple(reply.texts)
    return texts


def _message(message: Message) -> dict[str, Any]:
    """Return a message in OpenAI's shape."""
    said = message.model_dump(exclude_unset=True, exclude={"tool_calls"})
    calls = [
        {"id": call.id, "type": call.type, "function": {"name": call.function.name, "arguments": arguments}}
        for call, arguments in ((call, json.dumps(call.function.arguments)) for call in message.tool_calls)
    ]
    return said | ({"tool_calls": calls} if calls else {})


def _characters(asked: ChatRequest | CompletionRequest, reply: Reply | None) -> int:
    """Return about how many characters a request's texts have, token ids as eight."""
    if isinstance(asked, ChatRequest):
        count = sum(len(message.content) for message in asked.messages)
    else:
        count = sum(len(one) if isinstance(one, str) else 8 * len(one) for one in asked.prompt)
    return count + sum(len(text or "") for text in (reply.texts if reply is not None else None) or ())


def _open(path: Path) -> tuple[int, float]:
    """Return a handle that appends to a record, and when it was written last (0 if never). Raises BadInputError."""
    try:
        # Without waiting for whoever is at the other end of a pipe.
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            return handle, _prepare(handle, path)
        except (OSError, BadInputError):
            os.close(handle)
            raise
    except OSError as error:
        raise BadInputError(f"The record {path} can't be written: {(error.strerror or str(error)).lower()}.") from error


def _prepare(handle: int, path: Path) -> float:
    """Make sure that a file is a record which nobody else reads; return when it was written last. Raises OSError, BadInputError."""
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        raise BadInputError(f"The record {path} has to be a file, not a device or a pipe.")
    with _locked(handle):
        if found.st_size and _first_moment(handle) is None:
            raise BadInputError(
                f"{path} holds something else than recorded traffic; give --record a file that isn't there yet."
            )
        if stat.S_IMODE(found.st_mode) != 0o600:
            os.fchmod(handle, 0o600)
        if not found.st_size:
            return 0.0
        _drop_half_line(handle)
    return found.st_mtime


@contextlib.contextmanager
def _locked(handle: int) -> Iterator[None]:
    """Keep other servers from writing, such as the one that is being replaced."""
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)


def _first_moment(handle: int) -> float | None:
    """Return the moment that a record's arrivals count from, seconds since 1970; None if its first line isn't a record's."""
    line = b""
    while b"\n" not in line and (part := os.pread(handle, CHUNK, len(line))):
        line += part
    try:
        first = RecordedRequest.model_validate_json(line.partition(b"\n")[0])
    except ValueError:
        return None
    return first.time.timestamp() - first.arrival_s


def _drop_half_line(handle: int) -> None:
    """Cut off what a machine that failed left of a last line."""
    size = end = os.fstat(handle).st_size
    found = -1
    while end and found < 0:
        start = max(0, end - CHUNK)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        end = start
    if found < 0:  # a first line that lacks nothing but its end
        os.write(handle, b"\n")
    elif end + found + 1 < size:
        os.ftruncate(handle, end + found + 1)


def _write_whole(handle: int, data: bytes, start: int) -> None:
    """Append data to a file of `start` bytes, all of it or none. Raises OSError."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(handle, rest) :]
    except OSError:
        os.ftruncate(handle, start)
        raise
