"""Deployments: `cost`, `balanced` and `latency` for a model on an instance, predicted; what is committed as data is made here.

`python -m quicksilver.planner.deployments` makes the files under `planner/deployments_data/` again, one for each model.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from quicksilver.nouns.deployment import Deployment, DeploymentPoint
from quicksilver.nouns.instance import Instance
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.prediction import Layout, PlannedLoad, Refused
from quicksilver.nouns.preset import PresetName
from quicksilver.planner import models
from quicksilver.planner.layouts import layouts
from quicksilver.planner.predict import ON_DEMAND, Stand, percentiles, run, stand
from quicksilver.sources import instances as catalogue

MODELS = (
    "llama-3-8b", "llama-3-70b", "llama-3.1-8b", "llama-3.1-70b", "mistral-7b-v0.3", "mixtral-8x7b-v0.1", "qwen3-8b", "smollm2-135m",
)  # fmt: skip
"""Those that files are made for, by their names in `planner/models.toml`."""
DATA = Path(__file__).parent / "deployments_data"
WORKLOAD = "622x250"
INPUT_TOKENS, OUTPUT_TOKENS = 622, 250
USERS = (1, 8, 32)
"""Few of the loads that a benchmark shows: a plan for a load of one's own is `quicksilver plan`."""
LEAST_TOKENS_PER_S = 3.0
"""What one user has to get: about as fast as people read."""
VCPUS = (8, 32, 96)
"""Of the machines without accelerators that deployments are made for: a small, a middle and a large one of each family."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layout on an instance with its benchmark."""

    stand: Stand
    points: tuple[DeploymentPoint, ...]

    @property
    def price(self) -> float:
        """Of a token under the heaviest load, by the machine's time alone: all candidates share the price of an hour."""
        return 1 / self.points[-1].tokens_per_s

    @property
    def latency(self) -> float:
        """Of an answer of the usual length for one user, s."""
        first = self.points[0]
        return (first.ttft_p50_s or 0.0) + OUTPUT_TOKENS / first.tokens_per_s_user


def predicted(name: str, facts: ModelFacts, instance: Instance) -> list[Deployment]:
    """Return the three deployments of a model on an instance, without prices; none where nothing fits, is known or is quick enough."""
    found = [one for layout in layouts(facts, instance) if (one := _candidate(name, facts, instance, layout))]
    if not any(one.points[0].tokens_per_s_user >= LEAST_TOKENS_PER_S for one in found):
        return []
    return [_deployment(name, instance, pick, one, why) for pick, one, why in picks(found)]


def picks(candidates: Sequence[Candidate]) -> list[tuple[PresetName, Candidate, str]]:
    """Choose the candidate of each preset: the best price, the best latency, and the nearest to both at once.

    Axes of the last are the logarithms of what each gives up against the best of its kind (compromise programming, Zeleny 1973).
    """
    if not candidates:
        return []
    order = sorted(candidates, key=lambda one: one.stand.layout.label)
    cheapest = min(order, key=lambda one: (one.price, one.latency))
    quickest = min(order, key=lambda one: (one.latency, one.price))

    def given_up(one: Candidate) -> tuple[float, float]:
        return math.log(one.price / cheapest.price), math.log(one.latency / quickest.latency)

    middle = min(order, key=lambda one: math.hypot(*given_up(one)))
    dearer, slower = (100 * math.expm1(share) for share in given_up(middle))
    return [
        ("cost", cheapest, f"the lowest price per token at {USERS[-1]} users"),
        ("balanced", middle, f"nearest to the best price and the best latency at once: {dearer:.0f} % and {slower:.0f} % off"),
        ("latency", quickest, f"the quickest answer of {OUTPUT_TOKENS} tokens for one user"),
    ]  # fmt: skip


def known() -> tuple[str, ...]:
    """Return the models that there are predicted deployments for, by their short names."""
    return tuple(sorted(file.stem for file in DATA.glob("*.json")))


@cache
def kept(model: str) -> tuple[Deployment, ...]:
    """Return the committed deployments of a model, by any name that `planner.models` knows it by; none for one without.

    Raises BadInputError for a name that nobody knows.
    """
    mine = models.facts(model).model_copy(update={"instruct": False})
    name = next((n for n in known() if models.facts(n).model_copy(update={"instruct": False}) == mine), None)
    if name is None:
        return ()
    rows = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    return tuple(priced(Deployment.model_validate(row)) for row in rows)


