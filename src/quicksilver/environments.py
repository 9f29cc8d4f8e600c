"""Environments: stacks of Python packages that live apart from ours, each made from its lock file under `envs/`.

An environment is a venv in `home()/envs/NAME`. A marker, written last, holds the lock's hash: without it the environment is
half made, and with another hash it was made from another lock. A build for this machine's CPU (`NativeBuild`) has a folder and a
marker of its own in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from quicksilver.errors import BadInputError, EngineError, NotEnoughError, unknown
from quicksilver.hardware import instructions
from quicksilver.nouns.base import Noun
from quicksilver.sources.home import home, need_disk, writable, writing

Say = Callable[[str], None]

MARKER = "quicksilver.json"
OURS = ("default", "dev", "serve")
"""Locks of the environment that Quicksilver itself is installed in."""
OTHERS = ("aiperf", "clients", "exports", "transformers")
"""Locks of what only `make` installs: clients and servers of others, and schemas of what is exported."""
SAY_EVERY_S = 5.0
SAY_BUILT_EVERY_S = 20.0
NO_DISK = re.compile(r"no space left|disk quota exceeded", re.IGNORECASE)
# What runs a command, and ends it and all that it started if whoever asked for it is gone, however that ended: then 0 is at its end.
_WATCH = (
    "import os, signal, subprocess, sys, threading\n"
    "child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)\n"
    "threading.Thread(target=lambda: (os.read(0, 1), os.killpg(0, signal.SIGKILL)), daemon=True).start()\n"
    "code = child.wait()\n"
    "code < 0 and os.kill(os.getpid(), -code)\n"
    "sys.exit(code)\n"
)


class Marker(Noun):
    """What an environment, or a native build in it, was made from."""

    lock_sha256: str
    python: str
    """The version of Python, such as 3.11.9."""
    instructions: tuple[str, ...] = ()
    """The vector instruction sets of the machine that a native build was made on."""


@dataclass(frozen=True, slots=True)
class Environment:
    """One that is on the disk, whole or not."""

    name: str
    folder: Path
    marker: Marker | None
    """None for one that is half made."""
    native: Marker | None
    """Of its native build; None without a whole one."""

    @property
    def current(self) -> bool:
        """Whether it is whole, and was made from the lock as that is now."""
        return self.marker is not None and self.name in names() and self.marker.lock_sha256 == _hash(lock(self.name))

    def size(self) -> int:
        """Return the bytes that it takes on the disk."""
        files = (Path(folder) / name for folder, _, found in os.walk(self.folder) for name in found)
        seen = {(s.st_dev, s.st_ino): s.st_size for s in (file.lstat() for file in files)}
        return sum(seen.values())


@dataclass(frozen=True, slots=True)
class Needs:
    """About what an environment takes."""

    disk_mb: float = 0.0
    minutes: float = 0.0
    """To make it, with a quick network."""
    memory_mb: float = 0.0
    """For its engine to start with a small model."""


@dataclass(frozen=True, slots=True)
class NativeBuild:
    """What an engine is given to build its server for this CPU."""

    python: Path
    """Of the environment, which is whole."""
    work: Path
    """A folder for sources and objects; it stays after an interrupted build, so that the next goes on there."""
    target: Path
    """An empty folder for what is kept."""
    log: Path
    say: Say

    def run(self, command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None) -> None:
        """Run a command in `work`, its output in the log. Raises EngineError, NotEnoughError with what it said last."""
        name = Path(command[0]).name
        what, hear = f"The command {name} of the native build", _Built(self.say).line
        _run(command, self.log, what, hear=hear, environment=environment, cwd=self.work)


def folder_of_locks() -> Path:
    """Return the folder of lock files: inside the installed package, or of the checkout."""
    here = Path(__file__).parent
    return next(folder for folder in (here / "envs", here.parents[1] / "envs") if folder.is_dir())


def names() -> list[str]:
    """Return the names of the environments that can be added."""
    return sorted(file.stem for file in folder_of_locks().glob("*.lock") if file.stem not in (*OURS, *OTHERS))


def lock(name: str) -> Path:
    """Return an environment's lock file. Raises BadInputError for an unknown name."""
    if name not in names():
        raise unknown("environment", name, names())
    return folder_of_locks() / f"{name}.lock"


