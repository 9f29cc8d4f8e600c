"""The vLLM server of an artefact: what our own engine would start it with elsewhere, and which settings that leaves out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quicksilver.deploy import _options
from quicksilver.errors import BadInputError
from quicksilver.nouns.settings import Settings

# Stand for folders that are elsewhere on the machine that will serve: nothing of ours is called so.
WEIGHTS, CACHE = Path("/quicksilver-weights"), Path("/quicksilver-cache")
WHERE = ("model", "host", "port")
"""Arguments that each target says in its own way."""
QUIET = "uvicorn-log-level"
"""What our engine sets for its own log, and the recipe doesn't."""
OURS = frozenset({"PYTHONPATH", "PYTHONSAFEPATH", "TOKENIZERS_PARALLELISM"})
"""Variables that guard a process of ours."""
OFFLINE = "HF_HUB_OFFLINE"
THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class Server:
    """How a vLLM server is started, but for where its weights are and where it listens."""

    options: Mapping[str, Any]
    environment: Mapping[str, str]


def server(artifact: Path, settings: Settings, *, gpu: bool, model: str, offline: bool) -> Server:
    """Return how a server of an artefact is started on a machine with GPUs, or one without.

    `model` is what it is told to load; `offline` says that this is a folder. Raises BadInputError for what vLLM can't do.
    """
    from quicksilver.engines.vllm import files
    from quicksilver.engines.vllm.launch import MODULE, Machine, compile_launch

    # The machine isn't known. A CPU's cores matter only where threads aren't set, and its memory bounds a cache that is small in any case.
    machine = Machine("cuda" if gpu else "cpu", cores=0, available_gb=math.inf)
    made = compile_launch(WEIGHTS, settings, machine, files.describe(artifact), port=0, cache=CACHE)
    words = made.arguments[made.arguments.index(MODULE) + 1 :]
    left_out = (*WHERE, *(() if QUIET.replace("-", "_") in settings.properties else (QUIET,)))
    options = {name: _moved(value, model) for name, value in _options.read(words).items() if name not in left_out}
    dropped = {*OURS, *(() if offline else (OFFLINE,)), *(() if settings.threads else (THREADS,))}
    environment = {
        name: value
        for name, value in made.environment.items()
        if name not in dropped and not value.startswith(str(CACHE))
    }
    return Server(options, environment)


def unsaid(settings: Settings, made: Callable[[Settings], Server]) -> list[str]:
    """Say which settings leave no trace in what is made of them: they are tried one by one at their defaults.

    So a setting that an engine learns to say one day is no longer listed, without an edit here.
    """
    plain = Settings()
    without: dict[str, Settings] = {}
    for field in Settings.model_fields:
        value, default = getattr(settings, field), getattr(plain, field)
        if value != default and field not in ("properties", "speculation"):
            without[f"{field}={value}"] = settings.model_copy(update={field: default})
    whole = made(settings)
    for key, value in settings.properties.items():
        if key.replace("_", "-") in whole.options:
            continue  # the engine may set the same by itself
        fewer = {name: one for name, one in settings.properties.items() if name != key}
        without[f"{key}={value}"] = settings.model_copy(update={"properties": fewer})
    notes = [f"{said} is not carried over: it changes none of vLLM's arguments here." for said in without
             if _made(made, without[said]) == whole]  # fmt: skip
    guessing = settings.speculation
    if guessing is not None and guessing.adapts:
        notes.append(
            f"How many tokens are guessed follows the load under Quicksilver's own engines; vLLM always guesses {guessing.tokens}."
        )
    return notes


def _made(made: Callable[[Settings], Server], settings: Settings) -> Server | None:
    try:
        return made(settings)
    except BadInputError:
        return None  # without it the others can't be: it counts


def _moved(value: Any, model: str) -> Any:
    """Return a value in which the stand-in for the weights' folder is what the server is told to load."""
    if isinstance(value, dict):
        return {key: _moved(item, model) for key, item in value.items()}
    return (
        model + value.removeprefix(str(WEIGHTS)) if isinstance(value, str) and value.startswith(str(WEIGHTS)) else value
    )
