"""Whether our figures agree with GuideLLM's and AIPerf's: the same endpoint, prompts and load, in interleaved runs. The last line is JSON.

Serves a tiny model on the fake engine with fixed delays, or SmolLM2-135M with --real. With --server-cores the server has some cores of
its own, and clients the others: what a client computes is then not taken from the model. The processor time of clients and server is
noted for each run, and so is what the server itself recorded of its requests: what a client says is also compared as a share of that,
which takes a real server's own noise out. `docs/agreement.md` says which figure of one client is compared with which of another. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from clients import MODEL, Served
from quicksilver import Recipe, api
from quicksilver.bench.load import run_load
from quicksilver.engines.process import serve_command
from quicksilver.nouns import Command, Endpoint, Message, Prompt, Sample, Settings
from quicksilver.sources import workloads
from quicksilver.techniques import make
from quicksilver.testing.tiny import make_tiny_model
from stamp import stamp

ROOT = Path(__file__).parents[1]
TOKENS, WORDS = 64, 96
DELAYS = {"prefill_ms_per_token": 0.5, "decode_ms": 20.0, "batch_cost": 0.1}
"""Of the fake engine, ms: half a millisecond a prompt token, and steps of 20 ms that grow by a tenth with each further stream."""
GOAL = 0.03
RECORD_S = 5.0
"""Seconds within which the server's record has its last request."""
FIGURES = ("ttft_p50_ms", "itl_p50_ms", "tokens_per_s", "requests_per_s")


def main() -> int:
    """Run the clients in turn, and compare the medians of their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=Path, default=ROOT / ".venv-clients", help="environment of envs/clients.lock")
    parser.add_argument("--aiperf", type=Path, default=ROOT / ".venv-aiperf", help="environment of envs/aiperf.lock")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=48, help="of a run; each run has prompts of its own")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--real", action="store_true", help="serve SmolLM2-135M in INT8")
    parser.add_argument("--server-cores", type=int, default=0, help="cores that only the server may use; 0 shares all")
    options = parser.parse_args()
    if not 0 <= options.server_cores < len(os.sched_getaffinity(0)):
        parser.error(f"--server-cores leaves no core to clients: there are {len(os.sched_getaffinity(0))}")
    runs: dict[str, list[Run]] = {client.__name__: [] for client in CLIENTS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        every = texts(options.rounds * options.requests * len(CLIENTS))
        with served_apart(folder, options.server_cores, real=options.real) as server:
            # What a first request pays is no client's own.
            ours(server.endpoint, every[: options.streams], options.streams, folder)
            for number in range(options.rounds):
                order = CLIENTS[number % len(CLIENTS) :] + CLIENTS[: number % len(CLIENTS)]
                for client in order:
                    chosen, every = every[: options.requests], every[options.requests :]
                    place = folder / f"{client.__name__}-{number}"
                    place.mkdir()
                    places = options.clients.absolute(), options.aiperf.absolute()
                    served = Served(server.endpoint.url, server.endpoint.model, server.tokenizer, place, *places)
                    with noted(server, len(chosen)) as run:
                        run.said = (
                            ours(server.endpoint, chosen, options.streams, place)
                            if client is ours
                            else client(served, chosen, options.streams)
                        )
                    runs[client.__name__].append(run)
                    shown = ", ".join(f"{name} {value:.2f} ({run.recorded[name]:.2f})" for name, value in run.shared())
                    print(f"round {number + 1}: {client.__name__}: {shown}; {run.spent}", file=sys.stderr)
    compared = compare(runs, noisy=options.real)
    worst = max(abs(row["of_record" if options.real else "difference"]) for row in compared)
    document = {
        "benchmark": "agreement",
        "model": MODEL if options.real else "tiny on the fake engine",
        "delays_ms": None if options.real else DELAYS,
        "streams": options.streams,
        "answer_tokens": TOKENS,
        "rounds": options.rounds,
        "requests": options.requests,
        "server_cores": options.server_cores,
        "versions": versions(options.clients, options.aiperf),
        "compared": compared,
        "worst": worst,
        "goal": GOAL,
        "agree": all(row["agrees"] for row in compared),
        "runs": {name: [asdict(run) for run in found] for name, found in runs.items()},
    }
    print(json.dumps(document | stamp()))
    return 0


@dataclass(frozen=True, slots=True)
class Server:
    """What serves: its endpoint, the folder of its tokenizer, and the file where it records its requests."""

    endpoint: Endpoint
    tokenizer: Path
    record: Path

    def requests(self) -> list[dict[str, Any]]:
        """Return what it recorded so far, a row a request."""
        return [json.loads(line) for line in self.record.read_text(encoding="utf-8").splitlines()]


@dataclass(slots=True)
class Run:
    """One run of a client."""

    said: dict[str, float] = field(default_factory=dict)
    """Its figures."""
    recorded: dict[str, float] = field(default_factory=dict)
    """The same by the server's record of the run."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds: the processor time of the client and of the server, and how long the client ran, its start included."""

    def shared(self) -> list[tuple[str, float]]:
        """Return the figures that all clients and the record have."""
        return [(name, self.said[name]) for name in FIGURES]


