"""Measured steps: timed on this machine for some models and precisions, and kept in the project's home for the fit."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from quicksilver import engines
from quicksilver.build import build as building
from quicksilver.build import plan as planning
from quicksilver.errors import BadInputError, EngineError
from quicksilver.hardware import detect
from quicksilver.nouns.base import content_hash
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.prediction import Layout, Precision
from quicksilver.nouns.recipe import Recipe
from quicksilver.nouns.settings import Settings
from quicksilver.nouns.steps import StepSet, StepShape, shapes
from quicksilver.nouns.technique import Technique
from quicksilver.sources import models
from quicksilver.sources.home import home, writable, writing

log = logging.getLogger(__name__)

Progress = Callable[[str, float, float | None], None]
"""Hears what is being done, which share of all is done, and the seconds that are left, if that can be told."""

ENGINE = "openvino"
MEASURABLE: tuple[Precision, ...] = ("bf16", "int8", "int4")
"""Weights that this engine serves on a CPU."""
LARGE = 500_000_000
"""Parameters of a model whose steps take so long that fewer are timed."""
GROUPS = (128, 64, 32)
BUDGET_S = 60.0
"""Seconds for one artefact after which no further pass over the shapes is begun."""


def folder() -> Path:
    """Return where measured steps are kept. It need not exist yet."""
    return home() / "planner" / "steps"


def keep(found: StepSet) -> Path:
    """Keep a set in the place of an earlier one of the same model, weights and threads; whole, however this process ends."""
    place = writable(folder())
    target = place / f"{content_hash(found.identity())}.json"
    with writing(place):
        handle, name = tempfile.mkstemp(dir=place, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(found.model_dump_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(target)
        finally:
            Path(name).unlink(missing_ok=True)
    return target


def kept() -> list[StepSet]:
    """Return all sets that are kept, the oldest first; one that can't be read is logged and left out."""
    found = []
    for file in sorted(folder().glob("*.json")):
        status = file.stat()
        one = _read(file, status.st_mtime_ns, status.st_ino)
        found += [] if one is None else [one]
    return sorted(found, key=lambda one: one.date)


@lru_cache(maxsize=256)  # a plan of the whole catalogue asks hundreds of times
def _read(file: Path, changed_ns: int, inode: int) -> StepSet | None:  # noqa: ARG001  they tell its versions apart
    """Read a file as it was at that time, with that number; each replacement has another number."""
    try:
        return StepSet.model_validate_json(file.read_bytes())
    except (ValidationError, OSError) as error:
        log.warning("%s holds no measured steps and isn't used: %s", file, str(error).splitlines()[0])
        return None


def technique(weights: Precision, facts: ModelFacts) -> tuple[Technique, ...]:
    """Return the techniques that give a model such weights, int4 in the largest groups that fit. Raises BadInputError."""
    from quicksilver.techniques.int4 import Int4
    from quicksilver.techniques.int8 import Int8

    if weights == "bf16":
        return ()
    if weights == "int8":
        return (Int8(),)
    if weights == "int4":
        widths = (facts.hidden_size, facts.intermediate_size, facts.heads * facts.head_dim)
        group = next((size for size in GROUPS if not any(width % size for width in widths)), -1)
        return (Int4(group_size=group),)
    raise BadInputError(f"The engine {ENGINE} serves no {weights} weights on a CPU; known: {', '.join(MEASURABLE)}.")


def _silent(text: str, share: float, left_s: float | None) -> None:
    pass


def measure(
    model: str,
    layouts: Sequence[Layout],
    progress: Progress = _silent,
    *,
    threads: int = 0,
    cells: Sequence[StepShape] | None = None,
    budget_s: float = BUDGET_S,
) -> list[StepSet]:
    """Time the steps of a model in the weights of each layout, keep and return them; artefacts that aren't there are built.

    `threads` of the engine, 0 for every core. Raises QuicksilverError, one sentence.
    """
    found_model = models.resolve(model)
    facts = found_model.facts
    weights = list(dict.fromkeys(layout.weights for layout in layouts))
    wanted = [(each, technique(each, facts)) for each in weights]
    begun = time.monotonic()
    sets = []
    for number, (each, techniques) in enumerate(wanted):

        def say(text: str, share: float, number: int = number, each: Precision = each) -> None:
            done = (number + share) / len(wanted)
            left_s = (time.monotonic() - begun) * (1 - done) / done if done > 0.02 else None
            progress(f"{found_model.name} {each}: {text}", done, left_s)

        recipe = Recipe(model, techniques, settings=Settings(threads=threads))
        say("build", 0.0)
        artifact = building.build(planning.make(recipe, found_model), say=lambda text, say=say: say(text, 0.0))  # type: ignore[misc]
        timings = engines.find(ENGINE).time_steps(
            artifact.path,
            artifact.settings,
            fitting(facts) if cells is None else cells,
            lambda done, total, say=say: say("steps", done / total),  # type: ignore[misc]
            budget_s=budget_s,
        )
        if timings is None:  # pragma: no cover - that engine times them
            raise EngineError(f"The engine {ENGINE} can't time steps.")
        one = StepSet(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=timings.machine,
            engine=timings.engine,
            threads=timings.threads,
            cores=detect().cores,
            model=found_model.name,
            facts=facts,
            weights=each,
            group=getattr(techniques[0], "group_size", 0) if techniques else 0,
            steps=timings.steps,
        )
        keep(one)
        sets.append(one)
    return sets


def fitting(facts: ModelFacts) -> tuple[StepShape, ...]:
    """Return the shapes that are timed of a model, as far as its positions go; of a large one fewer, and shorter prompts."""
    longest = facts.max_positions
    context = min(1024, longest // 2)
    large = facts.parameters > LARGE
    most = min(256 if large else 2048, longest)
    return shapes(
        streams=(1, 2, 4, 8, 16) if large else (1, 2, 4, 8, 16, 32),
        guesses=((1, 3), (4, 3), (8, 7)) if large else ((1, 1), (1, 3), (1, 7), (4, 1), (4, 3), (8, 7)),
        contexts=tuple(sorted({min(128, context), context})),
        prompts=tuple(sorted({min(tokens, most) for tokens in (16, 64, 256, 768, 2048)})),
        beside=((min(256, most), 4), (min(512, most), 12)),
    )


def document() -> str:
    """Return all sets as JSON Lines: what a machine gives to another to predict it by."""
    return "".join(json.dumps(one.model_dump(mode="json")) + "\n" for one in kept())
