"""`quicksilver certify`: whether techniques that should leave answers as they are do so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from quicksilver.cli.frame import emit, interruptible, json_option, table
from quicksilver.cli.progress import watched

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 110
"""Characters of a line from which intervals and drift have room, too; certificate.json has them anyway."""


@click.command(short_help="Test whether techniques leave answers as they are.")
@click.argument("target", metavar="ARTEFACT")
@click.argument("workload", default="hotpotqa")
@click.option("--prompts", type=click.IntRange(min=1), default=24, show_default=True, metavar="N")
@click.option(
    "--streams",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="Requests in flight at once; the control has 1, or 4 if this is 1.",
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=120, show_default=True, metavar="N", help="Of an answer."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of prompts.")
@json_option
@click.pass_context
def certify(
    context: click.Context, *, target: str, workload: str, prompts: int, streams: int, max_tokens: int, seed: int
) -> None:
    """Compare ARTEFACT's greedy answers with and without each technique that should leave them as they are.

    ARTEFACT is a folder, runs/ID or a key of the store; WORKLOAD a built-in one (hotpotqa if not given) or a JSON Lines file
    of yours. Where answers part, the reference's gap between the two tokens tells a near tie, which rounding may tip, from a
    fault. The certificate is kept as certificate.json with the run, whose report then shows it. Ends with 1 for a fault.
    """
    from quicksilver import api
    from quicksilver.bench import certified

    with interruptible("nothing is left running; the same command starts over."), watched() as progress:
        found, path = api.certify(
            target, workload, prompts=prompts, streams=streams, max_tokens=max_tokens, seed=seed, progress=progress
        )

    def show(out: Console) -> None:
        out.print(f"{found.label} of {found.model}", style="bold")
        shown = range(len(certified.HEADS)) if out.width >= WIDE else (0, 1, 3, 4, 6, 7)
        rows = [[row[n] for n in shown] for row in (certified.HEADS, *certified.rows(found))]
        out.print(table(rows[0], rows[1:], right=range(1, len(shown) - 2)))
        out.print(f"\n{certified.terms(found)}", style="dim")
        for remark in found.remarks:
            out.print(remark, style="yellow")
        out.print(
            f"\n{certified.outcome(found)}",
            style={"fault": "bold red", "not exercised": "bold"}.get(found.verdict, "bold green"),
        )
        out.print(f"\nCertificate: {path}", soft_wrap=True)

    emit(json.loads(found.model_dump_json()), show)
    if found.verdict == "fault":
        context.exit(1)
