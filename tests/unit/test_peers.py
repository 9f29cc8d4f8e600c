"""The benchmark against other servers: its figures, its table and chart, and a whole run on the fake engine."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from quicksilver import api
from quicksilver.errors import EngineError
from quicksilver.nouns import Recipe, Sample
from quicksilver.sources import workloads
from quicksilver.testing.tiny import make_tiny_model, make_tiny_tokenizer

ROOT = Path(__file__).parents[2]
HERE = {"peers", "peer_figures", "peer_servers", "stamp"}


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in HERE:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return {name: importlib.import_module(name) for name in sorted(HERE)}


@pytest.fixture
def figures(modules: dict[str, Any]) -> ModuleType:
    found: ModuleType = modules["peer_figures"]
    return found


def answers(tokens_per_s: float, *, streams: int = 1, rounds: int = 2, tokens: int = 10) -> list[Sample]:
    """Answers one after the other in each round, at a rate."""
    took = tokens / tokens_per_s
    return [
        Sample(
            prompt_id=f"p{number}-{index}",
            concurrency=streams,
            scheduled=100 * number + index * took,
            sent=100 * number + index * took,
            first=100 * number + index * took + took / 2,
            end=100 * number + (index + 1) * took,
            completion_tokens=tokens,
            finish="stop",
            text="word " * tokens,
            round=number,
        )
        for number in range(rounds)
        for index in range(3)
    ]


def found(figures: ModuleType, rates: dict[str, float], **options: Any) -> dict[str, Any]:
    result: dict[str, Any] = figures.result({name: answers(rate, **options) for name, rate in rates.items()}, {}, 1)
    return result


def document(figures: ModuleType) -> dict[str, Any]:
    return {
        "servers": {"Quicksilver": {"weights": "as chosen"}, "one": {"weights": "int8"}, "two": {"weights": "bf16"}},
        "choices": {"1": "openvino, int8"},
        "rounds": 2,
        "quality_loss_percent": {"openvino, int8": {"value": 0.5, "low": 0.4, "high": 0.6, "by": "perplexity"}},
        "results": [found(figures, {"Quicksilver": 100.0, "one": 50.0, "two": 80.0})],
        "failed": {"three": "it isn't installed"},
    }


def test_ours_is_held_against_the_best_peer_and_against_each(figures: ModuleType) -> None:
    result = found(figures, {"Quicksilver": 100.0, "one": 50.0, "two": 80.0})
    assert result["best_peer"] == "two"
    assert result["ratio_to_best"]["value"] == pytest.approx(1.25)
    assert not result["reached"]
    assert result["never_below"]
    ratios = {row["server"]: row["ratio"] and row["ratio"]["value"] for row in result["rows"]}
    assert ratios == {"Quicksilver": None, "one": pytest.approx(2.0), "two": pytest.approx(1.25)}


@pytest.mark.parametrize(
    ("ours", "reached", "never_below"), [(130.1, True, True), (110.0, False, True), (99.0, False, False)]
)
def test_what_is_reached(figures: ModuleType, ours: float, reached: bool, never_below: bool) -> None:
    result = found(figures, {"Quicksilver": ours, "one": 100.0})
    assert (result["reached"], result["never_below"]) == (reached, never_below)


def test_without_a_peer_nothing_is_claimed(figures: ModuleType) -> None:
    alone = found(figures, {"Quicksilver": 100.0})
    assert (alone["best_peer"], alone["reached"], alone["never_below"]) == (None, None, None)
    without_us = found(figures, {"one": 100.0})
    assert (without_us["ratio_to_best"], without_us["reached"]) == (None, None)


def test_a_peer_that_was_measured_in_one_round_has_a_ratio(figures: ModuleType) -> None:
    result = figures.result({"Quicksilver": answers(100), "one": answers(20, rounds=1)}, {}, 1)
    row = next(row for row in result["rows"] if row["server"] == "one")
    assert row["rounds"] == 1
    assert row["ratio"]["value"] == pytest.approx(5)


def test_tokens_are_counted_by_one_tokenizer(figures: ModuleType, tmp_path: Path) -> None:
    from quicksilver.sources.text import Tokenizer

    make_tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    sample = answers(10)[0]
    sample.completion_tokens = 999
    (counted,) = figures.recounted([sample], tokenizer)
    assert counted.completion_tokens == len(tokenizer.encode(sample.text, special=False)) != 999
    assert sample.completion_tokens == 999, "the raw Sample stays what it was"


def test_a_slow_server_gets_fewer_prompts_but_one_a_stream(figures: ModuleType) -> None:
    assert figures.affordable(16, 8, None, 60) == 16
    assert figures.affordable(16, 8, 3.0, 60) == 16
    assert figures.affordable(16, 8, 6.0, 60) == 10
    assert figures.affordable(16, 8, 60.0, 60) == 8
    assert figures.affordable(4, 8, 60.0, 60) == 4


def test_only_what_is_far_behind_is_left_out_of_further_rounds(figures: ModuleType) -> None:
    assert figures.far_behind({"Quicksilver": 10, "one": 100, "two": 39, "three": 41}) == {"two"}
    assert figures.far_behind({}) == set()


def test_the_table_has_a_row_a_server_ours_first_and_names_what_failed(figures: ModuleType) -> None:
    lines = figures.summary(document(figures))
    assert [line.split(" | ")[0] for line in lines[:5]] == ["| server", "| ---", "| Quicksilver", "| one", "| two"]
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert "| two | bf16 | 80 [80, 80] | 1.25 [1.25, 1.25]x | 10 |" in lines
    assert any("three could not be measured: it isn't installed" in line for line in lines)
    assert any("1.25 [1.25, 1.25]x of two at 1 stream" in line for line in lines)
    assert any("0.50 [0.40, 0.60] %" in line for line in lines)


def test_the_chart_is_an_image_with_every_server(figures: ModuleType) -> None:
    drawn = figures.draw(document(figures))
    assert drawn.startswith("<svg")
    assert all(f">{name}<" in drawn for name in ("Quicksilver", "one", "two"))


def test_a_whole_run_on_the_fake_engine(
    modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUICKSILVER_HOME", str(tmp_path / "home"))
    servers, peers = modules["peer_servers"], modules["peers"]
    model = make_tiny_model(tmp_path / "tiny")
    # On a busy machine either of two equal servers may seem to be far behind.
    monkeypatch.setattr(peers.figures, "FAR", 0.0)

    def serve(_: Any, port: int) -> list[str]:
        return [
            sys.executable,
            "-m",
            "quicksilver.serve",
            "--engine",
            "fake",
            "--artifact",
            str(model),
            "--port",
            str(port),
        ]

    def absent(*_: Any) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit('there is no such server')"]

    environment = {"PYTHONPATH": str(ROOT / "src")}
    monkeypatch.setattr(
        peers,
        "PEERS",
        {
            "by hand": servers.Peer("as it is", serve, lambda _: "fake 1", environment),
            "gone": servers.Peer("none", absent, lambda _: "", environment),
        },
    )
    workload = tmp_path / "w.jsonl"
    workload.write_text(
        "".join(json.dumps({"prompt": f"Question {n}?", "max_tokens": 6}) + "\n" for n in range(80)), encoding="utf-8"
    )
    for number, stack in ((1, "[]"), (2, '["prompt-lookup"]')):
        recipe = f'model = "{model}"\nengine = "fake"\ntechniques = {stack}\n'
        (tmp_path / f"ours-{number}.toml").write_text(recipe, encoding="utf-8")
    chart = tmp_path / "chart.svg"
    choices = [word for number in (1, 2) for word in ("--choice", f"{number}={tmp_path / f'ours-{number}.toml'}")]
    assert (
        peers.main(
            ["--streams", "1,2", "--workload", str(workload), "--prompts", "2", *choices, "--prepare", "--peers", "by"]
        )
        == 0
    )
    assert "by hand was ready" in capsys.readouterr().err
    words = ["--rounds", "2", "--streams", "1,2", "--prompts", "2", "--workload", str(workload), "--chart", str(chart)]
    words += [*choices, "--peers", "by,gone"]
    assert peers.main([*words, "--prepare"]) == 1
    assert "gone can't be measured" in capsys.readouterr().err
    begun, read_as_is = [], peers.Versus.read_as_is

    def counted(*given: Any) -> None:
        begun.append(given)
        read_as_is(*given)

    monkeypatch.setattr(peers.Versus, "read_as_is", counted)
    assert peers.main(words) == 0
    assert len(begun) == 1, "the as-is model is read once for all of our choices"
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])
    assert "no such server" in found["failed"]["gone"]
    assert [result["streams"] for result in found["results"]] == [1, 2]
    for result in found["results"]:
        assert result["best_peer"] == "by hand"
        rows = {row["server"]: row for row in result["rows"]}
        assert set(rows) == {"Quicksilver", "by hand"}
        assert all(row["errors"] == 0 and row["requests"] == 4 for row in rows.values())
    losses = found["quality_loss_percent"]
    assert list(losses) == ["fake, as-is", "fake, prompt-lookup"]
    assert all(loss["value"] == pytest.approx(0) and loss["by"] == "perplexity" for loss in losses.values())
    assert "| by hand | as it is |" in err
    assert chart.read_text(encoding="utf-8").startswith("<svg")


def test_an_as_is_model_that_cannot_be_read_loses_nothing_that_was_measured(
    modules: dict[str, Any],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("QUICKSILVER_HOME", str(tmp_path / "home"))
    peers = modules["peers"]

    def fail(*_: Any) -> None:
        raise EngineError("it died")

    monkeypatch.setattr(peers.Versus, "read_as_is", fail)
    artifact = api.build(Recipe(str(folder), engine="fake"))
    load = workloads.load("synthetic:8x4", prompts=40)
    assert peers._losses(str(folder), {"one": artifact, "two": artifact}, load) == {"one": None, "two": None}
    assert "what choices on fake lose isn't known: it died" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--peers", "nobody"], "there is no peer 'nobody'"),
        (["--streams", "3"], "--choice 3=RECIPE"),
        (["--choice", "8=none.toml"], "is not STREAMS=RECIPE"),
        (["--streams", "0"], "positive"),
        (["--rounds", "0"], "a round"),
    ],
    ids=str,
)
def test_bad_words_are_refused_at_once(
    modules: dict[str, Any], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        modules["peers"].main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
