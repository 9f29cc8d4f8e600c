"""GenAI's continuous-batching pipeline as a Decoder: one thread steps it, sequences come and go between steps.

It decodes with draft models; what it does without one is what our own decoder is measured against.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from quicksilver.engines.openvino.files import cache_bytes, eos_of, properties_of
from quicksilver.nouns.engine import Burst, Decoder, DecoderStats, Request
from quicksilver.nouns.settings import Settings

logger = logging.getLogger(__name__)

KV_BLOCK_TOKENS = 32  # the CPU plugin's block size
ECHO_OF_CACHED = (
    "A prompt's log-probabilities aren't known where prefix caching spares its beginning; serve without it."
)
_FINISH = {
    genai.GenerationFinishReason.STOP: "stop",
    genai.GenerationFinishReason.LENGTH: "length",
}


@dataclass(slots=True)
class _Sequence:
    handle: Any
    deliver: Callable[[Burst], None]
    request: Request
    prompt_pending: bool
    cancelled: bool = False


class GenAiDecoder(Decoder):
    """Drives an OpenVINO GenAI ContinuousBatchingPipeline from a thread of its own."""

    def __init__(self, artifact: Path, settings: Settings) -> None:
        self._speculation = settings.speculation
        self._eos = eos_of(artifact)
        properties = properties_of(settings)
        if settings.speculation is not None and settings.speculation.draft is not None:
            properties["draft_model"] = genai.draft_model(str(artifact / settings.speculation.draft), "CPU")
        self._pipeline = genai.ContinuousBatchingPipeline(str(artifact), _scheduler(settings), "CPU", properties)
        self._numbers = itertools.count()
        self._running: dict[int, _Sequence] = {}
        self._incoming: deque[tuple[int, Request, Callable[[Burst], None]]] = deque()
        self._cancelled: deque[int] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    def submit(self, request: Request, deliver: Callable[[Burst], None]) -> int:
        if not request.prompt:
            raise ValueError("A prompt needs at least one token.")
        if request.logit_bias or request.top_logprobs > (request.temperature <= 0):
            raise ValueError(
                "With a draft model there is no logit_bias, and no log-probability but the chosen token's."
            )
        if request.grammar is not None:
            raise ValueError("With a draft model an answer can't be made to follow a grammar.")
        number = next(self._numbers)
        self._incoming.append((number, request, deliver))
        self._wake.set()
        return number

    def cancel(self, number: int) -> None:
        self._cancelled.append(number)
        self._wake.set()

    def stats(self) -> DecoderStats:
        """Return what it is doing. GenAI doesn't count guessed tokens."""
        usage = float(self._pipeline.get_metrics().cache_usage) / 100
        return DecoderStats(running=len(self._running), waiting=len(self._incoming), cache_usage=usage)

    def close(self) -> None:
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            self._take_in()
            if not self._running:
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                self._pipeline.step()
            except Exception as error:  # the engine's own failure: every sequence in flight hears of it
                logger.exception("the engine failed in a step")
                for sequence in self._running.values():
                    sequence.deliver(Burst(tokens=[], finish="error", error=str(error)))
                self._running.clear()
                continue
            for number in list(self._running):
                self._hand_out(number)
        for sequence in self._running.values():
            sequence.handle.cancel()
            sequence.deliver(Burst(tokens=[], finish="cancelled"))
        self._running.clear()

    def _take_in(self) -> None:
        while self._incoming:
            number, request, deliver = self._incoming.popleft()
            try:
                ids = ov.Tensor(np.asarray([request.prompt], dtype=np.int64))
                handle = self._pipeline.add_request(number, ids, self._config(request))
            except Exception as error:
                logger.exception("the engine refused a request")
                deliver(Burst(tokens=[], finish="error", error=str(error)))
                continue
            self._running[number] = _Sequence(handle, deliver, request, prompt_pending=request.echo)
        while self._cancelled:
            sequence = self._running.get(self._cancelled.popleft())
            if sequence is not None:
                sequence.cancelled = True
                sequence.handle.cancel()

    def _hand_out(self, number: int) -> None:
        sequence = self._running[number]
        tokens: list[int] = []
        logprobs: list[float] = []
        reason: str | None = None
        while sequence.handle.can_read():
            for output in sequence.handle.read().values():
                tokens += output.generated_ids
                logprobs += output.generated_log_probs
                reason = _FINISH.get(output.finish_reason, reason)
        over = sequence.handle.get_status() != genai.GenerationStatus.RUNNING
        prompt_logprobs: list[float | None] | None = None
        if sequence.prompt_pending and tokens:
            count = len(sequence.request.prompt)
            if len(logprobs) < count:  # the cache held its beginning, which is not computed again
                del self._running[number]
                sequence.handle.cancel()
                sequence.deliver(Burst(tokens=[], finish="error", error=ECHO_OF_CACHED))
                return
            prompt_logprobs = [None, *logprobs[1:count]]
            tokens, logprobs = tokens[count:], logprobs[count:]
            sequence.prompt_pending = False
        if not (tokens or over or prompt_logprobs):
            return
        burst = Burst(
            tokens=tokens,
            logprobs=logprobs if sequence.request.logprobs else None,
            prompt_logprobs=prompt_logprobs,
        )
        if over:
            del self._running[number]
            burst.finish = "cancelled" if sequence.cancelled else ("length" if reason == "length" else "stop")
        sequence.deliver(burst)

    def _config(self, request: Request) -> genai.GenerationConfig:
        config = genai.GenerationConfig()
        if self._eos:
            config.set_eos_token_id(self._eos[0])
            config.stop_token_ids = set(self._eos)
        config.max_new_tokens = request.max_tokens
        config.min_new_tokens = request.min_tokens
        config.ignore_eos = request.ignore_eos
        config.echo = request.echo
        config.logprobs = 1 if request.logprobs or request.echo else 0
        config.presence_penalty = request.presence_penalty
        config.frequency_penalty = request.frequency_penalty
        if request.temperature > 0:
            config.do_sample = True
            config.temperature = request.temperature
            config.top_p = request.top_p
            if request.top_k:
                config.top_k = request.top_k
            if request.seed is not None:
                config.rng_seed = request.seed % 2**64
        if self._speculation is not None:
            config.num_assistant_tokens = request.speculate_tokens or self._speculation.tokens
        config.validate()
        return config


def _scheduler(settings: Settings) -> genai.SchedulerConfig:
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = max(1, round(cache_bytes(settings.kv_cache_gb) / 1e9))
    scheduler.max_num_seqs = settings.max_streams
    scheduler.max_num_batched_tokens = settings.max_batched_tokens
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = settings.prefix_caching
    return scheduler
