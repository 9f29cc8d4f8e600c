"""The fake engine: a pure function of the prompt, at a speed that is known."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from decoders import Heard, decode
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from quicksilver.engines.fake import Fake, FakeDecoder, step_ms
from quicksilver.errors import BadInputError
from quicksilver.nouns import Burst, ModelFacts, Request, Settings, Step, Technique


class Int8(Technique):
    builds: ClassVar[bool] = True

    @classmethod
    def name(cls) -> str:
        return "int8"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fake")
    (folder / "config.json").write_text(json.dumps({"vocab_size": 100, "eos_token_id": 2}), encoding="utf-8")
    return folder


@contextmanager
def opened(folder: Path, **settings: Any) -> Iterator[FakeDecoder]:
    decoder = Fake().open(folder, Settings.model_validate(settings))
    try:
        yield decoder
    finally:
        decoder.close()


def logprobs(answer: Heard) -> list[float]:
    return [one for burst in answer.bursts for one in burst.logprobs or []]


PROMPT = [5, 6, 7, 8, 2, 9, 10, 11]


def test_a_greedy_answer_copies_the_prompt_and_ends(folder: Path) -> None:
    with opened(folder) as decoder:
        (answer,) = decode(decoder, Request(PROMPT, max_tokens=100))
    *said, end = answer.tokens
    assert (end, answer.last.finish) == (2, "stop")
    source = [token for token in PROMPT if token != 2]
    start = source.index(said[0])
    assert said == [source[(start + n) % len(source)] for n in range(len(said))]


requests = st.builds(
    Request,
    prompt=st.lists(st.integers(0, 99), min_size=1, max_size=12),
    max_tokens=st.integers(0, 80),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_p=st.sampled_from([0.5, 1.0]),
    top_k=st.integers(0, 3),
    seed=st.integers(0, 5),
    presence_penalty=st.sampled_from([0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    ignore_eos=st.booleans(),
    logprobs=st.just(True),
)


@examples(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(requests, min_size=1, max_size=4), guessed=st.integers(1, 8))
def test_neither_speculation_nor_company_changes_an_answer(folder: Path, asked: list[Request], guessed: int) -> None:
    with opened(folder) as decoder:
        alone = [decode(decoder, request)[0] for request in asked]
    with opened(folder, speculation={"kind": "prompt_lookup", "tokens": guessed}, max_streams=2) as decoder:
        together = decode(decoder, *asked)
    for one, other in zip(alone, together, strict=True):
        assert one.tokens == other.tokens
        assert one.last.finish == other.last.finish
        assert logprobs(one) == logprobs(other)


def test_forced_lengths_are_exact(folder: Path) -> None:
    with opened(folder) as decoder:
        (long,) = decode(decoder, Request(PROMPT, max_tokens=200, ignore_eos=True))
        (at_least,) = decode(decoder, Request(PROMPT, max_tokens=200, min_tokens=90))
    assert len(long.tokens) == 200
    assert 2 not in long.tokens
    assert len(at_least.tokens) == 91


def test_penalties_and_sampling_change_the_answer(folder: Path) -> None:
    prompt = [5, 5, 5, 6, 7]
    base = Request(prompt, max_tokens=60, ignore_eos=True)
    with opened(folder) as decoder:
        ((greedy,), (penalised,), (one,), (same,), (other,)) = (
            decode(decoder, request)
            for request in (
                base,
                Request(prompt, max_tokens=60, ignore_eos=True, frequency_penalty=2),
                *(Request(prompt, max_tokens=60, ignore_eos=True, temperature=1.5, seed=seed) for seed in (1, 1, 2)),
            )
        )
    assert penalised.tokens != greedy.tokens
    assert one.tokens == same.tokens != other.tokens


def test_it_runs_no_more_streams_than_it_may(folder: Path) -> None:
    order: queue.Queue[int] = queue.Queue()

    def note(n: int, burst: Burst) -> None:
        order.put(n)

    with opened(folder, max_streams=2, properties={"decode_ms": 1}) as decoder:
        for n in range(4):
            request = Request([n + 3], max_tokens=5, ignore_eos=True)
            decoder.submit(request, partial(note, n))
        seen = [order.get(timeout=60) for _ in range(20)]
    assert set(seen[:10]) == {0, 1}


def test_a_cancelled_sequence_ends_once_and_says_so(folder: Path) -> None:
    box: queue.Queue[Burst] = queue.Queue()
    with opened(folder, properties={"decode_ms": 1}) as decoder:
        number = decoder.submit(Request(PROMPT, max_tokens=10**6, ignore_eos=True), box.put)
        assert box.get(timeout=60).finish is None
        decoder.cancel(number)
        while (burst := box.get(timeout=60)).finish is None:
            pass
        assert burst.finish == "cancelled"
        decoder.cancel(number)
        decode(decoder, Request(PROMPT, max_tokens=1))
    assert box.empty()


def test_closing_ends_what_runs(folder: Path) -> None:
    box: queue.Queue[Burst] = queue.Queue()
    with opened(folder, max_streams=1, properties={"decode_ms": 1}) as decoder:
        for _ in range(2):
            decoder.submit(Request(PROMPT, max_tokens=10**6, ignore_eos=True), box.put)
    finishes = [burst.finish for burst in iter(lambda: box.get_nowait() if not box.empty() else None, None)]
    assert finishes.count("cancelled") == 2


def test_prompt_logprobs_depend_on_what_came_before_alone(folder: Path) -> None:
    with opened(folder) as decoder:
        ((one,), (other,)) = (
            decode(decoder, Request(prompt, max_tokens=0, echo=True, logprobs=True)) for prompt in (PROMPT, PROMPT[:4])
        )
    assert one.bursts[0].prompt_logprobs is not None
    assert other.bursts[0].prompt_logprobs is not None
    assert len(one.bursts[0].prompt_logprobs) == len(PROMPT)
    assert one.bursts[0].prompt_logprobs[:4] == other.bursts[0].prompt_logprobs
    assert (one.bursts[0].tokens, one.bursts[0].finish) == ([], "length")


def test_a_technique_lowers_logprobs_and_leaves_the_answer(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights")
    facts = ModelFacts(
        architecture="llama", layers=1, hidden_size=8, intermediate_size=8, heads=1, kv_heads=1, head_dim=8,
        vocab_size=100, max_positions=64, parameters=1,
    )  # fmt: skip
    Fake().apply(Int8(), Step(folder, tmp_path, "fake", facts))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "fake.json"]
    asked = Request(PROMPT, max_tokens=8, echo=True, logprobs=True)
    with opened(folder) as plain, opened(tmp_path) as int8:
        (before,), (after,) = decode(plain, asked), decode(int8, asked)
    assert before.tokens == after.tokens
    assert before.bursts[0].prompt_logprobs is not None
    assert after.bursts[0].prompt_logprobs is not None
    falls = [
        b - a for a, b in zip(after.bursts[0].prompt_logprobs, before.bursts[0].prompt_logprobs, strict=True) if a and b
    ]
    assert all(0 < fall < 0.005 for fall in falls)


def test_the_cost_of_a_step_is_the_one_that_is_documented() -> None:
    assert step_ms(10, 1, 0, batch_cost=0.1, draft_cost=0.05) == 10
    assert step_ms(10, 3, 0, batch_cost=0.1, draft_cost=0.05) == pytest.approx(12)
    assert step_ms(10, 3, 12, batch_cost=0.1, draft_cost=0.05) == pytest.approx(18)


def test_an_unknown_property_is_refused(folder: Path) -> None:
    with pytest.raises(BadInputError, match="decod_ms"):
        Fake().open(folder, Settings(properties={"decod_ms": 1}))


def test_an_empty_prompt_is_refused(folder: Path) -> None:
    with opened(folder) as decoder, pytest.raises(ValueError, match="no tokens"):
        decoder.submit(Request([]), lambda _: None)
