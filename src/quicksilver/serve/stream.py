"""From the decoder's thread to the client: one wake-up a step, one write a piece."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from quicksilver.nouns import Burst, Decoder, Request
from quicksilver.nouns.engine import DecoderStats
from quicksilver.serve.wire import ApiError
from quicksilver.sources.text import StopScanner, TextStream, Tokenizer

DONE = b"data: [DONE]\n\n"
Finish = Literal["stop", "length"]


@dataclass(slots=True)
class Piece:
    """What an answer said since the last look at it."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    """Only filled when log-probabilities were asked for."""
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    """For each token the likeliest ones."""


class Bell:
    """What the answers to one request ring, and its reply waits for."""

    __slots__ = ("_rung", "_waiter")

    def __init__(self) -> None:
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake who waits, now or next time."""
        self._rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until it was rung since the last wait."""
        if not self._rung:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        self._rung = False


class Answer:
    """One sequence as the event loop sees it: bursts of tokens go in, pieces of text come out."""

    __slots__ = (
        "_bell",
        "_cancel",
        "_piece",
        "_stops",
        "_stream",
        "_text",
        "_tokenizer",
        "accepted",
        "arrived_s",
        "completion_tokens",
        "drafted",
        "ended_s",
        "error",
        "finish",
        "first_s",
        "news",
        "over",
        "prompt_logprobs",
        "prompt_top_logprobs",
        "request",
    )

    def __init__(
        self,
        tokenizer: Tokenizer,
        request: Request,
        bell: Bell,
        *,
        arrived_s: float,
        stops: Sequence[str],
        opens: bool,
        stream: bool,
    ) -> None:
        self.request = request
        self.completion_tokens = 0
        self.drafted = self.accepted = 0
        """Tokens that speculation guessed ahead, and those of them that were right."""
        self.finish: Finish | None = None
        self.error: ApiError | None = None
        self.arrived_s = arrived_s
        """When the head of its HTTP request had been read."""
        self.first_s: float | None = None
        """When its first token came."""
        self.ended_s: float | None = None
        self.news = False
        """There is something to take, or it is over."""
        self.over = False
        """Nothing more will come: it finished, failed or was cancelled."""
        self.prompt_logprobs: list[float | None] | None = None
        self.prompt_top_logprobs: list[list[tuple[int, float]]] | None = None
        self._tokenizer = tokenizer
        self._text: TextStream = tokenizer.stream(opens=opens)
        self._stops = StopScanner(stops) if stops else None
        self._stream = stream
        self._bell = bell
        self._piece = Piece()
        self._cancel: Callable[[], None] | None = None

    def began(self, cancel: Callable[[], None]) -> None:
        """Tell it how to stop the sequence."""
        self._cancel = cancel

    def stop(self, error: ApiError | None = None) -> None:
        """Free the sequence, if it still runs, and wake whoever waits for it; `error` is what to say of it."""
        if not self.over:
            self._end()
            self.error = error
            if self._cancel is not None:
                self._cancel()
        self._wake()

    def _end(self) -> None:
        self.over = True
        self.ended_s = time.monotonic()

    def receive(self, burst: Burst) -> None:
        """Take in what one step gave. Runs on the event loop."""
        if self.over:
            return
        if burst.prompt_logprobs is not None:
            self.prompt_logprobs = burst.prompt_logprobs
            self.prompt_top_logprobs = burst.prompt_top_logprobs
        self.drafted += burst.drafted
        self.accepted += burst.accepted
        if burst.tokens:
            if self.first_s is None:
                self.first_s = time.monotonic()
            self._take(burst)
        if burst.finish is not None and not self.over:
            self._end()
            if burst.finish in ("stop", "length"):
                self.finish = burst.finish
                self._piece.text += self._last_words()
            else:
                self.error = _failure(burst)
        if self.over or (self._stream and (self._piece.text or self._piece.tokens)):
            self._wake()

    def _take(self, burst: Burst) -> None:
        piece, step, stops = self._piece, self._text.step, self._stops
        ending = len(burst.tokens) - 1 if burst.finish == "stop" else -1
        for index, token in enumerate(burst.tokens):
            self.completion_tokens += 1
            if burst.logprobs is not None and self.request.logprobs:
                piece.tokens.append(token)
                piece.logprobs.append(burst.logprobs[index])
                # An engine that doesn't tell refuses what it would have to: at temperature 0 it is the chosen one.
                top = [(token, burst.logprobs[index])] if burst.top_logprobs is None else burst.top_logprobs[index]
                piece.top.append(top[: self.request.top_logprobs])
            if index == ending and token in self._tokenizer.eos:
                return
            text = step(token)
            # As in vLLM, what comes within min_tokens can't stop an answer.
            if stops is not None and self.completion_tokens > self.request.min_tokens:
                text, found = stops.step(text)
                if found:
                    piece.text += text
                    self.finish = "stop"
                    self.stop()
                    return
            piece.text += text

    def _last_words(self) -> str:
        text = self._text.finish()
        if self._stops is None:
            return text
        text, found = self._stops.step(text)
        return text if found else text + self._stops.finish()

    def _wake(self) -> None:
        self.news = True
        self._bell.ring()

    def take(self) -> Piece:
        """Return what came since the last time. Unless it streams, it comes whole."""
        self.news = False
        piece, self._piece = self._piece, Piece()
        return piece


def _failure(burst: Burst) -> ApiError:
    """Return the error for a sequence that the engine ended otherwise than by finishing it."""
    if burst.finish == "lost":
        return ApiError(503, "The engine ended while it answered; it is started again.", code="engine_died")
    if burst.finish == "refused":
        return ApiError(400, burst.error or "The engine can't honour this request.")
    why = burst.error or f"it ended the sequence: {burst.finish}"
    return ApiError(500, f"The engine failed: {why}.", code="engine_error")


class Relay:
    """Carries bursts from the decoder's thread to the event loop, and wakes the loop once for all that wait."""

    def __init__(self, decoder: Decoder, loop: asyncio.AbstractEventLoop) -> None:
        self._decoder = decoder
        self._loop = loop
        self._queue: deque[tuple[Answer, Burst]] = deque()
        self._armed = False
        self.running: set[Answer] = set()
        """Sequences that the decoder has not ended yet, those cancelled included."""

    def submit(self, answer: Answer) -> None:
        """Start a sequence. Raises what the decoder raises."""
        number = self._decoder.submit(answer.request, partial(self._deliver, answer))
        self.running.add(answer)
        answer.began(partial(self._decoder.cancel, number))

    @property
    def ready(self) -> bool:
        """Whether the decoder takes sequences now."""
        return self._decoder.ready

    def stats(self) -> DecoderStats:
        """Return what the decoder is doing."""
        return self._decoder.stats()

    def _deliver(self, answer: Answer, burst: Burst) -> None:
        # On the decoder's thread. The order of these lines and of those in _drain loses no burst.
        self._queue.append((answer, burst))
        if not self._armed:
            self._armed = True
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._armed = False
        queue = self._queue
        while queue:
            answer, burst = queue.popleft()
            if burst.finish is not None:
                self.running.discard(answer)
            answer.receive(burst)


