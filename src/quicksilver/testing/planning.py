"""Step times by plain formulas: for tests of what is derived from step times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quicksilver.nouns.prediction import StepTimes


def step_times(
    decode: Callable[[int, int], float],
    prefill: Callable[[int, int], float],
    *,
    streams: Sequence[int] = (1, 64),
    contexts: Sequence[int] = (0, 8192),
    prompts: Sequence[int] = (1, 8192),
    beside: Sequence[int] = (0, 64),
) -> StepTimes:
    """Return the tables of two formulas, in ms: `decode(streams, context)` and `prefill(prompt tokens, streams beside)`."""
    return StepTimes(
        basis="roofline",
        origin="a formula, for tests",
        streams=tuple(streams),
        contexts=tuple(contexts),
        decode_ms=tuple(tuple(decode(s, c) for c in contexts) for s in streams),
        prompts=tuple(prompts),
        beside=tuple(beside),
        prefill_ms=tuple(tuple(prefill(p, b) for b in beside) for p in prompts),
    )


def linear(
    *, step_ms: float = 10.0, stream_ms: float = 0.05, token_ms: float = 2e-5, prompt_ms: float = 0.02
) -> StepTimes:
    """Return step times that rise evenly with streams, with tokens in caches, and with tokens of prompts."""
    return step_times(
        lambda streams, context: step_ms + stream_ms * streams + token_ms * streams * context,
        lambda prompt, beside: step_ms + stream_ms * beside + prompt_ms * prompt,
        contexts=(0, 256, 1024, 8192),
    )
