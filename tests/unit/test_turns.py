"""Servers of a round that are up at once and take turns: order, and what happens to one that fails."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver.errors import EngineError, NotEnoughError, QuicksilverError
from quicksilver.nouns import Endpoint, Prompt
from quicksilver.search.turns import Side, take

Turn = tuple[str, int, int, tuple[str, ...]]


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{number}", prompt="x") for number in range(count)]


class Race:
    """Servers that note what is done with them."""

    def __init__(self, *names: str, must: str = "") -> None:
        self.up: set[str] = set()
        self.most_up = 0
        self.turns: list[Turn] = []
        self.sides = [Side(name, name, self._serve(name), name == must) for name in names]
        self.unable: dict[str, QuicksilverError] = {}
        """What can't be started, or dies before it is ended."""
        self.dies: set[str] = set()

    @contextmanager
    def _serve(self, name: str) -> Iterator[Endpoint]:
        if (error := self.unable.get(name)) is not None:
            raise error
        self.up.add(name)
        self.most_up = max(self.most_up, len(self.up))
        try:
            yield Endpoint(url=f"http://{name}/v1", model=name)
        except EngineError as error:
            raise EngineError(f"{name} said its last words.") from error
        finally:
            self.up.remove(name)
        if name in self.dies:
            raise EngineError(f"{name} died.")

    def load(self, side: Side, concurrency: int, turn: int, chosen: Sequence[Prompt], endpoint: Endpoint) -> None:
        assert endpoint.model == side.recipe
        assert side.recipe in self.up
        self.turns.append((side.recipe, concurrency, turn, tuple(prompt.id for prompt in chosen)))

    def failures(self) -> dict[str, str]:
        return {side.recipe: side.failure for side in self.sides if side.failure}


def test_one_stream_takes_turns_by_request_and_several_by_load() -> None:
    race = Race("as-is", "int8", "awq")
    take(race.sides, {1: prompts(3), 4: prompts(5)}, race.load)
    whole = ("p0", "p1", "p2", "p3", "p4")
    assert race.turns == [
        ("as-is", 1, 0, ("p0",)), ("int8", 1, 0, ("p0",)), ("awq", 1, 0, ("p0",)),
        ("as-is", 1, 1, ("p1",)), ("awq", 1, 1, ("p1",)), ("int8", 1, 1, ("p1",)),
        ("as-is", 1, 2, ("p2",)), ("int8", 1, 2, ("p2",)), ("awq", 1, 2, ("p2",)),
        ("as-is", 4, 0, whole), ("int8", 4, 0, whole), ("awq", 4, 0, whole),
    ]  # fmt: skip
    assert race.most_up == 3
    assert not race.up
    assert not race.failures()


def test_waves_have_a_turn_each_and_go_there_and_back_behind_the_first() -> None:
    race = Race("as-is", "int8", "awq")
    take(race.sides, {2: prompts(5)}, race.load, waves=True)
    assert race.turns == [
        ("as-is", 2, 0, ("p0", "p1")), ("int8", 2, 0, ("p0", "p1")), ("awq", 2, 0, ("p0", "p1")),
        ("as-is", 2, 1, ("p2", "p3")), ("awq", 2, 1, ("p2", "p3")), ("int8", 2, 1, ("p2", "p3")),
        ("as-is", 2, 2, ("p4",)), ("int8", 2, 2, ("p4",)), ("awq", 2, 2, ("p4",)),
    ]  # fmt: skip


