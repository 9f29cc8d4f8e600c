"""`quicksilver compare`: the quality gate between two servers, without a search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quicksilver.cli.frame import called, emit, interruptible, json_option, quality_options, table, workload_option
from quicksilver.cli.progress import watched

if TYPE_CHECKING:
    from rich.console import Console

    from quicksilver.nouns.comparison import Comparison
    from quicksilver.nouns.score import Figure

STYLES = {"passes": "bold green", "fails": "bold red", "undecided": "bold yellow"}


@click.command(short_help="Hold one server's quality against another's.")
@click.argument("as_is", metavar="AS_IS")
@click.argument("candidate", metavar="CANDIDATE")
@workload_option
@click.option("--prompts", type=click.IntRange(min=1), metavar="N", help="Prompts to take of the workload.")
@quality_options
@click.option(
    "--lm-eval",
    "lm_eval",
    multiple=True,
    metavar="TASK[:METRIC]",
    help="A task that lm-eval runs on both, and the gate judges as the workload's own; may be repeated.",
)
@click.option(
    "--include-path", type=click.Path(path_type=Path), metavar="DIR", help="A folder with lm-eval tasks of yours."
)
@click.option("--lm-eval-limit", type=click.IntRange(min=1), metavar="N", help="Samples to take of each lm-eval task.")
@click.option("--tokenizer", metavar="FOLDER", help="The model's tokenizer, for lm-eval, where a server is a URL.")
@click.option(
    "--streams", type=click.IntRange(min=1), default=4, show_default=True, metavar="N", help="Answers at once."
)
@click.option("--as-is-model", metavar="NAME", help="Its name on a server that has several models.")
@click.option("--candidate-model", metavar="NAME", help="Its name on a server that has several models.")
@click.option("--api-key-env", metavar="VARIABLE", help="The environment variable that holds the servers' API key.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Where the answers go.")
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
@click.pass_context
def compare(
    context: click.Context,
    *,
    as_is: str,
    candidate: str,
    workload: str,
    prompts: int | None,
    max_quality_loss: float,
    max_task_loss: float | None,
    metric: str | None,
    judge: str | None,
    judge_model: str | None,
    judge_key_env: str | None,
    lm_eval: tuple[str, ...],
    include_path: Path | None,
    lm_eval_limit: int | None,
    tokenizer: str | None,
    streams: int,
    as_is_model: str | None,
    candidate_model: str | None,
    api_key_env: str | None,
    out: Path | None,
    seed: int,
) -> None:
    """Say whether CANDIDATE keeps the quality of AS_IS: passes, fails, or undecided and how many prompts would decide.

    Each is the URL of a server that speaks the OpenAI API, an artefact, runs/ID, or a key of the store. Perplexity needs servers that
    give a prompt's log-probabilities (vLLM's /tokenize, and echo with logprobs); answers can be scored anywhere. Ends with 1
    for what hasn't passed.
    """
    from quicksilver import api
    from quicksilver.bench import gate

    with interruptible("nothing is left running; the same command measures again."), watched() as progress:
        found = api.compare(
            as_is,
            candidate,
            workload,
            prompts=prompts,
            max_quality_loss=max_quality_loss,
            max_task_loss=max_task_loss,
            metric=metric,
            judge=judge,
            judge_model=judge_model,
            judge_key_env=judge_key_env,
            lm_eval=lm_eval,
            include_path=include_path,
            lm_eval_limit=lm_eval_limit,
            tokenizer=tokenizer,
            streams=streams,
            models=(as_is_model, candidate_model),
            api_key_env=api_key_env,
            out=out,
            seed=seed,
            command=called(),
            progress=progress,
        )

    def show(out: Console) -> None:
        judged = found.quality.judgement
        if judged is None:
            return
        rows = [
            [t.name, t.outcome, gate.percent(t.loss.value), _between(t.loss), f"{t.limit:g} %", str(t.prompts)]
            for t in judged.terms
        ]
        out.print(table(["what", "", "loss", "interval", "limit", "prompts"], rows, right=(2, 3, 4, 5)))
        for line in _more(found):
            out.print(line, style="dim", soft_wrap=True)
        for remark in found.remarks:
            out.print(remark, style="yellow", soft_wrap=True)
        out.print(f"\n{judged.outcome}: {judged.reason}.", style=STYLES[judged.outcome], soft_wrap=True)

    emit(json.loads(found.model_dump_json()), show)
    if not found.passes:
        context.exit(1)


def _between(figure: Figure) -> str:
    from quicksilver.bench import gate

    return (
        ""
        if figure.low is None or figure.high is None
        else f"{gate.percent(figure.low)} to {gate.percent(figure.high)}"
    )


def _more(found: Comparison) -> list[str]:
    """What was measured besides what the gate looks at."""
    quality = found.quality
    lines = []
    if quality.kl is not None:
        own = f", {quality.own_kl.value:.4f} on the as-is model's own answers" if quality.own_kl is not None else ""
        lines.append(f"KL divergence, nats a token, at least: {quality.kl.value:.4f} on the text{own}.")
    if quality.own_loss_percent is not None:
        lines.append(f"Perplexity of the as-is model's own answers: {quality.own_loss_percent.value:+.2f} %.")
    if quality.task:
        lines.append(
            "Scores: " + ", ".join(f"{name} {figure.value:.3f}" for name, figure in quality.task.items()) + "."
        )
    if quality.agreement is not None:
        lines.append(f"Answers that are the same: {100 * quality.agreement:.0f} %.")
    if quality.preference is not None:
        p = quality.preference
        lines.append(
            f"The judge {p.judge}: {p.wins} better, {p.losses} worse, {p.ties} equal ({p.swayed} of them because of the order)."
        )
    return lines
