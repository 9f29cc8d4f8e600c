"""Continuous batching over the paged graph: one thread, and in each step whatever the sequences need most."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quicksilver.engines.grammar import Grammars
from quicksilver.engines.openvino.blocks import Blocks
from quicksilver.engines.openvino.files import cache_bytes, context_of, eos_of, properties_of, speculation_table
from quicksilver.engines.openvino.graph import AbortedError, Graph, Work
from quicksilver.engines.openvino.lookup import LONGEST, Confidence, Guess, Lookup, Pace, Record, Shape
from quicksilver.engines.openvino.sampling import Sampler, best, log_normaliser
from quicksilver.nouns.engine import Burst, Decoder, DecoderStats, Request
from quicksilver.nouns.settings import Settings

logger = logging.getLogger(__name__)

Logits = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class _Sequence:
    number: int
    request: Request
    deliver: Callable[[Burst], None]
    tokens: list[int]
    """The prompt's and those generated."""
    sampler: Sampler
    speculates: int
    """Guessed tokens that it takes in a step, at most."""
    lookup: Lookup | None = None
    found: Guess | None = None
    """What was found to follow its last token, whether or not that is checked in the step at hand."""
    record: Record = field(default_factory=Record)
    computed: int = 0
    """Tokens whose keys and values are in the cache."""
    blocks: list[int] = field(default_factory=list)
    noted: int = 0
    """Blocks whose content is noted for prompts to come, and the serial number of that prefix."""
    prefix: int = 0
    generated: int = 0
    prompt_logprobs: list[float | None] | None = None
    prompt_top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)

    @property
    def decoding(self) -> bool:
        """Whether only its last token is left to compute."""
        return self.generated > 0 and self.computed == len(self.tokens) - 1


