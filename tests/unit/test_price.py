"""What an hour and a million tokens cost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver.bench.price import cost, price
from quicksilver.errors import BadInputError
from quicksilver.nouns import Figure, Latency, Price, Speed
from quicksilver.sources import instances


def at(tokens_per_s: float, itl_p50_ms: float, concurrency: int = 16) -> Speed:
    def same(value: float) -> Latency:
        return Latency(p50=value, p90=value, p95=value, p99=value, count=int(value > 0))

    return Speed(
        concurrency=concurrency,
        requests=10,
        errors=0,
        tokens_per_s=Figure(value=tokens_per_s),
        input_tokens_per_s=0,
        requests_per_s=1,
        ttft_ms=same(100),
        itl_ms=same(itl_p50_ms),
        tpot_ms=same(itl_p50_ms),
        e2e_ms=same(1000),
        prompt_tokens_p50=622,
        completion_tokens_p50=250,
    )


@pytest.mark.parametrize(("tokens_per_s", "usd"), [(1200, 6.54), (2400, 3.27)])
def test_the_blended_price_is_the_headline_figure(tokens_per_s: float, usd: float) -> None:
    found = cost(
        at(tokens_per_s, 16 / tokens_per_s * 1000), price(instances.find("ml.p5.48xlarge").rates[-1].usd_per_hour)
    )
    assert found is not None
    assert found.blended is not None
    assert round(found.blended, 2) == usd
    assert found.blended_throughput == pytest.approx(tokens_per_s)
    assert found.usd_per_hour == 113.068
    assert found.measured == pytest.approx(4 * found.blended), "with no input tokens counted"


def test_the_two_definitions_part_when_tokens_come_in_bursts() -> None:
    found = cost(at(tokens_per_s=400, itl_p50_ms=20, concurrency=1), price(3.6))
    assert found is not None
    assert found.measured == pytest.approx(2.5)
    assert found.blended_throughput == pytest.approx(50)
    assert found.blended == pytest.approx(5.0)


def test_discount_and_ratio() -> None:
    found = cost(at(100, 160), price(10.0, discount=0.25, input_output_ratio=1))
    assert found is not None
    assert found.usd_per_hour == 7.5
    assert found.measured == pytest.approx(7.5 / 0.36)
    assert found.blended == pytest.approx(7.5 / 0.36 / 2)


@given(st.floats(0.01, 1000), st.floats(0, 0.99), st.floats(1, 1e5))
def test_price_scales_as_it_should(usd: float, discount: float, tokens_per_s: float) -> None:
    full = cost(at(tokens_per_s, 10), price(usd))
    less = cost(at(tokens_per_s, 10), price(usd, discount=discount))
    twice = cost(at(2 * tokens_per_s, 10), price(usd))
    assert full is not None
    assert less is not None
    assert twice is not None
    assert less.measured == pytest.approx(full.measured * (1 - discount))
    assert twice.measured == pytest.approx(full.measured / 2)
    assert twice.blended == full.blended


def test_no_token_has_no_price() -> None:
    assert cost(at(0, 0), price(1.0)) is None


def test_answers_without_gaps_have_no_blended_price() -> None:
    found = cost(at(50, 0), price(1.0))
    assert found is not None
    assert (found.blended, found.blended_throughput) == (None, None)
    assert found.measured > 0
    json.loads(found.model_dump_json())


def test_a_named_instance_says_where_its_price_comes_from() -> None:
    found = price(instance="c7i.xlarge", discount=0.3)
    assert (found.usd_per_hour, found.discount) == (0.1785, 0.3)
    assert found.source == "c7i.xlarge, us-east-1, list price of 2026 (EC2 price list)"


def test_an_instance_of_which_no_price_is_known_says_so() -> None:
    with pytest.raises(BadInputError, match=r"No price of ml.p5en.48xlarge is known; give --price-per-hour"):
        price(instance="ml.p5en.48xlarge")
    assert price(90.0, "ml.p5en.48xlarge").usd_per_hour == 90.0


def test_what_is_given_goes_before_the_list() -> None:
    assert price(5.0, "ml.g5.12xlarge") == Price(usd_per_hour=5.0, source="given for ml.g5.12xlarge")
    assert price(5.0, "my own box").source == "given for my own box"


def test_an_assumption_says_that_it_is_one() -> None:
    found = price(cores=2)
    assert found.usd_per_hour == pytest.approx(0.10)
    assert found.source == "assumed: $0.05 per core-hour x 2 cores"
    assert price().source.startswith("assumed: ")


def test_a_typo_gets_a_suggestion() -> None:
    with pytest.raises(BadInputError, match=r"no instance named 'c7i.xlrage'; did you mean 'c7i.xlarge'"):
        price(instance="c7i.xlrage")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"usd_per_hour": -1.0}, "price per hour has to be above 0, not -1"),
        ({"usd_per_hour": 0.0}, "above 0"),
        ({"usd_per_hour": float("nan")}, "has to be a number, not nan"),
        ({"usd_per_hour": float("inf")}, "has to be a number"),
        ({"discount": -0.1}, "discount has to be at least 0"),
        ({"discount": 1.0}, "discount has to be below 1"),
        ({"discount": 30.0}, "give it as a share, such as 0.3"),
        ({"discount": float("nan")}, "discount has to be a number"),
        ({"input_output_ratio": -1.0}, "input to output ratio has to be at least 0"),
    ],
)
def test_numbers_that_are_no_price_are_refused(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        price(**arguments)  # type: ignore[arg-type]
