"""Deployment configurations: how they are picked, what is committed, and SageMaker's words for them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver import deployments
from quicksilver.cli import run
from quicksilver.errors import BadInputError
from quicksilver.nouns.deployment import DeploymentPoint
from quicksilver.nouns.prediction import Guessing, Layout
from quicksilver.planner import deployments as predicted
from quicksilver.sources import instances as catalogue


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICKSILVER_HOME", str(tmp_path / "home"))


def candidate(label: str, each: float, together: float, ttft_s: float = 0.1) -> predicted.Candidate:
    def point(users: int, rate: float, total: float) -> DeploymentPoint:
        return DeploymentPoint(
            users=users, ttft_p50_s=ttft_s, tokens_per_s_user=rate, tokens_per_s=total, usd_per_million=None
        )

    stand: Any = SimpleNamespace(layout=SimpleNamespace(label=label))  # of it no more is looked at
    return predicted.Candidate(stand, (point(1, each, each), point(32, together / 32, together)))


def test_the_cheapest_the_quickest_and_what_is_near_to_both() -> None:
    found = [candidate("cheap", 10, 1000), candidate("quick", 100, 100), candidate("middle", 80, 800)]
    assert [(name, one.stand.layout.label) for name, one, _ in predicted.picks(found)] == [
        ("cost", "cheap"), ("balanced", "middle"), ("latency", "quick"),
    ]  # fmt: skip
    assert predicted.picks([]) == []


@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(1, 1e6)), min_size=1, max_size=12))
def test_no_candidate_beats_a_pick_in_both(rates: list[tuple[float, float]]) -> None:
    found = [candidate(f"{n:02}", *pair) for n, pair in enumerate(rates)]
    for _, one, _ in predicted.picks(found):
        assert not any(other.price < one.price and other.latency < one.latency for other in found)


@pytest.mark.parametrize("model", predicted.MODELS)
def test_what_is_committed_is_whole(model: str) -> None:
    rows = predicted.kept(model)
    assert rows
    names = {one.instance for one in rows}
    for name in names:
        assert [one.config_name for one in rows if one.instance == name] == ["cost", "balanced", "latency"]
        assert catalogue.find(name).rates
    for one in rows:
        assert one.source == "predicted"
        assert one.basis in {"operators", "roofline", "fitted"}
        assert one.origin
        assert [point.users for point in one.benchmark] == list(predicted.USERS)
        assert one.layout is not None
        assert one.layout.label == one.label
        each = [point.tokens_per_s / point.users for point in one.benchmark]
        # Estimates of a mixture's experts in 4 bits take longer for few tokens than for many (docs/log.md).
        assert model.startswith("mixtral") or all(later <= 1.05 * earlier for earlier, later in pairwise(each))
        rate = catalogue.find(one.instance).rate()
        assert rate is not None
        assert one.rate is not None
        assert one.rate.usd_per_hour == rate.usd_per_hour
        for point in one.benchmark:
            assert point.usd_per_million == pytest.approx(rate.usd_per_hour / point.tokens_per_s / 0.0036, rel=1e-3)


def test_the_headline_model_runs_on_the_headline_machine() -> None:
    found = deployments.list_deployment_configs("meta-llama/Llama-3.1-70B-Instruct", "ml.p5.48xlarge")
    assert [one.config_name for one in found] == ["cost", "balanced", "latency"]
    assert {one.basis for one in found} == {"operators"}


def test_a_choice_is_kept_and_read_back() -> None:
    model = "llama-3.1-70b"
    assert deployments.get_deployment_config(model) is None
    chosen = deployments.set_deployment_config(model, "latency", "ml.p5.48xlarge")
    assert deployments.get_deployment_config(model) == chosen
    assert deployments.get_deployment_config("llama-3.1-8b") is None


def test_a_damaged_choice_is_none(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "deployments.json").write_text("{", encoding="utf-8")
    assert deployments.get_deployment_config("llama-3.1-70b") is None


def test_the_table_has_the_columns_that_users_know(capsys: pytest.CaptureFixture[str]) -> None:
    rows = deployments.benchmark_metrics(deployments.list_deployment_configs("llama-3.1-8b", "ml.g5.12xlarge"))
    assert len(rows) == 3 * len(predicted.USERS)
    assert all(len(row) == len(deployments.COLUMNS) for row in rows)
    assert {row[-1].split()[0] for row in rows} == {"predicted"}
    assert {row[5] for row in rows} == {f"{catalogue.find('ml.g5.12xlarge').rates[0].usd_per_hour:.3f} USD/Hrs"}
    deployments.display_benchmark_metrics("llama-3.1-8b", "ml.g5.12xlarge")
    assert "Concurrent" in capsys.readouterr().out


def test_by_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets", "configs", "llama-3.1-70b", "--instance", "ml.p5.48xlarge", "--set", "cost"]) == 0
    out = capsys.readouterr().out
    assert "ml.p5.48xlarge" in out
    assert "vLLM takes: vllm serve llama-3.1-70b --tensor-parallel-size=" in out
    assert run(["presets", "configs", "llama-3.1-70b", "--json"]) == 0
    assert {one["source"] for one in json.loads(capsys.readouterr().out)} == {"predicted"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["llama-3.1-71b"], "config.json"),
        (["qwen3-32b"], "There are no configurations of qwen3-32b"),
        (["llama-3.1-70b", "--instance", "ml.p5.49xlarge"], "did you mean 'ml.p5.48xlarge'?"),
        (["llama-3.1-70b", "--instance", "ml.p5.48xlarge", "--set", "latncy"], "did you mean 'latency'?"),
        (["llama-3.1-70b", "--set", "cost"], "add --instance"),
    ],
)
def test_bad_input_is_one_sentence(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets", "configs", *args]) == BadInputError.exit_code
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_what_starts_vllm() -> None:
    layout = Layout(weights="fp8", cache="fp8", tensor_parallel=8, guessing=Guessing(tokens=4, accepted=1.0))
    assert predicted.vllm_arguments(layout, "m") == [
        "vllm", "serve", "m", "--tensor-parallel-size=8", "--kv-cache-dtype=fp8",
        '--speculative-config={"num_speculative_tokens": 4, "method": "ngram", "prompt_lookup_max": 4}',
    ]  # fmt: skip
