"""What keeps an engine from working on this machine, and how that is mended. Each check is a function that returns findings."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Literal

from quicksilver import engines, environments
from quicksilver.errors import EngineError
from quicksilver.hardware import available_memory, instructions, lacking
from quicksilver.nouns.base import Noun
from quicksilver.nouns.engine import Endpoint, Engine
from quicksilver.nouns.settings import Settings
from quicksilver.sources.home import existing, home

IMPORT_TIMEOUT_S = 180
COMPILERS = ("c++", "g++", "clang++")


class Finding(Noun):
    """One thing that is wrong with an engine."""

    engine: str
    check: str
    kind: Literal["missing", "broken", "limit"]
    """`missing`: it isn't installed; `broken`: it won't work; `limit`: it works, but something of it doesn't."""
    problem: str
    """One sentence."""
    mend: str
    """A command, or one sentence that says what to do."""


def examine(name: str) -> list[Finding]:
    """Return what is wrong with an engine, or an environment that builds use; nothing, if it is sound.

    Raises BadInputError for an unknown name.
    """
    try:
        known = name in engines.names() or name not in environments.names()
        engine = engines.find(name) if known else _packages(name)
    except EngineError as error:
        return [_broken(name, "import", str(error), f"Mend the file of the engine {name}.")]
    if found := lock_file(engine):
        return found
    found = [finding for check in ALWAYS for finding in check(engine)]
    absent = any(finding.check == "installed" for finding in found)
    return found + [finding for check in (TO_INSTALL if absent else INSTALLED) for finding in check(engine)]


def missing(engine: Engine) -> list[Finding]:
    """Say that an engine isn't installed, or only half."""
    name = engine.environment
    add = f"quicksilver engine add {name}"
    if (other := _other_python(engine)) is not None:
        if shutil.which(other) is not None:
            return []
        problem = f"{engine.python_variable} names {other}, which isn't a program."
        return [_missing(engine.name, problem, f"Correct {engine.python_variable}, or unset it.")]
    if name == "default":
        try:
            engine.version()
        except EngineError as error:
            problem, _, mend = str(error).partition("; ")
            mend = mend.removesuffix(" adds it.") or "pip install 'quicksilver[serve]'"
            return [_missing(engine.name, f"{problem.rstrip('.')}.", mend)]
        return []
    there = {environment.name: environment for environment in environments.find()}
    if name not in there:
        what = f"The engine {engine.name}" if engine.name in engines.names() else engine.name
        return [_missing(engine.name, f"{what} isn't installed.", add)]
    if there[name].marker is None:
        return [_missing(engine.name, f"The environment {name} is half made.", add)]
    return []


def other_lock(engine: Engine) -> list[Finding]:
    """Say that the lock file has changed since the environment was made."""
    if engine.environment == "default" or _other_python(engine) is not None:
        return []
    there = next(environment for environment in environments.find() if environment.name == engine.environment)
    if there.current:
        return []
    problem = f"The environment {there.name} was made from another {there.name}.lock than the one that is here now."
    return [_broken(engine.name, "lock", problem, f"quicksilver engine add {there.name}")]


def torchvision(engine: Engine) -> list[Finding]:
    """Say that a torchvision stands beside a torch that it wasn't built for: transformers then fails to import, too."""
    python = _interpreter(engine)
    if engine.environment == "default" and not engine.modules:
        return []
    if not any(found for folder in environments.packages(python) for found in folder.glob("torchvision-*.dist-info")):
        return []
    said = _last_line_of(python, "import torchvision")
    if said is None:
        return []
    problem = f"The torchvision beside its torch was built for another one, and breaks imports: {said.rstrip('.')}."
    return [_broken(engine.name, "torchvision", problem, f"{python} -m pip uninstall --yes torchvision")]


def imports(engine: Engine) -> list[Finding]:
    """Say that a module of the engine can't be imported in its environment."""
    python = _interpreter(engine)
    for module in engine.modules:
        said = _last_line_of(python, f"import {module}")
        if said is not None:
            again = (
                f"Mend the environment of {python}, or unset {engine.python_variable}."
                if _other_python(engine) is not None
                else "pip install --force-reinstall 'quicksilver[serve]'"
                if engine.environment == "default"
                else f"quicksilver engine remove {engine.environment} && quicksilver engine add {engine.environment}"
            )
            problem = f"In its environment {module} can't be imported: {said.rstrip('.')}."
            return [_broken(engine.name, "imports", problem, again)]
    return []


def processor(engine: Engine) -> list[Finding]:
    """Say that this CPU lacks an instruction set that the engine's packages are built for."""
    lacks = lacking(engine.isa)
    if not lacks:
        return []
    problem = f"Its packages are built for {', '.join(lacks)}, which this CPU doesn't have."
    return [_broken(engine.name, "processor", problem, engines.without_instructions(engine))]


