"""The record of predictions: what is paired, what is refused, the running error, and that a killed writer leaves it whole."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quicksilver.cli import run
from quicksilver.errors import BadInputError
from quicksilver.nouns.pairing import Measured, Pairing
from quicksilver.nouns.prediction import Layout, PlannedLoad, Prediction
from quicksilver.nouns.steps import StepSet
from quicksilver.planner import fitted, record, reports
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.testing.machine import made_up_prediction

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path


def measured(
    *,
    tokens_per_s: float = 80.0,
    streams: int = 8,
    input_tokens: float = 600,
    output_tokens: float = 100,
    model: str = "smollm2-135m-instruct",
    weights: str = "",
) -> Measured:
    return Measured(
        model=model,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        streams=streams,
        tokens_per_s=tokens_per_s,
        requests=32,
        weights=weights,
        report="AIPerf",
    )


rates = st.floats(0.1, 1e5)
pairs = st.builds(
    lambda streams, instance, basis, predicted, seen: Pairing(
        prediction=made_up_prediction(
            instance=instance,
            basis=basis,
            tokens_per_s=predicted,
            load=PlannedLoad(input_tokens=600, output_tokens=100, streams=streams),
        ),
        measured=measured(streams=streams, tokens_per_s=seen),
    ),
    st.integers(1, 4),
    st.sampled_from(["local", "ml.p5.48xlarge"]),
    st.sampled_from(["fitted", "operators", "roofline"]),
    rates,
    rates,
)


@given(st.lists(pairs, max_size=30))
def test_the_running_error_is_the_median_over_configurations_by_their_last_measurement(found: list[Pairing]) -> None:
    expected: dict[str, dict[object, float]] = {}
    for each in found:
        p = each.prediction
        own = abs(p.tokens_per_s / each.measured.tokens_per_s - 1) * 100
        expected.setdefault(p.basis, {})[(p.instance, p.load.streams)] = own
    errors = record.errors(found)
    assert set(errors) == set(expected)
    for basis, by_load in expected.items():
        assert errors[basis].percent == pytest.approx(statistics.median(by_load.values()))
        assert errors[basis].configurations == len(by_load)
    by_instance = record.errors(found, by="instance")
    assert sum(each.configurations for each in by_instance.values()) == sum(
        each.configurations for each in errors.values()
    )


@given(st.floats(0.5, 2), st.floats(0.5, 2))
def test_lengths_may_differ_by_a_quarter_and_more_than_a_twentieth_is_said(prompts: float, answers: float) -> None:
    seen = measured(input_tokens=600 * prompts, output_tokens=100 * answers)
    away = [abs(factor - 1) for factor in (prompts, answers)]
    if max(away) > 0.2501:
        with pytest.raises(BadInputError, match="apart"):
            record.pair(made_up_prediction(), seen)
    elif max(away) < 0.2499:
        remarks = record.pair(made_up_prediction(), seen).remarks
        assert sum(share > 0.0501 for share in away) <= len(remarks) <= sum(share > 0.0499 for share in away)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(pairs, max_size=8))
def test_what_is_kept_is_read_again_and_twice_is_once(
    tmp_path_factory: pytest.TempPathFactory, found: list[Pairing]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(tmp_path_factory.mktemp("kept")))
        for each in [*found, *found]:
            assert record.keep(each.prediction, each.measured) == each
        once = list({each.hash: each for each in found}.values())
        assert record.pairings() == once
        assert record.errors() == record.errors(once)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (measured(streams=4), "4 streams, and the prediction 8"),
        (measured(model="Llama-3.1-8B"), "Llama-3.1-8B.*--same-model"),
        (measured(weights="int4"), "int4 weights"),
        (measured(input_tokens=900), "900 tokens"),
    ],
)
def test_a_report_of_something_else_is_refused_in_a_sentence(seen: Measured, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        record.keep(made_up_prediction(), seen)
    assert record.pairings() == []


def test_a_models_owner_and_spelling_make_no_other_model() -> None:
    prediction = made_up_prediction(model="meta-llama/Llama-3.1-70B")
    assert record.pair(prediction, measured(model="llama_3.1_70b")).remarks == ()
    assert record.pair(prediction, measured(model="lmi"), same_model=True)


def test_of_several_predictions_the_one_of_that_load_is_taken() -> None:
    loads = [PlannedLoad(input_tokens=600, output_tokens=100, streams=n) for n in (1, 4, 8)]
    offered = [made_up_prediction(load=load) for load in loads]
    assert record.match(offered, measured(streams=4)).prediction.load.streams == 4
    with pytest.raises(BadInputError, match="nearest of 3"):
        record.match(offered, measured(streams=5))
    twice = [*offered, made_up_prediction(layout=Layout(weights="int8"))]
    with pytest.raises(BadInputError, match="--layout"):
        record.match(twice, measured())
    assert record.match(twice, measured(weights="int8")).prediction.layout.weights == "int8"


KEEPS = """
import sys
from quicksilver.planner import record
from quicksilver.nouns.pairing import Measured
from quicksilver.testing.machine import made_up_prediction
for number in range(1, 100_000):
    seen = Measured(model="smollm2-135m-instruct", input_tokens=600, output_tokens=100, streams=8, tokens_per_s=number, requests=1, report="AIPerf")
    record.keep(made_up_prediction(), seen)
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_what_it_had_kept_and_a_record_that_can_be_written() -> None:
    for wait in (5, 12):
        with subprocess.Popen([sys.executable, "-c", KEEPS], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(wait):
                said = int(writer.stdout.readline())
            time.sleep(0.003 * wait)
            os.kill(writer.pid, signal.SIGKILL)
            said = max([said, *(int(line) for line in writer.stdout.read().splitlines())])
        kept = {each.measured.tokens_per_s for each in record.pairings()}
        assert set(range(1, said + 1)) <= kept
        assert record.keep(made_up_prediction(), measured(tokens_per_s=0.5 + wait)) in record.pairings()


def test_a_file_that_is_no_record_is_said_in_a_sentence() -> None:
    record.file().parent.mkdir(parents=True)
    record.file().write_text("this is not a database" * 100, encoding="utf-8")
    for act in (record.pairings, lambda: record.keep(made_up_prediction(), measured())):
        with pytest.raises(BadInputError, match="can't be read as the record"):
            act()


def golden_prediction(streams: int, model: str, tokens: tuple[int, int], **fields: object) -> Prediction:
    load = PlannedLoad(input_tokens=tokens[0], output_tokens=tokens[1], streams=streams)
    return made_up_prediction(model=model, load=load, **fields)  # type: ignore[arg-type]


def test_every_kind_of_report_is_read() -> None:
    result = reports.measurements(GOLDEN / "result.json")
    assert {each.report for each in result} == {"quicksilver optimize"}
    assert {each.weights for each in result} >= {"bf16", "int8"}
    for name in ("loads.json", "profile_export_aiperf.json", "result.json"):
        for each in reports.measurements(GOLDEN / name):
            tokens = (round(each.input_tokens), round(each.output_tokens))
            weights = each.weights or "bf16"
            prediction = golden_prediction(
                each.streams, each.model, tokens, layout=Layout.model_validate({"weights": weights})
            )
            assert record.keep(prediction, each).error_percent >= 0
    # Rates and ramps are no closed loops with a number of streams.
    loads = json.loads((GOLDEN / "loads.json").read_text(encoding="utf-8"))["speeds"]
    closed = [speed for speed in loads if not speed["load"] and speed["valid"]]
    assert len(reports.measurements(GOLDEN / "loads.json")) == len(closed)


def test_an_older_aiperf_is_read_and_its_open_loop_refused(home: Path) -> None:
    document = json.loads((GOLDEN / "profile_export_aiperf.json").read_text(encoding="utf-8"))
    document["input_config"] = {"endpoint": {"model_names": ["tiny"]}, "loadgen": {"concurrency": 8}}
    file = home / "older.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    (found,) = reports.measurements(file)
    assert (found.model, found.streams) == ("tiny", 8)
    document["input_config"]["loadgen"] = {"request_rate": 2.0}
    file.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(BadInputError, match="open loop"):
        reports.measurements(file)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"speeds": [{}]}', '{"input_config": {}}', '{"candidates": 3}', "\x00"]
)
def test_what_is_no_report_is_refused_in_a_sentence(home: Path, text: str) -> None:
    (home / "report.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError, match=r"report\.json"):
        reports.measurements(home / "report.json")
    with pytest.raises(BadInputError, match=r"report\.json"):
        reports.predictions(home / "report.json")


def test_the_command_records_and_shows(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = reports.measurements(GOLDEN / "profile_export_aiperf.json")
    tokens = (round(found.input_tokens), round(found.output_tokens))
    wanted = golden_prediction(found.streams, found.model, tokens, tokens_per_s=found.tokens_per_s * 1.1)
    plan = {
        "rows": [wanted.model_dump(mode="json"), golden_prediction(99, found.model, tokens).model_dump(mode="json")]
    }
    (home / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    report = str(GOLDEN / "profile_export_aiperf.json")
    assert run(["predictions", "record", str(home / "plan.json"), report]) == 0
    assert "10.0" in capsys.readouterr().out
    assert run(["predictions", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["errors"]["fitted"] == {"percent": pytest.approx(10.0), "configurations": 1}
    assert run(["predictions", "record", str(home / "plan.json"), report, "--instance", "p5"]) == 2
    assert run(["predictions", "record", str(home / "nowhere.json"), report]) == 2
    capsys.readouterr()


def test_what_was_predicted_of_this_machine_is_paired_when_it_is_measured_here() -> None:
    assert record.meet(measured(weights="bf16")) is None
    record.expect([made_up_prediction(tokens_per_s=90), made_up_prediction(instance="ml.p5.48xlarge")])
    record.expect([made_up_prediction(tokens_per_s=100)])
    assert record.meet(measured(weights="int8")) is None
    assert record.meet(measured(weights="")) is None
    assert record.meet(measured(weights="bf16", streams=4)) is None
    assert record.meet(measured(weights="bf16", output_tokens=110)) is None
    met = record.meet(measured(weights="bf16", output_tokens=101))
    assert met is not None and met.error_percent == pytest.approx(25)
    assert record.errors()["fitted"].percent == pytest.approx(25)


@pytest.mark.parametrize(
    ("label", "weights"),
    [
        ("as-is", "bf16"),
        ("int8", "int8"),
        ("awq(group_size=64)", "int4"),
        ("int8 + prompt-lookup(tokens=4)", ""),
        ("as-is + settings(threads=1)", ""),
        ("mixed(bits=5)", ""),
    ],
)
def test_a_layout_is_told_from_a_label_or_it_is_not(label: str, weights: str) -> None:
    assert reports.weights_of(reports.techniques_of(label)) == weights


def test_a_plan_of_this_machine_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    from quicksilver.planner import steps
    from quicksilver.planner.asked import asked
    from quicksilver.planner.plan import Question, plan
    from quicksilver.testing.machine import made_up_steps

    monkeypatch.setattr(fitted, "of_one_machine", _all)
    for one in made_up_steps():
        steps.keep(one)
    load = PlannedLoad(input_tokens=300, output_tokens=20, streams=4)
    found = plan("smollm2-135m-instruct", Question(asked("300x20"), load), instances=["local"])
    plain = [option.prediction for option in found.options if option.prediction.layout.guessing is None]
    wanted = {each.layout.weights: each for each in plain}
    assert {option.prediction.basis for option in found.options} == {"fitted"}
    seen = measured(weights="int8", streams=4, input_tokens=300, output_tokens=20, tokens_per_s=50)
    met = record.meet(seen)
    assert met is not None and met.prediction == wanted["int8"]
    again = plan("smollm2-135m-instruct", Question(asked("300x20"), load), instances=["local"])
    assert again.options[0].prediction.error_percent == pytest.approx(met.error_percent)


def _all(sets: list[StepSet], *, here: bool) -> list[StepSet]:
    return list(sets)
