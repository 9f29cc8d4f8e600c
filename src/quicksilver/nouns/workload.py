"""Workload: the user's prompts and reference answers, and the load that they come under."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from quicksilver.nouns.base import Noun

Split = Literal["calibration", "search", "evaluation"]
Task = Literal["none", "qa", "summary", "code"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Message(Noun):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Prompt(Noun):
    """One request of a workload: a text, a conversation or token ids."""

    id: str
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    references: tuple[str, ...] = ()
    max_tokens: int | None = Field(None, ge=1)
    group: str | None = None
    ignore_eos: bool = Field(False, description="synthetic shapes force the length of the answer")
    arrival_s: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="seconds after the first, in a recorded trace"
    )

    @model_validator(mode="after")
    def _one_form(self) -> Prompt:
        if sum(x is not None for x in (self.prompt, self.messages, self.token_ids)) != 1:
            raise ValueError("give exactly one of 'prompt', 'messages' and 'token_ids'")
        return self

    def identity(self) -> Any:
        # Without a trace the hash is the one that it was before there were traces: runs are taken up again by it.
        return self.model_dump(mode="json", exclude={"arrival_s"} if self.arrival_s is None else None)


class Workload(Noun):
    """Prompts in three disjoint splits, and the load to put on a server."""

    name: str
    calibration: tuple[Prompt, ...] = ()
    search: tuple[Prompt, ...] = ()
    evaluation: tuple[Prompt, ...] = ()
    max_tokens: int = Field(256, ge=1, description="for prompts that don't say")
    concurrencies: tuple[int, ...] = (1, 8)
    task: Task = Field("none", description="how answers are scored against references")
    seed: int = 0
    licence: str = "the user's own"
    remark: str = ""

    def split(self, name: Split) -> tuple[Prompt, ...]:
        """Return the prompts of one split."""
        prompts: tuple[Prompt, ...] = getattr(self, name)
        return prompts

    def identity(self) -> Any:
        prompts = {name: [prompt.identity() for prompt in self.split(name)] for name in SPLITS}
        return self.model_dump(mode="json", exclude={"licence", "remark", *SPLITS}) | prompts
