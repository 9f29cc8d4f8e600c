"""Certify: serve an artefact without and with the techniques that claim to be lossless, and compare the greedy answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from quicksilver import engines, techniques
from quicksilver.bench import equivalence, greedy
from quicksilver.bench.equivalence import END, Conditions, Counts, Output, Parting
from quicksilver.build import build as building
from quicksilver.errors import BadInputError, said
from quicksilver.hardware import detect
from quicksilver.nouns.artifact import RECIPE, Artifact
from quicksilver.nouns.certificate import Certificate, Trial
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.recipe import Recipe
from quicksilver.nouns.settings import Settings
from quicksilver.nouns.technique import Technique
from quicksilver.nouns.workload import Prompt, Workload
from quicksilver.recipes import from_document
from quicksilver.sources.text import Tokenizer
from quicksilver.sources.workloads import fits

TOGETHER = "all together"
Progress = Callable[[str, int, int, float | None], None]
"""What is run, requests done, requests in all, seconds left."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to serve the artefact."""

    name: str
    settings: Settings
    streams: int

    @property
    def passes(self) -> int:
        """How often the prompts are sent: a prefix cache holds them from the second time on."""
        return 2 if self.settings.prefix_caching else 1


def recipe_of(artifact: Artifact) -> Recipe:
    """Return the recipe that an artefact was built from. Raises BadInputError."""
    path = artifact.path / RECIPE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"{path} says no recipe ({said(error)}).") from error
    return from_document(document)


def claiming(recipe: Recipe) -> tuple[Technique, ...]:
    """Return the techniques of a recipe that claim to be lossless. Raises BadInputError for a recipe without any."""
    found = tuple(technique for technique in recipe.techniques if technique.lossless)
    if not found:
        such = ", ".join(name for name in techniques.names() if techniques.find(name).lossless)
        raise BadInputError(
            f"The recipe {recipe.label} has no technique that claims to leave answers as they are ({such}), so there is "
            "nothing to certify; what rounding costs is its quality loss, which `quicksilver optimize` measures."
        )
    return found


def settings_with(recipe: Recipe, served: Settings, kept: Collection[Technique]) -> Settings:
    """Return the settings that an artefact is served with, but for the lossless techniques that aren't kept."""
    off = [technique for technique in claiming(recipe) if technique not in kept]
    rest = tuple(technique for technique in recipe.techniques if technique not in off)
    without = recipe.model_copy(update={"techniques": rest}).effective_settings()
    return served.model_copy(update={key: getattr(without, key) for technique in off for key in technique.settings()})


def chosen(workload: Workload, count: int, max_tokens: int) -> Workload:
    """Return a workload of its first `count` prompts, those of the evaluation split first, and answers of `max_tokens` at most."""

    def cut(limit: int) -> int:
        return min(limit, max_tokens)

    every = [*workload.evaluation, *workload.search, *workload.calibration][:count]
    shortened = [p.model_copy(update={"max_tokens": cut(p.max_tokens or workload.max_tokens)}) for p in every]
    changed: dict[str, Any] = {"calibration": (), "search": (), "evaluation": tuple(shortened)}
    return workload.model_copy(update=changed | {"max_tokens": cut(workload.max_tokens)})


def certify(
    artifact: Artifact,
    workload: Workload,
    *,
    count: int,
    streams: int,
    max_tokens: int,
    on_progress: Progress = lambda *_: None,
) -> Certificate:
    """Compare greedy answers with each lossless technique alone, and with all of them, against those with none.

    Raises BadInputError if no technique claims to be lossless, for prompts that don't fit, and for an engine that doesn't tell
    the likeliest tokens; EngineError for one that fails.
    """
    begun = time.monotonic()
    recipe = recipe_of(artifact)
    claims = claiming(recipe)
    load = chosen(workload, count, max_tokens)
    tokenizer = Tokenizer(artifact.path)
    lengths = {prompt.id: len(tokenizer.prompt_ids(prompt)) for prompt in load.evaluation}
    if tokenizer.context is not None:
        fits(load, lengths, tokenizer.context)
    longest = max(lengths.values())

    plain = settings_with(recipe, artifact.settings, ())
    reference = Arm("reference", plain, streams)
    # A step of one token has kernels of its own: the other load that is farthest from this one.
    other = 1 if streams > 1 else 4
    control = Arm(f"control: none, {other} stream{'s' if other > 1 else ''}", plain, other)
    alone = [Arm(t.label, settings_with(recipe, artifact.settings, (t,)), streams) for t in claims]
    arms = [*alone, *([Arm(TOGETHER, artifact.settings, streams)] if len(alone) > 1 else [])]
    total = sum(arm.passes for arm in (reference, control, *arms)) * len(load.evaluation)
    served = _Served(artifact, load, tokenizer, total, on_progress)

    expected, _ = served.answers(reference, top=greedy.MOST_TOP)
    heard = [served.answers(arm) for arm in arms]
    with served.serving(control) as endpoint:
        again = served.ask(endpoint, control)

        def trial(arm: Arm, found: Sequence[Output], counts: Counts) -> Trial:
            changes = _changes(arm.settings, plain)
            did = equivalence.exercised(changes, counts, longest) if arm is not control else None
            run = Conditions(arm.name, arm.streams, arm.passes, changes, did)
            look = served.second_look(endpoint)
            return equivalence.compare(expected, found, run, counts, text=served.text, look_again=look)

        floor = trial(control, again, Counts())
        trials = [trial(arm, *answers) for arm, answers in zip(arms, heard, strict=True)]
    machine = detect()
    return Certificate(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        key=artifact.key,
        label=artifact.label,
        model=artifact.model,
        engine=artifact.engine,
        hardware=machine,
        tools=building.tools(artifact.engine),
        workload=load.name,
        prompts=len(load.evaluation),
        streams=streams,
        max_tokens=max(prompt.max_tokens or 0 for prompt in load.evaluation),
        prompt_tokens_max=longest,
        near_tie=equivalence.NEAR_TIE,
        near_tie_share=equivalence.near_tie_share(expected),
        control=floor,
        techniques=tuple(trials[: len(alone)]),
        together=trials[-1] if len(trials) > len(alone) else None,
        verdict=equivalence.overall(trials),
        remarks=tuple(_remarks(floor, trials, longest)),
        seconds=round(time.monotonic() - begun, 1),
    )


