"""Step times of accelerators from aiconfigurator: operators that were measured on the same chip, put together for a model.

It runs in a process of its own (`operators_worker.py`): in this Python if the extra `planner` is installed, else in the
environment `planner`. What it was asked once is kept in the home folder, by a hash of the question and of its version.
"""

from __future__ import annotations

import atexit
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Final

from quicksilver import environments
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns.base import content_hash
from quicksilver.nouns.instance import Accelerator
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.prediction import CachePrecision, Precision, StepTimes
from quicksilver.planner.axes import BESIDE, HOST_LINK_GB_S, PROMPTS, STREAMS, contexts
from quicksilver.sources.home import home

VERSION = "0.12.0"
"""Of aiconfigurator-core; its tables are part of it. The lock and the extra pin the same."""
ENVIRONMENT = "planner"
PACKAGE = "aiconfigurator-core"
TABLES = ("h100_sxm", "h200_sxm", "a100_sxm", "l40s", "b200_sxm", "b300_sxm", "gb200", "gb300", "rtx_pro_6000_server")
"""Chips with operators that were measured. It has formulas for more (L4, A30 …), which are a roofline and are left to ours."""
GEMM: Final[Mapping[Precision, str]] = {"bf16": "bfloat16", "fp8": "fp8", "int8": "sq", "int4": "int4_wo"}
CACHE: Final[Mapping[CachePrecision, str]] = {"bf16": "bfloat16", "fp8": "fp8", "int8": "int8"}
EXPERTS: Final[Mapping[Precision, str]] = {
    "bf16": "bfloat16",
    "fp8": "fp8_block",
    "int8": "fp8_block",
    "int4": "int4_wo",
}
"""FP8 in blocks, as checkpoints of mixtures have it: vLLM's kernel for one scale a tensor was measured slower than bf16 at few tokens."""
BANDWIDTH = {"h100_sxm": 3350.0, "h200_sxm": 4800.0, "a100_sxm": 2039.0, "l40s": 864.0}
"""GB/s of the memory of the chips that were measured, for variants that differ in it alone."""
SAME = 0.03
"""Bandwidths that differ by less are the same chip in other words."""
ESTIMATED = "they are estimated (HYBRID mode)"
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "LlamaForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
_BACKENDS = {"vllm": "vLLM", "trtllm": "TensorRT-LLM", "sglang": "SGLang"}
_WORKER = Path(__file__).with_name("operators_worker.py")


@dataclass(slots=True)
class _Process:
    process: subprocess.Popen[str]
    said: IO[str]
    answers: IO[str]


_running: dict[tuple[str, str], _Process] = {}
"""By interpreter and chip: one chip's tables take seconds to read, and several are read at once."""
_one_at_a_time = threading.Lock()


def knows(chip: Accelerator) -> bool:
    """Say whether operators were measured on a chip."""
    return chip.system in TABLES


def estimated(times: StepTimes) -> bool:
    """Say whether matrices or attention in some step times were not measured, but estimated from other rows of the chip."""
    return any(ESTIMATED in remark for remark in times.remarks)


def step_times(
    model: ModelFacts,
    chip: Accelerator,
    *,
    weights: Precision,
    cache: CachePrecision,
    tensor_parallel: int,
    pipeline_parallel: int = 1,
    queries: int = 1,
) -> StepTimes:
    """Return the step times of a model that checks `queries` tokens of each stream in a step; no draft is in them.

    Raises BadInputError for what no table has, EngineError if aiconfigurator isn't installed (the message says how to add it).
    """
    if not knows(chip):
        raise BadInputError(f"aiconfigurator has no measured operators of {chip.name}.")
    if model.architecture not in _ARCHITECTURES or weights not in GEMM:
        what = f"{weights} weights" if weights not in GEMM else f"models of type {model.architecture!r}"
        raise BadInputError(f"aiconfigurator has no operators for {what}.")
    question = {
        "config": _config(model),
        "system": chip.system,
        "tensor_parallel": tensor_parallel,
        "pipeline_parallel": pipeline_parallel,
        "gemm": GEMM[weights],
        "moe": EXPERTS[weights],
        "cache": CACHE[cache],
        "queries": queries,
        "bandwidth_gb_s": _other_bandwidth(chip),
        "streams": STREAMS,
        "contexts": contexts(model),
        "prompts": PROMPTS,
        "beside": BESIDE,
    }
    answer = _kept(question)
    if "error" in answer:
        raise BadInputError(
            f"aiconfigurator can't say how long steps take on {chip.name}: {_shortly(answer['error'])}."
        )
    return StepTimes(
        basis="operators",
        origin=_origin(answer, chip),
        streams=STREAMS,
        contexts=contexts(model),
        decode_ms=_rows(answer["decode_ms"]),
        prompts=PROMPTS,
        beside=BESIDE,
        prefill_ms=_rows(answer["prefill_ms"]),
        remarks=tuple(_remarks(answer, model, chip, weights, (tensor_parallel, pipeline_parallel))),
    )


