"""Engine: what runs an artefact, and the small seam through which the gateway drives one that is embedded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from quicksilver.errors import IllegalRecipeError

if TYPE_CHECKING:
    from quicksilver.environments import NativeBuild
    from quicksilver.nouns.hardware import Hardware
    from quicksilver.nouns.model import ModelFacts
    from quicksilver.nouns.settings import Settings
    from quicksilver.nouns.speculation import SpeculationTable
    from quicksilver.nouns.steps import StepShape, StepTimings
    from quicksilver.nouns.technique import Step, Technique
    from quicksilver.nouns.workload import Prompt


LEAST_THREADS = 4
"""Cores are left idle because memory is the limit, which fewer threads don't come near: one of two cores gave 0.55 to 0.67x."""


@dataclass(slots=True)
class Endpoint:
    """A running server that speaks the OpenAI API."""

    url: str
    """Base URL that ends in /v1."""
    model: str
    pid: int | None = None
    load_s: float | None = None
    """Seconds from process start until it was ready."""
    begun: float | None = None
    """When its process started, by time.monotonic(); None for one that somebody else started."""
    api_key: str | None = None
    peak_memory_mb: Callable[[], float | None] = field(default=lambda: None)
    """Peak resident memory of the server process so far, MB."""
    alive: Callable[[], bool] = field(default=lambda: True)
    """Whether its process still runs, as far as it is known."""


@dataclass(frozen=True, slots=True)
class Command:
    """How another program's server is started."""

    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    """What is added to ours."""
    explain: Callable[[Sequence[str]], str | None] = lambda _: None
    """Finds in the last lines of its log the sentence that says why it ended."""
    ready_timeout_s: float = 300
    """How long it may take until it is ready."""


@dataclass(slots=True)
class Request:
    """One sequence for an embedded engine to decode, in token ids."""

    prompt: list[int]
    max_tokens: int = 256
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignore_eos: bool = False
    logprobs: bool = False
    echo: bool = False
    """Return the log-probabilities of the prompt's own tokens in the first burst."""
    speculate_tokens: int | None = None
    """Tokens guessed ahead in a step, at most; None leaves it to the settings, 0 is none."""
    top_logprobs: int = 0
    """Likeliest tokens to tell beside each chosen one, and with echo beside each of the prompt's."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of tokens."""
    grammar: str | None = None
    """What the answer has to follow: an llguidance grammar, JSON or Lark text."""


@dataclass(slots=True)
class Burst:
    """What one step of an embedded engine gave one sequence: one token, or several under speculation."""

    tokens: list[int]
    logprobs: list[float] | None = None
    """Natural logarithms, one a token; None unless they were asked for."""
    top_logprobs: list[list[tuple[int, float]]] | None = None
    """For each token the likeliest ones with their log-probabilities, as many as were asked for."""
    prompt_logprobs: list[float | None] | None = None
    """One for each prompt token, None for the first; only in the first burst, only with echo."""
    prompt_top_logprobs: list[list[tuple[int, float]]] | None = None
    """For each of those the likeliest ones in its place; None from an engine that doesn't tell."""
    finish: Literal["stop", "length", "cancelled", "error", "lost", "refused"] | None = None
    """Why it is the last; `lost` if the engine died under it, `refused` if it can't honour the request."""
    error: str | None = None
    drafted: int = 0
    """Tokens that were guessed ahead for this step and checked in it."""
    accepted: int = 0
    """Those of them that were right."""


@dataclass(frozen=True, slots=True)
class DecoderStats:
    """What a decoder is doing, and has done since it began."""

    running: int = 0
    """Sequences that are decoded."""
    waiting: int = 0
    """Sequences that wait for their turn."""
    cache_usage: float = 0.0
    """Share of the KV cache that sequences hold, 0 to 1."""
    drafted: int = 0
    """Guessed tokens that were checked."""
    accepted: int = 0
    """Those of them that were right."""