@dataclass(slots=True)
class _Served:
    """The artefact, served in one way after the other, and how far that has come."""

    artifact: Artifact
    load: Workload
    tokenizer: Tokenizer
    total: int
    on_progress: Progress
    done: int = 0
    begun: float = field(default_factory=time.monotonic)

    def serving(self, arm: Arm) -> AbstractContextManager[Endpoint]:
        """Serve the artefact in one way."""
        self._tell(arm)
        engine = engines.find(self.artifact.engine)
        # Only from its second start on does a server load what the first one kept.
        with engine.serve(self.artifact.path, arm.settings) if arm.settings.compiled_cache else nullcontext():
            pass
        return engine.serve(self.artifact.path, arm.settings)

    def answers(self, arm: Arm, *, top: int = 0) -> tuple[list[Output], Counts]:
        """Return the greedy answers with the artefact served in one way, and what its server counted."""
        with self.serving(arm) as endpoint:
            return self.ask(endpoint, arm, top=top), greedy.counts(endpoint)

    def ask(self, endpoint: Endpoint, arm: Arm, *, top: int = 0) -> list[Output]:
        """Return the greedy answers of the last pass."""
        found: list[Output] = []
        for _ in range(arm.passes):
            found = greedy.outputs(
                endpoint,
                self.load.evaluation,
                streams=arm.streams,
                max_tokens=self.load.max_tokens,
                eos=self.tokenizer.eos,
                top=top,
                on_done=lambda: self._step(arm),
            )
        return found

    def second_look(self, endpoint: Endpoint) -> Callable[[Output, Parting], float | None]:
        """Return what tells the gap at a parting when a server reads prompt and answer up to there at once."""
        prompts: dict[str, Prompt] = {prompt.id: prompt for prompt in self.load.evaluation}

        def gap(reference: Output, parting: Parting) -> float | None:
            end = min(self.tokenizer.eos, default=0)
            said = [end if token == END else token for token in reference.tokens[: parting.position]]
            before = [*self.tokenizer.prompt_ids(prompts[reference.prompt_id]), *said]
            return equivalence.lead(greedy.likeliest(endpoint, before, eos=self.tokenizer.eos), parting.got)

        return gap

    def text(self, token: int) -> str:
        """Write a token for people."""
        return self.tokenizer.piece(token).decode(errors="replace")

    def _step(self, arm: Arm) -> None:
        self.done += 1
        self._tell(arm)

    def _tell(self, arm: Arm) -> None:
        left = (time.monotonic() - self.begun) / self.done * (self.total - self.done) if self.done else None
        self.on_progress(arm.name, self.done, self.total, left)


def _changes(settings: Settings, reference: Settings) -> dict[str, Any]:
    """Return the settings that differ from the reference's."""
    ours, theirs = settings.model_dump(mode="json"), reference.model_dump(mode="json")
    return {key: value for key, value in ours.items() if value != theirs[key]}


def _remarks(control: Trial, trials: Sequence[Trial], longest: int) -> list[str]:
    """Say what a reader of the verdicts has to know."""
    found = []
    for trial in trials:
        if trial.exercised is False:
            found.append(f"{trial.name} had nothing to do here, so nothing is proved of it{_why_idle(trial, longest)}.")
        elif trial.exercised is None:
            found.append(f"The server doesn't tell how much {trial.name} did.")
        again = sum(d.near_tie and d.gap_read is not None for d in trial.differences)
        if again:
            found.append(
                f"With {trial.name} {again} of {len(trial.differences)} places where answers part are over "
                f"{equivalence.NEAR_TIE:g} nats in the reference run, and near ties where it reads the same text again."
            )
    if control.verdict == "fault":
        found.append(
            "With none of the techniques answers part by more than a near tie, too, when other requests run beside them: what "
            "the techniques add to that can't be told."
        )
    return found


def _why_idle(trial: Trial, longest: int) -> str:
    if not trial.changes:
        return ": the recipe's own settings are the same"
    if "max_batched_tokens" in trial.changes:
        return f": the longest prompt has {longest} tokens and a step takes {trial.changes['max_batched_tokens']}"
    return ""
