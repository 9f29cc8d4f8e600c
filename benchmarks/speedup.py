"""Tokens/s of a recipe against the model as it comes, side by side, on hotpotqa. The last line is one JSON document."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quicksilver.bench import quality as judging
from quicksilver.bench import stats
from quicksilver.bench.quality import Evaluation
from quicksilver.build import build as building
from quicksilver.build import plan as planning
from quicksilver.nouns import Artifact, Model, Prompt, Recipe, Sample, Workload
from quicksilver.recipes import load_recipe
from quicksilver.search.events import Event
from quicksilver.search.run import Raced, open_run
from quicksilver.sources import models, workloads
from stamp import stamp

PROMPTS = {1: 8, 8: 64}
"""Prompts of a round at each concurrency; no prompt is used twice.

At 8 streams the first prefills run alone and the last answers lack company; with 24 prompts that was a third of the time.
"""


def main() -> int:
    """Measure, and print a table on stderr and the figures on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    recipes = [load_recipe(path) for path in options.recipes]
    model = models.resolve(recipes[0].model)
    load = workloads.load("hotpotqa", prompts=60 + 2 * options.rounds * sum(PROMPTS.values()))
    prompts = [*load.search, *load.evaluation][: options.rounds * sum(PROMPTS.values())]
    entries = [Raced(r.hash, r.label, _build(r, model, load)) for r in (Recipe(recipes[0].model), *recipes)]
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(Path(folder), "speedup", {}, run_id=None, budget_s=1e9, progress=_tell)
        start = 0
        for number in range(options.rounds):
            loads: dict[int, Sequence[Prompt]] = {}
            for concurrency, count in PROMPTS.items():
                loads[concurrency] = prompts[start : start + count]
                start += count
            run.round(
                number,
                entries,
                loads,
                load.max_tokens,
                load.calibration,
                phase=f"round {number + 1} of {options.rounds}",
            )
        every = list(range(options.rounds))
        base = run.samples(entries[0].recipe, every)
        rows = [_row(entry.label, run.samples(entry.recipe, every), base) for entry in entries]
        losses = _losses([entry.artifact for entry in entries], load)
    for row, loss in zip(rows, losses, strict=True):
        row["quality_loss_percent"] = loss
        print(json.dumps(row, indent=1), file=sys.stderr)
    print(
        json.dumps({"benchmark": "speedup", "workload": "hotpotqa", "rounds": options.rounds, "rows": rows, **stamp()})
    )
    return 0


def _build(recipe: Recipe, model: Model, load: Workload) -> Artifact:
    return building.build(planning.make(recipe, model, load.calibration), say=lambda text: print(text, file=sys.stderr))


def _row(label: str, samples: list[Sample], base: list[Sample]) -> dict[str, Any]:
    row: dict[str, Any] = {"recipe": label}
    for concurrency in PROMPTS:
        speed = stats.speed(samples, concurrency)
        ratio = stats.ratio(samples, base, concurrency)
        row[f"{concurrency} streams"] = {
            "tokens_per_s": speed.tokens_per_s.model_dump(include={"value", "low", "high"}),
            "ratio": ratio.model_dump(include={"value", "low", "high"}) if ratio else None,
            "ttft_ms_p50": speed.ttft_ms.p50,
            "tpot_ms_p50": speed.tpot_ms.p50,
            "answer_tokens_p50": speed.completion_tokens_p50,
            "stopped_by_limit": sum(s.finish == "length" for s in samples if s.concurrency == concurrency),
            "requests": speed.requests,
            "errors": speed.errors,
        }
    return row


def _losses(artifacts: list[Artifact], load: Workload) -> list[dict[str, Any] | None]:
    from quicksilver import engines

    prompts = load.evaluation[:32]
    evaluations = []
    for artifact in artifacts:
        with engines.find(artifact.engine).serve(artifact.path, artifact.settings) as endpoint:
            evaluations.append(Evaluation(judging.evaluate_texts(endpoint, prompts)))
    figures = [judging.compare(e, evaluations[0]).loss_percent for e in evaluations]
    return [f.model_dump(include={"value", "low", "high"}) if f else None for f in figures]


def _tell(event: Event) -> None:
    print(
        f"{event.phase}: {event.text} {event.done:.0f}/{event.total:.0f}" if event.total else event.text,
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())
