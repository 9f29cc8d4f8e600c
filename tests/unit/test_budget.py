"""The budget of a search on machines of any speed: the search is the real one, and a machine that only turns a clock stands in for what takes time."""

from __future__ import annotations

import hashlib
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
from quicksilver.bench.quality import PromptLogprobs
from quicksilver.build import build as building
from quicksilver.build import store
from quicksilver.build.plan import Plan
from quicksilver.engines.fake import Fake
from quicksilver.nouns import Artifact, Endpoint, Prompt, Result, Sample
from quicksilver.search import outcome, presets, run
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
        yield Endpoint(url="http://nowhere/v1", model=artifact.label)
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
                        round=settings.get("round", 0),
                    )
                )  # fmt: skip
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


def kinds(runs: Path) -> list[tuple[str, int]]:
    """The rounds of the only run: what they were for and how many recipes took part."""
    (file,) = runs.glob(f"*/{ROUNDS}")
    return [(e["kind"], len(e["recipes"])) for e in map(json.loads, file.read_text(encoding="utf-8").splitlines())]


@pytest.mark.parametrize("slow", [0.3, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0])
def test_a_search_keeps_to_its_budget_and_finds_how_to_serve(
    slow: float, model: Path, workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(slow)
    on(machine, monkeypatch, tmp_path / "home")
    found = searched(model, workload, tmp_path / "runs")
    print(slow, machine.elapsed_s, found.best, kinds(tmp_path / "runs"), found.seconds)
    assert machine.elapsed_s <= BUDGET_S
    assert found.seconds["total"] == pytest.approx(machine.elapsed_s, abs=1)
    assert ("final", 3) in kinds(tmp_path / "runs") or slow > 1
    assert any("int8" in c.label and c.score.speed for c in found.candidates)
    assert any("prompt-lookup" in c.label and c.score.speed for c in found.candidates)
