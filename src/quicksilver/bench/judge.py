"""A language model as the judge of two answers, each pair asked for in both orders.

Which answer comes first sways a judge (Zheng et al. 2023, arXiv 2306.05685, section 3.3), so a preference counts only if it stays when
the answers change places; else the pair is a tie.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quicksilver.bench import gate
from quicksilver.bench.stats import mean_figure
from quicksilver.engines.remote import request_json
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns.base import content_hash
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.goal import TASK_GUARD, Goal
from quicksilver.nouns.score import Preference
from quicksilver.nouns.workload import Prompt

Choice = Literal["A", "B", "C"]
INSTRUCTIONS = (
    "You compare two answers to the same request. Judge how well each does what was asked for: whether it is right, complete and to the "
    "point. Let neither their order nor their length sway you. Say why in a few sentences, and end with your verdict on a line of its "
    "own: [[A]] if answer A is better, [[B]] if answer B is better, [[C]] if they are equally good."
)
MOST_TOKENS = 1024
STREAMS = 4
_VERDICT = re.compile(r"\[\[([ABC])\]\]")


@dataclass(frozen=True, slots=True)
class Pair:
    """A request and the two answers to it."""

    prompt: Prompt
    as_is: str
    ours: str


@dataclass(frozen=True, slots=True)
class Judge:
    """Who judges, and where its verdicts are kept: a pair that was judged before isn't again."""

    endpoint: Endpoint
    kept: Path | None = None

    def compare(
        self, pairs: Sequence[Pair], on_progress: Callable[[int, int], None] = lambda *_: None
    ) -> tuple[Preference, dict[str, gate.Row]]:
        """Return how often our answer is preferred, and what the gate takes: for each prompt 1 for the as-is answer, -1 for ours, and 1.

        Raises EngineError for a judge that fails, BadInputError for one whose verdicts mostly can't be read.
        """
        known = _read(self.kept)
        found: dict[str, tuple[Choice | None, Choice | None]] = {}
        pool = ThreadPoolExecutor(max_workers=STREAMS)
        try:
            for pair, verdicts in zip(pairs, pool.map(lambda pair: self._both(pair, known), pairs), strict=True):
                found[pair.prompt.id] = verdicts
                self._keep(self._key(pair), verdicts, known)
                on_progress(len(found), len(pairs))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return _count(found, self.endpoint.model)

    def _both(
        self, pair: Pair, known: Mapping[str, tuple[Choice | None, Choice | None]]
    ) -> tuple[Choice | None, Choice | None]:
        """Return the verdict with our answer as A, and the one with it as B."""
        if pair.as_is.strip() == pair.ours.strip():
            return "C", "C"
        before = known.get(self._key(pair))
        if before is not None:
            return before
        return self._ask(pair.prompt, pair.ours, pair.as_is), self._ask(pair.prompt, pair.as_is, pair.ours)

    def _ask(self, prompt: Prompt, first: str, second: str) -> Choice | None:
        text = f"The request:\n\n{prompt.content}\n\n[Answer A]\n{first}\n[End of answer A]\n\n[Answer B]\n{second}\n[End of answer B]"
        messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": text}]
        body = {"model": self.endpoint.model, "messages": messages, "temperature": 0, "max_tokens": MOST_TOKENS}
        url = f"{self.endpoint.url.rstrip('/')}/chat/completions"
        status, answer = request_json(url, body, api_key=self.endpoint.api_key, timeout_s=300.0)
        if status != 200:
            said = " ".join((json.dumps(answer) if isinstance(answer, dict) else str(answer)).split())[:200]
            raise EngineError(f"The judge at {url} answered HTTP {status}: {said}")
        try:
            content = answer["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError) as error:
            raise EngineError(f"The judge at {url} gave no answer in the form of the OpenAI API.") from error
        verdicts: list[Choice] = _VERDICT.findall(content)
        return verdicts[-1] if verdicts else None

    def _key(self, pair: Pair) -> str:
        return content_hash([self.endpoint.model, pair.prompt.content, pair.as_is, pair.ours])

    def _keep(self, key: str, verdicts: tuple[Choice | None, Choice | None], known: Mapping[str, object]) -> None:
        if self.kept is not None and key not in known:
            with self.kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "verdicts": verdicts}) + "\n")


def loss(rows: Mapping[str, gate.Row], goal: Goal) -> gate.Loss:
    """Return what the gate judges: by how many percent of the prompts the as-is answer is preferred more often than ours."""
    limit = TASK_GUARD if goal.max_task_loss is None else goal.max_task_loss
    return gate.Loss(
        "net loss by the judge", rows, gate.relative_fall, limit, proof=goal.max_task_loss is not None, discrete=True
    )


def _count(
    found: Mapping[str, tuple[Choice | None, Choice | None]], model: str
) -> tuple[Preference, dict[str, gate.Row]]:
    unread = sum(None in verdicts for verdicts in found.values())
    if found and unread > len(found) / 2:
        raise BadInputError(
            f"The judge {model} gave no verdict that can be read on {unread} of {len(found)} pairs; a larger model may."
        )
    points = {name: _point(*verdicts) for name, verdicts in found.items()}
    wins, losses = (sum(point == side for point in points.values()) for side in (1, -1))
    preference = Preference(
        judge=model,
        wins=wins,
        losses=losses,
        ties=len(points) - wins - losses,
        swayed=sum({*verdicts} == {"A"} or {*verdicts} == {"B"} for verdicts in found.values()),
        unread=unread,
        rate=mean_figure([(1 + point) / 2 for point in points.values()] or [0.5]),
    )
    return preference, {name: (-float(point), 1.0) for name, point in points.items()}


def _point(ours_first: Choice | None, ours_second: Choice | None) -> int:
    """Return 1 if our answer is preferred in both places, -1 if the as-is one is, 0 for a tie."""
    if (ours_first, ours_second) == ("A", "B"):
        return 1
    return -1 if (ours_first, ours_second) == ("B", "A") else 0


def _read(path: Path | None) -> dict[str, tuple[Choice | None, Choice | None]]:
    """Read the verdicts that were kept; a line that a killed process cut off is left out."""
    found: dict[str, tuple[Choice | None, Choice | None]] = {}
    if path is None or not path.is_file():
        return found
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            first, second = entry["verdicts"]
            found[entry["key"]] = (first, second)
        except (ValueError, KeyError, TypeError):
            continue
    return found
