"""What all commands share: `--json`, where output goes, how an error ends, and the forms of options."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from quicksilver.errors import QuicksilverError

if TYPE_CHECKING:
    from rich.console import Console

Command = TypeVar("Command", bound=Callable[..., Any])
JSON = "quicksilver.json"
PIPE_WIDTH = 200
"""Characters of a line in a pipe or a file, where one line a row is easier to search."""
MEMORY_UNITS_MB = {"": 1.0, "KB": 1e-3, "MB": 1.0, "GB": 1e3, "TB": 1e6, "MIB": 2**20 / 1e6, "GIB": 2**30 / 1e6}


class InterruptedRunError(QuicksilverError):
    """The user ended it; the message says how to go on."""

    exit_code = 130


@contextmanager
def interruptible(how_to_go_on: str) -> Iterator[None]:
    """Turn Ctrl-C inside the block into a sentence that says how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptedRunError(f"Interrupted; {how_to_go_on}") from error


def _remember_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.meta[JSON] = True


def json_option(command: Command) -> Command:
    """Add `--json` to a command."""
    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=_remember_json,
        help="Print one JSON document on stdout, also for an error.",
    )(command)


def called() -> str:
    """Return the command line as it was given, to be typed again."""
    return shlex.join(["quicksilver", *(click.get_current_context().find_root().obj or ())])


def as_json() -> bool:
    """Say whether the command was called with --json."""
    return bool(click.get_current_context().meta.get(JSON))


def emit(document: Any, show: Callable[[Console], None]) -> None:
    """Print a command's result on stdout: the document under --json, else what `show` prints."""
    if as_json():
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        show(console())


def console(*, stderr: bool = False) -> Console:
    """Return a console for people on stdout or stderr; it colours nothing under NO_COLOR or into a pipe."""
    from rich.console import Console

    found = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found.width = PIPE_WIDTH
    return found


