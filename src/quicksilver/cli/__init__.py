"""The command line: `quicksilver`, or `qs`. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import FrameType

import click

from quicksilver import __version__
from quicksilver.cli.bench import bench
from quicksilver.cli.build import build
from quicksilver.cli.calibrate import calibrate
from quicksilver.cli.certify import certify
from quicksilver.cli.compare import compare
from quicksilver.cli.engine import engine, engines
from quicksilver.cli.export import export
from quicksilver.cli.frame import emit, failed, json_option, logged_to_stderr
from quicksilver.cli.hardware import hardware
from quicksilver.cli.job import size_job
from quicksilver.cli.optimize import optimize
from quicksilver.cli.plan import plan
from quicksilver.cli.predictions import predictions
from quicksilver.cli.presets import presets
from quicksilver.cli.result import show_run
from quicksilver.cli.serve import serve
from quicksilver.cli.show import models, techniques, workloads
from quicksilver.cli.store import store
from quicksilver.errors import QuicksilverError

ENDED = 128


class Commands(click.Group):
    """Commands in the order of their importance; a typo gets the nearest one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            near = get_close_matches(args[0], self.commands, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(self.commands)}."
            ctx.fail(f"There is no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=(
        'Every command takes --json. Completion: put eval "$(_QUICKSILVER_COMPLETE=bash_source quicksilver)" into ~/.bashrc '
        "(zsh_source, fish_source for other shells)."
    ),
)
@click.option("--version", is_flag=True, help="Print the version.")
@json_option
@click.pass_context
def cli(context: click.Context, version: bool) -> None:
    """Find, prove and deploy the best way to serve a language model on your own machine.

    \b
    quicksilver optimize smollm2-135m-instruct --workload hotpotqa --goal cost
    quicksilver serve runs/ID
    """  # noqa: D301  click looks for the backspace itself
    if version:
        emit({"version": __version__}, lambda out: out.print(f"quicksilver {__version__}"))
        context.exit()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (
    optimize,
    plan,
    show_run,
    presets,
    bench,
    compare,
    certify,
    serve,
    export,
    build,
    models,
    workloads,
    techniques,
    engine,
    engines,
    hardware,
    size_job,
    calibrate,
    predictions,
    store,
):
    cli.add_command(command)


def run(args: Sequence[str], name: str = "quicksilver") -> int:
    """Run a command line and return its exit code; what the user can act on becomes one sentence."""
    ours = list(args)
    options = ours[: ours.index("--")] if "--" in ours else ours
    try:
        with logged_to_stderr():
            code = cli.main(ours, prog_name=name, standalone_mode=False, obj=ours)
        sys.stdout.flush()
    except BrokenPipeError:
        return _stdout_is_closed()
    except (click.ClickException, click.Abort, KeyboardInterrupt, QuicksilverError, OSError) as error:
        return failed(error, json_wanted="--json" in options)
    return code if isinstance(code, int) else 0


def main() -> int:
    """Run the process's command line: the entry point of `quicksilver` and `qs`."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    name = Path(sys.argv[0]).name
    code = run(sys.argv[1:], name if name == "qs" else "quicksilver")
    if code and threading.active_count() > 1:
        # A thread that is still inside an engine would hold up a normal exit.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _end(number: int, _: FrameType | None) -> None:
    """End as on Ctrl-C, so that every server and worker is ended too."""
    sys.exit(ENDED + number)


def _stdout_is_closed() -> int:
    """Whoever read our output has had enough; keep Python from complaining about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