@contextmanager
def served_apart(folder: Path, cores: int, *, real: bool) -> Iterator[Server]:
    """Serve with a record. What is started while it runs may use all cores but the server's own."""
    every = sorted(os.sched_getaffinity(0))
    if real:
        recipe = Recipe(MODEL, [make("int8")], settings=Settings(threads=cores))
    else:
        recipe = Recipe(str(make_tiny_model(folder / "tiny")), engine="fake", settings=Settings(properties=DELAYS))
    artifact, record = api.build(recipe), folder / "record.jsonl"
    words = [sys.executable, "-m", "quicksilver", "serve", str(artifact.path), "--record", str(record), "--port"]
    # A process has the cores of the one that starts it.
    os.sched_setaffinity(0, every[:cores] or every)
    try:
        with serve_command(lambda port: Command([*words, str(port)]), log=folder / "server.log") as endpoint:
            os.sched_setaffinity(0, every[cores:])
            yield Server(endpoint, artifact.path, record)
    finally:
        os.sched_setaffinity(0, every)


@contextmanager
def noted(server: Server, count: int) -> Iterator[Run]:
    """Note what a client's run of so many requests spends, and what the server records of it."""
    run, before, cpu, began = Run(), len(server.requests()), cpu_s(server.endpoint), time.monotonic()
    yield run
    run.spent["run_s"] = time.monotonic() - began
    run.spent |= {k: b - a for k, a, b in zip(("client_s", "server_s"), cpu, cpu_s(server.endpoint), strict=True)}
    # A thread of its own writes the record.
    deadline = time.monotonic() + RECORD_S
    while len(rows := server.requests()[before:]) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    run.recorded = recorded(rows)


