"""GET /openapi.json: what the server takes and says, made of the models that read requests and the shapes of answers."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from quicksilver import __version__
from quicksilver.serve import shapes
from quicksilver.serve.wire import ChatRequest, CompletionRequest, TokenizeRequest, Wire

REF = "#/components/schemas/"
REQUEST_ID = {
    "description": "The request's own x-request-id if it has a sane one, else one that the server made; its log has it.",
    "required": True,
    "schema": {"type": "string"},
}
EVENTS = {
    "type": "string",
    "description": "Server-sent events, where the request's `stream` is true: OpenAI's chunks, and `[DONE]` as the last one."
    " A failure after the first chunk is an event with an Error.",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that can be asked."""

    method: str
    path: str
    summary: str
    answer: Any
    """What it says with 200: a shape, or the content type of what is no JSON. None if it always refuses."""
    errors: tuple[int, ...]
    body: type[Wire] | None = None
    streams: bool = False
    open: bool = False
    """Whether it wants no key."""


# 400, 408 and 413 come with reading a body, 404 with a model that isn't there, 503 while the model loads.
READ = (400, 408, 413)
OPERATIONS = (
    Operation("get", "/health", "Whether the model is loaded", shapes.Health, (503,), open=True),
    Operation("get", "/ready", "Whether requests should come", shapes.Ready, (429, 503), open=True),
    Operation("get", "/openapi.json", "This description", "application/json", (), open=True),
    Operation("get", "/metrics", "Counts in Prometheus' format", "text/plain", ()),
    Operation("get", "/v1/models", "The model", shapes.ModelList, (503,)),
    Operation("get", "/v1/models/{model}", "The model, by its name", shapes.ModelCard, (404, 503)),
    Operation("post", "/v1/chat/completions", "Answer a conversation", shapes.ChatCompletion,
              (*READ, 404, 429, 500, 503), ChatRequest, streams=True),
    Operation("post", "/v1/completions", "Continue texts or token ids", shapes.Completion,
              (*READ, 404, 429, 500, 503), CompletionRequest, streams=True),
    Operation("post", "/v1/embeddings", "Refused: there are no embeddings", None, (400,)),
    Operation("post", "/tokenize", "Turn a text or a conversation into token ids", shapes.Tokens,
              (*READ, 404, 503), TokenizeRequest),
)  # fmt: skip


class _Schemas(GenerateJsonSchema):
    """JSON schemas of requests that say what `Wire` does before it validates: null asks for nothing, and some values do."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Return the schema of one model."""
        made = super().model_schema(schema)
        model: type[BaseModel] = schema["cls"]
        if not issubclass(model, Wire):
            return made
        fields = made.setdefault("properties", {})
        for name, field in fields.items():
            if name not in made.get("required", ()) and {"type": "null"} not in field.get("anyOf", ()):
                about = {key: field.pop(key) for key in ("title", "default") if key in field}
                fields[name] = {"anyOf": [field, {"type": "null"}], **about}
        for name, values in model.neutral.items():
            if name not in fields:
                same = [value for number, value in enumerate(values) if value not in values[:number]]
                fields[name] = {"enum": [*same, None]}
        return made


def describe(*, keys: bool, notice: str = "") -> dict[str, Any]:
    """Return the server's description in OpenAPI 3.1; `keys` says whether it wants one, `notice` is what else to say of it."""
    kinds: list[Any] = [shapes.Error]
    kinds += [one for operation in OPERATIONS for one in (operation.body, operation.answer) if isinstance(one, type)]
    adapters = [(kind, "validation", TypeAdapter(kind)) for kind in dict.fromkeys(kinds)]
    # mypy takes the modes for plain strings.
    refs, defined = TypeAdapter.json_schemas(
        adapters,  # type: ignore[arg-type]
        ref_template=REF + "{model}",
        schema_generator=_Schemas,
    )
    schemas = {kind: refs[kind, "validation"] for kind, _, _ in adapters}
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, schemas, keys=keys)
    components: dict[str, Any] = {"schemas": defined["$defs"], "headers": {"x-request-id": REQUEST_ID}}
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Quicksilver",
            "version": __version__,
            "description": "A language model behind OpenAI's API. A field that isn't described here is refused, never dropped."
            + (f" {notice}" if notice else ""),
        },
        "paths": paths,
        "components": components,
    }


def _operation(operation: Operation, schemas: dict[Any, Any], *, keys: bool) -> dict[str, Any]:
    errors = {*operation.errors, *([401] if keys and not operation.open else [])}
    responses = {
        str(status): _response(status, {"application/json": schemas[shapes.Error]}) for status in sorted(errors)
    }
    if isinstance(operation.answer, str):
        responses["200"] = _response(200, {operation.answer: {}})
    elif operation.answer is not None:
        content = {"application/json": schemas[operation.answer]}
        responses["200"] = _response(200, content | ({"text/event-stream": EVENTS} if operation.streams else {}))
    found: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.path.strip("/}").replace("/", "_").replace("{", ""),
        "responses": responses,
    }
    if "{model}" in operation.path:
        found["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    if operation.body is not None:
        body = {"required": True, "content": {"application/json": {"schema": schemas[operation.body]}}}
        found["requestBody"] = body
    if keys and not operation.open:
        found["security"] = [{"key": []}]
    return found


def _response(status: int, content: dict[str, Any]) -> dict[str, Any]:
    headers: dict[str, Any] = {"x-request-id": {"$ref": "#/components/headers/x-request-id"}}
    if status == 429:
        headers["retry-after"] = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
    return {
        "description": HTTPStatus(status).phrase,
        "headers": headers,
        "content": {kind: {"schema": schema} for kind, schema in content.items()},
    }
