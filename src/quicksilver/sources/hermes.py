"""Tools for models whose chat template knows none: said in messages, in the form that Hermes and Qwen models learn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

OPENING = "<tool_call>"
CLOSING = "</tool_call>"
INTRODUCTION = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{tools}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML "
    'tags:\n<tool_call>\n{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)


def in_words(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a conversation whose tools, calls and results are text: tools in the system's message, results in the user's."""
    said: list[dict[str, Any]] = []
    for message in messages:
        role, content = message["role"], message.get("content") or ""
        if role == "tool":
            result = f"<tool_response>\n{content}\n</tool_response>"
            if said and said[-1].get("results"):
                said[-1]["content"] += "\n" + result
            else:
                said.append({"role": "user", "content": result, "results": True})
            continue
        calls = [_call(call["function"]) for call in message.get("tool_calls", ())]
        rest = {key: value for key, value in message.items() if key not in ("tool_calls", "content")}
        said.append({**rest, "content": "\n".join([*([content] if content or not calls else []), *calls])})
    if tools:
        text = INTRODUCTION.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
        if said and said[0]["role"] == "system":
            said[0]["content"] += "\n\n" + text
        else:
            said.insert(0, {"role": "system", "content": text})
    return [{key: value for key, value in message.items() if key != "results"} for message in said]


def _call(function: Mapping[str, Any]) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return f"{OPENING}\n{json.dumps(call, ensure_ascii=False)}\n{CLOSING}"
