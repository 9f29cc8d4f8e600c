"""The benchmark of agreement: what a server records, and when two clients agree."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("agreement")


def row(arrival_s: float, *, ttft_ms: float = 100.0, duration_ms: float = 730.0, tokens: int = 64) -> dict[str, Any]:
    return {"arrival_s": arrival_s, "ttft_ms": ttft_ms, "duration_ms": duration_ms, "completion_tokens": [tokens]}


def test_a_record_has_the_clients_figures(benchmark: ModuleType) -> None:
    found = benchmark.recorded([row(10.0), row(10.5), row(11.0, duration_ms=1000.0), row(90.0, tokens=3)])
    assert found["ttft_p50_ms"] == 100.0
    assert found["itl_p50_ms"] == 10.0
    assert found["tokens_per_s"] == pytest.approx(3 * 64 / 2.0)
    assert found["requests_per_s"] == pytest.approx(3 / 2.0)


@pytest.mark.parametrize(
    ("said", "recorded", "steady", "noisy"),
    [
        (102.0, 101.0, True, True),
        (120.0, 120.0, False, True),  # the server was slower, and its own record says so
        (120.0, 100.0, False, False),  # they tell the same server's time otherwise
    ],
)
def test_two_agree_by_their_figures_and_on_a_noisy_server_by_its_record(
    benchmark: ModuleType, said: float, recorded: float, steady: bool, noisy: bool
) -> None:
    def run(said: float, recorded: float) -> Any:
        return benchmark.Run(*(dict.fromkeys(benchmark.FIGURES, value) for value in (said, recorded)))

    theirs = [run(said, recorded)]
    runs = {"ours": [run(100.0, 100.0)], "guidellm": theirs, "aiperf": theirs}
    assert {found["agrees"] for found in benchmark.compare(runs, noisy=False)} == {steady}
    assert {found["agrees"] for found in benchmark.compare(runs, noisy=True)} == {noisy}
