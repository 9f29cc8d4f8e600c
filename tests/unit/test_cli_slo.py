"""`bench --slo` and `--export`, end to end on the fake engine, and what can't be is said before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quicksilver import api
from quicksilver.bench.load import read_samples
from quicksilver.cli import run
from quicksilver.errors import BadInputError
from quicksilver.nouns import Benchmark, Slo
from quicksilver.sources.home import HOME_VARIABLE

SUPPORT = str(Path(__file__).parents[2] / "examples" / "workloads" / "support.jsonl")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def test_the_highest_load_is_found_and_exported(fake_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A median of less than a minute: six requests judge it, and no machine is too slow for it.
    base = [
        "bench",
        str(fake_artifact),
        "--workload",
        SUPPORT,
        "--repeat-prompts",
        "--slo",
        "e2e_p50<60s,errors<=0%",
        "--most-streams",
        "3",
    ]
    files = [f"out/bench.{suffix}" for suffix in ("json", "csv", "md", "html")] + ["out/profile_export_aiperf.json"]
    assert run([*base, *(word for file in files for word in ("--export", file)), "--json"]) == 0
    out, err = capsys.readouterr()
    found = Benchmark.model_validate_json(out)
    assert found.slo == Slo.parse("e2e_p50<60s,errors<=0%")
    assert found.search is not None
    assert (found.search.best, found.search.above, found.search.needed) == (3, None, 6)
    assert [attempt.load for attempt in found.search.attempts] == [1, 2, 3]
    assert [speed.concurrency for speed in found.speeds] == [1, 2, 3]
    assert found.command.startswith("quicksilver bench ")
    assert "a prefix cache flatters these figures" in err
    assert len(read_samples(found.samples)) == 1 + sum(attempt.requests for attempt in found.search.attempts)
    for file in files:
        assert Path(file).stat().st_size > 500
    assert Benchmark.model_validate_json(Path("out/bench.json").read_text(encoding="utf-8")) == found
    assert json.loads(Path("out/profile_export_aiperf.json").read_text(encoding="utf-8"))["request_count"]["avg"] == 10

    assert run(base) == 0
    out, _ = capsys.readouterr()
    assert "3 streams meet e2e_p50<60000ms,errors<=0%" in out
    assert "It is the most that was tried." in out


def test_a_load_that_nothing_meets_ends_with_1(fake_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["bench", str(fake_artifact), "--workload", SUPPORT, "--repeat-prompts", "--slo", "ttft_p50<0.001ms"]) == 1
    )
    out, _ = capsys.readouterr()
    assert "Not even 1 stream meets ttft_p50<0.001ms: ttft_p50 binds" in out


def test_with_streams_goodput_is_counted(fake_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["bench", str(fake_artifact), "--workload", SUPPORT, "--streams", "1,2", "--slo", "ttft_p95<60s"]
    assert run([*base, "--json"]) == 0
    found = Benchmark.model_validate_json(capsys.readouterr().out)
    assert found.search is None
    assert [met.share.value for met in found.goodputs] == [1, 1]
    assert run(base) == 0
    assert "Good requests under ttft_p95<60000ms at 2 streams: 100 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--slo", "tttf_p95<5s"], "There is no SLO term named 'tttf_p95'; did you mean 'ttft_p95'?"),
        (["--slo", "ttft_p101<5s"], "There is no percentile p101"),
        (["--slo", "errors<-1%"], "errors can't be negative."),
        (["--slo", "tokens_per_s>5"], "has no limit that a higher load could break"),
        (["--slo", "ttft_p95<5s", "--rounds", "2"], "one round"),
        (["--export", "a.xlsx"], "can't be told from its name"),
        (["--export", "a.json", "--format", "cvs"], "did you mean 'csv'?"),
        (["--export", "profile_export_aiperf.json"], "choose one, such as --streams 8"),
        (["--export", "."], "can't be told from its name"),
        (["--export", ".", "--format", "json"], "is a folder"),
    ],
)
def test_what_can_not_be_is_said_before_anything_starts(
    args: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it went to the server")

    monkeypatch.setattr("quicksilver.engines.remote.connect", never)
    assert run(["bench", "http://127.0.0.1:1", "--workload", SUPPORT, *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err


def test_the_api_says_the_same() -> None:
    with pytest.raises(BadInputError, match="lacks its unit"):
        api.benchmark("http://127.0.0.1:1", SUPPORT, slo="ttft_p95<500")
