"""Run: the folder of one search, what was measured in it so far, and how to go on after an interruption."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from quicksilver import engines
from quicksilver.bench import doubts
from quicksilver.bench.doubts import ClientReport
from quicksilver.bench.driver import Driver
from quicksilver.bench.load import read_samples, run_load
from quicksilver.engines.process import cold_start_s
from quicksilver.errors import BadInputError
from quicksilver.nouns.arrivals import Arrivals
from quicksilver.nouns.artifact import Artifact
from quicksilver.nouns.base import content_hash
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.workload import Prompt
from quicksilver.search import turns
from quicksilver.search.events import Event
from quicksilver.sources.home import writable, writing

INPUTS = "run.json"
RESULT = "result.json"
ROUNDS = "rounds.jsonl"
SERVERS = "servers.jsonl"
WARM_UP_PROMPTS = 1


@dataclass(frozen=True, slots=True)
class Raced:
    """What takes part in a round."""

    recipe: str
    """Its hash, which names the files of its samples."""
    label: str
    artifact: Artifact


@dataclass(frozen=True, slots=True)
class Measured:
    """A round that is over."""

    seconds: float
    """What it took, in this process or one before it."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """The recipes whose server died or couldn't be started, and why."""


@dataclass(slots=True)
class Run:
    """A folder below `runs/`: its inputs, samples, logs, and in the end result.json, report.html and the artefact."""

    folder: Path
    budget_s: float
    progress: Callable[[Event], None]
    begun: float = field(default_factory=time.monotonic)
    spent: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    peak_memory_mb: float = 0.0
    resumed: bool = False
    before_s: float = 0.0
    """Seconds that processes before this one had spent on the run when they finished their last round."""
    best: str = ""
    """What is best so far, in a few words, for whoever watches."""
    _clients: dict[int, tuple[ClientReport, int]] = field(default_factory=dict)
    """The worst that the load client said of its work, and of how many requests, by concurrency."""

    @property
    def elapsed_s(self) -> float:
        """Seconds that the run has taken, in this process and those before it."""
        return self.before_s + self.here_s

    @property
    def here_s(self) -> float:
        """Seconds since this process took the run up."""
        return time.monotonic() - self.begun

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return max(0.0, self.budget_s - self.elapsed_s)

    @property
    def log(self) -> Path:
        """Where build workers write what they have to say; servers of a recipe have a file of their own below `logs/`."""
        return self.folder / "log.txt"

    def tell(self, phase: str, text: str, done: float | None = None, total: float | None = None) -> None:
        """Tell whoever watches how far the run is."""
        self.progress(Event(phase, text, done, total, self.left_s or None, self.best))

    def counter(self, phase: str, text: str, before: int, total: int) -> Callable[[int, int], None]:
        """Return a callback that tells how far a part of a phase is, counted from `before`."""
        return lambda done, _: self.tell(phase, text, before + done, total)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of a block to the account of a phase."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - begun

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note the memory of this process and its children once a second while the block runs."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(1.0):
                self.note_memory()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def note_memory(self) -> None:
        """Keep the highest sum of resident memory of this process and its children seen, MB; shared pages count twice."""
        me = psutil.Process()
        total = 0
        for process in [me, *me.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.peak_memory_mb = max(self.peak_memory_mb, total / 1e6)

    def cell(self, recipe: str, concurrency: int, round_number: int) -> Path:
        """The file of the samples of one recipe at one concurrency in one round."""
        return self.folder / "samples" / f"{recipe}-c{concurrency}-r{round_number}.jsonl"

    def samples(self, recipe: str, rounds: Sequence[int]) -> list[Sample]:
        """Read what was measured of a recipe in some rounds."""
        found: list[Sample] = []
        for number in rounds:
            for path in sorted((self.folder / "samples").glob(f"{recipe}-c*-r{number}.jsonl")):
                found += read_samples(path)
        return found

    def finished_rounds(self) -> dict[int, list[str]]:
        """Return round → recipes for the rounds that were finished, in this process or one before it."""
        return {number: entry["recipes"] for number, entry in self.records().items()}

    def records(self) -> dict[int, dict[str, Any]]:
        """Return what was noted of each finished round: `recipes`, `kind`, `seconds` and `elapsed_s`."""
        path = self.folder / ROUNDS
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return {entry["round"]: entry for entry in map(_line, lines) if entry}

    def servers(self, recipe: str, *, racing: bool = True) -> list[dict[str, float]]:
        """Return load_s, cold_start_s and memory_mb of each time that a recipe was served in a race, or to read its quality."""
        path = self.folder / SERVERS
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [
            entry for entry in map(_line, lines) if entry and entry["recipe"] == recipe and entry["racing"] == racing
        ]

    def append(self, name: str, entry: dict[str, Any]) -> None:
        """Append a line of JSON to one of the run's files."""
        with writing(self.folder), (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    @contextmanager
    def serving(self, artifact: Artifact, recipe: str, *, racing: bool) -> Iterator[Endpoint]:
        """Serve an artefact, and keep how long its start took and how much memory it took.

        `racing` tells a served load from a measurement of quality, which asks for the logits of whole prompts.
        """
        # Of its own: a server that dies is quoted with its last words, and others may be talking.
        log = self.folder / "logs" / f"{recipe}.txt"
        with engines.find(artifact.engine).serve(artifact.path, artifact.settings, log=log) as endpoint:
            started_s = cold_start_s(endpoint)
            yield endpoint
            entry = {
                "recipe": recipe,
                "load_s": endpoint.load_s,
                "cold_start_s": started_s,
                "memory_mb": endpoint.peak_memory_mb(),
                "racing": racing,
            }
            self.append(SERVERS, entry)

    def round(
        self,
        number: int,
        entries: Sequence[Raced],
        loads: dict[int, Sequence[Prompt]],
        max_tokens: int,
        warm_up: Sequence[Prompt],
        *,
        phase: str,
        kind: str = "",
        together: bool = False,
        short: bool = False,
        most: Callable[[float], int] | None = None,
    ) -> Measured:
        """Measure every entry once at each concurrency; a round that was finished isn't again.

        With `together` all servers are up at once, and take turns; otherwise one is measured after the other. The first entry, which the
        others are compared with, leads. A `short` round goes by waves (see `turns.take`), and the others' answers are made as long as the
        first's: where rounded weights end an answer says nothing of speed, and of few answers it would be most of what is measured.
        `kind` is kept with it. `most` hears how many seconds the first entry takes, and says how many of the others there is room for: the
        rest isn't measured. If the first entry's server can't be started, or dies, the EngineError is raised, or NotEnoughError; an
        entry's whose does is out of the round, which goes on without it.

        An unfinished round starts over, so that what is compared was measured side by side. Every other round goes
        through the entries after the first backwards: a machine that slows down doesn't always slow the same recipe.
        """
        known = self.records().get(number)
        if known is not None and set(took_part(known)) == {entry.recipe for entry in entries}:
            return Measured(float(known.get("seconds", 0.0)), known.get("failed", {}))
        begun = time.monotonic()
        for path in (self.folder / "samples").glob(f"*-r{number}.jsonl"):
            path.unlink()
        first, *others = entries
        ordered = [first, *(others if number % 2 == 0 or most is not None else reversed(others))]
        lengths: dict[str, int] = {}
        each = sum(len(prompts) for prompts in loads.values())
        done, total = 0, each * len(ordered)
        reports: dict[tuple[str, int], list[ClientReport]] = {}
        with Driver() as driver:

            def load(
                side: turns.Side, concurrency: int, turn: int, prompts: Sequence[Prompt], endpoint: Endpoint
            ) -> None:
                nonlocal done
                leads = side.recipe == first.recipe
                text = f"{side.label} at {concurrency} stream{'s' if concurrency > 1 else ''}"
                samples = run_load(
                    endpoint,
                    prompts if leads else [_as_long(prompt, lengths) for prompt in prompts],
                    concurrency=concurrency,
                    max_tokens=max_tokens,
                    out=self.cell(side.recipe, concurrency, number),
                    round=number,
                    turn=turn,
                    on_progress=self.counter(phase, text, done, total),
                    on_note=lambda _: None,
                    on_report=reports.setdefault((side.recipe, concurrency), []).append,
                    driver=driver,
                )
                done += len(prompts)
                if leads and short:
                    lengths.update({s.prompt_id: s.completion_tokens for s in samples if s.error is None})

            sides = [
                turns.Side(entry.recipe, entry.label, self._racing(entry, warm_up, driver), must=entry is first)
                for entry in ordered
            ]

            def room(seconds: float) -> int:
                nonlocal total
                fitting = min(len(others), most(seconds) if most is not None else len(others))
                total = each * (1 + fitting)
                return fitting

            if together:
                sides = turns.take(sides, loads, load, waves=short, room=None if most is None else room)
            else:
                turns.take(sides[:1], loads, load, waves=short)
                del sides[1 + room(time.monotonic() - begun) :]
                for side in sides[1:]:
                    turns.take([side], loads, load, waves=short)
        taken = {side.recipe: side.failure for side in sides}
        failed = {recipe: why for recipe, why in taken.items() if why}
        for recipe in failed:
            for path in (self.folder / "samples").glob(f"{recipe}-*-r{number}.jsonl"):
                path.unlink()
        for (recipe, concurrency), heard in reports.items():
            if recipe not in failed:
                self._doubt(concurrency, heard, len(loads[concurrency]))
        seconds = time.monotonic() - begun
        recipes = [entry.recipe for entry in entries if entry.recipe in taken and entry.recipe not in failed]
        record = {"round": number, "recipes": recipes, "kind": kind, "seconds": seconds, "elapsed_s": self.elapsed_s}
        self.append(ROUNDS, record | ({"failed": failed} if failed else {}))
        return Measured(seconds, failed)

    @contextmanager
    def _racing(self, entry: Raced, warm_up: Sequence[Prompt], driver: Driver) -> Iterator[Endpoint]:
        """Serve an entry for a race, and let it answer a prompt that isn't counted."""
        with self.serving(entry.artifact, entry.recipe, racing=True) as endpoint:
            out = self.folder / "samples" / "warm-up.jsonl"
            first = warm_up[:WARM_UP_PROMPTS]
            run_load(endpoint, first, concurrency=1, max_tokens=16, out=out, warmup=True, driver=driver)
            yield endpoint

    def _doubt(self, concurrency: int, heard: Sequence[ClientReport], requests: int) -> None:
        """Keep the worst that the load client said of its work under a load, in all rounds: their many turns aren't a sentence each."""
        load = Arrivals.closed(concurrency)
        if (known := self._clients.get(concurrency)) is not None:
            said = doubts.sentences(known[0], load, known[1])
            self.remarks[:] = [remark for remark in self.remarks if remark not in said]
            heard, requests = [known[0], *heard], known[1] + requests
        self._clients[concurrency] = doubts.worst(heard), requests
        for sentence in doubts.sentences(self._clients[concurrency][0], load, requests):
            self.remark(sentence)

    def remark(self, sentence: str) -> None:
        """Keep a doubt about the figures for the report, once."""
        if sentence not in self.remarks:
            self.remarks.append(sentence)


def _as_long(prompt: Prompt, lengths: Mapping[str, int]) -> Prompt:
    """Return a prompt whose answer is as long as the one that is known, wherever it would end by itself."""
    if prompt.id not in lengths:
        return prompt
    return prompt.model_copy(update={"max_tokens": max(1, lengths[prompt.id]), "ignore_eos": True})


def took_part(record: Mapping[str, Any]) -> list[str]:
    """Return the recipes of a round by what was noted of it, those that failed in it last."""
    return [*record.get("recipes", ()), *record.get("failed", ())]


def _line(text: str) -> dict[str, Any] | None:
    """Read a line that a killed process may have cut off."""
    try:
        entry: dict[str, Any] = json.loads(text)
    except ValueError:
        return None
    return entry


def open_run(
    runs: Path,
    name: str,
    inputs: dict[str, Any],
    *,
    run_id: str | None,
    budget_s: float,
    progress: Callable[[Event], None],
    begun: float | None = None,
) -> Run:
    """Make a run's folder, or take up the last one with the same inputs that wasn't finished.

    `begun` is when the budget's time began, on the monotonic clock; now, if it isn't said. Raises BadInputError if `run_id` names a run with other inputs.
    """
    key = content_hash(inputs)
    if run_id is not None:
        if not run_id or "/" in run_id or run_id.startswith("."):
            raise BadInputError(f"{run_id!r} can't be a run's name: it is the name of a folder.")
        folder = runs / run_id
        if folder.exists() and _inputs_key(folder) != key:
            raise BadInputError(f"{folder} holds a run with other inputs; choose another --id, or leave it out.")
    else:
        unfinished = [
            path.parent
            for path in sorted(runs.glob(f"*/{INPUTS}"))
            if _inputs_key(path.parent) == key and not (path.parent / RESULT).exists()
        ]
        folder = unfinished[-1] if unfinished else runs / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
    resumed = (folder / INPUTS).is_file()
    writable(folder)
    (folder / "samples").mkdir(exist_ok=True)
    if not resumed:
        part = folder / (INPUTS + ".part")
        part.write_text(json.dumps({"key": key, "inputs": inputs}, indent=1), encoding="utf-8")
        part.replace(folder / INPUTS)
    run = Run(folder=folder, budget_s=budget_s, progress=progress, resumed=resumed)
    run.begun = run.begun if begun is None else begun
    run.before_s = max((float(entry.get("elapsed_s", 0.0)) for entry in run.records().values()), default=0.0)
    return run


def _inputs_key(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / INPUTS).read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