@given(
    st.integers(1, 5), st.dictionaries(st.sampled_from([1, 2, 8]), st.integers(1, 7), min_size=1), st.integers(0, 200)
)
def test_whatever_fails_all_others_get_every_prompt_of_every_load(
    count: int, loads: dict[int, int], broken: int
) -> None:
    names = [f"s{number}" for number in range(count)]
    race = Race(*names)

    def load(side: Side, concurrency: int, turn: int, chosen: Sequence[Prompt], endpoint: Endpoint) -> None:
        if len(race.turns) == broken:
            race.turns.append((side.recipe, 0, 0, ()))
            raise EngineError("The load client failed.")
        race.load(side, concurrency, turn, chosen, endpoint)

    take(race.sides, {streams: prompts(size) for streams, size in loads.items()}, load)
    failed = race.failures()
    assert len(failed) == (
        1 if (sum(loads.get(n, 0) if n == 1 else n in loads for n in (1, 2, 8))) * count > broken else 0
    )
    for name in set(names) - failed.keys():
        for streams, size in loads.items():
            had = [each for who, at, _, part in race.turns if (who, at) == (name, streams) for each in part]
            assert had == [f"p{number}" for number in range(size)]
    assert not race.up


@pytest.mark.parametrize("fitting", [0, 1, 5])
def test_the_first_says_by_a_turn_of_each_load_for_how_many_there_is_room(
    fitting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    race = Race("as-is", "int8", "awq", must="as-is")
    now = 100.0
    heard: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def load(side: Side, concurrency: int, turn: int, chosen: Sequence[Prompt], endpoint: Endpoint) -> None:
        nonlocal now
        race.load(side, concurrency, turn, chosen, endpoint)
        now += 2.0 if concurrency == 1 else 10.0

    def room(seconds: float) -> int:
        heard.append(seconds)
        assert race.up == {"as-is"}
        return fitting

    took_part = take(race.sides, {1: prompts(3), 4: prompts(10)}, load, waves=True, room=room)
    assert heard == [3 * 2.0 + 10 / 4 * 10.0]
    names = ["as-is", "int8", "awq"][: 1 + fitting]
    assert [side.recipe for side in took_part] == names
    assert race.turns[:2] == [("as-is", 1, 0, ("p0",)), ("as-is", 4, 0, ("p0", "p1", "p2", "p3"))]
    for name in names:
        for streams, count in ((1, 3), (4, 10)):
            had = [each for who, at, _, part in race.turns if (who, at) == (name, streams) for each in part]
            assert had == [f"p{number}" for number in range(count)]
    assert {who for who, *_ in race.turns} == set(names)
    assert race.most_up == len(names)
    assert not race.up


def test_what_fails_is_out_with_its_last_words_and_ends_at_once() -> None:
    race = Race("as-is", "int8", must="as-is")

    def load(side: Side, concurrency: int, turn: int, chosen: Sequence[Prompt], endpoint: Endpoint) -> None:
        race.load(side, concurrency, turn, chosen, endpoint)
        if side.recipe == "int8":
            raise EngineError("The load client failed.")
        assert (turn == 0) == ("int8" in race.up)

    take(race.sides, {1: prompts(3)}, load)
    assert race.failures() == {"int8": "int8 said its last words."}
    assert [who for who, *_ in race.turns] == ["as-is", "int8", "as-is", "as-is"]


def test_what_cannot_start_or_dies_at_the_end_is_out() -> None:
    race = Race("as-is", "int8", "int4", must="as-is")
    race.unable["int8"] = NotEnoughError("There is no room.")
    race.dies.add("int4")
    take(race.sides, {1: prompts(1)}, race.load)
    assert race.failures() == {"int8": "There is no room.", "int4": "int4 died."}
    assert [who for who, *_ in race.turns] == ["as-is", "int4"]


@pytest.mark.parametrize("when", ["start", "end"])
def test_without_the_one_that_must_there_is_no_round(when: str) -> None:
    race = Race("int8", "as-is", must="as-is")
    if when == "start":
        race.unable["as-is"] = EngineError("as-is can't start.")
    else:
        race.dies |= {"as-is", "int8"}
    with pytest.raises(EngineError, match=r"as-is (can't start|died)"):
        take(race.sides, {1: prompts(1)}, race.load)
    assert not race.up


def test_an_interrupt_ends_every_server() -> None:
    race = Race("as-is", "int8")

    def load(side: Side, concurrency: int, turn: int, chosen: Sequence[Prompt], endpoint: Endpoint) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take(race.sides, {1: prompts(1)}, load)
    assert race.most_up == 2
    assert not race.up
