"""Arrivals: from words to loads, and from loads to moments."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from quicksilver.bench.schedule import in_order, loads, moments, streams_at
from quicksilver.errors import BadInputError
from quicksilver.nouns import Arrivals, Prompt

rates = st.floats(0.01, 1000)
open_loads = st.builds(
    lambda kind, low, more, steps, seed: Arrivals(
        kind=kind,
        rate_per_s=low,
        rate_to_per_s=low * (1 + more) if more else None,
        steps=steps if more else None,
        seed=seed,
    ),
    kind=st.sampled_from(["poisson", "constant"]),
    low=rates,
    more=st.none() | st.floats(0.01, 20),
    steps=st.none() | st.integers(2, 9),
    seed=st.integers(0, 9),
)


@given(open_loads, st.integers(1, 200), st.integers(0, 3))
def test_moments_begin_at_0_are_in_order_and_repeatable(load: Arrivals, count: int, number: int) -> None:
    found = moments(load, count, number)
    assert len(found) == count
    assert found[0] == 0
    assert all(math.isfinite(moment) for moment in found)
    assert all(earlier <= later for earlier, later in pairwise(found))
    assert found == moments(load, count, number)


def test_another_seed_or_round_has_other_moments() -> None:
    one = Arrivals.poisson(3.0)
    assert moments(one, 20) != moments(Arrivals.poisson(3.0, seed=1), 20)
    assert moments(one, 20) != moments(one, 20, 1)


@given(rates, st.integers(2, 50))
def test_a_constant_rate_has_equal_gaps(rate: float, count: int) -> None:
    gaps = np.diff(moments(Arrivals(kind="constant", rate_per_s=rate), count))
    assert np.allclose(gaps, 1 / rate)


def test_a_poisson_process_has_exponential_gaps() -> None:
    rate, count = 4.0, 20_000
    raw = np.diff(moments(Arrivals.poisson(rate, seed=3), count))
    gaps = np.sort(raw)
    assert gaps.mean() == pytest.approx(1 / rate, rel=0.03)
    # Kolmogorov and Smirnov: at this count 1.63 / sqrt(n) is exceeded once in a hundred seeds.
    expected = 1 - np.exp(-rate * gaps)
    seen = np.arange(1, len(gaps) + 1) / len(gaps)
    assert np.abs(expected - seen).max() < 1.63 / math.sqrt(len(gaps))
    assert abs(np.corrcoef(raw[:-1], raw[1:])[0, 1]) < 0.03, "and no gap knows the one before it"


@pytest.mark.parametrize("kind", ["poisson", "constant"])
@pytest.mark.parametrize("steps", [None, 4])
def test_a_rate_rises_over_the_run(kind: str, steps: int | None) -> None:
    load = Arrivals.model_validate({"kind": kind, "rate_per_s": 2.0, "rate_to_per_s": 10.0, "steps": steps, "seed": 1})
    found = np.array(moments(load, 6001))
    # 6000 gaps at 6 a second on average: 1000 s.
    assert found[-1] == pytest.approx(1000, rel=0.05)
    counts, _ = np.histogram(found, bins=4, range=(0, 1000))
    expected = [2, 14 / 3, 22 / 3, 10] if steps else [3, 5, 7, 9]
    assert counts / 250 == pytest.approx(expected, rel=0.1)


@given(st.integers(1, 9), st.integers(1, 9), st.none() | st.integers(2, 6), st.integers(1, 60))
def test_streams_rise_from_the_first_level_to_the_last(low: int, more: int, steps: int | None, count: int) -> None:
    found = streams_at(Arrivals(streams=low, streams_to=low + more, steps=steps), count)
    assert len(found) == count
    assert found[0] == low
    assert all(a <= b for a, b in pairwise(found))
    assert max(found) <= low + more
    if count >= (steps or more + 1):
        assert found[-1] == low + more
    if steps:
        assert len(set(found)) <= steps


def prompts(*times: float | None) -> list[Prompt]:
    return [Prompt(id=f"p{i}", prompt="x", arrival_s=t) for i, t in enumerate(times)]


def test_a_trace_of_the_prompts_own() -> None:
    load, ordered = in_order(Arrivals(kind="trace"), prompts(5.0, 2.0, 3.5))
    assert [p.id for p in ordered] == ["p1", "p2", "p0"]
    assert moments(load, 3) == [0, 1.5, 3]
    with pytest.raises(BadInputError, match=r"'p1' doesn't say when it came.*--trace FILE"):
        in_order(Arrivals(kind="trace"), prompts(5.0, None))


def test_a_recorded_trace(tmp_path: Path) -> None:
    file = tmp_path / "moments.txt"
    file.write_text("# seconds\n10\n\n10.5\n12.25\n", encoding="utf-8")
    (load,) = loads(trace=file) or ()
    assert load.times_s == (0, 0.5, 2.25)
    _, kept = in_order(load, prompts(None, None, None, None))
    assert [p.id for p in kept] == ["p0", "p1", "p2"]
    assert moments(load, 2) == [0, 0.5]
    with pytest.raises(BadInputError, match="has 3 moments, and 4 requests"):
        moments(load, 4)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1\nsoon\n", "Line 2 of .* is not a number of seconds: 'soon'"),
        ("1\nnan\n", "Line 2 of .* is not a number of seconds"),
        ("1\n0.5\n", "Line 2 of .* is earlier than the one before it"),
        ("# nothing\n", "has no moments"),
    ],
)
def test_a_bad_trace_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "moments.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError, match=sentence):
        loads(trace=file)
    with pytest.raises(BadInputError, match="can't be read"):
        loads(trace=tmp_path / "none.txt")


def test_words_become_loads() -> None:
    assert loads() is None
    assert loads(streams=(8, 1)) == (Arrivals.closed(1), Arrivals.closed(8))
    assert loads(rates=(2.0, 0.5), seed=7) == (Arrivals.poisson(0.5, 7), Arrivals.poisson(2.0, 7))
    assert [load.label for load in loads(rates=(2.5,), kind="constant") or ()] == ["2.5/s, constant"]
    assert [load.label for load in loads(ramp="1:8") or ()] == ["1 to 8 streams"]
    assert [load.label for load in loads(ramp="0.5:4:3", kind="poisson") or ()] == ["0.5 to 4/s in 3 steps"]
    assert [load.label for load in loads(kind="trace") or ()] == ["trace"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"streams": (1,), "rates": (2.0,)}, "Streams and a rate don't go together"),
        ({"rates": (2.0,), "ramp": "1:8"}, "A rate and a ramp don't go together"),
        ({"kind": "poison", "rates": (2.0,)}, "'poison'; did you mean 'poisson'"),
        ({"kind": "poisson"}, "need a rate"),
        ({"kind": "closed", "rates": (2.0,)}, "A closed loop has streams and no rate"),
        ({"kind": "trace", "rates": (2.0,)}, "takes no streams and no rate"),
        ({"kind": "constant", "trace": Path("x")}, "A trace and arrivals that are constant"),
        ({"streams": (0,)}, "This load makes no sense"),
        ({"rates": (-1.0,)}, "This load makes no sense"),
        ({"ramp": "8"}, "'8' is not a ramp; write it as 1:8"),
        ({"ramp": "1:b"}, "'1:b' is not a ramp"),
        ({"ramp": "8:1"}, "streams rise to more than they begin with"),
        ({"ramp": "1:8:1"}, "greater than or equal to 2"),
        ({"ramp": "4:2", "kind": "poisson"}, "a rate rises to more"),
        ({"ramp": "1:nan", "kind": "poisson"}, "This load makes no sense"),
        ({"ramp": "1:8", "kind": "trace"}, "A trace doesn't rise"),
    ],
)
def test_words_that_make_no_sense_are_one_sentence(words: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        loads(**words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"streams": 0},
        {"streams": 2, "rate_per_s": 1.0},
        {"kind": "poisson"},
        {"kind": "poisson", "rate_per_s": 0},
        {"kind": "poisson", "rate_per_s": math.inf},
        {"kind": "poisson", "rate_per_s": 1, "times_s": [1.0]},
        {"kind": "trace", "times_s": [2.0, 1.0]},
        {"streams": 2, "steps": 3},
    ],
)
def test_arrivals_that_can_not_be_are_refused(document: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Arrivals.model_validate(document)


@given(open_loads)
def test_arrivals_can_be_stored(load: Arrivals) -> None:
    assert Arrivals.model_validate_json(load.model_dump_json()) == load
    assert load.load_name
    assert not Arrivals.closed(3).load_name
