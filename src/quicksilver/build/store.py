"""The store: everything built, under the hash of what it was built from. An object is there whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tarfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from quicksilver.errors import BadInputError, NotEnoughError, QuicksilverError
from quicksilver.nouns.artifact import MANIFEST, RECIPE, Artifact
from quicksilver.sources.home import home, need_disk, writable, writing
from quicksilver.sources.links import link_all

READ_ONLY = 0o444
_REMOVED = "removed"
_KEY = re.compile(r"[0-9a-f]{16}")


def root() -> Path:
    """Return the store's folder, made if it isn't there. Raises BadInputError when it can't be written."""
    return writable(home() / "store")


def path(key: str) -> Path:
    """Return where the object of a key is, or would be."""
    return home() / "store" / "objects" / key


def has(key: str) -> bool:
    """Say whether an object is there and whole by its files' sizes (`verify` reads them).

    The manifest comes into place with the folder, by one rename.
    """
    folder = path(key)
    try:
        files = read_manifest(folder)["files"]
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError):
        return False


@contextmanager
def locked(key: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a key, so that two runs at once build it once; `waiting` is called if another process has it.

    The lock goes with the process that holds it, however that ends.
    """
    folder = root() / "locks"
    with writing(folder):
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def new(key: str, facts: Mapping[str, Any], *, source: str | None = None) -> Iterator[Path]:
    """Yield an empty folder; when the block ends well it becomes the object, with a manifest of its files.

    The caller holds the key's lock. Files that are hard links to those of the object `source` keep their recorded hashes. The
    folder beside it, `scratch`, is for temporary files. A block that raises, or a process that is killed, leaves nothing
    under the key; the leavings of killed processes are removed by `sweep`. Raises NotEnoughError for a full disk.
    """
    with _work(key) as work:
        fresh = work / "object"
        with writing(home()):
            fresh.mkdir()
            (work / "scratch").mkdir()
        yield fresh
        with writing(home()):
            (fresh / MANIFEST).unlink(missing_ok=True)  # of the source, if a step copied all of it
            document = {"key": key, "created": time.time(), **facts, "files": _seal(fresh, source)}
            (fresh / MANIFEST).write_text(json.dumps(document, indent=1, sort_keys=True), encoding="utf-8")
            (fresh / MANIFEST).chmod(READ_ONLY)
            put(fresh, key)


def amend(key: str, name: str, text: str) -> None:
    """Give an object a file besides those that its key stands for, or another in place of one; its manifest has it, too."""
    with locked(key):
        facts = {fact: value for fact, value in manifest(key).items() if fact not in ("key", "files")}
        with new(key, facts, source=key) as target:
            link_all(path(key), target, but=(MANIFEST, name))
            (target / name).write_text(text, encoding="utf-8")


def put(folder: Path, key: str) -> None:
    """Move a sealed folder of the same disk to its place, in one step. The caller holds the key's lock."""
    for item in [*folder.rglob("*"), folder]:
        _flush(item)
    target = path(key)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():  # without a manifest or damaged, or nobody would put something here: no object
        _discard(target)
    folder.rename(target)
    _flush(target.parent)


def _flush(item: Path) -> None:
    """Write a file or folder through to the disk, so that a rename that follows can't come before its content."""
    handle = os.open(item, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _work(lock: str) -> Iterator[Path]:
    """Yield a folder to work in, which belongs to whoever holds the lock of that name."""
    work = root() / "work" / f"{lock}.{uuid.uuid4().hex[:8]}"
    try:  # from before the folder is there: a signal that ends this may come while it is made
        with writing(home()):
            work.mkdir(parents=True)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _seal(folder: Path, source: str | None) -> dict[str, dict[str, Any]]:
    """Make a folder's files its own and read-only; return name → sha256 and bytes.

    A hard link to a file of `source` is that file, whose hash is known. A link to any other is replaced by a copy: what's
    stored mustn't change with a file of the user's.
    """
    known: dict[tuple[int, int], str] = {}
    if source is not None:
        for name, entry in manifest(source)["files"].items():
            with contextlib.suppress(FileNotFoundError):  # then nothing is linked to it
                status = (path(source) / name).stat()
                known[status.st_dev, status.st_ino] = entry["sha256"]
    files: dict[str, dict[str, Any]] = {}
    for item in sorted(folder.rglob("*")):
        if item.is_dir() and not item.is_symlink():
            continue
        status = item.stat()
        digest = known.get((status.st_dev, status.st_ino))
        if digest is None:
            if item.is_symlink() or status.st_nlink > 1:
                copy = item.with_name(f"{item.name}.{uuid.uuid4().hex[:8]}")
                shutil.copyfile(item, copy)
                copy.replace(item)
            item.chmod(READ_ONLY)
            digest = _sha256(item)
        files[item.relative_to(folder).as_posix()] = {"sha256": digest, "bytes": status.st_size}
    return files


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def keys() -> list[str]:
    """Return the keys of all objects."""
    folder = home() / "store" / "objects"
    return sorted(p.name for p in folder.iterdir() if (p / MANIFEST).is_file()) if folder.is_dir() else []


def manifest(key: str) -> dict[str, Any]:
    """Return an object's manifest. Raises BadInputError for an unknown key (an unambiguous beginning is enough)."""
    full = resolve(key)
    try:
        return read_manifest(path(full))
    except ValueError as error:
        raise BadInputError(
            f"The manifest of {full} is damaged; remove the object with `quicksilver store prune {full}`."
        ) from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest in a folder. Raises ValueError for one that isn't of the right form."""
    document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(document, dict) or not isinstance(document.get("key"), str):
        raise ValueError("it names no key")  # noqa: TRY004  whatever is wrong with the file is a ValueError
    files = document.get("files")
    if not isinstance(files, dict) or not files:
        raise ValueError("it lists no files")
    for name, entry in files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"it lists a file outside of the object: {name}")
        if not isinstance(entry, dict) or not {"sha256", "bytes"} <= entry.keys():
            raise ValueError(f"it doesn't describe {name}")
    return document


def resolve(key: str) -> str:
    """Return the whole key that a beginning stands for. Raises BadInputError if that's none, or several."""
    known = keys()
    if key in known:
        return key
    found = [k for k in known if key and k.startswith(key)]
    if len(found) == 1:
        return found[0]
    if found:
        raise BadInputError(f"{key} stands for {len(found)} objects; give more of its letters.")
    hint = "`quicksilver store list` shows what is there" if known else "the store is empty"
    raise BadInputError(f"There is no object {key!r} in the store; {hint}.")


def verify(key: str) -> list[str]:
    """Return what is wrong with an object's files: missing, of another size, changed, or added. Empty if it's sound."""
    full = resolve(key)
    return wrong_in(path(full), manifest(full))


def wrong_in(folder: Path, document: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a folder's files by a manifest."""
    wrong = []
    files = document["files"]
    for name, entry in files.items():
        file = folder / name
        if not file.is_file():
            wrong.append(f"{name} is missing")
        elif file.stat().st_size != entry["bytes"]:
            wrong.append(f"{name} has {file.stat().st_size:,} bytes instead of {entry['bytes']:,}")
        elif _sha256(file) != entry["sha256"]:
            wrong.append(f"{name} has changed")
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    wrong += [f"{name} was added" for name in sorted(there - files.keys() - {MANIFEST})]
    return wrong


def remove(key: str) -> int:
    """Remove an object, damaged or not; return the bytes that it frees: files that other objects share stay."""
    full = resolve(key)
    with locked(full), writing(home()):
        folder = path(full)
        freed = sum(s.st_size for s in (p.lstat() for p in folder.rglob("*") if not p.is_dir()) if s.st_nlink == 1)
        _discard(folder)
    return freed


def prune(names: Iterable[str] | None = None) -> tuple[int, int]:
    """Remove the objects named, or else every build step (finished artefacts stay whole) and what killed builds left.

    Returns how many objects went, and the bytes that this freed.
    """
    if names is not None:
        doomed = sorted({resolve(name) for name in names})
    else:
        sweep()
        doomed = [key for key in keys() if _kind(key) != "artifact"]
    return len(doomed), sum(remove(key) for key in doomed)


def _kind(key: str) -> str:
    try:
        return str(read_manifest(path(key)).get("kind"))
    except ValueError:
        return "damaged"


def _discard(folder: Path) -> None:
    """Remove a folder so that it's gone from its place at once, even if this is interrupted."""
    doomed = root() / "work" / f"{_REMOVED}.{uuid.uuid4().hex[:8]}"
    doomed.parent.mkdir(exist_ok=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def sweep() -> int:
    """Remove what killed builds left behind; return how many folders. What a live process works on stays."""
    work = home() / "store" / "work"
    count = 0
    for item in sorted(work.iterdir()) if work.is_dir() else ():
        name = item.name.rpartition(".")[0]
        with contextlib.ExitStack() as stack:
            if name != _REMOVED:
                lock = FileLock(root() / "locks" / f"{name}.lock")
                try:
                    stack.enter_context(lock.acquire(timeout=0))
                except Timeout:
                    continue
            shutil.rmtree(item, ignore_errors=True)
            count += 1
    return count


def export(key: str, target: Path) -> None:
    """Write an object as an uncompressed tar, under a name that it takes when it is whole.

    Raises BadInputError for an object that is damaged or a target that can't be written, NotEnoughError for a full disk.
    """
    full = resolve(key)
    if wrong := verify(full):
        raise BadInputError(f"{full} is damaged and isn't exported: {wrong[0]}.")
    part = target.with_name(target.name + ".part")
    try:
        with tarfile.open(part, "w") as archive:
            archive.add(path(full), arcname=full, filter=_anonymous)
        part.replace(target)
    except OSError as error:
        full_disk = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = (error.strerror or str(error)).lower()
        raise (NotEnoughError if full_disk else BadInputError)(f"{target} can't be written: {reason}.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who made it."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def import_(source: Path) -> str:
    """Take an exported object into the store and return its key.

    Nothing of it is in the store before every file has been checked. Raises BadInputError for a file that is damaged, or no
    exported object, or reaches outside of its folder; NotEnoughError for a full disk.
    """
    if not source.is_file():
        raise BadInputError(f"There is no file at {source}.")
    try:
        with tarfile.open(source, "r:") as archive, locked("import"), _work("import") as work:
            key = _unpack(archive, work)
            return _take(work / key, key)
    except (tarfile.TarError, ValueError, KeyError, TypeError, EOFError, UnicodeError) as error:
        reason = str(error) or "it ends early"
        raise BadInputError(f"{source} is not an exported object that can be read: {reason.rstrip('.')}.") from error
    except QuicksilverError:
        raise
    except OSError as error:
        raise BadInputError(f"{source} can't be read: {(error.strerror or str(error)).lower()}.") from error


def _unpack(archive: tarfile.TarFile, work: Path) -> str:
    """Unpack an archive whose entries are files and folders of one object; return the key that it goes by."""
    entries = archive.getmembers()
    tops = {entry.name.split("/", 1)[0] for entry in entries}
    if len(tops) != 1 or not _KEY.fullmatch(key := tops.pop()):
        raise ValueError("it has to hold one folder, named by a key")
    if outside := next((entry for entry in entries if ".." in Path(entry.name).parts), None):
        raise ValueError(f"{outside.name} is outside of its folder")
    if odd := next((entry for entry in entries if not (entry.isreg() or entry.isdir())), None):
        raise ValueError(f"{odd.name} is neither a file nor a folder")
    need_disk(work, sum(entry.size for entry in entries), "Importing it")
    with writing(home()):
        archive.extractall(work, filter="data")
    return key


def _take(folder: Path, key: str) -> str:
    """Check an unpacked object against its manifest, and put it into its place."""
    if not (folder / MANIFEST).is_file():
        raise ValueError("it has no manifest")
    document: dict[str, Any] = read_manifest(folder)
    if document["key"] != key:
        raise ValueError(f"its manifest says that it is {document['key']}, not {key}")
    if wrong := wrong_in(folder, document):
        raise ValueError(wrong[0])
    if document.get("kind") == "artifact":
        try:
            Artifact.open(folder)
        except BadInputError as error:
            raise ValueError(f"its {RECIPE} and {MANIFEST} don't describe an artefact") from error
    with locked(key), writing(home()):
        if not has(key) or wrong_in(path(key), read_manifest(path(key))):
            for item in folder.rglob("*"):
                if item.is_file():
                    item.chmod(READ_ONLY)
            put(folder, key)
    return key


def history(name: str) -> dict[str, float] | None:
    """Return what was remembered of a kind of step: seconds and memory_mb."""
    return _histories().get(name)


def remember(name: str, facts: dict[str, float]) -> None:
    """Remember facts of a kind of step."""
    with locked("history"), writing(home()):
        file = root() / "history.json"
        part = file.with_suffix(".part")
        part.write_text(json.dumps(_histories() | {name: facts}, indent=1, sort_keys=True), encoding="utf-8")
        part.replace(file)


def _histories() -> dict[str, dict[str, float]]:
    file = home() / "store" / "history.json"
    try:
        found: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}  # nothing remembered, or a file that a crash of the machine cut: it only makes guesses better
    return found
