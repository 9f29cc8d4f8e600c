"""`quicksilver calibrate`: time a model's steps on this machine, which predictions of CPU machines are fitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from quicksilver.cli.frame import emit, interruptible, json_option, table
from quicksilver.cli.progress import watched
from quicksilver.errors import unknown

if TYPE_CHECKING:
    from rich.console import Console

    from quicksilver.planner.fitted import Fit

USUAL = "bf16,int8,int4"


@click.command(short_help="Time a model's steps on this machine, for predictions.")
@click.argument("model")
@click.option(
    "--weights", default=USUAL, show_default=True, metavar="LIST", help="Precisions to time; what isn't built is built."
)
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, metavar="N", help="Of the engine; every core if not given."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=60.0,
    show_default=True,
    metavar="S",
    help="For each precision, after which the steps aren't timed once more; the first pass is always whole.",
)
@json_option
def calibrate(model: str, weights: str, threads: int, seconds: float) -> None:
    """Time steps of MODEL on this machine by streams, contexts, prompts and guesses, and fit the machine's model to them.

    From then on `quicksilver plan` predicts models of any size on CPU machines. Models of different sizes fit it better.
    """
    from quicksilver.nouns.prediction import Layout
    from quicksilver.planner import fitted, steps
    from quicksilver.search.events import Event

    wanted = list(dict.fromkeys(each.strip() for each in weights.split(",") if each.strip()))
    for each in wanted:
        if each not in steps.MEASURABLE:
            raise unknown("precision that can be timed here", each, steps.MEASURABLE)
    layouts = [Layout.model_validate({"weights": each}) for each in wanted]
    with interruptible("precisions that were timed are kept."), watched() as progress:

        def tell(text: str, share: float, left_s: float | None) -> None:
            progress(Event("calibrate", text, round(100 * share), 100, left_s))

        sets = steps.measure(model, layouts, tell, threads=threads, budget_s=seconds)
    found = fitted.fit(fitted.of_one_machine(steps.kept(), here=True))

    def show(out: Console) -> None:
        out.print(table(["weights", "read at GB/s", "prompts at GFLOP/s"], _rates(found), right=(1, 2)))
        out.print(
            f"\n{found.steps} steps of {', '.join(found.models)} with {found.engine} on {found.machine}: the model is off by "
            f"{found.error_percent:.1f} % in the median.",
            soft_wrap=True,
        )

    emit({"fit": fitted.document(found), "timed": [one.model_dump(mode="json") for one in sets]}, show)


def _rates(found: Fit) -> list[list[str]]:
    rows: list[list[Any]] = [[w, found.bandwidth_gb_s(w), found.gflops(w)] for w in found.weights]
    return [[row[0], *("-" if rate is None else f"{rate:.0f}" for rate in row[1:])] for row in rows]
