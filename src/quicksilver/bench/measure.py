"""Measure one endpoint under a workload: warm it up, put each load on it in turn, and derive the figures."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

from quicksilver import __version__
from quicksilver.bench.load import run_load
from quicksilver.bench.price import cost
from quicksilver.bench.slo import goodput
from quicksilver.bench.stats import speed
from quicksilver.engines.process import cold_start_s
from quicksilver.errors import BadInputError
from quicksilver.hardware import detect
from quicksilver.nouns.benchmark import Benchmark
from quicksilver.nouns.engine import Endpoint
from quicksilver.nouns.hardware import Price
from quicksilver.nouns.slo import Slo
from quicksilver.nouns.workload import Prompt, Workload

WARM_UP_TOKENS = 16

Progress = Callable[[str, int, int], None]
"""The load that is put on, requests sent before it, requests in all."""


def measure(
    endpoint: Endpoint,
    workload: Workload,
    *,
    price: Price,
    samples: Path,
    rounds: int = 1,
    repeat_prompts: bool = False,
    slo: Slo | None = None,
    target: str = "",
    command: str = "",
    tools: Mapping[str, str] = MappingProxyType({}),
    on_progress: Progress = lambda *_: None,
) -> Benchmark:
    """Put a workload's prompts on an endpoint, at each of its concurrencies, and return the figures.

    Each prompt is sent once in all, the first to warm up, unless `repeat_prompts` is set. The raw Samples are written to the
    file `samples`, which is begun anew. `slo` is what goodput is counted under. `tools` are the versions of what serves. Raises BadInputError, and EngineError if
    the load client can't do its work.
    """
    if rounds < 1:
        raise BadInputError("A benchmark needs at least one round.")
    # Nothing is calibrated here, and one prompt is left to warm up with.
    warm, *every = [*workload.calibration, *workload.search, *workload.evaluation]
    every = every or [warm]
    batches = share_out(every, workload.concurrencies, rounds, repeat=repeat_prompts)
    started_s = cold_start_s(endpoint)
    samples = samples.absolute()
    samples.parent.mkdir(parents=True, exist_ok=True)
    samples.unlink(missing_ok=True)
    run_load(endpoint, [warm], concurrency=1, max_tokens=WARM_UP_TOKENS, out=samples, warmup=True)
    notes: list[str] = []
    seen = []
    total, done = sum(len(batch) for _, _, batch in batches), 0
    for number, concurrency, batch in batches:
        on_progress(f"{concurrency} stream{'s' if concurrency > 1 else ''}", done, total)
        seen += run_load(
            endpoint,
            batch,
            concurrency=concurrency,
            max_tokens=workload.max_tokens,
            out=samples,
            round=number,
            on_note=notes.append,
        )
        done += len(batch)
    speeds = tuple(speed(seen, c) for c in workload.concurrencies)
    return Benchmark(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        target=target or endpoint.url,
        model=endpoint.model,
        workload=workload.name,
        settings={
            "workload_hash": workload.hash,
            "streams": list(workload.concurrencies),
            "prompts": len(every),
            "warm_up_prompts": 1,
            "rounds": rounds,
            "repeat_prompts": repeat_prompts,
            "max_tokens": workload.max_tokens,
            "temperature": 0,
            "seed": workload.seed,
            "price": price.model_dump(mode="json"),
        },
        hardware=detect(),
        tools={"quicksilver": __version__, "python": platform.python_version(), "aiohttp": version("aiohttp"), **tools},
        speeds=speeds,
        costs=tuple(cost(s, price) for s in speeds),
        cold_start_s=started_s,
        samples=samples,
        slo=slo,
        goodputs=()
        if slo is None
        else tuple(goodput([s for s in seen if s.concurrency == c], slo) for c in workload.concurrencies),
        notes=tuple(dict.fromkeys(notes)),
    )


def share_out(
    prompts: Sequence[Prompt], concurrencies: Sequence[int], rounds: int, *, repeat: bool
) -> list[tuple[int, int, Sequence[Prompt]]]:
    """Share prompts out over rounds and concurrencies, more to the higher ones; each is used once unless `repeat`.

    The result has (round, concurrency, prompts). Raises BadInputError for too few prompts.
    """
    cells = [(number, c) for number in range(rounds) for c in concurrencies]
    if repeat:
        return [(number, c, prompts) for number, c in cells]
    weights = [max(2.0, c) for _, c in cells]
    batches: list[tuple[int, int, Sequence[Prompt]]] = []
    start = 0
    for (number, c), weight in zip(cells, weights, strict=True):
        count = int(len(prompts) * weight / sum(weights))
        if count < 1:
            raise BadInputError(
                f"{len(prompts)} prompts are too few for {rounds} rounds at {len(concurrencies)} loads; "
                "give more with --prompts, or allow --repeat-prompts."
            )
        batches.append((number, c, prompts[start : start + count]))
        start += count
    return batches
