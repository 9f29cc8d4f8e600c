"""Output quality, measured through HTTP only: log-probabilities of the prompts, greedy answers, and what they lose."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quicksilver.bench.load import run_load
from quicksilver.bench.stats import bootstrap_sums, interval, mean_figure
from quicksilver.bench.text_metrics import METRICS, common_prefix
from quicksilver.engines.remote import request_json
from quicksilver.errors import BadInputError, EngineError, QuicksilverError
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.score import Figure, Quality
from quicksilver.nouns.workload import Prompt, Task

EXPONENT_LIMIT = 700.0
"""exp of more is no float; a perplexity of e^700 says all there is to say."""


class UnmeasurableError(QuicksilverError):
    """The server lacks what perplexity needs: /tokenize beside /v1, or log-probabilities of a prompt."""


@dataclass(slots=True)
class PromptLogprobs:
    """One prompt's token ids and their natural log-probabilities; None for the first and where the server gave none."""

    prompt_id: str
    tokens: list[int]
    logprobs: list[float | None]


@dataclass(slots=True)
class Evaluation:
    """What was measured of one recipe: log-probabilities and greedy answers; either may be missing."""

    logprobs: Sequence[PromptLogprobs] = field(default_factory=list)
    answers: Sequence[Sample] = field(default_factory=list)


def tokenize(endpoint: Endpoint, prompt: Prompt, *, timeout_s: float = 60.0) -> list[int]:
    """Return a prompt's token ids, as the server's own chat template and tokenizer make them.

    POST /tokenize beside /v1, in vLLM's shape. Raises UnmeasurableError if the server has no such path.
    """
    if prompt.token_ids is not None:
        return list(prompt.token_ids)
    body: dict[str, Any] = {"model": endpoint.model}
    if prompt.messages is not None:
        body |= {"messages": [m.model_dump() for m in prompt.messages], "add_generation_prompt": True}
    else:
        body["prompt"] = prompt.prompt
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
    body = {
        "model": endpoint.model,
        "prompt": list(token_ids),
        "max_tokens": 1,
        "temperature": 0,
        "echo": True,
        "logprobs": 1,
    }
    what = "give the log-probabilities of a prompt (echo with logprobs)"
    answer = _post(f"{endpoint.url.rstrip('/')}/completions", body, endpoint, what, timeout_s)
    try:
        values = answer["choices"][0]["logprobs"]["token_logprobs"]
        # A server that ignores `echo` gives the one generated token only.
        if len(values) < len(token_ids):
            raise UnmeasurableError(f"{endpoint.url} can't {what}: it gave {len(values)} for {len(token_ids)} tokens.")
        known = [None if value is None else float(value) for value in values[1 : len(token_ids)]]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UnmeasurableError(f"{endpoint.url} can't {what}.") from error
    if any(value is not None and not (math.isfinite(value) and value <= 1e-6) for value in known):
        raise EngineError(f"{endpoint.url} gave a log-probability of a prompt that is none: the model is broken there.")
    # The first has nothing before it; some engines fill it with a number that means nothing.
    return [None, *known] if token_ids else []