def python(name: str, what: str | None = None) -> Path:
    """Return the interpreter of an environment; `default` is the one that this runs in.

    Raises EngineError, which says the command that adds it, for one that isn't there, is half made or was made from another
    lock; `what` is what isn't installed then, if it isn't the engine of that name.
    """
    if name == "default":
        return Path(sys.executable)
    source, found = lock(name), _environment(name)
    add_it = f"quicksilver engine add {name}"
    if found.marker is None or not _interpreter(found.folder).exists():
        raise EngineError(f"{what or f'The engine {name}'} isn't installed; {add_it} adds it.")
    if found.marker.lock_sha256 != _hash(source):
        raise EngineError(
            f"{what or f'The engine {name}'} was installed from another {name}.lock; {add_it} brings it up to date."
        )
    return _interpreter(found.folder)


def version(name: str, package: str) -> str:
    """Return the version of a package in an environment, without starting its Python. Raises EngineError if it isn't there."""
    found = list(distributions(name=package, path=[str(folder) for folder in packages(python(name))]))
    if not found:
        raise EngineError(
            f"The environment {name} has no {package}; quicksilver engine remove {name}, and add it again."
        )
    return found[0].version


def packages(interpreter: Path) -> list[Path]:
    """Return the folders that a venv's interpreter finds packages in."""
    return sorted(interpreter.parents[1].glob("lib/python*/site-packages"))


def native(name: str) -> Path | None:
    """Return the folder of an environment's native build, if there is a whole one that this CPU can run."""
    found = _environment(name)
    if found.native is None or found.marker is None or found.native.lock_sha256 != found.marker.lock_sha256:
        return None
    return found.folder / "native" if set(found.native.instructions) <= set(instructions()) else None


def find() -> list[Environment]:
    """Return all environments that are on the disk, whole or not."""
    folder = home() / "envs"
    there = sorted(item for item in folder.iterdir() if item.is_dir()) if folder.is_dir() else []
    return [_environment(item.name) for item in there]


def add(name: str, *, say: Say, native: Callable[[NativeBuild], None] | None = None) -> Path:
    """Make an environment from its lock, unless it is there already; return its interpreter.

    `native` builds an engine's server for this CPU. What an interrupted call has installed is used by the next; two calls at
    once make it once. Raises EngineError (with what pip said last; the log has the rest), NotEnoughError, BadInputError.
    """
    source = lock(name)
    folder = writable(home() / "envs") / name
    with _holding(name, say), writing(folder):
        found = _environment(name)
        if not (found.current and _interpreter(folder).exists()):
            _install(name, source, folder, say)
        if native is not None:
            _build(name, folder, native, say)
    return _interpreter(folder)


def remove(name: str) -> int:
    """Remove an environment, whole or not; return the bytes that it took. Raises BadInputError if there is none."""
    found = {environment.name: environment for environment in find()}
    if name not in found:
        if name in names():
            raise BadInputError(f"{name} isn't installed: there is nothing to remove.")
        raise unknown("environment", name, names())
    with _holding(name, lambda _: None), writing(home()):
        freed = found[name].size()
        (found[name].folder / MARKER).unlink(missing_ok=True)  # first: what is half removed isn't whole
        shutil.rmtree(found[name].folder)
        _log(name).unlink(missing_ok=True)
    return freed


def make_venv(name: str, folder: Path) -> None:
    """Make an empty environment with pip. Raises EngineError or NotEnoughError."""
    try:
        venv.EnvBuilder(clear=True, symlinks=True, with_pip=True).create(folder)
    except subprocess.CalledProcessError as error:
        words = (error.output or b"").decode(errors="replace")
        if NO_DISK.search(words):
            raise _full(name) from error
        raise EngineError(
            f"Python's venv module can't make the environment {name} ({_telling(words) or 'it has no ensurepip'}); "
            "install your system's package python3-venv."
        ) from error


