"""The simulation: as a naive one that walks through every step, as the laws of queues, the same by seed."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quicksilver.bench.schedule import moments
from quicksilver.errors import BadInputError
from quicksilver.nouns import Arrivals
from quicksilver.nouns.prediction import StepTimes
from quicksilver.planner import interpolate
from quicksilver.planner.simulate import Server, closed_loop, open_loop
from quicksilver.testing.planning import linear, step_times

FLAT = step_times(lambda streams, context: 10.0, lambda prompt, beside: 20.0)
"""A step takes 10 ms, a prompt 20 ms, whatever it is beside."""


def uneven(seed: int) -> StepTimes:
    """Tables of random times, which rise and fall."""
    draw = random.Random(seed).uniform
    return step_times(
        lambda streams, context: draw(5, 15),
        lambda prompt, beside: draw(10, 40),
        streams=(1, 2, 4),
        contexts=(8, 20, 31),
        prompts=(4, 16, 40),
        beside=(0, 2, 4),
    )


def naive(
    server: Server, lengths: Sequence[tuple[int, int]], moments: Sequence[float], *, closed: bool = False
) -> tuple[list[float], list[float], list[float]]:
    """Answer the requests step by step; return when each arrived, got its first token, and ended, ms."""
    count = len(lengths)
    arrival, first, end = [0.0] * count, [0.0] * count, [0.0] * count
    copies: list[dict[str, list[list[float]]]] = [{"wait": [], "run": [], "busy": []} for _ in range(server.replicas)]
    until = [math.inf] * server.replicas
    arrived = begun = over = 0
    while over < count:
        now = min([*moments[begun : begun + 1], *until])
        between, ended = [], 0
        for place, copy in enumerate(copies):
            if until[place] > now:
                continue
            between.append(place)
            until[place] = -1.0
            for stream in [s for s in copy["busy"] if s[1] == 0]:
                # number, unread prompt, steps left, tokens held
                stream[2] -= 1
                stream[3] += server.tokens_per_step
            for stream in [s for s in copy["busy"] if s[1] > 0]:
                stream[1] -= stream[4]
                if stream[1] == 0:
                    first[int(stream[0])] = now
                    stream[3] = lengths[int(stream[0])][0] + 1
            for stream in [s for s in copy["run"] if s[1] == 0 and s[2] <= 0]:
                end[int(stream[0])] = now
                copy["run"].remove(stream)
                ended += 1
        over += ended
        new = min(ended, count - arrived - (len(moments) - begun)) if closed else 0
        while begun < len(moments) and moments[begun] <= now:
            begun, new = begun + 1, new + 1
        for number in range(arrived, arrived + new):
            arrival[number] = now
            place = min(range(server.replicas), key=lambda p: len(copies[p]["wait"]) + len(copies[p]["run"]))
            prompt, answer = lengths[number]
            steps = math.ceil((answer - 1) / server.tokens_per_step - 1e-9)
            copies[place]["wait"].append([number, prompt, steps, 0.0, 0.0])
            if until[place] == math.inf:
                until[place] = -1.0
                between.append(place)
        arrived += new
        for place in between:
            copy = copies[place]
            while copy["wait"] and len(copy["run"]) < server.slots:
                copy["run"].append(copy["wait"].pop(0))
            reading, decoding = [s for s in copy["run"] if s[1] > 0], [s for s in copy["run"] if s[1] == 0]
            room = server.step_tokens * server.stages
            for stream in reading:
                stream[4] = min(stream[1], room)
                room -= int(stream[4])
            copy["busy"] = [s for s in reading if s[4] > 0] + decoding
            if reading:
                total, longest = server.step_tokens * server.stages - room, max(int(s[4]) for s in reading)
                tokens = max(min(longest, server.step_tokens), math.ceil(total / server.stages))
                longest = min(longest, server.step_tokens)
                squares = sum(int(s[4]) ** 2 for s in reading) * (tokens / total) ** 2
                apart = tokens**2 - max(longest**2, squares)
                times = interpolate.prefill(server.times).at(math.ceil(len(decoding) / server.stages))
                whole = times.piece(tokens)[0] - interpolate.pair_ms(server.times) * apart
                until[place] = now + max(times.piece(longest)[0], whole)
            elif decoding:
                context = sum(s[3] for s in decoding) / len(decoding)
                batch = math.ceil(len(decoding) / server.stages)
                until[place] = now + interpolate.decode(server.times).at(batch).piece(context)[0]
            else:
                until[place] = math.inf
    return arrival, first, end


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 14),
    replicas=st.integers(1, 3),
    slots=st.integers(1, 4),
    step_tokens=st.integers(3, 40),
    gain=st.sampled_from([1.0, 1.7, 3.0]),
    gap_ms=st.sampled_from([3.0, 60.0, 400.0]),
    stages=st.integers(1, 3),
)
def test_an_open_loop_is_as_step_by_step(
    *, seed: int, count: int, replicas: int, slots: int, step_tokens: int, gain: float, gap_ms: float, stages: int
) -> None:
    draw = random.Random(seed)
    lengths = [(draw.randint(1, 30), draw.randint(1, 25)) for _ in range(count)]
    times = sorted(draw.uniform(0, gap_ms * count) for _ in range(count))
    server = Server(uneven(seed), replicas, slots, step_tokens, gain, stages)
    arrival, first, end = naive(server, lengths, times)
    found = open_loop(server, lengths, [t / 1000 for t in times], warm_up=0)
    assert found.arrival * 1000 == pytest.approx(arrival)
    assert found.first * 1000 == pytest.approx(first)
    assert found.end * 1000 == pytest.approx(end)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    streams=st.integers(1, 5),
    slots=st.integers(1, 4),
    step_tokens=st.integers(3, 40),
    gain=st.sampled_from([1.0, 1.7, 3.0]),
    spread=st.booleans(),
    stages=st.integers(1, 3),
)
def test_a_closed_loop_is_as_step_by_step(
    *, seed: int, streams: int, slots: int, step_tokens: int, gain: float, spread: bool, stages: int
) -> None:
    draw = random.Random(seed)
    lengths = [(draw.randint(1, 30), draw.randint(1, 25)) for _ in range(4 * streams + draw.randint(0, 5))]
    server = Server(uneven(seed), 1, slots, step_tokens, gain, stages)
    found = closed_loop(server, lengths, streams, spread=spread)
    begun = sorted(found.arrival * 1000)[:streams] if spread else [0.0] * streams
    arrival, first, end = naive(server, lengths, begun if spread else [0.0] * streams, closed=True)
    if not spread:
        assert found.arrival * 1000 == pytest.approx(arrival)
        assert found.first * 1000 == pytest.approx(first)
        assert found.end * 1000 == pytest.approx(end)
    # Every request is answered, in the order that causes have.
    assert (found.first > found.arrival).all()
    assert (found.end >= found.first).all()


@given(
    values=st.lists(st.floats(1, 100), min_size=2, max_size=6),
    at=st.floats(0, 1),
)
def test_pieces_are_the_usual_interpolation(values: list[float], at: float) -> None:
    points = [3 * n for n in range(len(values))]
    x = at * points[-1]
    value, slope, end = interpolate.Pieces(points, values).piece(x)
    assert value == pytest.approx(np.interp(x, points, values))
    if end < points[-1]:
        assert value + slope * (end - x) == pytest.approx(np.interp(end, points, values))


def test_pieces_are_level_before_and_rise_on_after_their_points() -> None:
    pieces = interpolate.Pieces([10, 20], [5.0, 6.0])
    assert [pieces.piece(x)[0] for x in (0, 10, 15, 20, 40)] == pytest.approx([5.0, 5.0, 5.5, 6.0, 8.0])
    assert interpolate.Pieces([10, 20], [6.0, 5.0]).piece(1e6)[0] == 5.0
    assert interpolate.Pieces([10], [6.0]).piece(1e6)[0] == 6.0


def test_one_stream_takes_the_sum_of_its_steps() -> None:
    times = step_times(
        lambda streams, context: 5 + context / 100, lambda prompt, beside: prompt / 10, contexts=(0, 100, 1000)
    )
    found = closed_loop(Server(times), [(90, 30)] * 4, 1)
    assert found.ttft_ms == pytest.approx([9.0] * 2)
    assert found.e2e_ms == pytest.approx([9.0 + sum(5 + (91 + k) / 100 for k in range(29))] * 2)
    assert found.tokens_per_s == pytest.approx(30 / found.e2e_ms[0] * 1000)


def test_speculation_takes_fewer_steps_and_spreads_its_gaps() -> None:
    found = closed_loop(Server(FLAT, tokens_per_step=3.0), [(50, 250)] * 8, 1)
    assert found.e2e_ms == pytest.approx([20 + 83 * 10] * 6)
    assert found.itl_ms(50) == pytest.approx(10 / 3)


def test_a_long_prompt_is_read_in_parts() -> None:
    found = closed_loop(Server(FLAT, step_tokens=40), [(100, 1)] * 4, 1)
    assert found.ttft_ms == pytest.approx([60.0] * 2)
    assert found.e2e_ms == pytest.approx(found.ttft_ms)


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_one_slot_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    # M/G/1: mean wait = rate x E[S^2] / (2 (1 - load)), where an answer of n tokens takes S = 20 + 10 (n - 1) ms.
    draw = random.Random(1)
    lengths = [(10, draw.choice((1, 20, 60))) for _ in range(60_000)]
    service = np.array([20 + 10 * (answer - 1) for _, answer in lengths]) / 1000
    rate = load / service.mean()
    found = open_loop(Server(FLAT, slots=1), lengths, moments(Arrivals.poisson(rate, 7), len(lengths)), warm_up=0.05)
    expected = rate * (service**2).mean() / (2 * (1 - load))
    assert found.ttft_ms.mean() / 1000 - 0.020 == pytest.approx(expected, rel=0.08)


def test_two_copies_with_room_for_one_wait_less_than_one_of_double_load() -> None:
    lengths = [(10, 30)] * 4000
    one = open_loop(Server(FLAT, slots=1), lengths, moments(Arrivals.poisson(2.2), 4000))
    two = open_loop(Server(FLAT, 2, slots=1), lengths, moments(Arrivals.poisson(4.4), 4000))
    assert two.ttft_ms.mean() < 0.75 * one.ttft_ms.mean()


@pytest.mark.parametrize("streams", [1, 7, 40])
@pytest.mark.parametrize("replicas", [1, 3])
def test_a_closed_loop_obeys_littles_law(streams: int, replicas: int) -> None:
    draw = random.Random(3)
    lengths = [(draw.randint(50, 500), draw.randint(20, 200)) for _ in range(60 * streams)]
    found = closed_loop(Server(linear(), replicas, slots=16), lengths, streams)
    assert found.requests_per_s * found.e2e_ms.mean() / 1000 == pytest.approx(streams, rel=0.05)


def test_every_token_but_the_first_has_a_gap() -> None:
    draw = random.Random(3)
    lengths = [(draw.randint(50, 500), draw.randint(2, 200)) for _ in range(400)]
    found = open_loop(Server(linear(), 2), lengths, moments(Arrivals.poisson(5.0), 400), warm_up=0)
    asked = sum(answer - 1 for _, answer in lengths)
    # Those of the last answers come after the last arrival, where the steady part ends.
    assert 0.9 * asked < found.gaps[1].sum() <= asked
    assert found.itl_ms(5) <= found.itl_ms(50) <= found.itl_ms(95)


def test_the_same_seed_gives_the_same_and_a_higher_load_longer_waits() -> None:
    lengths = [(600, 100 + n % 90) for n in range(3000)]

    def at(rate: float) -> float:
        found = open_loop(Server(linear(), slots=32), lengths, moments(Arrivals.poisson(rate, 2), len(lengths)))
        return float(np.percentile(found.ttft_ms, 95))

    assert at(4.0) == at(4.0)
    waits = [at(rate) for rate in (1.0, 4.0, 8.0, 10.0, 16.0)]
    assert waits == sorted(waits)
    assert waits[-1] > 2 * waits[0]


def test_throughput_falls_off_where_slots_run_out() -> None:
    lengths = [(100, 100)] * 640
    rates = [closed_loop(Server(FLAT, slots=slots), lengths, 64).tokens_per_s for slots in (8, 32, 64)]
    assert rates[0] < rates[1] < rates[2]
    assert rates[0] == pytest.approx(8 / 0.010, rel=0.35)


def test_a_pipeline_is_as_quick_for_one_and_serves_as_many_batches_as_it_has_stages() -> None:
    alone = closed_loop(Server(linear(), stages=4), [(300, 60)] * 8, 1)
    assert alone.end[0] == pytest.approx(closed_loop(Server(linear()), [(300, 60)] * 8, 1).end[0])
    # Short prompts and long answers: four batches of eight take turns, and each step is one of eight streams.
    lengths = [(1, 400)] * 256
    one = closed_loop(Server(linear()), lengths[:64], 8).tokens_per_s
    assert closed_loop(Server(linear(), stages=4), lengths, 32).tokens_per_s == pytest.approx(4 * one, rel=0.15)


def test_in_a_pipeline_all_batches_wait_for_one_with_a_prompt() -> None:
    quick = step_times(
        lambda streams, context: 10.0,
        lambda prompt, beside: 10.0 if prompt <= 100 else 200.0,
        prompts=(1, 100, 101, 8192),
    )
    lengths, times = [(10, 30), (2000, 1)], [0.0, 0.1]
    for stages in (1, 4):
        found = open_loop(Server(quick, stages=stages), lengths, times, warm_up=0)
        assert found.end[0] == pytest.approx(0.300 + 0.200 - 0.010, abs=0.011)


def test_a_long_prompt_goes_through_a_pipeline_in_pieces_and_short_ones_side_by_side() -> None:
    times = linear(step_ms=0.001, stream_ms=0, token_ms=0, prompt_ms=1.0)
    for lengths in ([(400, 1)], [(100, 1)] * 4):
        found = open_loop(Server(times, stages=4, step_tokens=100), lengths, [0.0] * len(lengths), warm_up=0)
        assert found.end.max() == pytest.approx(0.1, rel=0.01)


def test_prompts_that_share_a_step_do_not_attend_to_each_other() -> None:
    def ms(prompt: int) -> float:
        return 5 + 0.1 * prompt + 2e-4 * prompt**2

    times = step_times(
        lambda streams, context: 1.0, lambda prompt, beside: ms(prompt), prompts=(1, 100, 250, 500, 1000, 2000)
    )
    assert interpolate.pair_ms(times) == pytest.approx(2e-4)
    one = open_loop(Server(times), [(2000, 1)], [0.0], warm_up=0)
    assert one.end[0] * 1000 == pytest.approx(ms(2000))
    several = open_loop(Server(times), [(100, 1)] * 20, [0.0] * 20, warm_up=0)
    assert several.end.max() * 1000 == pytest.approx(5 + 200 + 20 * 2e-4 * 100**2)


def test_what_makes_no_sense_is_refused() -> None:
    server = Server(FLAT)
    with pytest.raises(BadInputError, match="at least one stream"):
        closed_loop(server, [(1, 1)] * 9, 0)
    with pytest.raises(BadInputError, match="too few for 3 streams"):
        closed_loop(server, [(1, 1)] * 9, 3)
    with pytest.raises(BadInputError, match="moment for each request"):
        open_loop(server, [(1, 1)] * 2, [1.0, 0.5])
    with pytest.raises(BadInputError, match="one token of prompt"):
        open_loop(server, [(0, 1)], [0.0])
    with pytest.raises(BadInputError, match="one copy"):
        open_loop(replace(server, tokens_per_step=0.5), [(1, 1)], [0.0])
