"""RecordedRequest: a line of the record that an endpoint keeps of its traffic, which is a workload."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime, Field, model_validator

from quicksilver.nouns.base import Noun


class RecordedRequest(Noun):
    """One request that was generated for. What was said is there only where the record's owner consented."""

    record: Literal[1] = Field(description="the version of this format")
    time: AwareDatetime = Field(description="when it came")
    arrival_s: float = Field(ge=0, allow_inf_nan=False, description="seconds after the record's first")
    api: Literal["chat", "completions"]
    model: str
    stream: bool
    n: int = Field(1, ge=1, description="answers to each prompt")
    max_tokens: int | None = Field(None, ge=0, description="of an answer, if the request limited it")
    prompt_tokens: tuple[int, ...] = Field(min_length=1, description="one for each prompt")
    completion_tokens: tuple[int, ...] = Field(description="one for each answer, a prompt's answers together")
    finish_reasons: tuple[str, ...] = Field(description="of each answer; abort is one that didn't finish")
    ttft_ms: float | None = Field(None, description="from its arrival to the first token of any answer")
    duration_ms: float = Field(ge=0, description="from its arrival to the end of the last answer")
    sampling: dict[str, bool | int | float] = Field(default_factory=dict, description="what differs from the API's own")
    stop_strings: int = Field(0, ge=0)
    biased_tokens: int = Field(0, ge=0)
    tools: int = Field(0, ge=0)
    response_format: Literal["text", "json_object", "json_schema"] = "text"
    error: str | None = Field(None, description="its code")

    messages: tuple[dict[str, Any], ...] | None = None
    prompts: tuple[str | tuple[int, ...], ...] | None = None
    stop: tuple[str, ...] | None = None
    tool_definitions: tuple[dict[str, Any], ...] | None = None
    json_schema: dict[str, Any] | None = None
    answers: tuple[str | None, ...] | None = Field(None, description="null is one that didn't finish")

    @model_validator(mode="after")
    def _counts_agree(self) -> RecordedRequest:
        answers = len(self.prompt_tokens) * self.n
        if min(self.prompt_tokens) < 1 or min(self.completion_tokens, default=0) < 0:
            raise ValueError("a prompt has at least one token, and an answer none at least")
        for name in ("completion_tokens", "finish_reasons", "answers"):
            told = getattr(self, name)
            if told is not None and len(told) != answers:
                raise ValueError(f"'{name}' should have {answers} entries")
        if self.prompts is not None and len(self.prompts) != len(self.prompt_tokens):
            raise ValueError(f"'prompts' should have {len(self.prompt_tokens)} entries")
        if self.messages is not None and (self.prompts is not None or len(self.prompt_tokens) != 1):
            raise ValueError("'messages' are one prompt, and exclude 'prompts'")
        return self

    def line(self) -> bytes:
        """Return it as a line of JSON, without what says nothing."""
        return self.model_dump_json(exclude_defaults=True).encode() + b"\n"
