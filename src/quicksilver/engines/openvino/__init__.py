"""OpenVINO on the CPU: continuous batching, speculation, weights in 16, 8 and 4 bits."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quicksilver.errors import EngineError
from quicksilver.nouns.engine import Decoder, Endpoint, Engine
from quicksilver.nouns.settings import Settings
from quicksilver.nouns.speculation import SpeculationTable
from quicksilver.nouns.steps import StepShape, StepTimings
from quicksilver.nouns.workload import Prompt

if TYPE_CHECKING:
    from quicksilver.nouns.hardware import Hardware
    from quicksilver.nouns.model import ModelFacts

FEW = 4
"""Tokens of a step up to which one layout of the weights serves."""


class OpenVino(Engine):
    """OpenVINO behind our gateway, in a process of its own: our decoder, or GenAI's pipeline for a draft model."""

    name = "openvino"
    format = "openvino-ir"
    modules = ("openvino_genai", "openvino_tokenizers")

    def version(self) -> str:
        try:
            return f"OpenVINO GenAI {version('openvino-genai')}"
        except PackageNotFoundError as error:
            raise EngineError(
                "The engine openvino isn't installed; pip install 'quicksilver[serve]' adds it."
            ) from error

    def tools(self) -> dict[str, str]:
        found = {}
        for name in ("openvino", "openvino-tokenizers", "nncf", "optimum-intel", "transformers", "torch"):
            with contextlib.suppress(PackageNotFoundError):
                found[name] = version(name)
        return found

    def choices(self, hardware: Hardware, streams: int) -> Mapping[str, tuple[Any, ...]]:
        # The KV cache is as large as the streams can use, and memory that isn't touched isn't taken: a smaller one only makes
        # sequences start over. A batch larger than the load, and smaller than the default, serves the same steps.
        found = dict(super().choices(hardware, streams))
        del found["kv_cache_gb"]
        found["max_streams"] = tuple(n for n in found["max_streams"] if n == 64 or n < streams)
        return found

    def weights_mb(self, facts: ModelFacts, size_mb: float, streams: int) -> float:
        # The file is mapped, and read whole to lay its matrices out for the CPU. Those of the layers are laid out once more
        # for steps of several tokens, such as streams decode in together (seen from 8 on, and not up to 4).
        embedding_mb = facts.embedding_parameters * max(1.0, size_mb * 1e6 / facts.parameters) / 1e6
        return 2 * size_mb + (size_mb - embedding_mb if streams > FEW else 0.0)

    def step_mb(self, facts: ModelFacts, tokens: int, rows: int, *, rounded: bool) -> float:
        # Buffers of two layers are alive at once; where weights are rounded, activations are rounded to 8 bits beside them.
        each = 5 if rounded else 4
        return (2 * each * facts.forward_elements(tokens) + 4 * rows * facts.vocab_size) / 1e6

    @contextmanager
    def serve(
        self, artifact: Path, settings: Settings, *, port: int = 0, log: Path | None = None
    ) -> Iterator[Endpoint]:
        from quicksilver.engines.openvino.files import check_room
        from quicksilver.engines.process import serve_process

        self.version()
        check_room(artifact, self.runtime_mb)
        with serve_process(self.name, artifact, settings, port=port, log=log, python=sys.executable) as endpoint:
            yield endpoint

    def compile(self, artifact: Path, settings: Settings) -> None:
        if settings.speculation is not None and settings.speculation.kind == "draft":
            return  # GenAI compiles at each start, whatever its cache has
        from quicksilver.engines.openvino.compiled import open_graph
        from quicksilver.engines.openvino.files import properties_of

        open_graph(artifact, properties_of(settings), keep=True)

    def speculation_table(
        self, artifact: Path, settings: Settings, answers: Sequence[tuple[Prompt, str]]
    ) -> SpeculationTable | None:
        if settings.speculation is None or settings.speculation.kind != "prompt_lookup" or not answers:
            return None
        from quicksilver.engines.openvino.measure import Job, measure_apart

        return measure_apart(Job(artifact=artifact, settings=settings, answers=tuple(answers)))

    def time_steps(
        self,
        artifact: Path,
        settings: Settings,
        shapes: Sequence[StepShape],
        say: Callable[[int, int], None],
        *,
        budget_s: float,
    ) -> StepTimings | None:
        if settings.speculation is not None and settings.speculation.kind == "draft":
            return None  # GenAI runs these
        from quicksilver.engines.openvino.steps import time_apart

        return time_apart(artifact, settings, shapes, say, budget_s=budget_s)

    def open(self, artifact: Path, settings: Settings) -> Decoder:
        from quicksilver.engines.openvino.files import check_room

        check_room(artifact, self.runtime_mb)
        _import_lightly()
        if settings.speculation is not None and settings.speculation.kind == "draft":
            from quicksilver.engines.openvino.genai import GenAiDecoder

            return GenAiDecoder(artifact, settings)
        from quicksilver.engines.openvino.paged import PagedDecoder

        return PagedDecoder(artifact, settings)


def _import_lightly() -> None:
    """Import openvino without its converters, and numpy without threads of its own: each takes half of its library's time.

    The converters come when they are called; nothing that serves multiplies matrices in numpy.
    """
    converters, threads = "openvino.tools.ovc", "OPENBLAS_NUM_THREADS"
    modules: dict[str, Any] = sys.modules
    if "openvino" in modules or converters in modules:
        return
    own = threads not in os.environ
    os.environ.setdefault(threads, "1")
    modules[converters] = None  # openvino does without them where they aren't installed
    try:
        import openvino
    finally:
        del modules[converters]
        if own:
            del os.environ[threads]

    def convert_model(*values: Any, **named: Any) -> Any:
        from openvino.tools.ovc import convert_model as convert

        return convert(*values, **named)

    openvino.convert_model = convert_model
