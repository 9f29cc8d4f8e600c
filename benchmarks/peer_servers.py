"""What a user would otherwise start by hand: other servers, each from its own environment and with its own defaults."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from quicksilver import engines, environments
from quicksilver.engines.process import HOST, LOCAL
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns import Endpoint, Model
from quicksilver.sources import gguf
from quicksilver.sources.home import home

HERE = Path(__file__).parent
READY_S = 600
GRACE_S = 10
POLL_S = 0.2
# Runs a command, and ends it and all that it started once whoever asked for it is gone: then stdin is at its end.
WATCH = (
    "import os, signal, subprocess, sys, threading\n"
    "child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)\n"
    "signal.signal(signal.SIGTERM, lambda *_: child.terminate())\n"
    "threading.Thread(target=lambda: (os.read(0, 1), os.killpg(0, signal.SIGKILL)), daemon=True).start()\n"
    "sys.exit(child.wait())\n"
)


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


def _genai(materials: Materials, port: int) -> Sequence[str]:
    return [sys.executable, str(HERE / "peer_genai.py"), str(materials.int8), "--port", str(port)]


def _vllm(materials: Materials, port: int) -> Sequence[str]:
    words = [str(environments.python("vllm")), "-m", "vllm.entrypoints.openai.api_server"]
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
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
PEERS = {
    "transformers serve": Peer("bf16", _transformers, _version("transformers", "transformers", "transformers"), QUIET),
    "llama.cpp server": Peer("GGUF as it comes", _llamacpp, _version("llamacpp", "xllamacpp", "xllamacpp")),
    "OpenVINO GenAI": Peer("int8", _genai, _version("default", "openvino-genai", "OpenVINO GenAI")),
    "vLLM": Peer(
        "bf16",
        _vllm,
        _version("vllm", "vllm-cpu", "vLLM"),
        QUIET | VLLM | {"OMP_NUM_THREADS": str(os.cpu_count() or 1)},
    ),
}
"""By the name that the table shows."""


@contextmanager
def started(peer: Peer, materials: Materials, log: Path) -> Iterator[Endpoint]:
    """Start a peer, wait until it is ready, and end it and all that it started with the context. Raises EngineError."""
    port = free_port()
    command = [str(word) for word in peer.command(materials, port)]
    with running(command, peer.environment, port, log) as endpoint:
        yield endpoint


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], port: int, log: Path) -> Iterator[Endpoint]:
    """Run a server's command until the context ends. Raises EngineError with its last words if it isn't ready in time."""
    begun = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", WATCH, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": "", **environment},
        )
        try:
            model = _ready(process, f"http://{HOST}:{port}", begun, log)
            yield Endpoint(
                url=f"http://{HOST}:{port}/v1",
                model=model,
                pid=process.pid,
                load_s=time.monotonic() - begun,
                begun=begun,
            )
        finally:
            _end(process)


def free_port() -> int:
    """Return a port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _ready(process: subprocess.Popen[bytes], url: str, begun: float, log: Path) -> str:
    """Wait until a server is healthy and lists its model, and return that."""
    while time.monotonic() - begun < READY_S:
        if process.poll() is not None:
            words = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            raise EngineError(f"it ended as it started: {words[-1].strip() if words else process.returncode}")
        try:
            with LOCAL.open(f"{url}/health", timeout=5):
                pass
            with LOCAL.open(f"{url}/v1/models", timeout=30) as answer:
                listed = json.load(answer)["data"]
            if listed:
                return str(listed[0]["id"])
        except OSError:
            pass  # not listening yet, or not ready
        time.sleep(POLL_S)
    raise EngineError(f"it wasn't ready within {READY_S} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and all that it started: SIGTERM, later SIGKILL."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
