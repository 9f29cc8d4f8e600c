"""The benchmark of predictions: how it tells a machine that drifts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from quicksilver.testing.large import SMALL
from quicksilver.testing.machine import made_up_steps

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("predicted", BENCHMARKS / "predicted.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "predicted", module)
    spec.loader.exec_module(module)
    return module


def test_a_machine_that_slows_down_is_seen_by_artefact(predicted: ModuleType) -> None:
    before = made_up_steps([SMALL], ["bf16", "int8"])
    after = [
        *made_up_steps([SMALL], ["bf16"], noise=lambda: 1.2),
        *made_up_steps([SMALL], ["int8"], noise=lambda: 0.95),
    ]
    assert predicted.drift(before, after) == {"135M bf16": pytest.approx(20), "135M int8": pytest.approx(-5)}
    assert predicted.drift(before, after[:1]) == {"135M bf16": pytest.approx(20)}
