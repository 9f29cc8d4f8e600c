"""`bench` with open loops and ramps, end to end on the fake engine, and what can't be is said before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quicksilver.cli import run
from quicksilver.nouns import Benchmark
from quicksilver.sources.home import HOME_VARIABLE

SUPPORT = str(Path(__file__).parents[2] / "examples" / "workloads" / "support.jsonl")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def bench(fake_artifact: Path, capsys: pytest.CaptureFixture[str], *args: str) -> Benchmark:
    assert run(["bench", str(fake_artifact), "--workload", SUPPORT, *args, "--json"]) == 0
    return Benchmark.model_validate_json(capsys.readouterr().out)


def test_an_open_loop_from_the_command_line(fake_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = bench(fake_artifact, capsys, "--rate", "20,40", "--seed", "3")
    assert [(s.load, s.arrivals, s.rate_per_s, s.errors) for s in found.speeds] == [
        ("20/s", "poisson", 20.0, 0),
        ("40/s", "poisson", 40.0, 0),
    ]
    assert all(s.client_cpu_share is not None and s.behind_p99_ms is not None for s in found.speeds)
    assert [load["seed"] for load in found.settings["arrivals"]] == [3, 3]
    assert "--rate 20,40" in found.command


def test_a_trace_and_a_ramp_from_the_command_line(
    fake_artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("moments.txt").write_text("0\n0.1\n0.15\n0.4\n", encoding="utf-8")
    found = bench(fake_artifact, capsys, "--trace", "moments.txt")
    assert (found.speeds[0].load, found.speeds[0].requests) == ("trace", 4)
    assert found.settings["arrivals"][0]["moments"] == 4
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["bench", str(fake_artifact), "--workload", SUPPORT, "--ramp", "1:3"]) == 0
    wide = capsys.readouterr().out
    assert "1 to 3 streams" in wide
    assert all(f"at {n} stream" in wide for n in (1, 2, 3))
    assert "tokens in+out" in wide
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["bench", str(fake_artifact), "--workload", SUPPORT, "--ramp", "1:3"]) == 0
    table = capsys.readouterr().out.splitlines()[1:3]
    assert "1 to 3 streams" in table[1]  # on one line
    assert "TTFT p50/p99 ms" in table[0]
    assert max(map(len, table)) <= 80


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--rate", "fast"], "'fast' is not a list of rates; write it as 2.5 or 0.5,1,2"),
        (["--rate", "0"], "is not a list of rates"),
        (["--arrivals", "poison", "--rate", "1"], "poison"),
        (["--arrivals", "poisson"], "need a rate in requests a second, such as --rate 2.5"),
        (["--rate", "2", "--streams", "1"], "Streams and a rate don't go together"),
        (["--ramp", "8"], "'8' is not a ramp; write it as 1:8"),
        (["--trace", "none.txt"], "The trace none.txt can't be read"),
        (["--rate", "1,2", "--prompts", "3"], "too few"),
    ],
)
def test_loads_that_can_not_be_are_one_sentence(
    args: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it went to the server")

    monkeypatch.setattr("quicksilver.engines.remote.connect", never)
    assert run(["bench", "http://127.0.0.1:1", "--workload", SUPPORT, *args, "--json"]) == 2
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert said in message
