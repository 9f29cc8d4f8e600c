"""`quicksilver plan`: its table and its document, and one clear sentence for what can't be; on machines that don't exist."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))
import plans

import quicksilver
from quicksilver.cli import run
from quicksilver.errors import BadInputError, unknown
from quicksilver.nouns.instance import Instance
from quicksilver.nouns.plan import Plan
from quicksilver.planner import models
from quicksilver.sources import instances

SLO = "ttft_p95<1s,itl_p50<20ms"


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    def find(name: str) -> Instance:
        if name not in plans.INSTANCES:
            raise unknown("instance", name, plans.INSTANCES)
        return plans.INSTANCES[name]

    with plans.world() as patch:
        patch.setattr(instances, "find", find)
        yield


def test_a_plan_is_a_table_and_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "example-8b", "--slo", SLO]) == 0
    out, err = capsys.readouterr()
    assert "The cheapest that meets ttft_p95<1000ms,itl_p50<20ms is" in out
    assert "★" in out
    assert "Every figure is predicted, nothing was measured." in out
    assert "12 % over 4" in out
    assert "predict:" in err


def test_a_plan_as_a_document_is_read_again(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "plan",
        "example-8b",
        "--slo",
        SLO,
        "--instances",
        "mid.4,small.1",
        "--commitment",
        "one-year",
        "--discount",
        "0.1",
    ]
    assert run([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = document.pop("charts")
    found = Plan.model_validate(document)
    assert (found.source, found.commitment, found.discount) == ("predicted", "one-year", 0.1)
    assert {option.prediction.instance for option in found.options} == {"mid.4", "small.1"}
    assert {row["instance"] for row in rows["throughput"]} == {"mid.4", "small.1"}
    assert any("No one-year price is known for small.1" in line for line in found.warnings)


def test_a_fleet_and_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "plan.html"
    words = ["plan", "example-8b", "--slo", SLO, "--instances", "mid.4", "--replicas-for", "1000tok/s"]
    assert run([*words, "--recipes", "int4", "--report", str(page)]) == 0
    out, err = capsys.readouterr()
    assert "Fleets for 1,000 tokens/s (4.00 requests/s)" in out
    assert f"The report is {page}." in err
    assert "Fleets for 1,000 tokens/s" in page.read_text(encoding="utf-8")


def test_from_python() -> None:
    found = quicksilver.plan_deployment(
        "example-8b", slo=SLO, instances=["mid.4"], acceptance="1.5/4", recipes="bf16+guess"
    )
    assert all(o.prediction.layout.guessing and o.prediction.layout.guessing.accepted == 1.5 for o in found.options)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--instances", "mid.5"], "There is no instance named 'mid.5'; did you mean 'mid.4'?"),
        (["--workload", "0x250"], "'0x250' is no workload: a prompt and an answer have 1 to 1,000,000 tokens each, such as 622x250."),
        (["--workload", "hotpotqq"], "There is no workload or file 'hotpotqq'; did you mean 'hotpotqa'?"),
        (["--streams", "-3"], "A plan needs at least one stream, not -3."),
        (["--streams", "0"], "A plan needs at least one stream, not 0."),
        (["--acceptance", "4/3"], "Of 3 guessed tokens 4 can't be accepted."),
        (["--acceptance", "much"], "'much' is no acceptance; write 2.0/3 if of 3 guessed tokens 2.0 are accepted in the mean."),
        (["--slo", "ttft_p95>1s"], "is limited from above"),
        (["--slo", "errors<1%"], "A plan can't be held to a limit on errors"),
        (["--replicas-for", "2000tok/s"], "A fleet is sized for an SLO: without one any queue is allowed; give --slo."),
        (["--replicas-for", "lots", "--slo", SLO], "'lots' is no load of a fleet; write it as 2000tok/s (output tokens) or 8req/s."),
        (["--recipes", "in4"], "There is no word for recipes named 'in4'; did you mean 'int4'?"),
        (["--recipes", "int3"], "No layout of this model on these instances fits the words of --recipes; leave some out."),
        (["--discount", "1"], "Invalid value for '--discount'"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_input_is_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "example-8b", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last


def test_a_model_without_a_config_says_what_to_give(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def facts(name: str) -> None:
        raise BadInputError(f"{name} isn't known here; give its config.json.")

    monkeypatch.setattr(models, "facts", facts)
    assert run(["plan", "org/unknown", "--json"]) == 2
    assert (
        json.loads(capsys.readouterr().out)["error"]["message"] == "org/unknown isn't known here; give its config.json."
    )


def test_an_slo_that_nothing_meets_is_an_answer_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "example-8b", "--slo", "itl_p50<1ms", "--instances", "small.1"]) == 0
    out = capsys.readouterr().out
    assert "No option meets itl_p50<1ms. The nearest is small.1 with" in out
    assert "What binds is itl_p50<1ms" in out
    assert "→" in out


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "example-8b", "--instances", "tiny.1", "--slo", SLO]) == 0
    out = capsys.readouterr().out
    assert "Nothing can be predicted on these instances: One stream takes" in out
    assert "Without figures" in out