def needs(name: str) -> Needs:
    """Return what a lock says in its comments (`# disk_mb: 200`) that its environment takes; nothing, if it doesn't say."""
    text = lock(name).read_text(encoding="utf-8")
    found = re.findall(r"^# (disk_mb|minutes|memory_mb): ([0-9.]+)$", text, re.MULTILINE)
    return Needs(**{field: float(value) for field, value in found})


def _environment(name: str) -> Environment:
    folder = home() / "envs" / name
    return Environment(name, folder, _read(folder / MARKER), _read(folder / "native" / MARKER))


def _read(marker: Path) -> Marker | None:
    try:
        return Marker.model_validate_json(marker.read_bytes())
    except (OSError, ValidationError):
        return None  # none, or one that a crash of the machine cut: not finished


def _finish(folder: Path, source_hash: str, isa: tuple[str, ...] = ()) -> None:
    """Write the marker, in one step."""
    version = ".".join(map(str, sys.version_info[:3]))
    part = folder / f"{MARKER}.part"
    part.write_text(
        Marker(lock_sha256=source_hash, python=version, instructions=isa).model_dump_json(), encoding="utf-8"
    )
    part.replace(folder / MARKER)


def _interpreter(folder: Path) -> Path:
    return folder / "bin" / "python"


def _log(name: str) -> Path:
    return home() / "envs" / f"{name}.log"


