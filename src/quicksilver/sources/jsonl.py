"""Prompts from a JSON Lines file of the user's."""

from __future__ import annotations

import codecs
import difflib
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from quicksilver.errors import BadInputError
from quicksilver.nouns.workload import CodeTest, Message, Prompt, Task

KEYS = ("prompt", "messages", "reference", "tests", "max_tokens", "group", "id", "arrival_s")
MESSAGE_KEYS = ("role", "content")
MOST_ANSWER_TOKENS = 1_000_000
MOST_SECONDS = 1_000_000_000
_ROLES: tuple[str, ...] = get_args(Message.model_fields["role"].annotation)
_LINES_SHOWN = 10
# References of more words than this are summaries or explanations, for which exact match says nothing.
_SHORT_ANSWER_WORDS = 10
_UTF_16_OR_32 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


class _BadLineError(Exception):
    """Why one line can't be used; the message follows the words `line 7`."""


def contents(path: Path) -> bytes:
    """Return what a file holds. Raises BadInputError."""
    try:
        if path.is_dir():
            raise BadInputError(f"{path} is a directory; give a JSON Lines file with one prompt a line.")
        if path.is_block_device() or path.is_char_device():
            raise BadInputError(f"{path} is a device, not a file.")
        return path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{path} can't be read: {(error.strerror or str(error)).lower()}.") from error


def lines(data: bytes, name: str) -> list[tuple[int, bytes]]:
    """Return a document's lines with their numbers, empty ones left out. Raises BadInputError for text that isn't UTF-8."""
    if data.startswith(_UTF_16_OR_32):
        raise BadInputError(f"{name} is UTF-16 or UTF-32 text; save it as UTF-8.")
    # Only \n ends a line (\r before it is white space to JSON): str.splitlines would cut at U+2028, which JSON allows.
    cut = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [(number, line) for number, line in enumerate(cut, 1) if line.strip()]


def parse(data: bytes, name: str) -> list[Prompt]:
    """Parse a JSON Lines document; `name` is what errors call it. Raises BadInputError, which names every bad line (up to ten)."""
    prompts: list[Prompt] = []
    bad: list[tuple[int, str]] = []
    by_id: dict[str, tuple[int, Prompt]] = {}
    found = lines(data, name)
    for number, line in found:
        try:
            prompt = _prompt(line, number)
        except _BadLineError as error:
            bad.append((number, str(error)))
            continue
        first, same = by_id.setdefault(prompt.id, (number, prompt))
        if first == number:
            prompts.append(prompt)
        elif prompt != same:  # a whole line that is there twice does no harm
            bad.append((number, f"has the id {_short(prompt.id)} of line {first}"))
    if bad:
        refuse(name, data, bad, len(found))
    if not prompts:
        raise BadInputError(f'{name} is empty; it needs one JSON object a line, such as {{"prompt": "Hello"}}.')
    return prompts


def task(prompts: Sequence[Prompt]) -> Task:
    """Choose how a file's answers are scored: by tests, short references as questions, longer ones as summaries."""
    if any(prompt.tests for prompt in prompts):
        return "code"
    words = [len(prompt.references[0].split()) for prompt in prompts if prompt.references]
    if not words:
        return "none"
    return "qa" if statistics.median(words) <= _SHORT_ANSWER_WORDS else "summary"


def refuse(name: str, data: bytes, bad: Sequence[tuple[int, str]], count: int) -> NoReturn:
    """Raise the error that names the bad ones of so many lines, or says that the file is JSON of another shape."""
    try:
        whole = json.loads(data.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, list) or (isinstance(whole, dict) and count > 1):
        shape = "a JSON array" if isinstance(whole, list) else "one JSON object over several lines"
        raise BadInputError(f"{name} is {shape}; write JSON Lines, with one object on each line.")
    shown = ", ".join(f"line {number} {why}" for number, why in bad[:_LINES_SHOWN])
    more = len(bad) - _LINES_SHOWN
    rest = f", and {more} more {'line is' if more == 1 else 'lines are'} bad" if more > 0 else ""
    raise BadInputError(f"{name} can't be used: {shown}{rest}.")


