"""Reply: the answers to one request in OpenAI's shapes, whole or as server-sent events."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.types import Send

from quicksilver.serve.asgi import send_json
from quicksilver.serve.stream import DONE, Answer, Bell, Frames, Piece, event
from quicksilver.serve.tools import Delta, ToolParser, whole_calls
from quicksilver.serve.wire import ApiError, ChatRequest, Sampling
from quicksilver.sources.text import Tokenizer

STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class Reply:
    """Says what the answers to one request say, each of them as one of its choices."""

    def __init__(self, model: str, asked: Sampling, bell: Bell, choices: Sequence[Choice]) -> None:
        self._chat = isinstance(asked, ChatRequest)
        self.id = ("chatcmpl-" if self._chat else "cmpl-") + uuid.uuid4().hex
        self._created = int(time.time())
        self._model = model
        self._asked = asked
        self._bell = bell
        self._choices = choices

    @property
    def answers(self) -> list[Answer]:
        """The sequences that it waits for."""
        return [choice.answer for choice in self._choices]

    @property
    def endings(self) -> list[str]:
        """Why each of them ended, in OpenAI's words; abort is one that didn't finish."""
        return [choice.finish() or "abort" for choice in self._choices]

    @property
    def failure(self) -> str | None:
        """The code of the first that failed."""
        return next((answer.error.code for answer in self.answers if answer.error is not None), None)

    @property
    def texts(self) -> list[str | None] | None:
        """What each of them said, None for one that didn't finish; None unless that is kept."""
        kept = [choice.kept for choice in self._choices]
        if not kept or kept[0] is None:
            return None
        finished = [choice.answer.finish is not None for choice in self._choices]
        return ["".join(parts or ()) if whole else None for parts, whole in zip(kept, finished, strict=True)]

    def stop(self, error: ApiError | None = None) -> None:
        """Free all that still runs, and say `error` of it."""
        for answer in self.answers:
            answer.stop(error)

    async def whole(self, send: Send) -> None:
        """Wait for all answers and send them. Raises ApiError if one failed."""
        while not all(answer.over for answer in self.answers):
            await self._bell.wait()
        for answer in self.answers:
            if answer.error is not None:
                raise answer.error
            if answer.finish is None:  # the client has gone
                return
        await send_json(
            send,
            200,
            {
                "id": self.id,
                "object": "chat.completion" if self._chat else "text_completion",
                "created": self._created,
                "model": self._model,
                "choices": [choice.whole() for choice in self._choices],
                "usage": self._usage(self._choices),
            },
        )

    async def stream(self, send: Send) -> None:
        """Send the answers as they come. Raises ApiError if one fails before anything was sent."""
        wants = self._asked.usage
        for choice in self._choices:
            choice.frames = Frames(
                chat=self._chat,
                number=self.id,
                created=self._created,
                model=self._model,
                usage=wants,
                index=choice.index,
            )
        opened = over = False
        while not over:
            await self._bell.wait()
            spoke = [choice for choice in self._choices if choice.answer.news]
            failed = next((choice.answer.error for choice in spoke if choice.answer.error is not None), None)
            if failed is not None and not opened:
                raise failed
            if any(choice.gone for choice in spoke):
                return
            data = b"".join(choice.said(self._usage([choice])) for choice in spoke)
            over = failed is not None or all(answer.over for answer in self.answers)
            if failed is not None:
                data += event(failed.body())
            elif over and wants != "never":
                data += self._choices[0].frames.usage(self._usage(self._choices))
            if over:
                data += DONE
            if not opened:
                await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
                opened = True
            if data:
                await send({"type": "http.response.body", "body": data, "more_body": not over})

    def facts(self) -> dict[str, Any]:
        """Return what the log says of the answers: how many tokens, how soon and why they ended, none of their text."""
        first = [answer.first_s - answer.arrived_s for answer in self.answers if answer.first_s is not None]
        failure = self.failure
        usage = self._usage(self._choices)
        return {
            "model": self._model,
            "stream": self._asked.stream,
            "prompt_tokens": usage["prompt_tokens"],
            "completion_tokens": usage["completion_tokens"],
            "ttft_ms": round(min(first) * 1e3, 1) if first else None,
            "finish_reasons": self.endings,
            **({"error": failure} if failure else {}),
        }

    def _usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Count the tokens so far, as OpenAI's usage object: a prompt with several answers counts once.

        What speculation guessed ahead, if anything, has OpenAI's words for predicted outputs.
        """
        prompts = {choice.prompt: len(choice.answer.request.prompt) for choice in choices}
        prompt, completion = sum(prompts.values()), sum(choice.answer.completion_tokens for choice in choices)
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        drafted, accepted = sum(c.answer.drafted for c in choices), sum(c.answer.accepted for c in choices)
        if drafted:
            details = {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": drafted - accepted}
            usage["completion_tokens_details"] = details
        return usage


class Choice:
    """One answer, as a choice of OpenAI's."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        answer: Answer,
        asked: Sampling,
        *,
        index: int,
        prompt: int,
        echo: str,
        tools: ToolParser | None = None,
        keep: bool = False,
    ) -> None:
        self.answer = answer
        self.index = index
        self.prompt = prompt
        """The number of its prompt."""
        self.kept: list[str] | None = [] if keep else None
        """The pieces of its text; None unless they are to be kept."""
        self.frames: Frames
        self._chat = isinstance(asked, ChatRequest)
        self._ids = asked.return_tokens_as_token_ids
        self._tokenizer = tokenizer
        self._echo = echo
        self._tools = tools
        self._opened = False
        self._offset = 0
        """Characters so far, for the offsets of tokens."""
        self._offset_text = tokenizer.stream(opens=bool(echo))

    @property
    def gone(self) -> bool:
        """Whether its client went away."""
        return self.answer.over and self.answer.finish is None and self.answer.error is None

    def whole(self) -> dict[str, Any]:
        """Return the choice as an object."""
        piece = self._take()
        choice: dict[str, Any] = {"index": self.index}
        if self._chat:
            delta = self._parsed(piece.text)
            message: dict[str, Any] = {"role": "assistant", "content": delta.content, "refusal": None}
            if delta.calls:
                message |= {"content": delta.content or None, "tool_calls": whole_calls(delta.calls)}
            choice["message"] = message
        else:
            choice["text"] = self._echo + piece.text
        return choice | {"logprobs": self._logprobs(piece, opens=True), "finish_reason": self.finish()}

    def said(self, usage: Mapping[str, Any]) -> bytes:
        """Return what it said since the last time, as events."""
        piece = self._take()
        opens, self._opened = not self._opened, True
        data = b""
        if opens:
            data = self.frames.opening()
            piece.text = self._echo + piece.text
        if self.answer.error is not None:
            return data
        logprobs = self._logprobs(piece, opens=opens)
        if self._tools is None:
            return data + self.frames.piece(piece.text, logprobs, self.answer.finish, usage)
        delta = self._parsed(piece.text)
        if not (delta.content or delta.calls or logprobs or self.answer.over):
            return data  # what was said may become a call
        calls = [call.to_wire() for call in delta.calls]
        if calls and self.answer.over:  # openai's stream helper looks for a call's end in a chunk after it
            data += self.frames.piece(delta.content, logprobs, None, usage, calls)
            return data + self.frames.piece("", None, self.finish(), usage)
        return data + self.frames.piece(delta.content, logprobs, self.finish(), usage, calls)

    def _take(self) -> Piece:
        """Return what it said since the last time."""
        piece = self.answer.take()
        if self.kept is not None and piece.text:
            self.kept.append(piece.text)
        return piece

    def _parsed(self, text: str) -> Delta:
        """Return what a piece of text comes to: content, or calls of tools."""
        if self._tools is None:
            return Delta(text)
        delta = self._tools.step(text)
        if self.answer.over:
            rest = self._tools.finish()
            delta.content += rest.content
        return delta

    def finish(self) -> str | None:
        """Return why it ended, in OpenAI's words."""
        called = self._tools is not None and self._tools.called and self.answer.finish == "stop"
        return "tool_calls" if called else self.answer.finish

    def _logprobs(self, piece: Piece, *, opens: bool) -> dict[str, Any] | None:
        """Return the log-probabilities of a piece's tokens (and first of the prompt's, if they are echoed)."""
        request = self.answer.request
        if not request.logprobs:
            return None
        if self._chat:
            entries = [
                self._entry(token, value) | {"top_logprobs": [self._entry(*likely) for likely in top]}
                for token, value, top in zip(piece.tokens, piece.logprobs, piece.top, strict=True)
            ]
            return {"content": entries, "refusal": None}
        tokens: list[int] = piece.tokens
        values: list[float | None] = list(piece.logprobs)
        likeliest: list[list[tuple[int, float]]] = piece.top
        if opens and request.echo:
            before = self.answer.prompt_logprobs or [None] * len(request.prompt)
            tops_before = self.answer.prompt_top_logprobs or [[]] * len(request.prompt)
            tokens, values, likeliest = [*request.prompt, *tokens], [*before, *values], [*tops_before, *likeliest]
        # As OpenAI does: the token that is there is among them, be it likely or not.
        tops = [
            {self._text(one): chance for one, chance in [*top, (token, value)]} if top and value is not None else None
            for token, value, top in zip(tokens, values, likeliest, strict=True)
        ]
        return {
            "tokens": [self._text(token) for token in tokens],
            "token_logprobs": values,
            "top_logprobs": tops if request.top_logprobs else None,
            "text_offset": self._offsets(tokens),
        }

    def _text(self, token: int) -> str:
        # The parts of a character all read alike: by their ids, in vLLM's form, tokens can be told apart.
        return f"token_id:{token}" if self._ids else self._tokenizer.piece(token).decode(errors="replace")

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        return {"token": self._text(token), "logprob": value, "bytes": list(self._tokenizer.piece(token))}

    def _offsets(self, tokens: Sequence[int]) -> list[int]:
        """Return where each token begins in the text, characters."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._offset_text.step(token))
        return offsets
