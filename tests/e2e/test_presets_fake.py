"""From a search on the fake engine to presets that are listed, read, chosen, served and taken to another store."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from quicksilver import api
from quicksilver.build import store
from quicksilver.cli import run
from quicksilver.nouns import Model, Recipe, Settings, Technique
from quicksilver.search import space
from quicksilver.search.events import Event
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.techniques import make
from quicksilver.testing.tiny import make_tiny_model

LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("presets-home")
        patch.setenv(HOME_VARIABLE, str(folder))
        patch.delenv("COLUMNS", raising=False)
        yield folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return []


@pytest.fixture(scope="module")
def found(model: Path, tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> Iterator[api.Optimization]:
    """One search with one recipe, where a step of the engine takes a time that techniques shorten."""
    workload = tmp_path_factory.mktemp("workloads") / "questions.jsonl"
    lines = [{"prompt": f"Question {n}: what is {n} and {n}?", "reference": str(n), "max_tokens": 8} for n in range(60)]
    workload.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    slow = Settings(properties={"decode_ms": 15.0, "batch_cost": 0.1, "draft_cost": 0.0})

    def recipe(
        model: Model, stack: Sequence[Technique], engine: str, settings: Sequence[tuple[str, Any]] = ()
    ) -> Recipe:
        return Recipe(
            model=model.source,
            techniques=tuple(stack),
            engine=engine,
            settings=slow.model_copy(update=dict(settings)),
        )

    recipes = [Recipe(str(model), [make("int8"), make("prompt-lookup")], engine="fake", settings=slow)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space, "recipe", recipe)
        yield api.optimize(
            str(model), workload=str(workload), engine="fake", streams=(1, 4), runs=tmp_path_factory.mktemp("runs"),
            max_quality_loss=1000, recipes=recipes, progress=events.append,
        )  # fmt: skip


def until_ready(port: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with LOCAL.open(f"http://127.0.0.1:{port}/health", timeout=60):
                return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def output(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_search_leaves_presets_with_a_benchmark_at_every_load(found: api.Optimization, events: list[Event]) -> None:
    result = found.result
    assert [p.name for p in result.presets] == ["cost", "balanced", "latency"]
    assert result.presets[0].label == result.best
    labels = {p.label for p in result.points if p.on_front}
    for preset in result.presets:
        assert preset.label in labels | {result.best}
        assert [s.concurrency for s in preset.benchmark] == [1, 4, 8, 16]
        assert all(s.errors == 0 for s in preset.benchmark)
        assert all(cost is not None for cost in preset.costs)
        assert preset.fingerprint and preset.run == result.id
    assert any(e.phase == "presets" for e in events)
    assert "presets" in result.seconds


def test_the_table_of_interactions_is_measured(found: api.Optimization) -> None:
    result = found.result
    assert result.best == "int8 + prompt-lookup"
    table = result.interactions
    assert table is not None
    assert table.label == result.best
    assert [part.label for part in table.parts] == ["int8", "prompt-lookup"]
    assert all(ratio is not None and ratio.source == "measured" for part in table.parts for ratio in part.ratios)
    assert all(ratio is not None and ratio.source == "predicted" for ratio in table.product)
    alone = [c for c in result.candidates if c.reason.startswith("measured alone")]
    assert [c.label for c in alone] == ["int8", "prompt-lookup"]


def test_recipes_are_compared_over_the_load(found: api.Optimization) -> None:
    result = found.result
    pairs = [{c.first, c.second} for c in result.crossovers]
    assert {"as-is", result.best} in pairs
    assert all(set(c.concurrencies) <= {1, 4, 8, 16} for c in result.crossovers)


def test_they_are_listed_and_shown(found: api.Optimization, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets", "list", "--model", str(model), "--json"]) == 0
    listed = output(capsys)
    assert [p["name"] for p in listed] == ["cost", "balanced", "latency"]
    assert all(p["this_machine"] for p in listed)
    assert run(["presets", "list"]) == 0
    assert "balanced" in capsys.readouterr().out
    assert run(["presets", "show", "cost"]) == 0
    out = capsys.readouterr().out
    assert found.result.best is not None and found.result.best in out
    assert found.result.id in out
    assert run(["show", str(found.folder)]) == 0
    assert "Presets" in capsys.readouterr().out
    assert run(["show", str(found.folder), "--markdown"]) == 0
    assert "### Presets" in capsys.readouterr().out
    assert run(["show", str(found.folder), "--json"]) == 0
    assert output(capsys)["presets"][0]["name"] == "cost"


def test_a_model_is_served_by_its_preset(found: api.Optimization, model: Path) -> None:
    command = [sys.executable, "-m", "quicksilver", "serve", str(model), "--preset", "latency", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            port = json.loads(process.stdout.readline())["port"]
            until_ready(port)
            body = {"model": "tiny", "prompt": "What is 3 and 3?", "max_tokens": 4}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            answer = json.load(LOCAL.open(request, timeout=60))
            assert answer["choices"][0]["finish_reason"] in ("length", "stop")
        finally:
            process.kill()


def test_what_was_pruned_is_built_again_and_chosen(
    found: api.Optimization, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cost = found.result.presets[0]
    store.remove(cost.artifact)
    assert run(["presets", "use", "cost", "--model", str(model), "--json"]) == 0
    assert output(capsys)["artifact"] == cost.artifact
    assert store.has(cost.artifact)
    assert api.find_artifact(str(model)).key == cost.artifact


def test_they_go_to_another_store_with_their_artefact(
    found: api.Optimization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latency = found.result.presets[2]
    store.export(latency.artifact, tmp_path / "object.tar")
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "elsewhere"))
    store.import_(tmp_path / "object.tar")
    brought = api.presets("tiny")
    assert "latency" in [p.name for p in brought]
    assert api.use_preset("latency", "tiny").key == latency.artifact
