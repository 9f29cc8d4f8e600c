"""The budget of a search on machines of any speed: the search is the real one, and a machine that only turns a clock stands in for what takes time."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from quicksilver import api
from quicksilver.bench import greedy, quality, report
from quicksilver.bench.doubts import ClientReport
from quicksilver.bench.quality import PromptLogprobs
from quicksilver.build import build as building
from quicksilver.build import store
from quicksilver.build.plan import Plan
from quicksilver.engines.fake import Fake
from quicksilver.nouns import Artifact, Endpoint, Prompt, Result, Sample
from quicksilver.search import memory, outcome, presets, proof, run
from quicksilver.search.run import ROUNDS, SERVERS, Run
from quicksilver.sources import models
from quicksilver.testing.tiny import make_tiny_model

FASTER = {
    "int8": 1.6,
    "int4": 1.3,
    "gptq": 1.2,
    "awq": 1.3,
    "mixed": 1.4,
    "w8a8": 1.2,
    "activations": 1.15,
    "prompt-lookup": 1.3,
}
LOSSES = {"int4": 0.2, "awq": 0.1, "gptq": 0.1, "mixed": 0.02, "w8a8": 0.15}
BUDGET_S = 600.0


@dataclass
class Machine:
    """Turns a clock for what a machine would take time for: at `slow` 1 about as the 135M on two cores."""

    slow: float
    now: float = 1000.0
    begun: float = 1000.0
    built: set[str] = field(default_factory=set)
    phases: list[str] = field(default_factory=list)
    up: int = 0
    most_up: int = 0
    """Servers at once."""
    client_share: Iterator[float] = field(default_factory=lambda: itertools.repeat(0.0))
    """What each load takes of a core for the client."""

    def take(self, seconds: float) -> None:
        self.now += self.slow * seconds

    @property
    def elapsed_s(self) -> float:
        return self.now - self.begun

    def resolve(self, *arguments: Any, **settings: Any) -> Any:
        self.take(20)
        return self.real_resolve(*arguments, **settings)

    real_resolve: Any = None

    def build(self, plan: Plan, **_: Any) -> Artifact:
        self.take(sum(40 if s.technique is not None and s.technique.calibrated else 12 for s in plan.missing))
        self.built |= {plan.key, *(step.key for step in plan.steps)}
        return Artifact(
            path=Path("nowhere"), key=plan.key, label=plan.recipe.label, model="tiny", engine="fake",
            settings=plan.recipe.effective_settings(), disk_mb=1, target={},
        )  # fmt: skip

    @contextmanager
    def serving(self, ours: Run, artifact: Artifact, recipe: str, *, racing: bool) -> Iterator[Endpoint]:
        self.take(3)
        self.up += 1
        self.most_up = max(self.most_up, self.up)
        yield Endpoint(url="http://nowhere/v1", model=artifact.label)
        self.up -= 1
        started = {"load_s": 1.0, "cold_start_s": 3.0 * self.slow, "memory_mb": 500.0}
        ours.append(SERVERS, {"recipe": recipe, "racing": racing, **started})

    def read(self, endpoint: Endpoint, prompts: Sequence[Prompt], *, token_ids: Any, **_: Any) -> list[PromptLogprobs]:
        self.take(0.3 * len(prompts))
        lost = sum(loss for name, loss in LOSSES.items() if name in endpoint.model)
        found = []
        for prompt in prompts:
            digest = hashlib.sha256(f"{endpoint.model} {prompt.id}".encode()).digest()
            noise = 0.0 if endpoint.model == "as-is" else 0.001 * (digest[0] / 128 - 1)
            tokens = token_ids[prompt.id]
            found.append(PromptLogprobs(prompt.id, tokens, [None, *([-1 - lost - noise] * (len(tokens) - 1))]))
        return found

    def load(
        self,
        endpoint: Endpoint,
        prompts: Sequence[Prompt],
        *,
        concurrency: int,
        max_tokens: int,
        out: Path,
        **settings: Any,
    ) -> list[Sample]:
        faster = 1.0
        for name, factor in FASTER.items():
            faster *= factor if name in endpoint.model else 1.0
        samples = []
        for start in range(0, len(prompts), concurrency):
            tokens = max(p.max_tokens or max_tokens for p in prompts[start : start + concurrency])
            sent = self.now
            self.take(0.0125 * tokens * (1 + 0.4 * (concurrency - 1)) / faster)
            for prompt in prompts[start : start + concurrency]:
                arrivals = [sent + (self.now - sent) * (n + 1) / tokens for n in range(tokens)]
                samples.append(
                    Sample(
                        prompt.id, concurrency, sent, sent, first=arrivals[0], arrivals=arrivals, end=self.now, prompt_tokens=20,
                        completion_tokens=tokens, finish="length", text=prompt.id, warmup=settings.get("warmup", False),
                        round=settings.get("round", 0), turn=settings.get("turn", 0),
                    )
                )  # fmt: skip
        if "on_report" in settings:
            settings["on_report"](ClientReport(cpu_share=next(self.client_share)))
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(s.to_json()) + "\n" for s in samples)
        return samples

    def table(self, engine: Fake, *arguments: Any) -> Any:
        self.take(20)
        return real_table(engine, *arguments)


real_table = Fake.speculation_table


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = [{"prompt": f"Question {n}?", "max_tokens": 250} for n in range(160)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def bound(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function, which takes the object that it is called on for its first argument; a bound method wouldn't."""

    def called(*arguments: Any, **settings: Any) -> Any:
        return method(*arguments, **settings)

    return called


