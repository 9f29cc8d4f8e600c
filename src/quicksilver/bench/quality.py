"""Output quality, measured through HTTP only: log-probabilities of the prompts, greedy answers, and what they lose."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quicksilver.bench import divergence, gate, metrics
from quicksilver.bench.load import run_load
from quicksilver.bench.stats import bootstrap_sums, interval, mean_figure
from quicksilver.bench.text_metrics import common_prefix
from quicksilver.engines.remote import request_json
from quicksilver.errors import BadInputError, EngineError, QuicksilverError
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.goal import Goal
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.score import Figure, Quality
from quicksilver.nouns.workload import Prompt, Task

if TYPE_CHECKING:
    from quicksilver.bench.regret import Said


class UnmeasurableError(QuicksilverError):
    """The server lacks what perplexity needs: /tokenize beside /v1, or log-probabilities of a prompt."""


@dataclass(slots=True)
class PromptLogprobs:
    """One prompt's token ids and their natural log-probabilities; None for the first and where the server gave none."""

    prompt_id: str
    tokens: list[int]
    logprobs: list[float | None]
    own: int = 0
    """How many of the last tokens are no text of the workload but the as-is model's own greedy answer to it."""
    likeliest: dict[int, dict[int, float]] = field(default_factory=dict)
    """Position → token → log-probability, for the likeliest tokens of some positions (quicksilver.bench.divergence)."""

    @property
    def text(self) -> slice:
        """Where the workload's own text is; the first token has nothing before it."""
        return slice(1, len(self.tokens) - self.own)

    @property
    def answer(self) -> slice:
        """Where the as-is model's own answer is."""
        return slice(max(1, len(self.tokens) - self.own), len(self.tokens))


