"""`quicksilver plan`: which machine and which recipe meet an SLO for the least money, without having either."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from quicksilver.cli.frame import Number, called, emit, interruptible, json_option, note, table
from quicksilver.cli.progress import watched

if TYPE_CHECKING:
    from rich.console import Console

    from quicksilver.nouns.plan import Plan

REFUSED_SHOWN = 8


@click.command()
@click.argument("model")
@click.option(
    "--workload",
    default="622x250",
    show_default=True,
    metavar="SPEC",
    help="Tokens of prompts and answers such as 622x250, a built-in workload, a JSON Lines file, or what a server recorded.",
)
@click.option("--streams", type=int, default=16, show_default=True, metavar="N", help="Requests at once.")
@click.option("--slo", metavar="LIMITS", help='Such as "ttft_p95<1s,itl_p50<20ms".')
@click.option(
    "--instances",
    metavar="LIST",
    help="Such as ml.p5.48xlarge,ml.g6e.48xlarge; local is this machine; without it, all that are known.",
)
@click.option(
    "--recipes",
    metavar="LIST",
    help="Only these, such as fp8,int4+tp4,bf16+guess; words: a precision, tp4, pp2, fp8-cache, guess, plain.",
)
@click.option(
    "--commitment",
    type=click.Choice(["on-demand", "one-year"]),
    default="on-demand",
    show_default=True,
    help="How hours are paid.",
)
@click.option(
    "--discount",
    type=Number(min=0, max=1, max_open=True),
    default=0.0,
    metavar="SHARE",
    help="Off the price: 0.3 is 30 %.",
)
@click.option(
    "--input-output-ratio",
    type=Number(min=0),
    default=3.0,
    show_default=True,
    metavar="RATIO",
    help="Input tokens for each output token, in the blended price.",
)
@click.option(
    "--acceptance", metavar="A/N", help="Speculation: of N guessed tokens A are accepted in the mean, such as 2.0/3."
)
@click.option(
    "--replicas-for",
    "replicas_for",
    metavar="LOAD",
    help="Size a fleet for 2000tok/s (output tokens) or 8req/s, with queues; needs --slo.",
)
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE", help="Write a page with charts.")
@click.option("--all", "every", is_flag=True, help="Every option and everything that was refused.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of lengths and arrivals.")
@json_option
def plan(
    model: str,
    *,
    workload: str,
    streams: int,
    slo: str | None,
    instances: str | None,
    recipes: str | None,
    commitment: str,
    discount: float,
    input_output_ratio: float,
    acceptance: str | None,
    replicas_for: str | None,
    report: Path | None,
    every: bool,
    seed: int,
) -> None:
    """Predict MODEL on machines that aren't here, and find the cheapest that meets an SLO."""
    from quicksilver import api

    with interruptible("a plan is made anew by the same command."), watched() as progress:
        found = api.plan_deployment(
            model,
            workload=workload,
            streams=streams,
            slo=slo,
            instances=instances.split(",") if instances is not None else None,
            recipes=recipes,
            commitment=commitment,
            discount=discount,
            input_output_ratio=input_output_ratio,
            acceptance=acceptance,
            replicas_for=replicas_for,
            report=report,
            seed=seed,
            command=called(),
            progress=progress,
        )
    from quicksilver.planner import charts

    emit(
        found.model_dump(mode="json") | {"charts": charts.data(found)},
        lambda out: _show(out, found, every=every),
    )
    if report is not None:
        note(f"The report is {report}.")


def _show(out: Console, found: Plan, *, every: bool) -> None:
    from quicksilver.bench.findings import number, plain
    from quicksilver.planner import table as tables

    load = found.load
    words = f"{load.input_tokens} tokens in, {load.output_tokens} out, {load.streams} at once"
    out.print(f"{plain(found.model)} on {plain(found.workload)}: {words}. {tables.price_words(found)}", style="dim")
    rows = tables.rows(found, every=every)
    if rows:
        lines = [(tables.MARKS[row.mark], *row.cells) for row in rows]
        out.print(table(("", *tables.HEADS), lines, right=[n + 1 for n in tables.RIGHT]))
        out.print(tables.MEANINGS, style="dim")
        if len(rows) < len(found.options):
            out.print(f"{len(rows)} of {len(found.options)} options are shown; --all shows the others.", style="dim")
    out.print(f"\n{plain(found.verdict)}", style="bold green" if found.cheapest is not None else "bold red")
    if found.fleets:
        first = found.fleets[0]
        out.print(
            f"\nFleets for {number(first.tokens_per_s)} tokens/s ({number(first.requests_per_s)} requests/s), arrivals "
            f"{'as recorded' if first.arrivals == 'trace' else 'as a Poisson process'}",
            style="bold",
        )
        out.print(table(tables.FLEET_HEADS, tables.fleet_rows(found), right=tables.FLEET_RIGHT))
        for fleet in found.fleets:
            if fleet.why:
                out.print(f"{fleet.instance} with {fleet.layout.label}: {fleet.why}", style="dim")
        if first.machines is not None:
            out.print(f"\n{first.machines} x {first.instance} with {first.layout.label}, and others at that load")
            out.print(table(tables.POINT_HEADS, tables.point_rows(first.by_machines), right=tables.POINT_RIGHT))
            out.print(f"\n{first.machines} x {first.instance} by load")
            out.print(table(tables.POINT_HEADS, tables.point_rows(first.by_load), right=tables.POINT_RIGHT))
    if found.refused:
        out.print(f"\nWithout figures ({len(found.refused)})", style="bold")
        shortly = tables.refused_shortly(found)
        whole = [f"{instance}: {why} ({', '.join(labels)})" for instance, why, labels in tables.refused(found)]
        for line in whole if every else shortly[:REFUSED_SHOWN]:
            out.print(f"  {plain(line)}")
        if not every:
            more = f"{len(shortly) - REFUSED_SHOWN} reasons more; " if len(shortly) > REFUSED_SHOWN else ""
            out.print(f"  {more}--all names each recipe.", style="dim")
    for line in found.warnings:
        out.print(plain(line), style="yellow")
    for line in found.remarks:
        out.print(plain(line), style="dim")
