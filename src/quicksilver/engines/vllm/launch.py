"""What vLLM's server is started with: its arguments and environment, from an artefact's settings. A pure function."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quicksilver.engines.vllm.files import Weights
from quicksilver.errors import BadInputError
from quicksilver.nouns.settings import Settings, Speculation

Device = Literal["cpu", "cuda"]

MODULE = "vllm.entrypoints.openai.api_server"
"""Works for every distribution; the `vllm` command only for the one that is named vllm."""
KV_TYPES = {
    "f16": "float16",
    "bf16": "bfloat16",
    "fp8": "fp8",
    "u8": "int8_per_token_head",
    "u4": "int4_per_token_head",
}
"""Our names of a cached key's precision, and vLLM's."""
KV_BITS = {"u8": 8.5, "fp8": 8.0, "u4": 4.5}
METHODS = {"prompt_lookup": "ngram", "draft": "draft_model", "eagle": "eagle", "eagle3": "eagle3"}
"""Our kinds of speculation, and vLLM's methods."""
OURS = frozenset(
    {"model", "host", "port", "uds", "served_model_name", "api_key", "ssl_keyfile", "ssl_certfile", "root_path"}
)
"""Arguments that say where it listens and what it serves: they aren't the recipe's."""
THROUGH = {
    "max_num_seqs": "max_streams",
    "max_num_batched_tokens": "max_batched_tokens",
    "kv_cache_dtype": "kv_precision",
    "kv_cache_memory_bytes": "kv_cache_gb",
    "enable_prefix_caching": "prefix_caching",
    "speculative_config": "speculation",
}
"""Arguments that a setting of ours is compiled to."""
MOST_KV_GB = 2.0
"""Of the KV cache on a CPU unless the settings say more: vLLM fills it with zeros at its start, so all of it is taken."""
DRAIN_S = 8
"""Seconds that answers under way have when it is told to end; it is killed two seconds later (process.GRACE_S)."""
ENVIRONMENT = re.compile(r"VLLM_[A-Z0-9_]+")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it runs, as far as the arguments depend on it."""

    device: Device
    cores: int
    bf16: bool = True
    """Whether the CPU multiplies bfloat16."""
    available_gb: float = 0.0
    """Memory that a new process could take."""
    openmp: Path | None = None
    """Intel's OpenMP library, which vLLM on a CPU asks for."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A command line after the interpreter, and what is added to the environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def options(self) -> dict[str, str | None]:
        """The arguments by their names; None for a flag."""
        found: dict[str, str | None] = {}
        words = self.arguments[self.arguments.index(MODULE) + 1 :]
        for n, word in enumerate(words):
            if word.startswith("--"):
                value = words[n + 1] if n + 1 < len(words) else "--"
                found[word] = None if value.startswith("--") else value
        return found


def compile_launch(
    artifact: Path,
    settings: Settings,
    machine: Machine,
    weights: Weights,
    *,
    port: int,
    cache: Path,
    host: str = "127.0.0.1",
) -> Launch:
    """Return what serves an artefact at a place; what it compiles is kept in the folder `cache`.

    `Settings.properties` are arguments by vLLM's own names, with underscores (`tensor_parallel_size`, `quantization`,
    `gpu_memory_utilization`, `max_model_len`, `compilation_config` …), or its environment variables (`VLLM_…`). Raises
    BadInputError for what vLLM can't do.
    """
    properties = dict(settings.properties)
    variables = {key: str(properties.pop(key)) for key in list(properties) if ENVIRONMENT.fullmatch(key)}
    for key in properties:
        if key in OURS:
            raise BadInputError(
                f"The property {key} is not a recipe's to set: it says where vLLM listens or what it serves."
            )
        if key in THROUGH:
            raise BadInputError(f"The property {key} stands for the setting {THROUGH[key]}: set that instead.")
    if settings.max_batched_tokens < settings.max_streams:
        raise BadInputError(
            f"A forward pass of {settings.max_batched_tokens} tokens has no room for one of each of {settings.max_streams} streams; "
            "raise max_batched_tokens or lower max_streams."
        )
    if settings.activation_group_size is not None:
        raise BadInputError("vLLM has no setting for the group over which activations are rounded: leave it out.")
    arguments: dict[str, Any] = {
        "model": str(artifact),
        "served-model-name": weights.name,
        "host": host,
        "port": port,
        "dtype": _dtype(machine, weights),
        "max-num-seqs": settings.max_streams,
        "max-num-batched-tokens": settings.max_batched_tokens,
        "enable-prefix-caching": settings.prefix_caching,
        # Sampling is what the request says, as with every engine here, and not what the model's own file would add to it.
        "generation-config": "vllm",
        "uvicorn-log-level": "warning",
        # Answers under way are finished when it is told to end; without, they are broken off.
        "shutdown-timeout": DRAIN_S,
    }
    if machine.device == "cpu":
        # The graph that 0.32 compiles for a CPU gave SmolLM2 other answers than transformers, the uncompiled model the same.
        arguments["enforce-eager"] = True
    if settings.kv_precision != "default":
        arguments["kv-cache-dtype"] = _kv_type(settings.kv_precision)
    if settings.speculation is not None:
        arguments["speculative-config"] = json.dumps(speculative_config(artifact, settings.speculation), sort_keys=True)
    if settings.kv_cache_gb:
        arguments["kv-cache-memory-bytes"] = round(settings.kv_cache_gb * 1e9)
    elif machine.device == "cpu":
        gb = kv_cache_gb(settings, weights, machine.available_gb - weights.gb)
        arguments["kv-cache-memory-bytes"] = round(gb * 1e9)
    arguments |= {key.replace("_", "-"): value for key, value in properties.items()}
    environment = _environment(settings, machine, cache) | variables
    return Launch(("-m", MODULE, *_words(arguments)), environment)


