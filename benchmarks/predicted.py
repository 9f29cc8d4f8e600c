"""Predicted against measured tokens/s on this machine, for configurations that the fit never saw. The last line is one JSON document.

Steps of some artefacts of two models, 135M and 1.1B with random weights, are timed one by one in a process of their own, and closed
loops of other streams and lengths are served and measured over HTTP. The planner's model of a CPU is fitted to the steps alone, and
predicts the loops. A shared machine isn't as fast in one quarter of an hour as in the next, by more than the fit is off: so each
round times an artefact's steps and then serves it, and both are taken over all rounds. What the first round's steps alone predict
stands beside it. With --unseen no step is timed of the large model in int4, which is predicted all the same.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quicksilver import engines
from quicksilver.bench.load import run_load
from quicksilver.build import build as building
from quicksilver.build import plan as planning
from quicksilver.errors import QuicksilverError
from quicksilver.hardware import detect
from quicksilver.nouns import Artifact, Endpoint, Model, Prompt, Recipe, Settings
from quicksilver.nouns.prediction import Layout, PlannedLoad, Precision
from quicksilver.nouns.steps import StepSet
from quicksilver.planner import fitted, simulate, steps
from quicksilver.sources import models
from quicksilver.sources.home import home
from quicksilver.testing.large import make_random_model
from stamp import stamp

SMALL, LARGE = "smollm2-135m-instruct", "random-1.1b"
TIMED: tuple[tuple[str, Precision], ...] = (
    (SMALL, "bf16"),
    (SMALL, "int8"),
    (SMALL, "int4"),
    (LARGE, "bf16"),
    (LARGE, "int8"),
    (LARGE, "int4"),
)
"""Artefacts whose steps are timed; the last one not with --unseen."""
MEDIAN_PERCENT, WORST_PERCENT = 10.0, 25.0
"""What the errors must reach."""
WARM_UP_TOKENS = 8
SIMULATED_CYCLES = 8


@dataclass(frozen=True, slots=True)
class Case:
    """A configuration that is predicted and then measured."""

    model: str
    weights: Precision
    streams: int
    prompt: int
    answer: int

    @property
    def load(self) -> PlannedLoad:
        return PlannedLoad(input_tokens=self.prompt, output_tokens=self.answer, streams=self.streams)


HELD_BACK = (
    Case(SMALL, "bf16", 1, 300, 100),
    Case(SMALL, "bf16", 6, 400, 100),
    Case(SMALL, "int8", 3, 622, 128),
    Case(SMALL, "int8", 12, 150, 80),
    Case(SMALL, "int4", 1, 900, 64),
    Case(SMALL, "int4", 5, 200, 120),
    Case(SMALL, "int4", 10, 300, 60),
    Case(LARGE, "bf16", 1, 100, 40),
    Case(LARGE, "bf16", 3, 120, 32),
    Case(LARGE, "int8", 1, 200, 40),
    Case(LARGE, "int8", 6, 60, 40),
    Case(LARGE, "int4", 1, 150, 48),
    Case(LARGE, "int4", 3, 100, 40),
    Case(LARGE, "int4", 10, 48, 32),
)
"""Apart from a single stream no step was timed with as many, nor with such lengths."""


def main() -> int:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="how often each configuration is measured")
    parser.add_argument("--cycles", type=int, default=2, help="requests of each stream in a round")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="for the steps of an artefact in a round; a first pass is whole"
    )
    parser.add_argument("--only", choices=("small", "large"), help="configurations of one of the models")
    parser.add_argument("--unseen", action="store_true", help=f"time no step of {LARGE} in int4")
    parser.add_argument("--build", action="store_true", help="build what is missing, and stop")
    options = parser.parse_args()
    wanted = {"small": SMALL, "large": LARGE, None: None}[options.only]
    cases = [case for case in HELD_BACK if wanted in (None, case.model)]
    resolved = {SMALL: models.resolve(SMALL), LARGE: models.resolve(str(random_model()))}
    artifacts = {
        key: artifact_of(resolved[key[0]], key[1]) for key in dict.fromkeys((c.model, c.weights) for c in cases)
    }
    if options.build:
        return 0
    chosen = TIMED[:-1] if options.unseen else TIMED
    rounds: list[list[StepSet]] = []
    measured: dict[Case, list[float]] = {case: [] for case in cases}
    order = list(dict.fromkeys([*chosen, *artifacts]))
    for number in range(options.rounds):
        rounds.append([])
        # Backwards at every second round: a machine that changes doesn't change for the same ones.
        for key in order if number % 2 == 0 else order[::-1]:
            if key in chosen:
                rounds[-1] += steps.measure(resolved[key[0]].source, [Layout(weights=key[1])], budget_s=options.seconds)
            own = [case for case in cases if (case.model, case.weights) == key]
            if not own:
                continue
            with engines.find(artifacts[key].engine).serve(artifacts[key].path, artifacts[key].settings) as endpoint:
                for case in own:
                    vocabulary = resolved[case.model].facts.vocab_size
                    rate = measure(endpoint, case, options.cycles, vocabulary, seed=number)
                    measured[case].append(rate)
                    say(f"round {number + 1}: {words(case)}: {rate:.1f} tokens/s")
    every = [one for sets in rounds for one in sets]
    fit = fitted.fit(every)
    predicted = {case: predict(case, resolved[case.model], every) for case in cases}
    once = {case: predict(case, resolved[case.model], rounds[0]) for case in cases}
    drifted = drift(rounds[0], rounds[-1])
    print(json.dumps(document(fit, predicted, once, measured, chosen=chosen, drifted=drifted) | stamp()))
    return 0


def random_model() -> Path:
    """Return the 1.1B model's folder, made if it isn't there."""
    return make_random_model(home() / "planner" / "models" / LARGE)


def artifact_of(model: Model, weights: Precision) -> Artifact:
    """Return a model's artefact, built if it isn't in the store."""
    recipe = Recipe(model.source, steps.technique(weights, model.facts))
    return building.build(planning.make(recipe, model), say=say)


def predict(case: Case, model: Model, sets: Sequence[StepSet]) -> float:
    """Return the predicted tokens/s of a closed loop, from its first request to its last end as it is measured."""
    times = fitted.step_times(model.facts, detect(), Layout(weights=case.weights), sets)
    server = simulate.Server(times, step_tokens=Settings().max_batched_tokens)
    lengths = [(case.prompt, case.answer)] * (case.streams * SIMULATED_CYCLES)
    found = simulate.closed_loop(server, lengths, case.streams, spread=False)
    return case.answer * len(lengths) / float(found.end.max())


def measure(endpoint: Endpoint, case: Case, cycles: int, vocabulary: int, *, seed: int) -> float:
    """Return the tokens/s of a closed loop over HTTP, each prompt of random tokens and sent once."""
    rng = random.Random(f"{seed} {case}")
    prompts = [
        Prompt(
            id=str(number),
            token_ids=tuple(rng.randrange(100, vocabulary - 100) for _ in range(case.prompt)),
            max_tokens=case.answer,
            ignore_eos=True,
        )
        for number in range(1 + case.streams * cycles)
    ]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "samples.jsonl"
        warm = prompts[0].model_copy(update={"max_tokens": WARM_UP_TOKENS})
        run_load(endpoint, [warm], concurrency=1, max_tokens=WARM_UP_TOKENS, out=out, warmup=True)
        samples = run_load(endpoint, prompts[1:], concurrency=case.streams, max_tokens=case.answer, out=out)
    failed = [sample.error for sample in samples if sample.error is not None]
    if failed:
        raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")
    seconds = max(sample.end for sample in samples) - min(sample.sent for sample in samples)
    return sum(sample.completion_tokens for sample in samples) / seconds


def drift(before: Sequence[StepSet], after: Sequence[StepSet]) -> dict[str, float]:
    """Return by how many percent steps took longer in another round, the median of each artefact."""
    found = {}
    for one in before:
        again = {step.shape: step.ms for other in after for step in other.steps if _same(one, other)}
        ratios = [ms / step.ms for step in one.steps if step.ms and (ms := again.get(step.shape))]
        if ratios:
            found[f"{one.model} {one.weights}"] = round(100 * (statistics.median(ratios) - 1), 1)
    return found


def _same(one: StepSet, other: StepSet) -> bool:
    return (one.facts, one.weights) == (other.facts, other.weights)


def document(
    fit: fitted.Fit,
    predicted: dict[Case, float],
    once: dict[Case, float],
    measured: dict[Case, list[float]],
    *,
    chosen: Sequence[tuple[str, Precision]],
    drifted: dict[str, float],
) -> dict[str, Any]:
    """Return the figures, and print them as a table on stderr."""
    rows: list[dict[str, Any]] = []
    for case, rates in measured.items():
        mean = statistics.mean(rates)
        rows.append(
            {
                "model": case.model,
                "weights": case.weights,
                "streams": case.streams,
                "input_tokens": case.prompt,
                "output_tokens": case.answer,
                "steps_timed": (case.model, case.weights) in chosen,
                "predicted_tokens_per_s": round(predicted[case], 2),
                "measured_tokens_per_s": [round(rate, 2) for rate in rates],
                "error_percent": round(100 * (predicted[case] / mean - 1), 2),
                "noise_percent": round(100 * (max(rates) - min(rates)) / mean, 2),
            }
        )
    errors = [abs(row["error_percent"]) for row in rows]
    median, worst = statistics.median(errors), max(errors)
    by_once = [100 * abs(once[case] / statistics.mean(rates) - 1) for case, rates in measured.items()]
    say(f"\n{'configuration':44} {'predicted':>10} {'measured':>10} {'off by %':>9} {'noise %':>8}")
    for case, row in zip(measured, rows, strict=True):
        mean = statistics.mean(measured[case])
        say(
            f"{words(case):44} {predicted[case]:10.1f} {mean:10.1f} {row['error_percent']:9.1f} {row['noise_percent']:8.1f}"
        )
    changes = ", ".join(f"{name} {percent:+.0f} %" for name, percent in drifted.items())
    say(
        f"median {median:.1f} %, worst {worst:.1f} %; by the first round's steps alone {statistics.median(by_once):.1f} %, "
        f"{max(by_once):.1f} %; steps in the last round against the first: {changes}"
    )
    return {
        "benchmark": "predicted",
        "configurations": len(rows),
        "median_error_percent": median,
        "worst_error_percent": worst,
        "median_noise_percent": statistics.median(row["noise_percent"] for row in rows),
        "reached": median <= MEDIAN_PERCENT and worst <= WORST_PERCENT,
        "median_error_once_percent": round(statistics.median(by_once), 2),
        "worst_error_once_percent": round(max(by_once), 2),
        "steps_drifted_percent": drifted,
        "fit": {"steps": fit.steps, "error_percent": round(fit.error_percent, 2), "models": fit.models},
        "rows": rows,
    }


def words(case: Case) -> str:
    """Return a configuration in a few words."""
    return f"{case.model} {case.weights}, {case.streams} x {case.prompt}+{case.answer}"


def say(text: str) -> None:
    """Say something on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QuicksilverError as error:
        sys.exit(f"error: {error}")
