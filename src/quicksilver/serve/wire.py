"""The OpenAI API's requests and errors: what is understood, what is refused, and how that is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from quicksilver.nouns import Request

MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_CHOICES = 128
"""Answers to one prompt, and prompts in one request."""
MAX_TOP = 20
"""Alternatives to a token that can be asked for."""
MAX_BIAS = 1024
"""Tokens whose logits a request can change."""


_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer other than 200, in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """Return the JSON object to answer with."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Wire(BaseModel):
    """A request body: JSON's own types only, and no field that isn't understood."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields that nothing is done for, with the values that ask for nothing; null does so for every field."""

    @model_validator(mode="before")
    @classmethod
    def _ask_for_nothing(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {
            key: value
            for key, value in body.items()
            if value is not None and (key in cls.model_fields or value not in cls.neutral.get(key, ()))
        }


class StreamOptions(Wire):
    """What a stream carries besides text."""

    neutral = {"include_obfuscation": (False,)}
    include_usage: bool = False
    continuous_usage_stats: bool = False


def _wrong(param: str, message: str) -> PydanticCustomError:
    """Make the error for a field that doesn't go with the others."""
    return PydanticCustomError("invalid_value", "{message}", {"message": message, "param": param})


def _stops(value: Any) -> Any:
    """Return the stop strings as a list."""
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise PydanticCustomError("stop_type", "should be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise PydanticCustomError("stop_count", f"has {len(stops)} strings, and at most {MAX_STOPS} are allowed")
    if not all(0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise PydanticCustomError("stop_length", f"strings should have 1 to {MAX_STOP_CHARS} characters")
    return tuple(stops)


def _prompts(value: Any) -> Any:
    """Return the prompts of a request, each a text or a list of token ids."""
    prompts = value if isinstance(value, list) and value and isinstance(value[0], (str, list)) else [value]
    if len(prompts) > MAX_CHOICES:
        raise PydanticCustomError("prompt_count", f"has {len(prompts)} prompts, and at most {MAX_CHOICES} are allowed")
    if all(isinstance(p, str) or (isinstance(p, list) and all(type(token) is int for token in p)) for p in prompts):
        return tuple(prompts)
    raise PydanticCustomError("prompt_type", "should be a string or a list of token ids, or a list of such prompts")


def _content(value: Any) -> Any:
    """Return a message's content as one text; its parts are joined by newlines, as vLLM does."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in value
    ):
        return "\n".join(part["text"] for part in value)
    raise PydanticCustomError("content_type", "should be a string or a list of text parts")


class Message(Wire):
    """One turn of a conversation."""

    neutral = {"tool_calls": ([],)}
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, PlainValidator(_content)]
    name: str | None = None
    tool_call_id: str | None = None

    def to_template(self) -> dict[str, str]:
        """Return the message as chat templates read it; they know the developer's role as the system's."""
        message = self.model_dump(exclude_none=True)
        return message | {"role": "system"} if self.role == "developer" else message


class Sampling(Wire):
    """What completions and chat share."""

    neutral = {
        "best_of": (1,),
        "echo": (False,),
        "include_stop_str_in_output": (False,),
        "length_penalty": (1, 1.0),
        "min_p": (0, 0.0),
        "priority": (0,),
        "repetition_penalty": (1, 1.0),
        "response_format": ({"type": "text"},),
        "return_tokens_as_token_ids": (False,),
        "service_tier": ("auto", "default"),
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True,),
        "stop_token_ids": ([],),
        "store": (False,),
        "suffix": ("",),
        "use_beam_search": (False,),
    }
    model: str | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[Annotated[int, Field(strict=False)], Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, max_length=MAX_BIAS
    )
    stop: Annotated[tuple[str, ...], PlainValidator(_stops)] = ()
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    min_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Who asks, and for what: accepted, and of no consequence to an answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise _wrong("stream_options", "needs 'stream' to be true")
        return self

    @property
    def usage(self) -> Literal["never", "end", "each"]:
        """When a stream says how many tokens there were."""
        options = self.stream_options
        if options is None or not options.include_usage:
            return "never"
        return "each" if options.continuous_usage_stats else "end"

    def to_engine(
        self,
        prompt: list[int],
        *,
        max_tokens: int,
        logprobs: bool,
        top: int | None,
        echo: bool = False,
    ) -> Request:
        """Return the sequence to decode for the first answer to a prompt."""
        return Request(
            prompt=prompt,
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            echo=echo and logprobs,
            top_logprobs=top or 0,
            logit_bias=self.logit_bias,
        )


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    neutral = {
        **Sampling.neutral,
        "add_generation_prompt": (True,),
        "add_special_tokens": (False,),
        "chat_template_kwargs": ({},),
        "continue_final_message": (False,),
        "documents": ([],),
        "functions": ([],),
        "modalities": (["text"],),
        "parallel_tool_calls": (True, False),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
    }
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise _wrong("max_tokens", "and 'max_completion_tokens' disagree: give one")
        if self.top_logprobs is not None and not self.logprobs:
            raise _wrong("top_logprobs", "needs 'logprobs' to be true")
        return self


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    neutral = {key: values for key, values in Sampling.neutral.items() if key != "echo"}
    prompt: Annotated[tuple[str | list[int], ...], PlainValidator(_prompts)]
    max_tokens: int = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    echo: bool = False
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise _wrong("max_tokens", "of 0 needs 'echo' to be true")
        return self


class TokenizeRequest(Wire):
    """POST /tokenize, in vLLM's shape."""

    neutral = {"return_token_strs": (False,), "continue_final_message": (False,)}
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    add_generation_prompt: bool = True
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise _wrong("prompt", "or 'messages' has to be given, and not both")
        return self


W = TypeVar("W", bound=Wire)


def parse(kind: type[W], body: bytes) -> W:
    """Read a request. Raises ApiError 400 that names the field."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        raise ApiError(400, f"The body is not JSON: {first['ctx']['error']}.", code="invalid_json")
    param = ".".join(str(part) for part in first["loc"]) or first.get("ctx", {}).get("param")
    if first["type"] == "extra_forbidden":
        raise ApiError(
            400, f"The field '{param}' is not supported by this server.", param=param, code="unsupported_parameter"
        )
    if first["type"] == "missing":
        raise ApiError(400, f"The field '{param}' is missing.", param=param, code="missing_required_parameter")
    message = first["msg"].removeprefix("Input ")
    raise ApiError(400, f"'{param}' {message}." if param else f"The body {message}.", param=param, code="invalid_value")