def on(machine: Machine, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Let a machine stand in for all that takes time."""
    monkeypatch.setenv("QUICKSILVER_HOME", str(home))
    machine.real_resolve = models.resolve
    for where, name, instead in (
        (time, "monotonic", lambda: machine.now),
        (models, "resolve", machine.resolve),
        (building, "build", machine.build),
        (store, "has", lambda key: key in machine.built),
        (store, "history", lambda _: None),
        (store, "amend", lambda *_: None),
        (Run, "serving", bound(machine.serving)),
        (run, "run_load", machine.load),
        (quality, "run_load", machine.load),
        (quality, "tokenize", lambda _endpoint, _prompt: list(range(20))),
        (quality, "evaluate_texts", machine.read),
        (greedy, "own_answers", lambda *_arguments, **_settings: {}),
        (Fake, "speculation_table", bound(machine.table)),
        (presets, "keep", lambda _: None),
        (outcome, "keep_artifact", lambda *_: None),
        (report, "save", lambda *_: None),
    ):  # fmt: skip
        monkeypatch.setattr(where, name, instead)


def searched(model: Path, workload: Path, runs: Path, **changes: Any) -> Result:
    settings: dict[str, Any] = {
        "workload": workload,
        "engine": "fake",
        "streams": (1, 8),
        "budget_minutes": BUDGET_S / 60,
    }
    return api.optimize(model, runs=runs, **(settings | changes)).result


def rounds(runs: Path) -> list[dict[str, Any]]:
    """What was noted of the rounds of the only run."""
    (file,) = runs.glob(f"*/{ROUNDS}")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("slow", [1.0, 3.0])
def test_a_search_keeps_to_its_budget_and_finds_how_to_serve(
    slow: float, model: Path, workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(slow)
    on(machine, monkeypatch, tmp_path / "home")
    found = searched(model, workload, tmp_path / "runs")
    assert machine.elapsed_s <= BUDGET_S
    assert found.seconds["total"] == pytest.approx(machine.elapsed_s, abs=1), "finding the model counts"
    assert found.best is not None
    assert "int8" in found.best and "prompt-lookup" in found.best
    finals = [len(entry["recipes"]) for entry in rounds(tmp_path / "runs") if entry["kind"] == "final"]
    assert finals and (finals[0] == 3 or slow > 2)
    if slow == 1:
        assert [p.name for p in found.presets] == ["cost", "balanced", "latency"]
        assert all(s.concurrency in (1, 4, 8, 16) for p in found.presets for s in p.benchmark)
        labels = {c.recipe_hash: c.label for c in found.candidates}
        raced = [[labels[name] for name in entry["recipes"]] for entry in rounds(tmp_path / "runs")]
        (best,) = {label.rpartition(" + ")[0] for label in raced[1] if label != "as-is"}
        assert best in raced[0], "techniques come alone on the weights that lead, and not on the as-is model's"


@pytest.mark.parametrize("budget_minutes", [10, 40])
def test_time_is_kept_for_the_winner_s_techniques_alone(
    budget_minutes: int, model: Path, workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(1.0)
    on(machine, monkeypatch, tmp_path / "home")
    found = searched(model, workload, tmp_path / "runs", budget_minutes=budget_minutes)
    assert found.interactions is not None
    assert len(found.interactions.parts) >= 2
    assert [part.label for part in found.interactions.parts if "budget" in part.remark] == []
    assert machine.elapsed_s <= 60 * budget_minutes


def test_on_a_very_slow_machine_the_smallest_final_is_all_that_comes_late(
    model: Path, workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(6.0)
    on(machine, monkeypatch, tmp_path / "home")
    found = searched(model, workload, tmp_path / "runs")
    assert [(e["kind"], len(e["recipes"])) for e in rounds(tmp_path / "runs")] == [("short race x1", 2), ("final", 2)]
    assert machine.elapsed_s <= 1.25 * BUDGET_S
    assert found.best not in (None, "as-is")
    assert any("wasn't measured, since the budget was used up" in remark for remark in found.remarks)


def test_a_final_that_was_raced_before_a_kill_is_taken_as_it_was(
    model: Path, workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(2.0)
    on(machine, monkeypatch, tmp_path / "home")
    with monkeypatch.context() as patch:

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(proof, "judge_answers", killed)
        with pytest.raises(KeyboardInterrupt):
            searched(model, workload, tmp_path / "runs")
    before = rounds(tmp_path / "runs")
    assert before[-1]["kind"] == "final"
    assert len(before[-1]["recipes"]) == 3
    machine.slow = 100.0  # what is left of the budget has room for nothing now
    found = searched(model, workload, tmp_path / "runs")
    assert rounds(tmp_path / "runs") == before
    assert found.best is not None and "int8" in found.best


def test_more_answers_are_asked_for_only_as_far_as_there_is_time(
    model: Path, workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of the task that has to be proved takes more prompts than a search has."""
    workload.write_text(
        "".join(
            json.dumps({"prompt": f"Question {n}?", "reference": f"{n}", "max_tokens": 250}) + "\n" for n in range(600)
        ),
        encoding="utf-8",
    )
    machine = Machine(2.0)
    on(machine, monkeypatch, tmp_path / "home")
    searched(model, workload, tmp_path / "runs", max_task_loss=0.5, metric="regex:1", prompts=600)
    assert machine.elapsed_s <= BUDGET_S


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_servers_of_a_race_are_up_at_once_if_all_of_them_fit(
    model: Path, workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Each takes 500 MB, and a fifth of what is free is left alone. A slow machine races two at a time."""
    slow, in_final = (6.0, 2) if at_once == 2 else (1.0, 3)
    machine = Machine(slow)
    on(machine, monkeypatch, tmp_path / "home")
    monkeypatch.setattr(memory, "available_memory", lambda: at_once * 650_000_000)
    found = searched(model, workload, tmp_path / "runs")
    assert found.best is not None
    final = [entry for entry in rounds(tmp_path / "runs") if entry["kind"] == "final"]
    assert all(len(entry["recipes"]) == in_final for entry in final)
    assert machine.most_up == at_once


def test_a_load_in_many_turns_is_doubted_once(
    model: Path, workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(3.0, client_share=itertools.cycle([0.16, 0.17, 0.18]))
    on(machine, monkeypatch, tmp_path / "home")
    found = searched(model, workload, tmp_path / "runs")
    at_one = [remark for remark in found.remarks if "of a core at 1 stream" in remark]
    assert at_one == [
        "The load client took 18% of a core at 1 stream, more than 15%: the figures may be its limit, not the server's."
    ]
