"""From logits to tokens."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from quicksilver.engines.openvino.sampling import Sampler, best, log_normaliser
from quicksilver.nouns import Request

LOGITS = np.array([2.0, 1.0, 0.0, -1.0, 1.5], dtype=np.float32)
EOS = frozenset({0})


def draws(count: int = 4000, **fields: Any) -> Counter[int]:
    """How often each token comes."""
    sampler = Sampler(Request(prompt=[1], seed=7, **fields), frozenset())
    return Counter(sampler.choose(LOGITS, 0).token for _ in range(count))


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    chances = np.exp(logits - logits.max())
    result: NDArray[np.float64] = chances / chances.sum()
    return result


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    counts = draws(temperature=temperature)
    expected = softmax(LOGITS.astype(float) / temperature) * 4000
    seen = [counts[token] for token in range(len(LOGITS))]
    assert stats.chisquare(seen, expected).pvalue > 0.001


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"top_k": 2}, {0, 4}),
        ({"top_p": 0.5}, {0, 4}),
        ({"top_p": 0.01}, {0}),
        ({"top_k": 3, "top_p": 0.999}, {0, 1, 4}),
    ],
)
def test_only_what_top_k_and_top_p_leave_is_drawn(fields: dict[str, Any], allowed: set[int]) -> None:
    assert set(draws(temperature=1.0, **fields)) == allowed


def test_a_seed_gives_the_same_again_and_each_token_takes_one_random_number() -> None:
    def sampler() -> Sampler:
        return Sampler(Request(prompt=[1], seed=3, temperature=1.0), frozenset())

    first, second = sampler(), sampler()
    assert [first.choose(LOGITS, 0).token for _ in range(50)] == [second.choose(LOGITS, 0).token for _ in range(50)]


@pytest.mark.parametrize(
    "request_", [Request(prompt=[1], presence_penalty=2.0), Request(prompt=[1], frequency_penalty=2.0)]
)
def test_penalties_turn_from_what_was_said(request_: Request) -> None:
    sampler = Sampler(request_, frozenset())
    assert [sampler.choose(LOGITS, 0).token for _ in range(3)] == [0, 4, 1]


def test_frequency_counts_and_presence_does_not() -> None:
    request = Request(prompt=[1], frequency_penalty=0.3)
    sampler = Sampler(request, frozenset())
    assert [sampler.choose(LOGITS, 0).token for _ in range(4)] == [0, 0, 4, 0]


def test_a_bias_moves_the_choice() -> None:
    assert Sampler(Request(prompt=[1], logit_bias={3: 100.0}), frozenset()).choose(LOGITS, 0).token == 3
    assert Sampler(Request(prompt=[1], logit_bias={0: -100.0}), frozenset()).choose(LOGITS, 0).token == 4


def test_min_tokens_forbid_an_end_until_they_are_there() -> None:
    sampler = Sampler(Request(prompt=[1], min_tokens=2), EOS)
    assert [sampler.choose(LOGITS, given).token for given in range(4)] == [4, 4, 0, 0]


def test_logprobs_are_the_models_own() -> None:
    request = Request(prompt=[1], logprobs=True, top_logprobs=2, temperature=0.0, logit_bias={3: 100.0})
    choice = Sampler(request, EOS).choose(LOGITS, 0)
    expected = np.log(softmax(LOGITS.astype(float)))
    assert choice.token == 3
    assert choice.logprob == pytest.approx(expected[3], abs=1e-5)
    assert [token for token, _ in choice.top] == [0, 4]
    assert [value for _, value in choice.top] == pytest.approx([expected[0], expected[4]], abs=1e-5)


def test_logits_are_left_as_they_are() -> None:
    before = LOGITS.copy()
    Sampler(Request(prompt=[1], min_tokens=5, presence_penalty=1.0, logit_bias={1: 5.0}), EOS).choose(LOGITS, 0)
    assert (before == LOGITS).all()


def test_large_logits_have_a_normaliser() -> None:
    rows = np.array([[1000.0, 1000.0], [-1000.0, -1001.0]], dtype=np.float32)
    assert log_normaliser(rows) == pytest.approx([1000 + np.log(2), -1000 + np.log1p(np.exp(-1))])
    assert best(rows[0], 1000 + np.log(2), 0) == []
