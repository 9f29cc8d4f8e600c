"""Job: what the load client is told to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, model_validator

from quicksilver.nouns.base import Noun
from quicksilver.nouns.workload import Prompt


class Call(Noun):
    """One request of a job: where it goes and the part of its body that is its own."""

    id: str
    path: Literal["/chat/completions", "/completions"]
    body: dict[str, Any]


class Job(Noun):
    """What the client process reads on stdin, as one JSON document."""

    url: str = Field(description="ends in /v1")
    model: str
    calls: tuple[Call, ...]
    concurrency: int = Field(ge=1, description="most requests under way")
    streams: tuple[int, ...] = Field(
        (), description="closed loop: those under way once each request is sent, if they rise"
    )
    due_s: tuple[float, ...] = Field((), description="open loop: when each request is sent, seconds after the first")
    load: str = Field("", description="the load's name, for its Samples")
    out: Path
    timeout_s: float = Field(600.0, gt=0, description="limit of one request, and of the server's silence")
    api_key_env: str | None = None
    warmup: bool = False
    round: int = 0
    turn: int = 0

    @model_validator(mode="after")
    def _one_loop(self) -> Job:
        if self.due_s and (self.streams or len(self.due_s) != len(self.calls)):
            raise ValueError("an open loop has a moment for each call, and no streams")
        return self


def call(prompt: Prompt, max_tokens: int, fields: Mapping[str, Any] = MappingProxyType({})) -> Call:
    """Make a prompt's request: conversations go to chat completions, texts and token ids to completions."""
    body: dict[str, Any] = {"max_tokens": prompt.max_tokens or max_tokens, **fields}
    if prompt.ignore_eos:
        body["ignore_eos"] = True
    if prompt.messages is not None:
        body["messages"] = [message.model_dump() for message in prompt.messages]
        return Call(id=prompt.id, path="/chat/completions", body=body)
    body["prompt"] = prompt.prompt if prompt.prompt is not None else list(prompt.token_ids or ())
    return Call(id=prompt.id, path="/completions", body=body)
