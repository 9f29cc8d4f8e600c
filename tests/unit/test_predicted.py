"""The benchmark of predictions: how it tells a machine that drifts."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from quicksilver.testing.large import SMALL
from quicksilver.testing.machine import made_up_steps


@pytest.fixture
def predicted(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("predicted")


def test_a_machine_that_slows_down_is_seen_by_artefact(predicted: ModuleType) -> None:
    before = made_up_steps([SMALL], ["bf16", "int8"])
    after = [
        *made_up_steps([SMALL], ["bf16"], noise=lambda: 1.2),
        *made_up_steps([SMALL], ["int8"], noise=lambda: 0.95),
    ]
    assert predicted.drift(before, after) == {"135M bf16": pytest.approx(20), "135M int8": pytest.approx(-5)}
    assert predicted.drift(before, after[:1]) == {"135M bf16": pytest.approx(20)}
