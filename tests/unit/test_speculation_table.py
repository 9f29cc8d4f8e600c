"""The table of what guessing costs by load: its form, where it holds, and what a decoder makes of it."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from quicksilver.engines.openvino.files import conditions, speculation_table
from quicksilver.engines.openvino.lookup import DEPTH, GRAIN, LONGEST, Confidence, Guess, Pace, Shape, padded
from quicksilver.engines.openvino.measure import Replay
from quicksilver.nouns import Settings, SpeculationTable
from quicksilver.nouns.speculation import FILE

STREAMS, LENGTHS = (1, 2, 4, 8), (0, 2, 4, 8)
SETTINGS = Settings.model_validate({"speculation": {"kind": "prompt_lookup"}})


def table(base: float = 10.0, each: float = 2.0, extra: float = 0.5, jump: float = 0.0) -> SpeculationTable:
    """A machine on which a step costs so many ms at least, for each stream, for each extra token, and for guessing at all."""
    return SpeculationTable(
        **conditions(SETTINGS),
        context_tokens=100,
        streams=STREAMS,
        lengths=LENGTHS,
        step_ms=tuple(
            tuple(base + each * n + extra * int(padded(n, np.array([n * k]))[0]) + jump * (k > 0) for k in LENGTHS)
            for n in STREAMS
        ),
        guessed=LENGTHS,
        gained=(1, 2, 2.5, 2.75),
        tried=((100,) * DEPTH,) * LONGEST,
        right=((50,) * DEPTH,) * LONGEST,
    )


tables = st.builds(table, st.floats(1, 50), st.floats(0.1, 5), st.floats(0.01, 20), st.floats(0, 50))
chances = st.lists(
    st.lists(st.floats(0.01, 0.99), max_size=8).map(lambda row: list(itertools.accumulate(row, float.__mul__))),
    min_size=1,
    max_size=12,
)


@given(tables, st.integers(0, 40), st.integers(1, 20))
def test_what_was_measured_is_what_a_new_decoder_expects(found: SpeculationTable, seed: int, streams: int) -> None:
    pace = Pace(found)
    assert pace.knows
    for n, row in zip(found.streams, found.step_ms, strict=True):
        extra = padded(n, n * np.array(LENGTHS))
        assert pace.of(n, np.unique(extra)) == pytest.approx(np.unique(row))
    curve = pace.of(streams, np.arange(seed + 2))
    assert (np.diff(curve) >= 0).all()
    if streams > 1:
        assert curve[0] >= pace.of(streams - 1, np.arange(1))[0] * 0.999


@given(tables, chances)
def test_by_its_own_table_a_choice_is_as_good_as_all_and_as_none(
    found: SpeculationTable, rows: list[list[float]]
) -> None:
    pace = Pace(found)

    def rate(taken: list[int]) -> float:
        tokens = len(rows) + sum(sum(row[:n]) for row, n in zip(rows, taken, strict=True))
        extra = int(padded(len(rows), np.array([sum(taken)]))[0])
        return tokens / float(pace.of(len(rows), np.arange(extra + 1))[-1])

    chosen = rate(Shape().choose(rows, pace, 1000))
    assert chosen >= rate([0] * len(rows)) * 0.999
    assert chosen >= rate([len(row) for row in rows]) * 0.999


@given(chances)
def test_nothing_is_guessed_where_guessing_loses(rows: list[list[float]]) -> None:
    assert sum(Shape().choose(rows, Pace(table(base=1, each=0.1, extra=50)), 1000)) == 0


@given(st.integers(1, 8), st.floats(1.1, 4))
def test_dearer_tokens_are_never_guessed_more_often(streams: int, dearer: float) -> None:
    rows = [list(itertools.accumulate([0.5 + 0.4 * n / streams] * 8, float.__mul__)) for n in range(streams)]
    counts = [sum(Shape().choose(rows, Pace(table(extra=extra)), 1000)) for extra in (0.3, 0.3 * dearer)]
    assert counts[0] >= counts[1]


@given(st.floats(0.2, 5), st.floats(0, 20))
def test_a_machine_that_drifts_is_followed(slower: float, jump: float) -> None:
    pace, now = Pace(table()), Pace(table(jump=jump))
    for step in range(400):
        streams, extra = (
            STREAMS[step % 4],
            np.array([GRAIN - STREAMS[step % 4], 2 * GRAIN - STREAMS[step % 4], 0])[step % 3],
        )
        ms = float(now.of(streams, np.arange(extra + 1))[-1])
        pace.learn(streams, int(extra), slower * ms)
    for streams in STREAMS:
        extra = np.array([0, GRAIN - streams, 2 * GRAIN - streams]) if streams < GRAIN else np.array([0, GRAIN])
        assert pace.of(streams, extra) == pytest.approx(slower * now.of(streams, extra), rel=0.35)


def test_confidence_begins_with_what_was_seen() -> None:
    guess = Guess([1] * 3, LONGEST)
    assert Confidence(table()).of(guess)[0] == pytest.approx((50 + 0.91 * 20) / 120)
    other = Confidence(table())
    for _ in range(100):  # and what comes soon outweighs it
        other.learn(LONGEST, 1, 0)
    assert other.of(guess)[0] < 0.15
    assert Confidence(table().model_copy(update={"tried": (), "right": ()})).of(guess) == Confidence().of(guess)


@pytest.mark.parametrize(("field", "value"), [("machine", "another"), ("engine", "OpenVINO 1.0"), ("threads", 99)])
def test_a_table_from_elsewhere_is_left_with_a_word(
    field: str, value: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_text(table().model_copy(update={field: value}).model_dump_json(), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert speculation_table(tmp_path, SETTINGS) is None
    assert field in caplog.text


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", '{"version": 2}'])
def test_a_table_that_cant_be_read_is_left_with_a_word(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert speculation_table(tmp_path, SETTINGS) is None
    assert "can't be read" in caplog.text


def test_a_table_of_here_is_taken_and_none_is_no_matter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert speculation_table(tmp_path, SETTINGS) is None
    (tmp_path / FILE).write_text(table().model_dump_json(), encoding="utf-8")
    assert speculation_table(tmp_path, SETTINGS) == table()
    assert speculation_table(tmp_path, Settings()) is None
    assert not caplog.text


@given(tables)
def test_the_file_holds_all_of_it(found: SpeculationTable) -> None:
    assert SpeculationTable.model_validate_json(found.model_dump_json()) == found


def test_tokens_a_second_are_those_of_the_guesses_that_were_found() -> None:
    found = table().model_copy(update={"guessed": (0, 1, 2, 4)})
    step_ms = found.step_ms[0][1]  # of 2 guessed tokens
    assert found.tokens_per_s[0][2] == pytest.approx(1000 * 2.5 / step_ms)


@pytest.mark.parametrize(
    "change",
    [{"streams": (2, 1, 4, 8)}, {"lengths": (1, 2, 4, 8)}, {"step_ms": ((1, 1, 1, 1),)}, {"guessed": (0,)},
     {"step_ms": ((0, 1, 1, 1),) * 4}, {"right": ()}, {"version": 2}, {"threads": 0}],
)  # fmt: skip
def test_a_table_of_no_form_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SpeculationTable.model_validate(json.loads(table().model_dump_json()) | change)


def test_a_replay_counts_what_a_decoder_would_have_guessed() -> None:
    replay = Replay(4)
    # 1 2 3 4 5 stood before, and stands again; its first token comes with the prompt's own step.
    replay.add([1, 2, 3, 4, 5, 9, 9], [1, 2, 3, 4, 5, 6])
    assert (replay.steps, replay.gained) == (1, 5)
    assert replay.guessed == 4
    assert replay.right[0][:4] == [1, 1, 1, 1]
    none = Replay(0)
    none.add([1, 2, 3, 4, 5, 9, 9], [1, 2, 3, 4, 5, 6])
    assert (none.steps, none.gained, none.guessed) == (5, 5, 0)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=20), st.lists(st.integers(0, 3), max_size=30), st.integers(0, 6)
)
def test_a_replay_gives_every_token_once(prompt: list[int], answer: list[int], most: int) -> None:
    replay = Replay(most)
    replay.add(prompt, answer)
    assert replay.gained == max(0, len(answer) - 1)
    right, tried = np.array(replay.right), np.array(replay.tried)
    assert (right <= tried).all()
    assert right.sum() + replay.steps == replay.gained
    assert tried.sum() <= replay.guessed


@pytest.mark.parametrize("streams", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("extra", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("known", [True, False])
def test_following_the_load_is_never_slower_than_the_better_of_always_and_never(
    streams: int, extra: float, known: bool
) -> None:
    """On a machine that is simulated, with guesses that hold as often as confidence has it; steps of a new shape cost more."""
    truth = table(8.0, 2.0, extra, jump=1.0).model_copy(update={"new_shape_ms": 6.0})
    rates = {
        name: simulated(streams, truth, Pace(truth if known else None), least, most)
        for name, least, most in (("never", 0, 0), ("always", 1000, 5), ("by load", 0, 12))
    }
    assert rates["by load"] >= 0.97 * max(rates["never"], rates["always"])


def simulated(streams: int, truth: SpeculationTable, pace: Pace, least: int, most: int) -> float:
    """Return the tokens per ms of a few hundred steps."""
    rng, real, shape = np.random.default_rng(0), Pace(truth), Shape()
    tokens, ms = 0, 0.0
    for _ in range(300):
        matches = rng.choice([0, 1, 2, LONGEST], size=streams, p=[0.3, 0.25, 0.15, 0.3])
        guesses = [Guess([0] * most if match else [], int(match)) for match in matches]
        chances = [Confidence().of(guess) if guess.tokens else [] for guess in guesses]
        taken = shape.choose(chances, pace, 1000, least=least) if pace.knows else [0] * streams
        padding, new = shape.step(streams, streams + sum(taken))
        extra = sum(taken) + padding
        step_ms = float(real.of(streams, np.arange(extra + 1))[-1]) + new * truth.new_shape_ms
        pace.learn(streams, extra, step_ms, new=new)
        ms += step_ms
        lucks = rng.random(streams)  # one a sequence: its guess holds as far as its chance is above it
        tokens += streams + sum(
            sum(chance > luck for chance in row[:count]) for row, count, luck in zip(chances, taken, lucks, strict=True)
        )
    return tokens / ms
