"""Metrics: what Prometheus reads of a server, under vLLM's names where it has one, so that its dashboards work."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from quicksilver.nouns.engine import DecoderStats
from quicksilver.serve.stream import Answer

# vLLM's own buckets, seconds.
TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
TPOT_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
E2E_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
LABEL = "model_name"


class Metrics:
    """Counts of one server."""

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        self._model = model
        self._running = self._gauge("vllm:num_requests_running", "Sequences that are decoded.")
        self._waiting = self._gauge("vllm:num_requests_waiting", "Sequences that wait for their turn.")
        self._cache = self._gauge("vllm:kv_cache_usage_perc", "Share of the KV cache in use; 1 is all of it.")
        self._prompt = self._counter("vllm:prompt_tokens", "Prompt tokens taken in.")
        self._generated = self._counter("vllm:generation_tokens", "Tokens generated.")
        self._drafted = self._counter("vllm:spec_decode_num_draft_tokens", "Guessed tokens that were checked.")
        self._accepted = self._counter("vllm:spec_decode_num_accepted_tokens", "Guessed tokens that were right.")
        self._rejected = self._counter("quicksilver:requests_rejected", "Requests refused because too many waited.")
        self._ended = Counter(
            "vllm:request_success", "Answers that ended, by why.", [LABEL, "finished_reason"], registry=self._registry
        )
        self._failed = Counter(
            "quicksilver:request_errors", "Answers that failed, by code.", [LABEL, "code"], registry=self._registry
        )
        self._ttft = self._histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", TTFT_S)
        self._tpot = self._histogram(
            "vllm:request_time_per_output_token_seconds", "Time per token after an answer's first.", TPOT_S
        )
        self._e2e = self._histogram("vllm:e2e_request_latency_seconds", "Arrival to the answer's end.", E2E_S)
        self._last = DecoderStats()

    def rejected(self) -> None:
        """Count a request that was refused because too many waited."""
        self._rejected.inc()

    def ended(self, answer: Answer) -> None:
        """Count an answer that is over, however it ended."""
        self._prompt.inc(len(answer.request.prompt))
        self._generated.inc(answer.completion_tokens)
        if answer.error is not None:
            self._failed.labels(self._model, answer.error.code or "unknown").inc()
        else:
            self._ended.labels(self._model, answer.finish or "abort").inc()
        if answer.first_s is None or answer.ended_s is None:
            return
        self._ttft.observe(answer.first_s - answer.arrived_s)
        if answer.finish is not None:
            self._e2e.observe(answer.ended_s - answer.arrived_s)
            if answer.completion_tokens > 1:
                self._tpot.observe((answer.ended_s - answer.first_s) / (answer.completion_tokens - 1))

    def look(self, stats: DecoderStats) -> None:
        """Take in what the decoder says of itself."""
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._cache.set(stats.cache_usage)
        self._drafted.inc(max(0, stats.drafted - self._last.drafted))
        self._accepted.inc(max(0, stats.accepted - self._last.accepted))
        self._last = stats

    def text(self) -> tuple[bytes, str]:
        """Return all of it in Prometheus' text format, and that format's content type."""
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(name, what, [LABEL], registry=self._registry).labels(self._model)

    def _counter(self, name: str, what: str) -> Counter:
        return Counter(name, what, [LABEL], registry=self._registry).labels(self._model)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, what, [LABEL], registry=self._registry, buckets=buckets).labels(self._model)
