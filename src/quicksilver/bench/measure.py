"""Measure one endpoint under a workload: warm it up, put each load on it in turn, and derive the figures."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from quicksilver import __version__
from quicksilver.bench.alive import gone
from quicksilver.bench.doubts import ClientReport, place, worst
from quicksilver.bench.load import run_load
from quicksilver.bench.price import cost
from quicksilver.bench.ramp import steps
from quicksilver.bench.schedule import in_order
from quicksilver.bench.slo import goodput
from quicksilver.bench.stats import figures, of_load
from quicksilver.engines.process import cold_start_s
from quicksilver.errors import BadInputError
from quicksilver.hardware import detect
from quicksilver.nouns.arrivals import Arrivals
from quicksilver.nouns.base import content_hash
from quicksilver.nouns.benchmark import Benchmark
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.hardware import Price
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.score import Speed
from quicksilver.nouns.slo import Slo
from quicksilver.nouns.workload import Prompt, Workload

WARM_UP_TOKENS = 16
WORTH_SAYING = 0.1
"""How much slower or faster than the rest the requests before the steady state have to be."""

Progress = Callable[[str, int, int], None]
"""The load that is put on, requests that have ended, requests in all."""


def measure(
    endpoint: Endpoint,
    workload: Workload,
    *,
    price: Price,
    samples: Path,
    arrivals: Sequence[Arrivals] | None = None,
    slo: Slo | None = None,
    rounds: int = 1,
    repeat_prompts: bool = False,
    steady_only: bool = False,
    target: str = "",
    command: str = "",
    tools: Mapping[str, str] = MappingProxyType({}),
    on_progress: Progress = lambda *_: None,
) -> Benchmark:
    """Put a workload's prompts on an endpoint under each of some loads, and return the figures, one Speed a load.

    The loads are closed loops at the workload's concurrencies unless `arrivals` say otherwise. Each prompt is sent once in
    all, the first to warm up, unless `repeat_prompts` is set. The raw Samples are written to the file `samples`, which is begun
    anew. `slo` is what goodput is counted under; with `steady_only` what comes before a load's steady state isn't counted. `tools` are
    the versions of what serves. Requests that fail are figures, too, even if all do. Raises BadInputError, and EngineError if
    the load client can't do its work.
    """
    loads = tuple(Arrivals.closed(c) for c in workload.concurrencies) if arrivals is None else tuple(arrivals)
    warm, batches = plan(workload, loads, rounds, repeat=repeat_prompts)
    started_s = cold_start_s(endpoint)
    samples = samples.absolute()
    samples.parent.mkdir(parents=True, exist_ok=True)
    samples.unlink(missing_ok=True)
    run_load(endpoint, [warm], concurrency=1, max_tokens=WARM_UP_TOKENS, out=samples, warmup=True)
    notes = [f"{workload.name}: {workload.remark}."] if workload.remark else []
    seen: list[Sample] = []
    silence = ""
    clients: dict[Arrivals, list[ClientReport]] = {load: [] for load in loads}
    total, done = sum(len(batch) for _, _, batch in batches), 0
    for number, load, batch in batches:
        on_progress(load.label, done, total)
        found = run_load(
            endpoint,
            batch,
            arrivals=load,
            max_tokens=workload.max_tokens,
            out=samples,
            round=number,
            on_progress=_after(on_progress, load.label, done, total),
            on_note=notes.append,
            on_report=clients[load].append,
        )
        seen += found
        done += len(batch)
        silence = gone(endpoint, found, place(load))
    speeds = []
    for load in loads:
        client = worst(clients[load])
        speed = figures(seen, load, steady_only=steady_only).model_copy(
            update={
                "client_cpu_share": client.cpu_share,
                "behind_p99_ms": client.behind_p99_ms,
                "valid": not client.saturated,
                "saturated": client.saturated,
            }
        )
        notes += _remarks(speed, load, of_load(seen, load), counted=not steady_only)
        speeds.append(speed)
    notes += [silence] if silence else []
    described = describe(
        endpoint,
        workload,
        speeds,
        {
            "arrivals": [_described(load) for load in loads],
            "prompts": len({prompt.id for _, _, batch in batches for prompt in batch}),
            "warm_up_prompts": 1,
            "rounds": rounds,
            "repeat_prompts": repeat_prompts,
            "steady_only": steady_only,
        },
        price=price,
        samples=samples,
        target=target,
        command=command,
        tools=tools,
        notes=notes,
    )
    return described.model_copy(
        update={
            "steps": tuple(step for load in loads for step in steps(seen, load)),
            "cold_start_s": started_s,
            "server_gone": bool(silence),
            "slo": slo,
            "goodputs": () if slo is None else tuple(goodput(of_load(seen, load), slo) for load in loads),
        }
    )


def describe(
    endpoint: Endpoint,
    workload: Workload,
    speeds: Sequence[Speed],
    settings: Mapping[str, Any],
    *,
    price: Price,
    samples: Path,
    target: str,
    command: str,
    tools: Mapping[str, str],
    notes: Sequence[str],
) -> Benchmark:
    """Return the document of some speeds, with all that they were measured with; `settings` are those of the load."""
    return Benchmark(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        target=target or endpoint.url,
        model=endpoint.model,
        workload=workload.name,
        settings={
            "workload_hash": workload.hash,
            **settings,
            "max_tokens": workload.max_tokens,
            "temperature": 0,
            "seed": workload.seed,
            "price": price.model_dump(mode="json"),
        },
        hardware=detect(),
        tools={"quicksilver": __version__, "python": platform.python_version(), "aiohttp": version("aiohttp"), **tools},
        speeds=tuple(speeds),
        costs=tuple(cost(s, price) for s in speeds),
        samples=samples,
        notes=tuple(dict.fromkeys(notes)),
    )


def plan(
    workload: Workload, loads: Sequence[Arrivals], rounds: int, *, repeat: bool
) -> tuple[Prompt, list[tuple[int, Arrivals, Sequence[Prompt]]]]:
    """Return the prompt to warm up with, and what is sent under each load: (round, load, prompts).

    Prompts are shared out over rounds and loads, more to the higher ones; each is used once unless `repeat`. Raises
    BadInputError for too few prompts, for no loads or the same twice, and for a trace that isn't one.
    """
    if rounds < 1:
        raise BadInputError("A benchmark needs at least one round.")
    if not loads or len({(load.load_name, load.streams) for load in loads}) < len(loads):
        raise BadInputError("A benchmark needs at least one load, and each of them once.")
    # Nothing is calibrated here, and one prompt is left to warm up with.
    warm, *rest = [*workload.calibration, *workload.search, *workload.evaluation]
    every = rest or [warm]
    cells = [(number, load) for number in range(rounds) for load in loads]
    if repeat:
        batches = [(number, load, every) for number, load in cells]
    else:
        weights = [_weight(load) for _, load in cells]
        batches, start = [], 0
        for (number, load), weight in zip(cells, weights, strict=True):
            count = int(len(every) * weight / sum(weights))
            if count < 1:
                raise BadInputError(
                    f"{len(every)} prompts are too few for {rounds} rounds at {len(loads)} loads; "
                    "give more with --prompts, or allow --repeat-prompts."
                )
            batches.append((number, load, every[start : start + count]))
            start += count
    return warm, [(number, load, in_order(load, batch)[1]) for number, load, batch in batches]


def _weight(load: Arrivals) -> float:
    """Return how many of the prompts a load needs against others: all rates then take the same time."""
    if load.streams is not None:
        return max(2.0, load.streams_to or load.streams)
    rate = load.rate_per_s or 1.0
    return (rate + (load.rate_to_per_s or rate)) / 2


def _described(load: Arrivals) -> dict[str, Any]:
    """Return a load as JSON; of a trace's moments only how many there are."""
    return load.model_dump(mode="json", exclude={"times_s"}, exclude_none=True) | (
        {"moments": len(load.times_s), "moments_hash": content_hash(load.times_s)} if load.times_s else {}
    )


