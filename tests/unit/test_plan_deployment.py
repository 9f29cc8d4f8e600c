"""Plans: what is cheapest within an SLO, what binds if nothing is, how many machines a load takes; on machines that don't exist."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))
import plans

from quicksilver.errors import BadInputError
from quicksilver.nouns import Slo
from quicksilver.nouns.plan import Plan
from quicksilver.nouns.prediction import Guessing, Layout, PlannedLoad, Prediction, Refused
from quicksilver.planner import charts, fleet, predict, recipes, table
from quicksilver.planner import plan as planner
from quicksilver.planner.asked import Asked, asked
from quicksilver.planner.predict import Payment

LOAD = PlannedLoad(input_tokens=622, output_tokens=250, streams=16)


@pytest.fixture
def world() -> Iterator[pytest.MonkeyPatch]:
    with plans.world() as patch:
        yield patch


def predicted(name: str = "big.8", layout: Layout | None = None, load: PlannedLoad = LOAD, **more: Any) -> Prediction:
    found = predict.predict(
        plans.FACTS, plans.INSTANCES[name], layout or Layout(tensor_parallel=8), load, name="example-8b", **more
    )
    assert isinstance(found, Prediction)
    return found


def test_a_prediction_is_what_its_step_times_say(world: pytest.MonkeyPatch) -> None:
    found = predicted(load=LOAD.model_copy(update={"streams": 1}))
    times = plans.step_times(plans.FACTS, plans.INSTANCES["big.8"], Layout(tensor_parallel=8), name="")
    first, last = times.decode_ms[0][0], times.decode_ms[0][-1]
    assert first < found.itl_ms.p50 < last
    assert found.tokens_per_s == pytest.approx(250 / (found.e2e_ms.p50 / 1000), rel=0.03)
    assert found.e2e_ms.p50 == pytest.approx(found.ttft_ms.p50 + 249 * found.itl_ms.p50, rel=0.03)
    assert (found.basis, found.replicas, found.source) == ("roofline", 1, "predicted")


def test_its_price_is_the_hour_over_its_tokens_and_the_headlines_formula_beside(world: pytest.MonkeyPatch) -> None:
    found = predicted(payment=Payment("one-year", 0.25))
    assert found.cost is not None
    assert found.cost.usd_per_hour == 26.0 * 0.75
    assert found.cost.measured == pytest.approx(19.5 / (found.tokens_per_s * 3600 / 1e6))
    assert found.cost.blended == pytest.approx(19.5 / (16 / found.itl_ms.p50 * 1000 * 3600 / 1e6) / 4)


def test_several_copies_share_a_load(world: pytest.MonkeyPatch) -> None:
    one, eight = predicted(), predicted(layout=Layout())
    assert (one.replicas, eight.replicas) == (1, 8)
    alone = predicted(layout=Layout(), load=LOAD.model_copy(update={"streams": 8}))
    assert eight.tokens_per_s == pytest.approx(16 * 250 / eight.e2e_ms.p50 * 1000, rel=0.05)
    assert alone.itl_ms.p50 < eight.itl_ms.p50 < 1.2 * alone.itl_ms.p50


def test_speculation_says_how_bursts_are_counted(world: pytest.MonkeyPatch) -> None:
    layout = Layout(tensor_parallel=8, guessing=Guessing(tokens=3, accepted=2.0))
    found = predicted(layout=layout)
    assert found.tokens_per_s > 1.5 * predicted().tokens_per_s
    assert any("piece of 3 tokens" in remark for remark in found.remarks)


def test_an_error_that_is_known_is_shown(world: pytest.MonkeyPatch) -> None:
    assert predicted(errors={"roofline": (8.0, 5)}).error_percent == 8.0
    assert predicted(errors={"operators": (8.0, 5)}).error_percent is None


def test_streams_for_which_there_is_no_memory_wait(world: pytest.MonkeyPatch) -> None:
    found = predicted("small.1", Layout(), LOAD.model_copy(update={"streams": 64}))
    assert any("the others wait" in remark for remark in found.remarks)
    assert found.fit.fits
    assert found.ttft_ms.p50 > 5 * predicted("small.1", Layout()).ttft_ms.p50


@pytest.mark.parametrize(
    ("name", "layout", "why"),
    [
        ("small.1", Layout(tensor_parallel=2), "takes 2 accelerators; the instance has 1 accelerator."),
        ("tiny.1", Layout(), "One stream takes 16.1 GB of the 3.6 GB"),
        ("small.1", Layout(weights="fp8"), "No source knows fp8 on this chip."),
    ],
    ids=str,
)
def test_what_cannot_be_predicted_is_refused_with_its_reason(
    world: pytest.MonkeyPatch, name: str, layout: Layout, why: str
) -> None:
    found = predict.predict(plans.FACTS, plans.INSTANCES[name], layout, LOAD, name="example-8b")
    assert isinstance(found, Refused)
    assert why in found.why


@pytest.fixture(scope="module")
def searched() -> Plan:
    return plans.searched()


def test_the_cheapest_that_meets_the_slo_is_found_and_the_front_marked(searched: Plan) -> None:
    assert searched.cheapest is not None
    best = searched.options[searched.cheapest]
    assert best.meets
    prices = [o.prediction.cost.measured for o in searched.options if o.meets and o.prediction.cost]
    assert best.prediction.cost is not None
    assert best.prediction.cost.measured == min(prices)
    front = [o for o in searched.options if o.on_front]
    assert front
    for option in searched.options:
        if option.on_front or option.prediction.cost is None:
            continue
        price, wait = option.prediction.cost.measured, option.prediction.e2e_ms.p50
        assert any(
            f.prediction.cost and f.prediction.cost.measured <= price and f.prediction.e2e_ms.p50 <= wait for f in front
        )
    assert f"The cheapest that meets ttft_p95<1000ms,itl_p50<20ms is {best.label}" in searched.verdict


def test_an_slo_that_nothing_meets_names_what_binds_and_what_is_nearest() -> None:
    found = plans.infeasible()
    assert found.cheapest is None
    assert found.nearest == 0
    shares = [o.worst.share for o in found.options if o.worst]
    assert shares[0] == min(shares) > 1
    assert "No option meets itl_p50<1ms. The nearest is" in found.verdict
    assert "What binds is itl_p50<1ms" in found.verdict


def test_without_an_slo_the_cheapest_is_named_as_that() -> None:
    found = plans.made("mid.4", slo=None)
    assert "The cheapest, without an SLO, is mid.4" in found.verdict
    assert all(option.meets is None for option in found.options)


def test_measured_acceptance_goes_before_what_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Guessing(tokens=5, accepted=3.0, origin="measured here")
    monkeypatch.setattr("quicksilver.planner.acceptance.measured", lambda _: known)
    found = plans.made("mid.4", slo=None)
    lookups = {g for o in found.options if (g := o.prediction.layout.guessing) is not None and not g.draft_parameters}
    assert lookups == {known}
    assert "Acceptance of guesses: measured here." in found.remarks


def test_prices_that_are_missing_or_old_are_warned_of(world: pytest.MonkeyPatch) -> None:
    found = planner.plan("m", plans.question(), instances=["odd.2", "small.1"], today=date(2028, 1, 1))
    assert any("No on-demand price is known for odd.2" in line for line in found.warnings)
    assert any("small.1" in line and "more than a year old" in line for line in found.warnings)
    assert all(o.prediction.cost is None and not o.on_front for o in found.options if o.prediction.instance == "odd.2")
    unpriced = planner.plan("m", plans.question(slo=None), instances=["odd.2"])
    assert "no price is known for it" in unpriced.verdict


def test_the_same_question_gets_the_same_answer() -> None:
    assert plans.made("mid.4") == plans.made("mid.4")


def test_the_table_is_short_and_all_is_whole(searched: Plan) -> None:
    short, whole = table.rows(searched), table.rows(searched, every=True)
    assert len(whole) == len(searched.options) > len(short)
    assert [row.mark for row in short].count("cheapest") == 1
    assert all(len(row.cells) == len(table.HEADS) for row in whole)


def test_a_fleet_is_the_fewest_machines_that_meet_the_slo(searched: Plan) -> None:
    best = searched.fleets[0]
    assert best.machines is not None
    points = {point.machines: point for point in best.by_machines}
    assert points[best.machines].meets
    assert best.machines == 1 or not points[best.machines - 1].meets
    assert best.usd_per_hour == min(f.usd_per_hour for f in searched.fleets if f.usd_per_hour is not None)
    waits = [point.ttft_ms.p95 for point in best.by_load]
    # Other requests come at other loads, so neighbours may change places by a little.
    assert all(later > 0.9 * before for before, later in pairwise(waits))
    assert waits[-1] > 1.3 * waits[0]
    assert [point.share for point in best.by_load] == list(fleet.LOADS)


def test_a_fleet_has_queues_that_averages_do_not_show(world: pytest.MonkeyPatch) -> None:
    # A machine whose throughput is just enough in the mean falls behind, or breaks a limit on waiting.
    world.setattr(fleet, "FEWEST_REQUESTS", 2000)
    ready = predict.stand(plans.FACTS, plans.INSTANCES["small.1"], Layout(), LOAD, name="m", most_streams=16)
    assert not isinstance(ready, Refused)
    requests = asked("622x250")
    most = fleet.capacity(ready, requests)
    load = fleet.Wanted(3.97 * most, 3.97 * most * 250)
    found = fleet.size(ready, requests, Slo.parse("ttft_p95<1s"), load, payment=Payment())
    assert found.machines is not None
    assert found.machines > 4
    assert not next(p for p in found.by_machines if p.machines == 4).meets


def test_a_limit_that_one_request_alone_breaks_is_no_matter_of_machines(world: pytest.MonkeyPatch) -> None:
    found = plans.made("small.1", slo=Slo.parse("itl_p50<1ms"), fleet="5req/s").fleets
    assert [f.machines for f in found] == [None]
    assert "isn't met even by a request that is alone" in found[0].why


def test_charts_have_their_rows_as_data(searched: Plan) -> None:
    rows = charts.data(searched)
    assert len(rows["price"]) == sum(o.prediction.cost is not None for o in searched.options)
    for curve in searched.curves:
        rates = [point.tokens_per_s for point in curve.points]
        assert rates[0] < rates[3] < rates[5]
        waits = [point.e2e_ms.p50 for point in curve.points]
        assert waits[0] < waits[3] < waits[-1]
        assert [row["streams"] for row in rows["throughput"] if row["instance"] == curve.instance] == [
            1,
            2,
            4,
            8,
            16,
            32,
            64,
            128,
            256,
        ]
    assert {"fleet_ttft", "fleet_itl"} <= set(rows)
    assert all(row["p95_ms"] > 0 for row in rows["fleet_ttft"])


@pytest.mark.parametrize(
    ("text", "rate", "tokens"), [("2000tok/s", 8.0, 2000.0), ("8 req/s", 8.0, 2000.0), (".5requests/s", 0.5, 125.0)]
)
def test_loads_of_fleets(text: str, rate: float, tokens: float) -> None:
    assert fleet.wanted(text, asked("622x250")) == fleet.Wanted(rate, tokens)


@pytest.mark.parametrize("text", ["2000", "0tok/s", "fast", "-3req/s", "2000tok/h"])
def test_bad_loads_of_fleets(text: str) -> None:
    with pytest.raises(BadInputError, match="is no load of a fleet"):
        fleet.wanted(text, asked("622x250"))


def test_recipes_by_words() -> None:
    every = plans.layouts(plans.FACTS, plans.INSTANCES["big.8"])
    assert {one.weights for one in recipes.chosen(every, recipes.parse("int4,fp8"))} == {"int4", "fp8"}
    assert [one.label for one in recipes.chosen(every, recipes.parse("bf16+tp8+plain"))] == ["bf16 · TP8"]
    assert [one.label for one in recipes.chosen(every, recipes.parse("guess"))] == ["bf16 · TP8 · guess 3 (2 accepted)"]
    with pytest.raises(BadInputError, match="did you mean 'fp8'"):
        recipes.parse("fp9")


def test_acceptance_takes_the_place_of_what_is_stated() -> None:
    given = recipes.acceptance("1.5/4")
    every = recipes.guessed(plans.layouts(plans.FACTS, plans.INSTANCES["big.8"]), given)
    assert [one.guessing for one in every if one.guessing] == [given]
    plain = recipes.guessed([Layout(), Layout(weights="fp8")], given)
    assert [one.label for one in plain] == [
        "bf16",
        "fp8",
        "bf16 · guess 4 (1.5 accepted)",
        "fp8 · guess 4 (1.5 accepted)",
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("4/3", "Of 3 guessed tokens 4 can't be accepted."),
        ("2", "is no acceptance"),
        ("1/99", "1 to 16"),
        ("-1/3", "0 or more"),
    ],
)
def test_bad_acceptances(text: str, why: str) -> None:
    with pytest.raises(BadInputError, match=why):
        recipes.acceptance(text)


@pytest.mark.parametrize("spec", ["0x250", "622x0", "-5x10", "synthetic:0x3", "9999999x1"])
def test_bad_shapes(spec: str) -> None:
    with pytest.raises(BadInputError, match="a prompt and an answer have 1 to"):
        asked(spec)


def test_a_file_gives_its_lengths(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(
        "\n".join(f'{{"prompt": "{"word " * n}{n}", "max_tokens": {10 * n}}}' for n in range(10, 40)), encoding="utf-8"
    )
    found = asked(str(file))
    assert found.lengths[0] == (round(len("word " * 10 + "10") / 4), 100) or len(found.lengths) == 30
    assert any("4 characters a token" in remark for remark in found.remarks)
    assert len(set(found.draw(500, 1))) > 20
    assert found.draw(50, 1) == found.draw(50, 1)


def test_recorded_traffic_gives_lengths_and_bursts(tmp_path: Path) -> None:
    line = (
        '{{"record": 1, "time": "2026-11-01T00:00:00+00:00", "arrival_s": {s}, "api": "chat", "model": "m", "stream": true, '
        '"prompt_tokens": [{p}], "completion_tokens": [{a}], "finish_reasons": ["stop"], "duration_ms": 10}}'
    )
    file = tmp_path / "traffic.jsonl"
    moments = [0.0, 0.1, 0.2, 10.0, 10.1, 10.2]
    file.write_text("\n".join(line.format(s=s, p=100 + n, a=10 + n) for n, s in enumerate(moments)), encoding="utf-8")
    found = asked(str(file))
    assert found.lengths[:2] == ((100, 10), (101, 11))
    lengths, times = found.arrive(13, 2.0, 0)
    assert lengths[6] == lengths[0]
    assert times == sorted(times)
    # Two a second in the mean, in the bursts of the record.
    assert times[6] == pytest.approx(3.0)
    assert times[2] - times[0] < 0.1 < times[3] - times[2]


def test_answers_of_a_shape_are_around_it() -> None:
    drawn = asked("622x250").draw(4000, 0)
    answers = [answer for _, answer in drawn]
    assert {prompt for prompt, _ in drawn} == {622}
    assert (min(answers), max(answers)) == (225, 275)
    assert sum(answers) / 4000 == pytest.approx(250, rel=0.01)
    assert asked("10x1").draw(3, 0) == [(10, 1)] * 3


def test_a_shape_comes_as_a_poisson_process() -> None:
    lengths, times = Asked("10x5", ((10, 5),)).arrive(4000, 8.0, 3)
    assert len(lengths) == 4000
    assert times[-1] == pytest.approx(500, rel=0.06)


def test_a_fleet_without_an_slo_and_limits_on_errors_are_refused(world: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInputError, match="sized for an SLO"):
        planner.plan("m", plans.question(slo=None, fleet="2req/s"))
    with pytest.raises(BadInputError, match="limit on errors"):
        planner.plan("m", plans.question(slo=Slo.parse("errors<1%")))
    with pytest.raises(BadInputError, match="leave some out"):
        planner.plan("m", plans.question(recipes=recipes.parse("int3")))
    with pytest.raises(BadInputError, match="at least one stream, not -2"):
        plans.question(streams=-2)
    with pytest.raises(BadInputError, match="did you mean 'one-year'"):
        predict.payment("one-yaer")
