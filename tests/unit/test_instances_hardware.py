"""`quicksilver hardware`: this machine measured once, and the catalogue to look at."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from quicksilver import machine
from quicksilver.cli import run
from quicksilver.machine import Measured, rates
from quicksilver.sources import instances
from quicksilver.sources.home import HOME_VARIABLE


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which parts were measured, in a home of its own; a part gives round figures."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setenv(instances.CONFIG_VARIABLE, str(tmp_path / "config"))
    calls: list[str] = []

    def measured(module: str) -> dict[str, object] | None:
        calls.append(module)
        if "openvino" in module:
            return {"bf16_gflop_s": 400.0, "openvino": "1"}
        return {"bandwidth_gb_s": 45.0, "fp32_gflop_s": 194.0, "numpy": "2"}

    monkeypatch.setattr(machine, "_run", measured)
    return calls


def test_it_is_measured_once_and_says_how_old_that_is(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["hardware"]) == 0
    out = capsys.readouterr().out
    assert "45.0 GB/s" in out
    assert "194 GFLOP/s in fp32 (numpy 2), 400 in bf16 (OpenVINO 1)" in out
    assert "just now; --measure does it again" in out
    assert len(asked) == 2
    assert run(["hardware", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measured"]["bandwidth_gb_s"] == 45.0
    assert len(asked) == 2, "what is known isn't measured again"
    assert run(["hardware", "--measure"]) == 0
    assert len(asked) == 4


@pytest.mark.parametrize(("days", "words"), [(0.02, "29 minutes ago"), (0.5, "12 hours ago"), (40.0, "40 days ago")])
def test_the_age(asked: list[str], capsys: pytest.CaptureFixture[str], days: float, words: str) -> None:
    found = machine.measure()
    then = datetime.now(UTC) - timedelta(days=days)
    machine._file().write_text(found.model_copy(update={"when": then.isoformat()}).model_dump_json(), encoding="utf-8")
    assert run(["hardware"]) == 0
    assert words in capsys.readouterr().out


def test_figures_that_cannot_be_read_are_measured_again(asked: list[str]) -> None:
    machine.measure()
    machine._file().write_text("{", encoding="utf-8")
    assert machine.kept() is None


def test_a_machine_that_cannot_be_measured_is_described_all_the_same(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "_run", lambda module: None)
    assert run(["hardware"]) == 0
    said = capsys.readouterr()
    assert "not measured" in said.out
    assert "could not be measured" in said.err


def test_without_bf16_none_is_stated(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    core = {"bandwidth_gb_s": 45.0, "fp32_gflop_s": 194.0, "numpy": "2"}
    monkeypatch.setattr(machine, "_run", lambda module: None if "openvino" in module else core)
    assert machine.measure().bf16_gflop_s is None


def test_a_process_that_fails_gives_no_figures() -> None:
    assert machine._run("quicksilver.no_such_module") is None


def test_rates_count_what_is_moved_and_multiplied() -> None:
    assert rates.bandwidth_gb_s(2, size=2**20, rounds=1) > 0
    assert rates.fp32_gflop_s(side=64, rounds=1) > 0
    Measured(bandwidth_gb_s=1, fp32_gflop_s=1, when="2026-11-28T00:00:00+00:00", numpy="2")


def test_the_list_is_narrowed_by_words(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["hardware", "list", "l40s", "c8g.large"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0].removeprefix("ml.").split(".")[0] for line in lines[1:]} == {"g6e", "c8g"}
    assert any("8 x L40S" in line and "30.13" in line and "18.98" in line and "2025-11-30" in line for line in lines)
    assert run(["hardware", "list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(instances.instances())


def test_an_instance_is_shown_with_its_sources(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["hardware", "show", "ml.p5.48xlarge"]) == 0
    out = capsys.readouterr().out
    for words in (
        "8 x H100 SXM",
        "85.52 GB, 3,350 GB/s",
        "h100_sxm",
        "63.296",
        "113.068",
        "2024",
        "NVIDIA H100 data sheet",
    ):
        assert words in out
    assert run(["hardware", "show", "p5.48xlrage"]) == 2
    assert "did you mean 'p5.48xlarge'" in capsys.readouterr().err
    assert run(["hardware", "show", "ml.p5en.48xlarge"]) == 0
    assert "No price of ml.p5en.48xlarge is known" in capsys.readouterr().err


def test_a_broken_file_of_the_users_is_one_sentence(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    instances.users_file().parent.mkdir(parents=True)
    instances.users_file().write_text("[[family]\n", encoding="utf-8")
    assert run(["hardware", "list"]) == 2
    assert "line 1" in capsys.readouterr().err
