"""Regret: what the as-is model holds against a recipe's greedy answers, for engines that don't tell a prompt's log-probabilities.

The answers need be nothing but text. The as-is model reads them after their prompts, and in each place what it finds likeliest is set
against what the recipe said: log p_as_is(likeliest) - log p_as_is(said), given all that the recipe said before. Of the as-is model's own
answers that is near 0, but for rounding and for texts that are split into other tokens than they were written in; what it is is
taken off. So the sum is how much less likely the answers are than if the as-is model had chosen each of their tokens, which is free of
the chance that two whole answers differ by (docs/decisions/0020).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from quicksilver.bench import divergence, gate
from quicksilver.bench.quality import UnmeasurableError, echo, tokenize
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.goal import Goal
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.workload import Prompt

NAME = "answer loss"
TOKENS = 64
"""Tokens of an answer that is read: early ones depend on the prompt, late ones more and more on the answer itself."""
FIRST_LOOK = 16
"""Answers that are looked at first: most of them have no regret at all, so fewer say little."""


@dataclass(frozen=True, slots=True)
class Said:
    """A recipe's answer to a prompt, as the as-is model reads it."""

    prompt_id: str
    text: str
    finish: str
    regret: float
    """Sum over the tokens, nats."""
    tokens: int
    """How many that are, with the end of an answer that ended by itself."""
    prompt: int = 0
    """Tokens of the prompt that it was an answer to."""


def looks(planned: int) -> list[int]:
    """Return after how many answers the gate looks."""
    return [at for at in gate.looks(planned) if at >= min(FIRST_LOOK, planned)]


def read(
    endpoint: Endpoint,
    answers: Sequence[Sample],
    token_ids: Mapping[str, Sequence[int]],
    *,
    eos: Collection[int] = (),
    on_progress: Callable[[int, int], None] = lambda *_: None,
    timeout_s: float = 600.0,
) -> list[Said]:
    """Let the as-is model's server read answers to prompts that are given in token ids, by prompt id.

    `eos` are the ids that end an answer: without them the end isn't counted. Raises EngineError for an answer that failed, or a server
    that died; UnmeasurableError if the server doesn't tell the likeliest tokens.
    """
    found: list[Said] = []
    for sample in answers:
        if sample.error is not None:
            raise EngineError(f"The prompt {sample.prompt_id!r} got no answer: {sample.error}.")
        found.append(_read(endpoint, sample, token_ids[sample.prompt_id], eos, timeout_s))
        on_progress(len(found), len(answers))
    return found


def _read(endpoint: Endpoint, sample: Sample, before: Sequence[int], eos: Collection[int], timeout_s: float) -> Said:
    prompt = Prompt(id=sample.prompt_id, prompt=sample.text)
    own = tokenize(endpoint, prompt, special=False, timeout_s=timeout_s) if sample.text else []
    tokens = [*before, *own]
    wanted = {"logprobs": divergence.LIKELIEST, "return_tokens_as_token_ids": True}
    logprobs, told = echo(endpoint, tokens, wanted, timeout_s)
    places = range(len(before), len(tokens))
    rows = divergence.read(told, [*places, len(tokens)])
    regrets: list[float] = []
    for place in places:
        said = logprobs[place]
        if said is None or place not in rows:
            raise UnmeasurableError(f"{endpoint.url} doesn't tell the likeliest tokens in the places of a prompt's.")
        regrets.append(max(0.0, max(rows[place].values()) - said))
    ends = sample.finish == "stop" and bool(eos)
    if ends and len(tokens) in rows:
        # Where no end is among the likeliest, the least of these is the most that it can have.
        row = rows[len(tokens)]
        regrets.append(
            max(row.values()) - max((row[token] for token in eos if token in row), default=min(row.values()))
        )
    elif ends:
        regrets.append(0.0)  # a server that leaves out the token that ends an answer has ended it there itself
    return Said(sample.prompt_id, sample.text, sample.finish or "", math.fsum(regrets), len(regrets), len(before))


def rows(said: Iterable[Said], own: Iterable[Said]) -> dict[str, gate.Row]:
    """Return minus the regret beyond that of the as-is model's own answer, and tokens, for each prompt that has both."""
    before = {item.prompt_id: item.regret / item.tokens for item in own if item.tokens}
    return {
        item.prompt_id: (before[item.prompt_id] * item.tokens - item.regret, float(item.tokens))
        for item in said
        if item.tokens and item.prompt_id in before
    }


def loss(found: Mapping[str, gate.Row], goal: Goal, confidence: float) -> gate.Loss:
    """Return the rise of the answers' perplexity, percent, under the limit of the quality loss."""
    return gate.Loss(NAME, found, gate.perplexity_rise, goal.max_quality_loss, confidence=confidence)


def write(path: Path, items: Iterable[Said]) -> None:
    """Write them as JSON lines; replaces the file at once."""
    part = path.with_name(path.name + ".part")
    part.write_text("".join(json.dumps(asdict(item)) + "\n" for item in items), encoding="utf-8")
    part.replace(path)


def load(path: Path) -> list[Said]:
    """Read what `write` wrote. Raises BadInputError."""
    try:
        return [Said(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise BadInputError(f"{path} holds no answers that were read: {error}.") from error
