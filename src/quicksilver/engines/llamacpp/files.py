"""A folder that llama.cpp serves: model.gguf, beside the tokenizer and config.json as a Hugging Face directory has them."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from quicksilver.engines.llamacpp.arguments import DRAFT, MODEL
from quicksilver.errors import BadInputError, IllegalRecipeError
from quicksilver.nouns.artifact import MANIFEST
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.technique import Step, Technique
from quicksilver.sources import gguf
from quicksilver.sources.directory import model_facts
from quicksilver.sources.links import link_all

CARRIED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def facts(folder: Path) -> ModelFacts:
    """Return the shape of a folder's model. Raises BadInputError if there is none, or if its GGUF is cut off or damaged."""
    config = folder / "config.json"
    if not (folder / MODEL).is_file() or not config.is_file():
        raise BadInputError(
            f"{folder} has no {MODEL} with a config.json beside it: it is no artefact of the engine llamacpp."
        )
    opened = gguf.Gguf(folder / MODEL)
    found = model_facts(json.loads(config.read_text(encoding="utf-8")), str(folder), {}, instruct=False)
    return found.model_copy(update={"parameters": opened.parameters})


def size(folder: Path) -> int:
    """Return the bytes of a folder's weights, its draft's with them."""
    return sum(file.stat().st_size for file in (folder / MODEL, folder / DRAFT / MODEL) if file.is_file())


def export(step: Step, technique: Technique) -> None:
    """Put the model into a folder as it is: a GGUF byte for byte, a Hugging Face directory converted."""
    precision = technique.model_dump().get("precision", "fp16")
    if step.source.is_file():
        if technique.model_fields_set & {"precision"} and precision != "fp16":
            raise IllegalRecipeError(
                f"The model comes as a GGUF and is served as it comes: as-is can't make it {precision}."
            )
        # A copy: the file is the user's own, and what is stored must neither change with it nor be locked with it.
        shutil.copyfile(step.source, step.target / MODEL)
        gguf.describe(step.source, step.target)
        return
    from quicksilver.engines.llamacpp import convert

    convert.convert(step.source, step.target / MODEL, precision)
    for name in CARRIED_FILES:
        if (step.source / name).exists():
            shutil.copyfile(step.source / name, step.target / name)


def quantize(step: Step, kind: str, *, calibrated: bool = False) -> None:
    """Round a folder's weights to a type of llama.cpp's, by the importance of their inputs if it is `calibrated`."""
    from quicksilver.engines.llamacpp import imatrix
    from quicksilver.engines.llamacpp import quantize as rounding

    link_all(step.source, step.target, but=(MANIFEST, MODEL))
    with tempfile.TemporaryDirectory() as scratch:
        importance = Path(scratch) / "importance.npz" if calibrated else None
        if importance is not None:
            imatrix.measure(step.source / MODEL, importance, step.calibration, step.say)
        rounding.quantize(step.source / MODEL, step.target / MODEL, kind, importance=importance, say=step.say)


def add_draft(step: Step, technique: Technique) -> None:
    """Convert a draft's Hugging Face directory into a folder beside the model."""
    from quicksilver.engines.llamacpp import convert, quantize

    fields: dict[str, Any] = technique.model_dump()
    source = Path(fields["model"]).expanduser().absolute()
    link_all(step.source, step.target, but=(MANIFEST,))
    folder = step.target / DRAFT
    folder.mkdir()
    if fields["precision"] == "fp16":
        convert.convert(source, folder / MODEL, "fp16")
        return
    convert.convert(source, folder / "fp16.gguf", "fp16")
    quantize.quantize(folder / "fp16.gguf", folder / MODEL, "q8_0", say=step.say)
    (folder / "fp16.gguf").unlink()
