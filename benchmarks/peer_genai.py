"""OpenVINO GenAI's continuous-batching pipeline with its defaults, behind a small OpenAI endpoint: chat completions, streamed.

`python peer_genai.py FOLDER --port N`. It is what one writes by hand around the pipeline, and has nothing of Quicksilver.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openvino_genai as genai
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

ENDS = {genai.GenerationFinishReason.STOP: "stop", genai.GenerationFinishReason.LENGTH: "length"}


@dataclass
class Answer:
    """One sequence under way."""

    prompt: Any
    config: Any
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[tuple[list[int], str | None]] = field(default_factory=asyncio.Queue)
    handle: Any = None

    def hand_out(self) -> bool:
        """Pass on what the last step gave; return whether it was the last."""
        tokens: list[int] = []
        finish = None
        while self.handle.can_read():
            for output in self.handle.read().values():
                tokens += output.generated_ids
                finish = ENDS.get(output.finish_reason, finish)
        over: bool = self.handle.get_status() != genai.GenerationStatus.RUNNING
        if tokens or over:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, (tokens, (finish or "stop") if over else None))
        return over


class Server:
    """The pipeline, stepped by one thread while anything is asked."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.pipeline = genai.ContinuousBatchingPipeline(str(folder), genai.SchedulerConfig(), "CPU")
        self.words = self.pipeline.get_tokenizer()
        self.pieces = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.numbers = itertools.count()
        self.incoming: deque[Answer] = deque()
        self.wake = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        under_way: list[Answer] = []
        while True:
            while self.incoming:
                answer = self.incoming.popleft()
                answer.handle = self.pipeline.add_request(next(self.numbers), answer.prompt, answer.config)
                under_way.append(answer)
            if not under_way:
                self.wake.wait()
                self.wake.clear()
                continue
            self.pipeline.step()
            under_way = [answer for answer in under_way if not answer.hand_out()]

    async def chat(self, request: Request) -> StreamingResponse:
        """POST /v1/chat/completions."""
        body = await request.json()
        text = self.words.apply_chat_template(body["messages"], add_generation_prompt=True)
        ids = self.words.encode([text], add_special_tokens=False).input_ids
        config = self.pipeline.get_config()
        config.max_new_tokens = body.get("max_tokens", 1024)
        config.do_sample = body.get("temperature", 1.0) > 0
        answer = Answer(ids, config, asyncio.get_running_loop())
        self.incoming.append(answer)
        self.wake.set()
        return StreamingResponse(self._events(answer, ids.shape[1]), media_type="text/event-stream")

    async def _events(self, answer: Answer, prompt_tokens: int) -> AsyncIterator[str]:
        stream = DecodeStream([], True)
        count, finish = 0, None
        while finish is None:
            tokens, finish = await answer.queue.get()
            count += len(tokens)
            text = "".join(stream.step(self.pieces, token) or "" for token in tokens)
            if text:
                yield self._event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
        yield self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": count,
            "total_tokens": prompt_tokens + count,
        }
        yield self._event({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"

    def _event(self, document: dict[str, Any]) -> str:
        head = {"id": "chatcmpl", "object": "chat.completion.chunk", "created": int(time.time()), "model": self.name}
        return f"data: {json.dumps(head | document)}\n\n"

    async def models(self, _: Request) -> JSONResponse:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [{"id": self.name, "object": "model"}]})


async def health(_: Request) -> JSONResponse:
    """GET /health."""
    return JSONResponse({})


def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    server = Server(options.folder)
    routes = [
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/models", server.models),
        Route("/health", health),
    ]
    uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
