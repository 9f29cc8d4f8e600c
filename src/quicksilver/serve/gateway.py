"""The OpenAI-compatible API as an ASGI application around a decoder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from quicksilver.errors import BadInputError
from quicksilver.nouns import Decoder, Request
from quicksilver.serve.stream import DONE, Answer, Frames, Piece, Relay, event
from quicksilver.serve.wire import ApiError, ChatRequest, CompletionRequest, Sampling, TokenizeRequest, parse
from quicksilver.sources.text import Tokenizer

log = logging.getLogger("quicksilver.serve")

MAX_BODY = 10_000_000
"""Bytes of a request's body."""
DRAIN_BODY = 10 * MAX_BODY
"""Bytes of a body that is too large which are read and dropped, so that its sender gets to read the answer."""
LONG_TEXT = 20_000
"""Characters from which a text is tokenised off the event loop, where it would hold up other streams."""

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gateway:
    """Answers the API's requests. Until `attach` it says 503."""

    def __init__(self, model: str) -> None:
        self.model = model
        self._started = int(time.time())
        self._tokenizer: Tokenizer | None = None
        self._relay: Relay | None = None

    def attach(self, tokenizer: Tokenizer, decoder: Decoder) -> None:
        """Begin to answer with this decoder. Call it on the event loop."""
        self._tokenizer = tokenizer
        self._relay = Relay(decoder, asyncio.get_running_loop())

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            Route("/health", _Endpoint(self._health), methods=["GET"]),
            Route("/v1/models", _Endpoint(self._models), methods=["GET"]),
            Route("/v1/chat/completions", _Endpoint(self._chat), methods=["POST"]),
            Route("/v1/completions", _Endpoint(self._complete), methods=["POST"]),
            Route("/tokenize", _Endpoint(self._tokenize), methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _refuse})

    def _ready(self) -> tuple[Tokenizer, Relay]:
        if self._tokenizer is None or self._relay is None:
            raise ApiError(503, "The model is still loading.", code="not_ready")
        return self._tokenizer, self._relay

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, relay = self._ready()
        await _send_json(send, 200, {"status": "ok", "running": len(relay.running)})

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        tokenizer, _ = self._ready()
        entry = {
            "id": self.model,
            "object": "model",
            "created": self._started,
            "owned_by": "quicksilver",
            "max_model_len": tokenizer.context,
        }
        await _send_json(send, 200, {"object": "list", "data": [entry]})

    async def _tokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        tokenizer, _ = self._ready()
        asked = parse(TokenizeRequest, await _read_body(receive))
        self._check_model(asked.model)
        if asked.messages is not None:
            text = _render(tokenizer, asked.messages, open_answer=asked.add_generation_prompt)
            special = bool(asked.add_special_tokens)
        else:
            text = asked.prompt or ""
            special = asked.add_special_tokens is not False
        tokens = await _encode(tokenizer, text, special=special)
        await _send_json(send, 200, {"tokens": tokens, "count": len(tokens), "max_model_len": tokenizer.context})

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        tokenizer, _ = self._ready()
        asked = parse(ChatRequest, await _read_body(receive))
        self._check_model(asked.model)
        prompt = await _encode(tokenizer, _render(tokenizer, asked.messages, open_answer=True), special=False)
        limit = asked.max_completion_tokens or asked.max_tokens
        room = _check_length(tokenizer, prompt, limit or 1)
        request = asked.to_engine(prompt, max_tokens=limit or room, logprobs=asked.logprobs, top=asked.top_logprobs)
        _check_request(tokenizer, request)
        await self._answer(request, asked, receive, send, echo="")

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        tokenizer, _ = self._ready()
        asked = parse(CompletionRequest, await _read_body(receive))
        self._check_model(asked.model)
        if isinstance(asked.prompt, str):
            prompt = await _encode(tokenizer, asked.prompt, special=asked.add_special_tokens)
        else:
            prompt = asked.prompt
            if prompt and not 0 <= min(prompt) <= max(prompt) < tokenizer.vocab_size:
                raise ApiError(400, f"'prompt' has token ids outside 0 to {tokenizer.vocab_size - 1}.", param="prompt")
        _check_length(tokenizer, prompt, asked.max_tokens)
        request = asked.to_engine(
            prompt,
            max_tokens=asked.max_tokens,
            logprobs=asked.logprobs is not None,
            top=asked.logprobs,
            echo=asked.echo,
        )
        _check_request(tokenizer, request)
        echo = ""
        if asked.echo:
            echo = asked.prompt if isinstance(asked.prompt, str) else tokenizer.decode(prompt, opens=True)
        await self._answer(request, asked, receive, send, echo=echo)

    def _check_model(self, model: str | None) -> None:
        if model is not None and model != self.model:
            raise ApiError(
                404, f"There is no model {model!r} here; this server has {self.model!r}.", param="model",
                code="model_not_found",
            )  # fmt: skip

    async def _answer(
        self, request: Request, asked: ChatRequest | CompletionRequest, receive: Receive, send: Send, *, echo: str
    ) -> None:
        tokenizer, relay = self._ready()
        chat = isinstance(asked, ChatRequest)
        answer = Answer(tokenizer, request, stops=asked.stop, opens=chat, stream=asked.stream)
        try:
            relay.submit(answer)
        except ValueError as error:
            raise ApiError(400, str(error)) from error
        reply = _Reply(self.model, tokenizer, answer, asked, echo)
        async with _until_gone(receive, answer):
            await (reply.stream(send) if asked.stream else reply.whole(send))


