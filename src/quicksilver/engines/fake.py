"""fake: a deterministic engine for tests and demos. It needs a tokenizer and no weights, and its speed is set.

It decodes a small language model that is a pure function: after a prompt it copies the prompt's tokens from a place
that a hash chooses, and then ends. At each position eight tokens have logits, so penalties, temperature, top_k, top_p
and log-probabilities mean what they mean elsewhere. Speculation and the number of streams change when tokens come,
never which (see `step_ms`).

`Settings.properties`: `load_ms`, `prefill_ms_per_token`, `decode_ms`, `batch_cost`, `draft_cost`, all 0 or more.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import math
import random
import shutil
import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from quicksilver import __version__
from quicksilver.engines.grammar import Grammar, Grammars
from quicksilver.engines.process import serve_process
from quicksilver.errors import BadInputError
from quicksilver.nouns import (
    Burst,
    Decoder,
    Endpoint,
    Engine,
    Hardware,
    Prompt,
    Request,
    Settings,
    Speculation,
    SpeculationTable,
    Step,
    Technique,
)
from quicksilver.nouns.engine import Abilities, DecoderStats

FILE = "fake.json"
NOT_WEIGHTS = ("*.json", "*.jinja", "*.model", "*.txt")
CANDIDATES = 8
"""Tokens that have a logit at each position."""
UNLIKELY = -20.0
"""The logit of another token that a request gives a bias to."""
PROPERTIES = {"load_ms": 0.0, "prefill_ms_per_token": 0.0, "decode_ms": 0.0, "batch_cost": 0.1, "draft_cost": 0.05}
# What a technique does to the time of a prefill and of a decode step, and by how many nats it lowers log-probabilities.
EFFECTS = {
    "int8": (0.85, 0.7, 0.004),
    "int4": (0.95, 0.55, 0.12),
    "awq": (0.95, 0.55, 0.05),
    "gptq": (0.95, 0.55, 0.06),
    "mixed": (0.9, 0.6, 0.02),
    "w8a8": (0.65, 0.75, 0.015),
}
NO_EFFECT = (1.0, 1.0, 0.0)


def step_ms(decode_ms: float, streams: int, drafted: int, *, batch_cost: float, draft_cost: float) -> float:
    """Return the ms of a decode step: each further stream adds `batch_cost` of `decode_ms`, each drafted token `draft_cost`.

    `drafted` counts the tokens of all streams, so speculation wins less as the load grows.
    """
    return decode_ms * (1 + batch_cost * (streams - 1) + draft_cost * drafted)


class Fake(Engine):
    """Answers from a pure function of the prompt, at a speed that the settings say."""

    name: ClassVar[str] = "fake"
    format: ClassVar[str] = "fake"
    abilities: ClassVar[Abilities] = Abilities(pretends=True)

    def version(self) -> str:
        """Return the project's version: it is built in."""
        return __version__

    def choices(self, hardware: Hardware, streams: int) -> Mapping[str, tuple[Any, ...]]:
        """Return the batch limits that a load notices: nothing else changes its times."""
        found = super().choices(hardware, streams)["max_streams"]
        return {"max_streams": tuple(n for n in found if n == found[0] or n < streams)}

    def apply(self, technique: Technique, step: Step) -> None:
        """Copy everything but weights, and note the technique in fake.json."""
        for pattern in NOT_WEIGHTS:
            for file in step.source.glob(pattern):
                shutil.copyfile(file, step.target / file.name)  # without its mode: what's stored is read-only
        done = _read_techniques(step.source)
        prefill, decode, nats = EFFECTS.get(technique.name(), NO_EFFECT)
        done.append(
            {"name": technique.name(), "label": technique.label, "prefill": prefill, "decode": decode, "nats": nats}
        )
        (step.target / FILE).write_text(json.dumps({"techniques": done}, indent=1) + "\n", encoding="utf-8")

    def serve(
        self, artifact: Path, settings: Settings, *, port: int = 0, log: Path | None = None
    ) -> AbstractContextManager[Endpoint]:
        """Serve through the gateway, in a process of its own."""
        return serve_process(self.name, artifact, settings, port=port, log=log)

    def speculation_table(
        self, artifact: Path, settings: Settings, answers: Sequence[tuple[Prompt, str]]
    ) -> SpeculationTable | None:
        """Return what `step_ms` says, and that half of what is guessed holds. It doesn't decode by it."""
        if settings.speculation is None:
            return None
        times = {name: float(settings.properties.get(name, value)) for name, value in PROPERTIES.items()}
        streams, lengths = (1, 4), (0, settings.speculation.tokens)
        costs = {"batch_cost": times["batch_cost"], "draft_cost": times["draft_cost"]}
        decode_ms = times["decode_ms"] or 1.0
        return SpeculationTable(
            machine="none",
            engine=f"fake {self.version()}",
            threads=1,
            context_tokens=1,
            streams=streams,
            lengths=lengths,
            step_ms=tuple(tuple(step_ms(decode_ms, n, n * length, **costs) for length in lengths) for n in streams),
            guessed=lengths,
            gained=tuple(1 + length / 2 for length in lengths),
        )

    def open(self, artifact: Path, settings: Settings) -> FakeDecoder:
        """Open a folder that has a config.json. Raises BadInputError for an unknown property."""
        return FakeDecoder(artifact, settings)


