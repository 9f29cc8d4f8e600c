"""The OpenAI API's requests and errors: what is understood, what is refused, and how that is said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from quicksilver.nouns import Request

MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_CHOICES = 128
"""Answers to one prompt, and prompts in one request."""
MAX_TOP = 20
"""Alternatives to a token that can be asked for."""
MAX_BIAS = 1024
"""Tokens whose logits a request can change."""
MAX_TOOLS = 128
MAX_ERROR = 1000
"""Characters of an error's message."""
MAX_SCHEMA = 100_000
"""Bytes of a JSON schema."""


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
        param = self.param if self.param is None else _short(self.param)
        return {"error": {"message": _short(str(self)), "type": kind, "param": param, "code": self.code}}


def _short(text: str) -> str:
    """Leave the middle out of what quotes too much of a request."""
    return text if len(text) <= MAX_ERROR else f"{text[: MAX_ERROR // 2]} ... {text[-MAX_ERROR // 2 :]}"


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
        isinstance(part, dict) and part == {"type": "text", "text": part.get("text")} and isinstance(part["text"], str)
        for part in value
    ):
        return "\n".join(part["text"] for part in value)
    raise PydanticCustomError(
        "content_type", "should be a string or a list of text parts, which have 'type' and 'text' only"
    )


def _schema(value: Any) -> Any:
    """Return a JSON schema of a bounded size."""
    if not isinstance(value, dict):
        raise PydanticCustomError("schema_type", "should be a JSON schema, an object")
    size = len(json.dumps(value))
    if size > MAX_SCHEMA:
        raise PydanticCustomError("schema_size", f"has {size} bytes, and at most {MAX_SCHEMA} are allowed")
    return value


def _arguments(value: Any) -> Any:
    """Return a call's arguments, which OpenAI has as a text of JSON and chat templates as an object."""
    if isinstance(value, str):
        try:
            found = json.loads(value or "{}")
            json.dumps(found, ensure_ascii=False).encode()  # JSON can escape half a surrogate pair, which is no text
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            return found
    raise PydanticCustomError("arguments_type", "should be a string that holds a JSON object")


Schema = Annotated[dict[str, Any], PlainValidator(_schema, json_schema_input_type=dict[str, Any])]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class CalledFunction(Wire):
    """What an assistant called, and with what."""

    name: str
    arguments: Annotated[dict[str, Any], PlainValidator(_arguments, json_schema_input_type=str)]


class ToolCall(Wire):
    """A call in an assistant's earlier turn."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


@with_config(ConfigDict(extra="forbid"))
class TextPart(TypedDict):
    """A part of a message's content; others than text are refused."""

    type: Literal["text"]
    text: str


class Message(Wire):
    """One turn of a conversation."""

    neutral = {"annotations": ([],)}
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, PlainValidator(_content, json_schema_input_type=str | list[TextPart])] = ""
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise _wrong("tool_calls", "belong to the assistant's messages")
        if "content" not in self.model_fields_set and not self.tool_calls:
            raise PydanticCustomError("missing", "is missing", {"param": "content"})
        return self

    def to_template(self) -> dict[str, Any]:
        """Return the message as chat templates read it; they know the developer's role as the system's."""
        message = self.model_dump(exclude_none=True, exclude={"tool_calls"})
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump(exclude_none=True) for call in self.tool_calls]
        return message | {"role": "system"} if self.role == "developer" else message


class Function(Wire):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: Schema | None = None
    strict: bool = False

    @model_validator(mode="after")
    def _takes_an_object(self) -> Self:
        if (self.parameters or {}).get("type", "object") != "object":
            raise _wrong("parameters", "should be the schema of an object")
        return self


class Tool(Wire):
    """A tool: functions are the only ones."""

    type: Literal["function"]
    function: Function

    def to_template(self) -> dict[str, Any]:
        """Return the tool as chat templates read it."""
        return {"type": "function", "function": self.function.model_dump(exclude_none=True, exclude={"strict"})}


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]