class PagedDecoder(Decoder):
    """Decodes over OpenVINO's paged attention, with guesses from the text itself where they pay at the load of the moment."""

    def __init__(self, artifact: Path, settings: Settings) -> None:
        self._settings = settings
        self._longest = LONGEST if settings.speculation is None else settings.speculation.max_ngram
        self._eos = frozenset(eos_of(artifact))
        self._grammars = Grammars(artifact, self._eos)
        size = partial(_cache_bytes, artifact, settings)
        self._graph = Graph(artifact, properties_of(settings), size, keep=settings.compiled_cache)
        self._blocks = Blocks(self._graph.blocks, self._graph.block_tokens, caching=settings.prefix_caching)
        table = speculation_table(artifact, settings)
        self._confidence = Confidence(table)
        self._pace = Pace(table)
        self._numbers = count()
        self._running: list[_Sequence] = []
        self._waiting: deque[_Sequence] = deque()
        self._incoming: deque[_Sequence] = deque()
        self._cancelled: deque[int] = deque()
        self._wake = threading.Event()
        self._shape = Shape()
        self._reading: frozenset[int] = frozenset()
        """Sequences whose prompt the step at hand computes, if it may be given up for them."""
        self._aborted = False
        """Whether the last step was given up."""
        self.drafted = 0
        """Guessed tokens that were checked so far."""
        self.accepted = 0
        """Those of them that were right."""
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    def submit(self, request: Request, deliver: Callable[[Burst], None]) -> int:
        if not request.prompt:
            raise ValueError("A prompt needs at least one token.")
        room = self._blocks.number * self._blocks.tokens
        if len(request.prompt) + 1 > room:
            raise ValueError(f"The prompt has {len(request.prompt)} tokens, and the KV cache holds {room}.")
        speculation = self._settings.speculation
        most = 0 if speculation is None else speculation.tokens
        if speculation is not None and request.speculate_tokens is not None:
            most = request.speculate_tokens
        grammar = None if request.grammar is None else self._grammars.compile(request.grammar)
        sampler = Sampler(request, self._eos, grammar)
        sequence = _Sequence(next(self._numbers), request, deliver, list(request.prompt), sampler, most)
        self._incoming.append(sequence)
        self._wake.set()
        return sequence.number

    def cancel(self, number: int) -> None:
        self._cancelled.append(number)
        # The step of a long prompt takes seconds: it isn't computed to its end for nobody.
        if number in self._reading:
            self._graph.abort()
        self._wake.set()

    def stats(self) -> DecoderStats:
        return DecoderStats(
            running=len(self._running),
            waiting=len(self._waiting) + len(self._incoming),
            cache_usage=self._blocks.used / self._blocks.number,
            drafted=self.drafted,
            accepted=self.accepted,
        )

    def close(self) -> None:
        self._closing = True
        self._graph.abort()
        self._wake.set()
        self._thread.join()

    @property
    def blocks_used(self) -> int:
        """Blocks of the KV cache that sequences hold."""
        return self._blocks.used

    def _run(self) -> None:
        self._warm()
        while not self._closing:
            self._take_in()
            if not (self._running or self._waiting):
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                self._step()
            except Exception as error:  # the engine's own failure: every sequence in flight hears of it
                logger.exception("the engine failed in a step")
                for sequence in [*self._running, *self._waiting]:
                    self._blocks.release(sequence.blocks)
                    sequence.deliver(Burst(tokens=[], finish="error", error=str(error)))
                self._running.clear()
                self._waiting.clear()
        for sequence in [*self._running, *self._waiting, *self._incoming]:
            self._blocks.release(sequence.blocks)
            sequence.deliver(Burst(tokens=[], finish="cancelled"))

    def _warm(self) -> None:
        """Do what only a first step does while the rest of the server starts."""
        try:
            self._graph.warm()
        except Exception:  # a request will meet the same, and tell of it
            logger.exception("the engine failed in its first step")

    def _take_in(self) -> None:
        while self._incoming:
            self._waiting.append(self._incoming.popleft())
        while self._cancelled:
            number = self._cancelled.popleft()
            for sequence in [*self._running, *self._waiting]:
                if sequence.number == number:
                    self._leave(sequence)
                    sequence.deliver(Burst(tokens=[], finish="cancelled"))

    def _leave(self, sequence: _Sequence) -> None:
        self._blocks.release(sequence.blocks)
        sequence.blocks = []
        (self._running if sequence in self._running else self._waiting).remove(sequence)

    def _step(self) -> None:
        self._admit()
        guesses = self._guesses([s for s in self._running if s.decoding])
        room = self._settings.max_batched_tokens
        work: list[tuple[_Sequence, Work, Guess | None]] = []
        # Those that decode come first: a prompt must not hold them up. Then prompts, in the order of their coming.
        for sequence in sorted(self._running, key=lambda s: not s.decoding):
            if sequence not in self._running:
                continue  # its blocks were needed by one before it
            guess = guesses.get(sequence.number)
            todo = len(sequence.tokens) - sequence.computed
            if not sequence.decoding:
                todo = min(todo, room)
            if todo < 1:
                continue
            ahead = guess.tokens if guess is not None else []
            if not self._reach(sequence, sequence.computed + todo + len(ahead)):
                continue
            tokens = sequence.tokens[sequence.computed : sequence.computed + todo] + ahead
            ends = sequence.computed + todo == len(sequence.tokens)
            echo = sequence.prompt_logprobs is not None and sequence.generated == 0
            rows = todo if echo else (1 + len(ahead) if ends else 0)
            work.append((sequence, Work(tokens, sequence.computed, sequence.blocks, rows), guess))
            room -= len(tokens)
        work = [entry for entry in work if entry[0] in self._running]
        if not work:
            return
        decoding = all(sequence.decoding for sequence, _, _ in work)
        begun = time.perf_counter()
        total = sum(len(piece.tokens) for _, piece, _ in work)
        padding, new = self._shape.step(len(work), total) if decoding else (0, False)
        # Never twice in a row if others lose by it: who comes and goes must not hold them up for good.
        if len(work) == 1 or not self._aborted:
            self._reading = frozenset(sequence.number for sequence, _, _ in work if not sequence.decoding)
        try:
            logits = self._graph.run([piece for _, piece, _ in work], padding)
        except AbortedError:
            self._aborted = True
            return
        finally:
            self._reading = frozenset()
        self._aborted = False
        self._give_out(work, logits)
        if decoding:
            extra = total + padding - len(work)
            self._pace.learn(len(work), extra, (time.perf_counter() - begun) * 1000, new=new)

    def _admit(self) -> None:
        """Let waiting sequences in while their prompts find room."""
        while self._waiting and len(self._running) < self._settings.max_streams:
            sequence = self._waiting[0]
            needed = -(-(len(sequence.tokens) + 1) // self._blocks.tokens)
            if self._running and needed > self._blocks.free:
                return
            self._waiting.popleft()
            if sequence.request.echo and sequence.generated == 0:
                sequence.prompt_top_logprobs = [[]]
                sequence.prompt_logprobs = [None]  # the whole prompt is computed, whatever the cache holds
            else:
                sequence.blocks, sequence.prefix = self._blocks.find(sequence.tokens[:-1])
                sequence.noted = len(sequence.blocks)
                sequence.computed = sequence.noted * self._blocks.tokens
            self._running.append(sequence)

    def _guesses(self, decoding: list[_Sequence]) -> dict[int, Guess]:
        """Choose how many guessed tokens to check for each sequence."""
        speculation = self._settings.speculation
        if len(decoding) < len(self._running):
            self._shape.leave()
        if speculation is None or not decoding or not self._pace.knows:
            return {}
        chances: list[list[float]] = []
        for sequence in decoding:
            if sequence.lookup is None and sequence.speculates:
                sequence.lookup = Lookup(sequence.tokens, self._longest)
            most = min(sequence.speculates, sequence.request.max_tokens - sequence.generated - 1)
            found = sequence.found = sequence.lookup.guess(most) if sequence.lookup is not None else None
            chances.append([] if found is None else sequence.record.of(self._confidence.of(found)))
        room = max(0, self._settings.max_batched_tokens - len(decoding))
        if len(decoding) < len(self._running):
            room //= 2  # a prompt that is being read gets on, too
        taken = self._shape.choose(chances, self._pace, room, least=0 if speculation.adapts else room)
        return {
            sequence.number: Guess(sequence.found.tokens[:length], sequence.found.match)
            for sequence, length in zip(decoding, taken, strict=True)
            if length and sequence.found is not None
        }

    def _reach(self, sequence: _Sequence, length: int) -> bool:
        """Give a sequence blocks for `length` tokens. The last that came makes room, and starts over later."""
        while len(sequence.blocks) * self._blocks.tokens < length:
            if self._blocks.free:
                sequence.blocks.append(self._blocks.take())
                continue
            last = self._running[-1]
            self._leave(last)
            last.computed = last.noted = last.prefix = 0
            if last is sequence and not self._running:
                self._give_up(last)
                return False
            self._waiting.appendleft(last)
            if last is sequence:
                return False
        return True

    def _give_up(self, sequence: _Sequence) -> None:
        """End a sequence that has the whole cache and needs more."""
        sequence.deliver(Burst(tokens=[], finish="length"))

    def _give_out(self, work: list[tuple[_Sequence, Work, Guess | None]], logits: Logits) -> None:
        likeliest = logits.argmax(axis=1).tolist() if len(logits) else []
        start = 0
        for sequence, piece, guess in work:
            rows, ids = logits[start : start + piece.rows], likeliest[start : start + piece.rows]
            start += piece.rows
            ahead = len(guess.tokens) if guess is not None else 0
            end = piece.past + len(piece.tokens) - ahead
            if sequence.prompt_logprobs is not None and sequence.generated == 0:
                self._score_prompt(sequence, piece, rows)
                rows, ids = rows[-1:], ids[-1:]
            sequence.computed = end
            if end == len(sequence.tokens):
                self._emit(sequence, rows, ids, guess)
            self._note(sequence)

    def _score_prompt(self, sequence: _Sequence, piece: Work, rows: Logits) -> None:
        """Keep the log-probabilities of the prompt's tokens that follow this piece's."""
        prompt, known = sequence.request.prompt, sequence.prompt_logprobs
        assert known is not None
        following = prompt[piece.past + 1 : piece.past + 1 + len(rows)]
        totals = log_normaliser(rows[: len(following)])
        known += (rows[np.arange(len(following)), following] - totals).tolist()
        count = sequence.request.top_logprobs
        sequence.prompt_top_logprobs += [best(*one, count) for one in zip(rows, totals.tolist(), strict=False)]

    def _emit(self, sequence: _Sequence, rows: Logits, ids: list[int], guess: Guess | None) -> None:
        """Choose the next token, check the guessed ones against it, and deliver what holds."""
        request, sampler = sequence.request, sequence.sampler
        burst = Burst(tokens=[])
        if request.logprobs:
            burst.logprobs, burst.top_logprobs = [], []
        if sequence.prompt_logprobs is not None and sequence.generated == 0:
            burst.prompt_logprobs = sequence.prompt_logprobs
            burst.prompt_top_logprobs = sequence.prompt_top_logprobs
        right = 0
        for index, row in enumerate(rows):
            if sequence.generated >= request.max_tokens:
                burst.finish = "length"
                break
            if sampler.plain and sequence.generated >= request.min_tokens:
                token = ids[index]
            else:
                try:
                    choice = sampler.choose(row, sequence.generated)
                except ValueError as error:  # its grammar's dead end is its own; the others go on
                    burst.finish, burst.error = "error", str(error)
                    break
                token = choice.token
                if burst.logprobs is not None and burst.top_logprobs is not None and choice.logprob is not None:
                    burst.logprobs.append(choice.logprob)
                    burst.top_logprobs.append(choice.top)
            burst.tokens.append(token)
            sequence.generated += 1
            if sampler.over or (token in self._eos and not request.ignore_eos):
                burst.finish = "stop"
                break
            if guess is None or index >= len(guess.tokens) or guess.tokens[index] != token:
                break
            right += 1
        if burst.finish is None and sequence.generated >= request.max_tokens:
            burst.finish = "length"
        self._learn(sequence, burst, guess, right)
        if guess is not None:
            burst.drafted, burst.accepted = len(guess.tokens), right
            self.drafted += burst.drafted
            self.accepted += burst.accepted
        sequence.tokens += burst.tokens
        sequence.computed = len(sequence.tokens) - 1
        if burst.finish is not None:
            self._note(sequence)
            self._leave(sequence)
        elif sequence.lookup is not None:
            sequence.lookup.extend(burst.tokens)
        sequence.deliver(burst)

    def _learn(self, sequence: _Sequence, burst: Burst, guess: Guess | None, right: int) -> None:
        """Take in how what was found did. Where no guess was checked, the token that came says the same of its first."""
        found, sequence.found = sequence.found, None
        if found is None or not burst.tokens:
            return
        first = found.tokens[0] == burst.tokens[0]
        hoped = self._confidence.of(Guess(found.tokens[:1], found.match))[0]
        sequence.record.learn(hoped, right=first)
        if guess is None:
            self._confidence.learn(found.match, 1, int(first))
        else:
            checked = len(guess.tokens) if burst.finish is None else right
            self._confidence.learn(guess.match, checked, right)

    def _note(self, sequence: _Sequence) -> None:
        """Note the blocks that became full, for prompts that begin alike."""
        size = self._blocks.tokens
        while (sequence.noted + 1) * size <= sequence.computed and sequence.noted < len(sequence.blocks):
            start = sequence.noted * size
            block = sequence.blocks[sequence.noted]
            sequence.prefix = self._blocks.note(block, sequence.prefix, sequence.tokens[start : start + size])
            sequence.noted += 1


def _cache_bytes(artifact: Path, settings: Settings, block_bytes: int, block_tokens: int) -> int:
    """Return how large the KV cache is: as many blocks as the streams fill with the longest context, if there is room."""
    context = context_of(artifact)
    most = None if context is None else settings.max_streams * -(-context // block_tokens) * block_bytes
    return cache_bytes(settings.kv_cache_gb, most)
