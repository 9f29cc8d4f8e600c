"""Progress on stderr: a bar with the time left in a terminal, a line for each new thing in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from quicksilver.cli.frame import console, duration

if TYPE_CHECKING:
    from rich.console import Console

    from quicksilver.search.events import Event

Watcher = Callable[["Event"], None]
clock = time.monotonic
WORTH_A_LINE_S = 1.0
"""Seconds from which a phase that is over leaves a line behind."""


@contextmanager
def watched() -> Iterator[Watcher]:
    """Yield a function that shows each event; nothing of the bar stays when the block ends, however it ends."""
    err = console(stderr=True)
    if err.is_terminal and not err.is_dumb_terminal:
        with _bar(err) as watcher:
            yield watcher
    else:
        yield _lines(err)


def line(event: Event) -> str:
    """Write an event as one line of a log."""
    text = f"{event.phase}: {event.text}" if event.text else event.phase
    text += f"; {event.best}" if event.best else ""
    return f"{text} ({duration(event.left_s)} left)" if event.left_s is not None else text


def _lines(err: Console) -> Watcher:
    """Events come often and a log is kept: a line only when something else begins."""
    last: tuple[str, str] | None = None

    def watch(event: Event) -> None:
        nonlocal last
        if (event.phase, event.text) != last:
            last = (event.phase, event.text)
            err.print(line(event), soft_wrap=True)

    return watch


@contextmanager
def _bar(err: Console) -> Iterator[Watcher]:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[phase]}", style="bold", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", style="cyan", markup=False),
        TextColumn("{task.description}", markup=False),
    )
    phase, begun = "", clock()
    with Progress(*columns, console=err, transient=True, get_time=clock) as progress:
        task = progress.add_task("", total=None, phase="", count="", left="")

        def watch(event: Event) -> None:
            nonlocal phase, begun
            if event.phase != phase:
                if clock() - begun >= WORTH_A_LINE_S:
                    progress.console.print(Text(f"{phase or 'start'}: {duration(clock() - begun)}", style="dim"))
                phase, begun = event.phase, clock()
            counted = event.done is not None and event.total is not None
            progress.update(
                task,
                description=" · ".join(filter(None, (event.text, event.best))),
                completed=event.done or 0.0,
                phase=event.phase,
                count=f"{event.done:g}/{event.total:g}" if counted else "",
                left="" if event.left_s is None else f"{duration(event.left_s)} left",
            )
            progress.tasks[0].total = event.total
            # A count that is full ends a phase and not the run: the clock goes on.
            progress.tasks[0].finished_time = None

        yield watch