@cache
def python() -> Path:
    """Return the interpreter that has aiconfigurator-core: ours, else the environment's. Raises EngineError if none has it."""
    with suppress(metadata.PackageNotFoundError):
        if metadata.version(PACKAGE) == VERSION:
            return Path(sys.executable)
    return environments.python(
        ENVIRONMENT, f"aiconfigurator {VERSION}, which has the measured operators of accelerators,"
    )


def prepare(chips: Iterable[Accelerator]) -> None:
    """Begin to read the tables of chips that will be asked for; nothing happens for those that aren't known, or without aiconfigurator."""
    with suppress(EngineError), _one_at_a_time:
        for system in {chip.system for chip in chips if knows(chip)}:
            _worker(system)


def ask(question: Mapping[str, Any]) -> dict[str, Any]:
    """Put a question to its chip's worker, which is started with the first and ends with this process. Raises EngineError."""
    with _one_at_a_time:
        worker = _worker(question["system"])
        try:
            worker.said.write(json.dumps(question) + "\n")
            worker.said.flush()
            line = worker.answers.readline()
        except OSError:
            line = ""
        if not line:
            code = worker.process.wait(timeout=10)
            raise EngineError(
                f"aiconfigurator's process ended with {code} before it answered; to see why, run {python()} -I {_WORKER} "
                f"{question['system']} and give it a line."
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


def _worker(system: str) -> _Process:
    """Return the process for a chip, started if there is none that lives."""
    key = (str(python()), system)
    found = _running.get(key)
    if found is None or found.process.poll() is not None:
        found = _running[key] = _start(*key)
    return found


def _start(interpreter: str, system: str) -> _Process:
    process = subprocess.Popen(
        [interpreter, "-I", str(_WORKER), system],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    if process.stdin is None or process.stdout is None:
        raise EngineError("aiconfigurator's process can't be talked to.")
    atexit.register(process.stdin.close)  # at the end of its input the worker ends
    return _Process(process, process.stdin, process.stdout)


def _kept(question: Mapping[str, Any]) -> dict[str, Any]:
    """Answer a question from the folder of answers, or ask it and keep the answer."""
    file = home() / "planner" / f"aiconfigurator-{VERSION}" / f"{content_hash([_worker_hash(), question])}.json"
    with suppress(OSError, ValueError):
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    answer = ask(question)
    with suppress(OSError):  # a home that can't be written to costs time, not the plan
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(answer), encoding="utf-8")
        part.replace(file)
    return answer


@cache
def _worker_hash() -> str:
    """What is put together from the tables is the worker's doing, too."""
    return content_hash(_WORKER.read_text(encoding="utf-8"))


def _config(model: ModelFacts) -> dict[str, Any]:
    """Write a config.json that has a model's shape: so every model is known, whatever its name."""
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[model.architecture]],
        "model_type": "llama" if model.architecture == "mistral" else model.architecture,
        "num_hidden_layers": model.layers,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": model.tied_embeddings,
        "torch_dtype": "bfloat16",
    }
    if model.experts:
        name = "num_experts" if model.architecture == "qwen3_moe" else "num_local_experts"
        config |= {
            name: model.experts,
            "num_experts_per_tok": model.experts_per_token,
            "moe_intermediate_size": model.intermediate_size,
        }
    return config


def _other_bandwidth(chip: Accelerator) -> float | None:
    measured = BANDWIDTH.get(chip.system)
    if measured is None or abs(chip.bandwidth_gb_s / measured - 1) <= SAME:
        return None
    return chip.bandwidth_gb_s


def _origin(answer: Mapping[str, Any], chip: Accelerator) -> str:
    backend = f"{_BACKENDS[answer['backend']]} {answer['backend_version']}"
    mode = "" if answer["mode"] == "SILICON" else ", HYBRID"
    return f"aiconfigurator {VERSION}: operators measured with {backend} on {chip.system}{mode}"


def _remarks(
    answer: Mapping[str, Any], model: ModelFacts, chip: Accelerator, weights: Precision, parallel: tuple[int, int]
) -> list[str]:
    remarks = []
    if answer["estimated"]:
        remarks.append(f"no table has these operators in {weights}, {ESTIMATED}: {', '.join(answer['estimated'])}")
    if _other_bandwidth(chip) is not None:
        remarks.append(
            f"measured on the {BANDWIDTH[chip.system]:,.0f} GB/s variant of the chip; what waits for memory is scaled to "
            f"{chip.bandwidth_gb_s:,.0f} GB/s"
        )
    if chip.link_gb_s <= HOST_LINK_GB_S and parallel[0] > 1:
        remarks.append(
            "all-reduces were measured over the PCIe of the machine that the tables are from, which another board may do better or worse"
        )
    if model.experts and weights == "int8":
        remarks.append("experts are taken as FP8 in blocks: they were not measured in W8A8")
    return remarks


def _shortly(said: str) -> str:
    """What it says, without the paths and the keys that follow."""
    return (
        re.split(r" at /|: tried| \{|; available", said, maxsplit=1)[0]
        .removeprefix("perf database error: ")
        .rstrip(".")
    )


def _rows(table: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(ms, 4) for ms in row) for row in table)