class _Reply:
    """Puts an answer into OpenAI's shapes."""

    def __init__(
        self, model: str, tokenizer: Tokenizer, answer: Answer, asked: ChatRequest | CompletionRequest, echo: str
    ) -> None:
        self._chat = isinstance(asked, ChatRequest)
        self._id = ("chatcmpl-" if self._chat else "cmpl-") + uuid.uuid4().hex
        self._created = int(time.time())
        self._model = model
        self._tokenizer = tokenizer
        self._answer = answer
        self._asked: Sampling = asked
        self._echo = echo
        self._said = 0
        """Characters so far, for the offsets of tokens."""
        self._offset_text = tokenizer.stream(opens=bool(echo))

    async def whole(self, send: Send) -> None:
        answer = self._answer
        piece = await answer.next()
        if answer.error is not None:
            raise ApiError(500, f"The engine failed: {answer.error}.", code="engine_error")
        if answer.finish is None:  # the client has gone
            return
        choice: dict[str, Any] = {"index": 0}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": piece.text, "refusal": None}
        else:
            choice["text"] = self._echo + piece.text
        choice |= {"logprobs": self._logprobs(piece, opens=True), "finish_reason": answer.finish}
        await _send_json(
            send,
            200,
            {
                "id": self._id,
                "object": "chat.completion" if self._chat else "text_completion",
                "created": self._created,
                "model": self._model,
                "choices": [choice],
                "usage": answer.usage(),
            },
        )

    async def stream(self, send: Send) -> None:
        answer, wants = self._answer, self._asked.usage
        frames = Frames(chat=self._chat, number=self._id, created=self._created, model=self._model, usage=wants)
        opens = True
        while True:
            piece = await answer.next()
            if answer.error is not None and opens:
                raise ApiError(500, f"The engine failed: {answer.error}.", code="engine_error")
            if answer.over and answer.finish is None and answer.error is None:  # the client has gone
                return
            data = b""
            if opens:
                await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
                data = frames.opening()
                piece.text = self._echo + piece.text
            if answer.error is None:
                data += frames.piece(piece.text, self._logprobs(piece, opens=opens), answer.finish, answer.usage())
            else:
                failed = ApiError(500, f"The engine failed: {answer.error}.", code="engine_error")
                data += event(failed.body())
            opens = False
            if answer.over:
                if wants != "never" and answer.error is None:
                    data += frames.usage(answer.usage())
                data += DONE
            await send({"type": "http.response.body", "body": data, "more_body": not answer.over})
            if answer.over:
                return

    def _logprobs(self, piece: Piece, *, opens: bool) -> dict[str, Any] | None:
        """Return the log-probabilities of a piece's tokens (and first of the prompt's, if they are echoed)."""
        if not self._answer.request.logprobs:
            return None
        if self._chat:
            entries = [
                self._entry(token, value) | {"top_logprobs": [self._entry(*likely) for likely in top]}
                for token, value, top in zip(piece.tokens, piece.logprobs, piece.top, strict=True)
            ]
            return {"content": entries, "refusal": None}
        tokens: list[int] = piece.tokens
        values: list[float | None] = list(piece.logprobs)
        request = self._answer.request
        # As OpenAI does: the chosen token is among them, be it likely or not. A prompt's tokens weren't chosen.
        tops: list[dict[str, float] | None] = [
            {self._text(token): value for token, value in [*top, chosen]}
            for chosen, top in zip(zip(piece.tokens, piece.logprobs, strict=True), piece.top, strict=True)
        ]
        if opens and request.echo:
            before = self._answer.prompt_logprobs or [None] * len(request.prompt)
            tokens, values, tops = [*request.prompt, *tokens], [*before, *values], [*(None for _ in before), *tops]
        return {
            "tokens": [self._text(token) for token in tokens],
            "token_logprobs": values,
            "top_logprobs": tops if request.top_logprobs else None,
            "text_offset": self._offsets(tokens),
        }

    def _text(self, token: int) -> str:
        return self._tokenizer.piece(token).decode(errors="replace")

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        piece = self._tokenizer.piece(token)
        return {"token": piece.decode(errors="replace"), "logprob": value, "bytes": list(piece)}

    def _offsets(self, tokens: Sequence[int]) -> list[int]:
        """Return where each token begins in the text, characters."""
        offsets = []
        for token in tokens:
            offsets.append(self._said)
            self._said += len(self._offset_text.step(token))
        return offsets