def evaluate_texts(
    endpoint: Endpoint,
    prompts: Sequence[Prompt],
    *,
    token_ids: Mapping[str, Sequence[int]] | None = None,
    concurrency: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    timeout_s: float = 600.0,
) -> list[PromptLogprobs]:
    """Return the log-probabilities of the prompts' own tokens (natural text of the workload, not its answers).

    `token_ids`, by prompt id, saves asking the server for them: the as-is model's can be used for all of its recipes.
    Raises UnmeasurableError, or EngineError for a server that died.
    """

    def one(prompt: Prompt) -> PromptLogprobs:
        known = (token_ids or {}).get(prompt.id)
        tokens = list(known) if known is not None else tokenize(endpoint, prompt, timeout_s=timeout_s)
        return PromptLogprobs(prompt.id, tokens, prompt_logprobs(endpoint, tokens, timeout_s=timeout_s))

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
        return [PromptLogprobs(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise BadInputError(f"The log-probabilities at {path} can't be read: {error.strerror}.") from error
    except (ValueError, TypeError) as error:
        raise BadInputError(f"{path} holds no log-probabilities: {error}.") from error


def perplexity(items: Iterable[PromptLogprobs]) -> tuple[float, int] | None:
    """Return exp(-mean log p) over all prompt tokens but the first ones, and their number; None without any."""
    values = [value for item in items for value in item.logprobs if value is not None]
    if not values:
        return None
    return math.exp(min(-math.fsum(values) / len(values), EXPONENT_LIMIT)), len(values)


def compare(
    candidate: Evaluation,
    baseline: Evaluation,
    prompts: Sequence[Prompt] = (),
    *,
    task: Task = "none",
    seed: int = 0,
) -> Quality:
    """Derive a candidate's quality against the as-is model's, from what was measured of both.

    Perplexity is the candidate's own; its loss, 100 (ppl / ppl0 - 1), and the divergence, mean |log p - log p0|, are taken
    over the tokens that both have, the loss with a bootstrap over prompts, drawn in pairs. Agreement, common prefix and
    task scores are taken over prompts that both answered. The task's loss is the relative fall, in percent, of the
    first of its scores (METRICS); it needs a baseline above 0. `prompts` bring the references. Raises BadInputError if
    the two don't share their prompts' tokens, or if there is nothing to compare at all.
    """
    loss, divergence = _divergence(candidate.logprobs, baseline.logprobs, seed)
    own = perplexity(candidate.logprobs)
    mine, theirs = _texts(candidate.answers), _texts(baseline.answers)
    shared = [name for name in mine if name in theirs]
    if own is None and not shared:
        raise BadInputError(
            "There is nothing to judge quality by: no log-probabilities, and no prompt that both answered."
        )
    pairs = [(mine[name], theirs[name]) for name in shared]
    references = {p.id: p.references for p in prompts if p.references}
    task_scores, task_loss = _task(mine, theirs, {k: references[k] for k in shared if k in references}, task, seed)
    return Quality(
        perplexity=own and own[0],
        loss_percent=loss,
        divergence=divergence,
        agreement=float(np.mean([a == b for a, b in pairs])) if pairs else None,
        common_prefix=float(np.mean([common_prefix(a, b) for a, b in pairs])) if pairs else None,
        task=task_scores,
        task_loss_percent=task_loss,
        tokens=own[1] if own else 0,
        prompts=len(candidate.logprobs) or len(shared),
    )


def _post(url: str, body: dict[str, Any], endpoint: Endpoint, what: str, timeout_s: float) -> dict[str, Any]:
    status, answer = request_json(url, body, api_key=endpoint.api_key, timeout_s=timeout_s)
    if status == 200 and isinstance(answer, dict):
        return answer
    said = " ".join((json.dumps(answer) if isinstance(answer, dict) else str(answer)).split())[:200]
    if status >= 500 and status != 501:
        raise EngineError(f"{url} failed with HTTP {status}: {said}")
    raise UnmeasurableError(f"{endpoint.url} can't {what}: HTTP {status}, {said}")


def _divergence(
    candidate: Sequence[PromptLogprobs], baseline: Sequence[PromptLogprobs], seed: int
) -> tuple[Figure | None, float | None]:
    """Return the paired loss of perplexity, percent, and the mean absolute difference, nats."""
    known = {item.prompt_id: item for item in baseline}
    rows, distance = [], 0.0
    for item in candidate:
        base = known.get(item.prompt_id)
        if base is None:
            continue
        if base.tokens != item.tokens:
            raise BadInputError(
                f"The prompt {item.prompt_id!r} has other tokens than with the as-is model, so perplexities can't be compared."
            )
        gaps = [a - b for a, b in zip(item.logprobs, base.logprobs, strict=True) if a is not None and b is not None]
        if gaps:
            rows.append((math.fsum(gaps), len(gaps)))
            distance += math.fsum(map(abs, gaps))
    if not rows:
        if candidate and baseline:
            raise BadInputError("The candidate and the as-is model were not measured on the same prompts.")
        return None, None
    total, tokens = np.sum(rows, axis=0)
    low = high = None
    if len(rows) > 1:
        sums = bootstrap_sums(rows, seed=seed)
        low, high = interval([_rise(-mean) for mean in sums[:, 0] / sums[:, 1]])
    return Figure(value=_rise(-total / tokens), low=low, high=high, unit="%"), float(distance / tokens)


def _rise(nats: float) -> float:
    """The rise of perplexity, percent, for a rise of the mean negative log-probability."""
    return 100 * math.expm1(min(float(nats), EXPONENT_LIMIT))


def _texts(samples: Iterable[Sample]) -> dict[str, str]:
    """The first answer to each prompt."""
    texts: dict[str, str] = {}
    for sample in samples:
        if sample.error is None and not sample.warmup:
            texts.setdefault(sample.prompt_id, sample.text)
    return texts


def _task(
    mine: Mapping[str, str],
    theirs: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    task: Task,
    seed: int,
) -> tuple[dict[str, Figure], Figure | None]:
    """Return the candidate's scores, and the loss of the task's first score."""
    scores: dict[str, Figure] = {}
    loss = None
    if references:
        for name, metric in METRICS[task].items():
            own = [metric(mine[key], known) for key, known in references.items()]
            scores[name] = mean_figure(own, seed=seed)
            if len(scores) == 1:
                base = [metric(theirs[key], known) for key, known in references.items()]
                loss = _relative_loss(own, base, seed)
    return scores, loss


def _relative_loss(own: Sequence[float], base: Sequence[float], seed: int) -> Figure | None:
    """Return 100 (1 - mean / mean of the baseline), drawn in pairs; None for a baseline of 0."""
    reference = math.fsum(base)
    if reference <= 0:
        return None
    lost = [b - a for a, b in zip(own, base, strict=True)]
    value = 100 * math.fsum(lost) / reference
    if len(lost) < 2:
        return Figure(value=value, unit="%")
    sums = bootstrap_sums(np.column_stack((lost, base)), seed=seed)
    sums = sums[sums[:, 1] > 0]  # a draw in which the baseline scores nothing has no relative loss
    low, high = interval(100 * sums[:, 0] / sums[:, 1])
    return Figure(value=value, low=low, high=high, unit="%")