class Frames:
    """Server-sent events of one choice of a stream: all of the JSON but the text is made once."""

    def __init__(
        self, *, chat: bool, number: str, created: int, model: str, usage: Literal["never", "end", "each"], index: int
    ) -> None:
        self._chat = chat
        self._each = usage == "each"
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = json.dumps({"id": number, "object": kind, "created": created, "model": model})
        self._head = f"data: {head[:-1]}"
        text = '"delta":{"content":' if chat else '"text":'
        self._choice = f'{self._head},"choices":[{{"index":{index},'
        self._open = self._choice + text
        self._close = "}" if chat else ""
        self._end = ',"usage":null}\n\n' if usage == "end" else "}\n\n"
        self._plain = f'{self._close},"logprobs":null,"finish_reason":null}}]{self._end}'

    def opening(self) -> bytes:
        """Return the chunk that says whose turn it is; completions have none."""
        if not self._chat:
            return b""
        delta = '"delta":{"role":"assistant","content":""'
        return f"{self._choice}{delta}{self._plain}".encode()

    def piece(
        self,
        text: str,
        logprobs: Any,
        finish: str | None,
        usage: Mapping[str, Any],
        calls: Sequence[Mapping[str, Any]] = (),
    ) -> bytes:
        """Return the chunk for a piece of text, or of tool calls; the last one says why it ended."""
        # ASCII only: some clients split lines at characters that JSON leaves as they are.
        if logprobs is None and finish is None and not self._each and not calls:
            return f"{self._open}{json.dumps(text)}{self._plain}".encode()
        end = f',"usage":{json.dumps(usage)}}}\n\n' if self._each else self._end
        rest = f'"logprobs":{json.dumps(logprobs)},"finish_reason":{json.dumps(finish)}'
        if calls:
            delta = {"content": text, "tool_calls": calls} if text else {"tool_calls": calls}
            return f'{self._choice}"delta":{json.dumps(delta)},{rest}}}]{end}'.encode()
        return f"{self._open}{json.dumps(text)}{self._close},{rest}}}]{end}".encode()

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        """Return the chunk that counts the tokens."""
        return f'{self._head},"choices":[],"usage":{json.dumps(usage)}}}\n\n'.encode()


def event(value: Any) -> bytes:
    """Return any JSON value as a server-sent event."""
    return f"data: {json.dumps(value)}\n\n".encode()