@dataclass(slots=True)
class Evaluation:
    """What was measured of one recipe: log-probabilities and greedy answers; either may be missing."""

    logprobs: Sequence[PromptLogprobs] = field(default_factory=list)
    answers: Sequence[Sample] = field(default_factory=list)
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Task metric → prompt id → score of the answer; without it `compare` scores answers by the references."""
    said: Sequence[Said] = field(default_factory=list)
    """Where there are no log-probabilities: answers as the as-is model reads them (quicksilver.bench.regret)."""


def tokenize(endpoint: Endpoint, prompt: Prompt, *, special: bool = True, timeout_s: float = 60.0) -> list[int]:
    """Return a prompt's token ids, as the server's own chat template and tokenizer make them.

    Without `special` a text is the middle of one: nothing is put around it. POST /tokenize beside /v1, in vLLM's shape. Raises UnmeasurableError if the server has no such path.
    """
    if prompt.token_ids is not None:
        return list(prompt.token_ids)
    body: dict[str, Any] = {"model": endpoint.model}
    if prompt.messages is not None:
        body |= {"messages": [m.model_dump() for m in prompt.messages], "add_generation_prompt": True}
    else:
        body["prompt"] = prompt.prompt
        body |= {} if special else {"add_special_tokens": False}
    url = endpoint.url.rstrip("/").removesuffix("/v1") + "/tokenize"
    answer = _post(url, body, endpoint, "split a text into tokens", timeout_s)
    tokens = answer.get("tokens")
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise UnmeasurableError(f"{url} gives no token ids, so perplexity can't be measured there.")
    return tokens


def prompt_logprobs(endpoint: Endpoint, token_ids: Sequence[int], *, timeout_s: float = 600.0) -> list[float | None]:
    """Return the natural log-probability of each token of a prompt given those before it; None for the first.

    POST /completions with `echo` and `logprobs`, as the OpenAI API had it. Raises UnmeasurableError if the server can't.
    """
    return echo(endpoint, token_ids, {"logprobs": 1}, timeout_s)[0]


def score(
    endpoint: Endpoint, prompt_id: str, text: Sequence[int], own: Sequence[int] = (), *, timeout_s: float = 600.0
) -> PromptLogprobs:
    """Return the log-probabilities of a prompt's text and of the as-is model's own answer after it, by one request.

    With an answer the likeliest tokens are asked for, too, for the sake of the divergence; a server that doesn't tell
    them is asked again without. Raises as prompt_logprobs does.
    """
    tokens = [*text, *own]
    if not own:
        return PromptLogprobs(prompt_id, tokens, prompt_logprobs(endpoint, tokens, timeout_s=timeout_s))
    wanted = {"logprobs": divergence.LIKELIEST, "return_tokens_as_token_ids": True}
    try:
        logprobs, told = echo(endpoint, tokens, wanted, timeout_s)
        likeliest = divergence.read(told, divergence.places(len(text), len(own)))
    except UnmeasurableError:
        logprobs, likeliest = prompt_logprobs(endpoint, tokens, timeout_s=timeout_s), {}
    return PromptLogprobs(prompt_id, tokens, logprobs, len(own), likeliest)


def echo(
    endpoint: Endpoint, token_ids: Sequence[int], wanted: Mapping[str, Any], timeout_s: float
) -> tuple[list[float | None], Any]:
    """Return the log-probabilities of a prompt's tokens, and what the server tells of the likeliest ones, as it is.

    Raises as prompt_logprobs does.
    """
    body = {
        "model": endpoint.model,
        "prompt": list(token_ids),
        "max_tokens": 1,
        "temperature": 0,
        "echo": True,
        **wanted,
    }
    what = "give the log-probabilities of a prompt (echo with logprobs)"
    answer = _post(f"{endpoint.url.rstrip('/')}/completions", body, endpoint, what, timeout_s)
    try:
        told = answer["choices"][0]["logprobs"]
        values = told["token_logprobs"]
        # A server that ignores `echo` gives the one generated token only.
        if len(values) < len(token_ids):
            raise UnmeasurableError(f"{endpoint.url} can't {what}: it gave {len(values)} for {len(token_ids)} tokens.")
        known = [None if value is None else float(value) for value in values[1 : len(token_ids)]]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UnmeasurableError(f"{endpoint.url} can't {what}.") from error
    if any(value is not None and not (math.isfinite(value) and value <= 1e-6) for value in known):
        raise EngineError(f"{endpoint.url} gave a log-probability of a prompt that is none: the model is broken there.")
    # The first has nothing before it; some engines fill it with a number that means nothing.
    return [None, *known] if token_ids else [], told.get("top_logprobs")


def evaluate_texts(
    endpoint: Endpoint,
    prompts: Sequence[Prompt],
    *,
    token_ids: Mapping[str, Sequence[int]] | None = None,
    own: Mapping[str, Sequence[int]] | None = None,
    concurrency: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    timeout_s: float = 600.0,
) -> list[PromptLogprobs]:
    """Return the log-probabilities of the prompts' own tokens (natural text of the workload), and of answers to them.

    `token_ids`, by prompt id, saves asking the server for them: the as-is model's can be used for all of its recipes. So can the
    token ids of its own greedy answers, `own`, which are scored after their prompts.
    Raises UnmeasurableError, or EngineError for a server that died.
    """

    def one(prompt: Prompt) -> PromptLogprobs:
        known = (token_ids or {}).get(prompt.id)
        tokens = list(known) if known is not None else tokenize(endpoint, prompt, timeout_s=timeout_s)
        return score(endpoint, prompt.id, tokens, (own or {}).get(prompt.id, ()), timeout_s=timeout_s)

    results = []
    pool = ThreadPoolExecutor(max_workers=max(1, concurrency))
    try:
        for result in pool.map(one, prompts):
            results.append(result)
            if on_progress is not None:
                on_progress(len(results), len(prompts))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return results


def answers(
    endpoint: Endpoint,
    prompts: Sequence[Prompt],
    *,
    concurrency: int,
    max_tokens: int,
    out: Path,
    on_progress: Callable[[int, int], None] | None = None,
    timeout_s: float = 600.0,
) -> list[Sample]:
    """Return the greedy answers to the prompts as Samples, their text with them. Raises as run_load does."""
    return run_load(
        endpoint,
        prompts,
        concurrency=concurrency,
        max_tokens=max_tokens,
        out=out,
        on_progress=on_progress,
        timeout_s=timeout_s,
    )


def write_logprobs(path: Path, items: Iterable[PromptLogprobs]) -> None:
    """Write log-probabilities as JSON lines, so that a baseline is measured once; replaces the file at once."""
    part = path.with_name(path.name + ".part")
    part.write_text("".join(json.dumps(asdict(item)) + "\n" for item in items), encoding="utf-8")
    part.replace(path)


def read_logprobs(path: Path) -> list[PromptLogprobs]:
    """Read what write_logprobs wrote. Raises BadInputError."""
    try:
        return [_item(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise BadInputError(f"The log-probabilities at {path} can't be read: {error.strerror}.") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInputError(f"{path} holds no log-probabilities: {error}.") from error


def _item(document: dict[str, Any]) -> PromptLogprobs:
    """Read one line; JSON has no numbers for keys."""
    told = document.pop("likeliest", {})
    likeliest = {int(place): {int(token): value for token, value in row.items()} for place, row in told.items()}
    return PromptLogprobs(**document, likeliest=likeliest)


def perplexity(items: Iterable[PromptLogprobs]) -> tuple[float, int] | None:
    """Return exp(-mean log p) over all tokens of the prompts but the first ones, and their number; None without any."""
    values = [value for item in items for value in item.logprobs[item.text] if value is not None]
    if not values:
        return None
    return math.exp(min(-math.fsum(values) / len(values), gate.EXPONENT_LIMIT)), len(values)


def compare(
    candidate: Evaluation,
    baseline: Evaluation,
    prompts: Sequence[Prompt] = (),
    *,
    task: Task = "none",
    goal: Goal | None = None,
    planned: int | None = None,
    losses: Sequence[gate.Loss] = (),
    task_confidence: float = 1 - gate.ALPHA,
    seed: int = 0,
) -> Quality:
    """Derive a candidate's quality against the as-is model's, from what was measured of both.

    Perplexity is the candidate's own; its loss, 100 (ppl / ppl0 - 1), and the divergence, mean |log p - log p0|, are taken
    over the tokens that both have, the loss with a bootstrap over prompts, drawn in pairs. Agreement, common prefix and
    task scores are taken over prompts that both answered. The task's loss is the relative fall, in percent, of the
    first of its scores; it needs a baseline above 0. `prompts` bring the references and the groups. With a `goal` the
    gate judges by its limits, and where there are no log-probabilities by what the as-is model holds against the answers; `planned` is how many prompts it reads at most, the ones here by default, and `losses` are
    more that it is to judge. Raises BadInputError if the two don't share their prompts' tokens, or if there is nothing to compare at all.
    """
    from quicksilver.bench import regret

    rows, distance = _gaps(candidate.logprobs, baseline.logprobs)
    own_rows, _ = _gaps(candidate.logprobs, baseline.logprobs, own=True)
    own = perplexity(candidate.logprobs)
    mine, theirs = metrics.texts(candidate.answers), metrics.texts(baseline.answers)
    shared = [name for name in mine if name in theirs]
    if own is None and not shared and not candidate.said and not losses:
        raise BadInputError(
            "There is nothing to judge quality by: no log-probabilities, and no prompt that both answered."
        )
    pairs = [(mine[name], theirs[name]) for name in shared]
    asked = [p for p in prompts if p.id in mine and p.id in theirs]
    scored = candidate.scores or metrics.score(mine, asked, metrics.of_task(task))
    before = baseline.scores or metrics.score(theirs, asked, metrics.of_task(task)[:1])
    limits = goal or Goal()
    found = [gate.quality_loss(rows, limits, gate.level(len(rows), planned or len(rows)))]
    said = regret.rows(candidate.said, baseline.said)
    if said and not rows:
        found.append(regret.loss(said, limits, gate.level(len(said), planned or len(said))))
    first = next(iter(scored), None)
    lost = task_rows(scored[first], before[first]) if first is not None and first in before else {}
    if first is not None and lost:
        found.append(gate.task_loss(first, lost, limits, task_confidence))
    return Quality(
        perplexity=own and own[0],
        loss_percent=_loss(rows, seed),
        answer_loss_percent=_loss(said, seed),
        divergence=distance / math.fsum(count for _, count in rows.values()) if rows else None,
        kl=_mean(divergence.rows(candidate.logprobs, baseline.logprobs), seed),
        own_loss_percent=_loss(own_rows, seed),
        own_kl=_mean(divergence.rows(candidate.logprobs, baseline.logprobs, own=True), seed),
        agreement=float(np.mean([a == b for a, b in pairs])) if pairs else None,
        common_prefix=float(np.mean([common_prefix(a, b) for a, b in pairs])) if pairs else None,
        task={name: mean_figure(list(values.values()), seed=seed) for name, values in scored.items()},
        task_loss_percent=_relative_loss(lost, seed),
        judgement=gate.judge([*found, *losses], groups={p.id: p.group for p in prompts}, seed=seed) if goal else None,
        tokens=own[1] if own else sum(item.tokens for item in candidate.said),
        prompts=len(candidate.logprobs)
        or len(candidate.said)
        or len(shared)
        or max((len(loss.rows) for loss in losses), default=0),
    )


def _post(url: str, body: dict[str, Any], endpoint: Endpoint, what: str, timeout_s: float) -> dict[str, Any]:
    status, answer = request_json(url, body, api_key=endpoint.api_key, timeout_s=timeout_s)
    if status == 200 and isinstance(answer, dict):
        return answer
    said = " ".join((json.dumps(answer) if isinstance(answer, dict) else str(answer)).split())[:200]
    if status >= 500 and status != 501:
        raise EngineError(f"{url} failed with HTTP {status}: {said}")
    raise UnmeasurableError(f"{endpoint.url} can't {what}: HTTP {status}, {said}")


def _gaps(
    candidate: Sequence[PromptLogprobs], baseline: Sequence[PromptLogprobs], *, own: bool = False
) -> tuple[dict[str, gate.Row], float]:
    """Return the sum of log p - log p_as_is and the number of tokens for each prompt that both have read, and the sum of |…|.

    Over the text of the prompts, or over the as-is model's `own` answers.
    """
    known = {item.prompt_id: item for item in baseline}
    rows: dict[str, gate.Row] = {}
    distance = 0.0
    for item in candidate:
        base = known.get(item.prompt_id)
        if base is None:
            continue
        where, there = (item.answer, base.answer) if own else (item.text, base.text)
        if base.tokens[there] != item.tokens[where]:
            if own:
                continue  # one of them was read without the answer
            raise BadInputError(
                f"The prompt {item.prompt_id!r} has other tokens than with the as-is model, so perplexities can't be compared."
            )
        pairs = zip(item.logprobs[where], base.logprobs[there], strict=True)
        gaps = [a - b for a, b in pairs if a is not None and b is not None]
        if gaps:
            rows[item.prompt_id] = (math.fsum(gaps), float(len(gaps)))
            distance += math.fsum(map(abs, gaps))
    if not rows and not own and candidate and baseline:
        raise BadInputError("The candidate and the as-is model were not measured on the same prompts.")
    return rows, distance


def _loss(rows: Mapping[str, gate.Row], seed: int) -> Figure | None:
    """Return the paired rise of perplexity, percent."""
    if not rows:
        return None
    values = list(rows.values())
    low = high = None
    if len(values) > 1:
        low, high = interval(gate.perplexity_rise(bootstrap_sums(values, seed=seed)))
    return Figure(value=float(gate.perplexity_rise(np.sum(values, axis=0))), low=low, high=high, unit="%")


def _mean(rows: Mapping[str, gate.Row], seed: int) -> Figure | None:
    """Return the mean a token of sums by prompt, nats."""
    if not rows:
        return None
    values = list(rows.values())
    total, tokens = np.sum(values, axis=0)
    low = high = None
    if len(values) > 1:
        sums = bootstrap_sums(values, seed=seed)
        low, high = interval(sums[:, 0] / sums[:, 1])
    return Figure(value=float(total / tokens), low=low, high=high, unit="nats")


def task_rows(scores: Mapping[str, float], before: Mapping[str, float]) -> dict[str, gate.Row]:
    """Return what was lost of the as-is model's score, and that score, for each prompt that has both."""
    return {name: (before[name] - value, before[name]) for name, value in scores.items() if name in before}


def _relative_loss(rows: Mapping[str, gate.Row], seed: int) -> Figure | None:
    """Return 100 (1 - mean / mean of the baseline), drawn in pairs; None for a baseline of 0."""
    values = list(rows.values())
    if math.fsum(base for _, base in values) <= 0:
        return None
    value = float(gate.relative_fall(np.sum(values, axis=0)))
    if len(values) < 2:
        return Figure(value=value, unit="%")
    sums = bootstrap_sums(values, seed=seed)
    low, high = interval(
        gate.relative_fall(sums[sums[:, 1] > 0])
    )  # without the draws in which the baseline scores nothing
    return Figure(value=value, low=low, high=high, unit="%")