def recorded(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the figures of some requests by the server's own record: from a request's arrival to its end."""
    whole = [row for row in rows if row["completion_tokens"] == [TOKENS]]
    seconds = max(r["arrival_s"] + r["duration_ms"] / 1000 for r in whole) - min(r["arrival_s"] for r in whole)
    return {
        "ttft_p50_ms": statistics.median(r["ttft_ms"] for r in whole),
        "itl_p50_ms": statistics.median((r["duration_ms"] - r["ttft_ms"]) / (TOKENS - 1) for r in whole),
        "tokens_per_s": TOKENS * len(whole) / seconds,
        "requests_per_s": len(whole) / seconds,
    }


def cpu_s(endpoint: Endpoint) -> tuple[float, float]:
    """Return the processor time of clients that have ended, all of their processes, and of the server's processes, seconds."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    server = psutil.Process(endpoint.pid)
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return ended.ru_utime + ended.ru_stime, sum(t.user + t.system for t in times)


def texts(count: int) -> list[str]:
    """Return different prompts of one length."""
    found = workloads.load(f"synthetic:{WORDS}x{TOKENS}", prompts=count)
    return [p.prompt or "" for p in (*found.calibration, *found.search, *found.evaluation)]


def ours(endpoint: Endpoint, chosen: Sequence[str], streams: int, folder: Path) -> dict[str, float]:
    """Our load client; what the others define otherwise is computed their way too, from the same Samples."""
    prompts = [
        Prompt(id=str(n), messages=(Message(role="user", content=text),), max_tokens=TOKENS, ignore_eos=True)
        for n, text in enumerate(chosen)
    ]
    samples = run_load(endpoint, prompts, concurrency=streams, max_tokens=TOKENS, out=folder / "samples.jsonl")
    failed = [s.error for s in samples if s.error is not None]
    if failed:
        raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")
    seconds = max(s.end for s in samples) - min(s.sent for s in samples)
    return {
        "ttft_p50_ms": statistics.median((s.arrivals[0] - s.scheduled) * 1000 for s in samples),
        "itl_p50_ms": statistics.median(_itl_ms(s) for s in samples),
        "tokens_per_s": sum(s.completion_tokens for s in samples) / seconds,
        "requests_per_s": len(samples) / seconds,
        "gap_p50_ms": statistics.median((b - a) * 1000 for s in samples for a, b in pairwise(s.arrivals)),
        "tpot_p50_ms": statistics.median((s.end - s.arrivals[0]) * 1000 / (s.completion_tokens - 1) for s in samples),
    }


def _itl_ms(sample: Sample) -> float:
    """A request's mean time per token after its first, until its last: what both others call inter-token latency."""
    return (sample.arrivals[-1] - sample.arrivals[0]) * 1000 / (sample.completion_tokens - 1)


def guidellm(served: Served, chosen: Sequence[str], streams: int) -> dict[str, float]:
    """GuideLLM's own figures, of requests that succeeded."""
    data, out = served.folder / "prompts.jsonl", served.folder / "guidellm.json"
    _lines(data, [{"prompt": text, "output_tokens_count": TOKENS} for text in chosen])
    served.run(
        served.clients / "bin/guidellm", "run", "--disable-console-interactive",
        "--backend", f"kind=openai_http,target={served.url.removesuffix('/v1')}",
        "--tokenizer", f"kind=huggingface_auto,model={served.tokenizer}",
        "--data", f"kind=json_file,path={data}",
        "--profile", f"kind=concurrent,streams={streams}",
        "--constraint", f"kind=max_requests,count={len(chosen)}",
        "--output", f"kind=json,path={out}",
    )  # fmt: skip
    metrics = json.loads(out.read_text(encoding="utf-8"))["benchmarks"][0]["metrics"]
    totals = metrics["request_totals"]
    assert totals["successful"] == totals["total"], totals
    # It ends once as many have begun: seen once, 15 of 16 in its document and none that failed.
    assert len(chosen) - streams <= totals["total"] <= len(chosen), totals
    assert metrics["output_token_count"]["successful"]["mean"] == TOKENS, metrics["output_token_count"]["successful"]
    return {
        "ttft_p50_ms": metrics["time_to_first_token_ms"]["successful"]["median"],
        "itl_p50_ms": metrics["inter_token_latency_ms"]["successful"]["median"],
        "tokens_per_s": metrics["output_tokens_per_second"]["successful"]["mean"],
        "requests_per_s": metrics["requests_per_second"]["successful"]["mean"],
    }


def aiperf(served: Served, chosen: Sequence[str], streams: int) -> dict[str, float]:
    """AIPerf's own figures."""
    data, out = served.folder / "prompts.jsonl", served.folder / "aiperf"
    _lines(data, [{"text": text, "output_length": TOKENS} for text in chosen])
    served.run(
        served.aiperf / "bin/aiperf", "profile", "--ui", "simple", "--streaming", "--endpoint-type", "chat",
        "--url", served.url.removesuffix("/v1"), "--model", served.model, "--tokenizer", served.tokenizer,
        "--concurrency", str(streams), "--request-count", str(len(chosen)),
        "--input-file", data, "--custom-dataset-type", "single_turn", "--use-server-token-count",
        "--extra-inputs", "ignore_eos:true", "--extra-inputs", f"max_tokens:{TOKENS}", "--artifact-dir", out,
        # One of its processes each: more of them take the server's cores on a small machine.
        "--workers-max", "1", "--record-processors", "1", "--no-gpu-telemetry", "--no-server-metrics",
    )  # fmt: skip
    found = json.loads((out / "profile_export_aiperf.json").read_text(encoding="utf-8"))
    assert found["request_count"]["avg"] == len(chosen), found["request_count"]
    assert found["output_sequence_length"]["avg"] == TOKENS, found["output_sequence_length"]
    return {
        "ttft_p50_ms": found["time_to_first_token"]["p50"],
        "itl_p50_ms": found["inter_token_latency"]["p50"],
        "tokens_per_s": found["output_token_throughput"]["avg"],
        "requests_per_s": found["request_throughput"]["avg"],
        "gap_p50_ms": found["inter_chunk_latency"]["p50"],
    }


CLIENTS: tuple[Callable[..., dict[str, float]], ...] = (ours, guidellm, aiperf)


def compare(runs: Mapping[str, Sequence[Run]], *, noisy: bool) -> list[dict[str, Any]]:
    """Return our median of each figure against each other client's, as a share of theirs, and whether the two agree.

    `of_record` is the same for each run's figure as a share of what the server recorded of that run. Two agree within GOAL; where
    the server is `noisy`, of the record.
    """
    rows = []
    for client in ("guidellm", "aiperf"):
        for figure in FIGURES:
            mine, theirs = (statistics.median(run.said[figure] for run in runs[name]) for name in ("ours", client))
            own, other = (
                statistics.median(run.said[figure] / run.recorded[figure] for run in runs[name])
                for name in ("ours", client)
            )
            found = {"difference": mine / theirs - 1, "of_record": own / other - 1}
            agrees = abs(found["of_record" if noisy else "difference"]) <= GOAL
            rows.append({"client": client, "figure": figure, "ours": mine, "theirs": theirs, **found, "agrees": agrees})
    return rows


def versions(clients: Path, aiperf: Path) -> dict[str, str]:
    """Return the clients' versions."""
    return {
        name: subprocess.run(
            [where / "bin/python", "-c", f"import importlib.metadata as m; print(m.version('{name}'))"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()
        for name, where in (("guidellm", clients), ("aiperf", aiperf))
    }  # fmt: skip


def _lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
