"""Step times by a roofline, for chips whose operators nobody measured: bytes over bandwidth, operations over peak.

The form is that of S. Williams et al., "Roofline" (CACM 52(4), 2009), with the all-reduces of tensor parallelism (ring:
2 (n-1)/n of the bytes over each link, and a latency) and a fixed time a layer for what is launched. How much of bandwidth and
peak is reached was fitted to aiconfigurator's measured operators on H100, H200, A100 and L40S by `benchmarks/roofline.py`, which
also states the error on a chip that was left out of the fit.
"""

from __future__ import annotations

from dataclasses import dataclass

from quicksilver.errors import BadInputError
from quicksilver.nouns.instance import Accelerator
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.prediction import CachePrecision, Precision, StepTimes
from quicksilver.planner.axes import BESIDE, HOST_LINK_GB_S, PROMPTS, STREAMS, contexts
from quicksilver.planner.models import active_parameters

BESIDE_CONTEXT = 1024
"""Tokens in the cache of each stream that decodes beside a prompt."""
WEIGHT_BYTES: dict[Precision, float] = {
    "bf16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": (4 + (16 + 4) / 128) / 8,  # a scale of 16 bits and a zero of 4 for 128 weights
    "int3": (3 + (16 + 3) / 128) / 8,
}
CACHE_BYTES: dict[CachePrecision, float] = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0}
_COMPUTED_IN: dict[Precision, str] = {"bf16": "bf16", "fp8": "fp8", "int8": "int8", "int4": "bf16", "int3": "bf16"}


@dataclass(frozen=True, slots=True)
class Reached:
    """What is reached of what makers state; the defaults are from `benchmarks/roofline.py`."""

    bandwidth: float = 0.797
    peak: float = 0.654
    link: float = 0.392
    host: float = 0.453
    """Of one PCIe link, by what more than two devices send together: it meets in the host."""
    layer_us: float = 50.5
    """A layer's launches and waits."""
    reduce_us: float = 2.85
    """The latency of one all-reduce over links between devices."""
    host_us: float = 0.5
    """The same over PCIe."""


REACHED = Reached()
OFF = "on chips that were left out of its fit, this roofline is off by 5-12 % in decoding and 14-34 % on prompts (medians)"
"""By `benchmarks/roofline.py`, whose document is in benchmarks/results."""


def step_ms(
    model: ModelFacts,
    chip: Accelerator,
    *,
    weights: Precision,
    cache: CachePrecision,
    tensor_parallel: int,
    pipeline_parallel: int = 1,
    tokens: int,
    cached_tokens: int,
    prompt: int = 0,
    reached: Reached = REACHED,
) -> float:
    """Return the milliseconds of one step: `tokens` through the weights, `cached_tokens` of cache read over all streams.

    In a pipeline it is one batch's way through all stages, which send each other the activations.
    `prompt` of the tokens are one prompt, whose attention over itself is computed. Raises BadInputError for a precision that the
    chip doesn't compute in.
    """
    kind = _COMPUTED_IN[weights]
    if kind not in chip.tflops:
        raise BadInputError(f"{chip.name} doesn't compute in {kind}, which {weights} weights need.")
    head = model.vocab_size * model.hidden_size
    layers = active_parameters(model) - head
    read = _touched(model, layers, tokens) * WEIGHT_BYTES[weights]
    logits = min(tokens, max(1, tokens - prompt + 1))  # of a prompt only the last token's
    bandwidth = chip.bandwidth_gb_s * 1e6 * reached.bandwidth  # bytes a ms
    peak = chip.tflops[kind] * 1e9 * reached.peak  # operations a ms
    peak_bf16 = chip.tflops.get("bf16", chip.tflops[kind]) * 1e9 * reached.peak
    matrices = max(read / bandwidth, 2 * layers * tokens / peak)
    matrices += max(2 * head / bandwidth, 2 * head * logits / peak_bf16)
    kv = model.kv_elements_per_token * CACHE_BYTES[cache] * cached_tokens / bandwidth
    scores = 2 * model.layers * model.heads * model.head_dim * prompt**2 / peak_bf16  # causal: half of 4 n² d
    shared = (matrices + kv * max(1.0, tensor_parallel / model.kv_heads) + scores) / tensor_parallel
    sent = (pipeline_parallel - 1) * _send_ms(model, chip, tokens, reached)
    reduced = _reduces(model, chip, tensor_parallel, tokens, reached)
    return shared + model.layers * reached.layer_us / 1e3 + reduced + sent


