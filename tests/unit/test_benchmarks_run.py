"""The command that re-makes the README's figures: what it refuses before it runs anything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    module = load_benchmark("run")

    def none(*words: Any, **options: Any) -> None:
        raise AssertionError(f"it ran {words} with {options}")

    monkeypatch.setattr(module.subprocess, "run", none)
    return module


@pytest.mark.parametrize("words", [["speculatoin"], ["speculation", "--hlep"], ["light", "nothing"]], ids=str)
def test_what_it_does_not_know_is_refused_before_anything_runs(
    run: ModuleType, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2
    assert words[-1] in capsys.readouterr().err


def test_help_names_the_benchmarks_and_runs_none(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "speculation", "--help"])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in run.JOBS)


def test_the_readme_has_the_figures_of_the_results_that_are_kept(run: ModuleType) -> None:
    shown = run.README.read_text(encoding="utf-8").split(run.BEGIN)[1].split(run.END)[0]
    assert shown.strip() == run.figures().strip()


def test_every_benchmark_is_a_file(run: ModuleType) -> None:
    assert all(Path(words[0]).is_file() for words in run.JOBS.values())
    assert set(run.JOBS) >= run.ON_REQUEST
