"""Timing steps on this machine: a tiny model's, in a process of its own; what is kept, and what can't be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quicksilver import api
from quicksilver.cli import run
from quicksilver.engines import find
from quicksilver.engines.openvino.lookup import GRAIN
from quicksilver.errors import EngineError
from quicksilver.hardware import detect
from quicksilver.nouns import Artifact, Recipe, Settings
from quicksilver.nouns.prediction import Layout
from quicksilver.nouns.steps import StepShape
from quicksilver.planner import fitted, steps
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.testing.large import SMALL
from quicksilver.testing.machine import made_up_steps
from quicksilver.testing.tiny import make_tiny_model

SHAPES = (
    StepShape(streams=1, context=20),
    StepShape(streams=4, context=100),
    StepShape(streams=1, context=100, ahead=4),
    StepShape(prompt=16),
    StepShape(prompt=64, streams=2, context=50),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tiny model as it comes, in a store of its own."""
    folder = tmp_path_factory.mktemp("steps")
    model = make_tiny_model(folder / "tiny", max_positions=256)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(folder / "home"))
        return api.build(Recipe(str(model)))


@pytest.fixture
def artifact(built: Artifact) -> Path:
    return built.path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path


def test_every_shape_is_timed_and_padded_as_the_decoder_pads(artifact: Path) -> None:
    told: list[tuple[int, int]] = []
    found = find("openvino").time_steps(
        artifact, Settings(threads=1), SHAPES, lambda done, total: told.append((done, total)), budget_s=0
    )
    assert found is not None
    assert found.threads == 1
    assert found.machine.startswith(detect().cpu)
    assert [step.shape.model_copy(update={"padding": 0}) for step in found.steps] == list(SHAPES)
    assert found.steps[2].shape.tokens % GRAIN == 0
    for step in found.steps:
        assert step.new_ms is not None
        assert (step.ms is None) == (step.shape.prompt > 0)
    assert told[0][0] == 1
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_an_artefact_that_cant_be_read_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"^Steps could not be timed: .*[^.]\.$"):
        find("openvino").time_steps(tmp_path, Settings(), SHAPES, lambda *_: None, budget_s=0)


def test_a_set_takes_the_place_of_an_earlier_one_of_the_same_and_of_no_other(home: Path) -> None:
    int8, int4 = made_up_steps([SMALL], ["int8", "int4"])
    for one in (int8, int4, int8.model_copy(update={"date": "2026-12-01T00:00:00+00:00"})):
        steps.keep(one)
    assert [one.weights for one in steps.kept()] == ["int4", "int8"]
    steps.keep(int8.model_copy(update={"threads": 1}))
    assert len(steps.kept()) == 3


def test_a_file_that_cant_be_read_is_left_out_with_a_line(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    (int8,) = made_up_steps([SMALL], ["int8"])
    steps.keep(int8)
    (steps.folder() / "broken.json").write_text('{"version": 1', encoding="utf-8")
    assert steps.kept() == [int8]
    assert "broken.json" in caplog.text


def test_the_command_builds_times_and_fits(
    built: Artifact, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = built.path.parents[3]
    monkeypatch.setenv(HOME_VARIABLE, str(folder / "home"))
    model = folder / "tiny"
    assert run(["calibrate", str(model), "--weights", "bf16", "--seconds", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fit"]["weights"] == ["bf16"]
    (kept,) = steps.kept()
    assert document["timed"] == [kept.model_dump(mode="json")]
    times = fitted.step_times(kept.facts, detect(), Layout())
    assert (times.basis, times.contexts[-1]) == ("fitted", 256)
    assert run(["calibrate", str(model), "--weights", "int7"]) == 2
    assert "int7" in capsys.readouterr().err
