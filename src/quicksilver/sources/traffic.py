"""Recorded traffic as a workload: what was asked where the record has it, made-up text of the same length where it doesn't."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from quicksilver.errors import BadInputError
from quicksilver.nouns.traffic import RecordedRequest
from quicksilver.nouns.workload import Message, Prompt, Workload
from quicksilver.sources import jsonl
from quicksilver.sources.splits import FEWEST_PROMPTS, USUAL_PROMPTS, Item, assemble, content_key, rank
from quicksilver.sources.synthetic import MOST_IN_ALL, sentences

FEWEST_ANSWER_TOKENS = 256
"""What an answer may take where the request set no limit, if all that were recorded were shorter."""


@dataclass(slots=True)
class _Asked:
    """One prompt of a recorded request, once for each of its answers."""

    id: str
    arrival_s: float
    prompt_tokens: int
    answer_tokens: int
    content: dict[str, Any] | None
    """What a Prompt says; None where the record doesn't."""
    limit: int | None
    reference: str | None

    def prompt(self, seed: int) -> Prompt:
        """Return what to ask."""
        about: dict[str, Any] = {"id": self.id, "arrival_s": self.arrival_s}
        if self.content is not None:
            references = (self.reference,) if self.reference else ()
            return Prompt(**about, **self.content, max_tokens=self.limit, references=references)
        rng = random.Random(int.from_bytes(rank(seed, self.id)))
        text = sentences(rng, self.prompt_tokens)
        return Prompt(**about, prompt=text, max_tokens=max(1, self.answer_tokens), ignore_eos=True)


@dataclass(slots=True)
class _Record:
    """What a file holds."""

    asked: list[_Asked] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    unanswered: int = 0
    """Requests that got no token, which say nothing of how much work they were."""
    shaped: int = 0
    """Requests with tools or a schema, which prompts of a workload don't have."""


def is_record(data: bytes) -> bool:
    """Whether a JSON Lines document is recorded traffic, by its first line."""
    end = data.find(b"\n")
    try:
        first = json.loads(data if end < 0 else data[:end])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "record" in first


def load(data: bytes, name: str, *, prompts: int | None, seed: int, trace: bool) -> Workload:
    """Make a workload of a record, `prompts` of it at most.

    As a `trace` it has every request, repeats included, or the first `prompts` as they came; otherwise it is a sample of
    different ones, as of any file. Prompts that weren't recorded are random sentences of their length (see `synthetic`),
    and their answers are forced to the length that they had. Raises BadInputError, which names every bad line by number.
    """
    record = _read(data, name)
    if not record.asked:
        raise BadInputError(f"{name} has no request that was answered; there is nothing to replay.")
    different = _different(record.asked)
    chosen = _first(record.asked, prompts) if trace else _sample(different, prompts, seed)
    made_up = [one for one in chosen if one.content is None]
    tokens = sum(one.prompt_tokens for one in made_up)
    if tokens > MOST_IN_ALL:
        raise BadInputError(
            f"{len(made_up):,} prompts of {name} weren't recorded and have {tokens:,} tokens, and at most {MOST_IN_ALL:,} "
            f"are made up; take fewer with --prompts {max(FEWEST_PROMPTS, len(chosen) * MOST_IN_ALL // tokens)}."
        )
    replayed = [one.prompt(seed) for one in chosen]
    return assemble(
        name,
        [Item(prompt) for prompt in replayed],
        prompts=prompts,
        seed=seed,
        task=jsonl.task(replayed),
        max_tokens=max(FEWEST_ANSWER_TOKENS, *(one.answer_tokens for one in record.asked)),
        licence="the user's own",
        remark=_remark(record, len(made_up), len(chosen), 0 if trace else len(record.asked) - len(different)),
        trace=trace,
    )


def lengths(data: bytes, name: str) -> list[tuple[float, int, int]]:
    """Return when each recorded request came, in s after the first, and the tokens of its prompt and its answer, as they came.

    Answers without a token are left out. Raises BadInputError, which names every bad line by number.
    """
    asked = _first(_read(data, name).asked, None)
    found = [(one.arrival_s, one.prompt_tokens, one.answer_tokens) for one in asked if one.answer_tokens > 0]
    if not found:
        raise BadInputError(f"{name} has no request that was answered; there is nothing to plan for.")
    return found


