"""`quicksilver engine`: which engines there are, and the environments that they run in."""

from __future__ import annotations

import inspect
import time
from typing import TYPE_CHECKING, Any

import click

from quicksilver.cli.frame import emit, interruptible, json_option, note, size, table
from quicksilver.errors import BadInputError, EngineError, QuicksilverError

if TYPE_CHECKING:
    from rich.console import Console

    from quicksilver.doctor import Finding
    from quicksilver.nouns import Engine


class UnsoundError(QuicksilverError):
    """An engine doesn't work as it is."""


@click.group(invoke_without_command=True, short_help="Engines: list, add, remove, find what is wrong.")
@json_option
@click.pass_context
def engine(context: click.Context) -> None:
    """List the engines, add one that needs an environment of its own, remove it, find what keeps one from working."""
    if context.invoked_subcommand is None:
        _list()


@engine.command("list")
@json_option
def list_() -> None:
    """List the engines: what each serves, and whether it is installed or how it is added."""
    _list()


@click.command(short_help="The engines, and which are installed.")
@json_option
def engines() -> None:
    """List the engines; the same as `quicksilver engine list`."""
    _list()


def _list() -> None:
    from quicksilver import engines as known
    from quicksilver import environments

    found = [_engine(name) for name in known.names()]
    used = {e["environment"] for e in found}
    found += [_stack(name) for name in environments.names() if name not in used]

    def show(out: Console) -> None:
        rows = [
            [
                e["name"],
                e["version"] or ("not installed" if e["add"] else ""),
                e["format"] or "",
                size(e["bytes"]) if e["bytes"] else "",
                e["about"] or e["reason"],
            ]
            for e in found
        ]
        out.print(table(["name", "version", "serves", "size", "what it is"], rows, right=(3,)))
        for e in found:
            if e["add"] and not e["installed"]:
                out.print(f"{e['add']} adds {e['name']}.", soft_wrap=True)

    emit(found, show)


def _engine(name: str) -> dict[str, Any]:
    from quicksilver import engines as known

    facts: dict[str, Any] = {
        "name": name,
        "kind": "engine",
        "installed": False,
        "version": None,
        "environment": None,
        "format": None,
        "bytes": None,
        "add": None,
        "native": False,
        "about": "",
        "reason": "",
    }
    try:
        found = known.find(name)
        about = (inspect.getdoc(type(found)) or "").split("\n\n")[0].replace("\n", " ")
        facts |= {"format": found.format, "about": about, "environment": found.environment}
        facts |= _disk(found.environment)
        return facts | {"version": known.installed(name).version(), "installed": True}
    except EngineError as error:
        return facts | {"reason": str(error)}


def _stack(name: str) -> dict[str, Any]:
    """Describe an environment that builds use and that no engine serves from."""
    from quicksilver import environments

    facts = {
        "name": name,
        "kind": "environment",
        "installed": False,
        "version": None,
        "environment": name,
        "format": None,
    }
    facts |= _disk(name) | {"about": "packages that builds or comparisons need", "reason": ""}
    try:
        environments.python(name, name)
    except EngineError as error:
        return facts | {"reason": str(error)}
    return facts | {"installed": True, "version": "installed"}


def _disk(environment: str) -> dict[str, Any]:
    from quicksilver import environments

    there = next((e for e in environments.find() if e.name == environment), None)
    return {
        "add": None if environment == "default" else f"quicksilver engine add {environment}",
        "bytes": there.size() if there is not None else None,
        "native": there is not None and there.native is not None,
    }


