"""Compiled graphs, kept from one start to the next: apart from the artefact, for just what they were compiled for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from quicksilver.engines.openvino import blob, rewrite
from quicksilver.engines.openvino.rewrite import MODEL, WEIGHTS
from quicksilver.hardware import instructions, usable_cores
from quicksilver.nouns.artifact import MANIFEST
from quicksilver.nouns.base import content_hash
from quicksilver.sources.home import home

logger = logging.getLogger(__name__)

FORM = 1
"""Of the files that are kept; raised when they change."""
SUFFIX = ".graph"
SCRATCH = "new-"
LIMIT_BYTES = 2_000_000_000
"""Of all graphs that are kept; those used last stay. Most take a few MB, but weights that the engine lays out anew are in them."""
STALE_S = 3600
"""Age of what a process left that ended while it wrote."""
LIMITS = ("OV_CPU_MAX_ISA", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables that keep the engine from instructions that the CPU has."""
SAMPLES = 64
"""Places at which weights are compared with those that a graph was compiled of: to read them all takes as long as to compile."""
SAMPLE_BYTES = 4096
OWN = frozenset({"CACHE_DIR", "CACHE_ENCRYPTION_CALLBACKS", "CACHE_MODE", "ENABLE_WEIGHTLESS", "WEIGHTS_PATH"})
"""Properties with which the user arranges for the engine's own cache."""
WORDS = {
    "form": "the form of what is kept",
    "engine": "the engine's version",
    "cpu": "the CPU",
    "model": "the model's files",
    "properties": "the properties",
}


class UnfitError(Exception):
    """A file isn't what a process of this user wrote."""


def open_graph(folder: Path, properties: Mapping[str, Any], *, keep: bool) -> ov.CompiledModel:
    """Return an artefact's graph, compiled: what was kept if it is for exactly this, or else compiled anew and kept."""
    core = ov.Core()
    if not keep or OWN & properties.keys():
        return core.compile_model(rewrite.read(core, folder), "CPU", dict(properties))
    key = _key(core, folder, properties)
    place = kept_of(folder)
    file = place / f"{content_hash(key)}{SUFFIX}"
    try:
        return _reuse(core, file, key, folder, properties)
    except FileNotFoundError:
        reason = _why(place, key)
        # The first time is no surprise.
        logger.log(logging.WARNING if reason else logging.INFO, "%s", _anew(reason or "it wasn't compiled before"))
    except (UnfitError, OSError) as error:
        logger.warning("%s", _anew(f"{file} can't be used ({error})"))
    except (RuntimeError, TypeError, ValueError) as error:
        # What is kept is as it was written, so to write it again would be of no use.
        logger.warning("%s", _anew(f"the engine refuses {file} ({_last_line(error)})"))
        return core.compile_model(rewrite.read(core, folder), "CPU", dict(properties))
    return _compile(core, folder, properties, file, key)


def kept_of(folder: Path) -> Path:
    """Return where an artefact's compiled graphs are kept."""
    manifest = folder / MANIFEST
    name = json.loads(manifest.read_text(encoding="utf-8"))["key"] if manifest.is_file() else str(folder.resolve())
    return home() / "compiled" / content_hash(name)


