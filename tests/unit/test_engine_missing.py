"""Commands with an engine that isn't installed say the one command that adds it, before they look at anything else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from locks import make_home, make_locks

from quicksilver import engines, environments
from quicksilver.cli import run
from quicksilver.errors import EngineError
from quicksilver.nouns import Endpoint, Engine, Settings
from quicksilver.nouns.artifact import MANIFEST, RECIPE
from quicksilver.sources import models, workloads

SENTENCE = "error: The engine tiny isn't installed; quicksilver engine add tiny adds it.\n"


class Tiny(Engine):
    """An engine whose environment isn't there."""

    name: ClassVar[str] = "tiny"
    format: ClassVar[str] = "tiny-weights"
    environment: ClassVar[str] = "tiny"

    def version(self) -> str:
        return environments.version("tiny", "qs-tiny")

    @contextmanager
    def serve(
        self, artifact: Path, settings: Settings, *, port: int = 0, log: Path | None = None
    ) -> Iterator[Endpoint]:
        raise AssertionError("It isn't installed.")
        yield


@pytest.fixture(autouse=True)
def _tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the engine known, and everything that takes long a failure of the test."""
    find = engines.find
    make_home(tmp_path, monkeypatch)
    make_locks(tmp_path, monkeypatch)
    monkeypatch.setattr(engines, "find", lambda name: Tiny() if name == "tiny" else find(name))
    monkeypatch.setattr(engines, "names", lambda: ["fake", "tiny"])

    def heavy(*_: object, **__: object) -> None:
        raise AssertionError("This comes too early.")

    monkeypatch.setattr(models, "resolve", heavy)
    monkeypatch.setattr(workloads, "load", heavy)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    recipe = {"model": "m", "techniques": [], "engine": "tiny", "settings": {}}
    document = {"label": "as is", "name": "m", "engine": "tiny", "recipe": recipe, "serve": {}}
    (folder / RECIPE).write_text(json.dumps(document), encoding="utf-8")
    facts = {
        "key": "0" * 16,
        "kind": "artifact",
        "model": "m",
        "label": "as is",
        "created": 0.0,
        "tools": {},
        "target": {},
    }
    files = {RECIPE: {"sha256": "", "bytes": (folder / RECIPE).stat().st_size}}
    (folder / MANIFEST).write_text(json.dumps(facts | {"files": files}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("command", ["optimize", "build"])
def test_a_model_for_an_engine_that_is_not_installed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "smollm2-135m-instruct", "--engine", "tiny"]) == EngineError.exit_code
    assert capsys.readouterr().err == SENTENCE


def test_a_recipe_for_an_engine_that_is_not_installed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('model = "smollm2-135m-instruct"\nengine = "tiny"\n', encoding="utf-8")
    assert run(["build", str(file)]) == EngineError.exit_code
    assert capsys.readouterr().err == SENTENCE


@pytest.mark.parametrize(
    "command",
    [["bench"], ["serve", "--port", "0"], ["certify"], ["compare", "http://127.0.0.1:9/v1"]],
    ids=lambda command: command[0],
)
def test_an_artefact_of_an_engine_that_is_not_installed(
    command: list[str], artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, str(artifact)]) == EngineError.exit_code
    assert capsys.readouterr().err == SENTENCE
