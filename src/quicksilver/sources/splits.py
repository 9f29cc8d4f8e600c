"""Dividing prompts into calibration, search and evaluation, which share no content."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from quicksilver.errors import BadInputError
from quicksilver.nouns.workload import Prompt, Split, Task, Workload

USUAL_PROMPTS = 160
"""Prompts taken when the user doesn't say: 64 for calibration, 48 for search, 48 for evaluation."""
FEWEST_PROMPTS = len(get_args(Split))
_CALIBRATION = 64
# Where prompts are scarce the evaluation is served first: its size decides how wide the intervals are.
_SERVED: tuple[Split, ...] = ("evaluation", "search", "calibration")


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt, and the names of the things that it must not share with a prompt of another split."""

    prompt: Prompt
    keys: frozenset[str] = frozenset()


def content_key(prompt: Prompt) -> str:
    """Return a prompt's content in a form that is equal for equal content, whatever its id, references or spacing."""
    if prompt.token_ids is not None:
        return json.dumps(prompt.token_ids)
    turns = [(m.role, m.content) for m in prompt.messages] if prompt.messages else [("user", prompt.prompt or "")]
    return json.dumps([(role, " ".join(content.split())) for role, content in turns], ensure_ascii=False)


def rank(seed: int, text: str) -> bytes:
    """Return a key that sorts texts into an order which looks random and is the same on every machine."""
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()


def sizes(total: int) -> dict[Split, int]:
    """Return how many of `total` prompts (3 at least) each split gets: 160 are 64, 48, 48 and 80 are 16, 32, 32."""
    measured = min(96, 4 * total // 5) if total <= USUAL_PROMPTS else total - _CALIBRATION
    return {
        "calibration": total - measured,
        "search": measured // 2,
        "evaluation": measured - measured // 2,
    }


def divide(items: Sequence[Item], total: int, seed: int) -> dict[Split, list[Prompt]]:
    """Take `total` prompts into three splits: the same for the same seed, each with its share of every group.

    Two prompts of one key are never in two splits; where that leaves too few prompts, the splits stay smaller.
    """
    size = sizes(total)
    taken: dict[Split, list[Prompt]] = {"calibration": [], "search": [], "evaluation": []}
    shares: Counter[tuple[Split, str | None]] = Counter()
    owner: dict[str, Split] = {}
    for item in _ordered(items, seed):
        owners = {owner[key] for key in item.keys if key in owner}
        free = [s for s in _SERVED if len(taken[s]) < size[s] and owners <= {s}]
        if not free:
            continue
        group = item.prompt.group
        # The split that is shortest of this group, and then the one that is shortest of all.
        split = min(free, key=lambda s: (shares[s, group] / size[s], len(taken[s]) / size[s]))
        taken[split].append(item.prompt)
        shares[split, group] += 1
        owner.update(dict.fromkeys(item.keys, split))
    return taken


def _ordered(items: Sequence[Item], seed: int) -> list[Item]:
    """Shuffle by seed, and interleave the groups so that any beginning of the list holds each in proportion."""
    groups: defaultdict[str | None, list[tuple[bytes, Item]]] = defaultdict(list)
    for item in items:
        groups[item.prompt.group].append((rank(seed, content_key(item.prompt)), item))
    placed: list[tuple[float, bytes, Item]] = []
    for members in groups.values():
        members.sort(key=lambda member: member[0])
        placed += [((i + 0.5) / len(members), key, item) for i, (key, item) in enumerate(members)]
    placed.sort(key=lambda place: place[:2])
    return [item for _, _, item in placed]


def assemble(
    name: str,
    items: Sequence[Item],
    *,
    prompts: int | None,
    seed: int,
    task: Task,
    max_tokens: int,
    licence: str,
    remark: str = "",
    trace: bool = False,
) -> Workload:
    """Make a workload of `prompts` prompts, each content once; or of the first as they came, repeats included, for a `trace`.

    Raises BadInputError if fewer than three are different, or if one of a trace doesn't say when it came.
    """
    if prompts is not None and prompts < FEWEST_PROMPTS:
        raise BadInputError(
            f"{prompts} prompts are too few: a workload needs at least {FEWEST_PROMPTS}, "
            "one each for calibration, search and evaluation."
        )
    taken, remarks = (_as_they_came if trace else _each_once)(name, items, prompts, seed)
    return Workload(
        name=name,
        calibration=tuple(taken["calibration"]),
        search=tuple(taken["search"]),
        evaluation=tuple(taken["evaluation"]),
        max_tokens=max_tokens,
        task=task,
        seed=seed,
        licence=licence,
        remark="; ".join([remark, *remarks] if remark else remarks),
    )


Divided = tuple[dict[Split, list[Prompt]], list[str]]
"""The splits, and what has to be said of them."""


def _each_once(name: str, items: Sequence[Item], prompts: int | None, seed: int) -> Divided:
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(content_key(item.prompt), item)
    different = list(first.values())
    _check_different(name, len(different))
    taken = divide(different, min(prompts or USUAL_PROMPTS, len(different)), seed)
    count = sum(map(len, taken.values()))
    remarks = []
    if len(different) < len(items):
        remarks.append(f"{len(items) - len(different)} of its {len(items)} prompts repeat another and were left out")
    if prompts is not None and count < prompts:
        remarks.append(f"{prompts} prompts were asked for, and it gives {count}")
    return taken, remarks


def _as_they_came(name: str, items: Sequence[Item], prompts: int | None, seed: int) -> Divided:
    for item in items:
        if item.prompt.arrival_s is None:
            raise BadInputError(f"The prompt {item.prompt.id!r} of {name} has no 'arrival_s', which a trace needs.")
    came = sorted(items, key=lambda item: item.prompt.arrival_s or 0.0)[:prompts]
    start_s = (came[0].prompt.arrival_s or 0.0) if came else 0.0
    same: defaultdict[str, list[Prompt]] = defaultdict(list)
    for item in came:
        shifted = item.prompt.model_copy(update={"arrival_s": (item.prompt.arrival_s or 0.0) - start_s})
        same[content_key(shifted)].append(shifted)
    _check_different(name, len(same))
    size = sizes(len(came))
    taken: dict[Split, list[Prompt]] = {"calibration": [], "search": [], "evaluation": []}
    for key in sorted(same, key=lambda key: rank(seed, key)):
        split = min(_SERVED, key=lambda s: len(taken[s]) / size[s])
        taken[split] += same[key]
    for split_prompts in taken.values():
        split_prompts.sort(key=lambda prompt: prompt.arrival_s or 0.0)
    left = len(came) < len(items)
    return taken, [f"the first {len(came)} of its {len(items)} prompts"] if left else []


def _check_different(name: str, different: int) -> None:
    if different < FEWEST_PROMPTS:
        raise BadInputError(
            f"{name} has {different} different {'prompt' if different == 1 else 'prompts'}, and a workload "
            f"needs at least {FEWEST_PROMPTS}: one each for calibration, search and evaluation."
        )
