"""`quicksilver show`: the result of a run, once more."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quicksilver.cli.frame import emit, json_option

if TYPE_CHECKING:
    from rich.console import Console


@click.command("show", short_help="The result of a run, once more.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--markdown", is_flag=True, help="Print it as Markdown.")
@json_option
def show_run(run: Path, markdown: bool) -> None:
    """Show the result of RUN, such as runs/ID: the table, the presets, what techniques give alone and together, and why."""
    from quicksilver.bench import report

    result = report.load_result(run)
    certificate = report.certificate_of(result, run if run.is_dir() else run.parent)

    def write(out: Console) -> None:
        if markdown:
            print(report.markdown(result, certificate), end="")
            return
        out.print(report.table(result, certificate, width=out.width))
        if run.is_dir() and result.best is not None:
            out.print(f"\nServe it: quicksilver serve {shlex.quote(str(run))}", soft_wrap=True)

    emit(json.loads(result.model_dump_json()), write)
