"""vLLM: its own OpenAI server with arguments compiled from the recipe, on a GPU or, as the stand-in for it, on the CPU."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from quicksilver.engines.vllm import files, installed, quantise
from quicksilver.engines.vllm.launch import KV_TYPES, Launch, Machine, compile_launch
from quicksilver.errors import BadInputError, EngineError, IllegalRecipeError, NotEnoughError
from quicksilver.nouns.engine import Abilities, Command, Endpoint, Engine
from quicksilver.nouns.settings import Settings
from quicksilver.nouns.technique import Step, Technique

if TYPE_CHECKING:
    from quicksilver.nouns.hardware import Hardware
    from quicksilver.nouns.model import ModelFacts

CACHE = "compiled/vllm"
"""What it compiles is kept there, below the home folder: the second start of a configuration takes it from there."""
RUNTIME_GB = 2.5
"""Interpreters, libraries and what its compiler needs, beside weights and KV cache, on a CPU."""
CPU_KV_TYPES = ("fp8",)
"""Of the keys and values that its attention on a CPU reads, beside the model's own type (vllm/v1/attention/backends/cpu_attn.py)."""
READY_TIMEOUT_S = 900
EXPORT_MB = 300.0
"""Memory of a build step that only moves files."""
CONSEQUENCES = ("Engine core initialization failed", "Engine core proc", "See root cause above", "EngineDeadError")
# [1]: of a log line, what comes before is a process, a level and a place.
ERROR = re.compile(r"(?:^|[\s\]])((?:[a-z_]+\.)*[A-Z]\w*(?:Error|Exception)): (.+)$")
USAGE = re.compile(r"^\S+\.py: error: (.+)$")


class Vllm(Engine):
    """vLLM's OpenAI server in a process of its own, from the environment vllm or from another Python that has it."""

    name: ClassVar[str] = "vllm"
    format: ClassVar[str] = "hf"
    environment: ClassVar[str] = "vllm"
    python_variable: ClassVar[str] = installed.PYTHON_VARIABLE
    modules: ClassVar[tuple[str, ...]] = ("vllm",)
    abilities: ClassVar[Abilities] = Abilities(own_server=True)
    kv_precisions: ClassVar[frozenset[str]] = frozenset(KV_TYPES)

    def version(self) -> str:
        found = installed.installed()
        return f"vLLM {found.version}" + (" (CPU)" if found.device == "cpu" else "")

    def tools(self) -> dict[str, str]:
        return {**installed.installed().versions, **quantise.tools()}

    def choices(self, hardware: Hardware, streams: int) -> Mapping[str, tuple[Any, ...]]:
        """Return what a search tries: batch limits that the load notices, and fewer threads.

        The KV cache is sized by the streams, its precision and the tokens of a forward pass are chosen through techniques, and
        at most as many streams as tokens fit in a pass.
        """
        found = super().choices(hardware, streams)
        return {
            "threads": found["threads"],
            "max_streams": tuple(n for n in found["max_streams"] if n == 64 or n < streams),
        }

    def check(self, technique: Technique) -> None:
        super().check(technique)
        precision = technique.settings().get("kv_precision")
        if precision in KV_TYPES and precision not in CPU_KV_TYPES and _on_cpu():
            raise IllegalRecipeError(
                f"vLLM on a CPU keeps no keys and values in {precision}; it takes {', '.join(CPU_KV_TYPES)}."
            )
        name = technique.name()
        if name == "compile" and _on_cpu():
            raise IllegalRecipeError("vLLM on a CPU isn't compiled here: the graph of this version answers wrongly.")
        if technique.builds and name not in BUILDS:
            quantise.check(technique, on_cpu=_on_cpu())
        if not technique.builds and name not in SETS:
            raise IllegalRecipeError(f"{name} sets something that vLLM doesn't have.")
        if name == "draft" and technique.model_dump()["precision"] != "fp16":
            raise IllegalRecipeError("A draft for vLLM is served as it comes: set draft.precision=fp16.")

    def takes_device(self) -> bool:
        """On a GPU vLLM takes most of the memory at its start (`gpu_memory_utilization`), and makes a cache of what is left."""
        return not _on_cpu()

    def build_needs_mb(self, technique: Technique, facts: ModelFacts) -> tuple[float, float]:
        if technique.name() in ("as-is", "draft"):  # files are copied or linked, no graph is made
            return EXPORT_MB, technique.disk_mb(facts) / 2
        if technique.name() in quantise.RECIPES:
            return quantise.needs_mb(technique, facts)
        return super().build_needs_mb(technique, facts)

    def apply(self, technique: Technique, step: Step) -> None:
        BUILDS.get(technique.name(), quantise.build)(technique, step)

    def command(
        self, artifact: Path, settings: Settings, *, host: str, port: int, api_keys: Sequence[str] = ()
    ) -> Command:
        """Return what serves an artefact, after looking at it and at the machine; nothing heavy is started.

        Raises BadInputError for what vLLM, or the version that is there, can't do, NotEnoughError without room for it.
        """
        found = installed.installed()
        weights = files.describe(artifact)
        machine = machine_of(found)
        made = compile_launch(artifact, settings, machine, weights, host=host, port=port, cache=cache_folder())
        installed.check(made, installed.options(found), found.version)
        if machine.device == "cpu":
            _check_cpu(made, weights, machine)
        # In the environment: others see a command.
        keys = {"VLLM_API_KEY": api_keys[0]} if api_keys else {}
        if len(api_keys) > 1:
            raise BadInputError("vLLM's own server takes one API key; give one.")
        return Command([str(found.python), *made.arguments], {**made.environment, **keys}, telling, READY_TIMEOUT_S)

    @contextmanager
    def serve(
        self, artifact: Path, settings: Settings, *, port: int = 0, log: Path | None = None
    ) -> Iterator[Endpoint]:
        from quicksilver.engines.process import HOST, serve_command

        def make(port: int) -> Command:
            return self.command(artifact, settings, host=HOST, port=port)

        with serve_command(make, port=port, log=log) as endpoint:
            yield endpoint

    def compile(self, artifact: Path, settings: Settings) -> None:
        if _on_cpu() and settings.properties.get("enforce_eager", True):
            return  # nothing is compiled
        with self.serve(artifact, settings):
            pass  # what it compiled at its start is kept


