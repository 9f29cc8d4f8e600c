"""What a user would otherwise start by hand: other servers, each from its own environment and with its own defaults."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from quicksilver import engines, environments
from quicksilver.engines.process import HOST, serve_command
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns import Command, Endpoint, Model
from quicksilver.sources import gguf
from quicksilver.sources.home import home

HERE = Path(__file__).parent
READY_S = 600


@dataclass
class Materials:
    """The model in the forms that servers read; each is made once, on first use, and kept."""

    model: Model
    transformers: Path
    """The environment with transformers' own server, which is no engine of ours."""
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = home() / "peers" / self.model.fingerprint[:16]

    @cached_property
    def as_is(self) -> Path:
        """A Hugging Face directory in bfloat16, as the hub has the model."""
        return self._made("as-is", self._to_bf16)

    @cached_property
    def gguf(self) -> Path:
        """The GGUF as it comes. Raises BadInputError for a model that comes otherwise."""
        if self.model.kind != "gguf":
            raise BadInputError(f"{self.model.name} doesn't come as a GGUF.")
        return self.model.path

    @cached_property
    def int8(self) -> Path:
        """An OpenVINO IR with 8-bit weights, as `optimum-cli export openvino --weight-format int8` makes it."""
        return self._made("openvino-int8", self._to_int8)

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        target = self.folder / name
        if not target.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder) as work:
                made = Path(work) / name
                make(made)
                made.rename(target)
        return target

    def _to_bf16(self, target: Path) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        if self.model.kind == "gguf":
            gguf.convert(self.model.path, target)
        else:
            shutil.copytree(self.model.path, target)
        for file in target.glob("*.safetensors"):
            halves = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}
            save_file(halves, file, metadata={"format": "pt"})
        config = json.loads((target / "config.json").read_text(encoding="utf-8"))
        config.pop("torch_dtype", None)
        (target / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}), encoding="utf-8")

    def _to_int8(self, target: Path) -> None:
        command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino"]
        command += ["--model", str(self.as_is), "--task", "text-generation-with-past", "--weight-format", "int8"]
        done = subprocess.run([*command, str(target)], capture_output=True, encoding="utf-8", check=False)
        if done.returncode:
            words = done.stderr.strip().splitlines() or ["no word of why"]
            raise EngineError(f"optimum-cli made no int8 model: {words[-1]}.")


@dataclass(frozen=True, slots=True)
class Peer:
    """A server of others: what it serves, and the command that starts it on a port of loopback."""

    weights: str
    command: Callable[[Materials, int], Sequence[str]]
    version: Callable[[Materials], str]
    environment: Mapping[str, str] = field(default_factory=dict)


def _transformers(materials: Materials, port: int) -> Sequence[str]:
    script = materials.transformers / "bin" / "transformers"
    if not script.is_file():
        raise EngineError(f"There is no {script}; make peers installs it.")
    return [str(script), "serve", str(materials.as_is), "--host", HOST, "--port", str(port)]


def _llamacpp(materials: Materials, port: int) -> Sequence[str]:
    # Its own words for the package's server; four slots that share the context are llama-server's default, and not the package's.
    script = Path(engines.__file__).parent / "llamacpp" / "server.py"
    words = [str(environments.python("llamacpp")), str(script), "--model", str(materials.gguf)]
    return [
        *words,
        "--alias",
        materials.model.name,
        "--host",
        HOST,
        "--port",
        str(port),
        "--parallel",
        "4",
        "--kv-unified",
    ]


def _llamacpp_native(materials: Materials, port: int) -> Sequence[str]:
    folder = environments.native("llamacpp")
    if folder is None:
        raise EngineError("llama.cpp isn't built for this CPU; quicksilver engine add llamacpp --native builds it.")
    return [str(folder / "llama-server"), "--model", str(materials.gguf), "--host", HOST, "--port", str(port)]


def _genai(materials: Materials, port: int) -> Sequence[str]:
    return [sys.executable, str(HERE / "peer_genai.py"), str(materials.int8), "--port", str(port)]


def _vllm(materials: Materials, port: int) -> Sequence[str]:
    python = environments.python("vllm")
    variables = [f"VLLM_CACHE_ROOT={materials.folder / 'vllm'}"]
    openmp = python.parent.parent / "lib" / "libiomp5.so"
    if openmp.is_file():  # its documentation asks for it
        variables.append(f"LD_PRELOAD={openmp}")
    words = ["env", *variables, str(python), "-m", "vllm.entrypoints.openai.api_server"]
    return [*words, "--model", str(materials.as_is), "--host", HOST, "--port", str(port)]


def _version(environment: str, package: str, name: str) -> Callable[[Materials], str]:
    def ask(materials: Materials) -> str:
        script = f"from importlib.metadata import version; print(version({package!r}))"
        own = environment == "transformers"
        python = materials.transformers / "bin" / "python" if own else environments.python(environment)
        command = [str(python), "-c", script]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
        return f"{name} {done.stdout.strip()}" if done.returncode == 0 else name

    return ask


VLLM = {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "4"}
"""Without the first two it keeps a core free, which on a machine of two leaves it one; its cache would take most of the memory."""
QUIET = {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
PEERS = {
    "transformers serve": Peer("bf16", _transformers, _version("transformers", "transformers", "transformers")),
    "llama.cpp server": Peer("GGUF as it comes", _llamacpp, _version("llamacpp", "xllamacpp", "xllamacpp")),
    "llama.cpp server, built here": Peer("GGUF as it comes", _llamacpp_native, lambda _: "llama-server, for this CPU"),
    "OpenVINO GenAI": Peer("int8", _genai, _version("default", "openvino-genai", "OpenVINO GenAI")),
    "vLLM": Peer(
        "bf16",
        _vllm,
        _version("vllm", "vllm-cpu", "vLLM"),
        VLLM | {"OMP_NUM_THREADS": str(os.cpu_count() or 1)},
    ),
}
"""By the name that the table shows."""


@contextmanager
def started(peer: Peer, materials: Materials, log: Path) -> Iterator[Endpoint]:
    """Start a peer, wait until it is ready, and end it and all that it started with the context. Raises EngineError."""

    def make(port: int) -> Command:
        words = [str(word) for word in peer.command(materials, port)]
        return Command(words, QUIET | {"HF_HOME": str(materials.folder / "hub"), **peer.environment})

    with serve_command(make, log=log, ready_timeout_s=READY_S) as endpoint:
        yield endpoint