class Decoder(ABC):
    """An engine behind the gateway: sequences go in as token ids, bursts come out.

    `deliver` is called from the decoder's own thread, in order, and for the last time with `finish` set.
    """

    @property
    def ready(self) -> bool:
        """Whether it takes sequences now."""
        return True

    @abstractmethod
    def submit(self, request: Request, deliver: Callable[[Burst], None]) -> int:
        """Queue a sequence and return its number.

        Raises ValueError for a request that it can't honour (or ends it as `refused`), EngineError while it isn't ready.
        """

    @abstractmethod
    def cancel(self, number: int) -> None:
        """Stop a sequence; its last burst says `cancelled`. A number that has finished is ignored."""

    @abstractmethod
    def stats(self) -> DecoderStats:
        """Return what it is doing; may be called from any thread."""

    @abstractmethod
    def close(self) -> None:
        """Stop the decoder's thread and free the model."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an engine's server can do besides answering, and streaming, conversations and texts."""

    logprobs: bool = True
    """Tells the log-probability of each token that it chose (`logprobs`)."""
    prompt_logprobs: bool = True
    """Tells those of the prompt's own tokens (`echo` with `logprobs`). Without, quality is the task's score and the answers."""
    prompt_top_logprobs: bool = True
    """Tells the likeliest tokens in the places of the prompt's, too."""
    token_prompts: bool = True
    """Takes prompts in token ids, as its /tokenize gives them."""
    exact: bool = True
    """Gives the same greedy answer again, to the letter."""
    drains: bool = True
    """Finishes the answers under way when its server is told to end (SIGTERM)."""
    owned: bool = True
    """Its server is a process of ours: it starts, ends and is accounted for here."""
    own_server: bool = False
    """Answers by its own server (`Engine.command`), and not behind our gateway: that has no recording and no taking over."""
    pretends: bool = False
    """Has no model behind its answers, such as `fake`: a search of all engines leaves it out."""
    native: bool = False
    """Can be built for this machine's CPU (`build_native`)."""
    running: str = "vllm:num_requests_running"
    """The gauge in its /metrics that counts the answers that it works on."""


