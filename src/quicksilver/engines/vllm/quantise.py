"""Rounding weights for vLLM: what llm-compressor is asked for, by technique, and the process that does it.

What it writes are safetensors in the format compressed-tensors, which vLLM reads by what its config.json says.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quicksilver import environments
from quicksilver.errors import BuildError, EngineError, IllegalRecipeError, NotEnoughError
from quicksilver.nouns.artifact import MANIFEST
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.technique import Step, Technique
from quicksilver.sources.gguf_grid import FILE as GRID_FILE
from quicksilver.sources.links import link_all

ENVIRONMENT = "llmcompressor"
SCRIPT = Path(__file__).with_name("compress.py")
WHAT = "What rounds weights for vLLM (llm-compressor)"
IGNORED = ["lm_head"]
"""Layers that stay as they are. With tied embeddings the last is the first, too, in which a row is looked up."""
CUT_ON_CPU = {"awq": 256}
"""Tokens of a prompt that a technique reads on a machine without accelerator: AWQ runs each layer twenty times over all."""
LIBRARIES_MB = 1200
CALIBRATION_TOKENS = 32_000
"""Of 32 prompts with 1,000 each."""
Recipe = dict[str, Any]


def rounded(technique: Technique) -> Recipe:
    """Return llm-compressor's recipe for a technique: its modifiers in their order, each with its fields.

    A pure function. Raises IllegalRecipeError for a technique, or a field of one, that it has nothing for.
    """
    name = technique.name()
    if name not in RECIPES:
        known = ", ".join(sorted(RECIPES))
        raise IllegalRecipeError(f"{name} isn't built for vLLM; weights are rounded for it by {known}.")
    return {"default_stage": {"default_modifiers": RECIPES[name](technique.model_dump())}}


def _modifier(weights: Mapping[str, Any], activations: Mapping[str, Any] | None = None) -> Recipe:
    """Return the fields of a modifier that rounds all linear layers alike."""
    group: Recipe = {"targets": ["Linear"], "weights": dict(weights)}
    if activations is not None:
        group["input_activations"] = dict(activations)
    return {"config_groups": {"group_0": group}, "ignore": list(IGNORED)}


def _grouped(fields: Mapping[str, Any]) -> Recipe:
    """Return 4-bit integers that share a scale in groups of a row, and a zero point if they are asymmetric."""
    weights: Recipe = {"num_bits": 4, "type": "int", "symmetric": fields["mode"] == "symmetric"}
    if fields["group_size"] == -1:
        return weights | {"strategy": "channel"}
    return weights | {"strategy": "group", "group_size": fields["group_size"]}


def _rows(kind: str) -> Recipe:
    """Return 8-bit weights of a kind, `int` or `float`, with one scale a row."""
    return {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "channel"}


def _tokens(kind: str) -> Recipe:
    """Return 8-bit activations of a kind with one scale a token, found while serving."""
    return {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}


def _int4(fields: Mapping[str, Any]) -> Recipe:
    return {"QuantizationModifier": _modifier(_grouped(fields))}


def _awq(fields: Mapping[str, Any]) -> Recipe:
    # This observer searches each group's range for the least error, each weight's weighed by its activations.
    fitted = {"observer": "imatrix_mse"} if fields["scale_estimation"] else {}
    return {
        "AWQModifier": {"duo_scaling": "both"},
        "QuantizationModifier": _modifier(_grouped(fields) | fitted),
    }


def _gptq(fields: Mapping[str, Any]) -> Recipe:
    return {"GPTQModifier": _modifier(_grouped(fields))}


def _w8a8(fields: Mapping[str, Any]) -> Recipe:
    return {
        "SmoothQuantModifier": {"smoothing_strength": fields["alpha"]},
        "QuantizationModifier": _modifier(_rows("int"), _tokens("int")),
    }


def _fp8(_: Mapping[str, Any]) -> Recipe:
    return {"QuantizationModifier": _modifier(_rows("float"), _tokens("float"))}


def _int8(fields: Mapping[str, Any]) -> Recipe:
    if fields["mode"] != "symmetric":
        raise IllegalRecipeError("vLLM keeps INT8 weights without zero points: set int8.mode=symmetric.")
    return {"QuantizationModifier": _modifier(_rows("int"))}


RECIPES: Mapping[str, Callable[[Mapping[str, Any]], Recipe]] = {
    "int4": _int4,
    "awq": _awq,
    "gptq": _gptq,
    "int8": _int8,
    "w8a8": _w8a8,
    "fp8": _fp8,
}
GPU_ONLY: Mapping[str, str] = {"int8": "w8a8 has 8 bits, too, and is served"}
"""Techniques for whose weights vLLM has kernels on a GPU alone, and what to take instead."""


def check(technique: Technique, *, on_cpu: bool) -> None:
    """Raise IllegalRecipeError for a technique that this vLLM has no kernel for, or that can't be built."""
    name = technique.name()
    if on_cpu and name in GPU_ONLY:
        raise IllegalRecipeError(f"vLLM has no kernel on a CPU for the weights of {name}; {GPU_ONLY[name]}.")
    rounded(technique)
    try:
        environments.python(ENVIRONMENT, WHAT)
    except EngineError as error:
        raise IllegalRecipeError(str(error)) from error


