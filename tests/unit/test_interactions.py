"""What techniques give alone and together, and where one recipe overtakes another."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver.bench import tradeoffs
from quicksilver.bench.tradeoffs import ranged
from quicksilver.nouns import Crossover, Figure
from quicksilver.search import interactions
from quicksilver.techniques import make

INT8, LOOKUP, ROTATE = make("int8"), make("prompt-lookup"), make("rotate")
BOLD = make({"name": "activations", "group_size": 64})


def ratio(value: float, noise: float = 0.02) -> Figure:
    return Figure(value=value, low=value / (1 + noise), high=value * (1 + noise), unit="x")


def test_a_technique_that_cannot_run_alone_is_measured_with_what_it_needs() -> None:
    found = interactions.alone([ROTATE, INT8, BOLD, LOOKUP])
    assert [one.stack for one in found] == [(ROTATE,), (INT8,), (INT8, BOLD), (LOOKUP,)]
    assert [one.rest for one in found] == [(), (), (INT8,), ()]
    assert interactions.needed([ROTATE, INT8, BOLD, LOOKUP]) == [(ROTATE,), (INT8,), (INT8, BOLD), (LOOKUP,)]


def test_a_stack_of_one_needs_nothing_else() -> None:
    assert interactions.needed([INT8]) == []


def test_the_product_counts_what_a_technique_adds_and_none_twice() -> None:
    stack = (INT8, BOLD, LOOKUP)
    measured = {
        (INT8,): {1: ratio(1.5), 8: ratio(1.2)},
        (INT8, BOLD): {1: ratio(1.8), 8: ratio(1.3)},
        (LOOKUP,): {1: ratio(1.4)},
    }
    table = interactions.table(stack, [1, 8], {1: ratio(2.2), 8: ratio(1.5)}, measured, {})
    assert [part.label for part in table.parts] == ["int8", "int8 + activations(group_size=64)", "prompt-lookup"]
    assert "can't run without int8" in table.parts[1].remark
    promised = table.product[0]
    assert promised is not None and promised.source == "predicted"
    assert promised.value == pytest.approx(1.8 * 1.4)  # int8 is in the first factor already
    assert table.product[1] is None  # one of them wasn't measured at 8 streams
    assert table.stack[0] == ratio(2.2)


def test_what_was_not_measured_says_why() -> None:
    reasons: dict[interactions.Stack, str] = {(INT8,): "the budget was used up"}
    table = interactions.table((INT8, LOOKUP), [1], {1: ratio(2.0)}, {}, reasons)
    assert table.parts[0].remark == "not measured: the budget was used up"
    assert table.parts[1].remark == "not measured: there was no time for it"
    assert table.parts[0].ratios == (None,)
    assert table.product == (None,)


def test_settings_of_its_own_are_a_part() -> None:
    assert interactions.needed([INT8], settings=True) == [(), (INT8,)]
    measured = {(): {1: ratio(1.1)}, (INT8,): {1: ratio(1.5)}}
    table = interactions.table((INT8,), [1], {1: ratio(1.8)}, measured, {}, settings="settings(threads=1)")
    assert [(p.technique, p.label) for p in table.parts] == [("settings", "settings(threads=1)"), ("int8", "int8")]
    assert table.label == "int8 + settings(threads=1)"
    assert table.product[0] is not None and table.product[0].value == pytest.approx(1.65)


def test_another_engine_than_that_of_the_as_is_model_is_a_part() -> None:
    engine = interactions.OnEngine("swift", {1: ratio(1.2)})
    measured: dict[interactions.Stack, interactions.Ratios] = {(INT8,): {1: ratio(1.8)}, (LOOKUP,): {1: ratio(1.5)}}
    table = interactions.table((INT8, LOOKUP), [1], {1: ratio(2.0)}, measured, {}, engine=engine, prefix="swift: ")
    assert [part.label for part in table.parts] == ["swift: as-is", "swift: int8", "swift: prompt-lookup"]
    assert table.parts[1].remark == "with what swift gives alone"
    # Each technique's figure has the engine in it, which counts once.
    assert table.product[0] is not None and table.product[0].value == pytest.approx(1.2 * (1.8 / 1.2) * (1.5 / 1.2))
    own: dict[interactions.Stack, interactions.Ratios] = {(): {1: ratio(1.3)}, (INT8,): {1: ratio(1.8)}}
    table = interactions.table(
        (INT8,), [1], {1: ratio(2.0)}, own, {}, settings="settings(threads=1)", engine=engine, prefix="swift: "
    )
    assert table.label == "swift: int8 + settings(threads=1)"
    assert table.product[0] is not None and table.product[0].value == pytest.approx(1.3 * 1.8 / 1.2)


def test_a_technique_that_needs_the_whole_stack_is_the_stack() -> None:
    table = interactions.table((INT8, BOLD), [1], {1: ratio(1.8)}, {(INT8,): {1: ratio(1.5)}}, {})
    assert table.parts[1].ratios == (ratio(1.8),)
    assert table.product[0] is not None and table.product[0].value == pytest.approx(1.8)


@given(st.lists(st.tuples(st.floats(0.3, 3.0), st.floats(0.001, 0.5)), min_size=1, max_size=4))
def test_the_products_interval_holds_it_and_grows_with_each_factor(factors: list[tuple[float, float]]) -> None:
    widths = []
    for count in range(1, len(factors) + 1):
        found = interactions.product([(ratio(*f), 1) for f in factors[:count]])
        assert found is not None and found.low is not None and found.high is not None
        assert found.value == pytest.approx(math.prod(v for v, _ in factors[:count]))
        assert found.low <= found.value <= found.high
        widths.append(math.log(found.high / found.low))
    assert widths == sorted(widths)


def compared(sides: dict[int, float], rounds: int = 3, noise: float = 0.02) -> Crossover:
    """Compare `quick` with `wide`, whose ratio is given by load, over rounds that scatter by a hundredth."""
    logs = {
        c: {n: math.log(value) + 0.01 * (n - (rounds - 1) / 2) for n in range(rounds)} for c, value in sides.items()
    }
    return interactions.crossover(("quick", "wide"), {c: ratio(v, noise) for c, v in sides.items()}, logs)


def test_a_crossover_is_interpolated_over_the_logarithm_of_the_load() -> None:
    found = compared({1: 0.8, 4: 0.9, 16: 1 / 0.9})
    assert (found.first, found.second, found.between) == ("quick", "wide", (4, 16))
    assert found.streams is not None
    assert found.streams.value == pytest.approx(8.0)
    assert found.streams.low is not None and found.streams.high is not None
    assert 4 <= found.streams.low <= 8 <= found.streams.high <= 16
    assert "wide overtakes quick at about 8.0 streams" in tradeoffs._crossing(found)


def test_with_one_round_only_the_loads_around_it_are_known() -> None:
    found = compared({4: 0.8, 8: 1.2}, rounds=1)
    assert found.between == (4, 8)
    assert found.streams is None
    assert tradeoffs._crossing(found) == "wide overtakes quick between 4 and 8 streams."


def test_inside_the_noise_nobody_is_ahead() -> None:
    found = compared({1: 0.99, 8: 1.01})
    assert not found.ahead and found.between is None
    assert tradeoffs._crossing(found) == "quick and wide are level within the noise at 1, 8 streams."


def test_a_load_inside_the_noise_widens_what_is_known() -> None:
    found = compared({1: 0.8, 4: 1.005, 8: 0.995, 16: 1.3}, rounds=1)
    assert found.between == (1, 16)


def test_who_is_ahead_everywhere_is_named_first() -> None:
    found = compared({1: 1.2, 8: 1.5})
    assert (found.first, found.second, found.between, found.ahead) == ("wide", "quick", None, True)
    assert tradeoffs._crossing(found).startswith("wide is ahead of quick")


@given(st.floats(0.05, 0.95), st.floats(0.02, 0.5), st.integers(1, 8), st.integers(9, 64))
def test_the_level_point_is_where_the_line_is_zero(share: float, size: float, low: int, high: int) -> None:
    before, after = -size * share, size * (1 - share)
    found = interactions.level(np.log([float(low), float(high)]), np.array([before, after]))
    assert low <= found <= high
    assert math.log(found) == pytest.approx(math.log(low) + share * math.log(high / low))


def test_figures_in_words() -> None:
    assert ranged(ratio(1.5, 0.1)) == "1.50x (1.36..1.65)"
    assert ranged(Figure(value=1.0, low=1.0, high=1.0)) == "1.00x"