def native_build(engine: Engine) -> list[Finding]:
    """Say that a native build was made for another CPU, or from another lock: it isn't used then."""
    there = next((e for e in environments.find() if e.name == engine.environment), None)
    if there is None or there.native is None:
        return []
    lacks = [name for name in there.native.instructions if name not in instructions()]
    if lacks:
        problem = f"Its native build is for a CPU with {', '.join(lacks)}, which this one doesn't have; it isn't used."
    elif there.marker is not None and there.native.lock_sha256 != there.marker.lock_sha256:
        problem = "Its native build is of another version than its environment; it isn't used."
    else:
        return []
    mend = f"quicksilver engine add {there.name} --native"
    return [Finding(engine=engine.name, check="native", kind="limit", problem=problem, mend=mend)]


def compiler(engine: Engine) -> list[Finding]:
    """Say that there is no compiler, or no cmake, for a native build."""
    if not engine.abilities.native:
        return []
    search = os.pathsep.join([str(_folder(engine) / "bin"), os.environ.get("PATH", os.defpath)])
    lacks = [] if any(shutil.which(name, path=search) for name in COMPILERS) else ["C++ compiler"]
    lacks += [] if shutil.which("cmake", path=search) else ["cmake"]
    if not lacks:
        return []
    problem = f"There is no {' and no '.join(lacks)} here, which `engine add {engine.environment} --native` needs."
    mend = "Install your system's packages for them, such as apt install build-essential cmake."
    return [Finding(engine=engine.name, check="compiler", kind="limit", problem=problem, mend=mend)]


def disk(engine: Engine) -> list[Finding]:
    """Say that there is no room on the disk for the environment."""
    if engine.environment == "default":
        return []
    wanted = environments.needs(engine.environment).disk_mb
    place = home() / "envs"
    free = shutil.disk_usage(existing(place)).free / 1e6
    if free >= wanted:
        return []
    problem = f"Its environment takes about {wanted:,.0f} MB of disk, and {place} has {free:,.0f} MB free."
    mend = "Free some space, or set QUICKSILVER_HOME to a folder on another disk."
    return [_broken(engine.name, "disk", problem, mend)]


def memory(engine: Engine) -> list[Finding]:
    """Say that less memory is free than the engine needs to start with a small model."""
    if engine.environment == "default":
        return []
    wanted, free = environments.needs(engine.environment).memory_mb, available_memory() / 1e6
    if free >= wanted:
        return []
    problem = f"It needs about {wanted:,.0f} MB of memory to start, and {free:,.0f} MB are free."
    return [_broken(engine.name, "memory", problem, "End what takes memory here, or use a larger machine.")]


def lock_file(engine: Engine) -> list[Finding]:
    """Say that the engine names an environment that has no lock file."""
    if engine.environment == "default" or engine.environment in environments.names():
        return []
    problem = f"There is no {engine.environment}.lock, from which its environment would be made."
    return [_broken(engine.name, "lock", problem, "Install Quicksilver anew: its package has the lock files.")]


Check = Callable[[Engine], list[Finding]]
ALWAYS: tuple[Check, ...] = (missing, processor, compiler, memory)
TO_INSTALL: tuple[Check, ...] = (disk,)
INSTALLED: tuple[Check, ...] = (other_lock, native_build, torchvision, imports)


def _packages(stack: str) -> Engine:
    """Return what stands for an environment that no engine serves from."""

    class Packages(Engine):
        name: ClassVar[str] = stack
        format: ClassVar[str] = ""
        environment: ClassVar[str] = stack

        def version(self) -> str:
            return str(environments.python(stack, stack))

        def serve(
            self, artifact: Path, settings: Settings, *, port: int = 0, log: Path | None = None
        ) -> AbstractContextManager[Endpoint]:
            raise TypeError(f"{stack} serves nothing.")

    return Packages()


def _other_python(engine: Engine) -> str | None:
    """Return the Python that is used instead of the environment's; None if none is named."""
    return (os.environ.get(engine.python_variable) if engine.python_variable else None) or None


def _interpreter(engine: Engine) -> Path:
    """Return the interpreter of an engine's environment, whatever lock that was made from."""
    if (other := _other_python(engine)) is not None:
        return Path(other)
    if engine.environment == "default":
        return environments.python("default")
    return _folder(engine) / "bin" / "python"


def _folder(engine: Engine) -> Path:
    return home() / "envs" / engine.environment


def _last_line_of(python: Path, code: str) -> str | None:
    """Run code in an environment; return the last line of what it says if it fails, None if it ends well."""
    try:
        ended = subprocess.run(
            [python, "-I", "-c", code],
            capture_output=True,
            check=False,
            timeout=IMPORT_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"it takes longer than {IMPORT_TIMEOUT_S} s"
    except OSError as error:
        return f"{python} can't be run: {(error.strerror or str(error)).lower()}"
    if ended.returncode == 0:
        return None
    lines = [line.strip() for line in ended.stderr.decode(errors="replace").splitlines() if line.strip()]
    if ended.returncode < 0:
        return f"it was ended by signal {-ended.returncode}" + (
            ", as by an instruction that this CPU doesn't have" if ended.returncode == -4 else ""
        )
    return lines[-1] if lines else f"exit code {ended.returncode}"


def _missing(name: str, problem: str, mend: str) -> Finding:
    return Finding(engine=name, check="installed", kind="missing", problem=problem, mend=mend)


def _broken(name: str, check: str, problem: str, mend: str) -> Finding:
    return Finding(engine=name, check=check, kind="broken", problem=problem, mend=mend)