class _Endpoint:
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
            await _send_json(send, error.status, error.body(), close=error.status == 413)
        except _GoneError:
            return
        except Exception:
            log.exception("A request failed.")
            if started:
                raise
            failed = ApiError(500, "The server failed to answer; its log says why.", code="internal_error")
            await _send_json(send, 500, failed.body())


class _GoneError(Exception):
    """The client went away before its request was whole."""


_STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


async def _send_json(send: Send, status: int, value: Any, *, close: bool = False) -> None:
    body = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refuse(http: HttpRequest, error: Exception) -> JSONResponse:
    """Answer an unknown path or method in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    failed = ApiError(error.status_code, f"There is no {http.method} {http.url.path} here.", code="not_found")
    return JSONResponse(failed.body(), error.status_code, headers=error.headers)


async def _read_body(receive: Receive) -> bytes:
    """Return a request's body. Raises ApiError 413, once its sender has finished or sent far too much."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        part = message.get("body", b"")
        size += len(part)
        if size <= MAX_BODY:
            parts.append(part)
        elif parts:
            parts.clear()
        if not message.get("more_body", False) or size > DRAIN_BODY:
            break
    if size > MAX_BODY:
        raise ApiError(413, f"The body is larger than {MAX_BODY} bytes.", code="request_too_large")
    return b"".join(parts)


@contextlib.asynccontextmanager
async def _until_gone(receive: Receive, answer: Answer) -> AsyncIterator[None]:
    """Free the sequence when the client goes away, and in any case at the end."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        answer.stop()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        answer.stop()


def _render(tokenizer: Tokenizer, messages: Sequence[Any], *, open_answer: bool) -> str:
    try:
        return tokenizer.chat([message.to_template() for message in messages], open_answer=open_answer)
    except BadInputError as error:
        raise ApiError(400, str(error), param="messages") from error


async def _encode(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    if len(text) < LONG_TEXT:
        return tokenizer.encode(text, special=special)
    return await asyncio.to_thread(tokenizer.encode, text, special=special)


def _check_length(tokenizer: Tokenizer, prompt: Sequence[int], wanted: int) -> int:
    """Return the tokens that the context leaves for the answer. Raises ApiError if `wanted` is more."""
    if not prompt:
        raise ApiError(400, "The prompt has no tokens.", param="prompt")
    context = tokenizer.context
    if context is None:
        return 2**31 - 1 - len(prompt)
    if len(prompt) > context:
        raise ApiError(
            400, f"The prompt has {len(prompt)} tokens, and the model's context is {context} tokens.",
            param="prompt", code="context_length_exceeded",
        )  # fmt: skip
    if len(prompt) + wanted > context:
        raise ApiError(
            400,
            f"The prompt's {len(prompt)} tokens and {wanted} of the answer are more than the model's context of"
            f" {context} tokens.",
            param="max_tokens",
            code="context_length_exceeded",
        )
    return context - len(prompt)


def _check_request(tokenizer: Tokenizer, request: Request) -> None:
    """Refuse what only the tokenizer, or two fields together, show to be wrong."""
    if request.logit_bias and not 0 <= min(request.logit_bias) <= max(request.logit_bias) < tokenizer.vocab_size:
        raise ApiError(400, f"'logit_bias' has token ids outside 0 to {tokenizer.vocab_size - 1}.", param="logit_bias")
    if request.min_tokens > request.max_tokens:
        raise ApiError(
            400, f"'min_tokens' is {request.min_tokens} and 'max_tokens' only {request.max_tokens}.",
            param="min_tokens",
        )  # fmt: skip
