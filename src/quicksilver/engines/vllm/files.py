"""What vLLM serves: a Hugging Face directory, as it comes or with a draft beside it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quicksilver.errors import BadInputError
from quicksilver.nouns.artifact import MANIFEST, RECIPE
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.technique import Step
from quicksilver.sources.directory import inspect
from quicksilver.sources.gguf_grid import FILE as GRID_FILE
from quicksilver.sources.home import home
from quicksilver.sources.links import link, link_all

CONFIG = "config.json"
HALF = {"float16", "bfloat16"}
TYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True, slots=True)
class Weights:
    """What a folder holds, as far as it matters for serving it."""

    name: str
    """Of the model, in the API."""
    facts: ModelFacts
    gb: float
    """Of all that is loaded, a draft included."""
    dtype: str
    """The type that config.json names: float16, bfloat16 or float32."""


def describe(folder: Path) -> Weights:
    """Return what an artefact's folder, or a Hugging Face directory, holds. Raises BadInputError if it is neither."""
    found = inspect(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return Weights(_name(folder), found.facts, size / 1e9, dtype_of(config))


def dtype_of(config: dict[str, Any]) -> str:
    """Return the type of the weights that a config.json names; it was called torch_dtype before transformers 5."""
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _name(folder: Path) -> str:
    recipe = folder / RECIPE
    try:
        return (
            str(json.loads(recipe.read_text(encoding="utf-8"))["name"]) if recipe.is_file() else folder.resolve().name
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"{folder} is not an artefact that can be read: its {RECIPE} is damaged.") from error


def take(step: Step, precision: str) -> None:
    """Fill a step's target with the model as it is, to be computed in a precision: config.json says which.

    Sixteen bits stay the ones that the model has: a model trained in bfloat16 may overflow in float16.
    """
    copy_model(step.source, step.target)
    path = step.target / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    own = dtype_of(config)
    wanted = own if precision == "fp16" and own in HALF else TYPES[precision]
    if wanted != own:
        path.unlink()  # another name of a file that isn't ours to change
        config.pop("torch_dtype", None)
        path.write_text(json.dumps(config | {"dtype": wanted}, indent=2) + "\n", encoding="utf-8")


def copy_model(source: Path, target: Path) -> None:
    """Give a folder the files of a model: by another name if they are the store's, or else, since the user may change them, a copy."""
    found = inspect(source)
    stored = source.resolve().is_relative_to(home().resolve())
    index = source / "model.safetensors.index.json"
    for path in (*found.weights, *found.small, *([index] if index.is_file() else [])):
        if stored:
            link(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def add_head(step: Step, head: Path, folder: str) -> None:
    """Put an EAGLE head beside the target's weights: its configuration and safetensors."""
    link_all(step.source, step.target, but=(MANIFEST, GRID_FILE))
    (step.target / folder).mkdir()
    for path in (head / CONFIG, *sorted(head.glob("*.safetensors"))):
        shutil.copyfile(path, step.target / folder / path.name)


def add_draft(step: Step, draft: Path, folder: str) -> None:
    """Put a draft model, as it is, beside the target's weights."""
    link_all(step.source, step.target, but=(MANIFEST, GRID_FILE))
    (step.target / folder).mkdir()
    copy_model(draft, step.target / folder)