def _remark(record: _Record, made_up: int, chosen: int, repeats: int) -> str:
    """Say where the prompts come from, and what of the record isn't replayed."""
    said = [f"recorded traffic of {', '.join(sorted(record.models))}, asked again greedily"]
    if made_up:
        what = "its prompts weren't" if made_up == chosen else f"{made_up} of its {chosen} prompts weren't"
        said.append(
            f"{what} recorded: random sentences of their length stand for them, with answers forced to the length that "
            "they had, and a small model then repeats itself, which flatters speculation"
        )
    if repeats:
        said.append(f"{repeats} of its {len(record.asked)} prompts repeat another and were left out")
    if record.unanswered:
        said.append(f"{record.unanswered} requests without an answer were left out")
    if record.shaped:
        said.append(f"{record.shaped} requests had tools or a schema, which are left out")
    return "; ".join(said)


def _first(asked: Sequence[_Asked], count: int | None) -> list[_Asked]:
    return sorted(asked, key=lambda one: one.arrival_s)[:count]


def _different(asked: Sequence[_Asked]) -> list[_Asked]:
    """Return the first of each content; what wasn't recorded is taken for different."""
    first: dict[str, _Asked] = {}
    for one in asked:
        first.setdefault(one.id if one.content is None else content_key(Prompt(id=one.id, **one.content)), one)
    return list(first.values())


def _sample(different: Sequence[_Asked], count: int | None, seed: int) -> list[_Asked]:
    """Return so many, which are the same for the same seed."""
    return sorted(different, key=lambda one: rank(seed, one.id))[: count or USUAL_PROMPTS]


def _read(data: bytes, name: str) -> _Record:
    """Read a record. Raises BadInputError, which names the bad lines."""
    record = _Record()
    bad: list[tuple[int, str]] = []
    lines = jsonl.lines(data, name)
    for number, line in lines:
        try:
            request = RecordedRequest.model_validate_json(line)
            found = _asked(number, request)
        except ValidationError as error:
            bad.append((number, _what(error)))
            continue
        record.models.add(request.model)
        record.unanswered += not found
        record.shaped += bool(request.tools or request.response_format != "text")
        record.asked += found
    if bad:
        jsonl.refuse(name, data, bad, len(lines))
    start_s = min((one.arrival_s for one in record.asked), default=0.0)
    for one in record.asked:
        one.arrival_s -= start_s
    return record


def _asked(number: int, request: RecordedRequest) -> list[_Asked]:
    """Return what a request asked that was answered. Raises ValidationError for what a workload can't hold."""
    found = []
    contents = _contents(request)
    for index, (tokens, finish) in enumerate(zip(request.completion_tokens, request.finish_reasons, strict=True)):
        ended = finish != "abort"
        if not (tokens or ended):
            continue
        # One that its client broke off is broken off at the same place.
        limit = request.max_tokens if ended else tokens
        said = request.answers[index] if request.answers is not None and finish == "stop" else None
        found.append(
            _Asked(
                id=f"line-{number}" + (f".{index + 1}" if len(request.completion_tokens) > 1 else ""),
                arrival_s=request.arrival_s,
                prompt_tokens=request.prompt_tokens[index // request.n],
                answer_tokens=tokens,
                content=contents[index // request.n] if contents else None,
                limit=None if limit is None else max(1, limit),
                reference=said if said and said.strip() else None,
            )
        )
    return found


def _contents(request: RecordedRequest) -> list[dict[str, Any]]:
    """Return what each prompt of a request says, nothing if that wasn't recorded. Raises ValidationError."""
    if request.messages is not None:
        turns = tuple(
            Message.model_validate(
                {
                    "role": "system" if turn.get("role") == "developer" else turn.get("role"),
                    "content": turn.get("content", ""),
                }
            )
            for turn in request.messages
        )
        return [{"messages": turns}]
    return [{"prompt": one} if isinstance(one, str) else {"token_ids": tuple(one)} for one in request.prompts or ()]


def _what(error: ValidationError) -> str:
    """Say what is wrong with a line, after the words `line 7`."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return f"is not JSON ({first['ctx']['error']})"
    where = ".".join(map(str, first["loc"]))[:80]
    if first["type"] == "missing":
        return f"is not of a record: it has no {where!r}"
    if first["type"] == "extra_forbidden":
        return f"is not of a record that this version knows: it has {where!r}"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"has a wrong {where!r}, which {message}" if where else f"is wrong: {message}"
