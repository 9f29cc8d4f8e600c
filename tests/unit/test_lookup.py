"""Guesses from the text itself, how sure they are, and when they pay."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver.engines.openvino.lookup import (
    GRAIN,
    LONGEST,
    SCRATCH_TOKENS,
    Confidence,
    Floats,
    Guess,
    Ints,
    Lookup,
    Pace,
    Record,
    Shape,
)

Text = st.lists(st.integers(0, 3), max_size=40)
Chances = st.lists(
    st.lists(st.floats(0.01, 0.99), max_size=4).map(lambda row: list(itertools.accumulate(row, float.__mul__))),
    min_size=1,
    max_size=3,
)


class Linear(Pace):
    """Steps whose time is known: so much, so much more for each extra token, and for a new shape."""

    def __init__(self, base: float, extra: float, new: float = 0.0) -> None:
        super().__init__()
        self._base, self._each, self._new = base, extra, new

    @property
    def new_ms(self) -> float:
        return self._new

    def of(self, streams: int, extra: Ints) -> Floats:
        return self._base + self._each * extra.astype(float)


def slow_guess(text: list[int], most: int) -> Guess | None:
    """The same by looking everywhere."""
    for length in range(min(LONGEST, len(text) - 1), 0, -1):
        for end in range(len(text) - 1, length - 1, -1):
            if text[end - length : end] == text[-length:]:
                return Guess(text[end : end + most], length)
    return None


@given(Text, st.integers(1, 5), st.integers(0, 40))
def test_the_longest_match_is_found_and_of_those_the_latest(text: list[int], most: int, cut: int) -> None:
    lookup = Lookup(text[:cut])
    lookup.extend(text[cut:])
    assert lookup.guess(most) == slow_guess(text, most)


def test_nothing_is_guessed_when_nothing_is_asked_for() -> None:
    assert Lookup([1, 1, 1]).guess(0) is None


def test_confidence_falls_along_a_guess_and_rises_with_the_match() -> None:
    confidence = Confidence()
    short, long = confidence.of(Guess([1] * 12, 1)), confidence.of(Guess([1] * 12, LONGEST))
    assert sorted(short, reverse=True) == short
    assert all(a < b for a, b in zip(short, long, strict=True))


def test_confidence_follows_what_it_sees() -> None:
    confidence = Confidence()
    for _ in range(400):
        confidence.learn(1, 3, 3)
        confidence.learn(LONGEST, 3, 0)
    assert confidence.of(Guess([1, 1, 1], 1))[2] > 0.8
    assert confidence.of(Guess([1], LONGEST))[0] < 0.1


@given(Chances, st.floats(1, 100), st.floats(0.01, 100), st.integers(0, 8), st.sampled_from([1, 4]))
def test_what_is_taken_gives_the_most_tokens_a_second(
    chances: list[list[float]], base: float, extra: float, room: int, grain: int
) -> None:
    def rate(taken: tuple[int, ...]) -> float:
        tokens = len(chances) + sum(sum(row[:n]) for row, n in zip(chances, taken, strict=True))
        size = len(chances) + sum(taken)
        padded = -(-size // grain) * grain if sum(taken) else size
        return tokens / (base + extra * (padded - len(chances)))

    taken = Shape().choose(chances, Linear(base, extra), room, grain=grain)
    assert sum(taken) <= room
    options = itertools.product(*(range(len(row) + 1) for row in chances))
    best = max(rate(option) for option in options if sum(option) <= room)
    assert rate(tuple(taken)) == pytest.approx(best, rel=1e-9)


@given(st.lists(Chances, max_size=12), st.floats(0, 30), st.booleans(), st.integers(0, 60))
def test_steps_have_room_for_what_was_chosen(
    steps: list[list[list[float]]], new: float, always: bool, room: int
) -> None:
    shape = Shape()
    for chances in steps:
        streams, all_of_them = len(chances), min(room, sum(map(len, chances)))
        guessed = sum(shape.choose(chances, Linear(10, 1, new), room, least=room if always else 0))
        assert guessed <= all_of_them
        assert guessed == all_of_them or not always
        padding, _ = shape.step(streams, streams + guessed)
        assert 0 <= padding <= SCRATCH_TOKENS
        size = streams + guessed + padding
        assert size % GRAIN == 0 or size == streams


@pytest.mark.parametrize("new", [3.0, 9.0, 25.0])
def test_a_shape_is_kept_until_keeping_it_has_cost_more_than_changes(new: float) -> None:
    shape, pace = Shape(), Linear(10, 0.5, new=new)
    sure: list[list[float]] = [[0.9] * 8, [0.9] * 8]
    shape.choose(sure, pace, 99)
    assert shape.step(2, 18) == (6, True)
    lost = 0.0
    for _ in range(20):  # nothing to guess any more: each step of 24 tokens costs 11 ms more than one of 2
        lost += 11
        assert sum(shape.choose([[], []], pace, 99)) == 0
        assert shape.step(2, 2) == ((22, False) if lost <= Shape.FEWER * new else (0, lost <= Shape.FEWER * new + 11))
    shape.leave()
    assert shape.step(2, 2) == (0, True)


def test_more_guesses_take_more_to_be_taken_than_fewer() -> None:
    def steps(before: list[list[float]], after: list[list[float]]) -> int:
        shape, pace = Shape(), Linear(10, 0.5, new=20)
        shape.choose(before, pace, 99)
        shape.step(1, 1 + len(before[0]))
        for number in range(99):
            shape.choose(after, pace, 99)
            if shape.step(1, 1)[1]:
                return number
        raise AssertionError("it never changes")

    none: list[list[float]] = [[]]
    assert steps(none, [[0.9] * 7]) > steps([[0.9] * 7], none) > 1


def test_a_sequence_is_judged_by_its_own_record() -> None:
    quoting, telling = Record(), Record()
    for _ in range(10):
        quoting.learn(0.5, right=True)
        telling.learn(0.5, right=False)
    assert telling.of([0.5, 0.25])[0] < 0.1
    assert telling.of([0.5, 0.25])[1] == pytest.approx(telling.of([0.5])[0] / 2)
    assert quoting.of([0.5]) == [Record.MOST * 0.5]
    assert Record().of([0.5]) == [0.5]
    for _ in range(100):  # what was long ago is forgotten
        telling.learn(0.5, right=True)
    assert telling.of([0.5])[0] > 0.5


def linear(pace: Pace, streams: int) -> tuple[float, float]:
    """The ms of a step without extra tokens, and of the first extra one."""
    base, more = pace.of(streams, np.arange(2)).tolist()
    return base, more - base


@given(st.floats(1, 50), st.floats(0.1, 5), st.floats(0.1, 5), st.integers(0, 2**32))
def test_pace_learns_what_a_step_costs(start: float, each: float, extra: float, seed: int) -> None:
    pace = Pace()
    assert not pace.knows
    for step in range(256):
        streams, more = 1 + (step * 7 + seed) % 8, (step * 5 + seed // 8) % 12
        pace.learn(streams, more, start + each * streams + extra * more)
    found = linear(pace, 4)
    # What it is wrong by is small beside the steps that it saw, whose mean has 5.5 extra tokens.
    seen = start + 4.5 * each + 5.5 * extra
    assert found[0] == pytest.approx(start + 4 * each, abs=0.05 * seen)
    if extra <= 0.25 * (start + each):  # as on every machine that was measured, and then some
        assert found[0] == pytest.approx(start + 4 * each, rel=0.1)
    assert found[1] == pytest.approx(extra, abs=0.05 * extra + 0.005 * found[0])


def test_a_step_that_something_else_held_up_changes_little() -> None:
    pace = Pace()
    for step in range(64):
        pace.learn(2, step % 4, 10.0 + step % 4)
    pace.learn(2, 0, 5000.0)
    for step in range(15):
        pace.learn(2, step % 4, 10.0 + step % 4)
    assert linear(pace, 2)[0] == pytest.approx(10, rel=0.2)


def test_where_guessing_has_not_been_tried_it_is_taken_to_cost_a_little() -> None:
    pace = Pace()
    for _ in range(100):
        pace.learn(1, 0, 10.0)
    assert 0.1 < linear(pace, 1)[1] < 1.0
