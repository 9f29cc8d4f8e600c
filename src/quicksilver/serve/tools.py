"""Structured answers: the grammars that force them, and the tool calls that are found in a text as it comes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from quicksilver.serve.wire import ChatRequest, Tool
from quicksilver.sources.hermes import CLOSING, OPENING

Form = Literal["hermes", "bare"]
"""How a model writes a call: `<tool_call>{"name", "arguments"}</tool_call>`, or `{"name", "parameters"}` for its whole answer."""
CALL_KEYS = ("name", "arguments", "parameters", "type", "id")
"""What a call's object may have; an object with another key is no call."""
SPACE = " \t\r\n"
BETWEEN = SPACE + ";"
"""What may stand between two calls."""
# Any white space would let a small model write nothing else until it has no tokens left.
JSON_SPACE = {"x-guidance": {"whitespace_pattern": r"[ \t\n]{1,32}"}}
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def grammars(asked: ChatRequest, form: Form) -> list[tuple[str, str]]:
    """Return the grammars that a request has to pass, each with the field it comes from; the last is its answer's."""
    tools, many = asked.offered, asked.parallel_tool_calls
    if asked.forces_call:
        return [("tools", f"start: calls\n{_calls(tools, form, many=many and asked.tool_choice == 'required')}")]
    found: list[tuple[str, str]] = []
    schema = _schema(asked)
    if schema is not None:
        answer = f"answer: {_json(schema)}\n"
        found.append(("response_format", f"start: answer\n{answer}"))
        if tools:
            found.append(("tools", f"start: answer | calls\n{answer}{_calls(tools, form, many=many)}"))
    elif any(tool.function.strict for tool in tools):
        found.append(("tools", _triggered(tools, form, many=many)))
    return found


def _schema(asked: ChatRequest) -> dict[str, Any] | None:
    form = asked.response_format
    if form.json_schema is not None:
        return form.json_schema.definition
    return {"type": "object"} if form.type == "json_object" else None


def _json(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps(schema | JSON_SPACE)}"


def _calls(tools: Sequence[Tool], form: Form, *, many: bool) -> str:
    """Return the rules of `calls`: one of the tools, or with `many` any number of them."""
    if form == "bare":
        return f"calls: body\n{_bodies(tools, form)}"
    more = ' ("\\n" call)*' if many else ""
    rules = f'calls: call{more}\ncall: "{OPENING}\\n" body "\\n{CLOSING}"\n'
    return rules + _bodies(tools, form)


def _triggered(tools: Sequence[Tool], form: Form, *, many: bool) -> str:
    """Return the grammar of any text, in which what begins as a call goes on as one."""
    if form == "bare":
        return f"start: text | body\ntext: /([^{{ \\t\\n](.|\\n)*)?/\n{_bodies(tools, form)}"
    calls = "call*" if many else "call?"
    return (
        f"start: {calls} TEXT\nTEXT: /(.|\\n)*/\n"
        f'head[lazy]: TEXT "{OPENING}"\ncall: head "\\n" body "\\n{CLOSING}"\n{_bodies(tools, form)}'
    )


def _bodies(tools: Sequence[Tool], form: Form) -> str:
    key = "arguments" if form == "hermes" else "parameters"
    rules = [f"body: {' | '.join(f'body_{n}' for n in range(len(tools)))}"]
    for n, tool in enumerate(tools):
        schema = {
            "type": "object",
            "properties": {"name": {"const": tool.function.name}, key: _parameters(tool, f"#/properties/{key}")},
            "required": ["name", key],
            "additionalProperties": False,
        }
        rules.append(f"body_{n}: {_json(schema)}")
    return "\n".join(rules) + "\n"


def _parameters(tool: Tool, place: str) -> dict[str, Any]:
    """Return the schema of a tool's arguments, an object's, with its references to itself moved to where it stands now."""
    schema: dict[str, Any] = _moved(tool.function.parameters or NO_PARAMETERS, place)
    return schema if "type" in schema or "$ref" in schema else {"type": "object"} | schema


