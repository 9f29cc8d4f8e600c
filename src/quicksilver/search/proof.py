"""Proof: what a recipe loses against the as-is model, read as far as the gate needs to decide, and kept for the next search."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from quicksilver import engines
from quicksilver.bench import gate, greedy, judge, metrics, stats
from quicksilver.bench import quality as judging
from quicksilver.bench.load import read_samples
from quicksilver.bench.quality import Evaluation, PromptLogprobs, UnmeasurableError
from quicksilver.errors import BadInputError, EngineError, NotEnoughError
from quicksilver.nouns.base import content_hash
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.score import Quality
from quicksilver.nouns.technique import Technique
from quicksilver.nouns.workload import Prompt
from quicksilver.search import answers, budget, entries, space
from quicksilver.search.state import Entry, Search, artifact_of
from quicksilver.sources import workloads
from quicksilver.sources.home import home, writable

READING_SHARE = 0.1
"""Share of the budget that reading prompts may take for one recipe."""


def prove_baseline(search: Search, entry: Entry) -> None:
    """Read the evaluation split with the as-is model, and check that every prompt fits its context."""
    begun = time.monotonic()
    workload = search.workload
    prompts = [*workload.calibration, *workload.search, *workload.evaluation]
    if not engines.find(entry.engine).abilities.prompt_logprobs:
        _prove_reader(search, prompts)
        return
    with search.run.serving(artifact_of(entry), entry.hash, racing=False) as endpoint:
        try:
            search.token_ids = {p.id: judging.tokenize(endpoint, p) for p in prompts}
            lengths = {name: len(ids) for name, ids in search.token_ids.items()}
            workloads.fits(workload, lengths, search.model.facts.max_positions)
            kept = _Kept(search, entry)
            search.own = _own_answers(search, endpoint, kept.own(search))
            kept.choose(search)
            reading = _Reading(search, entry, kept, endpoint)
            for at in gate.looks(len(workload.evaluation)):
                if not reading.read(workload.evaluation[:at]):
                    break
        except UnmeasurableError as error:
            search.run.remark(str(error))
            return
    search.proofs_s.append(time.monotonic() - begun)
    entry.logprobs = kept.of(workload.evaluation)
    entry.quality = judging.compare(Evaluation(entry.logprobs), Evaluation(entry.logprobs))


def _prove_reader(search: Search, prompts: Sequence[Prompt]) -> None:
    """Build the as-is model that reads answers, where the engine of the first tells too little, and check the prompts' lengths."""
    if not search.reader_engine:
        search.run.remark(
            f"The engine {search.engine} tells no log-probabilities of a prompt, and no other is installed that does: what changes the "
            "model's output can only be judged by the task, which --max-task-loss asks for."
        )
        return
    recipe = space.recipe(search.model, (), search.reader_engine)
    reader = Entry(recipe=recipe, stack=(), label=f"{search.reader_engine}: {recipe.label}")
    entries.build(search, reader, must=True)
    search.reader = reader
    with search.run.serving(artifact_of(reader), reader.hash, racing=False) as endpoint:
        try:
            search.token_ids = {p.id: judging.tokenize(endpoint, p) for p in prompts}
        except UnmeasurableError as error:
            search.run.remark(str(error))
            search.reader = None
            return
    lengths = {name: len(ids) for name, ids in search.token_ids.items()}
    workloads.fits(search.workload, lengths, search.model.facts.max_positions)


def prove(search: Search, entry: Entry) -> None:
    """Judge what an entry loses, once for its weights and numerics, in this run or before; what doesn't pass isn't raced."""
    if entry.artifact is None:
        return
    if not search.baseline.logprobs and search.reader is None:
        _without_proof(search, entry)
        return
    try:
        begun = time.monotonic()
        with search.run.phase("quality"):
            if not engines.find(entry.engine).abilities.prompt_logprobs:
                if not answers.read_until_decided(search, entry, READING_SHARE * search.run.budget_s):
                    _add_reason(entry, "the time for it was up")
            elif _read_until_decided(search, entry):
                search.proofs_s.append(time.monotonic() - begun)
    except (EngineError, NotEnoughError, UnmeasurableError) as error:
        entry.status, entry.reason = "failed", str(error)
        return
    if entry.quality is None:
        # What nothing is known of hasn't passed.
        entry.status, entry.reason = "screened", "the budget had no time to judge its quality"
    elif why := objection(entry):
        entry.status, entry.reason = "screened", why