def _after(on_progress: Progress, text: str, done: int, total: int) -> Callable[[int, int], None]:
    return lambda more, _: on_progress(text, done + more, total)


def _remarks(found: Speed, load: Arrivals, samples: Sequence[Sample], *, counted: bool) -> list[str]:
    """Return what a reader of a load's figures has to know, a sentence each."""
    where = place(load)
    said = []
    if len(load.times_s) > found.requests:
        said.append(
            f"The trace has {len(load.times_s)} moments, and there were prompts for {found.requests}: the first ones."
        )
    if found.errors:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.errors_by_kind.items())
        first = next(s.error for s in samples if s.error is not None and not s.warmup)
        said.append(
            f"{found.errors} of {found.requests} requests failed {where} ({kinds}); the first: {first.rstrip('.')}. What came before is kept."
        )
    if found.keeps_up is False:
        said.append(
            f"The server doesn't keep up {where}: requests come faster than answers end, and latencies grow with the length of the run."
        )
    elif load.is_open and found.keeps_up is None:
        said.append(f"The run is too short to tell whether the server keeps up {where}.")
    steady = found.steady
    if steady is not None and not steady.reached:
        said.append(f"Latency per token reached no steady state {where} (MSER-5 over {steady.requests} requests).")
    elif steady is not None and steady.warm_up:
        more = steady.ratio - 1
        if abs(more) >= WORTH_SAYING or not counted:
            said.append(
                f"{where.capitalize()} the first {steady.warm_up} of {steady.requests} requests took {abs(more):.0%} "
                f"{'more' if more > 0 else 'less'} time per token than the rest (MSER-5); they are {'' if counted else 'not '}counted."
            )
    return said
