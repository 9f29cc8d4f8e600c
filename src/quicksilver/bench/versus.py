"""Hold one server against another: the quality gate without a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from quicksilver.bench import gate, greedy, judge, metrics
from quicksilver.bench import quality as judging
from quicksilver.bench.judge import Judge
from quicksilver.bench.lm_eval import Harness
from quicksilver.bench.metrics import TaskMetric
from quicksilver.bench.quality import Evaluation, PromptLogprobs, UnmeasurableError
from quicksilver.bench.stats import mean_figure
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.goal import Goal
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.score import Quality
from quicksilver.nouns.workload import Prompt, Workload

Opened = AbstractContextManager[Endpoint]
Progress = Callable[[str, int, int], None]
"""What is done, how much of it, of how much."""


@dataclass(slots=True)
class Versus:
    """What two servers are compared by, and what was found on the way."""

    workload: Workload
    goal: Goal
    metrics: Sequence[TaskMetric]
    out: Path
    """A folder for the answers and the log-probabilities."""
    streams: int = 4
    judge: Judge | None = None
    harnesses: Sequence[Harness] = ()
    tokenizers: tuple[Path | str, Path | str] = ("", "")
    """Of the as-is model and of the candidate, for lm-eval."""
    on_progress: Progress = lambda *_: None
    remarks: list[str] = field(default_factory=list)
    token_ids: dict[str, list[int]] = field(default_factory=dict)
    own: dict[str, list[int]] = field(default_factory=dict)
    _kept: dict[str, list[PromptLogprobs]] = field(default_factory=dict)
    _base: Evaluation = field(default_factory=Evaluation)
    _base_tasks: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def answered(self) -> bool:
        """Whether there is anything that answers are wanted for."""
        return self.judge is not None or any(m.scores(p) for m in self.metrics for p in self.workload.evaluation)

    def compare(self, as_is: Opened, candidate: Opened) -> Quality:
        """Return the candidate's quality, with the gate's judgement. One server is open at a time, the as-is one first.

        It reads as many prompts as the gate needs to decide. Raises BadInputError if there is nothing to compare, EngineError.
        """
        self.read_as_is(as_is)
        return self.judge_candidate(candidate)

    def read_as_is(self, as_is: Opened) -> None:
        """Read with the as-is model, for all candidates that follow. Raises EngineError."""
        with as_is as endpoint:
            self._base = Evaluation(self._read_base(endpoint), self._answers(endpoint, "as-is"))
            self._base_tasks = self._tasks(endpoint, "as-is", self.tokenizers[0])
        self._base.scores = metrics.score(metrics.texts(self._base.answers), self.workload.evaluation, self.metrics)

    def judge_candidate(self, candidate: Opened, name: str = "candidate") -> Quality:
        """Return a candidate's quality against what the as-is model was read to say; its files are named after it.

        Raises BadInputError if there is nothing to compare, EngineError.
        """
        base, prompts = self._base, self.workload.evaluation
        with candidate as endpoint:
            own = self._read_candidate(endpoint, base.logprobs, name)
            evaluation = Evaluation(own, self._answers(endpoint, name))
            tasks = self._tasks(endpoint, name, self.tokenizers[1])
        evaluation.scores = metrics.score(metrics.texts(evaluation.answers), prompts, self.metrics)
        if not own and not evaluation.answers and not tasks:
            raise BadInputError(
                f"There is nothing to compare by: {' '.join(self.remarks)} Give a workload with references, a --metric or a --judge."
            )
        losses, preference = [], None
        if self.judge is not None:
            before, after = metrics.texts(base.answers), metrics.texts(evaluation.answers)
            pairs = [judge.Pair(p, before[p.id], after[p.id]) for p in prompts if p.id in before and p.id in after]
            preference, rows = self.judge.compare(pairs, lambda done, total: self.on_progress("judge", done, total))
            losses.append(judge.loss(rows, self.goal))
        for task, scores in tasks.items():
            before_scores = self._base_tasks[task]
            losses.append(gate.task_loss(task, judging.task_rows(scores, before_scores), self.goal))
            if not any(before_scores.values()):
                self.remarks.append(
                    f"The as-is model scores 0 in {task} on every sample, so a loss of it can't be told."
                )
        found = self._quality(evaluation, base, losses)
        more = {task: mean_figure(list(scores.values())) for task, scores in tasks.items()}
        found = found.model_copy(update={"task": {**found.task, **more}})
        if found.judgement is None:
            raise BadInputError(
                "There is nothing to judge: the as-is model scores 0 on every prompt, and perplexity isn't known."
            )
        return found.model_copy(update={"preference": preference})

    def _tasks(self, endpoint: Endpoint, name: str, tokenizer: Path | str) -> dict[str, dict[str, float]]:
        """Let lm-eval run its tasks; return the score of each of their samples."""
        found = {}
        for number, harness in enumerate(self.harnesses):
            self.on_progress(f"{name}: {harness.name}", number, len(self.harnesses))
            found[harness.name] = harness.run(endpoint, tokenizer, self.out / f"lm-eval-{name}" / harness.task)
        return found

    def _quality(self, candidate: Evaluation, base: Evaluation, losses: Sequence[gate.Loss] = ()) -> Quality:
        return judging.compare(
            candidate, base, self.workload.evaluation, goal=self.goal, planned=len(base.logprobs), losses=losses
        )

    def _read_base(self, endpoint: Endpoint) -> list[PromptLogprobs]:
        prompts = self.workload.evaluation
        try:
            self.token_ids = {p.id: judging.tokenize(endpoint, p) for p in prompts}
        except UnmeasurableError as error:
            self.remarks.append(str(error))
            return []
        try:
            asked, limit = prompts[: greedy.OWN_PROMPTS], self.workload.max_tokens
            self.own = greedy.own_answers(endpoint, asked, streams=self.streams, max_tokens=limit)
        except (BadInputError, EngineError) as error:
            self.remarks.append(f"The candidate isn't scored on the as-is model's own answers: {error}")
        try:
            return self._read(endpoint, prompts, "as-is")
        except UnmeasurableError as error:
            self.remarks.append(str(error))
            return []

    def _read_candidate(self, endpoint: Endpoint, base: Sequence[PromptLogprobs], name: str) -> list[PromptLogprobs]:
        """Read until the loss is decided."""
        prompts = self.workload.evaluation
        found: list[PromptLogprobs] = []
        if not base:
            return found
        try:
            if judging.tokenize(endpoint, prompts[0]) != self.token_ids[prompts[0].id]:
                self.remarks.append(
                    "The two servers split a text into other tokens, so perplexities can't be compared."
                )
                return found
            for at in gate.looks(len(base)):
                found += self._read(endpoint, prompts[len(found) : at], name)
                judged = self._quality(Evaluation(found), Evaluation(base)).judgement
                if judged is not None and judged.outcome != "undecided":
                    break
        except UnmeasurableError as error:
            self.remarks.append(str(error))
        return found

    def _read(self, endpoint: Endpoint, prompts: Sequence[Prompt], name: str) -> list[PromptLogprobs]:
        """Read prompts, and keep what was read beside the answers."""
        total = len(self.workload.evaluation)
        kept = self._kept.setdefault(name, [])
        before = len(kept)

        def progress(done: int, _: int) -> None:
            self.on_progress(f"{name}: read", before + done, total)

        found = judging.evaluate_texts(endpoint, prompts, token_ids=self.token_ids, own=self.own, on_progress=progress)
        kept += found
        judging.write_logprobs(self.out / f"logprobs-{name}.jsonl", kept)
        return found

    def _answers(self, endpoint: Endpoint, name: str) -> list[Sample]:
        if not self.answered:
            return []
        return judging.answers(
            endpoint,
            self.workload.evaluation,
            concurrency=self.streams,
            max_tokens=self.workload.max_tokens,
            out=self.out / f"answers-{name}.jsonl",
            on_progress=lambda done, total: self.on_progress(f"{name}: answer", done, total),
        )
