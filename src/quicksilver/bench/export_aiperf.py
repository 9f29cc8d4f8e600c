"""A Benchmark in the form of AIPerf's `profile_export_aiperf.json`, so that what reads that file reads ours.

The form is AIPerf 0.13's (schema 1.4): https://github.com/ai-dynamo/aiperf, `JsonExportData`. Metrics have AIPerf's names, units
and definitions (its docs/metrics-reference.md), computed from our Samples; its inter-token latency is our TPOT without the
stream's end, its inter-chunk latency our ITL. What is ours alone stands under `quicksilver`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np

from quicksilver.bench.load_table import samples_of
from quicksilver.bench.slo import goodput
from quicksilver.errors import BadInputError
from quicksilver.nouns.benchmark import Benchmark
from quicksilver.nouns.sample import Sample
from quicksilver.nouns.score import Speed

FILE_NAME = "profile_export_aiperf.json"
SCHEMA_VERSION = "1.4"
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)


def aiperf(found: Benchmark, samples: Sequence[Sample]) -> str:
    """Return the document of one load, as JSON text. Raises BadInputError for a Benchmark of several."""
    if len(found.speeds) != 1:
        raise BadInputError(
            f"AIPerf's form has one load in a file, and {len(found.speeds)} were measured; choose one, such as --streams 8."
        )
    chosen = samples_of(samples, found.speeds[0])
    document = _identity(found, chosen) | _metrics(found, chosen)
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _identity(found: Benchmark, samples: Sequence[Sample]) -> dict[str, Any]:
    ended = datetime.fromisoformat(found.created)
    # The document is dated at the end of the run; Samples are on a clock that knows no date.
    begun = ended - timedelta(seconds=_span_s(samples))
    return {
        "schema_version": SCHEMA_VERSION,
        "benchmark_id": found.hash,
        "input_config": {
            "models": {"items": [{"name": found.model}]},
            "endpoint": {"urls": [found.target], "type": "chat", "streaming": True},
            "datasets": [{"name": found.workload, "type": "file", "path": found.workload}],
            "phases": [{"name": "profiling", "requests": len(samples), **_phase(found.speeds[0])}],
        },
        "run_info": {
            "benchmark_id": found.hash,
            "random_seed": found.settings.get("seed"),
            "cli_command": found.command,
        },
        "was_cancelled": False,
        "is_complete": True,
        "error_summary": _errors(samples),
        "start_time": begun.isoformat(timespec="seconds"),
        "end_time": ended.isoformat(timespec="seconds"),
        "quicksilver": found.model_dump(
            mode="json",
            include={"version", "command", "target", "model", "workload", "settings", "hardware", "tools", "notes"},
        ),
    }


def _phase(speed: Speed) -> dict[str, Any]:
    """The load, as AIPerf names it; of a ramp the most streams, or the mean rate."""
    if speed.arrivals in ("poisson", "constant"):
        return {"type": speed.arrivals, "rate": speed.rate_per_s}
    if speed.arrivals == "trace":
        return {"type": "fixed_schedule"}
    return {"type": "concurrency", "concurrency": speed.concurrency}


def _errors(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    counts = Counter(s.error for s in samples if s.error is not None)
    summary = []
    for error, count in counts.most_common():
        kind, _, message = error.partition(": ")
        name, _, code = kind.partition(" ")
        details: dict[str, Any] = {"message": message or error, "type": name}
        if code.isdigit():
            details["code"] = int(code)
        summary.append({"error_details": details, "count": count})
    return summary


def _metrics(found: Benchmark, samples: Sequence[Sample]) -> dict[str, Any]:
    good = [s for s in samples if s.error is None]
    timed = [s for s in good if s.arrivals]
    seconds = _span_s(samples)
    itl = [_itl_ms(s) for s in timed if s.completion_tokens > 1]
    outputs, inputs = [float(s.completion_tokens) for s in good], [float(s.prompt_tokens) for s in good]
    distributions = {
        "request_latency": ("ms", [(s.arrivals[-1] - s.scheduled) * 1000 for s in timed]),
        "time_to_first_token": ("ms", [(s.arrivals[0] - s.scheduled) * 1000 for s in timed]),
        "time_to_second_token": ("ms", [(s.arrivals[1] - s.arrivals[0]) * 1000 for s in timed if len(s.arrivals) > 1]),
        "inter_token_latency": ("ms", itl),
        "inter_chunk_latency": ("ms", [(b - a) * 1000 for s in timed for a, b in pairwise(s.arrivals)]),
        "output_token_throughput_per_user": ("tokens/sec/user", [1000 / value for value in itl if value > 0]),
        "output_sequence_length": ("tokens", outputs),
        "output_token_count": ("tokens", outputs),
        "input_sequence_length": ("tokens", inputs),
    }
    singles: dict[str, tuple[str, float]] = {
        "request_count": ("requests", len(good)),
        "error_request_count": ("requests", len(samples) - len(good)),
        "benchmark_duration": ("sec", seconds),
        "total_isl": ("tokens", sum(inputs)),
        "total_osl": ("tokens", sum(outputs)),
        "total_output_tokens": ("tokens", sum(outputs)),
    }
    if seconds > 0:
        singles["request_throughput"] = ("requests/sec", len(good) / seconds)
        singles["output_token_throughput"] = ("tokens/sec", sum(outputs) / seconds)
    if found.slo is not None:
        met = goodput(samples, found.slo)
        singles["good_request_count"] = ("requests", met.good)
        if met.requests_per_s is not None:
            singles["goodput"] = ("requests/sec", met.requests_per_s)
    return {
        **{name: {"unit": unit, **_statistics(values)} for name, (unit, values) in distributions.items() if values},
        **{name: {"unit": unit, "avg": float(value)} for name, (unit, value) in singles.items()},
    }


def _itl_ms(sample: Sample) -> float:
    """AIPerf's inter-token latency: (last content - first content) / (tokens - 1)."""
    return (sample.arrivals[-1] - sample.arrivals[0]) * 1000 / (sample.completion_tokens - 1)


def _statistics(values: Sequence[float]) -> dict[str, float]:
    table = np.asarray(values, dtype=np.float64)
    points = np.percentile(table, PERCENTILES)
    return {
        "avg": float(table.mean()),
        **{f"p{p}": float(value) for p, value in zip(PERCENTILES, points, strict=True)},
        "min": float(table.min()),
        "max": float(table.max()),
        "std": float(table.std()),
        "count": len(values),
        "sum": float(table.sum()),
    }


def _span_s(samples: Sequence[Sample]) -> float:
    """From the first request to the last end, of each round; rounds have pauses between them."""
    rounds: dict[int, list[Sample]] = {}
    for s in samples:
        rounds.setdefault(s.round, []).append(s)
    return sum(max(s.end for s in batch) - min(s.sent for s in batch) for batch in rounds.values())
