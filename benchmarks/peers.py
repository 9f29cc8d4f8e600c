"""Tokens/s of our choice against what one would start by hand: transformers' server, llama.cpp's, OpenVINO GenAI's pipeline, vLLM.

All with their own defaults, over HTTP, interleaved: at each load the servers take turns with the same prompts, each of which a server sees once.
A peer that can't be started is named. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peer_figures as figures
from peer_servers import PEERS, Materials, started
from quicksilver import engines
from quicksilver.bench import metrics, stats
from quicksilver.bench.load import run_load
from quicksilver.bench.versus import Versus
from quicksilver.build import build as building
from quicksilver.build import plan as planning
from quicksilver.errors import BadInputError, EngineError, QuicksilverError
from quicksilver.hardware import detect
from quicksilver.nouns import Artifact, Endpoint, Goal, Prompt, Recipe, Sample, Workload
from quicksilver.recipes import load_recipe
from quicksilver.sources import models, workloads
from quicksilver.sources.text import Tokenizer
from stamp import stamp

ENVIRONMENT = Path(__file__).parent.parent / ".venv-transformers"
RECIPES = Path(__file__).parent.parent / "examples" / "recipes"
CHOICES = {
    "AVX-512 VNNI": dict.fromkeys((1, 4, 8), RECIPES / "smollm2-avx512.toml"),
    "AVX2": {
        1: RECIPES / "smollm2-cost.toml",
        4: RECIPES / "smollm2-4-streams.toml",
        8: RECIPES / "smollm2-8-streams.toml",
    },
}
"""What `optimize` chose for each number of streams on two cores, by the best instruction set that they had."""
PROMPTS = {1: 3, 4: 8, 8: 16}
"""Prompts of a round, for each number of streams; two a stream for others."""
WARM_UP = 4
"""Prompts that a server answers before it is measured."""
SHORT = 16
"""Tokens of each of those answers."""
JUDGED = 24
"""Prompts that the loss of quality is measured on, at most."""
MOST_LOSS_PERCENT = 1.0


@dataclass(slots=True)
class Entry:
    """A server under test."""

    name: str
    endpoint: Endpoint
    loads: set[int]
    """Streams that it is still measured at."""
    samples: dict[int, list[Sample]] = field(default_factory=dict)
    seconds_each: float | None = None
    """What it took for a prompt under the last load of its first round."""


@dataclass(slots=True)
class Bench:
    """What is measured, and what came of it so far."""

    prompts: Iterator[Prompt]
    counts: Mapping[int, int]
    rounds: int
    patience_s: float
    max_tokens: int
    folder: Path
    tokenizer: Tokenizer
    entries: list[Entry] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def measure(self) -> None:
        """Run the rounds. A server that fails is left out from then on, and named."""
        loads = itertools.product(range(self.rounds), sorted(self.counts.items()))
        for turn, (number, (streams, count)) in enumerate(loads):
            chosen = list(itertools.islice(self.prompts, count))
            here = [entry for entry in self.entries if streams in entry.loads]
            cut = turn % len(here) if here else 0
            rates = {}
            for entry in (*here[cut:], *here[:cut]):
                rate = self._load(entry, chosen, streams, number)
                if rate is not None:
                    rates[entry.name] = rate
            if number == 0:
                slow = figures.far_behind(rates)
                for entry in here:
                    if entry.name in slow:
                        entry.loads.discard(streams)

    def _load(self, entry: Entry, chosen: Sequence[Prompt], streams: int, number: int) -> float | None:
        asked = chosen[: figures.affordable(len(chosen), streams, entry.seconds_each, self.patience_s)]
        begun = time.monotonic()
        try:
            samples = run_load(
                entry.endpoint,
                asked,
                concurrency=streams,
                max_tokens=self.max_tokens,
                out=self.folder / f"{entry.name}.jsonl",
                round=number,
            )
            wrong = [s.error for s in samples if s.error is not None]
            if len(wrong) == len(samples):
                raise EngineError(f"all of its requests failed, with {wrong[0]}")
        except QuicksilverError as error:
            self.failed[f"{entry.name} at {streams}"] = str(error)
            entry.loads.clear()
            tell(f"{entry.name} failed at {streams} streams: {error}")
            return None
        if number == 0:
            entry.seconds_each = (time.monotonic() - begun) / len(asked)
        entry.samples.setdefault(streams, []).extend(samples)
        rate = stats.speed(figures.recounted(samples, self.tokenizer), streams).tokens_per_s.value
        tell(f"round {number + 1}, {streams} streams, {entry.name}: {rate:.0f} tokens/s, {len(asked)} prompts")
        return rate

    def results(self) -> list[dict[str, Any]]:
        """Return each load's rows, of what was measured so far. Ours are of one name: at each load there is one."""
        found = []
        for streams in sorted(self.counts):
            raw = {entry.name: s for entry in self.entries if (s := entry.samples.get(streams))}
            served = {name: sum(s.completion_tokens for s in own) for name, own in raw.items()}
            found.append(
                figures.result({n: figures.recounted(own, self.tokenizer) for n, own in raw.items()}, served, streams)
            )
        return found


