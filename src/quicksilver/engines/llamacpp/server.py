"""llama.cpp's own server out of the package xllamacpp: `python server.py --model FILE --port N …`, in llama-server's words.

It runs with the Python of the environment llamacpp, which has nothing of ours, and ends by SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from typing import Any

import xllamacpp

NUMBERS = {
    "port": "port",
    "threads": "cpuparams.n_threads",
    "threads-batch": "cpuparams_batch.n_threads",
    "threads-http": "n_threads_http",
    "poll": "cpuparams.poll",
    "parallel": "n_parallel",
    "ctx-size": "n_ctx",
    "batch-size": "n_batch",
    "ubatch-size": "n_ubatch",
    "cache-ram": "cache_ram_mib",
    "cache-reuse": "n_cache_reuse",
    "top-k": "sampling.top_k",
    "spec-ngram-simple-size-n": "speculative.ngram_simple.size_n",
    "spec-ngram-simple-size-m": "speculative.ngram_simple.size_m",
    "spec-draft-n-max": "speculative.draft.n_max",
    "spec-draft-threads": "speculative.draft.cpuparams.n_threads",
    "spec-draft-threads-batch": "speculative.draft.cpuparams_batch.n_threads",
}
REALS = {"temp": "sampling.temp", "top-p": "sampling.top_p", "min-p": "sampling.min_p"}
TEXTS = {"model": "model.path", "spec-draft-model": "speculative.draft.mparams.path"}
SWITCHES = {
    "kv-unified": "kv_unified",
    "cache-prompt": "cache_prompt",
    "warmup": "warmup",
    "metrics": "endpoint_metrics",
    "ui": "ui",
}
OTHERS = (
    "alias", "host", "api-key", "cache-type-k", "cache-type-v", "flash-attn", "fit", "spec-type", "load-mode", "numa", "prio",
)  # fmt: skip


def main() -> int:
    """Serve until SIGTERM, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    for name in NUMBERS:
        parser.add_argument(f"--{name}", type=int)
    for name in REALS:
        parser.add_argument(f"--{name}", type=float)
    for name in (*TEXTS, *OTHERS):
        parser.add_argument(f"--{name}")
    for name in (*SWITCHES, "repack"):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction)
    options = {name.replace("_", "-"): value for name, value in vars(parser.parse_args()).items() if value is not None}
    ended = threading.Event()
    server = xllamacpp.Server(parameters(options))
    # After the server has set its own: they would end what it started, and leave this process waiting.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    del server
    return 0


def parameters(options: dict[str, Any]) -> Any:
    """Return the package's parameters for llama-server's arguments."""
    found = xllamacpp.CommonParams()
    for name, value in options.items():
        place = (NUMBERS | REALS | TEXTS | SWITCHES).get(name)
        if place is not None:
            put(found, place, value)
    found.model_alias = {options["alias"]}
    found.hostnames = {options["host"]} if isinstance(found.hostnames, set) else [options["host"]]
    found.fit_params = options.get("fit") != "off"
    if "api-key" in options:
        found.api_keys = options["api-key"].split(",")
    if "repack" in options:
        found.no_extra_bufts = not options["repack"]
    for which in ("k", "v"):
        if kind := options.get(f"cache-type-{which}"):
            setattr(found, f"cache_type_{which}", member(xllamacpp.ggml_type, "GGML_TYPE_" + kind))
    for name, place, enum, prefix in (
        ("flash-attn", "flash_attn_type", xllamacpp.llama_flash_attn_type, "LLAMA_FLASH_ATTN_TYPE_"),
        ("load-mode", "load_mode", xllamacpp.llama_load_mode, "LLAMA_LOAD_MODE_"),
        ("numa", "numa", xllamacpp.ggml_numa_strategy, "GGML_NUMA_STRATEGY_"),
    ):
        if value := options.get(name):
            words = {"on": "enabled", "off": "disabled", "mmap+mlock": "mmap_mlock"}
            put(found, place, member(enum, prefix + words.get(value, value)))
    if kinds := options.get("spec-type"):
        prefix = "COMMON_SPECULATIVE_TYPE_"
        found.speculative.types = [
            member(xllamacpp.common_speculative_type, prefix + kind) for kind in kinds.split(",")
        ]
    if prio := options.get("prio"):
        put(found, "cpuparams.priority", list(xllamacpp.ggml_sched_priority)[int(prio) + 1])
    return found


def put(parameters: Any, place: str, value: Any) -> None:
    """Set what a dotted name stands for. Raises SystemExit if this version of the package doesn't have it."""
    *path, last = place.split(".")
    where = parameters
    for name in path:
        where = getattr(where, name, None)
    if not hasattr(where, last):
        sys.exit(f"error: xllamacpp {xllamacpp.__version__} has no parameter {place}.")
    setattr(where, last, value)


def member(enum: Any, name: str) -> Any:
    """Return a member of an enumeration. Raises SystemExit if this version of the package doesn't have it."""
    known = {each.name.lower(): each for each in enum}
    found = known.get(name.lower().replace("-", "_"))
    if found is None:
        sys.exit(f"error: xllamacpp {xllamacpp.__version__} doesn't know {name}; it knows {', '.join(sorted(known))}.")
    return found


if __name__ == "__main__":
    sys.exit(main())
