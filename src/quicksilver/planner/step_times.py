"""How long steps take: which source can say it for a model, an instance and a layout; with the time of what guesses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from quicksilver.errors import BadInputError
from quicksilver.nouns.instance import Accelerator, Instance
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.prediction import CachePrecision, Guessing, Layout, Precision, StepTimes
from quicksilver.planner import aiconfigurator, models, roofline

DOUBTFUL = 3.0
"""An estimate of operators that were not measured is not believed if it is this many times the roofline's, or a part as small."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A model in a layout on a chip, without what guesses."""

    facts: ModelFacts
    chip: Accelerator
    weights: Precision
    cache: CachePrecision
    tensor_parallel: int
    pipeline_parallel: int
    queries: int

    @property
    def key(self) -> tuple[object, ...]:
        shape = (self.weights, self.cache, self.tensor_parallel, self.pipeline_parallel, self.queries)
        return (self.facts, self.chip.hash, *shape)


_said: dict[tuple[object, ...], StepTimes] = {}
"""What was worked out in this process: layouts share their draft, and the target with as many guesses."""


def step_times(facts: ModelFacts, instance: Instance, layout: Layout, *, name: str = "") -> StepTimes:
    """Return the step times of a layout on an instance, from the best source that knows it.

    Measured operators where the chip's were measured, else a roofline; for a machine that computes on its CPU, steps that were
    measured on this one. `name` is the model's, for messages. Raises BadInputError where nothing can be said, EngineError if
    aiconfigurator isn't installed.
    """
    chip = instance.accelerator
    if chip is None:
        from quicksilver.planner import fitted

        return fitted.step_times(facts, instance, layout)
    if layout.devices > instance.accelerators:
        raise BadInputError(
            f"{name or 'The model'} over {layout.devices} accelerators can't run on {instance.name}, which has {instance.accelerators}."
        )
    if facts.layers < layout.pipeline_parallel:
        raise BadInputError(f"{facts.layers} layers can't be shared out over {layout.pipeline_parallel} stages.")
    if facts.heads % layout.tensor_parallel:
        raise BadInputError(
            f"{facts.heads} attention heads can't be shared out evenly over {layout.tensor_parallel} accelerators."
        )
    guessing = layout.guessing
    asked = _Asked(
        facts,
        chip,
        layout.weights,
        layout.cache,
        layout.tensor_parallel,
        layout.pipeline_parallel,
        1 + (guessing.tokens if guessing else 0),
    )
    whole = _plain(asked)
    guesser = models.guesser(facts, guessing) if guessing else None
    if guessing is None or guesser is None:
        return whole
    return with_guesses(whole, _of_guesser(guesser, asked, layout), guessing, guesser)


def prepare(instances: Iterable[Instance]) -> None:
    """Begin to read what will be asked for instances, all at once; a plan over many chips is quicker for it."""
    aiconfigurator.prepare(instance.accelerator for instance in instances if instance.accelerator is not None)


def with_guesses(checking: StepTimes, guesses: StepTimes, guessing: Guessing, guesser: ModelFacts) -> StepTimes:
    """Add the steps of what guesses to those of the target that checks.

    Each step of decoding is `tokens` steps of the draft, one after the other, and one of the target; a prompt goes through both.
    The tables have the same axes.
    """
    k = guessing.tokens
    decode = tuple(
        tuple(round(target + k * draft, 4) for target, draft in zip(targets, drafts, strict=True))
        for targets, drafts in zip(checking.decode_ms, guesses.decode_ms, strict=True)
    )
    prefill = tuple(
        tuple(
            round(target + draft + ((k - 1) * _beside(guesses, b) if b else 0.0), 4)
            for target, draft, b in zip(targets, drafts, checking.beside, strict=True)
        )
        for targets, drafts in zip(checking.prefill_ms, guesses.prefill_ms, strict=True)
    )
    who = f"{guesser.parameters / 1e9:.2f}B parameters"
    notes = (f"a step has {k} of the guessing model of {who}, from {guesses.basis}", *guesses.remarks)
    return checking.model_copy(
        update={
            "decode_ms": decode,
            "prefill_ms": prefill,
            "remarks": tuple(dict.fromkeys((*checking.remarks, *notes))),
        }
    )


def _beside(guesses: StepTimes, streams: int) -> float:
    """Return what a step of the draft takes for the streams beside a prompt."""
    row = max(i for i, at in enumerate(guesses.streams) if at <= streams)
    column = max((i for i, at in enumerate(guesses.contexts) if at <= roofline.BESIDE_CONTEXT), default=0)
    return guesses.decode_ms[row][column]


def _of_guesser(guesser: ModelFacts, target: _Asked, layout: Layout) -> StepTimes:
    """A draft lies on the same devices as its target if its heads can be shared out, else on one; contexts are the target's."""
    return _plain(
        replace(
            target,
            facts=guesser.model_copy(update={"max_positions": target.facts.max_positions}),
            weights="bf16",
            tensor_parallel=layout.tensor_parallel if guesser.heads % layout.tensor_parallel == 0 else 1,
            pipeline_parallel=1,
            queries=1,
        )
    )


def _plain(asked: _Asked) -> StepTimes:
    """Step times without what guesses, from operators or else from the roofline."""
    if asked.key not in _said:
        _said[asked.key] = _work_out(asked)
    return _said[asked.key]


def _work_out(asked: _Asked) -> StepTimes:
    why = f"nobody measured operators of {asked.chip.name}"
    if aiconfigurator.knows(asked.chip):
        try:
            found = aiconfigurator.step_times(
                asked.facts,
                asked.chip,
                weights=asked.weights,
                cache=asked.cache,
                tensor_parallel=asked.tensor_parallel,
                pipeline_parallel=asked.pipeline_parallel,
                queries=asked.queries,
            )
        except BadInputError as error:
            why = str(error).rstrip(".")
        else:
            if not aiconfigurator.estimated(found):
                return found
            off = _over_roofline(found, asked)
            if asked.queries > 1:  # what guesses is compared with what doesn't: both are from one source
                believed = _plain(replace(asked, queries=1)).basis == found.basis
            else:
                believed = 1 / DOUBTFUL < off < DOUBTFUL
            if believed:
                return found
            why = (
                f"aiconfigurator has no measured operators for {asked.weights} on {asked.chip.name}, and its estimate is {off:.1f} "
                "times the roofline's, which is not believed"
            )
    return roofline.step_times(
        asked.facts,
        asked.chip,
        weights=asked.weights,
        cache=asked.cache,
        tensor_parallel=asked.tensor_parallel,
        pipeline_parallel=asked.pipeline_parallel,
        queries=asked.queries,
        why=why,
    )


def _over_roofline(found: StepTimes, asked: _Asked) -> float:
    """Return how many times the roofline's a step of 16 streams is."""
    context = min(found.contexts[-1], roofline.BESIDE_CONTEXT)
    by_roofline = roofline.step_ms(
        asked.facts,
        asked.chip,
        weights=asked.weights,
        cache=asked.cache,
        tensor_parallel=asked.tensor_parallel,
        pipeline_parallel=asked.pipeline_parallel,
        tokens=16 * asked.queries,
        cached_tokens=16 * context,
    )
    return found.decode_ms[found.streams.index(16)][found.contexts.index(context)] / by_roofline