def main(words: Sequence[str] | None = None) -> int:
    """Measure, write the chart and the table if they are asked for, and print the figures."""
    options = _parse(words)
    counts = {streams: options.prompts or PROMPTS.get(streams, 2 * streams) for streams in options.streams}
    recipes = {streams: load_recipe(options.choice[streams]) for streams in counts}
    asked = next(iter(recipes.values())).model
    model = models.resolve(asked)
    needed = WARM_UP + options.rounds * sum(counts.values())
    load = workloads.load(options.workload, prompts=60 + 2 * needed)
    every = [*load.search, *load.evaluation]
    if len(every) < needed:
        raise BadInputError(f"{load.name} has {len(every)} prompts, and {options.rounds} rounds need {needed}.")
    artifacts = {recipe.hash: _build(recipe, load) for recipe in recipes.values()}
    labels = {recipe.hash: f"{recipe.engine}, {artifacts[recipe.hash].label}" for recipe in recipes.values()}
    materials = Materials(model, options.transformers)
    if options.prepare:
        return _prepare(options.peers, materials)
    servers: dict[str, Any] = {figures.OURS: {"weights": "as chosen"}}
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(
            prompts=iter(every[WARM_UP:]),
            counts=counts,
            rounds=options.rounds,
            patience_s=options.patience,
            max_tokens=load.max_tokens,
            folder=options.keep or Path(work),
            tokenizer=Tokenizer(model.path if model.kind == "hf" else materials.as_is),
        )
        bench.folder.mkdir(parents=True, exist_ok=True)
        try:
            with ExitStack() as running:
                for key, artifact in artifacts.items():
                    loads = {streams for streams, recipe in recipes.items() if recipe.hash == key}
                    opened = engines.find(artifact.engine).serve(artifact.path, artifact.settings)
                    endpoint = running.enter_context(_noted(bench, figures.OURS, opened))
                    _add(bench, figures.OURS, endpoint, loads, every[:WARM_UP])
                servers |= _start_peers(bench, options.peers, materials, every[:WARM_UP], running)
                bench.measure()
        except KeyboardInterrupt:
            bench.failed["the rest"] = "it was stopped before its end"
    document = {
        "benchmark": "peers",
        "model": model.name,
        "workload": load.name,
        "most_tokens": load.max_tokens,
        "rounds": options.rounds,
        "prompts": counts,
        "servers": servers,
        "choices": {streams: labels[recipe.hash] for streams, recipe in recipes.items()},
        "quality_loss_percent": {},
        "results": bench.results(),
        "at_lengths": True,
        "failed": bench.failed,
        **stamp(),
    }
    if not options.no_quality:
        # It takes minutes for each, and what was measured is there now.
        tell(json.dumps(document))
        document["quality_loss_percent"] = {labels[key]: loss for key, loss in _losses(asked, artifacts, load).items()}
    document = json.loads(json.dumps(document))
    if options.chart is not None:
        options.chart.write_text(figures.draw(document), encoding="utf-8")
    tell("\n".join(figures.summary(document)))
    print(json.dumps(document))
    return 0


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=_numbers, default=[1, 4, 8], help="such as 1,4,8")
    parser.add_argument("--prompts", type=int, help="of a round, at each number of streams")
    parser.add_argument("--peers", type=_peers, default=list(PEERS), help=f"of: {', '.join(PEERS)}; by default all")
    parser.add_argument(
        "--choice", type=_choice, action="append", default=[], metavar="STREAMS=RECIPE", help="ours at a load"
    )
    parser.add_argument(
        "--transformers", type=Path, default=ENVIRONMENT, help="the environment with transformers' own server"
    )
    parser.add_argument("--workload", default="hotpotqa")
    parser.add_argument(
        "--patience", type=float, default=60, help="seconds of a load beyond which it gets fewer prompts"
    )
    parser.add_argument("--no-quality", action="store_true", help="leave out what our choices lose")
    parser.add_argument(
        "--prepare", action="store_true", help="make what is served, start each peer once, measure nothing"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where Samples and the servers' logs stay")
    parser.add_argument("--chart", type=Path, help="where to write the chart, SVG")
    options = parser.parse_args(words)
    options.choice = _chosen_here() | dict(options.choice)
    if options.rounds < 1 or (options.prompts is not None and options.prompts < 1):
        parser.error("there has to be a round and a prompt at least")
    for streams in options.streams:
        if streams not in options.choice:
            parser.error(f"say what is ours at {streams} streams, with --choice {streams}=RECIPE")
    return options


def _chosen_here() -> dict[int, Path]:
    """Return what was chosen on a CPU that can do what this one can."""
    return next((choices for isa, choices in CHOICES.items() if isa in detect().isa), {})


def _numbers(text: str) -> list[int]:
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError("streams are positive numbers")
    return found


def _peers(text: str) -> list[str]:
    """Return the peers whose names begin as the parts of a text do."""
    found = []
    for part in filter(None, text.split(",")):
        known = [name for name in PEERS if name.lower().startswith(part.strip().lower())]
        if not known:
            raise argparse.ArgumentTypeError(f"there is no peer {part!r}; there are {', '.join(PEERS)}")
        found += known
    return found


def _choice(text: str) -> tuple[int, Path]:
    streams, _, recipe = text.partition("=")
    if not streams.isdigit() or not Path(recipe).is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is not STREAMS=RECIPE, such as 8=examples/recipes/int8.toml")
    return int(streams), Path(recipe)


def _prepare(names: Sequence[str], materials: Materials) -> int:
    """Make what peers serve, and start each once, which leaves what it compiles in its cache. Return 1 if one can't be started."""
    missing = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            try:
                with started(PEERS[name], materials, Path(folder) / f"{name}.log") as endpoint:
                    tell(f"{name} was ready after {endpoint.load_s or 0:.0f} s")
            except QuicksilverError as error:
                missing += 1
                tell(f"{name} can't be measured: {error}")
    return 1 if missing else 0


@contextmanager
def _noted(bench: Bench, name: str, opened: AbstractContextManager[Endpoint]) -> Iterator[Endpoint]:
    """Keep a server, and note it if it died after it had started: what was measured stands."""
    ready = False
    try:
        with opened as endpoint:
            ready = True
            yield endpoint
    except EngineError as error:
        if not ready:
            raise
        bench.failed.setdefault(name, str(error))


def _start_peers(
    bench: Bench, names: Sequence[str], materials: Materials, prompts: Sequence[Prompt], running: ExitStack
) -> dict[str, Any]:
    """Start peers and take in those that answer; return what is known of them. The others are named."""
    found = {}
    for name in names:
        peer = PEERS[name]
        tell(f"starting {name}")
        try:
            opened = started(peer, materials, bench.folder / f"{name}.log")
            endpoint = running.enter_context(_noted(bench, name, opened))
            _add(bench, name, endpoint, set(bench.counts), prompts)
        except QuicksilverError as error:
            bench.failed[name] = str(error)
            tell(f"{name} can't be measured: {error}")
            continue
        found[name] = {"weights": peer.weights, "version": peer.version(materials), "ready_s": endpoint.load_s}
    return found


def _add(bench: Bench, name: str, endpoint: Endpoint, loads: set[int], prompts: Sequence[Prompt]) -> None:
    """Take a server in, after it has answered a few prompts that aren't measured. Raises EngineError if it answers none."""
    short = [prompt.model_copy(update={"max_tokens": SHORT}) for prompt in prompts]
    samples = run_load(
        endpoint,
        short,
        concurrency=min(max(loads), len(short)),
        max_tokens=SHORT,
        out=bench.folder / "warm-up.jsonl",
        warmup=True,
    )
    wrong = [s.error for s in samples if s.error is not None]
    if wrong:
        raise EngineError(f"it fails to answer, with {wrong[0]}")
    bench.entries.append(Entry(name, endpoint, loads))


def _build(recipe: Recipe, load: Workload) -> Artifact:
    return building.build(planning.make(recipe, models.resolve(recipe.model), load.calibration), say=tell)


def _losses(model: str, artifacts: Mapping[str, Artifact], load: Workload) -> dict[str, dict[str, Any] | None]:
    """Return by recipe what our choices lose against the model as it comes on their engine, percent, by what, and what the gate says.

    By perplexity; by the task's score where the engine's server doesn't tell the log-probabilities of a prompt.
    """
    found: dict[str, dict[str, Any] | None] = {}
    judged = load.model_copy(update={"evaluation": load.evaluation[:JUDGED]})
    for name in dict.fromkeys(artifact.engine for artifact in artifacts.values()):
        engine, base = engines.find(name), _build(Recipe(model, engine=name), load)
        scored = () if engine.abilities.prompt_logprobs else metrics.of_task(load.task)[:1]
        with tempfile.TemporaryDirectory() as folder:
            versus = Versus(judged, Goal(max_quality_loss=MOST_LOSS_PERCENT), scored, Path(folder))
            ours = {key: artifact for key, artifact in artifacts.items() if artifact.engine == name}
            try:
                versus.read_as_is(engine.serve(base.path, base.settings))
            except QuicksilverError as error:
                tell(f"what choices on {name} lose isn't known: {error}")
                found |= dict.fromkeys(ours)
                continue
            for key, artifact in ours.items():
                found[key] = _loss(versus, engine.serve(artifact.path, artifact.settings), key, artifact.label)
    return found


def _loss(versus: Versus, opened: AbstractContextManager[Endpoint], key: str, label: str) -> dict[str, Any] | None:
    try:
        found = versus.judge_candidate(opened, key)
    except QuicksilverError as error:
        tell(f"the loss of {label} isn't known: {error}")
        return None
    by, figure = ("perplexity", found.loss_percent) if found.loss_percent else ("task score", found.task_loss_percent)
    if figure is None:
        return None
    return {**(figures.plain(figure) or {}), "by": by, "outcome": found.judgement.outcome if found.judgement else None}


def tell(text: str) -> None:
    """Say something on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QuicksilverError as error:
        sys.exit(f"error: {error}")
