"""The arguments of llama.cpp's server, compiled from Settings. The words are llama-server's own, for both of its builds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quicksilver.errors import BadInputError, unknown
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.settings import Settings, Speculation

MODEL = "model.gguf"
DRAFT = "draft"
UBATCH = 512
"""Tokens in one forward pass at most, llama.cpp's own default: larger ones only take more memory on a CPU."""
NGRAM = 3
"""Tokens that have to match before what followed them is guessed: llama.cpp looks up one length, not the longest."""
STREAMS_PER_CORE = 8
"""Streams that a core decodes at once at most: more gain nothing here, and each takes its share of the cache at the start."""
TOKENS_PER_STREAM = 1024
"""What a stream is given of the KV cache, which llama.cpp takes whole at the start, if nothing is said of its size."""
KV_TYPES = {"default": "f16", "f32": "f32", "f16": "f16", "bf16": "bf16", "u8": "q8_0", "u4": "q4_0"}
KV_BITS = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5}
"""Bits of one cached element, its share of the scales included (ggml's block sizes)."""
PROPERTIES = {
    "batch-size": "tokens that are taken up in one step",
    "build": "native or prebuilt; what was built for this CPU, if it is there",
    "cache-reuse": "tokens of a piece in the middle of a prompt that may be reused",
    "cache-type-k": "type of cached keys",
    "cache-type-v": "type of cached values",
    "ctx-size": "tokens of KV cache, which all streams share",
    "flash-attn": "on, off or auto",
    "load-mode": "auto, none, mmap, mlock or mmap+mlock",
    "parallel": "streams that are decoded at once; more wait for their turn",
    "numa": "distribute, isolate or numactl",
    "poll": "0 to 100: how busily threads wait for work",
    "prio": "0 to 3: priority of the threads",
    "repack": "lay weights out for the CPU's instructions when they are loaded",
    "spec-ngram-simple-size-n": "tokens that have to match",
    "threads-batch": "threads for prompts",
    "threads-http": "threads that take requests",
    "ubatch-size": "tokens in one forward pass",
    "warmup": "run an empty pass at the start",
}
"""What Settings.properties may name: arguments of the server that nothing else sets, or that are set against the rest."""


def slots(settings: Settings, cores: int) -> int:
    """Return how many streams are decoded at once: `max_streams`, as far as the cores are enough for them."""
    if "parallel" in settings.properties:
        return _whole(settings.properties["parallel"], "parallel")
    return min(settings.max_streams, STREAMS_PER_CORE * cores)


def context_tokens(settings: Settings, facts: ModelFacts, cores: int, free_bytes: int | None = None) -> int:
    """Return the tokens of KV cache that all streams share.

    What `kv_cache_gb` holds; else TOKENS_PER_STREAM for each, at least one whole context, and no more than half of `free_bytes`.
    """
    if "ctx-size" in settings.properties:
        return _whole(settings.properties["ctx-size"], "ctx-size")
    per_token = kv_bytes(settings, facts)
    streams = slots(settings, cores)
    most = streams * facts.max_positions
    if settings.kv_cache_gb:
        wanted = int(settings.kv_cache_gb * 1e9 / per_token)
    else:
        wanted = max(facts.max_positions, streams * TOKENS_PER_STREAM)
        if free_bytes is not None:
            wanted = min(wanted, int(free_bytes / 2 / per_token))
    return max(256, min(wanted, most) // 256 * 256)


def kv_bytes(settings: Settings, facts: ModelFacts) -> float:
    """Return the bytes of KV cache that one token takes."""
    types = cache_types(settings)
    return facts.kv_elements_per_token * sum(KV_BITS[kind] for kind in types) / 2 / 8


def cache_types(settings: Settings) -> tuple[str, str]:
    """Return ggml's types of the cached keys and values. Raises BadInputError for one that it doesn't have."""
    if settings.kv_precision not in KV_TYPES:
        raise unknown("precision of llama.cpp's KV cache", settings.kv_precision, KV_TYPES)
    usual = KV_TYPES[settings.kv_precision]
    found = [str(settings.properties.get(f"cache-type-{which}", usual)) for which in "kv"]
    for kind in found:
        if kind not in KV_BITS:
            raise unknown("type of llama.cpp's KV cache", kind, KV_BITS)
    return found[0], found[1]


def compile_arguments(
    folder: Path,
    settings: Settings,
    facts: ModelFacts,
    *,
    name: str,
    host: str,
    port: int,
    cores: int,
    free_bytes: int | None = None,
) -> list[str]:
    """Return the arguments with which llama.cpp's server serves a folder's model.gguf under a name.

    `cores` is what `threads` 0 stands for. Raises BadInputError for a property that isn't known.
    """
    for key in settings.properties:
        if key not in PROPERTIES:
            raise unknown("property of the engine llamacpp", key, PROPERTIES)
    threads = settings.threads or cores
    batch = max(settings.max_batched_tokens, settings.max_streams)
    keys, values = cache_types(settings)
    found: dict[str, str | int | float | bool] = {
        "model": str(folder / MODEL),
        "alias": name,
        "host": host,
        "port": port,
        "threads": threads,
        "threads-batch": threads,
        "parallel": slots(settings, cores),
        "ctx-size": context_tokens(settings, facts, cores, free_bytes),
        "kv-unified": True,
        "batch-size": batch,
        "ubatch-size": min(UBATCH, settings.max_batched_tokens),
        "cache-type-k": keys,
        "cache-type-v": values,
        "flash-attn": "on",
        # Of prompts that begin alike the work is shared only where a recipe says so: it would hide prefill in a benchmark.
        "cache-prompt": settings.prefix_caching,
        "cache-ram": 0,
        "fit": "off",
        "metrics": True,
        "ui": False,
        # As the OpenAI API has it: what a request doesn't say isn't filtered.
        "temp": 1,
        "top-k": 0,
        "top-p": 1,
        "min-p": 0,
    }
    found |= _speculation(settings.speculation, folder, threads)
    found |= {key: value for key, value in settings.properties.items() if key != "build"}
    return [word for key, value in found.items() for word in _words(key, value)]


def _speculation(speculation: Speculation | None, folder: Path, threads: int) -> Mapping[str, str | int]:
    if speculation is None:
        return {}
    if speculation.kind == "prompt_lookup":
        # Fewer than match are never guessed.
        match = min(speculation.max_ngram, speculation.tokens, NGRAM)
        return {
            "spec-type": "ngram-simple",
            "spec-ngram-simple-size-n": match,
            "spec-ngram-simple-size-m": speculation.tokens,
        }
    return {
        "spec-type": "draft-simple",
        "spec-draft-model": str(folder / (speculation.draft or DRAFT) / MODEL),
        "spec-draft-n-max": speculation.tokens,
        "spec-draft-threads": threads,
        "spec-draft-threads-batch": threads,
    }


def _words(key: str, value: str | float | bool) -> list[str]:
    """Return an argument as llama-server reads it: a switch has a form for no."""
    if value is True:
        return [f"--{key}"]
    if value is False:
        return [f"--no-{key}"]
    return [f"--{key}", f"{value:g}" if isinstance(value, float) else str(value)]


def _whole(value: object, key: str) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1:
        raise BadInputError(f"The property {key} is a positive whole number, not {value!r}.")
    return number
