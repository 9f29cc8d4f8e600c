"""The benchmark of the search against a sweep, through its functions, on the fake engine."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from quicksilver.sources import workloads
from quicksilver.testing.tiny import make_tiny_model


@pytest.fixture
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("search_quality")


def test_a_sweep_and_searches_of_the_same_space(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUICKSILVER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(benchmark, "BASES", ((), ("int8",)))
    monkeypatch.setattr(benchmark, "MORE", ("prefix-caching",))
    monkeypatch.setattr(benchmark, "SETTINGS", {})
    model = str(make_tiny_model(tmp_path / "tiny"))
    file = tmp_path / "w.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"Question {n}?", "max_tokens": 4}) + "\n" for n in range(40)), encoding="utf-8"
    )
    load = workloads.load(str(file)).model_copy(update={"concurrencies": (1, 2)})
    where = benchmark.reduced()
    assert len(where) == 4
    sweeping = benchmark.start(tmp_path / "runs", model, load, "fake", "sweep")
    swept = benchmark.sweep(sweeping, where, 1)
    assert set(swept.gains) == {0, 1, 2, 3}
    assert swept.gains[0] == 0.0
    found = benchmark.look(
        benchmark.start(tmp_path / "runs", model, load, "fake", "search"), where, 4, 0, benchmark.Budget()
    )
    assert 0 < found.raced <= 4
    document = benchmark.document(where, swept, [found], 1)
    assert 0 < document["share_of_best"]["median"] <= 1
    assert document["rematch"] is None
    again = benchmark.rematch(sweeping, where, swept, [found], 1)
    assert set(again) == {benchmark.top(swept), found.index}
    document = benchmark.document(where, swept, [found], 1, again)
    share = math.exp(again[found.index] - again[benchmark.top(swept)])
    assert document["share_of_best"]["median"] == pytest.approx(share)
    assert len(document["rematch"]) == len(again)
    assert document["stability"] == {"runs": 1, "same_winner": 1, "equal_within_intervals": 0}
    # What was measured is kept: the same sweep again takes what is there.
    again = benchmark.sweep(benchmark.start(tmp_path / "runs", model, load, "fake", "sweep"), where, 1)
    assert again.gains == swept.gains


def test_a_search_keeps_to_its_share_of_the_sweeps_time(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    where = benchmark.reduced()
    asked: list[tuple[int, int]] = []

    def measure(_search: object, _where: object, batch: list[int], weight: int) -> tuple[dict[int, list[float]], float]:
        asked.append((weight, len(batch)))
        return {index: [0.01 * index, 0.02 * index] for index in batch}, 10.0 * weight * (1 + len(batch))

    monkeypatch.setattr(benchmark, "measure", measure)
    search = SimpleNamespace(workload=SimpleNamespace(concurrencies=(1, 8)))
    found = benchmark.look(search, where, 40, 0, benchmark.Budget(total_s=135.0, each_s=10.0))
    assert found.seconds <= 135
    assert asked[:2] == [(1, 4), (1, 4)]
    assert found.stopped == "the budget was used up"


def test_winners_that_differ_by_less_than_their_intervals_are_equal(benchmark: ModuleType) -> None:
    def one(index: int, gain: float) -> object:
        return benchmark.Found(index, gain, 0.02, 1.0, 4, "")

    assert benchmark.agreement([one(1, 0.5), one(1, 0.5), one(2, 0.52), one(3, 0.9)]) == {
        "runs": 4,
        "same_winner": 2,
        "equal_within_intervals": 1,
    }


def test_a_limit_keeps_the_model_as_it_comes(benchmark: ModuleType) -> None:
    where = benchmark.reduced(10)
    assert 10 <= len(where) <= 20
    assert where.configurations[0].stack == ()
