"""`compare --lm-eval`: what lm-eval scored is paired by sample and judged; a program that writes its files stands in for it."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from scripted_server import serving
from test_compare import server

from quicksilver import api, environments
from quicksilver.bench.lm_eval import harness
from quicksilver.cli import run
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns import Endpoint

STAND_IN = """#!{python}
import json, pathlib, sys
words = sys.argv[sys.argv.index("run") + 1:]
words.remove("--log_samples")
options = dict(zip(words[::2], words[1::2]))
model = dict(pair.split("=", 1) for pair in options["--model_args"].split(","))
told = json.loads(pathlib.Path({told!r}).read_text())
told["seen"].append([options, model, sys.argv[1:3]])
pathlib.Path({told!r}).write_text(json.dumps(told))
if "fail" in told:
    print("Traceback\\n" + told["fail"], file=sys.stderr)
    sys.exit(1)
scores = told["scores"][model["base_url"]][: int(options.get("--limit", 1000))]
folder = pathlib.Path(options["--output_path"]) / "m"
folder.mkdir(parents=True, exist_ok=True)
task = options["--tasks"]
with (folder / f"samples_{{task}}_2026-11-25T12-00-00.000001.jsonl").open("w") as file:
    for doc, score in enumerate(scores):
        for name, value in (("strict", score), ("flexible", 1)):
            line = {{"doc_id": doc, "doc_hash": "abc", "filter": name, "metrics": ["acc", "bits"], "acc": value, "bits": 7.5}}
            file.write(json.dumps(line) + "\\n")
(folder / "results_2026-11-25T12-00-00.000001.json").write_text(
    json.dumps({{"higher_is_better": {{task: {{"acc": told.get("higher", True)}}}}}}))
"""


class StandIn:
    """What is to be found in lm-eval's place, and how it was called."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "told.json"
        self.python = folder / "python"
        self.python.write_text(STAND_IN.format(python=sys.executable, told=str(self.file)), encoding="utf-8")
        self.python.chmod(self.python.stat().st_mode | stat.S_IXUSR)
        self.tell(scores={})

    def tell(self, **words: Any) -> None:
        self.file.write_text(json.dumps({"seen": [], **words}), encoding="utf-8")

    @property
    def seen(self) -> list[list[Any]]:
        found: list[list[Any]] = json.loads(self.file.read_text(encoding="utf-8"))["seen"]
        return found


@pytest.fixture
def lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn(tmp_path)
    monkeypatch.setattr(environments, "python", lambda *_: stand_in.python)
    return stand_in


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    path = tmp_path / "bare.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{n}"}) + "\n" for n in range(20)), encoding="utf-8")
    return path


def compared(lm_eval: StandIn, bare: Path, ours: list[float], theirs: list[float], **more: Any) -> Any:
    with serving(**server(plain=True)) as base, serving(**server(plain=True)) as other:
        lm_eval.tell(scores={f"{base.url}/completions": theirs, f"{other.url}/completions": ours})
        settings: dict[str, Any] = {"lm_eval": ["capitals"], "tokenizer": "a/folder", "out": bare.parent / "out"} | more
        return api.compare(base.url, other.url, bare, **settings)


@pytest.mark.parametrize(
    ("ours", "limit", "outcome"),
    [([1.0] * 300, None, "passes"), ([1.0, 0.0] * 150, None, "fails"), ([1.0, 0.0] * 150, 5, "fails"), ([1.0] * 100 + [0.0] * 4, 2, "undecided")],
)  # fmt: skip
def test_its_scores_are_judged(
    ours: list[float], limit: float | None, outcome: str, lm_eval: StandIn, bare: Path
) -> None:
    found = compared(lm_eval, bare, ours, [1.0] * len(ours), max_task_loss=limit, metric="regex:.")
    judged = found.quality.judgement
    term = next(t for t in judged.terms if "capitals" in t.name)
    assert term.outcome == outcome
    assert (term.name, term.prompts) == ("task loss (lm-eval capitals)", len(ours))
    assert found.quality.task["lm-eval capitals"].value == pytest.approx(sum(ours) / len(ours))
    (as_is, model, called), (candidate, *_) = lm_eval.seen
    assert called == ["-m", "lm_eval"]
    assert as_is["--model"] == "local-completions"
    assert model["tokenizer"] == "a/folder"
    assert as_is["--output_path"] != candidate["--output_path"]


def test_the_task_alone_is_enough(lm_eval: StandIn, bare: Path) -> None:
    found = compared(lm_eval, bare, [1.0] * 40, [1.0] * 40, lm_eval_limit=30)
    assert found.passes
    assert found.quality.judgement.prompts == 30


def test_a_task_that_nobody_can_do_is_said(lm_eval: StandIn, bare: Path) -> None:
    with pytest.raises(BadInputError, match="nothing to judge"):
        compared(lm_eval, bare, [0.0] * 40, [0.0] * 40)


@pytest.mark.parametrize(
    ("spec", "told", "error", "said"),
    [
        ("capitals", {"fail": "ConnectionError: Couldn't reach 'x' on the Hub."}, EngineError,
         r"lm-eval failed on the task capitals: ConnectionError: Couldn't reach 'x' on the Hub; its log is .*lm-eval.log\."),
        ("capitals:ac", {}, BadInputError, "did you mean 'acc'"),
        ("capitals:bits", {}, BadInputError, r"bits of lm-eval's task capitals is no score .* \(it has acc, bits\)"),
        ("capitals", {"higher": False}, BadInputError, "better the lower it is"),
        ("capitals", {"scores": {"http://it/v1/completions": []}}, EngineError, "left no samples"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_sentence(
    spec: str, told: dict[str, Any], error: type[Exception], said: str, lm_eval: StandIn
) -> None:
    lm_eval.tell(**({"scores": {"http://it/v1/completions": [1.0, 0.0]}} | told))
    ours = harness(spec, include=None, limit=None, streams=2)
    with pytest.raises(error, match=said) as caught:
        ours.run(Endpoint(url="http://it/v1", model="m"), "tokenizer", lm_eval.file.parent / "out")
    assert "\n" not in str(caught.value)


def test_results_of_an_earlier_run_are_not_mixed_in(lm_eval: StandIn, tmp_path: Path) -> None:
    endpoint = Endpoint(url="http://it/v1", model="m")
    for scores in ([1.0, 0.0, 1.0], [1.0]):
        lm_eval.tell(scores={"http://it/v1/completions": scores})
        ours = harness("capitals", include=None, limit=None, streams=2)
        assert list(ours.run(endpoint, "tokenizer", tmp_path / "out").values()) == scores


def test_what_is_missing_is_said_before_anything_is_asked(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUICKSILVER_HOME", str(tmp_path / "home"))
    with serving(**server(plain=True)) as base:
        line = ["compare", base.url, base.url, "--workload", str(bare), "--lm-eval", "capitals"]
        assert run(line) == EngineError.exit_code
        assert "lm-eval isn't installed; quicksilver engine add lmeval adds it." in capsys.readouterr().err
        assert run([*line, "--include-path", str(tmp_path / "nowhere")]) == BadInputError.exit_code
        assert "There is no folder" in capsys.readouterr().err
        monkeypatch.setattr(environments, "python", lambda *_: Path(sys.executable))
        assert run(line) == BadInputError.exit_code
        assert "--tokenizer FOLDER" in capsys.readouterr().err
        assert run([*line, "--lm-eval", ":acc"]) == BadInputError.exit_code
        assert base.bodies("/v1/completions") == []
