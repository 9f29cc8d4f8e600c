"""`quicksilver bench`: measure a server or an artefact under a workload."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quicksilver.cli.frame import (
    Rates,
    Streams,
    called,
    emit,
    interruptible,
    json_option,
    note,
    price_options,
    table,
    workload_option,
)
from quicksilver.cli.progress import watched
from quicksilver.errors import EngineError

if TYPE_CHECKING:
    from rich.console import Console

    from quicksilver.nouns import Benchmark, Figure, Latency, Speed


DISPENSABLE = ("blended", "tokens in+out", "guesses right", "TPOT p50/p99 ms", "req/s", "$/1M", "ITL p50/p99 ms")
"""Columns that a narrow screen has to do without, the first to go first; `--json` has them all."""


@click.command(short_help="Measure a server, an artefact or a run under a workload.")
@click.argument("target")
@workload_option
@click.option(
    "--streams",
    type=Streams(),
    metavar="LIST",
    help="Closed loop: requests kept under way, one load after the other; 1,8 without --slo.",
)
@click.option(
    "--rate",
    type=Rates(),
    metavar="LIST",
    help="Open loop: requests a second, such as 0.5,1,2, at random moments (Poisson), whatever the server does.",
)
@click.option(
    "--arrivals",
    type=click.Choice(("closed", "poisson", "constant", "trace")),
    help="How requests come: as answers end, or at moments of their own.",
)
@click.option(
    "--ramp",
    metavar="FROM:TO[:STEPS]",
    help="Streams (or with --arrivals poisson or constant, a rate) that rise over the run, evenly or in steps.",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Send at recorded moments: seconds, one a line. --arrivals trace without it takes the prompts' own.",
)
@click.option(
    "--slo",
    metavar="TERMS",
    help="Find the most streams (with --arrivals poisson, the highest rate) that meet this, such as ttft_p95<500ms,itl_p95<40ms,errors<0.1%; with a load, count the requests that do.",
)
@click.option(
    "--most-streams",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    metavar="N",
    help="Where the search for --slo ends.",
)
@click.option(
    "--prompts", type=click.IntRange(min=1), metavar="N", help="Prompts to take of the workload; the first warms up."
)
@click.option("--rounds", type=click.IntRange(min=1), default=1, show_default=True, help="Repeats, for the spread.")
@click.option(
    "--repeat-prompts", is_flag=True, help="Let prompts come more than once; a prefix cache then flatters the figures."
)
@click.option("--steady-only", is_flag=True, help="Leave out what comes before a load's steady state (MSER-5).")
@click.option("--model", metavar="NAME", help="The model's name on a server that has several.")
@click.option("--api-key-env", metavar="VARIABLE", help="The environment variable that holds the server's API key.")
@price_options
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Where the raw samples go.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--export",
    "exports",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the result to a .json, .csv, .md or .html file too; may be repeated. profile_export_aiperf.json gets AIPerf's form.",
)
@click.option(
    "--format", "form", metavar="NAME", help="Of the exported file, whatever its name: json, csv, md, html or aiperf."
)
@json_option
@click.pass_context
def bench(
    context: click.Context,
    *,
    target: str,
    workload: str,
    streams: tuple[int, ...] | None,
    rate: tuple[float, ...] | None,
    arrivals: str | None,
    ramp: str | None,
    trace: Path | None,
    slo: str | None,
    most_streams: int,
    prompts: int | None,
    rounds: int,
    repeat_prompts: bool,
    steady_only: bool,
    model: str | None,
    api_key_env: str | None,
    price_per_hour: float | None,
    instance: str | None,
    discount: float,
    input_output_ratio: float,
    out: Path | None,
    seed: int,
    exports: tuple[Path, ...],
    form: str | None,
) -> None:
    """Measure TARGET: the URL of a server that speaks the OpenAI API, an artefact, runs/ID, or a key of the store.

    With --slo it finds the highest load that meets it, and ends with 1 if there is none. If the server dies on the way, what was
    measured is kept and it ends with 5.
    """
    from quicksilver import api
    from quicksilver.bench import export
    from quicksilver.bench.load import read_samples
    from quicksilver.bench.load_table import attempts_table, load_words, share
    from quicksilver.bench.looks import file_of

    forms = [export.format_of(path, form) for path in exports]
    one = ramp or trace or arrivals == "trace" or (slo and not streams and not rate)
    for path, kind in zip(exports, forms, strict=True):
        export.check(path, kind, 1 if one else len(streams or rate or (1, 8)))
    searching = slo and not (streams or rate or ramp or trace)
    go_on = "goes on from here: loads that were looked at are kept" if searching else "measures again"
    with interruptible(f"nothing is left running; the same command {go_on}."), watched() as progress:
        found = api.benchmark(
            target,
            workload,
            streams=streams,
            rate=rate,
            arrivals=arrivals,
            ramp=ramp,
            trace=trace,
            slo=slo,
            most_streams=most_streams,
            prompts=prompts,
            rounds=rounds,
            repeat_prompts=repeat_prompts,
            steady_only=steady_only,
            model=model,
            api_key_env=api_key_env,
            price_per_hour=price_per_hour,
            instance=instance,
            discount=discount,
            input_output_ratio=input_output_ratio,
            out=out,
            seed=seed,
            command=called(),
            progress=progress,
        )

    def show(screen: Console) -> None:
        screen.print(f"{found.model} on {found.workload}", style="bold")
        if found.search is not None:
            tried = attempts_table(found.search)
            screen.print(
                table(tried.heads, tried.rows, right=[n for n in range(len(tried.heads)) if n not in tried.words])
            )
            screen.print(f"\n{found.search.verdict}\n", style="bold" if found.search.best is not None else "bold red")
        screen.print(_figures(found, screen.width))
        if found.slo is not None and found.search is None:
            for speed, met in zip(found.speeds, found.goodputs, strict=True):
                screen.print(f"Good requests under {found.slo} at {load_words(speed)}: {share(met)}")
        if found.cold_start_s is not None:
            screen.print(f"\nFrom process start to the first token: {found.cold_start_s:.2f} s")
        screen.print(f"\nSamples: {found.samples}", soft_wrap=True)
        for path in exports:
            screen.print(f"Exported: {path}", soft_wrap=True)

    for doubt in found.notes:
        note(doubt)
    if exports:
        samples = read_samples(found.samples)
        for path, kind in zip(exports, forms, strict=True):
            export.write(found, samples, path, kind)
    emit(found.to_json(), show)
    if found.search is not None and found.search.ended:
        goes_on = ", and the same command goes on from there" if file_of(found.samples).is_file() else ""
        note(f"error: {found.search.ended} What was measured is kept{goes_on}.")
        context.exit(EngineError.exit_code)
    if found.server_gone:
        note("error: the server is gone; what was measured before is kept.")
        context.exit(EngineError.exit_code)
    if found.search is not None and found.search.best is None:
        context.exit(1)


def _figures(found: Benchmark, width: int) -> Any:
    """One row for each load; a column that says nothing of any load is left out, and so are the last that don't fit."""
    speeds = (*found.speeds, *found.steps)
    closed = all(not speed.load for speed in speeds)
    costs = (*found.costs, *(None for _ in found.steps))
    columns = {
        "streams" if closed else "load": [_load(speed) for speed in speeds],
        "requests": [_requests(speed) for speed in speeds],
        "tokens/s": [_rate(speed.tokens_per_s, speed.rounds) for speed in speeds],
        "req/s": [f"{speed.requests_per_s:.2f}" for speed in speeds],
        "TTFT p50/p99 ms": [_latency(speed.ttft_ms) for speed in speeds],
        "ITL p50/p99 ms": [_latency(speed.itl_ms) for speed in speeds],
        "TPOT p50/p99 ms": [_latency(speed.tpot_ms) for speed in speeds],
        "guesses right": [f"{s.acceptance.share.value:.0%}" if s.acceptance else "" for s in speeds],
        "tokens in+out": [f"{s.prompt_tokens_p50:.0f}+{s.completion_tokens_p50:.0f}" for s in speeds],
        "$/1M": [f"{cost.measured:.4f}" if cost else "" for cost in costs],
        "blended": [f"{cost.blended:.4f}" if cost and cost.blended is not None else "" for cost in costs],
    }
    shown = {head: cells for head, cells in columns.items() if any(cells)}
    for head in DISPENSABLE:
        if sum(2 + max(map(len, (name, *cells))) for name, cells in shown.items()) > width:
            shown.pop(head, None)
    return table(list(shown), list(zip(*shown.values(), strict=True)), right=range(len(shown)))


def _load(speed: Speed) -> str:
    name = speed.load or str(speed.concurrency)
    return name if speed.valid else f"{name}: invalid"


def _requests(speed: Speed) -> str:
    return f"{speed.requests} ({speed.errors} failed)" if speed.errors else str(speed.requests)


def _rate(rate: Figure, rounds: int) -> str:
    spread = rounds > 1 and rate.low is not None and rate.high is not None
    return f"{rate.value:.1f} ({rate.low:.1f} to {rate.high:.1f})" if spread else f"{rate.value:.1f}"


def _latency(latency: Latency) -> str:
    return f"{latency.p50:.1f} / {latency.p99:.1f}" if latency.count else ""
