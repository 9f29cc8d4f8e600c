"""A table of what guessing costs by load, from the search that measures it to the decoder that goes by it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from quicksilver import api
from quicksilver.build import store
from quicksilver.cli import run
from quicksilver.engines.openvino.paged import PagedDecoder
from quicksilver.nouns import Artifact, Candidate, Goal, Recipe, SpeculationTable
from quicksilver.nouns.speculation import FILE
from quicksilver.search import choice, outcome
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.techniques import make
from quicksilver.testing.tiny import make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = [{"prompt": f"Question {n}: what is {n} and {n}? " * 3, "max_tokens": 12} for n in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def the_guessing_recipe_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """On so small a model, which recipe is fastest is chance."""

    def choose_it(candidates: Sequence[Candidate], goal: Goal) -> tuple[list[Candidate], str | None, str]:
        judged, _, why = choice.choose(candidates, goal)
        return judged, next(c.label for c in judged if "prompt-lookup" in c.label), why

    monkeypatch.setattr(outcome, "choose", choose_it)


def optimize(model: Path, workload: Path, runs: Path, engine: str) -> api.Optimization:
    recipe = Recipe(str(model), [make("prompt-lookup")], engine=engine)
    return api.optimize(
        model, workload=workload, engine=engine, recipes=[recipe], streams=(1, 4), max_quality_loss=1000, runs=runs
    )


@pytest.mark.parametrize("engine", ["fake", "openvino"])
def test_what_the_search_measured_is_in_the_artefact_wherever_it_goes(
    *,
    engine: str,
    model: Path,
    workload: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    found = optimize(model, workload, tmp_path / "runs", engine)
    table = found.result.speculation
    assert table is not None
    assert table.workload == found.result.workload
    assert table.streams[:1] == (1,)
    assert table.lengths[-1] == 12
    assert SpeculationTable.read(found.folder / "artifact") == table
    assert "Speculation by load" in found.report().read_text(encoding="utf-8")
    assert "speculation" in found.result.seconds
    kept = Artifact.open(found.folder)
    assert store.verify(kept.key) == []
    assert SpeculationTable.read(store.path(kept.key)) == table

    # It goes with the object to another store, and the key is what it was.
    capsys.readouterr()
    assert run(["store", "export", kept.key, str(tmp_path / "it.tar")]) == 0
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "elsewhere"))
    assert run(["store", "import", str(tmp_path / "it.tar")]) == 0
    capsys.readouterr()
    assert run(["store", "show", kept.key, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["speculation"] == table.model_dump(mode="json")
    assert run(["store", "show", kept.key]) == 0
    assert "no guesses" in capsys.readouterr().out
    assert store.verify(kept.key) == []

    if engine == "openvino":
        decoder = PagedDecoder(kept.path, kept.settings)
        decoder.close()
        assert decoder._pace.knows
    with found.serve() as endpoint:
        speeds = api.benchmark(endpoint.url, str(workload), streams=(4,), prompts=12, out=tmp_path / "bench").speeds
    assert speeds[0].errors == 0


def test_a_table_is_measured_anew_with_the_next_search(
    model: Path, workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    first = optimize(model, workload, tmp_path / "runs", "fake")
    second = optimize(model, workload, tmp_path / "more", "fake")
    key = Artifact.open(first.folder).key
    assert Artifact.open(second.folder).key == key
    assert store.verify(key) == []
    assert (
        store.manifest(key)["created"]
        == json.loads((first.folder / "artifact" / "manifest.json").read_text(encoding="utf-8"))["created"]
    )
    assert list(store.manifest(key)["files"]).count(FILE) == 1