def expected_s(search: Search, stack: Sequence[Technique], engine: str) -> float:
    """Seconds that the proof of a stack is likely to take: the mean of those so far; 0 if it was read before, or can't be.

    Before the first it is half of what the as-is model took, which is read to the end; most proofs need less.
    """
    plan = entries.plan_of(search, stack, engine)
    known = not plan.missing and _Kept.path(search, plan.key).is_file()
    if known or not search.baseline.logprobs or not search.proofs_s:
        return 0.0
    as_is, *others = search.proofs_s
    return sum(others) / len(others) if others else as_is / 2


def _without_proof(search: Search, entry: Entry) -> None:
    """Let what changes the output into the race only if the task's loss has to be proved there: nothing else could be."""
    tells = engines.find(search.engine).abilities.prompt_logprobs
    if not tells and search.goal.max_task_loss is None and any(t.changes_output for t in entry.stack):
        entry.status = "screened"
        entry.reason = "there is nothing to judge its quality by without a limit of the task's loss"


def objection(entry: Entry) -> str | None:
    """Return why an entry hasn't passed the gate; None if it has, or can't be judged."""
    judged = entry.quality.judgement if entry.quality is not None else None
    return judged.reason if judged is not None and judged.outcome != "passes" else None


def judge_answers(search: Search, entries: Sequence[Entry], rounds: Sequence[int]) -> None:
    """Judge the final's entries, the as-is model first, by their answers too: against its answers, and by the task's metrics.

    Where a loss of the task has to be proved and is undecided, the rest of the evaluation split is answered as well. Raises
    BadInputError for a metric, EngineError for a judge that fails; what was measured is kept.
    """
    try:
        _judge_answers(search, entries, rounds)
    except (BadInputError, EngineError) as error:
        raise type(error)(
            f"{error} All that was measured is kept in {search.run.folder}: once that is mended, the same command goes on from there."
        ) from error


def _judge_answers(search: Search, entries: Sequence[Entry], rounds: Sequence[int]) -> None:
    said = {entry.hash: search.run.samples(entry.hash, rounds) for entry in entries}
    open_ = _judge(search, entries, said)
    if not open_:
        return
    answered = metrics.texts(said[search.baseline.hash])
    rest = [p for p in search.workload.evaluation if p.id not in answered]
    rest = rest[: _room_for(search, [search.baseline, *open_], said)]
    if not rest:
        return
    for entry in (search.baseline, *open_):
        said[entry.hash] = [*said[entry.hash], *_more_answers(search, entry, rest)]
    _judge(search, [search.baseline, *open_], said)


def _room_for(search: Search, entries: Sequence[Entry], said: Mapping[str, Sequence[Sample]]) -> int:
    """Return how many prompts each of some entries can still answer, at nine tenths of the pace at which they answered the last."""
    highest = max(search.workload.concurrencies)
    paces = [stats.speed([s for s in said[e.hash] if not s.warmup], highest).requests_per_s for e in entries]
    if not all(paces):
        return 0
    starts_s = sum(max(s["cold_start_s"] or 0.0 for s in search.run.servers(e.hash)) for e in entries)
    left_s = search.run.left_s - budget.after_s(search) - starts_s
    return max(0, int(0.9 * left_s / sum(1 / pace for pace in paces)))