@dataclass(slots=True, eq=False)
class _Sequence:
    number: int
    request: Request
    deliver: Callable[[Burst], None]
    digest: int
    source: list[int]
    """What it copies from: the prompt without tokens that end an answer."""
    random: random.Random
    grammar: Grammar | None
    tokens: list[int] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    cancelled: bool = False


class FakeDecoder(Decoder):
    """One thread that steps all running sequences together, and sleeps while there are none."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._max_streams = settings.max_streams
        self._speculation: Speculation | None = settings.speculation
        unknown = set(settings.properties) - set(PROPERTIES)
        if unknown:
            raise BadInputError(f"The fake engine has no property {min(unknown)!r}.")
        times = {name: float(settings.properties.get(name, value)) for name, value in PROPERTIES.items()}
        techniques = _read_techniques(folder)
        time.sleep(times["load_ms"] / 1000)
        self._prefill_ms = times["prefill_ms_per_token"] * math.prod(t["prefill"] for t in techniques)
        self._decode_ms = times["decode_ms"] * math.prod(t["decode"] for t in techniques)
        self._batch_cost, self._draft_cost = times["batch_cost"], times["draft_cost"]
        self._nats = sum(t["nats"] for t in techniques)
        config = _read_config(folder)
        self._eos = _eos(folder, config)
        self._vocab_size = int(config.get("vocab_size", 2))
        self._grammars = Grammars(folder, self._eos)
        self._changed = threading.Condition()
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._known: dict[int, _Sequence] = {}
        self._numbers = 0
        self._guessed = self._right = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="fake-decoder", daemon=True)
        self._thread.start()

    def submit(self, request: Request, deliver: Callable[[Burst], None]) -> int:
        """Queue a sequence. Raises ValueError for an empty prompt, and for a grammar that can't be compiled."""
        if not request.prompt:
            raise ValueError("The prompt has no tokens.")
        digest = _digest(array("q", request.prompt).tobytes())
        grammar = None if request.grammar is None else self._grammars.compile(request.grammar)
        source = [token for token in request.prompt if token not in self._eos] or [0]
        with self._changed:
            self._numbers += 1
            sequence = _Sequence(self._numbers, request, deliver, digest, source, random.Random(request.seed), grammar)
            self._known[sequence.number] = sequence
            self._waiting.append(sequence)
            self._changed.notify()
            return sequence.number

    def cancel(self, number: int) -> None:
        """Stop a sequence at the next step."""
        with self._changed:
            sequence = self._known.get(number)
            if sequence is not None:
                sequence.cancelled = True
                self._changed.notify()

    def stats(self) -> DecoderStats:
        """Return what it is doing."""
        with self._changed:
            return DecoderStats(
                running=len(self._running),
                waiting=len(self._waiting),
                cache_usage=len(self._running) / self._max_streams,
                drafted=self._guessed,
                accepted=self._right,
            )

    def close(self) -> None:
        """Cancel what runs and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._closed):
                    self._changed.wait()
                if self._closed:
                    for sequence in [*self._running, *self._waiting]:
                        sequence.deliver(Burst([], finish="cancelled"))
                    return
                gone = [s for s in [*self._running, *self._waiting] if s.cancelled]
                self._running = [s for s in self._running if not s.cancelled]
                self._waiting = deque(s for s in self._waiting if not s.cancelled)
                new: list[_Sequence] = []
                while self._waiting and len(self._running) + len(new) < self._max_streams:
                    new.append(self._waiting.popleft())
            for sequence in gone:
                self._end(sequence, Burst([], finish="cancelled"))
            self._step(new)

    def _step(self, new: list[_Sequence]) -> None:
        """Prefill the new sequences, then give every running one its next token, or several that were guessed."""
        running = self._running = [*self._running, *new]
        if not running:
            return
        prefill = self._prefill_ms * sum(len(sequence.request.prompt) for sequence in new)
        drafted = {sequence.number: self._drafted(sequence) for sequence in running}
        decode = step_ms(
            self._decode_ms,
            len(running),
            sum(drafted.values()),
            batch_cost=self._batch_cost,
            draft_cost=self._draft_cost,
        )
        if prefill + decode > 0:
            time.sleep((prefill + decode) / 1000)
        bursts = [(sequence, self._burst(sequence, drafted[sequence.number], sequence in new)) for sequence in running]
        self._running = [sequence for sequence, burst in bursts if burst.finish is None]
        for sequence, burst in bursts:
            if burst.finish is None:
                sequence.deliver(burst)
            else:
                self._end(sequence, burst)

    def _end(self, sequence: _Sequence, burst: Burst) -> None:
        with self._changed:
            del self._known[sequence.number]
        sequence.deliver(burst)

    def _drafted(self, sequence: _Sequence) -> int:
        if self._speculation is None:
            return 0
        wanted = sequence.request.speculate_tokens
        return self._speculation.tokens if wanted is None else wanted

    def _burst(self, sequence: _Sequence, drafted: int, first: bool) -> Burst:
        """Decode the next token, and those of the drafted that a hash of the position accepts."""
        request = sequence.request
        burst = Burst([], logprobs=[] if request.logprobs else None, top_logprobs=[] if request.logprobs else None)
        if first and request.echo:
            burst.prompt_logprobs = [None, *itertools.starmap(self._score, itertools.pairwise(request.prompt))]
            burst.prompt_top_logprobs = [
                [],
                *(self._likeliest(request, *pair) for pair in itertools.pairwise(request.prompt)),
            ]
        accepted = _digest(sequence.digest, len(sequence.tokens)) % (drafted + 1)
        burst.drafted, burst.accepted = drafted, accepted
        self._guessed += drafted
        self._right += accepted
        for _ in range(1 + accepted):
            if len(sequence.tokens) >= request.max_tokens:
                burst.finish = "length"
                break
            try:
                token, logprob, top = self._next(sequence)
            except ValueError as error:  # its grammar leads nowhere
                burst.finish, burst.error = "error", str(error)
                break
            sequence.tokens.append(token)
            sequence.counts[token] += 1
            burst.tokens.append(token)
            if burst.logprobs is not None and burst.top_logprobs is not None:
                burst.logprobs.append(logprob)
                burst.top_logprobs.append(top)
            over = sequence.grammar is not None and sequence.grammar.over
            if over or (token in self._eos and not request.ignore_eos):
                burst.finish = "stop"
                break
        if burst.finish is None and len(sequence.tokens) >= request.max_tokens:
            burst.finish = "length"
        return burst

    def _next(self, sequence: _Sequence) -> tuple[int, float, list[tuple[int, float]]]:
        """Choose the next token; return it with its log-probability before temperature and penalties, and the likeliest ones."""
        request = sequence.request
        logits: dict[int, float] = dict.fromkeys(request.logit_bias, UNLIKELY) | self._logits(sequence)
        endless = len(sequence.tokens) < request.min_tokens or request.ignore_eos
        if sequence.grammar is not None:
            logits = self._within(sequence.grammar, logits, sequence, end=not endless)
        total = math.log(sum(math.exp(value) for value in logits.values()))
        scores = {
            token: value
            - request.frequency_penalty * sequence.counts[token]
            - request.presence_penalty * (sequence.counts[token] > 0)
            + request.logit_bias.get(token, 0.0)
            for token, value in logits.items()
        }
        if endless:
            scores = {token: value for token, value in scores.items() if token not in self._eos} or scores
        token = _sample(scores, request, sequence.random)
        if sequence.grammar is not None:
            sequence.grammar.take(token)
        at = len(sequence.tokens)

        def logprob(token: int) -> float:
            value: float = logits[token] - total - self._nats * _unit(token, at)
            return value

        likeliest = heapq.nlargest(request.top_logprobs, logits, key=lambda token: (logprob(token), -token))
        return token, logprob(token), [(other, logprob(other)) for other in likeliest]

    def _logits(self, sequence: _Sequence) -> dict[int, float]:
        at, source = len(sequence.tokens), sequence.source
        length = 8 + sequence.digest // 7919 % 57
        copied = source[(sequence.digest + at) % len(source)]
        logits: dict[int, float] = {}
        for n in range(CANDIDATES - 2):
            mark = _digest(sequence.digest, at, n)
            logits[source[mark % len(source)]] = 3.0 * (mark >> 32) / 2**32
        logits[copied] = 4.5
        for token in sorted(self._eos)[:1]:
            logits[token] = 9.0 if at >= length else -2.0
        return logits

    def _within(
        self, grammar: Grammar, logits: dict[int, float], sequence: _Sequence, *, end: bool
    ) -> dict[int, float]:
        """Return the logits of tokens that the grammar allows: its own, some that a hash chooses, and what brings it to its end."""
        allowed = grammar.allowed(self._vocab_size, end=end and bool(self._eos))
        ids = allowed.nonzero()[0].tolist()
        at = len(sequence.tokens)
        found = {token: value for token, value in logits.items() if allowed[token]}
        for n in range(CANDIDATES):
            mark = _digest(sequence.digest, at, n, CANDIDATES)
            found.setdefault(ids[mark % len(ids)], 2.0 * (mark >> 32) / 2**32)
        closes = 6.0 if _digest(sequence.digest, at) % 4 == 0 else 1.0
        return found | {token: closes + n for n, token in enumerate(self._grammars.closing()) if allowed[token]}

    def _score(self, before: int, token: int) -> float:
        """Score a prompt's token by a hash of it and the one before: between -6 and 0 nats."""
        score: float = -6 * _unit(before, token) ** 2 - self._nats * _unit(token, before)
        return score

    def _likeliest(self, request: Request, before: int, token: int) -> list[tuple[int, float]]:
        """Return the likeliest of the prompt's first tokens and the one that is there."""
        scored = {other: self._score(before, other) for other in (*request.prompt[:CANDIDATES], token)}
        return heapq.nlargest(request.top_logprobs, scored.items(), key=lambda item: (item[1], -item[0]))