def _key(core: ov.Core, folder: Path, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that a compiled graph depends on."""
    return {
        "form": [FORM, rewrite.REVISION],
        "engine": ov.get_version(),
        "cpu": [
            core.get_property("CPU", "FULL_DEVICE_NAME"),
            core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
            list(instructions()),
            usable_cores(),
            {name: os.environ[name] for name in LIMITS if name in os.environ},
        ],
        "model": [
            hashlib.sha256((folder / MODEL).read_bytes()).hexdigest(),
            *_weights(folder / WEIGHTS),
        ],
        "properties": {name: str(value) for name, value in sorted(properties.items())},
    }


def _weights(file: Path) -> tuple[int, int, str]:
    """Return size, time of change and a digest of samples: packages that set all times alike differ in the last."""
    with file.open("rb") as source:
        stat = os.fstat(source.fileno())
        digest = hashlib.blake2b(digest_size=16)
        for at in range(0, stat.st_size, max(1, stat.st_size // SAMPLES)):
            source.seek(at)
            digest.update(source.read(SAMPLE_BYTES))
    return stat.st_size, stat.st_mtime_ns, digest.hexdigest()


def _reuse(
    core: ov.Core, file: Path, key: Mapping[str, Any], folder: Path, properties: Mapping[str, Any]
) -> ov.CompiledModel:
    with file.open("rb") as kept:
        sizes = _check(kept, key)
        compiled = blob.import_graph(core, kept, sizes, folder / WEIGHTS, properties)
    with contextlib.suppress(OSError):  # what is in use stays longest
        os.utime(file)
    return compiled


def _check(kept: BufferedReader, key: Mapping[str, Any]) -> tuple[int, int]:
    """Return the sizes of a kept graph's parts, once it is known to be this user's, for this key, and as it was written."""
    stat = os.fstat(kept.fileno())
    if stat.st_uid not in (0, os.geteuid()):
        raise UnfitError("it is another user's")
    try:
        head = json.loads(kept.read(blob.GRAIN))
        sizes, digest, found = (int(head["opening"]), int(head["closing"])), head["digest"], head["key"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnfitError("its head is damaged") from error
    if stat.st_size != blob.GRAIN + sum(sizes):
        raise UnfitError("it is cut short")
    if hashlib.file_digest(kept, lambda: _digest(sizes)).hexdigest() != digest or found != key:
        raise UnfitError("it is damaged")
    return sizes


def _digest(sizes: tuple[int, int]) -> hashlib.blake2b:
    return hashlib.blake2b(repr(sizes).encode(), digest_size=16)


def _compile(
    core: ov.Core, folder: Path, properties: Mapping[str, Any], file: Path, key: Mapping[str, Any]
) -> ov.CompiledModel:
    """Compile, and keep the result if there is room for it: a server must start where nothing can be written, too."""
    model = rewrite.read(core, folder)
    compiled = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=file.parent) as scratch:
            _check_room(folder, file.parent)
            heads = blob.heads_of(model)
            # The engine writes its export into a file: as bytes it would be in memory three times.
            compiled = core.compile_model(model, "CPU", {**properties, **blob.PLAIN, "CACHE_DIR": scratch})
            _keep(Path(scratch), folder, heads, file, key)
        _prune(file.parent.parent, file)
    except (OSError, RuntimeError, ValueError, SyntaxError) as error:
        logger.warning("The compiled graph can't be kept: %s.", _last_line(error))
    return core.compile_model(model, "CPU", dict(properties)) if compiled is None else compiled


def _check_room(folder: Path, place: Path) -> None:
    """Raise OSError unless the disk has room for the engine's export, weights and all, and for some of them again."""
    need = 2 * (folder / WEIGHTS).stat().st_size
    free = shutil.disk_usage(place).free
    if free < need:
        raise OSError(f"{need / 1e6:,.0f} MB of disk would be needed for a moment, and {free / 1e6:,.0f} MB are free")


def _keep(scratch: Path, folder: Path, heads: blob.Heads, file: Path, key: Mapping[str, Any]) -> None:
    exported = list(scratch.glob("*.blob"))
    if len(exported) != 1:
        raise ValueError(f"the engine exported {len(exported)} files")
    weights = folder / WEIGHTS
    parts = blob.strip(
        np.memmap(exported[0], dtype=np.uint8, mode="r"),
        folder / MODEL,
        np.memmap(weights, dtype=np.uint8, mode="r"),
        heads,
    )
    sizes = len(parts.opening), len(parts.closing)
    if sum(sizes) > LIMIT_BYTES:
        raise ValueError(f"it takes {sum(sizes) / 1e6:,.0f} MB")
    digest = _digest(sizes)
    digest.update(parts.opening)
    digest.update(parts.closing)
    head = json.dumps({"key": key, "opening": sizes[0], "closing": sizes[1], "digest": digest.hexdigest()}).encode()
    if len(head) > blob.GRAIN:
        raise ValueError("there are too many properties")
    written = scratch / file.name
    with written.open("wb") as target:
        for part in (head.ljust(blob.GRAIN), parts.opening, parts.closing):
            target.write(part)
        target.flush()
        os.fsync(target.fileno())
    written.replace(file)


def _prune(root: Path, written: Path) -> None:
    """Remove what hasn't been used for longest, and what processes left that ended while they wrote."""
    for stale in root.glob(f"*/{SCRATCH}*"):
        with contextlib.suppress(OSError):
            if time.time() - stale.stat().st_mtime > STALE_S:
                shutil.rmtree(stale, ignore_errors=True)
    total = 0
    for file in _latest(root, f"*/*{SUFFIX}"):
        with contextlib.suppress(OSError):  # another process may have removed it, or write beside it
            total += file.stat().st_size
            if total > LIMIT_BYTES and file != written:
                file.unlink()
                file.parent.rmdir()


def _latest(folder: Path, pattern: str) -> list[Path]:
    """Return a folder's entries, the last used first."""
    ages = []
    for item in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process may have removed it
            ages.append((item.stat().st_mtime, item))
    return [item for _, item in sorted(ages, reverse=True)]


def _why(place: Path, key: Mapping[str, Any]) -> str:
    """Say what was different about the graph that was kept last; nothing if there is none."""
    for file in _latest(place, f"*{SUFFIX}"):
        try:
            with file.open("rb") as source:
                last = json.loads(source.read(blob.GRAIN))["key"]
            differences = [name for name in WORDS if last[name] != key[name]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return ", ".join(f"{WORDS[name]}{_change(name, last[name], key[name])}" for name in differences)
    return ""


def _change(name: str, last: Any, now: Any) -> str:
    return " changed" if name == "model" else f" changed from {last} to {now}"


def _anew(reason: str) -> str:
    return f"The graph is compiled anew: {reason}."


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