def _judge(search: Search, entries: Sequence[Entry], said: Mapping[str, Sequence[Sample]]) -> list[Entry]:
    """Judge entries by what they answered; return those whose task is undecided and has to be proved."""
    workload, goal, base = search.workload, search.goal, search.baseline
    # Two looks at the most, each with half of the error (Bonferroni), where something has to be proved.
    confidence = 1 - gate.ALPHA / (1 if goal.max_task_loss is None else 2)
    scores = {
        entry.hash: metrics.score(metrics.texts(said[entry.hash]), workload.evaluation, search.metrics)
        for entry in entries
    }
    before = Evaluation(base.logprobs, said[base.hash], scores[base.hash], base.said)
    for entry in entries:
        losses: list[gate.Loss] = []
        preference = None
        if search.judge is not None and entry is not base:
            pairs = _pairs(search, said[base.hash], said[entry.hash])
            progress = search.run.counter("judge", entry.label, 0, len(pairs))
            preference, rows = search.judge.compare(pairs, progress)
            losses.append(dataclasses.replace(judge.loss(rows, goal), confidence=confidence))
        found = judging.compare(
            Evaluation(entry.logprobs, said[entry.hash], scores[entry.hash], entry.said),
            before,
            workload.evaluation,
            goal=None if entry is base else goal,
            planned=len(base.logprobs),
            losses=losses,
            task_confidence=confidence,
        )
        entry.quality = found.model_copy(update={"preference": preference})
    _remark_on_task(search, scores[base.hash])
    return [e for e in entries if e is not base and e.quality is not None and _task_is_open(e.quality)]


def _pairs(search: Search, theirs: Sequence[Sample], ours: Sequence[Sample]) -> list[judge.Pair]:
    before, after = metrics.texts(theirs), metrics.texts(ours)
    both = [p for p in search.workload.evaluation if p.id in before and p.id in after]
    return [judge.Pair(p, before[p.id], after[p.id]) for p in both]


def _task_is_open(quality: Quality) -> bool:
    terms = quality.judgement.terms if quality.judgement is not None else ()
    return any(term.proof and term.outcome == "undecided" and term.name != gate.QUALITY for term in terms)