def _sample(scores: dict[int, float], request: Request, source: random.Random) -> int:
    """Choose a token by temperature, top_k and top_p; at temperature 0 the likeliest."""
    ranked = heapq.nlargest(request.top_k or len(scores), scores.items(), key=lambda item: (item[1], -item[0]))
    if request.temperature == 0:
        return ranked[0][0]
    weights = [math.exp((value - ranked[0][1]) / request.temperature) for _, value in ranked]
    allowed, kept = request.top_p * sum(weights), 0.0
    for n, weight in enumerate(weights):
        kept += weight
        if kept >= allowed:
            return source.choices(ranked[: n + 1], weights[: n + 1])[0][0]
    return source.choices(ranked, weights)[0][0]


def _digest(*values: bytes | int) -> int:
    """Return 64 bits that are the same on every machine."""
    data = b"".join(value if isinstance(value, bytes) else value.to_bytes(16, "big") for value in values)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


@lru_cache(maxsize=65_536)
def _unit(first: int, second: int) -> float:
    """Return a number between 0 and 1 for a pair."""
    return _digest(first, second) / 2**64


def _read_techniques(folder: Path) -> list[dict[str, Any]]:
    path = folder / FILE
    return json.loads(path.read_text(encoding="utf-8"))["techniques"] if path.is_file() else []


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise BadInputError(f"{folder} has no config.json.")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def _eos(folder: Path, config: dict[str, Any]) -> frozenset[int]:
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    value = generation.get("eos_token_id", config.get("eos_token_id"))
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)