def _prompt(line: bytes, number: int) -> Prompt:
    """Read one line. Raises _BadLineError with all that is wrong with it."""
    record = _record(line)
    wrong = _unknown_keys(record, KEYS)
    given = {key: value for key, value in record.items() if key in KEYS and value is not None}
    if ("prompt" in given) == ("messages" in given):
        both = "prompt" in given
        wrong.append("has both 'prompt' and 'messages'" if both else "has neither 'prompt' nor 'messages'")
    if "prompt" in given:
        wrong += _text_problems(given["prompt"], "'prompt'")
    if "messages" in given:
        wrong += _messages_problems(given["messages"])
    references = given.get("reference", [])
    references = references if isinstance(references, list) else [references]
    if "reference" in given:
        wrong += _reference_problems(given["reference"])
    if "max_tokens" in given:
        wrong += _max_tokens_problems(given["max_tokens"])
    if "arrival_s" in given:
        wrong += _arrival_problems(given["arrival_s"])
    if "tests" in given:
        wrong += _text_problems(given["tests"], "'tests'")
    for key in ("id", "group"):
        if key in given and not _whole(given[key]):
            wrong += _text_problems(given[key], repr(key))
    if wrong:
        raise _BadLineError(" and ".join(wrong))
    return Prompt(
        id=str(given.get("id", f"line-{number}")),
        prompt=given.get("prompt"),
        messages=tuple(Message(**m) for m in given["messages"]) if "messages" in given else None,
        references=tuple(dict.fromkeys(references)),
        max_tokens=given.get("max_tokens"),
        tests=CodeTest(test=given["tests"]) if "tests" in given else None,
        group=str(given["group"]) if "group" in given else None,
        arrival_s=given.get("arrival_s"),
    )


def _record(line: bytes) -> dict[str, Any]:
    """Parse a line as a JSON object. Raises _BadLineError."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise _BadLineError(f"is not UTF-8 (byte 0x{line[error.start]:02x} at byte {error.start + 1})") from error
    try:
        record = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_key_twice)
    except json.JSONDecodeError as error:
        raise _BadLineError(f"is not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise _BadLineError("is nested too deeply") from error
    except ValueError as error:  # Python's limit on the digits of an integer
        raise _BadLineError("has a number with too many digits") from error
    if not isinstance(record, dict):
        raise _BadLineError(f"is {_kind(record)}, not an object with 'prompt' or 'messages'")
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair, which is no text
        raise _BadLineError("has half a surrogate pair, which is not text") from error
    return record


def _no_constant(constant: str) -> NoReturn:
    raise _BadLineError(f"has {constant}, which is not JSON")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key, value in pairs:
        if key in record:
            raise _BadLineError(f"has the key {_short(key)} twice")
        record[key] = value
    return record


def _unknown_keys(record: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    found: list[str] = []
    for key in record:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            found.append(f"has the unknown key {_short(key)} ({hint})")
    return found


def _text_problems(value: Any, what: str) -> list[str]:
    if not isinstance(value, str):
        return [f"has {_kind(value)} for {what}, which is a string"]
    return [] if value.strip() else [f"has an empty {what}"]


def _messages_problems(value: Any) -> list[str]:
    if not isinstance(value, list):
        return [f"has {_kind(value)} for 'messages', which is a list"]
    if not value:
        return ["has an empty list of 'messages'"]
    wrong: list[str] = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict):
            wrong.append(f"has {_kind(message)} for message {number}, which is an object with 'role' and 'content'")
            continue
        wrong += [f"{problem} in message {number}" for problem in _unknown_keys(message, MESSAGE_KEYS)]
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            shown = _short(role) if isinstance(role, str) else _kind(role)
            wrong.append(f"has {shown} for the 'role' of message {number}, which is one of {', '.join(_ROLES)}")
        if not isinstance(content, str):
            wrong.append(f"has {_kind(content)} for the 'content' of message {number}, which is a string")
    if wrong:
        return wrong
    if value[-1]["role"] == "assistant":
        return ["ends with the assistant's turn, which leaves nothing to answer (put it under 'reference')"]
    return [] if value[-1]["content"].strip() else ["ends with an empty message"]


def _reference_problems(value: Any) -> list[str]:
    if not isinstance(value, str | list):
        return [f"has {_kind(value)} for 'reference', which is a string or a list of strings"]
    if not value:
        return ["has an empty 'reference'"]
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, str):
            return [f"has {_kind(one)} in 'reference', which is a string or a list of strings"]
        if not one.strip():
            return ["has an empty 'reference'"]
    return []


def _max_tokens_problems(value: Any) -> list[str]:
    if not _whole(value):
        return [f"has {_kind(value)} for 'max_tokens', which is a whole number"]
    if not 1 <= value <= MOST_ANSWER_TOKENS:
        return [f"has a 'max_tokens' outside 1 to {MOST_ANSWER_TOKENS:,}"]
    return []


def _arrival_problems(value: Any) -> list[str]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return [f"has {_kind(value)} for 'arrival_s', which is a number of seconds"]
    return [] if 0 <= value <= MOST_SECONDS else [f"has an 'arrival_s' outside 0 to {MOST_SECONDS:,} seconds"]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    """Name a JSON value's type in words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
