"""Deployment configurations of a model, in the words that users of SageMaker's JumpStart know: list, get, set, display.

Those of the catalogue's models are predicted for many instances and come with the package; those that searches found here were
measured. Each says which it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from quicksilver.errors import BadInputError, unknown
from quicksilver.nouns.deployment import Deployment, DeploymentPoint
from quicksilver.nouns.preset import PRESETS, Preset
from quicksilver.planner import deployments as predicted
from quicksilver.search import presets as measured
from quicksilver.sources.home import home, writable, writing

HERE = "local"
"""The instance type of what was measured by a search."""
COLUMNS = (
    "Instance Type",
    "Config Name",
    "Concurrent Users",
    "Latency, TTFT (P50 in sec)",
    "Throughput (P50 in tokens/sec/user)",
    "Instance Rate",
    "Figures",
)
WIDTH = 160
_CHOSEN = "deployments.json"


def list_deployment_configs(model: str, instance_type: str | None = None) -> list[Deployment]:
    """Return the configurations of a model: those measured here first, then the predicted ones by instance.

    `instance_type` keeps those of one instance (`local` for what was measured). Raises BadInputError for a model that nobody
    knows, and for an instance without a configuration of it.
    """
    found = [_measured(preset) for preset in _presets(model)]
    try:
        found += predicted.kept(model)
    except BadInputError:
        if not found:
            raise
    if not found:
        raise BadInputError(
            f"There are no configurations of {model}: they are predicted for {', '.join(predicted.known())}. "
            f"`quicksilver plan {model}` asks for a plan, and `quicksilver optimize {model}` measures some here."
        )
    if instance_type is None:
        return found
    mine = [one for one in found if one.instance == instance_type]
    if not mine:
        raise unknown(f"configuration of {model} for an instance", instance_type, {one.instance for one in found})
    return mine


def get_deployment_config(model: str) -> Deployment | None:
    """Return the configuration that was set for a model; None if none was, or it is there no longer."""
    chosen = _read().get(model)
    if chosen is None:
        return None
    every = list_deployment_configs(model)
    return next((one for one in every if [one.config_name, one.instance] == chosen), None)


def set_deployment_config(model: str, config_name: str, instance_type: str) -> Deployment:
    """Choose a configuration of a model, and return it. Raises BadInputError for one that there isn't."""
    if config_name not in PRESETS:
        raise unknown("configuration", config_name, PRESETS)
    found = next((o for o in list_deployment_configs(model, instance_type) if o.config_name == config_name), None)
    if found is None:
        raise BadInputError(f"{model} has no configuration {config_name} for {instance_type}.")
    folder = writable(home())
    part = folder / f"{_CHOSEN}.part"
    with writing(folder):
        part.write_text(json.dumps(_read() | {model: [config_name, instance_type]}, indent=1), encoding="utf-8")
        part.replace(folder / _CHOSEN)
    return found


def benchmark_metrics(deployments: Sequence[Deployment]) -> list[list[str]]:
    """Return the benchmark of configurations as rows under `COLUMNS`, one for each number of users."""
    return [
        [
            one.instance,
            one.config_name,
            str(point.users),
            "" if point.ttft_p50_s is None else f"{point.ttft_p50_s:.2f}",
            f"{point.tokens_per_s_user:.1f}",
            "" if one.rate is None else f"{one.rate.usd_per_hour:.3f} USD/Hrs",
            one.source if one.basis is None else f"{one.source} ({one.basis})",
        ]
        for one in deployments
        for point in one.benchmark
    ]


def display_benchmark_metrics(model: str, instance_type: str | None = None) -> None:
    """Print the benchmark of a model's configurations as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*COLUMNS)
    for row in benchmark_metrics(list_deployment_configs(model, instance_type)):
        table.add_row(*row)
    console = Console()
    # In a pipe rich takes 80 columns, in which these words break.
    (console if console.is_terminal else Console(width=WIDTH)).print(table)


def _presets(model: str) -> list[Preset]:
    try:
        return measured.known(model)
    except BadInputError:
        return []  # no search has looked for any here


def _measured(preset: Preset) -> Deployment:
    points = [
        DeploymentPoint(
            users=speed.concurrency,
            ttft_p50_s=speed.ttft_ms.p50 / 1000 if speed.ttft_ms.count else None,
            tokens_per_s_user=1000 / speed.tpot_ms.p50
            if speed.tpot_ms.p50 > 0
            else speed.tokens_per_s.value / speed.concurrency,
            tokens_per_s=speed.tokens_per_s.value,
            usd_per_million=cost.measured if cost is not None else None,
        )
        for speed, cost in zip(preset.benchmark, preset.costs, strict=True)
        if speed.concurrency
    ]
    return Deployment(
        config_name=preset.name,
        model=preset.model,
        instance=HERE,
        label=preset.label,
        source="measured",
        origin=f"{preset.created}, run {preset.run}",
        workload=preset.workload,
        why=preset.why,
        benchmark=tuple(points),
        rate=preset.price,
    )


def _read() -> dict[str, list[str]]:
    """Return what was chosen; nothing from a file that is damaged, which the next choice writes anew."""
    try:
        found = json.loads((home() / _CHOSEN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
