"""Simulate: a server with continuous batching under a load, from event to event, on the step times of any source.

A step gives each stream that decodes its next tokens. While prompts wait to be read, it takes some of their tokens besides
(chunked prefill, first come, first served), and a prompt's first token comes at the end of the step that reads its last one. Between an
arrival, a prompt and an end the batch stays as it is, and its contexts grow evenly: so the time of k steps is a sum of an arithmetic
series, and no step is walked through by itself. docs/decisions/0024-simulation.md weighs this against SimPy.

In a pipeline of stages the streams go in as many batches, one behind the other, and a step is a round of all of them. It takes as
long as the slowest batch takes through all stages: a batch behind one with a prompt waits at each stage until that has passed.
Prompts are dealt out evenly over the batches of a round, as they are if they arrive one by one while it goes on.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from quicksilver.errors import BadInputError
from quicksilver.nouns.prediction import StepTimes
from quicksilver.planner import interpolate

Floats = NDArray[np.float64]

STEP_TOKENS = 2048
"""Tokens of prompts in one step: what vLLM takes on an accelerator with less than 70 GB."""
_GAPS_A_SEGMENT = 8
"""Values that stand for the gaps of steps that were added up at once: within one their time rises by a few percent at most."""
_COLUMNS = 5
_IDLE, _BETWEEN = math.inf, -1.0
"""Until when a copy is busy that has nothing to do, and one that stands between two steps."""


@dataclass(frozen=True, slots=True)
class Server:
    """Copies of a model that share a load; a request goes to the copy that has the fewest."""

    times: StepTimes
    replicas: int = 1
    slots: int = 256
    """Streams that one copy has at once; others wait."""
    step_tokens: int = STEP_TOKENS
    """Tokens of prompts that one step takes at most."""
    tokens_per_step: float = 1.0
    """Tokens that a step gives each stream, in the mean: above 1 with speculation."""
    stages: int = 1
    """Of the pipeline that each copy is; `times` are of one batch through all of them, and `step_tokens` of one batch."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """What became of each request, in seconds from the begin; figures are taken over the steady part."""

    arrival: Floats
    first: Floats
    end: Floats
    output_tokens: NDArray[np.int64]
    steady: NDArray[np.bool_]
    """Requests that count: neither of the begin, when the server fills, nor of the end, when it drains."""
    tokens_per_s: float
    requests_per_s: float
    gaps: tuple[Floats, Floats]
    """Between tokens of one stream, ms, and how many tokens had each; those of one step spread over its time."""

    @property
    def ttft_ms(self) -> Floats:
        return (self.first - self.arrival)[self.steady] * 1000

    @property
    def e2e_ms(self) -> Floats:
        return (self.end - self.arrival)[self.steady] * 1000

    @property
    def tpot_ms(self) -> Floats:
        """By request: (end - first token) / (tokens - 1); requests of one token have none."""
        several = self.steady & (self.output_tokens > 1)
        return (self.end - self.first)[several] * 1000 / (self.output_tokens[several] - 1)

    def itl_ms(self, percent: float) -> float:
        """Return a percentile of the gaps over all tokens; 0 if no answer had two."""
        values, weights = self.gaps
        if not len(values):
            return 0.0
        reached = np.cumsum(weights)
        place = np.searchsorted(reached, percent / 100 * reached[-1])
        return float(values[min(place, len(values) - 1)])

    @property
    def itl_mean_ms(self) -> float:
        values, weights = self.gaps
        return float(np.average(values, weights=weights)) if len(values) else 0.0


def closed_loop(server: Server, lengths: Sequence[tuple[int, int]], streams: int, *, spread: bool = True) -> Simulated:
    """Keep `streams` requests under way, of the (input, output) lengths in their order, until all are answered.

    The first ones begin evenly spread over about the time of an answer, as users do, or all at once. Steady is what ends
    after as many requests as there are streams, and before the loop runs out of new ones. Raises BadInputError unless there are four
    requests for each stream.
    """
    if streams < 1:
        raise BadInputError(f"A closed loop has at least one stream, not {streams}.")
    if len(lengths) < 4 * streams:
        raise BadInputError(
            f"{len(lengths)} requests are too few for {streams} streams; {4 * streams} show a steady state."
        )
    between = _answer_ms(server, lengths, streams) / streams if spread else 0.0
    run = _Run(server, lengths)
    run.go([n * between for n in range(streams)], closed=True)
    ends = np.sort(run.end)
    begin, until = ends[streams - 1], ends[len(lengths) - streams - 1]
    return run.result((run.end > begin) & (run.end <= until), begin, until)


def open_loop(
    server: Server, lengths: Sequence[tuple[int, int]], moments: Sequence[float], *, warm_up: float = 0.1
) -> Simulated:
    """Send a request of each (input, output) length at its moment, seconds in order; the first share of them is warm-up.

    Steady is what arrived after that. Raises BadInputError for moments that aren't in order, or not as many as lengths.
    """
    if len(moments) != len(lengths) or not lengths or any(a > b for a, b in pairwise(moments)):
        raise BadInputError("An open loop has a moment for each request, in order.")
    run = _Run(server, lengths)
    run.go([1000.0 * moment for moment in moments], closed=False)
    begin = 1000.0 * moments[int(warm_up * len(lengths))]
    until = 1000.0 * moments[-1]
    # A handful of requests at one moment has no time between them: then it is that of their answers.
    return run.result(run.arrival >= begin, begin, until if until > begin else float(run.end.max()))


def _answer_ms(server: Server, lengths: Sequence[tuple[int, int]], streams: int) -> float:
    """Return about how long an answer takes while all streams decode."""
    prompt = sum(prompt for prompt, _ in lengths) / len(lengths)
    answer = sum(answer for _, answer in lengths) / len(lengths)
    beside = math.ceil(min(server.slots, math.ceil(streams / server.replicas)) / server.stages)
    step = interpolate.decode(server.times).at(beside).piece(prompt + answer / 2)[0]
    return interpolate.prefill(server.times).at(0).piece(prompt)[0] + answer / server.tokens_per_step * step


class _Replica:
    """One copy of the model: who waits, whose prompt is read, who decodes, and what it is doing until when (ms)."""

    __slots__ = (
        "base", "begun", "decoding", "growth", "held", "prefilling", "read", "step", "steps", "until", "waiting",
    )  # fmt: skip

    def __init__(self) -> None:
        self.waiting: deque[int] = deque()
        self.prefilling: deque[int] = deque()
        self.decoding: list[tuple[int, int]] = []
        """The step after which each stream ends, and its request: a heap."""
        self.read: list[int] = []
        """Requests whose prompt is read to its end by the step under way."""
        self.step = 0
        self.held = 0.0
        """Tokens in the caches of the streams that decode."""
        self.begun, self.until = 0.0, _IDLE
        self.steps, self.base, self.growth = 0, 0.0, 0.0
        """The steps under way, the time of the first, and by how much each takes longer than the one before."""


class _Run:
    """A simulation under way; its times are ms until the result."""

    def __init__(self, server: Server, lengths: Sequence[tuple[int, int]]) -> None:
        if min(server.replicas, server.slots, server.step_tokens, server.stages) < 1 or server.tokens_per_step < 1:
            raise BadInputError(
                "A server has at least one copy of the model, one stage, one stream, and a token a step."
            )
        if any(prompt < 1 or answer < 1 for prompt, answer in lengths):
            raise BadInputError("A request has at least one token of prompt and one of answer.")
        self._slots, self._step_tokens, self._gain = server.slots, server.step_tokens, server.tokens_per_step
        self._stages = server.stages
        self._pair_ms = interpolate.pair_ms(server.times)
        self._decode = interpolate.decode(server.times).at
        self._prefill = interpolate.prefill(server.times).at
        self._prompt = [prompt for prompt, _ in lengths]
        self._unread = list(self._prompt)
        self._answer = [answer for _, answer in lengths]
        # The first token comes with the prompt; the last step may guess beyond the end.
        self._needed = [math.ceil((answer - 1) / self._gain - 1e-9) for answer in self._answer]
        self._arrival, self._first, self._end = ([0.0] * len(lengths) for _ in range(3))
        self._replicas = [_Replica() for _ in range(server.replicas)]
        self._loads = [0] * server.replicas
        self._segments = array("d")
        """When it began, time of its first step, growth from step to step, steps, streams; one after the other."""

    @property
    def arrival(self) -> Floats:
        return np.asarray(self._arrival)

    @property
    def end(self) -> Floats:
        return np.asarray(self._end)

    def go(self, moments: Sequence[float], *, closed: bool) -> None:
        """Answer all requests, which are numbered as they arrive: at these moments, and in a closed loop whenever one ends."""
        replicas, loads = self._replicas, self._loads
        count, given = len(self._end), len(moments)
        events: list[tuple[float, int]] = []
        arrived = taken = ended = 0
        while ended < count:
            now = moments[taken] if taken < given else math.inf
            if events and events[0][0] < now:
                now = events[0][0]
            ready: list[int] = []
            new = 0
            while events and events[0][0] <= now:
                moment, place = heappop(events)
                replica = replicas[place]
                if moment != replica.until:
                    continue  # it was cut short since
                gone = self._settle(replica)
                loads[place] -= gone
                new += gone
                ready.append(place)
            ended += new
            new = min(new, count - arrived - (given - taken)) if closed else 0
            while taken < given and moments[taken] <= now:
                taken, new = taken + 1, new + 1
            for request in range(arrived, arrived + new):
                # In an open loop `now` is its moment.
                self._arrival[request] = now
                place = loads.index(min(loads)) if len(loads) > 1 else 0
                replica = replicas[place]
                loads[place] += 1
                replica.waiting.append(request)
                if replica.until == _IDLE:
                    replica.until = _BETWEEN
                    ready.append(place)
                elif replica.steps > 1 and self._cut(replica, now):
                    heappush(events, (replica.until, place))
            arrived += new
            for place in ready:
                replica = replicas[place]
                self._start(replica, now)
                if replica.until != _IDLE:
                    heappush(events, (replica.until, place))

    def _start(self, replica: _Replica, now: float) -> None:
        """Begin the next step, or all steps until something changes."""
        waiting, prefilling, decoding = replica.waiting, replica.prefilling, replica.decoding
        while waiting and len(prefilling) + len(decoding) < self._slots:
            prefilling.append(waiting.popleft())
        replica.begun = now
        streams = len(decoding)
        if prefilling:
            unread, most = self._unread, self._step_tokens * self._stages
            room, longest, squares = most, 0, 0
            while prefilling and room:
                request = prefilling[0]
                taken = min(unread[request], room)
                unread[request] -= taken
                room -= taken
                longest = max(longest, taken)
                squares += taken * taken
                if not unread[request]:
                    replica.read.append(prefilling.popleft())
            replica.steps, replica.growth = 1, 0.0
            # Prompts that came one after another lie in batches of their own.
            longest, total = min(longest, self._step_tokens), most - room
            batch = max(longest, -(-total // self._stages))
            times = self._prefill(-(-streams // self._stages))
            # The table's prompt is one, each of whose tokens attends to all before it; those of several don't.
            apart = batch * batch - max(longest * longest, squares * (batch / total) ** 2)
            replica.base = max(times.piece(longest)[0], times.piece(batch)[0] - self._pair_ms * apart)
            replica.until = now + replica.base
        elif decoding:
            context = replica.held / streams
            base, slope, end = self._decode(-(-streams // self._stages)).piece(context)
            steps = decoding[0][0] - replica.step
            if end - context < steps * self._gain:
                steps = max(1, math.ceil((end - context) / self._gain))
            replica.steps, replica.base, replica.growth = steps, base, slope * self._gain
            replica.until = now + _sum(base, replica.growth, steps)
        else:
            replica.steps, replica.until = 0, _IDLE

    def _settle(self, replica: _Replica) -> int:
        """Note what the steps that are over gave; return how many requests ended with them."""
        now, steps, decoding = replica.until, replica.steps, replica.decoding
        ended = 0
        if decoding:
            streams = len(decoding)
            self._segments.extend((replica.begun, replica.base, replica.growth, steps, streams))
            replica.step += steps
            replica.held += steps * streams * self._gain
            while decoding and decoding[0][0] == replica.step:
                request = heappop(decoding)[1]
                self._end[request] = now
                replica.held -= self._prompt[request] + 1 + self._needed[request] * self._gain
                ended += 1
            if not decoding:
                replica.held = 0.0
        for request in replica.read:
            self._first[request] = now
            if self._needed[request]:
                heappush(decoding, (replica.step + self._needed[request], request))
                replica.held += self._prompt[request] + 1
            else:
                self._end[request] = now
                ended += 1
        replica.read.clear()
        replica.steps, replica.until = 0, _BETWEEN
        return ended

    def _cut(self, replica: _Replica, now: float) -> bool:
        """End the steps under way with the one in which a request arrived; say whether that is earlier than before.

        It isn't if there is no room for it: then it waits for an end in any case.
        """
        if len(replica.prefilling) + len(replica.decoding) >= self._slots:
            return False
        base, growth, passed = replica.base, replica.growth, now - replica.begun
        middle = base - growth / 2
        steps = math.ceil(2 * passed / (middle + math.sqrt(max(0.0, middle * middle + 2 * growth * passed))))
        steps = max(1, min(steps, replica.steps))
        # Rounding may have put it one step off.
        while steps > 1 and _sum(base, growth, steps - 1) >= passed:
            steps -= 1
        while steps < replica.steps and _sum(base, growth, steps) < passed:
            steps += 1
        if steps == replica.steps:
            return False
        replica.steps, replica.until = steps, replica.begun + _sum(base, growth, steps)
        return True

    def result(self, steady: NDArray[np.bool_], begin: float, until: float) -> Simulated:
        """Return what became of the requests; rates and gaps are taken over the time from `begin` to `until`."""
        answers = np.asarray(self._answer)
        over = (self.end > begin) & (self.end <= until)
        seconds = (until - begin) / 1000
        return Simulated(
            arrival=self.arrival / 1000,
            first=np.asarray(self._first) / 1000,
            end=self.end / 1000,
            output_tokens=answers,
            steady=steady,
            tokens_per_s=float(answers[over].sum() / seconds),
            requests_per_s=float(over.sum() / seconds),
            gaps=self._gaps(begin, until),
        )

    def _gaps(self, begin: float, until: float) -> tuple[Floats, Floats]:
        """Return the gaps between tokens in ascending order, ms, and the tokens that had each."""
        segments = np.asarray(self._segments).reshape(-1, _COLUMNS)
        segments = segments[(segments[:, 0] >= begin) & (segments[:, 0] < until)]
        _, base, growth, steps, streams = segments.T
        points = np.minimum(steps, _GAPS_A_SEGMENT).astype(np.int64)
        own = np.repeat(np.arange(len(segments)), points)
        number = np.arange(len(own)) - np.repeat(np.cumsum(points) - points, points)
        each = steps[own] / points[own]
        values = (base[own] + growth[own] * ((number + 0.5) * each - 0.5)) / self._gain
        order = np.argsort(values, kind="stable")
        weights = each * streams[own] * self._gain
        return values[order], weights[order]


def _sum(base: float, growth: float, steps: int) -> float:
    """Return the time of steps of which each takes longer than the one before, ms: an arithmetic series."""
    return steps * base + growth * (steps * (steps - 1) / 2)