def _moved(value: Any, place: str) -> Any:
    if isinstance(value, list):
        return [_moved(part, place) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        key: place + part[1:]
        if key == "$ref" and isinstance(part, str) and part.startswith("#")
        else _moved(part, place)
        for key, part in value.items()
    }


@dataclass(slots=True)
class CallDelta:
    """A piece of a tool call: its first has the id and the name, the others more of the arguments."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return it as OpenAI's streams have it."""
        function: dict[str, Any] = {"arguments": self.arguments}
        if self.name is None:
            return {"index": self.index, "function": function}
        return {"index": self.index, "id": self.id, "type": "function", "function": {"name": self.name} | function}


@dataclass(slots=True)
class Delta:
    """What a piece of text adds to an answer."""

    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)


def whole_calls(deltas: Sequence[CallDelta]) -> list[dict[str, Any]]:
    """Return the calls that deltas add up to, as OpenAI's messages have them."""
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        if delta.name is not None:
            calls.append(
                {"id": delta.id, "type": "function", "function": {"name": delta.name, "arguments": delta.arguments}}
            )
        else:
            calls[delta.index]["function"]["arguments"] += delta.arguments
    return calls


class ToolParser:
    """Finds the calls of known tools in a text that comes in pieces. What it says doesn't depend on how the text is cut.

    A call is `<tool_call>{...}</tool_call>` anywhere, or an object `{"name": ..., "parameters": {...}}` that the answer
    begins with, and others after it. What may become one is held back; white space around calls is dropped.
    """

    def __init__(
        self,
        names: Collection[str],
        *,
        parallel: bool = True,
        make_id: Callable[[], str] = lambda: f"call_{uuid.uuid4().hex[:24]}",
    ) -> None:
        self._names = names
        self._most = None if parallel else 1
        self._make_id = make_id
        self._state: Literal["between", "text", "object", "closing"] = "between"
        self._held = ""
        """Text that may belong to a call."""
        self._object = _CallScanner(names)
        self._tagged = False
        """Whether the object at hand came after an opening tag."""
        self.called = 0
        """Calls that have begun."""

    def step(self, text: str) -> Delta:
        """Return what a piece of text adds."""
        delta = Delta()
        for char in text:
            self._take(char, delta)
        return delta

    def finish(self) -> Delta:
        """Return what was held back and turned out to be no call."""
        held, self._held = self._held, ""
        if self._state == "closing" or (self.called and not held.strip(BETWEEN)):
            return Delta()
        return Delta(held)

    def _take(self, char: str, delta: Delta) -> None:
        if self._state == "object":
            self._in_object(char, delta)
            return
        self._held += char
        if self._state == "closing":
            rest = self._held.lstrip(SPACE)
            if rest == CLOSING:
                self._held, self._state = "", "between"
            elif not CLOSING.startswith(rest):
                self._held, self._state = "", "between"
                for other in rest:
                    self._take(other, delta)
        elif self._state == "between":
            rest = self._held.lstrip(BETWEEN if self.called else SPACE)
            if rest == "{" and not (self.called and self._tagged):
                self._begin(tagged=False)
            elif rest == OPENING:
                self._begin(tagged=True)
            elif rest and not OPENING.startswith(rest):
                self._state = "text"
                self._free(delta)
        else:
            self._free(delta)

    def _free(self, delta: Delta) -> None:
        """Let go of the text that can't be the beginning of a call."""
        held = self._held
        if held.endswith(OPENING):
            self._begin(tagged=True)
        start = next((n for n in range(min(len(OPENING), len(held)), 0, -1) if held.endswith(OPENING[:n])), 0)
        keep = len(held[: len(held) - start].rstrip(SPACE))
        delta.content += held[:keep]
        self._held = held[keep:]

    def _begin(self, *, tagged: bool) -> None:
        self._state, self._tagged = "object", tagged
        self._object = _CallScanner(self._names)
        if not tagged:
            self._object.step("{")

    def _in_object(self, char: str, delta: Delta) -> None:
        scanner = self._object
        scanner.step(char)
        if not scanner.opened:
            self._held += char
        if scanner.begins and not scanner.opened:
            scanner.opened = True
            self._held = ""
            if self._most is None or self.called < self._most:
                delta.calls.append(CallDelta(self.called, "", self._make_id(), scanner.name))
            self.called += 1
        if scanner.opened:
            said = scanner.arguments()
            if said and (self._most is None or self.called <= self._most):
                if delta.calls and delta.calls[-1].index == self.called - 1:
                    delta.calls[-1].arguments += said
                else:
                    delta.calls.append(CallDelta(self.called - 1, said))
            if scanner.over:
                self._state = "closing" if self._tagged else "between"
        elif scanner.wrong:
            self._state = "text"
            self._free(delta)


