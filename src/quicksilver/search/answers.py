"""Proof by answers: what the as-is model holds against a recipe's answers, for engines that tell no log-probabilities of a prompt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from quicksilver.bench import quality as judging
from quicksilver.bench import regret
from quicksilver.bench.quality import Evaluation
from quicksilver.bench.regret import Said
from quicksilver.errors import BadInputError
from quicksilver.nouns.base import content_hash
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.workload import Prompt
from quicksilver.search.state import Entry, Search, artifact_of
from quicksilver.sources.home import home, writable
from quicksilver.sources.text import Tokenizer


def read_until_decided(search: Search, entry: Entry, most_s: float) -> bool:
    """Ask an entry for more and more answers, and let the as-is model read them, until its loss is decided.

    False if `most_s` seconds weren't enough. What was read is kept for the next search. Raises EngineError for a server that fails,
    UnmeasurableError if the as-is model's doesn't tell what is needed.
    """
    search.run.remark(
        f"The engine {entry.engine} tells no log-probabilities of a prompt: its recipes' quality is judged by what the as-is model on "
        f"{_reader(search).engine} holds against their answers, and no perplexity of theirs is known."
    )
    known = {item.prompt_id for item in search.baseline.logprobs}
    prompts = [p for p in search.workload.evaluation if p.id in known or search.reader is not None]
    kept, own = _Kept(search, entry), _Kept(search, search.baseline)
    each_s, begun = 0.0, time.monotonic()
    for at in regret.looks(len(prompts)):
        chosen = prompts[:at]
        if count := len(kept.missing(chosen)) + len(own.missing(chosen)):
            spent_s = time.monotonic() - begun
            if spent_s + each_s * count > most_s:
                return False
            _read(search, kept, own, chosen)
            each_s = (time.monotonic() - begun - spent_s) / count
        entry.said, search.baseline.said = kept.of(chosen), own.of(chosen)
        entry.quality = judging.compare(
            Evaluation(said=entry.said),
            Evaluation(said=search.baseline.said),
            prompts,
            goal=search.goal,
            planned=len(prompts),
        )
        if search.baseline.quality is None:
            own_said = Evaluation(said=search.baseline.said)
            search.baseline.quality = judging.compare(own_said, own_said)
        judged = entry.quality.judgement
        if judged is not None and judged.outcome != "undecided":
            break
    search.baseline.said = own.of(prompts)
    return True


def _read(search: Search, kept: _Kept, own: _Kept, prompts: Sequence[Prompt]) -> None:
    """Ask a recipe what it wasn't asked yet, then the as-is model, and let that read both.

    One server is open at a time: there may be memory for no more.
    """
    run, base, entry, reader = search.run, own.entry, kept.entry, _reader(search)
    theirs, ours = kept.missing(prompts), own.missing(prompts)
    said: list[Sample] = []
    if theirs:
        with run.serving(artifact_of(entry), entry.hash, racing=False) as endpoint:
            said = _ask(search, entry, endpoint, theirs)
    before: list[Sample] = []
    if ours and reader is not base:
        with run.serving(artifact_of(base), base.hash, racing=False) as endpoint:
            before = _ask(search, base, endpoint, ours)
    with run.serving(artifact_of(reader), reader.hash, racing=False) as endpoint:
        if ours and reader is base:
            before = _ask(search, base, endpoint, ours)
        for who, where, answers in ((base, own, before), (entry, kept, said)):
            found = regret.read(
                endpoint,
                answers,
                search.token_ids,
                eos=_ends(artifact_of(reader).path),
                on_progress=run.counter("quality", f"{who.label}: what as-is makes of its answers", 0, len(answers)),
            )
            where.add(found)


def _reader(search: Search) -> Entry:
    """The as-is model that reads answers."""
    return search.reader or search.baseline


def _ask(search: Search, entry: Entry, endpoint: Endpoint, prompts: Sequence[Prompt]) -> list[Sample]:
    most = search.workload.max_tokens
    return judging.answers(
        endpoint,
        [p.model_copy(update={"max_tokens": min(p.max_tokens or most, regret.TOKENS)}) for p in prompts],
        concurrency=max(search.workload.concurrencies),
        max_tokens=most,
        out=search.run.folder / "samples" / f"said-{entry.hash}.jsonl",
        on_progress=search.run.counter("quality", f"{entry.label}: answers", 0, len(prompts)),
    )


def _ends(folder: Path) -> frozenset[int]:
    """Return the ids that end an answer; none for an artefact whose tokenizer isn't in a file of its own."""
    try:
        return Tokenizer(folder).eos
    except BadInputError:
        return frozenset()


class _Kept:
    """What was read of an artefact's answers, in this search or one before: a file in the cache folder."""

    def __init__(self, search: Search, entry: Entry) -> None:
        key = {
            "answers of": artifact_of(entry).key,
            "read by": artifact_of(_reader(search)).key,
            "workload": [search.workload.name, search.workload.seed, search.workload.max_tokens],
            "tokens": regret.TOKENS,
        }
        self._path = writable(home() / "quality") / f"{content_hash(key)}.jsonl"
        found: list[Said] = []
        try:
            found = regret.load(self._path) if self._path.is_file() else []
        except BadInputError as error:
            search.run.remark(f"{error} They are read again.")
        lengths = {name: len(ids) for name, ids in search.token_ids.items()}
        self._items = {item.prompt_id: item for item in found if item.prompt == lengths.get(item.prompt_id)}
        self.entry = entry

    def missing(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Return those whose answers weren't read yet."""
        return [p for p in prompts if p.id not in self._items]

    def add(self, items: Sequence[Said]) -> None:
        """Keep more, at once."""
        self._items |= {item.prompt_id: item for item in items}
        regret.write(self._path, self._items.values())

    def of(self, prompts: Sequence[Prompt]) -> list[Said]:
        """Return what was read of some prompts' answers, in their order."""
        return [self._items[p.id] for p in prompts if p.id in self._items]
