"""Score: speed, quality and price with their intervals, derived from Samples and never typed in."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quicksilver.nouns.base import Noun


class Figure(Noun):
    """A number with its interval (95 % unless said), its unit, and whether it was measured or predicted."""

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    source: Literal["measured", "predicted"] = "measured"
    count: int | None = Field(None, description="values that it is taken over, where that has to be said")


class Latency(Noun):
    """Percentiles of one duration, ms."""

    p50: float
    p90: float
    p95: float
    p99: float
    count: int = Field(
        0, description="values that they are taken over; with none, every percentile is 0 and means nothing"
    )


class Speed(Noun):
    """What the load client measured at one concurrency."""

    concurrency: int
    requests: int
    errors: int
    tokens_per_s: Figure = Field(
        description="output tokens a second, all streams; low and high are the spread of rounds"
    )
    input_tokens_per_s: float
    requests_per_s: float
    ttft_ms: Latency
    itl_ms: Latency = Field(description="gaps between pieces of the stream")
    tpot_ms: Latency = Field(description="per request: (end - first token) / (tokens - 1)")
    e2e_ms: Latency
    prompt_tokens_p50: float
    completion_tokens_p50: float
    rounds: int = 1
    ratio: Figure | None = Field(None, description="tokens/s against the as-is model, paired by round")


class Quality(Noun):
    """Output quality against the as-is model on the evaluation split."""

    perplexity: float | None = Field(None, description="None where the server gives no log-probabilities of a prompt")
    loss_percent: Figure | None = Field(
        None, description="rise of perplexity over the as-is model's, percent, paired bootstrap"
    )
    divergence: float | None = Field(None, description="mean |log p - log p_as_is| of the reference tokens, nats")
    agreement: float | None = Field(None, description="share of greedy answers identical to the as-is model's")
    common_prefix: float | None = Field(None, description="mean share of an answer's words before the first difference")
    task: dict[str, Figure] = Field(default_factory=dict, description="exact match, F1, ROUGE-L; 0 to 1")
    task_loss_percent: Figure | None = None
    tokens: int = Field(description="tokens that the perplexity is taken over")
    prompts: int


class Cost(Noun):
    """Dollars per million tokens, by two definitions that must not be mixed."""

    usd_per_hour: float
    measured: float = Field(description="by measured throughput: $/h over output tokens an hour")
    blended: float | None = Field(
        None, description="by the headline's formula: concurrency / p50 ITL, then / (1 + ratio); None without any gap"
    )
    blended_throughput: float | None = Field(
        None, description="tokens/s as that formula defines it: concurrency / p50 ITL"
    )


class Score(Noun):
    """All that was measured of one recipe."""

    speed: tuple[Speed, ...] = ()
    quality: Quality | None = None
    cost: Cost | None = None
    memory_mb: float | None = None
    disk_mb: float | None = None
    load_s: float | None = Field(None, description="from process start until the server was ready")
    cold_start_s: float | None = Field(None, description="from process start to the first token")

    def at(self, concurrency: int) -> Speed | None:
        """The speed at one concurrency, if it was measured."""
        return next((s for s in self.speed if s.concurrency == concurrency), None)