def priced(one: Deployment) -> Deployment:
    """Return a deployment with what it costs by the catalogue's prices, or the user's own: the files hold none, and don't age with them."""
    price = ON_DEMAND.price(catalogue.find(one.instance))
    if price is None:
        return one
    usd = (1 - price.discount) * price.usd_per_hour
    points = tuple(
        point.model_copy(update={"usd_per_million": _short(usd / (point.tokens_per_s * 3600 / 1e6))})
        for point in one.benchmark
    )
    return one.model_copy(update={"benchmark": points, "rate": price})


def vllm_arguments(layout: Layout, model: str) -> list[str]:
    """Return what starts vLLM in a layout; `model` is a hub id or a folder with weights in the layout's precision.

    What guesses is left to the user for a draft model or heads: a plan knows their size and not their name.
    """
    found = ["vllm", "serve", model, f"--tensor-parallel-size={layout.tensor_parallel}"]
    if layout.pipeline_parallel > 1:
        found.append(f"--pipeline-parallel-size={layout.pipeline_parallel}")
    if layout.cache == "fp8":
        found.append("--kv-cache-dtype=fp8")
    guessing = layout.guessing
    if guessing is not None:
        asked: dict[str, object] = {"num_speculative_tokens": guessing.tokens}
        asked |= {"method": "ngram", "prompt_lookup_max": 4} if guessing.draft_parameters == 0 else {"model": "DRAFT"}
        found.append(f"--speculative-config={json.dumps(asked)}")
    return found


def sensible() -> list[Instance]:
    """Return the instances that deployments are made for, by name.

    They have a price, and of two names for a machine theirs is the service's own. Of those with the same accelerators it is the
    cheapest, since what surrounds them hardly counts; of machines without any, those of `VCPUS`.
    """
    every = catalogue.instances()
    known = [
        one for one in every.values() if one.rate() and (one.name.startswith("ml.") or f"ml.{one.name}" not in every)
    ]
    cheapest: dict[tuple[str, int], Instance] = {}
    for one in sorted(known, key=_usd_per_hour):
        if one.accelerator is not None:
            cheapest.setdefault((one.accelerator.name, one.accelerators), one)
    chosen = [*cheapest.values(), *(one for one in known if one.accelerator is None and one.vcpus in VCPUS)]
    return sorted(chosen, key=lambda one: one.name)


def make(names: Iterable[str], folder: Path) -> None:
    """Predict the deployments of some models on all sensible instances, and write a file for each."""
    for name in names:
        facts = models.facts(name)
        every = sensible()
        found: list[Deployment] = []
        for number, instance in enumerate(every):
            print(f"{name}: {instance.name}, {number + 1} of {len(every)}", file=sys.stderr)
            found += predicted(name, facts, instance)
        rows = ",\n".join(json.dumps(one.model_dump(mode="json", exclude_defaults=True)) for one in found)
        (folder / f"{name}.json").write_text(f"[\n{rows}\n]\n", encoding="utf-8")


def _usd_per_hour(instance: Instance) -> float:
    rate = instance.rate()
    return rate.usd_per_hour if rate is not None else math.inf


def _candidate(name: str, facts: ModelFacts, instance: Instance, layout: Layout) -> Candidate | None:
    most = PlannedLoad(input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS, streams=USERS[-1])
    ready = stand(facts, instance, layout, most, name=name)
    if isinstance(ready, Refused):
        return None
    return Candidate(ready, tuple(_point(ready, most.model_copy(update={"streams": users})) for users in USERS))


def _point(ready: Stand, load: PlannedLoad) -> DeploymentPoint:
    simulated = run(ready, load)
    return DeploymentPoint(
        users=load.streams,
        ttft_p50_s=_short(percentiles(simulated.ttft_ms).p50 / 1000),
        tokens_per_s_user=_short(1000 / simulated.itl_ms(50)),
        tokens_per_s=_short(simulated.tokens_per_s),
    )


def _deployment(name: str, instance: Instance, pick: PresetName, one: Candidate, why: str) -> Deployment:
    times, layout = one.stand.times, one.stand.layout
    if layout.guessing is not None:
        # The whole sentence would stand in the file a hundred times.
        guessing = layout.guessing.model_copy(update={"origin": "stated: see planner/layouts.py"})
        layout = layout.model_copy(update={"guessing": guessing})
    return Deployment(
        config_name=pick,
        model=name,
        instance=instance.name,
        layout=layout,
        label=layout.label,
        source="predicted",
        basis=times.basis,
        origin=times.origin,
        workload=WORKLOAD,
        why=why,
        benchmark=one.points,
        remarks=one.stand.remarks,
    )


def _short(value: float) -> float:
    """Four digits: a prediction has no more, and the files stay small."""
    return float(f"{value:.4g}")


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    make(sys.argv[1:] or MODELS, DATA)
