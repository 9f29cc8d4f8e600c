"""`quicksilver predictions`: what was predicted beside what was measured later."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quicksilver.cli.frame import emit, json_option, note, table
from quicksilver.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from quicksilver.nouns.pairing import Pairing, RunningError

PATH = click.Path(path_type=Path, dir_okay=False)


@click.group(invoke_without_command=True, short_help="Predictions beside what was measured later.")
@json_option
@click.pass_context
def predictions(context: click.Context) -> None:
    """Show predictions beside what was measured of them, and how wrong each source has been so far."""
    if context.invoked_subcommand is not None:
        return
    from quicksilver.planner import record

    found = record.pairings()
    sources, instances = record.errors(found), record.errors(found, by="instance")

    def show(out: Console) -> None:
        if not found:
            out.print(
                "Nothing that was predicted has been measured yet; `quicksilver predictions record` takes a report."
            )
            return
        out.print(_pairs(found))
        out.print()
        out.print(_errors("source", sources))
        out.print()
        out.print(_errors("instance", instances))

    emit(
        {
            "pairings": [_document(each) for each in found],
            "errors": {name: each._asdict() for name, each in sources.items()},
            "errors_by_instance": {name: each._asdict() for name, each in instances.items()},
        },
        show,
    )


@predictions.command()
@click.argument("prediction", type=PATH)
@click.argument("report", type=PATH)
@click.option("--instance", metavar="NAME", help="Of several predictions that of this instance.")
@click.option("--layout", metavar="LABEL", help="Of several predictions that of this layout, such as 'int8 · TP4'.")
@click.option("--same-model", is_flag=True, help="The report's model is the prediction's by another name.")
@json_option
def record(prediction: Path, report: Path, instance: str | None, layout: str | None, same_model: bool) -> None:
    """Keep what REPORT measured beside what PREDICTION said.

    PREDICTION is what `quicksilver plan --json` printed. REPORT is a report of `quicksilver bench --json`, a run's result.json,
    or AIPerf's profile_export_aiperf.json; of its loads those that were predicted are taken.
    """
    from quicksilver.planner import record as keeping
    from quicksilver.planner import reports

    offered = [
        each
        for each in reports.predictions(prediction)
        if (instance is None or each.instance == instance) and (layout is None or each.layout.label == layout)
    ]
    if not offered:
        raise BadInputError(f"{prediction} holds no prediction of that instance and layout.")
    measured = reports.measurements(report)
    found, refused = [], []
    for each in measured:
        try:
            matched = keeping.match(offered, each, same_model=same_model)
        except BadInputError as error:
            refused.append(str(error))
        else:
            found.append(keeping.keep(matched.prediction, each, same_model=same_model))
    if not found:
        raise BadInputError(refused[0])
    for remark in dict.fromkeys((*(remark for each in found for remark in each.remarks), *refused)):
        note(remark)
    emit({"pairings": [_document(each) for each in found]}, lambda out: out.print(_pairs(found)))


def _document(pairing: Pairing) -> dict[str, Any]:
    return pairing.model_dump(mode="json") | {"error_percent": pairing.error_percent}


def _pairs(found: list[Pairing]) -> Any:
    rows = []
    for each in found:
        p, m = each.prediction, each.measured
        load = f"{p.load.input_tokens}+{p.load.output_tokens} x {p.load.streams}"
        rates = [f"{p.tokens_per_s:.1f}", f"{m.tokens_per_s:.1f}", f"{each.error_percent:.1f}"]
        first = ["-" if ms is None else f"{ms:.0f}" for ms in (p.ttft_ms.p50, m.ttft_ms)]
        rows.append([p.instance, p.model, p.layout.label, load, p.basis, *rates, " / ".join(first), m.report])
    heads = [
        "instance",
        "model",
        "layout",
        "load",
        "source",
        "predicted tokens/s",
        "measured",
        "off by %",
        "TTFT ms",
        "report",
    ]
    return table(heads, rows, right=(5, 6, 7, 8))


def _errors(what: str, found: Mapping[str, RunningError]) -> Any:
    rows = [[name, f"{each.percent:.1f}", str(each.configurations)] for name, each in found.items()]
    return table([what, "median error %", "configurations"], rows, right=(1, 2))