def step_times(
    model: ModelFacts,
    chip: Accelerator,
    *,
    weights: Precision,
    cache: CachePrecision,
    tensor_parallel: int,
    pipeline_parallel: int = 1,
    queries: int = 1,
    why: str = "",
) -> StepTimes:
    """Return the step times of a model that checks `queries` tokens of each stream in a step. Raises BadInputError."""

    def one(tokens: int, cached: int, prompt: int = 0) -> float:
        return round(
            step_ms(
                model,
                chip,
                weights=weights,
                cache=cache,
                tensor_parallel=tensor_parallel,
                pipeline_parallel=pipeline_parallel,
                tokens=tokens,
                cached_tokens=cached,
                prompt=prompt,
            ),
            4,
        )

    return StepTimes(
        basis="roofline",
        origin=f"roofline of {chip.name}: {chip.bandwidth_gb_s:,.0f} GB/s, {_peak(chip, weights):,.0f} TFLOP/s as its maker states",
        streams=STREAMS,
        contexts=contexts(model),
        decode_ms=tuple(tuple(one(s * queries, s * c) for c in contexts(model)) for s in STREAMS),
        prompts=PROMPTS,
        beside=BESIDE,
        prefill_ms=tuple(tuple(one(p + b * queries, b * BESIDE_CONTEXT, p) for b in BESIDE) for p in PROMPTS),
        remarks=(*((why,) if why else ()), OFF),
    )


def _peak(chip: Accelerator, weights: Precision) -> float:
    return chip.tflops.get(_COMPUTED_IN[weights], 0.0)


def _touched(model: ModelFacts, active: int, tokens: int) -> float:
    """Return how many weights a step reads: of a mixture those experts that any of its tokens is sent to, if evenly."""
    if not model.experts:
        return active
    expert = 3 * model.layers * model.intermediate_size * model.hidden_size
    share = 1 - (1 - model.experts_per_token / model.experts) ** tokens
    return active + expert * (model.experts * share - model.experts_per_token)


def _send_ms(model: ModelFacts, chip: Accelerator, tokens: int, reached: Reached) -> float:
    """Return the milliseconds in which one stage's activations, two bytes each, get to the next."""
    joined = chip.link_gb_s > HOST_LINK_GB_S
    share, latency_us = (reached.link, reached.reduce_us) if joined else (reached.host, reached.host_us)
    return tokens * model.hidden_size * 2 / (chip.link_gb_s * 1e6 * share) + latency_us / 1e3


def _reduces(model: ModelFacts, chip: Accelerator, tensor_parallel: int, tokens: int, reached: Reached) -> float:
    """Return the milliseconds of a step's all-reduces, two a layer: a ring over links, or PCIe.

    Over PCIe two devices send each other half of the bytes twice; what more of them send meets in the host.
    """
    n = tensor_parallel
    if n == 1:
        return 0.0
    size = tokens * model.hidden_size * 2
    if chip.link_gb_s > HOST_LINK_GB_S:
        moved, bandwidth, latency_us = 2 * (n - 1) / n * size, chip.link_gb_s * reached.link, reached.reduce_us
    else:
        moved, bandwidth, latency_us = (
            size * (1 if n == 2 else 2 * (n - 1)),
            chip.link_gb_s * reached.host,
            reached.host_us,
        )
    return 2 * model.layers * (moved / (bandwidth * 1e6) + latency_us / 1e3)