def _remark_on_task(search: Search, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Say when there is no task to lose: the gate then looks at nothing but perplexity."""
    first = next(iter(scores), None)
    if first is not None and not any(scores[first].values()):
        search.run.remark(f"The as-is model scores 0 in {first} on every prompt, so a loss of the task can't be told.")


def _more_answers(search: Search, entry: Entry, prompts: Sequence[Prompt]) -> list[Sample]:
    """Answer more of the evaluation split, at the highest load; what was answered before is kept in the run's folder."""
    out = search.run.folder / "samples" / f"more-{entry.hash}.jsonl"
    known = read_samples(out) if out.is_file() else []
    done = metrics.texts(known)
    missing = [p for p in prompts if p.id not in done]
    if not missing:
        return known
    text = f"{entry.label}: more answers"
    with search.run.phase("quality"), search.run.serving(artifact_of(entry), entry.hash, racing=False) as endpoint:
        more = judging.answers(
            endpoint,
            missing,
            concurrency=max(search.workload.concurrencies),
            max_tokens=search.workload.max_tokens,
            out=out,
            on_progress=search.run.counter("quality", text, 0, len(missing)),
        )
    return [*known, *more]


def _read_until_decided(search: Search, entry: Entry) -> bool:
    """Look at the loss after more and more of the prompts that the as-is model was read on, until it is decided.

    Return whether any had to be read.
    """
    base = search.baseline.logprobs
    known = {item.prompt_id for item in base}
    prompts = [p for p in search.workload.evaluation if p.id in known]
    reading = _Reading(search, entry, _Kept(search, entry))
    reading.kept.choose(search)
    with ExitStack() as stack:
        for at in gate.looks(len(prompts)):
            chosen = prompts[:at]
            if reading.missing(chosen) and reading.endpoint is None:
                serving = search.run.serving(artifact_of(entry), entry.hash, racing=False)
                reading.endpoint = stack.enter_context(serving)
            if not reading.read(chosen):
                _add_reason(entry, "the time for it was up")
                break
            entry.logprobs = reading.kept.of(chosen)
            entry.quality = judging.compare(
                Evaluation(entry.logprobs), Evaluation(base), prompts, goal=search.goal, planned=len(prompts)
            )
            judged = entry.quality.judgement
            if judged is not None and judged.outcome != "undecided":
                break
    return reading.endpoint is not None


def _add_reason(entry: Entry, words: str) -> None:
    if entry.quality is None or entry.quality.judgement is None:
        return
    judged = entry.quality.judgement
    judged = judged.model_copy(update={"reason": f"{judged.reason} ({words})"})
    entry.quality = entry.quality.model_copy(update={"judgement": judged})


def _own_answers(search: Search, endpoint: Endpoint, known: dict[str, list[int]]) -> dict[str, list[int]]:
    """Return the as-is model's greedy answers to the first prompts, in token ids; none from a server that doesn't tell them."""
    workload = search.workload
    asked = [p for p in workload.evaluation[: greedy.OWN_PROMPTS] if p.id not in known]
    search.run.tell("quality", f"{search.baseline.label}: its own answers")
    try:
        return known | greedy.own_answers(
            endpoint, asked, streams=max(workload.concurrencies), max_tokens=workload.max_tokens
        )
    except (EngineError, BadInputError) as error:
        search.run.remark(f"Recipes aren't scored on the as-is model's own answers: {error}")
        return known


class _Kept:
    """What was read of an artefact for a workload, in this search or one before: a file in the cache folder."""

    def __init__(self, search: Search, entry: Entry) -> None:
        self._path = self.path(search, artifact_of(entry).key)
        read: list[PromptLogprobs] = []
        try:
            read = judging.read_logprobs(self._path) if self._path.is_file() else []
        except BadInputError as error:
            search.run.remark(f"{error} It is read again.")
        self._items = {item.prompt_id: item for item in read}

    @staticmethod
    def path(search: Search, artifact: str) -> Path:
        """The file for the artefact of a key."""
        key = {
            "artifact": artifact,
            "as-is": artifact_of(search.baseline).key,
            "workload": [search.workload.name, search.workload.seed],
        }
        return writable(home() / "quality") / f"{content_hash(key)}.jsonl"

    def own(self, search: Search) -> dict[str, list[int]]:
        """Return the as-is model's answers that were read with the prompts of this search."""
        return {
            name: item.tokens[-item.own :]
            for name, item in self._items.items()
            if item.own and item.tokens[: -item.own] == search.token_ids.get(name)
        }

    def choose(self, search: Search) -> None:
        """Forget what was read with other tokens: of another text, or before another answer."""
        wanted = {name: [*ids, *search.own.get(name, ())] for name, ids in search.token_ids.items()}
        self._items = {name: item for name, item in self._items.items() if item.tokens == wanted.get(name)}

    def has(self, prompt: Prompt) -> bool:
        return prompt.id in self._items

    def add(self, items: Sequence[PromptLogprobs]) -> None:
        """Keep more, at once."""
        self._items |= {item.prompt_id: item for item in items}
        judging.write_logprobs(self._path, self._items.values())

    def of(self, prompts: Sequence[Prompt]) -> list[PromptLogprobs]:
        """Return what was read of some prompts, in their order."""
        return [self._items[p.id] for p in prompts if p.id in self._items]


class _Reading:
    """Reads prompts with one recipe, within its share of the time."""

    def __init__(self, search: Search, entry: Entry, kept: _Kept, endpoint: Endpoint | None = None) -> None:
        self.kept = kept
        self.endpoint = endpoint
        self._search, self._entry = search, entry
        self._read, self._seconds = 0, 0.0

    def missing(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts that weren't read yet."""
        return [p for p in prompts if not self.kept.has(p)]

    def read(self, prompts: Sequence[Prompt]) -> bool:
        """Read those that are missing; False if there is no time for them."""
        missing = self.missing(prompts)
        if not missing:
            return True
        search = self._search
        expected_s = self._seconds / self._read * len(missing) if self._read else 0.0
        if self.endpoint is None or self._seconds + expected_s > READING_SHARE * search.run.budget_s:
            return False
        begun = time.monotonic()
        label, before = self._entry.label, len(prompts) - len(missing)
        self.kept.add(
            judging.evaluate_texts(
                self.endpoint,
                missing,
                token_ids=search.token_ids,
                own=search.own,
                on_progress=search.run.counter("quality", label, before, len(prompts)),
            )
        )
        self._read += len(missing)
        self._seconds += time.monotonic() - begun
        return True
