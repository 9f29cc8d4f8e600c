"""Runs in an environment with aiconfigurator-core, not in ours: takes questions as JSON lines, gives step times as JSON lines.

Of this project nothing is imported, so that the environment needs none of it. Models are compiled once and kept.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import logging
import os
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

BESIDE_CONTEXT = 1024
"""Tokens in the cache of each stream that decodes beside a prompt."""
BACKENDS = ("vllm", "trtllm", "sglang")
"""The first that has tables for a chip is asked: recipes are compared on one engine."""
MODES = ("SILICON", "HYBRID")
"""Tried in this order; HYBRID estimates the operators that a table lacks."""
ESTIMATED_ANYWAY = ("embedding", "add_norm", "act_gate")
"""Element-wise operators, which no table has: a few per cent of a step."""
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
"""Where matrices that are estimated are asked for (13 ms each); between them they are interpolated."""

WARM_UP: dict[str, Any] = {
    "config": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 32_000,
        "max_position_embeddings": 8192,
    },
    "tensor_parallel": 1,
    "pipeline_parallel": 1,
    "moe": None,
    "cache": "bfloat16",
    "bandwidth_gb_s": None,
    "queries": 1,
    "streams": [1],
    "contexts": [1024],
    "prompts": [256],
    "beside": [0],
}
"""A question whose answer nobody reads: with it tables are read, for several chips at once, which takes two seconds each."""
MEASURED = ("silicon", "mixed")
"""What it calls an operator from its tables, and one of which a small part isn't."""

_engines: dict[str, _Engine] = {}


class _Engine:
    """A model in one layout on one chip, with one backend's tables."""

    def __init__(self, question: dict[str, Any], backend: str, mode: str) -> None:
        import aiconfigurator_core
        from aiconfigurator_core.sdk import engine
        from aiconfigurator_core.sdk.config_builders import build_model_config
        from aiconfigurator_core.sdk.models import get_model

        system, config = question["system"], question["config"]
        experts = int(config.get("num_local_experts") or config.get("num_experts") or 0)
        self.backend, self.mode = backend, mode
        database = _database(system, backend, mode)
        self.version = database.version
        layout = build_model_config(
            tp_size=question["tensor_parallel"],
            pp_size=question["pipeline_parallel"],
            attention_dp_size=1,
            moe_tp_size=question["tensor_parallel"] if experts else 1,
            moe_ep_size=1,
            gemm_quant_mode=question["gemm"],
            moe_quant_mode=question["moe"] if experts else None,
            kvcache_quant_mode=question["cache"],
            fmha_quant_mode="bfloat16",
        )
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
            model = get_model(folder, layout, backend)
            spec = engine.build_engine_spec_json(
                model,
                model_path=folder,
                system=system,
                backend=backend,
                backend_version=self.version,
                kv_block_size=None,
                systems_path=None,
                nextn=0,
                database=database,
            )
        self._handle = engine.EngineHandle(bytes(aiconfigurator_core.engine_spec_bincode_from_json(spec)))
        chip = database.system_spec["gpu"]
        self._bandwidth, self._flops = float(chip["mem_bw"]), float(chip["bfloat16_tc_flops"])
        wanted = question["bandwidth_gb_s"]
        self._slower = self._bandwidth / (wanted * 1e9) if wanted else 1.0
        self._bytes = {"bfloat16": 2.0, "int4_wo": 0.5}.get(question["gemm"], 1.0)
        self._expert_share = (config.get("num_experts_per_tok") or 1) / experts if experts else 1.0
        self.estimated: set[str] = set()
        self._matrices_ms: dict[int, tuple[float, float]] = {}
        self._attention_ms: dict[tuple[str, int, int], float] = {}
        # Attention is the same for all precisions of weights: it is asked for where the rest is measured, which is quicker.
        self.attends = self if mode == "SILICON" else self._measured(question)

    def _measured(self, question: dict[str, Any]) -> _Engine:
        """The same layout with bf16 weights, if that is measured."""
        if question["gemm"] == "bfloat16":
            return self
        try:
            plain = _engine(question | {"gemm": "bfloat16", "moe": "bfloat16"})
        except ValueError:
            return self
        return plain if plain.mode == "SILICON" else self

    def decode_ms(self, streams: int, queries: int, context: int) -> float:
        """A step that checks `queries` tokens of each stream: its cache is read once for all of them."""
        tokens = streams * queries
        body, head = self._matrices(tokens)
        return body + head + self.attends.attention_ms("decode", streams, context)

    def prefill_ms(self, prompt: int, streams: int, queries: int) -> float:
        """A step with a prompt's tokens, beside `streams` that decode; logits only for these and the prompt's last token."""
        body, _ = self._matrices(prompt + streams * queries)
        _, head = self._matrices(1 + streams * queries)
        beside = self.attends.attention_ms("decode", streams, BESIDE_CONTEXT) if streams else 0.0
        return body + head + self.attends.attention_ms("prompt", 1, prompt) + beside

    def attention_ms(self, kind: str, streams: int, tokens: int) -> float:
        """Attention of streams that decode with so many tokens each in the cache, or of a prompt over itself."""
        key = (kind, streams, tokens)
        if key not in self._attention_ms:
            if kind == "prompt":
                _, operators, _ = self._handle.mixed_step_breakdown_per_op(tokens, 0, tokens, 2)
            else:
                operators = self._handle.decode_step_per_op(streams, tokens, 2)
            found = [operator for operator in operators if "attention" in operator[0]]
            self._attention_ms[key] = sum(ms * self._factor(name, streams) for name, ms, _, _ in found)
            if tokens <= BESIDE_CONTEXT:  # far beyond its tables it extrapolates
                self._note(found)
        return self._attention_ms[key]

    def _matrices(self, tokens: int) -> tuple[float, float]:
        """All that isn't attention for so many tokens in a step, without the head, and the head that gives logits."""
        if self.mode == "SILICON" or tokens in TOKENS or tokens > TOKENS[-1]:
            return self._asked(tokens)
        right = bisect.bisect_left(TOKENS, tokens)
        low, high = TOKENS[right - 1], TOKENS[right]
        share = (tokens - low) / (high - low)
        before, after = self._asked(low), self._asked(high)
        return before[0] + share * (after[0] - before[0]), before[1] + share * (after[1] - before[1])

    def _asked(self, tokens: int) -> tuple[float, float]:
        if tokens not in self._matrices_ms:
            operators = [one for one in self._handle.decode_step_per_op(tokens, 64, 2) if "attention" not in one[0]]
            times = [(name, ms * self._factor(name, tokens)) for name, ms, _, _ in operators]
            head = sum(ms for name, ms in times if "logits" in name)
            self._matrices_ms[tokens] = (sum(ms for _, ms in times) - head, head)
            self._note(operators)
        return self._matrices_ms[tokens]

    def _note(self, operators: list[tuple[str, float, float, str]]) -> None:
        for name, ms, _, source in operators:
            plain = name.removeprefix("generation_").removeprefix("context_")
            if ms and source not in MEASURED and not plain.startswith(ESTIMATED_ANYWAY):
                self.estimated.add(plain)

    def _factor(self, name: str, tokens: int) -> float:
        """How much longer an operator takes on a chip that differs from the table's in its memory's bandwidth alone.

        By the roofline: what waits for memory takes the ratio of the bandwidths, what computes or communicates takes as long.
        """
        if self._slower == 1.0 or name.endswith(("_ar", "_ar_1", "_ar_2", "_p2p", "context_attention")):
            return 1.0
        if "gemm" in name or "moe" in name:
            met = tokens * (self._expert_share if "moe" in name else 1.0)
            memory, compute = self._bytes / self._bandwidth, 2 * met / self._flops
            return max(memory * self._slower, compute) / max(memory, compute)
        return self._slower