def note(text: str) -> None:
    """Say something on stderr."""
    click.echo(text, err=True)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> Any:
    """Lay rows out under heads; the columns whose numbers are in `right` are aligned to the right."""
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for number, head in enumerate(heads):
        grid.add_column(head, justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def pairs(facts: dict[str, Any]) -> Any:
    """Facts as two columns; a fact that says nothing is left out."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        if value not in ("", None):
            said = (
                {True: "yes", False: "no"}[value]
                if isinstance(value, bool)
                else f"{value:,}"
                if isinstance(value, int)
                else str(value)
            )
            grid.add_row(name.replace("_", " "), said)
    return grid


def failed(error: BaseException, *, json_wanted: bool) -> int:
    """Print an error as one sentence, on stderr or as a JSON document on stdout, and return the exit code."""
    if isinstance(error, click.ClickException):
        message, code, kind = _usage_sentence(error), error.exit_code, "usage"
    elif isinstance(error, QuicksilverError):
        message, code, kind = str(error), error.exit_code, _kind(error)
    elif isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        message, code, kind = f"{where}{error.strerror or error}.", 1, "system"
    else:
        message, code, kind = "Interrupted.", InterruptedRunError.exit_code, "interrupted"
    interrupted = code == InterruptedRunError.exit_code
    if json_wanted:
        print(json.dumps({"error": {"message": message, "kind": kind}}, ensure_ascii=False))
    else:
        click.echo(message if interrupted else f"error: {message}", err=True)
    return code


def _usage_sentence(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    message += "" if message.endswith((".", "?", ")")) else "."
    return f"{message} Try '{context.command_path} --help'." if context else message


def _kind(error: QuicksilverError) -> str:
    """BadInputError is bad-input, InterruptedRunError interrupted-run, QuicksilverError failed."""
    if type(error) is QuicksilverError:
        return "failed"
    name = type(error).__name__.removesuffix("Error").removesuffix("Run")
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


@contextmanager
def logged_to_stderr() -> Iterator[None]:
    """Show the project's own notes (such as what is being downloaded), and others' warnings, while the block runs."""
    root, ours = logging.getLogger(), logging.getLogger("quicksilver")
    handler, level = Stderr(), ours.level
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:  # the process may be somebody else's, whose log is theirs
        root.removeHandler(handler)
        ours.setLevel(level)


class Stderr(logging.Handler):
    """Log records as plain lines on whatever sys.stderr is at the time: a progress bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class Number(click.FloatRange):
    """A number in a range, which has to be finite."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return found


class MemoryMb(click.ParamType[float]):
    """An amount of memory in MB, given as 4GB, 500MB, 2GiB or a plain number of MB."""

    name = "memory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]*)\s*", str(value))
        unit = found[2].upper() if found else ""
        unit = unit if unit in MEMORY_UNITS_MB else f"{unit}B"
        if found is None or unit not in MEMORY_UNITS_MB or float(found[1]) == 0:
            self.fail(f"{value!r} is not an amount of memory; write it as 4GB or 500MB.", param, ctx)
        return float(found[1]) * MEMORY_UNITS_MB[unit]


class Streams(click.ParamType[tuple[int, ...]]):
    """Concurrencies, given as 1,8."""

    name = "streams"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(re.fullmatch(r"[0-9]{1,5}", part) and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a list of concurrencies; write it as 1,8.", param, ctx)
        return tuple(sorted({int(part) for part in parts}))


class Rates(click.ParamType[tuple[float, ...]]):
    """Requests a second, given as 2.5 or 0.5,1,2."""

    name = "rates"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?|\.[0-9]+", part) and float(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a list of rates; write it as 2.5 or 0.5,1,2 (requests a second).", param, ctx)
        return tuple(sorted({float(part) for part in parts}))


def workload_option(command: Command) -> Command:
    """Add the option that says which prompts are used."""
    option = click.option(
        "--workload",
        default="hotpotqa",
        show_default=True,
        metavar="SPEC",
        help="A built-in workload, synthetic:622x250, a JSON Lines file of yours, or what a server recorded.",
    )
    return option(command)


def price_options(command: Command) -> Command:
    """Add the options that say what an hour of the machine costs."""
    for option in reversed(
        (
            click.option(
                "--price-per-hour",
                type=Number(min=0, min_open=True),
                metavar="USD",
                help="What an hour of the machine costs.",
            ),
            click.option(
                "--instance", metavar="NAME", help="Take the list price of a cloud instance, such as c7i.4xlarge."
            ),
            click.option(
                "--discount",
                type=Number(min=0, max=1, max_open=True),
                default=0.0,
                metavar="SHARE",
                help="Off the price: 0.3 is 30 %.",
            ),
            click.option(
                "--input-output-ratio",
                type=Number(min=0),
                default=3.0,
                show_default=True,
                metavar="RATIO",
                help="Input tokens for each output token, in the blended price.",
            ),
        )
    ):
        command = option(command)
    return command


def quality_options(command: Command) -> Command:
    """Add the options that say what the gate allows, and how answers are scored."""
    for option in reversed(
        (
            click.option(
                "--max-quality-loss",
                type=Number(min=0),
                default=1.0,
                show_default=True,
                metavar="PERCENT",
                help="Limit of the rise of perplexity; what isn't proved to keep it hasn't passed.",
            ),
            click.option(
                "--max-task-loss",
                type=Number(min=0),
                metavar="PERCENT",
                help="Limit of the fall of the task's score, to be proved, too; without it only a task that is shown to be "
                "broken (over 10 %) counts.",
            ),
            click.option(
                "--metric",
                metavar="SPEC",
                help="What answers are scored by: contains, f1, exact_match, rouge_l, code_tests, regex:PATTERN, or "
                "path/to/file.py:function of yours.",
            ),
            click.option(
                "--judge", metavar="URL", help="A server whose model compares answers, each pair in both orders."
            ),
            click.option("--judge-model", metavar="NAME", help="The judge's name on a server that has several."),
            click.option(
                "--judge-key-env", metavar="VARIABLE", help="The environment variable that holds the judge's API key."
            ),
        )
    ):
        command = option(command)
    return command


def size(amount: float) -> str:
    """Write bytes for people."""
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def duration(seconds: float) -> str:
    """Write seconds for people: `48 s`, `3 min 20 s`, `1 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 // 60 else "")