def speculative_config(artifact: Path, speculation: Speculation) -> dict[str, Any]:
    """Return vLLM's configuration of how tokens are guessed ahead."""
    config: dict[str, Any] = {
        "method": METHODS[speculation.kind],
        "num_speculative_tokens": speculation.tokens,
    }
    if speculation.kind == "prompt_lookup":
        return config | {"prompt_lookup_min": 1, "prompt_lookup_max": speculation.max_ngram}
    if speculation.draft is None:
        raise BadInputError(f"Speculation of the kind {speculation.kind} needs the folder of its draft.")
    return config | {"model": str(artifact / speculation.draft)}


def kv_cache_gb(settings: Settings, weights: Weights, free_gb: float) -> float:
    """Return the size of a KV cache for a CPU, GB: what the streams can use, within 2 GB and half of what is free.

    It always holds one sequence of the longest context, without which vLLM doesn't start.
    """
    longest = int(settings.properties.get("max_model_len", weights.facts.max_positions))
    bits = KV_BITS.get(settings.kv_precision, 32.0 if weights.dtype == "float32" else 16.0)
    each = weights.facts.kv_elements_per_token * bits / 8 / 1e9
    # A little more than one: blocks are whole, and speculation looks ahead of the end.
    least = 1.1 * longest * each
    return max(least, min(settings.max_streams * longest * each, MOST_KV_GB, free_gb / 2))


def _kv_type(precision: str) -> str:
    if precision not in KV_TYPES:
        raise BadInputError(f"vLLM keeps no keys and values in {precision}; it takes {', '.join(KV_TYPES)} or default.")
    return KV_TYPES[precision]


def _dtype(machine: Machine, weights: Weights) -> str:
    """Return the type that it computes in: the model's own, but for float16 on a CPU that multiplies bfloat16 only."""
    return "bfloat16" if machine.device == "cpu" and machine.bf16 and weights.dtype == "float16" else weights.dtype


def _environment(settings: Settings, machine: Machine, cache: Path) -> dict[str, str]:
    found = {
        "VLLM_CACHE_ROOT": str(cache),
        "VLLM_CONFIG_ROOT": str(cache / "config"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # A file of the user's in this folder can't stand in for a library.
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": "",
    }
    if not settings.compiled_cache:
        found["VLLM_DISABLE_COMPILE_CACHE"] = "1"
    if machine.device == "cpu":
        # By itself it keeps one core for its server, and of two cores computes on one.
        found |= {
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(settings.threads or machine.cores),
            # What 0.32 compiles ahead of time for a CPU it can't load again ("no attribute 'finalize_loading'") and compiles
            # anew at each start; inductor's own cache is found.
            "VLLM_USE_AOT_COMPILE": "0",
        }
        if machine.openmp is not None:
            found["LD_PRELOAD"] = str(machine.openmp)
    return found


def _words(arguments: Mapping[str, Any]) -> list[str]:
    """Return arguments as words: a yes is a flag, and a no the flag that denies it."""
    words: list[str] = []
    for name, value in arguments.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", str(value)]
    return words