def _hash(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()


@contextmanager
def _holding(name: str, say: Say) -> Iterator[None]:
    """Hold an environment's lock. It goes with the process that holds it, however that ends."""
    held = FileLock(home() / "envs" / f"{name}.held")
    try:
        held.acquire(timeout=0)
    except Timeout:
        say(f"Another process is working on {name}; waiting for it.")
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _install(name: str, source: Path, folder: Path, say: Say) -> None:
    begun = time.monotonic()
    wanted = _hash(source)
    takes = needs(name)
    need_disk(folder.parent, int(takes.disk_mb * 1e6), f"Installing {name}")
    if _read(folder / MARKER) is not None or _started_from(folder) != wanted:  # of another lock
        (folder / MARKER).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    rough = f"; about {takes.disk_mb / 1e3:.1f} GB of disk" if takes.disk_mb else ""
    rough += f" and {takes.minutes:g} min with a quick network" if takes.minutes else ""
    say(f"Installing {name} into {folder}{rough}.")
    if not _interpreter(folder).exists():
        make_venv(name, folder)
    (folder / f"{MARKER}.from").write_text(wanted, encoding="utf-8")
    _drop_half_installed(folder)
    count = sum(bool(re.match(r"[A-Za-z0-9]", line)) for line in source.read_text(encoding="utf-8").splitlines())
    command: list[str | Path] = [
        _interpreter(folder),
        "-I",  # what PYTHONPATH names isn't in the environment
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "install",
        "--no-deps",
    ]
    hear = _Progress(name, count, say)
    _run([*command, "--progress-bar", "off", "-r", source], _log(name), f"Installing {name}", hear=hear.line)
    _finish(folder, wanted)
    say(f"{name} is installed ({time.monotonic() - begun:.0f} s).")


def _started_from(folder: Path) -> str | None:
    """Return the hash of the lock that a half-made environment was begun with."""
    try:
        return (folder / f"{MARKER}.from").read_text(encoding="utf-8")
    except OSError:
        return None


def _drop_half_installed(folder: Path) -> None:
    """Remove the records of packages that a killed pip has not finished: INSTALLER is among the last files that it writes."""
    for record in folder.glob("lib/python*/site-packages/*.dist-info"):
        if not (record / "INSTALLER").is_file() or not (record / "RECORD").is_file():
            shutil.rmtree(record)


class _Progress:
    """Says from time to time how far pip is."""

    def __init__(self, name: str, count: int, say: Say) -> None:
        self._name, self._count, self._say = name, count, say
        self._seen = 0
        self._said = time.monotonic()

    def line(self, line: str) -> None:
        found = re.match(r"(?:Collecting|Requirement already satisfied:|Processing) (\S+)", line)
        self._seen += found is not None
        if line.startswith("Installing collected packages"):
            self._say(f"{self._name}: installing what was downloaded.")
        elif found and time.monotonic() - self._said >= SAY_EVERY_S:
            self._said = time.monotonic()
            self._say(f"{self._name}: {self._seen} of {self._count} packages, {found[1].partition('==')[0]}.")


class _Built:
    """Says from time to time how far a build is, by what makefiles (`[ 45%] …`) and ninja (`[12/206] …`) print."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._first: tuple[float, float] | None = None
        self._said = time.monotonic()

    def line(self, line: str) -> None:
        found = re.match(r"\[ *(\d+)(?:%|/(\d+))\] ", line)
        if found is None:
            return
        share, now = int(found[1]) / int(found[2] or 100), time.monotonic()
        # A build that goes on where another was broken off does the first of it in no time.
        begun, at = self._first = self._first or (now, share)
        if now - self._said >= SAY_BUILT_EVERY_S and share > at:
            self._said = now
            left_s = (now - begun) * (1 - share) / (share - at)
            self._say(f"{share:.0%} is built; about {max(1, round(left_s / 60))} min left.")


def _run(
    command: Sequence[str | Path],
    log: Path,
    what: str,
    *,
    hear: Say = lambda _: None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Run a command with its output in a log, and end it and all that it started with this block."""
    if shutil.which(command[0]) is None:
        raise EngineError(f"{what} can't be run: there is no {Path(command[0]).name} here; install it.")
    with log.open("a", encoding="utf-8") as record:
        record.write(f"$ {shlex.join(map(str, command))}\n")
        process = subprocess.Popen(
            [sys.executable, "-c", _WATCH, *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | (environment or {}),
            cwd=cwd,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        lines = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                record.write(line)
                record.flush()
                lines.append(line)
                hear(line.strip())
            code = process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
    if code == 0:
        return
    words = "".join(lines[-200:])
    if NO_DISK.search(words):
        raise _full(what)
    if code == -signal.SIGKILL:
        raise NotEnoughError(f"{what} was killed (SIGKILL), most likely because memory ran out; the log is {log}.")
    last = _telling(words) or f"exit code {code}"
    raise EngineError(f"{what} failed: {last.rstrip('.')}; the log is {log}.")


def _full(what: str) -> NotEnoughError:
    return NotEnoughError(
        f"{what} found the disk of {home()} full; free some space, or set QUICKSILVER_HOME to a folder on another disk."
    )


def _telling(words: str) -> str:
    """Return the last line that says what went wrong: one that begins with an error's name, else the last with letters."""
    lines = [line.strip() for line in words.splitlines() if re.search(r"[A-Za-z]{2}", line)]
    errors = [line for line in lines if re.match(r"(?:ERROR|error|fatal|CMake Error)\b", line)]
    return re.sub(r"^(?:ERROR|error): ", "", (errors or lines or [""])[-1])


def _build(name: str, folder: Path, native: Callable[[NativeBuild], None], say: Say) -> None:
    """Have the engine build its server; it takes its place in one step, when it is whole."""
    wanted = _hash(lock(name))
    there = _read(folder / "native" / MARKER)
    if there is not None and there.lock_sha256 == wanted and there.instructions == instructions():
        return
    work, target = folder / "native.work", folder / "native.part"
    work.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    begun = time.monotonic()
    native(NativeBuild(python=_interpreter(folder), work=work, target=target, log=_log(name), say=say))
    if not any(target.iterdir()):
        raise EngineError(f"The native build of {name} left no files.")
    _finish(target, wanted, instructions())
    shutil.rmtree(folder / "native", ignore_errors=True)
    target.rename(folder / "native")
    shutil.rmtree(work, ignore_errors=True)
    say(f"The native build of {name} is ready ({(time.monotonic() - begun) / 60:.1f} min).")
