"""`quicksilver optimize`: from a model to a measured, cheaper recipe."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quicksilver.cli.frame import (
    MemoryMb,
    Number,
    Streams,
    called,
    emit,
    interruptible,
    json_option,
    price_options,
    quality_options,
    workload_option,
)
from quicksilver.cli.progress import watched

if TYPE_CHECKING:
    from rich.console import Console


@click.command()
@click.argument("model")
@workload_option
@click.option(
    "--goal",
    type=click.Choice(["cost", "throughput", "latency"]),
    default="cost",
    show_default=True,
    help="What the winner is best at.",
)
@quality_options
@click.option(
    "--ttft-p95",
    "ttft_p95_ms",
    type=Number(min=0, min_open=True),
    metavar="MS",
    help="Limit of the time to first token.",
)
@click.option(
    "--itl-p95", "itl_p95_ms", type=Number(min=0, min_open=True), metavar="MS", help="Limit of the inter-token latency."
)
@click.option(
    "--memory", "memory_mb", type=MemoryMb(), metavar="SIZE", help="Limit of the server's memory, such as 4GB or 500MB."
)
@click.option("--engine", default="openvino", show_default=True, metavar="NAME", help="See `quicksilver engines`.")
@click.option(
    "--engines",
    metavar="LIST",
    help="Measure several engines in one run, such as openvino,llamacpp; all: those that are installed.",
)
@click.option(
    "--recipe",
    "recipe_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Try this recipe (TOML or YAML) and no others but the model as it comes; may be repeated.",
)
@click.option("--streams", type=Streams(), metavar="LIST", help="Concurrencies to measure, such as 1,8.")
@click.option(
    "--budget",
    "budget_minutes",
    type=Number(min=0, min_open=True),
    metavar="MINUTES",
    help="When to have an answer.  [default: 10, or 3 with --quick]",
)
@click.option(
    "--trials", type=click.IntRange(min=1), metavar="N", help="Race no more than N recipes before the final race."
)
@click.option("--quick", is_flag=True, help="Try nothing that has to be calibrated, and race the best only once more.")
@click.option("--prompts", type=click.IntRange(min=1), metavar="N", help="Prompts to take of the workload.")
@price_options
@click.option("--accept-licence", is_flag=True, help="Accept the model's licence, where it has to be.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    metavar="DIR",
    help="Where runs are kept.",
)
@click.option("--id", "run_id", metavar="NAME", help="The run's name; that of an earlier run goes on with it.")
@json_option
def optimize(
    *,
    model: str,
    workload: str,
    goal: str,
    max_quality_loss: float,
    max_task_loss: float | None,
    metric: str | None,
    judge: str | None,
    judge_model: str | None,
    judge_key_env: str | None,
    ttft_p95_ms: float | None,
    itl_p95_ms: float | None,
    memory_mb: float | None,
    engine: str,
    engines: str | None,
    recipe_files: tuple[Path, ...],
    streams: tuple[int, ...] | None,
    budget_minutes: float | None,
    trials: int | None,
    quick: bool,
    prompts: int | None,
    price_per_hour: float | None,
    instance: str | None,
    discount: float,
    input_output_ratio: float,
    accept_licence: bool,
    seed: int,
    runs: Path,
    run_id: str | None,
) -> None:
    """Find the best way to serve MODEL on this machine.

    MODEL is a catalogue name (see `quicksilver models`), a Hugging Face directory, a GGUF file or a hub id. The model as it
    comes and every recipe worth trying are built, served and measured; the table on stdout says which one wins and why.
    """
    from quicksilver import api
    from quicksilver.recipes import load_recipe

    recipes = [load_recipe(path) for path in recipe_files]
    go_on = "the same command again goes on from here: what was built and measured is kept."
    with interruptible(go_on), watched() as progress:
        found = api.optimize(
            model,
            workload=workload,
            goal=goal,
            max_quality_loss=max_quality_loss,
            max_task_loss=max_task_loss,
            metric=metric,
            judge=judge,
            judge_model=judge_model,
            judge_key_env=judge_key_env,
            ttft_p95_ms=ttft_p95_ms,
            itl_p95_ms=itl_p95_ms,
            memory_mb=memory_mb,
            engine=engine,
            engines=engines,
            recipes=recipes or None,
            streams=streams,
            budget_minutes=budget_minutes,
            trials=trials,
            quick=quick,
            prompts=prompts,
            price_per_hour=price_per_hour,
            instance=instance,
            discount=discount,
            input_output_ratio=input_output_ratio,
            accept_licence=accept_licence,
            seed=seed,
            runs=runs,
            run_id=run_id,
            command=called(),
            progress=progress,
        )

    def show(out: Console) -> None:
        out.print(found.table(width=out.width))
        out.print(f"\nReport: {found.report()}", soft_wrap=True)
        if found.result.best is not None:
            out.print(f"Serve it: quicksilver serve {shlex.quote(str(found.folder))}", soft_wrap=True)

    emit(json.loads(found.result.model_dump_json()), show)
