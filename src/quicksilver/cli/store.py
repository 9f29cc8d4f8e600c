"""`quicksilver store`: what was built and is kept."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quicksilver.cli.frame import Number, emit, json_option, pairs, size, table
from quicksilver.errors import BadInputError, QuicksilverError

if TYPE_CHECKING:
    from rich.console import Console


class DamagedError(QuicksilverError):
    """Objects of the store are not what was built."""


@click.group(invoke_without_command=True, short_help="What was built: list, check, remove, move.")
@json_option
@click.pass_context
def store(context: click.Context) -> None:
    """List what was built and is kept, check it, remove it, take it elsewhere."""
    if context.invoked_subcommand is None:
        context.invoke(list_)


@store.command("list")
@json_option
def list_() -> None:
    """List the objects: artefacts, and the steps that led to them."""
    from quicksilver.build import store as objects

    found = sorted(map(_summary, objects.keys()), key=lambda s: s["created"] or 0.0)
    place = objects.path("").parent

    def show(out: Console) -> None:
        rows = [
            [s["key"], s["kind"], s["label"], s["model"], size(s["bytes"]), _day(s["created"])] if not s["damaged"]
            else [s["key"], "damaged", "", "", "", ""]
            for s in found
        ]  # fmt: skip
        if rows:
            out.print(table(["key", "kind", "label", "model", "size", "built"], rows, right=(4,)))
        total = size(_on_disk(s["key"] for s in found))
        out.print(
            f"{len(rows)} {'object' if len(rows) == 1 else 'objects'}, {total} on disk, at {place}", soft_wrap=True
        )

    emit(found, show)


@store.command()
@click.argument("key")
@json_option
def show(key: str) -> None:
    """Show one object: what it was built from, with what, and its files. The beginning of a key is enough."""
    from quicksilver.bench.columns import speculation_details
    from quicksilver.build import store as objects
    from quicksilver.nouns.speculation import SpeculationTable

    full = objects.resolve(key)
    manifest = objects.manifest(full)
    try:
        guessing = SpeculationTable.read(objects.path(full))
    except ValueError as error:
        raise DamagedError(f"The speculation table of {full} can't be read; optimize makes it anew.") from error

    def write(out: Console) -> None:
        out.print(str(objects.path(full)), soft_wrap=True)
        facts = {name: value for name, value in manifest.items() if name != "files"}
        facts["created"] = _day(manifest.get("created"))
        out.print(pairs({name: _words(value) for name, value in facts.items()}))
        out.print()
        files = [[name, size(entry["bytes"]), entry["sha256"]] for name, entry in manifest["files"].items()]
        out.print(table(["file", "size", "sha256"], files, right=(1,)))
        if guessing is not None:
            heads, rows = speculation_details(guessing)
            out.print(
                f"\nTokens/s by guessed tokens (and a step's ms), {guessing.machine}, {guessing.threads} threads:"
            )
            out.print(table(heads, rows, right=range(len(heads))))

    more = {} if guessing is None else {"speculation": guessing.model_dump(mode="json")}
    emit(manifest | {"path": str(objects.path(full))} | more, write)


@store.command()
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@json_option
def verify(keys: tuple[str, ...]) -> None:
    """Check the files of objects against their manifests; without KEY, of all. Ends with exit code 1 if any is damaged."""
    from quicksilver.build import store as objects

    wrong = {}
    chosen = [objects.resolve(key) for key in keys] or objects.keys()
    for key in chosen:
        try:
            found = objects.verify(key)
        except BadInputError:
            found = ["its manifest can't be read"]
        if found:
            wrong[key] = found
    if wrong:
        raise DamagedError(
            f"{len(wrong)} of {len(chosen)} object{'s' if len(chosen) > 1 else ''} {'is' if len(wrong) == 1 else 'are'} damaged: "
            + "; ".join(f"{key}: {what[0].rstrip('.')}" for key, what in wrong.items())
            + f". Remove what is damaged with `quicksilver store prune {' '.join(wrong)}`, and it is built again when it is needed."
        )
    count = len(chosen)
    emit(
        {"checked": chosen, "damaged": []},
        lambda out: out.print(f"{count} {'object is' if count == 1 else 'objects are'} sound."),
    )


@store.command()
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--older-than", "days", type=Number(min=0), metavar="DAYS", help="Remove what was built longer ago.")
@click.option("--all", "everything", is_flag=True, help="Remove everything.")
@json_option
def prune(keys: tuple[str, ...], days: float | None, everything: bool) -> None:
    """Remove objects by KEY, age, or all; without a choice, the steps of builds, so that finished artefacts stay.

    What killed builds left behind goes too. What is removed is built again when it is needed, and the winners in runs/ keep
    their own files.
    """
    from quicksilver.build import store as objects

    if sum((bool(keys), days is not None, everything)) > 1:
        raise BadInputError("Choose one of KEY, --older-than and --all.")
    swept = objects.sweep()
    names: Iterable[str] | None = keys or None
    if everything:
        names = objects.keys()
    elif days is not None:
        before = time.time() - days * 86_400
        names = [s["key"] for s in map(_summary, objects.keys()) if s["created"] is not None and s["created"] < before]
    count, freed = objects.prune(names)

    def write(out: Console) -> None:
        leavings = f" and {swept} {'leaving' if swept == 1 else 'leavings'} of killed builds" if swept else ""
        out.print(
            f"Removed {count} {'object' if count == 1 else 'objects'}{leavings}; {size(freed)} freed ({freed:,} bytes)."
        )

    emit({"removed": count, "swept": swept, "freed_bytes": freed}, write)


@store.command()
@click.argument("key")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def export(key: str, file: Path) -> None:
    """Write an object to FILE, a tar file that `store import` takes on another machine."""
    from quicksilver.build import store as objects

    if file.is_dir():
        raise BadInputError(f"{file} is a directory; give the name of a file.")
    if not file.parent.is_dir():
        raise BadInputError(f"There is no directory {file.parent}.")
    full = objects.resolve(key)
    objects.export(full, file)
    written = file.stat().st_size
    emit(
        {"key": full, "file": str(file), "bytes": written},
        lambda out: out.print(f"{file}: {size(written)}", soft_wrap=True),
    )


@store.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def import_(file: Path) -> None:
    """Take an exported object into the store, after its files are checked."""
    from quicksilver.build import store as objects

    key = objects.import_(file)
    emit({"key": key, "path": str(objects.path(key))}, lambda out: out.print(key))


def _summary(key: str) -> dict[str, Any]:
    from quicksilver.build import store as objects

    try:
        manifest = objects.manifest(key)
    except BadInputError:
        manifest = {}
    return {
        "key": key,
        "kind": manifest.get("kind", ""),
        "label": manifest.get("label", ""),
        "model": manifest.get("model", ""),
        "created": manifest.get("created"),
        "bytes": sum(int(entry["bytes"]) for entry in manifest.get("files", {}).values()),
        "damaged": not manifest,
    }


def _on_disk(keys: Iterable[str]) -> int:
    """Bytes of the files of objects; a file that several share counts once."""
    from quicksilver.build import store as objects

    files = (file.lstat() for key in keys for file in objects.path(key).rglob("*") if file.is_file())
    return sum({(status.st_dev, status.st_ino): status.st_size for status in files}.values())


def _day(created: float | None) -> str:
    return "" if created is None else datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
