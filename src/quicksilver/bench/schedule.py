"""From Arrivals to moments: when each request of a load is due, as pure functions."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from quicksilver.errors import BadInputError, unknown
from quicksilver.nouns.arrivals import KINDS, Arrivals
from quicksilver.nouns.workload import Prompt

MOST_MOMENTS = 1_000_000


def moments(arrivals: Arrivals, count: int, number: int = 0) -> list[float]:
    """Return when each of `count` requests of an open loop is due, seconds after the first, in order.

    A Poisson process has independent exponential gaps of mean 1 / rate. A rate that rises is had by change of time: where a
    process of rate 1 has its moment u, this one has the t up to which the rate adds up to u (Çinlar, Introduction to Stochastic
    Processes, 1975, chapter 4). It rises over the time in which it brings `count` requests. The same seed and the same
    `number` (of the round) give the same moments. Raises BadInputError for a trace with fewer moments.
    """
    if arrivals.kind == "trace":
        if len(arrivals.times_s) < count:
            raise BadInputError(f"The trace has {len(arrivals.times_s)} moments, and {count} requests are to be sent.")
        return [moment - arrivals.times_s[0] for moment in arrivals.times_s[:count]]
    if arrivals.rate_per_s is None:
        raise BadInputError("A closed loop has no schedule: a request is sent when an answer has ended.")
    draw = random.Random(f"{arrivals.seed}/{number}").random
    moment, found = 0.0, []
    for index in range(count):
        if index:
            # By hand, since the library promises the same random() in every version, and no more.
            moment += -math.log1p(-draw()) if arrivals.kind == "poisson" else 1.0
        found.append(_when(arrivals, moment, count))
    return found


def streams_at(arrivals: Arrivals, count: int) -> list[int]:
    """Return how many requests of a closed loop may be under way once each of its `count` requests is sent.

    Streams rise by the share of requests that were sent, each level for as many of them: how long that takes is for the server to
    say.
    """
    first = arrivals.streams or 1
    last = arrivals.streams_to or first
    if arrivals.steps is None:
        return [first + (last - first + 1) * index // count for index in range(count)]
    levels = [first + (last - first) * step // (arrivals.steps - 1) for step in range(arrivals.steps)]
    return [levels[min(index * arrivals.steps // count, arrivals.steps - 1)] for index in range(count)]


def rise_s(arrivals: Arrivals, count: int) -> float:
    """Return the time in which a rate that rises brings `count` requests, seconds."""
    low = arrivals.rate_per_s or 0.0
    return 2 * max(1, count - 1) / (low + (arrivals.rate_to_per_s or low))


def rates_of(arrivals: Arrivals) -> list[float]:
    """Return the rates of a rise in steps, requests a second."""
    low, steps = arrivals.rate_per_s or 0.0, arrivals.steps or 1
    high = arrivals.rate_to_per_s or low
    return [low + (high - low) * step / max(1, steps - 1) for step in range(steps)]


def in_order(arrivals: Arrivals, prompts: Sequence[Prompt]) -> tuple[Arrivals, list[Prompt]]:
    """Return a load with the moments of its trace, and the prompts in the order in which they are sent.

    A trace without moments takes those of the prompts. Raises BadInputError if a prompt has none.
    """
    if arrivals.kind != "trace":
        return arrivals, list(prompts)
    if arrivals.times_s:
        return arrivals, list(prompts[: len(arrivals.times_s)])
    without = next((prompt.id for prompt in prompts if prompt.arrival_s is None), None)
    if without is not None:
        raise BadInputError(
            f"The prompt {without!r} doesn't say when it came ('arrival_s', seconds), so this workload is no trace; give the "
            "moments with --trace FILE."
        )
    ordered = sorted(prompts, key=lambda prompt: prompt.arrival_s or 0.0)
    times = tuple(prompt.arrival_s or 0.0 for prompt in ordered)
    return arrivals.model_copy(update={"times_s": times}), ordered


def loads(
    *,
    streams: Sequence[int] | None = None,
    rates: Sequence[float] | None = None,
    kind: str | None = None,
    ramp: str | None = None,
    trace: Path | None = None,
    seed: int = 0,
) -> tuple[Arrivals, ...] | None:
    """Return the loads that the words of the command line ask for; None if they ask for none.

    `rates` are requests a second, one load each, as a Poisson process unless `kind` says constant; `ramp` is `FROM:TO` or
    `FROM:TO:STEPS`, of streams unless `kind` is an open loop's; `trace` is a file of moments. Raises BadInputError.
    """
    if kind is not None and kind not in KINDS:
        raise unknown("kind of arrivals", kind, KINDS)
    kind = kind or ("trace" if trace else "poisson" if rates else None)
    given = {"streams": streams, "a rate": rates, "a ramp": ramp, "a trace": trace}
    named = [name for name, value in given.items() if value]
    if len(named) > 1:
        raise BadInputError(f"{' and '.join(named).capitalize()} don't go together: each is a load of its own.")
    try:
        if ramp:
            return (_ramp(ramp, kind or "closed", seed),)
        if kind == "trace":
            if streams or rates:
                raise BadInputError("A trace says itself when requests come: it takes no streams and no rate.")
            return (Arrivals(kind="trace", times_s=_read_trace(trace) if trace else (), seed=seed),)
        if trace is not None:
            raise BadInputError(f"A trace and arrivals that are {kind} don't go together.")
        if kind in ("poisson", "constant"):
            if not rates:
                raise BadInputError(f"Arrivals that are {kind} need a rate in requests a second, such as --rate 2.5.")
            return tuple(
                Arrivals.model_validate({"kind": kind, "rate_per_s": r, "seed": seed}) for r in sorted({*rates})
            )
        if not rates:
            return tuple(Arrivals.closed(each) for each in sorted({*streams})) if streams else None
    except ValidationError as error:
        raise BadInputError(
            f"This load makes no sense: {error.errors()[0]['msg'].removeprefix('Value error, ')}."
        ) from error
    raise BadInputError("A closed loop has streams and no rate: leave out --arrivals closed, or --rate.")


def _ramp(text: str, kind: str, seed: int) -> Arrivals:
    """Read FROM:TO or FROM:TO:STEPS."""
    parts = text.split(":")
    wrong = BadInputError(f"{text!r} is not a ramp; write it as 1:8, or as 1:8:4 for four steps.")
    if len(parts) not in (2, 3) or kind == "trace":
        raise wrong if kind != "trace" else BadInputError("A trace doesn't rise: its moments are what they are.")
    try:
        steps = int(parts[2]) if len(parts) == 3 else None
        if kind == "closed":
            return Arrivals(streams=int(parts[0]), streams_to=int(parts[1]), steps=steps, seed=seed)
        low, high = float(parts[0]), float(parts[1])
    except ValidationError:
        raise
    except ValueError as error:
        raise wrong from error
    return Arrivals.model_validate(
        {"kind": kind, "rate_per_s": low, "rate_to_per_s": high, "steps": steps, "seed": seed}
    )


def _read_trace(file: Path) -> tuple[float, ...]:
    """Read a file of moments: seconds, one a line; empty lines and those that begin with # say nothing."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it isn't text"
        raise BadInputError(f"The trace {file} can't be read: {reason}.") from error
    found: list[float] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            moment = float(text)
        except ValueError:
            moment = math.nan
        if not math.isfinite(moment):
            raise BadInputError(f"Line {number} of {file} is not a number of seconds: {text[:40]!r}.")
        if found and moment < found[-1]:
            raise BadInputError(f"Line {number} of {file} is earlier than the one before it: a trace is in order.")
        found.append(moment)
        if len(found) > MOST_MOMENTS:
            raise BadInputError(f"{file} has over {MOST_MOMENTS:,} moments: take a part of it.")
    if not found:
        raise BadInputError(f"The trace {file} has no moments: it holds seconds, one a line.")
    return tuple(moment - found[0] for moment in found)


def _when(arrivals: Arrivals, events: float, count: int) -> float:
    """Return the time up to which the rate adds up to `events`, seconds."""
    low = arrivals.rate_per_s or 0.0
    high = arrivals.rate_to_per_s
    if high is None:
        return events / low
    whole_s = rise_s(arrivals, count)
    if arrivals.steps is None:
        # The rate is low + slope t: the positive root of slope t^2 / 2 + low t - events, in a form that doesn't cancel.
        slope = (high - low) / whole_s
        reached = (low + high) / 2 * whole_s
        if events > reached:
            return whole_s + (events - reached) / high
        return 2 * events / (low + math.sqrt(low * low + 2 * slope * events))
    step_s = whole_s / arrivals.steps
    at = 0.0
    for step, rate in enumerate(rates_of(arrivals)):
        if events <= rate * step_s or step == arrivals.steps - 1:
            return at + events / rate
        events -= rate * step_s
        at += step_s
    return at
