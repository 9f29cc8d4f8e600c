"""What an artefact's files and settings mean to OpenVINO."""

from __future__ import annotations

import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quicksilver.errors import NotEnoughError, said
from quicksilver.hardware import available_memory, detect
from quicksilver.nouns.settings import Settings
from quicksilver.nouns.speculation import FILE, SpeculationTable

log = logging.getLogger(__name__)

SHARE = 0.5
"""Of the memory that is free once the model is loaded, for the KV cache: steps and other programs need some, too."""


def check_room(artifact: Path, runtime_mb: float) -> None:
    """Raise NotEnoughError where not even the weights fit: they are laid out for the CPU in memory of their own.

    `runtime_mb` is what the server takes besides. The KV cache takes at most half of what is left then (`cache_bytes`).
    """
    weights_mb = sum(path.stat().st_size for path in artifact.rglob("*.bin")) / 1e6
    free_mb = available_memory() / 1e6
    if weights_mb + runtime_mb > free_mb:
        raise NotEnoughError(
            f"Serving needs about {weights_mb + runtime_mb:,.0f} MB ({weights_mb:,.0f} of weights, and no KV cache yet) and "
            f"{free_mb:,.0f} MB of memory are free; round the weights to fewer bits, or free some."
        )


def eos_of(artifact: Path) -> list[int]:
    """Return the ids that end an answer, as generation_config.json or else config.json says."""
    for name in ("generation_config.json", "config.json"):
        path = artifact / name
        if path.is_file() and (value := json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")) is not None:
            return [value] if isinstance(value, int) else list(value)
    return []


def context_of(artifact: Path) -> int | None:
    """Return the tokens of the model's context, as config.json says; None if it doesn't."""
    path = artifact / "config.json"
    found = json.loads(path.read_text(encoding="utf-8")).get("max_position_embeddings") if path.is_file() else None
    return found if isinstance(found, int) else None


def cache_bytes(wanted_gb: float, most: int | None = None) -> int:
    """Return the bytes that a KV cache may take: those wanted, or with 0 `most` of them, as far as the machine has room.

    What the system has free now is all that counts: memory that is promised twice ends in a killed process.
    """
    room = int(SHARE * available_memory())
    wanted = int(wanted_gb * 1e9) if wanted_gb else most
    if wanted is None or wanted <= room:
        return room if wanted is None else wanted
    if wanted_gb:
        log.warning(
            "The KV cache gets %.1f GB and not %g: this machine has no more room for it.", room / 1e9, wanted_gb
        )
    return room


def properties_of(settings: Settings) -> dict[str, Any]:
    """Return the properties that a graph is compiled with."""
    properties: dict[str, Any] = dict(settings.properties)
    if settings.threads:
        properties["INFERENCE_NUM_THREADS"] = settings.threads
    if settings.activation_group_size is not None:
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = settings.activation_group_size
    if settings.kv_precision != "default":
        properties["KV_CACHE_PRECISION"] = settings.kv_precision
    return properties


def conditions(settings: Settings) -> dict[str, Any]:
    """Return what a measured time holds under: machine, engine and threads, as a SpeculationTable names them."""
    machine = detect()
    return {
        "machine": f"{machine.cpu}, {machine.cores} cores, {', '.join(machine.isa)}",
        "engine": f"OpenVINO {version('openvino')}",
        "threads": settings.threads or machine.cores,
    }


def speculation_table(artifact: Path, settings: Settings) -> SpeculationTable | None:
    """Return an artefact's table if it holds here; one that doesn't, or can't be read, is logged and left."""
    if settings.speculation is None:
        return None
    try:
        table = SpeculationTable.read(artifact)
    except ValueError as error:
        log.warning("%s can't be read and isn't used: %s", FILE, said(error))
        return None
    if table is None:
        return None
    for name, here in conditions(settings).items():
        if (there := getattr(table, name)) != here:
            log.warning("%s was measured with %s %r, which is %r here, and isn't used", FILE, name, there, here)
            return None
    return table