class NamedFunction(Wire):
    """The name of a function."""

    name: str


class NamedTool(Wire):
    """The tool that an answer has to call."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Wire):
    """A schema and what it is for; the answer fits it, `strict` or not."""

    name: Name
    definition: Schema = Field(alias="schema")
    strict: bool = False
    description: str | None = None


class ResponseFormat(Wire):
    """What the answer has to be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise PydanticCustomError("missing", "is missing", {"param": "json_schema"})
        if self.type != "json_schema" and self.json_schema is not None:
            raise _wrong("json_schema", "needs 'type' to be 'json_schema'")
        return self


def _choice(value: Any) -> Any:
    """Return a tool_choice's word, or the tool that it names."""
    if value in ("none", "auto", "required"):
        return value
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    if isinstance(function, dict) and isinstance(function.get("name"), str) and len(value) + len(function) == 3:
        return NamedTool.model_validate(value)
    raise PydanticCustomError("choice", "should be 'none', 'auto', 'required', or an object that names a function")


ToolChoice = Literal["none", "auto", "required"] | NamedTool
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[list[Stop], Field(max_length=MAX_STOPS)]
Prompt = str | list[int]
Prompts = Annotated[list[Prompt], Field(max_length=MAX_CHOICES)]


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
    top_k: int = Field(0, ge=-1, lt=2**31)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[Annotated[int, Field(strict=False)], Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, max_length=MAX_BIAS
    )
    stop: Annotated[tuple[str, ...], PlainValidator(_stops, json_schema_input_type=Stop | Stops)] = ()
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    min_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_tokens_as_token_ids: bool = False
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
        grammar: str | None = None,
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
            grammar=grammar,
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
    }
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    response_format: ResponseFormat = ResponseFormat()
    tools: Tools = Field(default_factory=list)
    tool_choice: Annotated[ToolChoice, PlainValidator(_choice, json_schema_input_type=ToolChoice)] = "auto"
    parallel_tool_calls: bool = True

    @model_validator(mode="after")
    def _agree(self) -> Self:
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise _wrong("max_tokens", "and 'max_completion_tokens' disagree: give one")
        if self.top_logprobs is not None and not self.logprobs:
            raise _wrong("top_logprobs", "needs 'logprobs' to be true")
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise _wrong("tools", "has two functions of one name")
        if self.forces_call and not names:
            raise _wrong("tool_choice", "needs 'tools'")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise _wrong("tool_choice", f"names the function {self.tool_choice.function.name!r}, which 'tools' lacks")
        return self

    @property
    def forces_call(self) -> bool:
        """Whether the answer has to be a tool call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def offered(self) -> list[Tool]:
        """The tools that the answer may call."""
        if isinstance(self.tool_choice, NamedTool):
            return [tool for tool in self.tools if tool.function.name == self.tool_choice.function.name]
        return [] if self.tool_choice == "none" else self.tools


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    neutral = {
        **{key: values for key, values in Sampling.neutral.items() if key != "echo"},
        "response_format": ({"type": "text"},),
    }
    prompt: Annotated[tuple[str | list[int], ...], PlainValidator(_prompts, json_schema_input_type=Prompt | Prompts)]
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
    tools: Tools = Field(default_factory=list)

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
    inner = [first["ctx"]["param"]] if "param" in first.get("ctx", {}) else []
    param = ".".join(str(part) for part in [*first["loc"], *inner]) or None
    if first["type"] == "extra_forbidden":
        raise ApiError(
            400, f"The field '{param}' is not supported by this server.", param=param, code="unsupported_parameter"
        )
    if first["type"] == "missing":
        raise ApiError(400, f"The field '{param}' is missing.", param=param, code="missing_required_parameter")
    message = first["msg"].removeprefix("Input ")
    raise ApiError(400, f"'{param}' {message}." if param else f"The body {message}.", param=param, code="invalid_value")
