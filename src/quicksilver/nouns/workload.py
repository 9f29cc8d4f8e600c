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


class CodeTest(Noun):
    """How the code of an answer is tested: the program is what stands before, the answer's code, and the test."""

    before: str = Field(
        "", description="imports, and functions that the prompt gives; the answer may go on with its last one"
    )
    entry_point: str | None = Field(None, description="the function that the answer defines")
    test: str = Field(description="Python that raises if the answer is wrong")


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
    tests: CodeTest | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Prompt:
        if sum(x is not None for x in (self.prompt, self.messages, self.token_ids)) != 1:
            raise ValueError("give exactly one of 'prompt', 'messages' and 'token_ids'")
        return self

    def identity(self) -> Any:
        # Without these the hash is the one that it was before there were such fields: runs are taken up again by it.
        return self.model_dump(mode="json", exclude={f for f in ("arrival_s", "tests") if getattr(self, f) is None})

    @property
    def content(self) -> str:
        """What is asked, as one text; token ids are none."""
        return self.prompt or "\n\n".join(message.content for message in self.messages or ())


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