@engine.command()
@click.argument("name")
@click.option("--native", is_flag=True, help="Build its server from source for this CPU, too; that takes many minutes.")
@json_option
def add(name: str, *, native: bool) -> None:
    """Install the engine NAME into an environment of its own, from its lock file.

    What is there already isn't installed again, and an interrupted call is taken up by the same command.
    """
    from quicksilver import engines as known
    from quicksilver import environments

    found = known.find(name) if name in known.names() else None
    if found is None and name not in environments.names():
        raise _unknown(name)
    environment = name if found is None else found.environment
    if environment == "default":
        raise BadInputError(f"The engine {name} needs no environment of its own: {_ours(found)}")
    if native and (found is None or not found.abilities.native):
        raise BadInputError(f"{name} has no native build; leave --native out.")
    begun = time.monotonic()
    with interruptible(f"`quicksilver engine add {name}` goes on from here."):
        python = environments.add(
            environment, say=note, native=found.build_native if native and found is not None else None
        )
    there = next(e for e in environments.find() if e.name == environment)
    version = found.version() if found is not None else None
    document = {
        "name": name,
        "environment": environment,
        "version": version,
        "python": str(python),
        "native": there.native is not None,
        "bytes": there.size(),
        "seconds": round(time.monotonic() - begun, 1),
    }
    emit(
        document,
        lambda out: out.print(
            f"{version or name} is installed, {size(there.size())}, at {there.folder}"
            + (", with a build for this CPU" if there.native is not None else ""),
            soft_wrap=True,
        ),
    )


def _ours(found: Engine | None) -> str:
    try:
        return f"it is installed ({found.version()})." if found is not None else ""
    except EngineError as error:
        return str(error)


@engine.command()
@click.argument("name")
@json_option
def remove(name: str) -> None:
    """Remove the environment of the engine NAME; artefacts stay."""
    from quicksilver import engines as known
    from quicksilver import environments

    found = known.find(name) if name in known.names() else None
    environment = name if found is None else found.environment
    if environment == "default":
        raise BadInputError(f"The engine {name} has no environment of its own: it is part of Quicksilver's.")
    freed = environments.remove(environment)
    emit(
        {"removed": environment, "freed_bytes": freed},
        lambda out: out.print(f"Removed {environment}; {size(freed)} freed."),
    )


@engine.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@json_option
def doctor(names: tuple[str, ...]) -> None:
    """Say what keeps engines from working here, and how to mend it; without NAME, of all.

    Ends with exit code 1 if an engine is broken, or one that was named isn't installed.
    """
    from quicksilver import engines as known
    from quicksilver import environments
    from quicksilver.doctor import examine

    there = dict.fromkeys([*known.names(), *environments.names()])
    chosen = names or tuple(there)
    for name in chosen:
        if name not in there:
            raise _unknown(name)
    found = {name: examine(name) for name in chosen}
    bad = [name for name, findings in found.items() if _is_bad(findings, named=bool(names))]

    def show(out: Console) -> None:
        for name, findings in found.items():
            out.print(f"{name}: {_state(findings)}", style="bold" if name in bad else None)
            for finding in findings:
                out.print(f"  {finding.problem}\n    mend: {finding.mend}", soft_wrap=True)

    documents = [
        {"engine": name, "sound": name not in bad, "findings": [f.model_dump(mode="json") for f in findings]}
        for name, findings in found.items()
    ]
    emit(documents, show)
    if bad:
        click.get_current_context().exit(UnsoundError.exit_code)


def _state(findings: list[Finding]) -> str:
    if not findings:
        return "sound"
    kinds = {finding.kind for finding in findings}
    return "not installed" if "missing" in kinds else "broken" if "broken" in kinds else "works, within limits"


def _absent(findings: list[Finding]) -> bool:
    return any(finding.kind == "missing" for finding in findings)


def _is_bad(findings: list[Finding], *, named: bool) -> bool:
    """Say whether findings make the exit code 1: what nobody asked for may be absent, and then the rest of it is no matter."""
    if _absent(findings):
        return named
    return any(finding.kind == "broken" for finding in findings)


def _unknown(name: str) -> BadInputError:
    from quicksilver import engines as known
    from quicksilver import environments
    from quicksilver.errors import unknown

    return unknown("engine", name, {*known.names(), *environments.names()})
