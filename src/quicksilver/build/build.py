"""Build: carry out a plan, each missing step in a worker of its own, and leave an artefact in the store."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from quicksilver import __version__, engines
from quicksilver.build import plan as planning
from quicksilver.build import store
from quicksilver.build.plan import Plan, PlannedStep
from quicksilver.build.worker import NO_MEMORY
from quicksilver.errors import BadInputError, BuildError, IllegalRecipeError, NotEnoughError, QuicksilverError
from quicksilver.hardware import detect
from quicksilver.nouns.artifact import MANIFEST, RECIPE, Artifact
from quicksilver.nouns.recipe import Recipe
from quicksilver.sources.gguf_grid import FILE as GRID_FILE
from quicksilver.sources.home import home, writing
from quicksilver.sources.links import link_all

Progress = Callable[[str], None]
LOG_TAIL = 16_384
"""Bytes of a log that are searched for why its worker ended."""


def build(plan: Plan, *, say: Progress = lambda _: None, log: Path | None = None) -> Artifact:
    """Build what's missing of a plan and return its artefact.

    Raises NotEnoughError before anything starts if memory or disk isn't there, IllegalRecipeError if there's nothing to
    calibrate on, BuildError if a step fails. Two builds of the same thing at once wait for each other and build it once.
    """
    if store.has(plan.key):
        return Artifact.open(store.path(plan.key))
    _check_calibration(plan)
    planning.check_room(plan, store.root())
    store.sweep()
    first = max((n for n, step in enumerate(plan.steps) if store.has(step.key)), default=0)
    before = plan.steps[first - 1].key if first else None
    for number, step in enumerate(plan.steps[first:], start=first + 1):
        with store.locked(step.key, partial(say, f"waiting for another process that builds {step.label}")):
            if not store.has(step.key):
                about = f", {step.last_s:.0f} s last time" if step.last_s else ""
                say(f"step {number} of {len(plan.steps)}: {step.label}{about}")
                _run(step, before, plan, say, log)
        before = step.key
    if before is None:  # pragma: no cover - every plan exports
        raise BuildError("The recipe has no step that builds anything.")
    with store.locked(plan.key):
        if not store.has(plan.key):
            _assemble(plan, before)
            _compile(plan, say, log)
    return Artifact.open(store.path(plan.key))


def _check_calibration(plan: Plan) -> None:
    for step in plan.missing:
        if step.technique is not None and step.technique.calibrated and not plan.calibration:
            raise IllegalRecipeError(
                f"{step.technique.name()} is calibrated on a workload's prompts, and there are none: give a workload."
            )


def _run(step: PlannedStep, before: str | None, plan: Plan, say: Progress, log: Path | None) -> None:
    """Build one step from the object `before`, or from the model as the user has it."""
    recipe = plan.recipe
    facts = {
        "kind": "step",
        "label": step.label,
        "model": plan.model.name,
        "fingerprint": plan.model.fingerprint,
        "tools": tools(recipe.engine),
    }
    begun = time.monotonic()
    with store.new(step.key, facts, source=before) as target:
        job = {
            "label": step.label,
            "engine": recipe.engine,
            "technique": step.technique.document() if step.technique else None,
            "source": str(store.path(before) if before else plan.model.path),
            "target": str(target),
            "facts": plan.model.facts.model_dump(mode="json"),
            "calibration": [p.model_dump(mode="json") for p in plan.calibration],
        }
        memory_mb = _work(job, target.with_name("scratch"), say, log)
        if not any(target.iterdir()):
            raise BuildError(f"The step {step.label} left no files.")
    planning.remember(step, plan, time.monotonic() - begun, memory_mb)


def _work(job: dict[str, Any], scratch: Path, say: Progress, log: Path | None) -> float:
    """Run the worker on a job; return its peak resident memory, MB."""
    label = job["label"]
    with _open_log(log) as chatter, _start(scratch, chatter) as worker:
        begun = chatter.seek(0, os.SEEK_END)
        last: dict[str, Any] = {}
        assert worker.stdin is not None
        assert worker.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended at once; its exit code and log say why
            worker.stdin.write(json.dumps(job).encode() + b"\n")
            worker.stdin.flush()
        for line in worker.stdout:
            if not line.endswith(b"\n"):
                break  # it was killed in the middle of a line
            last = json.loads(line)
            if "say" in last:
                say(f"{label}: {last['say']}")
        code = worker.wait()
        if "error" in last:
            kind = {2: BadInputError, 3: NotEnoughError}.get(last["code"], BuildError)
            raise kind(last["error"])
        if "memory_mb" not in last:
            raise _death(code, label, chatter, begun, log)
        return float(last["memory_mb"])


@contextmanager
def _open_log(log: Path | None) -> Iterator[IO[bytes]]:
    if log is None:
        with tempfile.TemporaryFile("a+b") as chatter:
            yield chatter
        return
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        chatter = log.open("a+b")
    except OSError as error:
        raise BadInputError(f"The log {log} can't be written: {(error.strerror or str(error)).lower()}.") from error
    with chatter:
        yield chatter


@contextmanager
def _start(scratch: Path, chatter: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker until the context ends, and then end it and all that it started."""
    worker = subprocess.Popen(
        # -P: a file of the user's in this folder can't stand in for a library.
        [sys.executable, "-P", "-m", "quicksilver.build.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=chatter,
        env=os.environ | {"TMPDIR": str(scratch)},
        start_new_session=True,
    )
    try:
        yield worker
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _death(code: int, label: str, chatter: IO[bytes], begun: int, log: Path | None) -> QuicksilverError:
    """Say how a worker ended that didn't say so itself."""
    if code == -signal.SIGKILL:
        return NotEnoughError(f"The step {label} was killed (SIGKILL), most likely because memory ran out.")
    where = f"; the log is {log}" if log else ""
    chatter.seek(max(begun, chatter.seek(0, os.SEEK_END) - LOG_TAIL))
    words = chatter.read().decode(errors="replace")
    if NO_MEMORY.search(words):
        return NotEnoughError(f"The step {label} ran out of memory{where}.")
    if code < 0:
        return BuildError(f"The step {label} crashed ({signal.Signals(-code).name}){where}.")
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return BuildError(f"The step {label} failed: {lines[-1].rstrip('.') if lines else f'exit code {code}'}{where}.")


def _assemble(plan: Plan, weights: str) -> None:
    """Make the artefact: the last step's files by hard link, recipe.json and a manifest."""
    recipe = plan.recipe
    facts = {
        "kind": "artifact",
        "label": recipe.label,
        "model": plan.model.name,
        "fingerprint": plan.model.fingerprint,
        "licence": plan.model.licence,
        "tools": tools(recipe.engine),
        "target": {"engine": engines.find(recipe.engine).version(), "isa": " ".join(detect().isa)},
        "steps": [step.key for step in plan.steps],
    }
    document = {
        "label": recipe.label,
        "name": plan.model.name,
        "engine": recipe.engine,
        "recipe": _portable(recipe),
        "serve": recipe.effective_settings().model_dump(mode="json"),
    }
    with store.new(plan.key, facts, source=weights) as target, writing(home()):
        link_all(store.path(weights), target, but=(MANIFEST, GRID_FILE))
        (target / RECIPE).write_text(json.dumps(document, indent=1), encoding="utf-8")


def _compile(plan: Plan, say: Progress, log: Path | None) -> None:
    """Let the engine compile the artefact, for a recipe that says so: with the settings of all its techniques."""
    recipe = plan.recipe
    label = next((technique.label for technique in recipe.techniques if "compiled" in technique.gives), None)
    if label is None:
        return
    say(f"{label}: for this machine")
    folder = str(store.path(plan.key))
    settings = recipe.effective_settings().model_dump(mode="json")
    job = {"label": label, "engine": recipe.engine, "compile": settings, "source": folder, "target": folder}
    with tempfile.TemporaryDirectory() as scratch:
        _work(job, Path(scratch), say, log)


def _portable(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's document in which files of this machine go by their last name."""
    path = Path(recipe.model).expanduser()
    stack = [
        technique.document() | {name: value.name for name, value in technique if isinstance(value, Path)}
        for technique in recipe.techniques
    ]
    return {
        "model": path.name if path.is_absolute() or path.exists() else recipe.model,
        "techniques": stack,
        "engine": recipe.engine,
        "settings": recipe.settings.model_dump(mode="json"),
    }


def tools(engine: str) -> dict[str, str]:
    """Return the versions of what builds and serves."""
    found = engines.find(engine)
    return {"quicksilver": __version__, "engine": found.version(), **found.tools()}