class Engine(ABC):
    """Runs artefacts of one format. Its file's name under `engines` is its name."""

    name: ClassVar[str]
    format: ClassVar[str]
    """The weight format it serves; technique steps are built for it."""
    reads_gguf: ClassVar[bool] = False
    """Whether its steps take a GGUF as it comes; for others it is converted to a Hugging Face directory first."""
    stack: ClassVar[str] = "default"
    """The environment (a lock file under envs/) that its builds need."""
    environment: ClassVar[str] = "default"
    """The environment that it serves from; `quicksilver engine add` makes one that isn't ours (`quicksilver.environments`)."""
    python_variable: ClassVar[str] = ""
    """The environment variable that can name the Python of another environment, which is used instead."""
    modules: ClassVar[tuple[str, ...]] = ()
    """What has to be importable in that environment; `quicksilver engine doctor` tries."""
    isa: ClassVar[tuple[str, ...]] = ()
    """The instruction sets of x86 that its packages are built for, as `quicksilver.hardware.instructions` names them."""
    abilities: ClassVar[Abilities] = Abilities()
    runtime_mb: ClassVar[float] = 250.0
    """About what its server takes besides weights, cache and steps: interpreter, libraries and gateway."""
    kv_precisions: ClassVar[frozenset[str]] = frozenset({"f32", "f16", "bf16", "u8", "u4"})
    """Those of cached keys and values that a technique may set for it."""

    @abstractmethod
    def version(self) -> str:
        """Return the engine's version, or raise EngineError if it isn't installed."""

    def build_native(self, build: NativeBuild) -> None:
        """Build its server for this machine's CPU into `build.target`. Raises EngineError; called for `engine add --native`."""
        raise TypeError(f"The engine {self.name!r} has no native build.")

    def tools(self) -> dict[str, str]:
        """Return the versions of what its builds are made with: another version may build something else."""
        return {}

    def choices(self, hardware: Hardware, streams: int) -> Mapping[str, tuple[Any, ...]]:
        """Return the values that a search tries for each setting, on a machine under a load of up to so many streams.

        By default what Settings names, with LEAST_THREADS or more threads if they leave cores idle, and no batch that is smaller than
        half of the load. An engine that has no use for a setting leaves it out.
        """
        from quicksilver.nouns.choices import choices_of
        from quicksilver.nouns.settings import Settings

        found = dict(choices_of(Settings))
        found["threads"] = tuple(n for n in found["threads"] if not n or LEAST_THREADS <= n < hardware.cores)
        found["max_streams"] = tuple(n for n in found["max_streams"] if 2 * n >= streams)
        return found

    def takes_device(self) -> bool:
        """Say whether its server takes a device's memory for itself, whatever the model needs, so that none runs beside it."""
        return False

    def cache_tokens(self, settings: Settings, facts: ModelFacts, held: int) -> int:
        """Return the tokens of KV cache that take memory while a load holds so many.

        By default these, since memory that isn't touched isn't taken; an engine that takes its cache whole at the start says how much that is.
        """
        return held

    def weights_mb(self, facts: ModelFacts, size_mb: float, streams: int) -> float:
        """Return what weights take in memory that take `size_mb` in the artefact, under so many streams: by default as much."""
        return size_mb

    def step_mb(self, facts: ModelFacts, tokens: int, rows: int, *, rounded: bool) -> float:
        """Return what a step over so many tokens holds at once, MB, with the logits of so many rows.

        `rounded` is whether weights have 8 bits or fewer. By default one layer's elements in 32 bits.
        """
        return 4 * (facts.forward_elements(tokens) + rows * facts.vocab_size) / 1e6

    def check(self, technique: Technique) -> None:
        """Raise IllegalRecipeError for a technique that it can't build or serve: by default one that is for other formats.

        An engine that knows some techniques only says so here; a plan and a search ask before anything is built.
        """
        if technique.formats and self.format not in technique.formats:
            raise IllegalRecipeError(
                f"{technique.name()} is for {' or '.join(sorted(technique.formats))}, and the engine {self.name} serves {self.format}."
            )
        precision = technique.settings().get("kv_precision")
        if precision is not None and precision not in self.kv_precisions:
            raise IllegalRecipeError(
                f"The engine {self.name} keeps no keys and values in {precision}; it takes {', '.join(sorted(self.kv_precisions))}."
            )

    def build_needs_mb(self, technique: Technique, facts: ModelFacts) -> tuple[float, float]:
        """Estimate the peak resident memory of a technique's build step for this engine, and the most disk that it has, MB."""
        return technique.build_memory_mb(facts), technique.disk_mb(facts)

    def apply(self, technique: Technique, step: Step) -> None:
        """Run a technique's build step for this engine's format. Called in the worker's process."""
        technique.build(step)

    @abstractmethod
    def serve(
        self, artifact: Path, settings: Settings, *, port: int = 0, log: Path | None = None
    ) -> AbstractContextManager[Endpoint]:
        """Serve an artefact on loopback until the context ends; port 0 takes a free one."""

    def command(
        self, artifact: Path, settings: Settings, *, host: str, port: int, api_keys: Sequence[str] = ()
    ) -> Command | None:
        """Return how its own server is started at a place, for an engine that the gateway doesn't embed; None for others.

        Raises BadInputError, NotEnoughError for what can't be served, before anything starts.
        """
        return None

    def compile(self, artifact: Path, settings: Settings) -> None:  # noqa: B027  nothing is a fair way to do it
        """Do ahead of time, in a process of its own, what the first start would do once for all. Not every engine has such."""

    def speculation_table(
        self, artifact: Path, settings: Settings, answers: Sequence[tuple[Prompt, str]]
    ) -> SpeculationTable | None:
        """Measure what guessing costs on this machine, and what it gains on prompts with their answers.

        None for an engine, or a kind of speculation, that doesn't follow the load. Raises EngineError if measuring fails.
        """
        return None

    def time_steps(
        self,
        artifact: Path,
        settings: Settings,
        shapes: Sequence[StepShape],
        say: Callable[[int, int], None],
        *,
        budget_s: float,
    ) -> StepTimings | None:
        """Time an artefact's steps on this machine, in a process of its own; `say` gets how many are done, and of how many.

        None for an engine whose steps can't be asked for one by one. Raises EngineError if timing fails.
        """
        return None

    def open(self, artifact: Path, settings: Settings) -> Decoder:
        """Open an artefact inside this process, for engines that the gateway embeds."""
        raise TypeError(f"The engine {self.name!r} is not embedded: it runs as a server of its own.")
