"""What is built, damaged or pruned, and asked for again."""

from __future__ import annotations

from pathlib import Path

import pytest

from quicksilver.build import build as building
from quicksilver.build import plan as planning
from quicksilver.build import store
from quicksilver.build.store import keys
from quicksilver.nouns import Recipe
from quicksilver.sources import models
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.testing.tiny import make_tiny_model


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return make_tiny_model(tmp_path / "tiny")


def plan(path: Path) -> planning.Plan:
    return planning.make(Recipe(str(path), engine="fake"), models.resolve(str(path)), ())


@pytest.mark.parametrize("file", ["fake.json", "manifest.json"])
def test_what_is_damaged_is_built_again(tiny: Path, file: str) -> None:
    made = plan(tiny)
    for key in (building.build(made).key, made.steps[0].key):
        damaged = store.path(key) / file
        damaged.chmod(0o644)
        damaged.write_text("", encoding="utf-8")
    again = plan(tiny)
    assert not again.built
    assert again.missing == again.steps
    building.build(again)
    assert [store.verify(key) for key in keys()] == [[], []]


def test_an_artefact_needs_none_of_its_steps(tiny: Path) -> None:
    building.build(plan(tiny))
    store.prune()
    made = plan(tiny)
    assert made.built
    assert made.missing == ()
    assert not made.steps[0].built
