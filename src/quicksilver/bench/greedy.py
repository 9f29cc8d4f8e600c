"""Greedy answers of a server, token by token with their log-probabilities, and what it tells of how it came by them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from quicksilver.bench.equivalence import END, Counts, Output
from quicksilver.bench.job import call
from quicksilver.engines.remote import request_json
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.workload import Prompt

MOST_TOP = 20
"""Likeliest tokens that the API gives at most."""
OWN_PROMPTS, OWN_TOKENS = 16, 64
"""Prompts that a model's own answers are taken of, and tokens of each."""
COUNTERS = {"guessed": "spec_decode_num_draft_tokens", "accepted": "spec_decode_num_accepted_tokens"}
"""Where a server's metrics, under vLLM's names, tell what it did."""


def outputs(
    endpoint: Endpoint,
    prompts: Sequence[Prompt],
    *,
    streams: int,
    max_tokens: int,
    eos: Collection[int],
    top: int = 0,
    on_done: Callable[[], None] = lambda: None,
    timeout_s: float = 600.0,
) -> list[Output]:
    """Return the greedy answers to the prompts, in their order, asked for `streams` at a time.

    `top` likeliest tokens are told beside each; `eos` are the ids that end an answer. Raises BadInputError for a request
    that the server refuses, EngineError for one that fails.
    """

    def one(prompt: Prompt) -> Output:
        return _ask(endpoint, prompt, max_tokens, eos, top=top, timeout_s=timeout_s)

    pool = ThreadPoolExecutor(max_workers=streams)
    try:
        asked: list[Future[Output]] = [pool.submit(one, prompt) for prompt in prompts]
        open_: set[Future[Output]] = set(asked)
        while open_:
            done, open_ = wait(open_, return_when=FIRST_COMPLETED)
            for answer in done:
                answer.result()
                on_done()
        return [answer.result() for answer in asked]
    finally:
        # Whoever gives up ends the server next, and with it what is still under way.
        pool.shutdown(wait=False, cancel_futures=True)


def own_answers(
    endpoint: Endpoint, prompts: Sequence[Prompt], *, streams: int, max_tokens: int
) -> dict[str, list[int]]:
    """Return the first OWN_TOKENS tokens of a model's greedy answers, by prompt id, for others to be scored on. Raises as `outputs`."""
    # One token less than an answer may have, since scoring it asks for one more.
    most = {p.id: min(OWN_TOKENS, (p.max_tokens or max_tokens) - 1) for p in prompts}
    asked = [p.model_copy(update={"max_tokens": most[p.id]}) for p in prompts if most[p.id] > 0]
    if not asked:
        return {}
    found = outputs(endpoint, asked, streams=streams, max_tokens=OWN_TOKENS, eos=frozenset())
    return {answer.prompt_id: [token for token in answer.tokens if token != END] for answer in found}


def likeliest(
    endpoint: Endpoint, tokens: Sequence[int], *, eos: Collection[int], timeout_s: float = 600.0
) -> Mapping[int, float]:
    """Return the likeliest tokens to follow a text given in token ids, with their log-probabilities. Raises as `outputs` does."""
    prompt = Prompt(id="(a second look)", token_ids=tuple(tokens))
    return _ask(endpoint, prompt, 1, eos, top=MOST_TOP, timeout_s=timeout_s).likeliest[0]


def counts(endpoint: Endpoint, *, timeout_s: float = 30.0) -> Counts:
    """Return what a server's metrics tell of all that it did so far; nothing if it has none."""
    url = endpoint.url.rstrip("/").removesuffix("/v1") + "/metrics"
    status, text = request_json(url, api_key=endpoint.api_key, timeout_s=timeout_s)
    return Counts(**{field: _counter(text, name) for field, name in COUNTERS.items()}) if status == 200 else Counts()


def _counter(text: Any, name: str) -> int | None:
    """Return the sum of a counter's samples in Prometheus' text format; None if it isn't there."""
    found = re.findall(rf"^(?:\w+:)?{name}(?:_total)?(?:{{[^}}]*}})? (\S+)", str(text), re.MULTILINE)
    return round(sum(map(float, found))) if found else None


def _ask(
    endpoint: Endpoint, prompt: Prompt, max_tokens: int, eos: Collection[int], *, top: int, timeout_s: float
) -> Output:
    request = call(prompt, max_tokens)
    chat = request.path == "/chat/completions"
    told: dict[str, Any] = {"logprobs": True, "top_logprobs": top} if chat else {"logprobs": top}
    if chat and not top:  # an engine that can't tell them refuses to be asked at all
        del told["top_logprobs"]
    body = {"model": endpoint.model, "temperature": 0, "return_tokens_as_token_ids": True, **told, **request.body}
    url = endpoint.url.rstrip("/") + request.path
    status, answer = request_json(url, body, api_key=endpoint.api_key, timeout_s=timeout_s)
    if status != 200:
        said = answer.get("error", answer) if isinstance(answer, dict) else answer
        words = said.get("message", said) if isinstance(said, dict) else said
        text = " ".join((words if isinstance(words, str) else json.dumps(words)).split())[:300]
        kind = BadInputError if 400 <= status < 500 else EngineError
        raise kind(f"The server refused the prompt {prompt.id!r} (HTTP {status}): {text.rstrip('.')}.")
    try:
        choice = answer["choices"][0]
        return read(prompt.id, choice["logprobs"], str(choice["finish_reason"]), eos, chat=chat, top=top)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(
            f"The server's answer to the prompt {prompt.id!r} has no log-probabilities with token ids, which a certificate needs."
        ) from error


def read(prompt_id: str, told: Mapping[str, Any], finish: str, eos: Collection[int], *, chat: bool, top: int) -> Output:
    """Read the log-probabilities of a chat's or a completion's choice. Whatever ends an answer becomes END."""
    likeliest: list[dict[int, float]] = []
    if chat:
        entries = told["content"]
        tokens = [_id(entry["token"], eos) for entry in entries]
        logprobs = [float(entry["logprob"]) for entry in entries]
        if top:
            likeliest = [_row(((e["token"], e["logprob"]) for e in entry["top_logprobs"]), eos) for entry in entries]
    else:
        tokens = [_id(token, eos) for token in told["tokens"]]
        logprobs = [float(value) for value in told["token_logprobs"]]
        if top:
            likeliest = [_row(row.items(), eos) for row in told["top_logprobs"]]
    if len(tokens) != len(logprobs) or (top and any(not row for row in likeliest)):
        raise ValueError("log-probabilities that don't fit their tokens")
    if finish == "stop" and tokens[-1:] != [END]:
        tokens.append(
            END
        )  # some engines leave out the token that ended an answer; its log-probability isn't known then
    return Output(prompt_id, tuple(tokens), tuple(logprobs), tuple(likeliest))


def _row(pairs: Iterable[tuple[str, float]], eos: Collection[int]) -> dict[int, float]:
    """Read the likeliest tokens of a place; of several that end an answer the likeliest counts."""
    found: dict[int, float] = {}
    for token, logprob in pairs:
        number = _id(token, eos)
        found[number] = max(float(logprob), found.get(number, -math.inf))
    return found


def _id(token: str, eos: Collection[int]) -> int:
    """Return the id in vLLM's form of a token, `token_id:17`; END for one that ends an answer."""
    name, _, number = token.partition(":")
    if name != "token_id":
        raise ValueError(f"no token id: {token!r}")
    return END if int(number) in eos else int(number)
