"""The shapes of answers, for the OpenAPI description; `serve.reply` and `serve.gateway` make them."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

# Nothing that isn't named here: the tests hold every answer against it.
shape = with_config(ConfigDict(extra="forbid"))
Count = Annotated[int, Field(ge=0)]


@shape
class ErrorDetail(TypedDict):
    """What went wrong, for people (message) and for programs (code); `param` names the request's field."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


@shape
class Error(TypedDict):
    """An answer other than 200, and the last event but one of a stream that fails."""

    error: ErrorDetail


@shape
class CompletionDetails(TypedDict):
    """Tokens that speculation guessed ahead, right and wrong; those that are right are among the answer's."""

    accepted_prediction_tokens: Count
    rejected_prediction_tokens: Count


@shape
class Usage(TypedDict):
    """Tokens of a request; a prompt with several answers counts once."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    completion_tokens_details: NotRequired[CompletionDetails]


@shape
class Likely(TypedDict):
    """A token that could have been chosen."""

    token: str
    logprob: float
    bytes: list[Annotated[int, Field(ge=0, le=255)]]


@shape
class Chosen(Likely):
    """A token that was chosen, and the likeliest ones in its place."""

    top_logprobs: list[Likely]


@shape
class ChatLogprobs(TypedDict):
    """Log-probabilities of an answer's tokens."""

    content: list[Chosen]
    refusal: None


@shape
class Called(TypedDict):
    """A function to call, and its arguments as a text of JSON."""

    name: str
    arguments: str


@shape
class Call(TypedDict):
    """A call that the model makes."""

    id: str
    type: Literal["function"]
    function: Called


@shape
class ChatMessage(TypedDict):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[Call]]


@shape
class ChatChoice(TypedDict):
    """One answer of a conversation."""

    index: Count
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


@shape
class ChatCompletion(TypedDict):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


@shape
class CompletionLogprobs(TypedDict):
    """Log-probabilities of tokens, the prompt's first where it is echoed; the very first token has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[Count]


@shape
class CompletionChoice(TypedDict):
    """One answer of a completion."""

    index: Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


@shape
class Completion(TypedDict):
    """The answers to prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


@shape
class ModelCard(TypedDict):
    """The model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None


@shape
class ModelList(TypedDict):
    """What can be asked for as `model`."""

    object: Literal["list"]
    data: list[ModelCard]


@shape
class Tokens(TypedDict):
    """A text or a conversation in token ids."""

    tokens: list[Count]
    count: Count
    max_model_len: int | None


@shape
class Health(TypedDict):
    """The server runs, with so many answers under way."""

    status: Literal["ok"]
    running: Count


@shape
class Ready(TypedDict):
    """The server takes requests."""

    status: Literal["ready"]
