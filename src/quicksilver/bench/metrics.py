"""Task metrics: how answers are scored, each with 0 to 1, so that a recipe's task can be held against the as-is model's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from quicksilver.bench import text_metrics
from quicksilver.errors import BadInputError, unknown
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.workload import Prompt, Task, Workload

CODE = "code_tests"
FORMS = ("regex:PATTERN", "path/to/file.py:function")


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt, and the text that a model answered."""

    prompt: Prompt
    text: str


@dataclass(frozen=True, slots=True)
class TaskMetric:
    """A score of answers. The name is what reports call it."""

    name: str
    score: Callable[[Sequence[Answer]], list[float]]
    """Score some answers, each with 0 to 1, in their order. Raises BadInputError for a metric that can't."""
    scores: Callable[[Prompt], bool]
    """Whether a prompt brings what the metric needs."""


def of_task(task: Task) -> tuple[TaskMetric, ...]:
    """Return the metrics of a workload's task; the gate looks at the first of them."""
    if task == "code":
        return (_code(),)
    return tuple(by_reference(name) for name in text_metrics.METRICS[task])


def find(spec: str) -> TaskMetric:
    """Return the metric of a name, `regex:PATTERN` or `path/to/file.py:function`. Raises BadInputError."""
    from quicksilver.bench import user_metric

    if spec.startswith(user_metric.REGEX):
        return user_metric.regex(spec.removeprefix(user_metric.REGEX))
    if spec == CODE:
        return _code()
    if spec in text_metrics.BY_NAME:
        return by_reference(spec)
    if ":" in spec or spec.endswith(".py"):
        return user_metric.function(spec)
    raise unknown("metric", spec, (*text_metrics.BY_NAME, CODE, *FORMS))


def chosen(spec: str | None, workload: Workload, *, needed: bool = False) -> tuple[TaskMetric, ...]:
    """Return the metrics that a workload's answers are scored by, the user's first, if there is one.

    Raises BadInputError for a metric that doesn't exist, that the workload can't be scored by, or that fails on a first answer; and if
    one is `needed` and there is none.
    """
    usual = of_task(workload.task)
    if spec is None:
        if needed and not any(metric.scores(prompt) for metric in usual for prompt in workload.evaluation):
            raise BadInputError(
                f"The workload {workload.name} has no reference answers, so there is no task whose loss could have a limit: give its "
                f"lines a 'reference', name a metric that needs none ({' or '.join(FORMS)}), or a judge."
            )
        return usual
    metric = find(spec)
    fitting = [prompt for prompt in workload.evaluation if metric.scores(prompt)]
    if not fitting:
        lacks, key = ("tests", "tests") if spec == CODE else ("reference answers", "reference")
        raise BadInputError(
            f"The workload {workload.name} has no {lacks}, which the metric {spec} needs: give its lines a {key!r}, or score "
            f"without, by {' or '.join(FORMS)}."
        )
    # What is wrong with a function is better known before an hour of measuring than after it.
    metric.score([Answer(fitting[0], next(iter(fitting[0].references), ""))])
    return metric, *(other for other in usual if other.name != metric.name)


def _code() -> TaskMetric:
    from quicksilver.bench import code_tests

    return code_tests.metric()


def by_reference(name: str) -> TaskMetric:
    """Return a metric that compares an answer's words with the references' (quicksilver.bench.text_metrics)."""
    measure = text_metrics.BY_NAME[name]

    def score(answers: Sequence[Answer]) -> list[float]:
        return [measure(answer.text, answer.prompt.references) for answer in answers]

    return TaskMetric(name, score, lambda prompt: bool(prompt.references))


def texts(samples: Iterable[Sample]) -> dict[str, str]:
    """Return the first answer to each prompt, by prompt id; what failed is none."""
    found: dict[str, str] = {}
    for sample in samples:
        if sample.error is None and not sample.warmup:
            found.setdefault(sample.prompt_id, sample.text)
    return found


def score(
    said: Mapping[str, str], prompts: Iterable[Prompt], metrics: Iterable[TaskMetric]
) -> dict[str, dict[str, float]]:
    """Return metric → prompt id → score, for the prompts that were answered and that a metric can score."""
    answers = [Answer(prompt, said[prompt.id]) for prompt in prompts if prompt.id in said]
    found: dict[str, dict[str, float]] = {}
    for metric in metrics:
        chosen = [answer for answer in answers if metric.scores(answer.prompt)]
        if chosen:
            values = metric.score(chosen)
            found[metric.name] = {answer.prompt.id: value for answer, value in zip(chosen, values, strict=True)}
    return found
