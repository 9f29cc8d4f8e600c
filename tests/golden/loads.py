"""Benchmarks that exports have to cope with; the figures come from Samples of a server that is a formula, measured nowhere."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from quicksilver.bench.load_table import samples_of
from quicksilver.bench.price import cost, price
from quicksilver.bench.slo import goodput
from quicksilver.bench.slo_search import search, streams
from quicksilver.bench.stats import figures, speed
from quicksilver.nouns import Arrivals, Benchmark, Hardware, Sample, Slo

EVIL = "tiny <script>alert('x')</script> & \"q\" | [red]`b`[/red] \x1b[31m"
SLO = Slo.parse("ttft_p95<500ms,itl_p95<40ms,errors<2%")
COMMAND = (
    "quicksilver bench http://127.0.0.1:8000 --workload questions.jsonl --slo 'ttft_p95<500ms,itl_p95<40ms,errors<2%'"
)


def samples_at(load: float, count: int, number: int = 0, *, fail_every: int = 0) -> list[Sample]:
    """Answers of 8 to 24 tokens, one after the other on each of so many streams."""
    rng = random.Random(f"{load} {number}")
    free = [1000.0 * number] * round(load)
    found = []
    for n in range(count):
        stream = min(range(len(free)), key=free.__getitem__)
        sent = free[stream]
        first = sent + 0.060 * load**0.9 * rng.lognormvariate(0, 0.2)
        gap = 0.010 * (1 + 0.09 * load) * rng.lognormvariate(0, 0.05)
        arrivals = [first + gap * k for k in range(rng.randint(8, 24))]
        failed = bool(fail_every) and n % fail_every == fail_every - 1
        end = arrivals[-1] + 0.001
        found.append(
            Sample(
                prompt_id=f"p{number}-{n}", concurrency=round(load), scheduled=sent, sent=sent + 0.0002,
                first=None if failed else first, arrivals=[] if failed else arrivals, end=end, prompt_tokens=100 + n % 50,
                completion_tokens=0 if failed else len(arrivals), finish=None if failed else "stop",
                error="http 429: Too many requests." if failed else None, round=number,
            )
        )  # fmt: skip
        free[stream] = end
    return found


def plain(
    *, loads: Sequence[int] = (1, 8), slo: Slo | None = None, fail_every: int = 10
) -> tuple[Benchmark, list[Sample]]:
    """A run at some loads, with failures at those above one stream."""
    every = [s for c in loads for s in samples_at(c, 20 * c, fail_every=fail_every if c > 1 else 0)]
    return _document(every, loads, slo=slo), every


def searched(*, slo: Slo = SLO) -> tuple[Benchmark, list[Sample]]:
    """The search for the highest load that meets an SLO."""
    every: list[Sample] = []

    def measure(load: float, requests: int, number: int) -> Sequence[Sample]:
        found = samples_at(load, requests, number)
        every.extend(found)
        return found

    found = search(measure, slo, streams())
    document = _document(every, [round(attempt.load) for attempt in found.attempts], slo=slo)
    return document.model_copy(update={"search": found, "goodputs": tuple(a.goodput for a in found.attempts)}), every


def open_loop() -> tuple[Benchmark, list[Sample]]:
    """Requests at moments of their own: some a second, whatever the server does."""
    every = []
    rates = (2.0, 5.0)
    for number, rate in enumerate(rates):
        for n, s in enumerate(samples_at(4, 80, number)):
            shift = 1000.0 * number + n / rate - s.scheduled
            moved = [moment + shift for moment in s.arrivals]
            every.append(
                replace(
                    s, concurrency=512, load=f"{rate:g}/s", scheduled=s.scheduled + shift, sent=s.sent + shift, first=moved[0],
                    arrivals=moved, end=s.end + shift,
                )
            )  # fmt: skip
    found = _document(every, (), slo=SLO)
    speeds = tuple(figures(every, Arrivals.poisson(rate)) for rate in rates)
    return found.model_copy(
        update={
            "speeds": speeds,
            "costs": (None, None),
            "goodputs": tuple(goodput(samples_of(every, s), SLO) for s in speeds),
        }
    ), every


def evil() -> tuple[Benchmark, list[Sample]]:
    """Names that would be markup, a formula or an escape sequence."""
    found, every = plain()
    return found.model_copy(update={"model": EVIL, "workload": "=1+1", "notes": (EVIL,), "command": f"x {EVIL}"}), every


def nothing_answered() -> tuple[Benchmark, list[Sample]]:
    """Every request failed."""
    return plain(loads=(2,), slo=SLO, fail_every=1)


def _document(every: Sequence[Sample], loads: Sequence[int], *, slo: Slo | None) -> Benchmark:
    speeds = tuple(speed(every, c) for c in loads)
    cheap = price(0.5)
    return Benchmark(
        created="2026-11-25T12:00:00+00:00",
        command=COMMAND if slo else "quicksilver bench http://127.0.0.1:8000 --workload questions.jsonl",
        target="http://127.0.0.1:8000",
        model="tiny",
        workload="questions.jsonl",
        settings={
            "streams": list(loads),
            "prompts": 1999,
            "max_tokens": 256,
            "temperature": 0,
            "seed": 0,
            "repeat_prompts": False,
        },
        hardware=Hardware(name="local", cpu="Example CPU", cores=2, memory_gb=24.0, isa=("AVX2", "AVX-512")),
        tools={"quicksilver": "0.1.0", "python": "3.11.0", "aiohttp": "3.14.0"},
        speeds=speeds,
        costs=tuple(cost(s, cheap) for s in speeds),
        samples=Path("runs/bench/samples-0123456789abcdef.jsonl"),
        slo=slo,
        goodputs=() if slo is None else tuple(goodput([s for s in every if s.concurrency == c], slo) for c in loads),
        notes=("The load client took 51% of a core at 8 streams: the figures may be its limit, not the server's.",),
    )
