"""The OpenAI-compatible API as an ASGI application around a decoder."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from quicksilver.engines.grammar_check import GrammarCheck
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns import Decoder, Request
from quicksilver.serve.access import Access, arrived_s, notes
from quicksilver.serve.asgi import (
    Endpoint,
    Handler,
    closing,
    header,
    read_body,
    refuse,
    send_body,
    send_json,
    until_gone,
)
from quicksilver.serve.limits import Admission, Limits, check_key
from quicksilver.serve.metrics import Metrics
from quicksilver.serve.openapi import describe
from quicksilver.serve.reply import Choice, Reply
from quicksilver.serve.stream import Answer, Bell, Relay
from quicksilver.serve.tools import ToolParser, grammars
from quicksilver.serve.wire import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    Message,
    Sampling,
    TokenizeRequest,
    Tool,
    W,
    parse,
)
from quicksilver.sources.text import Tokenizer

if TYPE_CHECKING:
    from quicksilver.serve.recording import Recorder

log = logging.getLogger("quicksilver.serve")

SOON = {"retry-after": "1"}
LONG_TEXT = 20_000
"""Characters from which a text is tokenised off the event loop, where it would hold up other streams."""
LONG_CONVERSATION = 500
"""Messages from which a conversation is rendered off it, too."""


class Gateway:
    """Answers the API's requests. Until `attach` it says 503."""

    def __init__(
        self,
        model: str,
        limits: Limits | None = None,
        aliases: Sequence[str] = (),
        recorder: Recorder | None = None,
    ) -> None:
        self.model = model
        self._names = [model, *aliases]
        self._limits = limits or Limits()
        self._admission = Admission(self._limits)
        self._metrics = Metrics(model)
        self._recorder = recorder
        self._started = int(time.time())
        self._draining = False
        self._tokenizer: Tokenizer | None = None
        self._relay: Relay | None = None
        self._check: GrammarCheck | None = None
        self._checking = asyncio.Lock()

    def attach(self, tokenizer: Tokenizer, decoder: Decoder) -> None:
        """Begin to answer with this decoder. Call it on the event loop."""
        self._tokenizer = tokenizer
        self._relay = Relay(decoder, asyncio.get_running_loop())
        self._check = GrammarCheck(tokenizer.folder)

    def close(self) -> None:
        """End what it started. The decoder is whose it was."""
        if self._check is not None:
            self._check.close()

    def drain(self) -> None:
        """Say on /ready that no more requests should come; those that do are answered, on connections that end with it."""
        self._draining = True

    def app(self) -> ASGIApp:
        """Return the ASGI application."""
        inner = Access(Starlette(routes=self._routes(), exception_handlers={HTTPException: refuse}))

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await inner(scope, receive, closing(send) if self._draining else send)

        return app

    def _routes(self) -> list[Route]:
        return [
            Route("/health", Endpoint(self._health), methods=["GET"]),
            Route("/ready", Endpoint(self._say_ready), methods=["GET"]),
            # Without a key: it is the same on every server of this version, and tools that read it send none.
            Route("/openapi.json", Endpoint(self._say_openapi), methods=["GET"]),
            self._guarded("GET", "/metrics", self._say_metrics),
            self._guarded("GET", "/v1/models", self._models),
            self._guarded("GET", "/v1/models/{model:path}", self._one_model),
            self._guarded("POST", "/v1/chat/completions", self._chat),
            self._guarded("POST", "/v1/completions", self._complete),
            self._guarded("POST", "/v1/embeddings", self._embed),
            self._guarded("POST", "/tokenize", self._tokenize),
        ]

    def _guarded(self, method: str, path: str, handler: Handler) -> Route:
        """Return a route that wants an API key, if the server has any."""

        async def checked(scope: Scope, receive: Receive, send: Send) -> None:
            check_key(self._limits.api_keys, header(scope, b"authorization"))
            await handler(scope, receive, send)

        return Route(path, Endpoint(checked), methods=[method])

    def _ready(self) -> tuple[Tokenizer, Relay]:
        if self._tokenizer is None or self._relay is None:
            raise ApiError(503, "The model is still loading.", code="not_ready", headers=SOON)
        if not self._relay.ready:
            raise ApiError(503, "The engine ended and is started again.", code="engine_died", headers=SOON)
        return self._tokenizer, self._relay

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, relay = self._ready()
        await send_json(send, 200, {"status": "ok", "running": len(relay.running)})

    async def _say_ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, relay = self._ready()
        if self._draining:
            raise ApiError(503, "The server is about to end.", code="draining")
        self._admission.check(1, len(relay.running))
        await send_json(send, 200, {"status": "ready"})

    async def _say_metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._relay is not None:
            self._metrics.look(self._relay.stats())
        body, kind = self._metrics.text()
        await send_body(send, 200, body, kind.encode())

    async def _say_openapi(self, scope: Scope, receive: Receive, send: Send) -> None:
        said = self._recorder.recording.notice if self._recorder is not None else ""
        await send_json(send, 200, describe(keys=bool(self._limits.api_keys), notice=said))

    async def _embed(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise ApiError(
            400, f"{self.model!r} generates text; this server makes no embeddings.", param="model",
            code="unsupported_endpoint",
        )  # fmt: skip

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, {"object": "list", "data": [self._card(name) for name in self._names]})

    async def _one_model(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["model"]
        card = self._card(name)
        self._check_model(name)
        await send_json(send, 200, card)

    def _card(self, name: str) -> dict[str, Any]:
        tokenizer, _ = self._ready()
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "quicksilver",
            "max_model_len": tokenizer.context,
        }

    async def _tokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        tokenizer, _ = self._ready()
        asked = await self._read(TokenizeRequest, receive)
        self._check_model(asked.model)
        if asked.messages is not None:
            text = await _render(tokenizer, asked.messages, asked.tools, open_answer=asked.add_generation_prompt)
            special = bool(asked.add_special_tokens)
        else:
            text = asked.prompt or ""
            special = asked.add_special_tokens is not False
        tokens = await _encode(tokenizer, text, special=special)
        await send_json(send, 200, {"tokens": tokens, "count": len(tokens), "max_model_len": tokenizer.context})

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        tokenizer, _ = self._ready()
        asked = await self._read(ChatRequest, receive)
        self._check_model(asked.model)
        tools = [] if asked.tool_choice == "none" else asked.tools
        prompt = await _encode(tokenizer, await _render(tokenizer, asked.messages, tools), special=False)
        limit = asked.max_completion_tokens or asked.max_tokens
        room = _check_length(tokenizer, prompt, limit or 1)
        request = asked.to_engine(
            prompt,
            max_tokens=limit or room,
            logprobs=asked.logprobs,
            top=asked.top_logprobs,
            grammar=await self._grammar(asked, tokenizer),
        )
        await self._answer([(request, "")], asked, scope, receive, send)

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        tokenizer, _ = self._ready()
        asked = await self._read(CompletionRequest, receive)
        self._check_model(asked.model)
        requests: list[tuple[Request, str]] = []
        for text in asked.prompt:
            if isinstance(text, str):
                prompt = await _encode(tokenizer, text, special=asked.add_special_tokens)
            else:
                prompt = text
                if prompt and not 0 <= min(prompt) <= max(prompt) < tokenizer.vocab_size:
                    raise ApiError(
                        400, f"'prompt' has token ids outside 0 to {tokenizer.vocab_size - 1}.", param="prompt"
                    )
            _check_length(tokenizer, prompt, asked.max_tokens)
            request = asked.to_engine(
                prompt,
                max_tokens=asked.max_tokens,
                logprobs=asked.logprobs is not None,
                top=asked.logprobs,
                echo=asked.echo,
            )
            echo = ""
            if asked.echo:
                echo = text if isinstance(text, str) else tokenizer.decode(prompt, opens=True)
            requests.append((request, echo))
        await self._answer(requests, asked, scope, receive, send)

    async def _read(self, kind: type[W], receive: Receive) -> W:
        body = await read_body(receive, self._limits.client_timeout_s)
        # A large one is read off the event loop, where it would hold up other streams.
        return parse(kind, body) if len(body) < LONG_TEXT else await asyncio.to_thread(parse, kind, body)

    async def _grammar(self, asked: ChatRequest, tokenizer: Tokenizer) -> str | None:
        """Return what the answer has to follow. Raises ApiError 400 for a schema that can't be followed."""
        check = self._check
        assert check is not None
        if asked.response_format.type == "text" and not asked.offered:
            return None

        def proved() -> str | None:
            grammar: str | None = None
            for field, grammar in grammars(asked, "hermes" if tokenizer.tagged_calls else "bare"):
                try:
                    check.check(grammar)
                except ValueError as error:
                    raise ApiError(
                        400, f"The schema in '{field}' can't be followed: {error}", param=field, code="invalid_schema"
                    ) from error
            return grammar

        async with self._checking:  # one at a time: the threads are there for other work, too
            return await asyncio.to_thread(proved)

    def _check_model(self, model: str | None) -> None:
        if model is not None and model not in self._names:
            raise ApiError(
                404, f"There is no model {model!r} here; this server has {self.model!r}.", param="model",
                code="model_not_found",
            )  # fmt: skip

    async def _answer(
        self,
        requests: Sequence[tuple[Request, str]],
        asked: ChatRequest | CompletionRequest,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Decode n answers to each request (with what is echoed before it), and reply with all of them."""
        tokenizer, relay = self._ready()
        arrived = arrived_s(scope)
        for request, _ in requests:
            _check_request(tokenizer, request)
        try:
            self._admission.check(len(requests) * asked.n, len(relay.running))
        except ApiError as error:
            self._metrics.rejected()
            self._record(requests, asked, None, arrived, error)
            raise
        bell = Bell()
        choices = self._choices(requests, asked, tokenizer, bell, arrived)
        reply = Reply(self.model, asked, bell, choices)
        late = ApiError(
            503, f"The answer took longer than {self._limits.request_timeout_s:g} s.", code="request_timeout"
        )
        begun: list[Answer] = []
        failed: ApiError | None = None
        timer = asyncio.get_running_loop().call_later(self._limits.request_timeout_s, reply.stop, late)
        try:
            async with until_gone(receive, reply.stop):
                try:
                    for answer in reply.answers:
                        relay.submit(answer)
                        begun.append(answer)
                except ValueError as error:
                    raise ApiError(400, str(error)) from error
                except EngineError as error:
                    raise ApiError(503, f"{error}.", code="engine_died", headers=SOON) from error
                await (reply.stream(send) if asked.stream else reply.whole(send))
        except ApiError as error:
            failed = error
            raise
        finally:
            timer.cancel()
            notes(scope).update(reply.facts())
            for answer in begun:
                self._metrics.ended(answer)
                if answer.finish is not None:
                    self._admission.learn((answer.ended_s or time.monotonic()) - answer.arrived_s)
            self._record(requests, asked, reply, arrived, failed)

    def _record(
        self,
        requests: Sequence[tuple[Request, str]],
        asked: ChatRequest | CompletionRequest,
        reply: Reply | None,
        arrived: float,
        failed: ApiError | None,
    ) -> None:
        """Note a request that is over in the record, if there is one; what was wrong with itself is no load."""
        if self._recorder is not None and (failed is None or failed.status >= 429):
            prompts = [request for request, _ in requests]
            code = failed.code if failed is not None else None
            self._recorder.note(asked, prompts, reply, model=self.model, arrived_s=arrived, error=code)

    def _choices(
        self, requests: Sequence[tuple[Request, str]], asked: Sampling, tokenizer: Tokenizer, bell: Bell, arrived: float
    ) -> list[Choice]:
        chat = isinstance(asked, ChatRequest)
        keep = self._recorder is not None and self._recorder.recording.answers
        choices: list[Choice] = []
        for number, (request, echo) in enumerate(requests):
            for turn in range(asked.n):
                # A seed gives n answers that differ, and the first of them is that of n = 1.
                seed = None if request.seed is None else request.seed + turn
                one = dataclasses.replace(request, seed=seed) if turn else request
                answer = Answer(
                    tokenizer, one, bell, arrived_s=arrived, stops=asked.stop, opens=chat, stream=asked.stream
                )
                tools = _tool_parser(asked)
                index = len(choices)
                choices.append(
                    Choice(tokenizer, answer, asked, index=index, prompt=number, echo=echo, tools=tools, keep=keep)
                )
        return choices


def _tool_parser(asked: Sampling) -> ToolParser | None:
    """Return what finds calls of the tools that a request offers; None if there are none."""
    if not isinstance(asked, ChatRequest) or not asked.offered:
        return None
    return ToolParser({tool.function.name for tool in asked.offered}, parallel=asked.parallel_tool_calls)


async def _render(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Tool], *, open_answer: bool = True
) -> str:
    def render() -> str:
        turns, offered = [message.to_template() for message in messages], [tool.to_template() for tool in tools]
        try:
            return tokenizer.chat(turns, tools=offered, open_answer=open_answer)
        except BadInputError as error:
            raise ApiError(400, str(error), param="messages") from error

    return render() if len(messages) < LONG_CONVERSATION else await asyncio.to_thread(render)


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