def _on_cpu() -> bool:
    try:
        return installed.installed().device == "cpu"
    except EngineError:
        return False  # that it isn't installed is said when it is needed


def _check_cpu(made: Launch, weights: files.Weights, machine: Machine) -> None:
    """Raise EngineError without a compiler, NotEnoughError without room for weights and KV cache."""
    compiler = os.environ.get("CXX", "g++")
    if "--enforce-eager" not in made.options and shutil.which(compiler) is None:
        raise EngineError(
            f"vLLM on a CPU compiles the model with {compiler}, which isn't here; install it, or set the property "
            "enforce_eager=true."
        )
    kv_gb = float(made.options["--kv-cache-memory-bytes"] or 0) / 1e9
    needed_gb = weights.gb + kv_gb + RUNTIME_GB
    if needed_gb > machine.available_gb:
        raise NotEnoughError(
            f"Serving {weights.name} with vLLM needs about {needed_gb:.1f} GB of memory (weights {weights.gb:.1f}, KV cache "
            f"{kv_gb:.1f}, runtime {RUNTIME_GB:.1f}) and {machine.available_gb:.1f} GB are free; set kv_cache_gb, or the property "
            "max_model_len, lower."
        )


def machine_of(found: installed.Installed) -> Machine:
    """Return what the arguments depend on of this machine."""
    from quicksilver.hardware import available_memory, detect

    here = detect()
    preload = found.prefix / "lib" / "libiomp5.so"
    return Machine(
        device=found.device,
        cores=here.cores,
        bf16=bool({"AVX-512 BF16", "AMX BF16"} & set(here.isa)),
        available_gb=available_memory() / 1e9,
        openmp=preload if preload.is_file() else None,
    )


def cache_folder() -> Path:
    """Return the folder of what vLLM compiles."""
    from quicksilver.sources.home import home

    return home() / CACHE


def telling(lines: Sequence[str]) -> str | None:
    """Say why it ended by the first error in its log that isn't only the consequence of another; None if there is none."""
    for line in lines:
        if usage := USAGE.search(line):
            return f"vLLM's server refused its arguments: {usage[1].rstrip('.')}."
    errors = [found for line in lines if (found := ERROR.search(line))]
    causes = [found for found in errors if not any(words in found[2] for words in CONSEQUENCES)]
    if not (causes or errors):
        return None
    kind, words = (causes or errors)[0].groups()
    kind = kind.rpartition(".")[2]
    if kind == "ValidationError":  # pydantic: the sentence is on the line after the next
        at = next(n for n, line in enumerate(lines) if words in line)
        detail = next((text for line in lines[at:] if (text := line.partition("Value error, ")[2])), words)
        words = detail.partition(" [type=")[0]
    return f"vLLM's server ended with {kind}: {words.strip().rstrip('.')}."


def _as_is(technique: Technique, step: Step) -> None:
    files.take(step, technique.model_dump()["precision"])


def _draft(technique: Technique, step: Step) -> None:
    fields = technique.model_dump()
    files.add_draft(step, Path(fields["model"]).expanduser(), technique.settings()["speculation"]["draft"])


BUILDS: Mapping[str, Callable[[Technique, Step], None]] = {
    "as-is": _as_is,
    "draft": _draft,
    "eagle": lambda technique, step: technique.build(step),
}
"""What is built for it, by the technique's name: each leaves a Hugging Face directory. What rounds weights is in `quantise`."""
SETS = frozenset({"prefix-caching", "chunked-prefill", "kv-cache", "prompt-lookup", "compile"})
"""Techniques that are only settings, and that it serves."""