def needs_mb(technique: Technique, facts: ModelFacts) -> tuple[float, float]:
    """Estimate the peak memory of a step on a CPU and the disk that its result takes, MB."""
    looked_up = facts.vocab_size * facts.hidden_size * (1 if facts.tied_embeddings else 2)
    bits = 8 if technique.name() in ("int8", "w8a8", "fp8") else 5
    size_mb = ((facts.parameters - looked_up) * bits / 8 + 2 * looked_up) / 1e6
    memory_mb = LIBRARIES_MB + facts.parameters * 4 * 1.5 / 1e6
    if technique.calibrated:
        # Of all prompts the hidden states around a layer and what goes into its matrices, or (GPTQ) its products with itself.
        prompts = CALIBRATION_TOKENS * (4 * facts.hidden_size + 2 * facts.intermediate_size) * 4
        layer = 2 * (facts.intermediate_size**2 + 3 * facts.hidden_size**2) * 4
        memory_mb += (prompts + layer) / 1e6
    return memory_mb, size_mb


def tools() -> dict[str, str]:
    """Return the versions of what rounds, as its lock file pins them: it is only used if it was made from that."""
    text = environments.lock(ENVIRONMENT).read_text(encoding="utf-8")
    names = ("llmcompressor", "compressed-tensors", "torch", "transformers")
    found = {name: re.search(rf"^{name}==(\S+)$", text, re.MULTILINE) for name in names}
    return {f"{ENVIRONMENT}: {name}": version[1] for name, version in found.items() if version}


def build(technique: Technique, step: Step) -> None:
    """Round a Hugging Face directory's weights; its other files go along. Raises BuildError, NotEnoughError, EngineError."""
    recipe = rounded(technique)
    if technique.calibrated and not step.calibration:
        raise BuildError("This technique calibrates on data, and the workload has no calibration prompts.")
    job = {
        "source": str(step.source),
        "target": str(step.target),
        "recipe": recipe,
        "most_tokens": CUT_ON_CPU.get(technique.name()),
        "calibration": [list(ids) for ids in step.calibration],
    }
    step.apart_mb = _run(environments.python(ENVIRONMENT, WHAT), job, step.say)
    written = {path.name for path in step.target.iterdir()}
    weights = {path.name for path in step.source.glob("*.safetensors*")}
    link_all(step.source, step.target, but=written | weights | {MANIFEST, GRID_FILE})


def _run(python: Path, job: Mapping[str, Any], say: Callable[[str], None]) -> float:
    """Run the script on a job and return its peak resident memory, MB; it ends with this process, however that ends."""
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        # -P: a file of the user's in this folder can't stand in for a library.
        [str(python), "-P", str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        encoding="utf-8",
    )
    last: dict[str, Any] = {}
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended at once; its exit code says so
            # Its stdin stays open: the script ends when that closes.
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            last = json.loads(line)
            if "say" in last:
                say(last["say"])
        code = process.wait()
    if code == -signal.SIGKILL:
        raise NotEnoughError("llm-compressor was killed (SIGKILL), most likely because memory ran out.")
    if "memory" in last:
        raise NotEnoughError("llm-compressor ran out of memory.")
    if "error" in last:
        raise BuildError(f"llm-compressor failed: {last['error']}.")
    if code or "memory_mb" not in last:
        raise BuildError(f"llm-compressor ended with exit code {code}; the log of the build says why.")
    return float(last["memory_mb"])