class _CallScanner:
    """Reads the JSON object of a call, a character at a time."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._text = ""
        self._depth = 0
        self._quoted = self._escaped = False
        self._key: str | None = None
        """The key whose value is being read, at the outermost level."""
        self._start = 0
        """Where the key or value at hand began."""
        self._said: list[str] = []
        self._streams = False
        self.name: str | None = None
        self.opened = False
        """Whether it was announced."""
        self.begins = False
        """Whether it is known to be a call."""
        self.over = False
        self.wrong = False
        """Whether it is no call of a known tool."""

    def arguments(self) -> str:
        """Return what is new of the arguments' text."""
        said = "".join(self._said)
        self._said.clear()
        return said

    def step(self, char: str) -> None:
        """Take in the next character."""
        if not self._depth:
            if char not in SPACE:
                self._text, self._depth, self._start, self.wrong = char, 1, 1, char != "{"
            return
        if not self.begins:
            self._text += char
        if self._streams:
            self._said.append(char)
        if self._quoted:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._quoted = False
        elif char == '"':
            self._quoted = True
        elif char in "{[":
            self._depth += 1
            if char == "{" and self._depth == 2 and not self.begins:
                self._open_value()
        elif char in "}]":
            self._depth -= 1
            if self._depth <= 1:
                self._streams = False
            if self._depth == 0:
                self._end()
        elif self._depth == 1 and not self.begins:
            if char == ":" and self._key is None:
                self._end_key()
            elif char == ",":
                self._end_value()

    def _open_value(self) -> None:
        """Begin to hand on the arguments, if it is them, and it is known whose they are."""
        known = self.name is not None and self._key in ("arguments", "parameters")
        if known and not self._value():
            self.begins = self._streams = True
            self._said.append("{")

    def _value(self) -> str:
        """Return the text between the last separator and this one."""
        return self._text[self._start : -1].strip(SPACE)

    def _end_key(self) -> None:
        key = _loads(self._value())
        self.wrong = self.wrong or key not in CALL_KEYS
        self._key = key if isinstance(key, str) else ""
        self._start = len(self._text)

    def _end_value(self) -> None:
        if self._key == "name":
            name = _loads(self._value())
            self.name = name if isinstance(name, str) else None
            self.wrong = self.wrong or self.name not in self._names
        self._key = None
        self._start = len(self._text)

    def _end(self) -> None:
        """Judge the whole object, unless its arguments were on their way already."""
        self.over = True
        if self.begins:
            return
        self._end_value()
        call = _loads(self._text)
        found = call.get("arguments", call.get("parameters", {})) if isinstance(call, dict) else None
        if isinstance(found, str):  # some models write the arguments as a text
            found = _loads(found)
        if self.wrong or not isinstance(found, dict) or self.name is None or call.get("name") != self.name:
            self.wrong = True
            return
        self.begins = True
        self._said.append(json.dumps(found, ensure_ascii=False))


def _loads(text: str) -> Any:
    """Return a JSON value, or None for what isn't one."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
