"""What an artefact's files and settings mean to OpenVINO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quicksilver.hardware import detect
from quicksilver.nouns.artifact import MANIFEST
from quicksilver.nouns.base import content_hash
from quicksilver.nouns.engine import Settings
from quicksilver.sources.home import home, writable


def eos_of(artifact: Path) -> list[int]:
    """Return the ids that end an answer, as generation_config.json or else config.json says."""
    for name in ("generation_config.json", "config.json"):
        path = artifact / name
        if path.is_file() and (value := json.loads(path.read_text()).get("eos_token_id")) is not None:
            return [value] if isinstance(value, int) else list(value)
    return []


def properties_of(artifact: Path, settings: Settings) -> dict[str, Any]:
    """Return the properties that a graph is compiled with."""
    properties: dict[str, Any] = dict(settings.properties)
    if settings.threads:
        properties["INFERENCE_NUM_THREADS"] = settings.threads
    if settings.activation_group_size is not None:
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = settings.activation_group_size
    if settings.kv_precision != "default":
        properties["KV_CACHE_PRECISION"] = settings.kv_precision
    if settings.compiled_cache:
        properties["CACHE_DIR"] = str(_compiled_folder(artifact))
    return properties


def _compiled_folder(artifact: Path) -> Path:
    """Return where the compiled graph of an artefact is kept: apart from it, since the engine adds files as it likes.

    The engine's own key is the graph, its properties and version; the folder's name adds the instruction set.
    """
    manifest = artifact / MANIFEST
    key = json.loads(manifest.read_text())["key"] if manifest.is_file() else artifact.name
    return writable(home() / "compiled" / f"{key}-{content_hash(detect().isa)}")
