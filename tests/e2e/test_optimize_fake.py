"""The whole search on the fake engine: from a folder to a table, a report and a served winner, in seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from quicksilver import api
from quicksilver.bench import metrics, quality
from quicksilver.bench.load import read_samples
from quicksilver.errors import BadInputError, QuicksilverError
from quicksilver.nouns import Endpoint, Prompt, Recipe
from quicksilver.search import proof
from quicksilver.search.events import Event
from quicksilver.search.run import ROUNDS
from quicksilver.techniques import make
from quicksilver.testing.tiny import make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("workloads") / "questions.jsonl"
    lines = [
        {
            "prompt": f"Question {n}: what is {n} and {n}? " + "Some text that goes before. " * (n % 5),
            "reference": str(n),
        }
        for n in range(60)
    ]
    path.write_text("".join(json.dumps(line | {"max_tokens": 12}) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "optimize-home"
    monkeypatch.setenv("QUICKSILVER_HOME", str(folder))
    return folder


def two(model: Path) -> list[Recipe]:
    """Two recipes, where a search of the whole space would only take longer."""
    return [Recipe(str(model), stack, engine="fake") for stack in ([make("int8")], [make("prompt-lookup")])]


def optimize(model: Path, workload: Path, runs: Path, **changes: object) -> api.Optimization:
    """Search with one round of the final, and a budget that no machine is too busy for."""
    settings: dict[str, object] = {"workload": str(workload), "engine": "fake", "streams": (1, 4), "runs": runs}
    settings |= {"quick": True, "budget_minutes": 60}
    return api.optimize(str(model), **(settings | changes))  # type: ignore[arg-type]


@pytest.mark.timeout(900)  # it builds and serves some twenty recipes
def test_a_search_measures_chooses_and_leaves_what_serves(model: Path, workload: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    found = optimize(
        model, workload, tmp_path / "runs", max_quality_loss=1000, trials=12, quick=False, progress=events.append
    )
    result = found.result
    labels = [c.label for c in result.candidates if c.status == "measured"]
    assert labels[0] == "as-is"
    assert any("prompt-lookup" in label for label in labels)
    assert any(label.startswith("rotate + ") for label in labels)
    assert any("rounds more boldly and passes, too" in c.reason for c in result.candidates)
    assert result.best in labels
    assert found.best is not None
    assert found.best.eligible
    assert result.best in result.why
    assert {e.phase for e in events} >= {"build", "quality", "final race"}
    for candidate in result.candidates:
        assert candidate.status == "measured" or candidate.reason
        if candidate.status == "measured":
            assert [s.concurrency for s in candidate.score.speed] == [1, 4]
            assert all(s.errors == 0 for s in candidate.score.speed)
            assert candidate.score.cost is not None
            assert candidate.score.load_s is not None
            assert candidate.score.cold_start_s is not None
            assert candidate.score.cold_start_s > candidate.score.load_s
    # What is compared took turns, request by request.
    final = next(entry for entry in lines(found.folder / ROUNDS) if entry["kind"] == "final")
    cells = (found.folder / "samples").glob(f"*-c1-r{final['round']}.jsonl")
    order = [s.prompt_id for s in sorted((s for cell in cells for s in read_samples(cell)), key=lambda s: s.sent)]
    count = len(final["recipes"])
    assert len(order) > count > 1
    assert all(len(set(order[i : i + count])) == 1 for i in range(0, len(order), count))
    assert json.loads((found.folder / "result.json").read_text(encoding="utf-8"))["best"] == result.best
    assert "<html" in found.report().read_text(encoding="utf-8")
    with found.serve() as endpoint:
        served = api.benchmark(endpoint.url, str(workload), streams=(2,), prompts=12, out=tmp_path / "bench")
    assert served.cold_start_s is None  # it was running already
    assert served.speeds[0].errors == 0
    assert served.speeds[0].requests == 11  # one of the twelve warmed up


def test_paths_do_as_names(model: Path, workload: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"engine": "fake", "streams": (1, 4), "runs": tmp_path / "runs", "quick": True}
    settings |= {"recipes": two(model)[:1], "run_id": "one"}
    found = api.optimize(model, workload=workload, **settings)
    # The same run is meant, or its name would be refused.
    again = api.optimize(str(model), workload=str(workload), **settings)
    assert found.result.workload == again.result.workload == workload.name


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"recipes": []}, "list of recipes is empty"), ({"max_quality_loss": -1.0}, "max_quality_loss can't be -1"),
     ({"ttft_p95_ms": 0.0}, "ttft_p95_ms can't be 0")],
)  # fmt: skip
def test_what_makes_no_sense_is_one_sentence(
    changes: dict[str, object], said: str, model: Path, workload: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match=said) as caught:
        optimize(model, workload, tmp_path / "runs", **changes)
    assert "\n" not in str(caught.value)


def test_a_limit_that_nothing_meets_is_named(model: Path, workload: Path, tmp_path: Path) -> None:
    found = optimize(model, workload, tmp_path / "runs", memory_mb=1, recipes=two(model))
    assert found.best is None
    assert "memory" in found.result.why
    assert "comes nearest" in found.result.why
    assert not (found.folder / "artifact").exists()


def test_a_recipe_over_the_quality_limit_is_not_raced(model: Path, workload: Path, tmp_path: Path) -> None:
    found = optimize(model, workload, tmp_path / "runs", max_quality_loss=0, recipes=two(model))
    screened = [c for c in found.result.candidates if c.status == "screened"]
    assert screened
    for candidate in screened:
        assert "quality loss" in candidate.reason
        assert not candidate.score.speed
        assert candidate.score.quality is not None


def test_a_recipe_for_another_model_is_refused(model: Path, workload: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=5)
    recipe = Recipe(str(other), engine="fake")
    with pytest.raises(BadInputError, match="is for the model"):
        optimize(model, workload, tmp_path / "runs", recipes=[recipe])


def test_a_prompt_longer_than_the_context_is_named(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    lines = [{"prompt": f"{n} " * 20_000 if n == 3 else f"short {n}"} for n in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(BadInputError, match="tokens long"):
        optimize(model, path, tmp_path / "runs")


def test_a_search_that_was_killed_goes_on_where_it_was(model: Path, workload: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    code = (
        "import sys; from pathlib import Path; from quicksilver import api; from quicksilver.techniques import make\n"
        "two = [api.Recipe(sys.argv[1], [make(n)], engine='fake') for n in ('int8', 'prompt-lookup')]\n"
        "api.optimize(sys.argv[1], workload=sys.argv[2], engine='fake', streams=(1, 4), runs=Path(sys.argv[3]),"
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
    assert not (folder / "result.json").exists()
    first = sorted((folder / "samples").glob("*-r0.jsonl"))
    kept = {path: path.stat().st_mtime_ns for path in first}
    found = optimize(model, workload, runs, max_quality_loss=1000, recipes=two(model))
    assert found.folder == folder
    assert {path: path.stat().st_mtime_ns for path in first} == kept
    assert found.best is not None
    again = optimize(model, workload, runs, max_quality_loss=1000, recipes=two(model))
    assert again.folder != folder
    assert all(c.build_s in (0.0, None) for c in again.result.candidates)


def test_what_was_read_is_kept_and_read_on(
    model: Path, workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUICKSILVER_HOME", str(tmp_path / "home"))
    read: list[str] = []
    evaluate = quality.evaluate_texts

    def watched(endpoint: Endpoint, prompts: Sequence[Prompt], **settings: Any) -> list[quality.PromptLogprobs]:
        read.extend(prompt.id for prompt in prompts)
        return evaluate(endpoint, prompts, **settings)

    monkeypatch.setattr(quality, "evaluate_texts", watched)
    found = optimize(model, workload, tmp_path / "one", max_quality_loss=1000, recipes=two(model)[:1])
    as_is, first = read[:24], read[24:]
    assert len(set(as_is)) == 24, "the as-is model is read on the whole evaluation split"
    assert len(first) == 8, "a clear case is decided by the first look"
    int8 = next(c for c in found.result.candidates if not c.baseline)
    lost = int8.score.quality
    assert lost is not None and lost.judgement is not None and lost.loss_percent is not None
    assert lost.judgement.outcome == "passes"
    assert lost.own_loss_percent is not None and lost.own_kl is not None and lost.kl is not None
    read.clear()
    # A limit that is the loss itself can't be decided by the prompts that it was taken of.
    limit = lost.loss_percent.value
    again = optimize(model, workload, tmp_path / "two", max_quality_loss=limit, recipes=two(model)[:1])
    assert read and len(set(read)) == len(read) and not set(read) & set(first), "only what is new is read"
    assert set(read) <= set(as_is)
    judged = next(c for c in again.result.candidates if not c.baseline).score.quality
    assert judged is not None and judged.judgement is not None
    assert judged.judgement.prompts == 8 + len(read)
    if judged.judgement.outcome == "undecided":
        assert again.result.best == "as-is"
        assert "would decide" in next(c for c in again.result.candidates if not c.baseline).reason


def test_a_metric_that_fails_late_costs_no_measurement(model: Path, workload: Path, tmp_path: Path) -> None:
    score = tmp_path / "score.py"
    # It takes the first answer, with which it is tried, and throws at what the model says.
    score.write_text("def rate(answer, references):\n    return 1 / (answer in references)\n", encoding="utf-8")
    settings = {"metric": f"{score}:rate", "recipes": two(model), "max_quality_loss": 1000}
    with pytest.raises(
        BadInputError, match=r"score.py:rate failed .*ZeroDivisionError.* is kept in .*: once that is"
    ) as caught:
        optimize(model, workload, tmp_path / "runs", **settings)
    assert "\n" not in str(caught.value)
    (folder,) = (tmp_path / "runs").iterdir()
    kept = {path: path.stat().st_mtime_ns for path in (folder / "samples").glob("*-r*.jsonl")}
    assert kept
    score.write_text("def rate(answer, references):\n    return len(answer)\n", encoding="utf-8")
    found = optimize(model, workload, tmp_path / "runs", **settings)
    assert found.folder == folder
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    best = found.best
    assert best is not None and best.score.quality is not None
    assert next(iter(best.score.quality.task)) == "rate"


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"metric": "f2"}, "did you mean 'f1'"), ({"metric": "code_tests"}, "has no tests"),
     ({"judge": "http://127.0.0.1:9/v1"}, "No HTTP answer came from http://127.0.0.1:9")],
)  # fmt: skip
def test_a_metric_or_a_judge_that_cannot_be_is_told_before_anything_is_built(
    changes: dict[str, object], said: str, model: Path, workload: Path, tmp_path: Path
) -> None:
    with pytest.raises(QuicksilverError, match=said):
        optimize(model, workload, tmp_path / "runs", **changes)
    assert not (tmp_path / "runs").exists()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_killed_exploration_measures_nothing_twice(model: Path, workload: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    code = (
        "import sys; from pathlib import Path; from quicksilver import api\n"
        "api.optimize(sys.argv[1], workload=sys.argv[2], engine='fake', streams=(1, 4), runs=Path(sys.argv[3]),"
        " max_quality_loss=1000, quick=True, trials=12, budget_minutes=60)"
    )
    command = [sys.executable, "-c", code, str(model), str(workload), str(runs)]
    process = subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(len(path.read_text(encoding="utf-8").splitlines()) >= 2 for path in runs.glob(f"*/{ROUNDS}")):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = runs.iterdir()
    first = lines(folder / ROUNDS)
    kept = {
        path: path.stat().st_mtime_ns
        for entry in first
        for path in (folder / "samples").glob(f"*-r{entry['round']}.jsonl")
    }
    assert kept
    events: list[Event] = []
    given: dict[str, object] = {"max_quality_loss": 1000, "trials": 12}
    found = optimize(model, workload, runs, **given, progress=events.append)
    assert found.folder == folder
    assert "configurations and ended because" in " ".join(found.result.remarks)
    assert any(e.best.startswith("best so far: ") for e in events)
    assert any(c.label.endswith("prompt-lookup") and c.score.speed for c in found.result.candidates)
    after = lines(folder / ROUNDS)
    assert after[: len(first)] == first
    assert [entry["round"] for entry in after] == list(range(len(after)))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    short = [entry for entry in after if str(entry["kind"]).startswith("short race")]
    spent = sum((len(entry["recipes"]) - 1) * int(str(entry["kind"]).rpartition("x")[2]) for entry in short)
    assert 0 < spent <= 12
    assert sum(entry["kind"] == "final" for entry in after) == 1  # it is quick


def test_what_cannot_keep_to_a_memory_limit_is_dropped_with_the_arithmetic(
    model: Path, workload: Path, tmp_path: Path
) -> None:
    found = optimize(model, workload, tmp_path / "runs", memory_mb=1, max_quality_loss=1000, trials=4)
    assert found.best is None
    dropped = [c for c in found.result.candidates if "MB are allowed" in c.reason]
    assert dropped
    assert all("KV cache" in c.reason and "runtime" in c.reason for c in dropped)
    assert not any(c.score.speed and not c.baseline for c in found.result.candidates)


def test_where_the_finalists_break_the_task_the_next_have_their_turn(
    model: Path, workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake engine's answers don't change with techniques: those of the first two finalists are made to score nothing."""
    recipes = [
        Recipe(str(model), [make(name) for name in names], engine="fake")
        for names in (["int8"], ["prompt-lookup"], ["int8", "prompt-lookup"])
    ]
    finals: list[list[str]] = []
    real = metrics.score

    def scored(*arguments: Any) -> dict[str, dict[str, float]]:
        found = real(*arguments)
        if not found:
            return found
        place = calls.pop(0)
        return {"f1": dict.fromkeys(found["f1"], 1.0 if place == "as-is" or len(finals) > 1 else 0.0)}

    calls: list[str] = []
    judge = proof.judge_answers

    def judged(search: Any, entries: Sequence[Any], rounds: Sequence[int]) -> None:
        finals.append([entry.recipe.label for entry in entries])
        calls[:] = ["as-is", *("recipe" for _ in entries[1:])]
        judge(search, entries, rounds)

    monkeypatch.setattr(metrics, "score", scored)
    monkeypatch.setattr(proof, "judge_answers", judged)
    found = optimize(model, workload, tmp_path / "runs", max_quality_loss=1000, recipes=recipes)
    assert [len(labels) for labels in finals] == [3, 2]
    assert not set(finals[0][1:]) & set(finals[1][1:])
    out = {c.label: c for c in found.result.candidates}
    for label in finals[0][1:]:
        assert out[label].status == "screened"
        assert out[label].reason.startswith("task loss (f1) 100 % is over 10 %")
    assert out[finals[1][1]].reason == ""
    assert out[finals[1][1]].eligible
