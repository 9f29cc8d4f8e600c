"""Score: speed, quality and price with their intervals, derived from Samples and never typed in."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_serializer, model_validator

from quicksilver.nouns.arrivals import ArrivalKind
from quicksilver.nouns.base import Noun

Interval = tuple[float, float]
"""A 95 % bootstrap interval."""


class Figure(Noun):
    """A number with its interval (95 % unless said), its unit, and whether it was measured or predicted."""

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    source: Literal["measured", "predicted"] = "measured"
    count: int | None = Field(None, description="values that it is taken over, where that has to be said")


PERCENTILES = ("p50", "p90", "p95", "p99")


class Latency(Noun):
    """Percentiles of one duration, ms. Where there are no values, they are null in JSON."""

    p50: float
    p90: float
    p95: float
    p99: float
    count: int = Field(
        0, description="values that they are taken over; with none, every percentile is 0 and means nothing"
    )
    p50_ci: Interval | None = Field(
        None,
        description="95 % bootstrap over requests, ms; None for fewer than 6 requests (36, 72, 368 for the others)",
    )
    p90_ci: Interval | None = None
    p95_ci: Interval | None = None
    p99_ci: Interval | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: 0.0 if value is None and name in PERCENTILES else value for name, value in data.items()}

    @field_serializer(*PERCENTILES, when_used="json")
    def _say_nothing(self, value: float) -> float | None:
        return value if self.count else None


class Acceptance(Noun):
    """How much of what speculation guessed ahead was right, by prompt, where the server says it."""

    share: Figure = Field(
        description="accepted over guessed tokens of all prompts, 0 to 1; the interval is over prompts"
    )
    p10: float = Field(description="the share of single prompts: a tenth of them are below this")
    p50: float
    p90: float
    guessed: int
    accepted: int
    prompts: int = Field(description="those whose answers had guesses")


class Steady(Noun):
    """Where the steady state of a load begins, by the requests in the order in which they were due."""

    warm_up: int = Field(description="requests before it")
    requests: int = Field(description="requests looked at: those that succeeded")
    ratio: float = Field(description="time per token of those before it over that of the rest")
    reached: bool = Field(description="whether it came in the first half; later is as good as never")
    counted: int = Field(description="requests that the figures are taken over, failed ones included")


class Speed(Noun):
    """What the load client measured under one load."""

    concurrency: int = Field(description="streams of a closed loop (the most of a ramp); 0 in an open loop")
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
    ratio: Figure | None = Field(
        None, description="tokens/s against the as-is model for answers of its lengths, paired by round"
    )
    load: str = Field("", description="the load in a few words; empty for a closed loop with a fixed number of streams")
    arrivals: ArrivalKind = "closed"
    rate_per_s: float | None = Field(None, description="requests a second that were asked for; the mean of a ramp")
    errors_by_kind: dict[str, int] = Field(default_factory=dict, description="connect, disconnect, timeout, http 503 …")
    in_flight_mean: float = Field(0.0, description="requests under way from their moment on, mean over time")
    in_flight_max: int = 0
    valid: bool = Field(True, description="whether the client put on the load that was asked for")
    saturated: str = Field("", description="why the figures are invalid")
    keeps_up: bool | None = Field(
        None, description="whether answers end as fast as requests come; None in a closed loop, or if it can't be told"
    )
    behind_p99_ms: float | None = Field(None, description="how long after their moment requests were sent; open loop")
    client_cpu_share: float | None = Field(None, description="the load client's CPU time over time, of one core")
    acceptance: Acceptance | None = None
    tokens_per_piece: float | None = Field(
        None,
        description="output tokens over pieces of the stream: above 1, speculation or a server that puts tokens together",
    )
    steady: Steady | None = None


Outcome = Literal["passes", "fails", "undecided"]


class Term(Noun):
    """One loss that the quality gate looks at, and what it makes of it (quicksilver.bench.gate)."""

    name: str = Field(description="quality loss, task loss (f1), quality loss in the group 'de'")
    outcome: Outcome
    loss: Figure = Field(description="percent, with the interval that decides: its level is `level`, not always 95 %")
    level: float = Field(description="confidence of the interval, 0 to 1")
    limit: float = Field(description="percent")
    proof: bool = Field(True, description="whether being undecided counts as not passed; else only failing does")
    prompts: int
    decide_at: int | None = Field(None, description="prompts that would decide; None if it is decided or can't be told")
    more_than: bool = Field(
        False, description="whether decide_at is only a lower bound: the loss is too near to the limit"
    )


class Judgement(Noun):
    """What the quality gate says about a recipe: the outcome, the term that binds, and every term."""

    outcome: Outcome
    binds: str = Field(description="name of the term that decides, or comes nearest to its limit")
    terms: tuple[Term, ...]
    prompts: int
    reason: str = Field(description="the outcome in words: a sentence's end")

    @property
    def term(self) -> Term:
        """The term that binds."""
        return next(term for term in self.terms if term.name == self.binds)


class Preference(Noun):
    """What a judge makes of a recipe's answers beside the as-is model's, each pair asked for in both orders."""

    judge: str = Field(description="the judge's model")
    wins: int
    losses: int
    ties: int = Field(description="among them pairs of the same text, and verdicts that change with the order")
    swayed: int = Field(0, description="ties because the judge took the same place in both orders")
    unread: int = Field(0, description="ties because a verdict couldn't be read")
    rate: Figure = Field(description="share of wins, ties counted half, with its interval")


class Quality(Noun):
    """Output quality against the as-is model on the evaluation split."""

    perplexity: float | None = Field(None, description="None where the server gives no log-probabilities of a prompt")
    loss_percent: Figure | None = Field(
        None, description="rise of perplexity over the as-is model's, percent, paired bootstrap"
    )
    answer_loss_percent: Figure | None = Field(
        None,
        description="where the engine tells no log-probabilities of a prompt: rise of its answers' perplexity under the as-is model over "
        "what that would have chosen in each place, percent",
    )
    divergence: float | None = Field(None, description="mean |log p - log p_as_is| of the reference tokens, nats")
    kl: Figure | None = Field(
        None,
        description="KL(as-is || this), nats a token of the text: a lower bound, from the likeliest tokens that both name",
    )
    own_loss_percent: Figure | None = Field(
        None, description="rise of perplexity on the as-is model's own greedy answers, percent"
    )
    own_kl: Figure | None = Field(None, description="as kl, on those answers")
    agreement: float | None = Field(None, description="share of greedy answers identical to the as-is model's")
    common_prefix: float | None = Field(None, description="mean share of an answer's words before the first difference")
    task: dict[str, Figure] = Field(default_factory=dict, description="exact match, F1, ROUGE-L; 0 to 1")
    task_loss_percent: Figure | None = None
    preference: Preference | None = Field(None, description="of a language model as the judge, where one was asked")
    judgement: Judgement | None = Field(None, description="of the quality gate; None without anything to judge by")
    tokens: int = Field(description="tokens that the loss is taken over")
    prompts: int

    @property
    def loss(self) -> Figure | None:
        """The loss that counts, percent: of perplexity, or by the answers where that isn't known."""
        return self.loss_percent if self.loss_percent is not None else self.answer_loss_percent


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
