"""The vLLM server of an artefact: the arguments that our own engine starts it with, and which settings they leave out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quicksilver.nouns.settings import Settings

Launch = Callable[[Settings], tuple[list[str], Mapping[str, str]]]
"""Makes vLLM's arguments and environment of settings."""


@dataclass(frozen=True, slots=True)
class Server:
    """How a vLLM server is started."""

    options: dict[str, Any]
    environment: dict[str, str]


def launch(settings: Settings, model: str, name: str) -> tuple[list[str], dict[str, str]]:
    """Make vLLM's arguments and environment of settings: a seam until the engine brings its own."""
    words = ["--model", model, "--served-model-name", name]
    words += ["--max-num-seqs", str(settings.max_streams), "--max-num-batched-tokens", str(settings.max_batched_tokens)]
    words.append(f"--{'' if settings.prefix_caching else 'no-'}enable-prefix-caching")
    guessing = settings.speculation
    if guessing is not None:
        how: dict[str, Any] = {"num_speculative_tokens": guessing.tokens}
        if guessing.draft:
            how["model"] = f"{model}/{guessing.draft}"
        else:
            how |= {"method": "ngram", "prompt_lookup_max": guessing.max_ngram}
        words += ["--speculative-config", json.dumps(how)]
    for key, value in settings.properties.items():
        words += [f"--{'' if value else 'no-'}{key}"] if isinstance(value, bool) else [f"--{key}={value}"]
    return words, {"OMP_NUM_THREADS": str(settings.threads)} if settings.threads else {}


def unsaid(settings: Settings, made: Launch) -> list[str]:
    """Say which settings leave no trace in what is made of them: they are tried one by one at their defaults.

    So a setting that an engine learns to say one day is no longer listed, without an edit here.
    """
    whole = made(settings)
    plain = Settings()
    notes = []
    for field in Settings.model_fields:
        value, default = getattr(settings, field), getattr(plain, field)
        if value == default or field in ("properties", "speculation"):
            continue
        if made(settings.model_copy(update={field: default})) == whole:
            notes.append(f"The setting {field}={value} is not carried over: vLLM has no argument for it.")
    for key, value in settings.properties.items():
        fewer = {name: one for name, one in settings.properties.items() if name != key}
        if made(settings.model_copy(update={"properties": fewer})) == whole:
            notes.append(f"The property {key}={value} is not carried over: vLLM has no argument for it.")
    guessing = settings.speculation
    if guessing is not None:
        if made(settings.model_copy(update={"speculation": None})) == whole:
            notes.append(f"Speculation ({guessing.kind}) is not carried over: vLLM has no argument for it.")
        elif guessing.adapts:
            notes.append(
                f"The number of guessed tokens follows the load under Quicksilver's own engines; vLLM always guesses {guessing.tokens}."
            )
    return notes
