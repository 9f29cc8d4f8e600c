"""`quicksilver size-job`: which instance a job of optimisation itself needs, for how long, and for how much."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from quicksilver.cli.frame import duration, emit, json_option, note, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from quicksilver.nouns.instance import Commitment
    from quicksilver.planner.job import Sized

JOBS = ("awq", "gptq", "w8a8", "fp8", "train-draft")


@click.command("size-job", short_help="Which instance quantising a model or training a draft needs.")
@click.argument("job", type=click.Choice(JOBS))
@click.argument("model")
@click.option("--instances", metavar="NAMES", help="Only these of the catalogue, separated by commas.")
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Prompts that calibrate or train.")
@click.option("--tokens", type=click.IntRange(min=1), metavar="N", help="Tokens of each.")
@click.option(
    "--commitment",
    type=click.Choice(["on-demand", "one-year"]),
    default="on-demand",
    show_default=True,
    help="How the machine is paid for.",
)
@json_option
def size_job(
    job: str,
    model: str,
    *,
    instances: str | None,
    samples: int | None,
    tokens: int | None,
    commitment: Commitment,
) -> None:
    """Say what JOB on MODEL needs of a machine, and which instances do it, the cheapest first. Every figure is predicted.

    MODEL is a catalogue name, a hub id whose shape is known, a config.json or a folder with one.
    """
    from datetime import UTC, datetime

    from quicksilver.planner import models
    from quicksilver.planner.job import ABOUT, size
    from quicksilver.sources import instances as catalogue

    facts = models.facts(model)
    known = catalogue.instances()
    names = [name.strip() for name in instances.split(",") if name.strip()] if instances else list(known)
    found = size(
        facts,
        job,
        [catalogue.find(name) for name in names],
        samples=samples,
        tokens=tokens,
        commitment=commitment,
    )
    document = [s.model_dump(mode="json") | {"hours": s.hours, "usd": s.usd} for s in found]
    emit(
        {"job": job, "about": ABOUT[job], "model": model, "source": "predicted", "instances": document},
        lambda out: _show(out, model, ABOUT[job], found, named=instances is not None),
    )
    today = datetime.now(UTC).date()
    rates = [s.rate for s in found if s.rate is not None and not s.why_not]
    for warning in sorted({w for rate in rates if (w := catalogue.stale(rate, today))}):
        note(warning)


def _show(out: Console, model: str, about: str, found: Sequence[Sized], *, named: bool) -> None:
    fitting = [one for one in found if not one.why_not]
    out.print(f"{model}: {about}. Every figure is predicted from the model's shape and makers' figures.\n")
    if fitting:
        _arithmetic(out, fitting[0])
    elif found:
        out.print("No instance has room for it. What comes nearest:\n")
        _arithmetic(out, min(found, key=_over))
    shown = [*fitting, *(one for one in found if one.why_not and named)]
    rows = [
        [
            one.instance,
            f"{sum(line.gb for line in one.device):.1f} of {one.device_gb:.1f}",
            f"{sum(line.gb for line in one.host):,.0f} of {one.host_gb:,.0f}",
            "" if one.why_not else duration(3600 * one.hours),
            "" if one.why_not else ("no price" if one.usd is None or one.rate is None else f"{one.usd:,.2f}"),
            "" if one.why_not or one.rate is None else f"{one.rate.usd_per_hour:g} ({one.rate.date})",
            one.why_not,
        ]
        for one in shown
    ]
    heads = ["instance", "device GB", "machine GB", "time", "$", "$ an hour", ""]
    out.print()
    out.print(table(heads, rows, right=(1, 2, 3, 4, 5)))
    if len(shown) < len(found):
        out.print(f"\n{len(found) - len(shown)} more have not enough memory, or no CUDA; --instances NAME says why.")


def _over(one: Sized) -> float:
    """How far an instance is from having room: the larger of what is needed over what there is."""
    needs = ((one.device, one.device_gb), (one.host, one.host_gb))
    return max(sum(line.gb for line in lines) / room for lines, room in needs)


def _arithmetic(out: Console, one: Sized) -> None:
    rows = [[f"{line.gb:.2f} GB", line.what, line.how] for line in one.device]
    rows.append([f"{sum(line.gb for line in one.device):.2f} GB", "on a device", f"{one.device_gb:.1f} may be used"])
    rows += [[f"{line.gb:.2f} GB", line.what, line.how] for line in one.host]
    rows.append([f"{sum(line.gb for line in one.host):.2f} GB", "of the machine", f"{one.host_gb:.1f} may be used"])
    rows += [[duration(3600 * line.hours), line.what, line.how] for line in one.time]
    rows.append([duration(3600 * one.hours), "altogether", ""])
    out.print(table([one.instance, "what", "arithmetic"], rows, right=(0,)))
