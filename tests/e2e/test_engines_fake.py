"""Several engines in one search: who is best at what, who can't be asked what, and who dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from several import install

from quicksilver import api
from quicksilver.cli import run
from quicksilver.errors import BadInputError, QuicksilverError
from quicksilver.nouns import Recipe
from quicksilver.search import choosing, presets
from quicksilver.search.run import ROUNDS
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.techniques import make
from quicksilver.testing.tiny import make_tiny_model

STREAMS = (1, 8)
NOT_OURS = (
    "The engine remote is a server that somebody else started, so it can't be raced beside others: quicksilver bench measures it, "
    "and quicksilver compare judges its answers."
)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("engines-home")
        patch.setenv(HOME_VARIABLE, str(folder))
        patch.delenv("COLUMNS", raising=False)
        install(tmp_path_factory.mktemp("site"), patch)
        yield folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("workloads") / "questions.jsonl"
    lines = [{"prompt": f"Question {n}: what is {n} and {n}?", "reference": str(n), "max_tokens": 8} for n in range(60)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def recipes(model: Path, *engines: str) -> list[Recipe]:
    return [Recipe(str(model), [make("int8")], engine=name) for name in engines]


def optimize(model: Path, workload: Path, runs: Path, engines: str, **changes: Any) -> api.Optimization:
    """Search with one round of the final and without presets, unless asked."""
    settings: dict[str, Any] = {"workload": workload, "streams": STREAMS, "runs": runs, "max_quality_loss": 1000}
    return api.optimize(model, engines=engines, **(settings | {"quick": True, "budget_minutes": 60} | changes))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def found(model: Path, workload: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Optimization:
    """One engine is the same for many users as for one, the other is quick for one and slow for many."""
    given = recipes(model, "steady", "swift")
    return optimize(model, workload, tmp_path_factory.mktemp("runs"), "steady,swift", recipes=given, quick=False)


def test_one_engine_is_chosen_for_one_user_and_another_for_many(found: api.Optimization) -> None:
    by_name = {str(preset.name): preset for preset in found.result.presets}
    assert by_name["cost"].label == found.result.best == "steady: int8"
    assert by_name["latency"].label == "swift: int8"
    for name, engine in (("cost", "steady"), ("latency", "swift")):
        assert by_name[name].recipe["engine"] == engine
        assert presets.artifact(by_name[name]).engine == engine
        assert [speed.concurrency for speed in by_name[name].benchmark] == [1, 4, 8, 16]


def test_each_as_is_is_a_candidate_and_the_first_is_what_all_are_compared_with(found: api.Optimization) -> None:
    result = found.result
    by_label = {c.label: c for c in result.candidates}
    assert set(by_label) == {"steady: as-is", "swift: as-is", "steady: int8", "swift: int8"}
    assert [c.label for c in result.candidates if c.baseline] == ["steady: as-is"]
    for candidate in result.candidates:
        assert candidate.recipe["engine"] == candidate.label.partition(": ")[0]
        assert candidate.status == "measured"
        assert all(speed.ratio is not None for speed in candidate.score.speed)
        assert candidate.score.quality is not None and candidate.score.quality.loss_percent is not None
    own = by_label["swift: as-is"].score.quality
    assert own is not None and own.loss_percent is not None and own.loss_percent.value == 0.0
    assert result.tools["engine swift"] == result.tools["engine"]


def test_they_are_raced_side_by_side(found: api.Optimization) -> None:
    hashes = {c.recipe_hash: c.label for c in found.result.candidates}
    first = lines(found.folder / ROUNDS)[0]
    assert {hashes[name] for name in first["recipes"]} == set(hashes.values())
    # One round's loads were the same prompts for every engine.
    asked = {name: {s["prompt_id"] for s in lines(found.folder / "samples" / f"{name}-c8-r0.jsonl")} for name in hashes}
    assert len(set(map(frozenset, asked.values()))) == 1


def test_the_report_says_where_one_engine_overtakes_the_other(
    found: api.Optimization, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {"steady: int8", "swift: int8"}
    crossed = [c for c in found.result.crossovers if {c.first, c.second} == pair]
    assert crossed and {1, 8} <= set(crossed[0].concurrencies)
    assert run(["show", str(found.folder), "--markdown"]) == 0
    out = capsys.readouterr().out
    assert "swift: int8" in out and "steady: as-is" in out
    assert "swift: int8" in found.report().read_text(encoding="utf-8")
    assert run(["presets", "list", "--json"]) == 0
    assert {p["label"] for p in json.loads(capsys.readouterr().out)} >= pair


def test_a_winner_of_another_engine_is_taken_apart_with_its_engine(model: Path, workload: Path, tmp_path: Path) -> None:
    found = optimize(model, workload, tmp_path, "steady,swift", goal="latency", recipes=recipes(model, "swift"))
    assert found.result.best == "swift: int8"
    table = found.result.interactions
    assert table is not None and table.label == "swift: int8"
    assert [part.label for part in table.parts] == ["swift: as-is", "swift: int8"]
    assert table.parts[0].technique == "engine swift"
    for whole, product in zip(table.stack, table.product, strict=True):
        # Engine times what the technique adds to it: the stack itself, where there is one technique.
        assert whole is not None and product is not None
        assert product.value == pytest.approx(whole.value)


def test_a_search_over_engines_that_was_killed_goes_on(model: Path, workload: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    code = (
        "import sys; from pathlib import Path; from quicksilver import api; from quicksilver.techniques import make\n"
        "two = [api.Recipe(sys.argv[1], [make('int8')], engine=n) for n in ('steady', 'swift')]\n"
        "api.optimize(sys.argv[1], workload=sys.argv[2], engines='steady,swift', streams=(1, 8), runs=Path(sys.argv[3]),"
        " max_quality_loss=1000, recipes=two, quick=True, budget_minutes=60)"
    )
    command = [sys.executable, "-c", code, str(model), str(workload), str(runs)]
    process = subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(runs.glob(f"*/{ROUNDS}")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = runs.iterdir()
    kept = {path: path.stat().st_mtime_ns for path in (folder / "samples").glob("*-r0.jsonl")}
    assert len(kept) == 8  # two engines, as it comes and rounded, at two loads
    found = optimize(model, workload, runs, "steady,swift", recipes=recipes(model, "steady", "swift"))
    assert found.folder == folder
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert found.result.best == "steady: int8"
    # Other engines are another search.
    again = optimize(model, workload, runs, "steady", recipes=recipes(model, "steady"))
    assert again.folder != folder
    assert [c.label for c in again.result.candidates] == ["as-is", "int8"]


def test_an_engine_that_dies_in_the_race_is_given_up_and_the_others_go_on(
    model: Path, workload: Path, tmp_path: Path
) -> None:
    given = recipes(model, "steady", "frail")
    found = optimize(model, workload, tmp_path, "steady,frail", recipes=given)
    by_label = {c.label: c for c in found.result.candidates}
    assert found.result.best == "steady: int8"
    for label in ("frail: as-is", "frail: int8"):
        assert by_label[label].status == "failed"
        assert by_label[label].reason
        assert not by_label[label].score.speed
    assert any("engine frail was given up" in remark for remark in found.result.remarks)
    # What it was asked after its end says nothing of the load client.
    assert not any("saturated" in remark for remark in found.result.remarks)
    first = lines(found.folder / ROUNDS)[0]
    assert len(first["recipes"]) == 2 and len(first["failed"]) == 2


def test_without_log_probabilities_of_prompts_answers_are_judged(model: Path, workload: Path, tmp_path: Path) -> None:
    given = recipes(model, "mute", "wrong")
    found = optimize(model, workload, tmp_path, "mute,wrong,steady", recipes=given, max_quality_loss=1.0)
    by_label = {c.label: c for c in found.result.candidates}
    # The one that tells them comes first, whoever was named first: without them nothing could be judged.
    assert found.result.candidates[0].label == "steady: as-is" and found.result.candidates[0].baseline
    for label in ("mute: as-is", "mute: int8"):
        quality = by_label[label].score.quality
        assert quality is not None and quality.loss_percent is None and quality.perplexity is None
        assert quality.answer_loss_percent is not None and quality.answer_loss_percent.value == 0.0
        assert quality.judgement is not None and quality.judgement.outcome == "passes"
        assert by_label[label].eligible
    for label in ("wrong: as-is", "wrong: int8"):
        assert by_label[label].status == "screened"
        assert by_label[label].reason.startswith("answer loss")
        assert not by_label[label].score.speed
    assert found.result.best == "mute: int8"
    assert any("judged by what the as-is model on steady holds" in remark for remark in found.result.remarks)
    assert {p.label for p in found.result.points} >= {"steady: as-is", "mute: int8"}


def test_where_no_engine_tells_them_the_as_is_model_of_another_reads_the_answers(
    model: Path, workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "_reader", lambda: "steady")
    found = optimize(model, workload, tmp_path, "mute", recipes=recipes(model, "mute"), max_quality_loss=1.0)
    assert [c.label for c in found.result.candidates] == ["as-is", "int8"]
    assert all(c.recipe["engine"] == "mute" for c in found.result.candidates)
    quality = found.result.candidates[1].score.quality
    assert quality is not None and quality.judgement is not None and quality.judgement.binds == "answer loss"
    assert found.result.best == "int8"
    assert any("as-is model on steady holds" in remark for remark in found.result.remarks)


def test_what_nothing_can_judge_has_not_passed(
    model: Path, workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "_reader", str)
    given = [*recipes(model, "mute"), Recipe(str(model), [make("prompt-lookup")], engine="mute")]
    found = optimize(model, workload, tmp_path, "mute", recipes=given)
    by_label = {c.label: c for c in found.result.candidates}
    assert by_label["int8"].status == "screened"
    assert "nothing to judge its quality by" in by_label["int8"].reason
    assert by_label["prompt-lookup"].status == "measured"  # it doesn't change what is answered
    assert any("which --max-task-loss asks for" in remark for remark in found.result.remarks)


def test_a_search_of_the_space_tries_on_each_engine_what_that_can_do(
    model: Path, workload: Path, tmp_path: Path
) -> None:
    found = optimize(model, workload, tmp_path, "steady,swift", trials=8)
    tried = [c for c in found.result.candidates if c.recipe_hash]
    stacks = {(c.recipe["engine"], t["technique"]) for c in tried for t in c.recipe["techniques"]}
    assert {name for engine, name in stacks if engine == "swift"} <= {"int8", "prompt-lookup"}
    assert ("swift", "int8") in stacks and ("steady", "int8") in stacks
    assert {c.label.partition(": ")[0] for c in found.result.candidates if c.recipe_hash} == {"steady", "swift"}
    assert {p.recipe["engine"] for p in found.result.presets if p.name == "latency"} == {"swift"}
    assert any("configurations and ended because" in remark for remark in found.result.remarks)


@pytest.mark.parametrize(
    ("engines", "said"),
    [
        ("steady,sw1ft", "There is no engine named 'sw1ft'; did you mean 'swift'?"),
        ("all,steady", "all stands for every engine: name no others beside it."),
        (" , ", "Name at least one engine, such as openvino, or all."),
        ("steady,absent", "The engine absent isn't installed; quicksilver engine add absent adds it."),
        ("steady,remote", NOT_OURS),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence_before_anything_starts(
    engines: str, said: str, model: Path, workload: Path, tmp_path: Path
) -> None:
    with pytest.raises(QuicksilverError) as caught:
        optimize(model, workload, tmp_path / "runs", engines)
    assert str(caught.value) == said
    assert not (tmp_path / "runs").exists()


def test_the_command_line_hands_the_engines_on(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["optimize", str(model), "--engines", "steady,sw1ft"]) == 2
    assert "did you mean 'swift'" in capsys.readouterr().err


def test_a_recipe_of_an_engine_that_is_not_searched_is_refused(model: Path, workload: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="is for the engine swift, and the search for steady, mute"):
        optimize(model, workload, tmp_path / "runs", "steady,mute", recipes=recipes(model, "swift"))
