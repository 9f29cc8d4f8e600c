"""Commands with an engine that isn't installed, or not for this CPU, say the one command that adds it, before they look at anything else."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from locks import make_home, make_locks

from quicksilver import engines, environments, hardware
from quicksilver.cli import run
from quicksilver.errors import EngineError
from quicksilver.measuring import made_elsewhere
from quicksilver.nouns import Artifact, Endpoint, Engine, Settings
from quicksilver.nouns.artifact import MANIFEST, RECIPE
from quicksilver.nouns.engine import Abilities
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


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("command", [["bench"], ["serve", "--port", "0"], ["certify"]], ids=lambda command: command[0])
def test_an_artefact_of_an_engine_whose_packages_are_for_another_cpu(
    command: list[str],
    native: bool,
    artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(hardware, "instructions", lambda: ("AVX2",))
    monkeypatch.setattr(Tiny, "version", lambda _: "1")
    monkeypatch.setattr(Tiny, "isa", ("AVX2", "AVX-512"))
    monkeypatch.setattr(Tiny, "abilities", Abilities(native=native))
    assert run([*command, str(artifact)]) == EngineError.exit_code
    helps = (
        "quicksilver engine add tiny --native" if native else "use another engine on this machine, or another machine."
    )
    assert capsys.readouterr().err == (
        f"error: The packages of the engine tiny are built for AVX-512, which this CPU doesn't have. What helps: {helps}\n"
    )


def test_an_artefact_that_was_made_on_a_cpu_that_can_do_more(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "instructions", lambda: ("AVX2", "AVX-512"))
    here = Artifact.open(artifact)
    assert made_elsewhere(here) is None
    assert made_elsewhere(here.model_copy(update={"target": {"isa": "AVX2 AVX-512"}})) is None
    remark = made_elsewhere(here.model_copy(update={"target": {"isa": "AVX2 AVX-512 AVX-512 VNNI AVX-512 BF16"}}))
    assert remark is not None
    assert remark.startswith("as is was made on a machine with AVX-512 VNNI, AVX-512 BF16, which this one lacks")
