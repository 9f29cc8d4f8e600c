"""The JSON Lines parser: what it takes, and how it names what it doesn't."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver.errors import BadInputError
from quicksilver.nouns.workload import Prompt
from quicksilver.sources import jsonl

visible = st.text(min_size=1).filter(str.strip)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.text()}
)
conversations = st.builds(
    lambda before, last: [*before, {"role": "user", "content": last}], st.lists(message, max_size=3), visible
)
optional = {
    "reference": visible | st.lists(visible, min_size=1, max_size=4) | st.none(),
    "max_tokens": st.integers(1, jsonl.MOST_ANSWER_TOKENS) | st.none(),
    "group": visible | st.none(),
    "id": visible | st.integers() | st.none(),
}
records = st.fixed_dictionaries({"prompt": visible}, optional=optional) | st.fixed_dictionaries(
    {"messages": conversations}, optional=optional
)


def parse_one(record: dict[str, Any] | str) -> Prompt:
    line = record if isinstance(record, str) else json.dumps(record)
    (prompt,) = jsonl.parse(line.encode(), "w.jsonl")
    return prompt


def refusal(data: bytes | str) -> str:
    with pytest.raises(BadInputError) as caught:
        jsonl.parse(data.encode() if isinstance(data, str) else data, "w.jsonl")
    return str(caught.value)


@given(records, st.booleans())
def test_every_valid_line_comes_back_as_it_was(record: dict[str, Any], ascii_only: bool) -> None:
    (prompt,) = jsonl.parse(json.dumps(record, ensure_ascii=ascii_only).encode(), "w.jsonl")
    assert prompt.prompt == record.get("prompt")
    turns = [m.model_dump() for m in prompt.messages] if prompt.messages else None
    assert turns == record.get("messages")
    reference = record.get("reference") or []
    assert list(prompt.references) == list(dict.fromkeys([reference] if isinstance(reference, str) else reference))
    assert prompt.max_tokens == record.get("max_tokens")
    assert prompt.group == record.get("group")
    assert prompt.id == ("line-1" if record.get("id") is None else str(record["id"]))
    assert not prompt.ignore_eos


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(jsonl.KEYS) | st.text(), inner),
    max_leaves=12,
)
almost = st.lists(json_values.map(json.dumps) | records.map(json.dumps), max_size=5).map("\n".join)


@given(st.binary() | almost.map(str.encode) | st.text().map(str.encode))
def test_garbage_is_refused_and_nothing_else(data: bytes) -> None:
    try:
        prompts = jsonl.parse(data, "w.jsonl")
    except BadInputError as error:
        assert str(error).startswith("w.jsonl ")
        assert "\n" not in str(error)
    else:
        assert prompts


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"prompt": "a"', "is not JSON (Expecting ',' delimiter at column 15)"),
        ("{'prompt': 'a'}", "is not JSON (Expecting property name enclosed in double quotes at column 2)"),
        ("[1, 2]\n3", "is a list, not an object with 'prompt' or 'messages'"),
        ('"text"', "is a string, not an object with 'prompt' or 'messages'"),
        ("null", "is nothing, not an object with 'prompt' or 'messages'"),
        ("{}", "has neither 'prompt' nor 'messages'"),
        ('{"prompt": null}', "has neither 'prompt' nor 'messages'"),
        ('{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', "has both 'prompt' and 'messages'"),
        ('{"prompt": 5}', "has a number for 'prompt', which is a string"),
        ('{"prompt": " \\n"}', "has an empty 'prompt'"),
        ('{"prompt": "a", "prompt": "b"}', "has the key 'prompt' twice"),
        ('{"prompt": "a", "refrence": "b"}', "has the unknown key 'refrence' (did you mean 'reference'?)"),
        (
            '{"prompt": "a", "zzz": 1}',
            "has the unknown key 'zzz' (known: prompt, messages, reference, tests, max_tokens, group, id, arrival_s)",
        ),
        ('{"prompt": "a", "max_tokens": NaN}', "has NaN, which is not JSON"),
        ('{"prompt": "a", "max_tokens": -Infinity}', "has -Infinity, which is not JSON"),
        ('{"prompt": "a", "max_tokens": 1e999}', "has a number for 'max_tokens', which is a whole number"),
        ('{"prompt": "a", "max_tokens": true}', "has true for 'max_tokens', which is a whole number"),
        ('{"prompt": "a", "max_tokens": "5"}', "has a string for 'max_tokens', which is a whole number"),
        ('{"prompt": "a", "max_tokens": 0}', "has a 'max_tokens' outside 1 to 1,000,000"),
        ('{"prompt": "a", "max_tokens": 1' + "0" * 5000 + "}", "has a number with too many digits"),
        ('{"prompt": "a", "reference": []}', "has an empty 'reference'"),
        ('{"prompt": "a", "reference": ["b", ""]}', "has an empty 'reference'"),
        (
            '{"prompt": "a", "reference": {"x": 1}}',
            "has an object for 'reference', which is a string or a list of strings",
        ),
        ('{"prompt": "a", "reference": [1, 2]}', "has a number in 'reference', which is a string or a list of strings"),
        ('{"prompt": "a", "tests": 1}', "has a number for 'tests', which is a string"),
        ('{"prompt": "a", "group": []}', "has a list for 'group', which is a string"),
        ('{"prompt": "a", "id": ""}', "has an empty 'id'"),
        ('{"prompt": "\\ud800"}', "has half a surrogate pair, which is not text"),
        ('{"messages": {}}', "has an object for 'messages', which is a list"),
        ('{"messages": []}', "has an empty list of 'messages'"),
        ('{"messages": ["a"]}', "has a string for message 1, which is an object with 'role' and 'content'"),
        (
            '{"messages": [{"role": "human", "content": "a"}]}',
            "has 'human' for the 'role' of message 1, which is one of system, user, assistant, tool",
        ),
        ('{"messages": [{"role": "user"}]}', "has nothing for the 'content' of message 1, which is a string"),
        (
            '{"messages": [{"role": "user", "contents": "a", "content": "b"}]}',
            "has the unknown key 'contents' (did you mean 'content'?) in message 1",
        ),
        ('{"messages": [{"role": "user", "content": " "}]}', "ends with an empty message"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            "ends with the assistant's turn, which leaves nothing to answer (put it under 'reference')",
        ),
        (
            '{"prompt": 5, "max_tokens": 0}',
            "has a number for 'prompt', which is a string and has a 'max_tokens' outside",
        ),
        ("[" * 100_000, "is nested too deeply"),
    ],
)
def test_bad_lines_are_named_with_the_reason(line: str, why: str) -> None:
    good = '{"prompt": "fine"}\n\n'
    assert refusal(good + line).startswith(f"w.jsonl can't be used: line 3 {why}")


def test_up_to_ten_bad_lines_are_named_at_once() -> None:
    assert refusal('{"prompt": "a"}\n{}\n{"prompt": "b"}\n5\n') == (
        "w.jsonl can't be used: line 2 has neither 'prompt' nor 'messages', "
        "line 4 is a number, not an object with 'prompt' or 'messages'."
    )
    ten, eleven, twelve = (refusal("{}\n" * count) for count in (10, 11, 12))
    assert ten.count("line ") == 10
    assert ten.endswith("line 10 has neither 'prompt' nor 'messages'.")
    assert eleven.endswith("line 10 has neither 'prompt' nor 'messages', and 1 more line is bad.")
    assert twelve.endswith(", and 2 more lines are bad.")


@pytest.mark.parametrize("data", [b"", b"\n\r\n  \n", codecs.BOM_UTF8])
def test_an_empty_file_is_refused(data: bytes) -> None:
    assert refusal(data) == 'w.jsonl is empty; it needs one JSON object a line, such as {"prompt": "Hello"}.'


def test_line_ends_and_a_byte_order_mark_do_no_harm() -> None:
    data = codecs.BOM_UTF8 + b'{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n'
    assert [(p.id, p.prompt) for p in jsonl.parse(data, "w")] == [("line-1", "a"), ("line-3", "b")]


def test_a_line_separator_inside_a_string_ends_no_line() -> None:
    assert parse_one('{"prompt": "a\u2028b\x85c"}').prompt == "a\u2028b\x85c"


def test_wrong_encodings_are_named() -> None:
    assert refusal('{"prompt": "a"}\n'.encode("utf-16")) == "w.jsonl is UTF-16 or UTF-32 text; save it as UTF-8."
    latin = '{"prompt": "a"}\n{"prompt": "caf\u00e9"}\n'.encode("latin-1")
    assert refusal(latin) == "w.jsonl can't be used: line 2 is not UTF-8 (byte 0xe9 at byte 16)."


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ([{"prompt": "a"}, {"prompt": "b"}], "a JSON array"),
        ({"prompt": "a", "id": "b"}, "one JSON object over several lines"),
    ],
)
def test_json_that_is_not_json_lines_is_recognised(value: Any, shape: str) -> None:
    expected = f"w.jsonl is {shape}; write JSON Lines, with one object on each line."
    assert refusal(json.dumps(value, indent=2)) == expected


def test_ids_are_unique() -> None:
    twice = '{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}\n'
    assert refusal(twice) == "w.jsonl can't be used: line 2 has the id 'x' of line 1."
    assert "line 2 has the id 'line-2' of line 1" in refusal('{"prompt": "a", "id": "line-2"}\n{"prompt": "b"}\n')
    same = '{"prompt": "a", "id": 7}\n'
    assert [p.id for p in jsonl.parse((same * 2).encode(), "w")] == ["7"]


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"can't be read: no such file or directory\.$"):
        jsonl.contents(tmp_path / "nothing.jsonl")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(BadInputError, match=r"loop can't be read: too many levels of symbolic links"):
        jsonl.contents(loop)