@cache
def _database(system: str, backend: str, mode: str) -> Any:
    """Return a chip's tables. Raises ValueError if there are none."""
    from aiconfigurator_core.sdk import perf_database

    version = perf_database.resolve_query_version(system, backend, "current")
    database = perf_database.get_database_view(system, backend, version, database_mode=mode)
    if database is None:
        raise ValueError(f"there are no tables of {backend} for {system}")
    return database


@cache
def _backend(system: str) -> str:
    """Return the first backend with tables for a chip. Raises ValueError if none has."""
    for backend in BACKENDS:
        with contextlib.suppress(ValueError):
            _database(system, backend, MODES[0])
            return backend
    raise ValueError(f"there are no tables for {system}")


def _engine(question: dict[str, Any]) -> _Engine:
    """Return the engine of a question, measured if it can be. Raises ValueError if its tables can't answer at all."""
    fields = ("system", "config", "tensor_parallel", "pipeline_parallel", "gemm", "moe", "cache", "bandwidth_gb_s")
    key = json.dumps([question[field] for field in fields], sort_keys=True)
    if key not in _engines:
        why = ""
        for mode in MODES:
            try:
                engine = _Engine(question, _backend(question["system"]), mode)
                engine.decode_ms(1, 1, 1024)
                engine.prefill_ms(256, 1, 1)
            except Exception as error:  # noqa: BLE001 - what its tables lack, it says in many ways
                why = why or str(error)
                continue
            _engines[key] = engine
            break
        else:
            raise ValueError(why)
    return _engines[key]


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Return the step times that a question asks for, or why there are none."""
    try:
        engine = _engine(question)
        queries = question["queries"]
        decode = [[engine.decode_ms(s, queries, c) for c in question["contexts"]] for s in question["streams"]]
        prefill = [[engine.prefill_ms(p, b, queries) for b in question["beside"]] for p in question["prompts"]]
    except Exception as error:  # noqa: BLE001 - one question that can't be answered isn't the end of the others
        return {"error": (str(error).strip().splitlines() or [type(error).__name__])[0][:300]}
    return {
        "backend": engine.backend,
        "backend_version": engine.version,
        "mode": engine.mode,
        "decode_ms": decode,
        "prefill_ms": prefill,
        "estimated": sorted(engine.estimated | engine.attends.estimated),
    }


def main() -> None:
    """Answer lines until there are no more; the chip that is named has its tables read before the first."""
    import yaml

    # It reads its small tables of versions again for each model, with a loader that is written in Python.
    yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # type: ignore[misc]
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print isn't an answer
    logging.disable(logging.WARNING)
    for gemm in ("bfloat16", "int4_wo"):
        answer(WARM_UP | {"system": sys.argv[1], "gemm": gemm})
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
