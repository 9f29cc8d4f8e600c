"""Tools: the grammars that force calls, the calls found in a text, and what the wire says of both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver.engines.grammar import Grammars
from quicksilver.serve.tools import CallDelta, Delta, Form, ToolParser, grammars, whole_calls
from quicksilver.serve.wire import MAX_SCHEMA, MAX_TOOLS, ApiError, ChatRequest, parse
from quicksilver.sources.text import Tokenizer
from quicksilver.testing.tiny import make_tiny_model

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "What the weather is.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"city": {"type": "string"}},
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
NAMED = {"type": "function", "function": {"name": "weather"}}
FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "sum", "schema": {"type": "object", "properties": {"sum": {"type": "integer"}},
                                              "required": ["sum"], "additionalProperties": False}},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def chat(**fields: Any) -> ChatRequest:
    body = {"messages": [{"role": "user", "content": "Hi"}]} | fields
    return parse(ChatRequest, json.dumps(body).encode())


def fits(folder: Path, grammar: str, text: str) -> bool:
    """Whether a text follows a grammar to an end."""
    state = Grammars(folder, {2}).compile(grammar)
    for token in [*Tokenizer(folder).encode(text, special=False), 2]:
        if not state.allowed(512)[token]:
            return False
        state.take(token)
    return True


def call(name: str, arguments: str, form: Form = "hermes") -> str:
    if form == "bare":
        return f'{{"name": "{name}", "parameters": {arguments}}}'
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


OSLO, TODAY = '{"city": "Oslo"}', '{"city": "Oslo", "days": "1"}'


@pytest.mark.parametrize("form", ["hermes", "bare"])
def test_a_call_that_has_to_be_made_is_one_that_fits(folder: Path, form: Form) -> None:
    ((field, grammar),) = grammars(chat(tools=[WEATHER, NOW], tool_choice="required"), form)
    assert field == "tools"
    assert fits(folder, grammar, call("weather", OSLO, form))
    assert fits(folder, grammar, call("now", "{}", form))
    for wrong in (call("weather", TODAY, form), call("weather", "{}", form), call("then", "{}", form), "Oslo", ""):
        assert not fits(folder, grammar, wrong)
    ((_, named),) = grammars(chat(tools=[WEATHER, NOW], tool_choice=NAMED), form)
    assert fits(folder, named, call("weather", OSLO, form))
    assert not fits(folder, named, call("now", "{}", form))


def test_several_calls_may_come_unless_one_alone_is_asked_for(folder: Path) -> None:
    twice = call("weather", OSLO) + "\n" + call("now", "{}")
    options: list[tuple[dict[str, Any], bool]] = [({}, True), ({"parallel_tool_calls": False}, False)]
    for fields, many in options:
        ((_, grammar),) = grammars(chat(tools=[WEATHER, NOW], tool_choice="required", **fields), "hermes")
        assert fits(folder, grammar, twice) is many


@pytest.mark.parametrize("form", ["hermes", "bare"])
def test_an_answer_of_a_schema_or_a_call(folder: Path, form: Form) -> None:
    found = grammars(chat(tools=[WEATHER, NOW], response_format=FORMAT), form)
    assert [field for field, _ in found] == ["response_format", "tools"]
    for text, alone, either in (
        ('{"sum": 5}', True, True), (call("weather", OSLO, form), False, True), ('{"sum": "5"}', False, False)
    ):  # fmt: skip
        assert fits(folder, found[0][1], text) is alone
        assert fits(folder, found[1][1], text) is either


@pytest.mark.parametrize("form", ["hermes", "bare"])
def test_strict_tools_leave_the_text_free_and_the_calls_fitting(folder: Path, form: Form) -> None:
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    ((_, grammar),) = grammars(chat(tools=[strict, NOW]), form)
    for text in ("", "Well, 你好.\n", call("weather", OSLO, form)):
        assert fits(folder, grammar, text)
    assert not fits(folder, grammar, call("weather", TODAY, form))
    if form == "hermes":
        assert fits(folder, grammar, "Well.\n" + call("weather", OSLO) + "\n" + call("now", "{}") + " Yes.")


def test_what_asks_for_nothing_has_no_grammar() -> None:
    nothing: list[dict[str, Any]] = [
        {}, {"tools": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "none"}, {"tool_choice": "auto"},
        {"response_format": {"type": "text"}, "tools": [], "tool_choice": None},
    ]  # fmt: skip
    for fields in nothing:
        assert grammars(chat(**fields), "hermes") == []


@pytest.mark.parametrize("schema", [FORMAT, {"type": "json_object"}])
def test_json_is_an_object_without_endless_space(folder: Path, schema: dict[str, Any]) -> None:
    ((field, grammar),) = grammars(chat(response_format=schema), "hermes")
    assert field == "response_format"
    assert fits(folder, grammar, '{\n  "sum": 5\n}')
    for wrong in ("[]", " {}", '{"sum": 5} ', '{"sum": 5', "{" + " " * 100 + '"sum": 5}'):
        assert not fits(folder, grammar, wrong)


def test_many_large_tools_are_no_matter(folder: Path) -> None:
    properties = {f"p{n}": {"type": "number" if n % 2 else "string", "description": "x" * 50} for n in range(10)}
    tools = [
        {"type": "function", "function": {"name": f"tool_{n}", "parameters": {"type": "object", "properties": properties}}}
        for n in range(MAX_TOOLS)
    ]  # fmt: skip
    ((_, grammar),) = grammars(chat(tools=tools, tool_choice="required"), "hermes")
    assert fits(folder, grammar, call("tool_77", '{"p0": "a", "p1": 1.5}'))


def said(pieces: Sequence[str], names: Sequence[str] = ("weather", "now"), **fields: Any) -> tuple[str, list[Any]]:
    """What a parser makes of a text: its content and its calls as (name, arguments)."""
    numbers = count()
    parser = ToolParser(names, make_id=lambda: f"call_{next(numbers)}", **fields)
    deltas: list[Delta] = [*(parser.step(piece) for piece in pieces), parser.finish()]
    calls: list[CallDelta] = [delta for one in deltas for delta in one.calls]
    whole = whole_calls(calls)
    assert [one["id"] for one in whole] == [f"call_{n}" for n in range(len(whole))]
    assert [delta.index for delta in calls] == sorted(delta.index for delta in calls)
    assert parser.called >= len(whole)
    found = [(one["function"]["name"], one["function"]["arguments"]) for one in whole]
    return "".join(delta.content for delta in deltas), found


ONE = [("weather", OSLO)]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("Hello {} there. ", "Hello {} there. ", []),
        (call("weather", OSLO), "", ONE),
        ("Let me see.\n" + call("weather", OSLO), "Let me see.", ONE),
        ("\n\n" + call("weather", OSLO) + "\n" + call("now", "{}") + "\n", "", [*ONE, ("now", "{}")]),
        (call("weather", OSLO) + "\nThere.", "\nThere.", ONE),
        (call("weather", OSLO) + "\nThere. " + call("now", "{}"), "\nThere.", [*ONE, ("now", "{}")]),
        (call("weather", OSLO, "bare"), "", ONE),
        (call("weather", OSLO, "bare") + "; " + call("now", "{}", "bare"), "", [*ONE, ("now", "{}")]),
        ('{"parameters": {"city": "Oslo"}, "name": "weather"}', "", ONE),
        ('{"type": "function", "name": "weather", "parameters": {"city": "Oslo"}, "id": 5}', "", ONE),
        ('{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}', "", ONE),
        ('{"name": "now"}', "", [("now", "{}")]),
        ('{"name": "weather", "parameters": {"city": "}{\\"", "x": [{}]}}', "", [("weather", '{"city": "}{\\"", "x": [{}]}')]),
        ('<tool_call>{"name": "weather", "arguments": {"city": "Os', "", [("weather", '{"city": "Os')]),
        # What looks like a call and is none stays text, all of it.
        ('{"name": "Anna", "parameters": {}}', '{"name": "Anna", "parameters": {}}', []),
        ('{"name": "weather", "sum": 5}', '{"name": "weather", "sum": 5}', []),
        ('{"name": "weather", "arguments": [1]}', '{"name": "weather", "arguments": [1]}', []),
        ('{"name": "weather", "argu', '{"name": "weather", "argu', []),
        ("a  <tool_call>no</tool_call>", "a  <tool_call>no</tool_call>", []),
        ("a <tool_call><tool_call>" + call("now", "{}")[11:], "a <tool_call>", [("now", "{}")]),
        ("a <tool", "a <tool", []),
        ("a {}\n" + call("weather", OSLO, "bare"), "a {}\n" + call("weather", OSLO, "bare"), []),
        ("{}", "{}", []),
        (" ", " ", []),
    ],
)  # fmt: skip
def test_calls_are_found_in_a_text(text: str, content: str, calls: list[Any]) -> None:
    assert said([text]) == (content, calls)
    assert said([*text]) == (content, calls)


def test_one_call_at_most_where_one_is_asked_for() -> None:
    assert said([call("weather", OSLO) + call("now", "{}")], parallel=False) == ("", ONE)


def test_arguments_come_while_they_are_written() -> None:
    parser = ToolParser(["weather"])
    first = parser.step('Yes. <tool_call>{"name": "weather", "arguments": {"ci')
    assert first.content == "Yes."
    assert [(one.name, one.arguments) for one in first.calls] == [("weather", '{"ci')]
    assert [one.arguments for one in parser.step('ty": "Oslo"').calls] == ['ty": "Oslo"']
    assert parser.step("}").calls[0].to_wire() == {"index": 0, "function": {"arguments": "}"}}
    assert parser.step("}</tool_call>") == Delta()


words = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<tool", "\n", " ", "{", "}", '"', "\\", ",", ":", ";", "[", "]", '"name"', '"now"',
     '"arguments": ', '"parameters"', "{}", "Hi", "<", call("now", "{}"), call("weather", OSLO),
     call("weather", '{"a": "\\"}"}', "bare"), '{"name": "now", "arguments": {', '{"name": "no"']
)  # fmt: skip


@given(text=st.lists(words | st.text(max_size=3), max_size=14).map("".join), data=st.data())
def test_however_a_text_is_cut_the_pieces_add_up(text: str, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    edges = sorted({0, len(text), *cuts})
    assert said([text[a:b] for a, b in pairwise(edges)]) == said([text])


@given(text=st.text(alphabet='ab<>{} \n"', max_size=40))
def test_text_without_calls_is_left_as_it_is(text: str) -> None:
    assert said([text]) == (text, [])


MANY = [{"type": "function", "function": {"name": f"f{n}"}} for n in range(MAX_TOOLS + 1)]
CALLED = [{"function": {"name": "a", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tools": [{"type": "search"}]}, "tools.0.type", "'function'"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "missing"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "pattern"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}, "tools.0.function.parameters", "object"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]},
         "tools.0.function.parameters", "object"),
        ({"tools": [NOW, NOW]}, "tools", "two functions"),
        ({"tools": MANY}, "tools", "128"),
        ({"tool_choice": "required"}, "tool_choice", "needs 'tools'"),
        ({"tools": [NOW], "tool_choice": NAMED}, "tool_choice", "'weather'"),
        ({"tools": [NOW], "tool_choice": "any"}, "tool_choice", "'required'"),
        ({"tools": [NOW], "tool_choice": ["auto"]}, "tool_choice", "'required'"),
        ({"tools": [NOW], "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "names a function"),
        ({"tools": [NOW], "parallel_tool_calls": 1}, "parallel_tool_calls", "boolean"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
         "response_format.json_schema.schema", "missing"),
        ({"response_format": {"type": "json_object", "json_schema": FORMAT["json_schema"]}},
         "response_format.json_schema", "'type'"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": "x" * MAX_SCHEMA}}}},
         "response_format.json_schema.schema", "100000"),
        ({"messages": [{"role": "assistant"}]}, "messages.0.content", "missing"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": CALLED}]}, "messages.0.tool_calls", "assistant"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "[]"}}]}]},
         "messages.0.tool_calls.0.function.arguments", "JSON object"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": '{"a": "\\ud800"}'}}]}]},
         "messages.0.tool_calls.0.function.arguments", "JSON object"),
        ({"functions": [NOW["function"]]}, "functions", "not supported"),
    ],
)  # fmt: skip
def test_what_can_t_be_honoured_names_the_field(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert message in str(caught.value)


TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Is it warm in Oslo?"},
    {"role": "assistant", "content": None, "refusal": None, "annotations": [], "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": OSLO}}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "It snows."},
]  # fmt: skip


def render(folder: Path, **fields: Any) -> str:
    asked = chat(**fields)
    return Tokenizer(folder).chat(
        [message.to_template() for message in asked.messages], tools=[tool.to_template() for tool in asked.tools]
    )


def test_a_template_without_tools_gets_them_in_words(folder: Path) -> None:
    text = render(folder, messages=TURNS, tools=[WEATHER, NOW])
    turns = text.split("<|im_start|>")[1:]
    assert [turn.split("\n")[0] for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    offered = turns[0].split("<tools>\n")[1].split("\n</tools>")[0].splitlines()
    assert [json.loads(line) for line in offered] == [WEATHER, NOW]
    assert call("weather", OSLO) in turns[2]
    assert turns[3] == "user\n<tool_response>\nIt snows.\n</tool_response><|im_end|>\n"
    twice = render(folder, messages=[*TURNS, TURNS[-1]]).split("<|im_start|>")[1:]
    assert twice[2].count("<tool_response>") == 2
    system = {"role": "system", "content": "Be brief."}
    assert "<|im_start|>system\nBe brief.\n\n# Tools" in render(folder, messages=[system, *TURNS], tools=[NOW])
    assert Tokenizer(folder).tagged_calls


KNOWING = (
    "{% for tool in tools or [] %}{{ tool.function.name }}({{ tool.function.parameters is defined }}) {% endfor %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %};{% endfor %}"
)


def test_a_template_with_tools_gets_them_as_they_are(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(KNOWING, encoding="utf-8")
    expected = "weather(True) now(False) user:Is it warm in Oslo?;assistant:Oslo;tool:It snows.;"
    assert render(folder, messages=TURNS, tools=[WEATHER, NOW]) == expected
    assert not Tokenizer(folder).tagged_calls
    # A model may have a template for tools alone.
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    templates = {"default": "plain", "tool_use": KNOWING}
    config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert render(folder, messages=TURNS, tools=[WEATHER, NOW]) == expected
    assert render(folder, messages=TURNS[:1]) == "plain"
