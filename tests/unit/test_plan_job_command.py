"""`quicksilver size-job`: what it prints, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quicksilver.cli import run
from quicksilver.sources import instances


@pytest.fixture(autouse=True)
def no_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(instances.CONFIG_VARIABLE, str(tmp_path))


def test_the_table_shows_arithmetic_time_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["size-job", "awq", "meta-llama/Llama-3.1-70B", "--instances", "g5.48xlarge,g5.xlarge,p5.48xlarge"]) == 0
    out = capsys.readouterr().out
    for words in (
        "predicted",
        "one layer, 16 bits",
        "forward passes",
        "g5.48xlarge",
        "the machine needs",
        "altogether",
    ):
        assert words in out


def test_json_has_hours_and_dollars(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["size-job", "gptq", "llama-3.1-70b-instruct", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["source"] == "predicted"
    first, second = found["instances"][:2]
    assert first["why_not"] == ""
    assert 0 < first["usd"] <= second["usd"]
    assert first["hours"] == pytest.approx(sum(line["hours"] for line in first["time"]))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["awk", "llama-3.1-70b-instruct"], "awk"),
        (["awq", "no-such-model"], "no-such-model"),
        (["awq", "llama-3.1-70b-instruct", "--instances", "g5.48xlrage"], "did you mean"),
        (["fp8", "llama-3.1-70b-instruct", "--samples", "3"], "neither samples nor tokens"),
        (["awq", "llama-3.1-70b-instruct", "--samples", "0"], "samples"),
    ],
)
def test_bad_input_is_one_sentence(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["size-job", *args]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert words in err


def test_if_nothing_has_room_the_nearest_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["size-job", "train-draft", "meta-llama/Llama-3.1-70B", "--instances", "g5.xlarge,g6.xlarge"]) == 0
    out = capsys.readouterr().out
    assert "No instance has room" in out
    assert "a device needs" in out
