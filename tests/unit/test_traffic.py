"""Recorded traffic as a workload: what was recorded comes back, and bad lines are named."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quicksilver.errors import BadInputError
from quicksilver.nouns.traffic import RecordedRequest
from quicksilver.nouns.workload import Prompt, Workload
from quicksilver.sources import jsonl, traffic, workloads
from quicksilver.sources.splits import content_key
from quicksilver.sources.synthetic import MOST_IN_ALL, PREFIX

MOMENT = datetime(2026, 11, 25, 14, 0, 0, tzinfo=UTC)


def request(number: int = 0, **fields: Any) -> RecordedRequest:
    given: dict[str, Any] = {
        "record": 1,
        "time": MOMENT,
        "arrival_s": float(number),
        "api": "completions",
        "model": "tiny",
        "stream": False,
        "prompt_tokens": (8,),
        "completion_tokens": (5,),
        "finish_reasons": ("stop",),
        "duration_ms": 10.0,
    }
    return RecordedRequest.model_validate(given | fields)


def document(*requests: RecordedRequest) -> bytes:
    return b"".join(one.line() for one in requests)


def load(data: bytes, *, prompts: int | None = None, seed: int = 0, trace: bool = True) -> Workload:
    return traffic.load(data, "r.jsonl", prompts=prompts, seed=seed, trace=trace)


def everything(workload: Workload) -> list[Prompt]:
    return sorted(
        [*workload.calibration, *workload.search, *workload.evaluation], key=lambda p: (p.arrival_s or 0.0, p.id)
    )


texts = st.text(st.characters(codec="utf-8"), min_size=1)
contents = st.one_of(
    st.none(),
    st.fixed_dictionaries({"prompts": st.tuples(texts | st.lists(st.integers(0, 500), min_size=1).map(tuple))}),
    st.fixed_dictionaries(
        {
            "messages": st.lists(
                st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": texts}),
                min_size=1,
                max_size=3,
            ).map(tuple)
        }
    ),
)
requests = st.builds(
    lambda content, arrival, tokens, limit, n, finish: request(
        arrival_s=arrival,
        n=n,
        prompt_tokens=(tokens,),
        completion_tokens=(limit,) * n,
        finish_reasons=(finish,) * n,
        max_tokens=limit + 3,
        **(content or {}),
    ),
    contents,
    st.floats(0, 1e6),
    st.integers(1, 40),
    st.integers(1, 50),
    st.integers(1, 3),
    st.sampled_from(["stop", "length", "abort"]),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(requests, min_size=3, max_size=12), st.integers(0, 3))
def test_a_trace_has_every_answer_once_in_its_place(asked: list[RecordedRequest], seed: int) -> None:
    data = document(*asked)
    assert [RecordedRequest.model_validate_json(line) for line in data.splitlines()] == asked
    try:
        found = everything(load(data, seed=seed))
    except BadInputError as error:
        assert "needs at least 3" in str(error)
        return
    start_s = min(one.arrival_s for one in asked)
    expected = {
        f"line-{number}" + (f".{turn + 1}" if one.n > 1 else ""): (one, turn)
        for number, one in enumerate(asked, 1)
        for turn in range(one.n)
    }
    assert sorted(prompt.id for prompt in found) == sorted(expected)
    for prompt in found:
        one, turn = expected[prompt.id]
        assert prompt.arrival_s == one.arrival_s - start_s
        broken_off = one.finish_reasons[turn] == "abort"
        if one.prompts:
            assert (prompt.prompt or prompt.token_ids) == one.prompts[0]
        elif one.messages:
            assert [turn.model_dump() for turn in prompt.messages or ()] == list(one.messages)
        else:
            assert prompt.ignore_eos
            assert len(words(prompt)) == one.prompt_tokens[0]
        forced = broken_off or prompt.ignore_eos
        assert prompt.max_tokens == (one.completion_tokens[turn] if forced else one.max_tokens)
    assert load(data, seed=seed) == load(data, seed=seed)


def words(prompt: Prompt) -> list[str]:
    return (prompt.prompt or "").replace(",", " ,").replace(".", " .").split()


def test_splits_are_disjoint_seeded_and_keep_repeats_together() -> None:
    data = document(*(request(n, prompts=(f"question {n % 30}",)) for n in range(90)))
    whole = load(data)
    assert len(everything(whole)) == 90
    keys = [{content_key(prompt) for prompt in split} for split in (whole.calibration, whole.search, whole.evaluation)]
    assert all(keys)
    assert len(set.union(*keys)) == sum(map(len, keys)) == 30
    assert load(data, seed=1) != whole
    sampled = load(data, trace=False)
    assert len(everything(sampled)) == 30
    assert "60 of its 90 prompts repeat another" in sampled.remark


def test_a_part_of_a_trace_is_its_beginning_and_of_a_sample_some_of_all() -> None:
    data = document(*(request(n, arrival_s=100.0 + n) for n in reversed(range(400))))
    first = everything(load(data, prompts=20))
    assert [prompt.arrival_s for prompt in first] == list(range(20))
    sampled = everything(load(data, prompts=20, trace=False))
    assert len(sampled) == 20
    assert max(prompt.arrival_s or 0 for prompt in sampled) > 100
    assert {p.id for p in sampled} != {p.id for p in everything(load(data, prompts=20, trace=False, seed=1))}
    assert len(everything(load(data, trace=False))) == 160
    assert len(everything(load(data))) == 400


def test_answers_are_references_and_short_ones_a_question_task() -> None:
    def asked(n: int, answer: str | None, finish: str = "stop") -> RecordedRequest:
        return request(n, prompts=(f"q{n}",), answers=(answer,), finish_reasons=(finish,))

    data = document(asked(0, "Paris"), asked(1, " "), asked(2, "cut o", "length"), asked(3, None, "abort"))
    load_ = load(data)
    assert [prompt.references for prompt in everything(load_)] == [("Paris",), (), (), ()]
    assert load_.task == "qa"


def test_what_has_no_answer_is_left_out_and_said() -> None:
    away = {"completion_tokens": (0,), "finish_reasons": ("abort",), "error": "too_many_requests"}
    scored = {"completion_tokens": (0,), "finish_reasons": ("length",), "max_tokens": 0}
    made = load(document(request(0, **away), *(request(n, **scored) for n in (1, 2, 3)), request(4, tools=2)))
    assert [prompt.id for prompt in everything(made)] == ["line-2", "line-3", "line-4", "line-5"]
    assert [prompt.max_tokens for prompt in everything(made)] == [1, 1, 1, 5]
    assert everything(made)[0].arrival_s == 0
    assert "1 requests without an answer were left out" in made.remark
    assert "1 requests had tools or a schema" in made.remark
    with pytest.raises(BadInputError, match="no request that was answered"):
        load(document(request(0, **away)))


def test_more_than_can_be_made_up_is_refused_with_what_can() -> None:
    data = document(*(request(n, prompt_tokens=(MOST_IN_ALL // 10,)) for n in range(20)))
    with pytest.raises(BadInputError, match="--prompts 10"):
        load(data)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"record": 1', "line 2 is not JSON"),
        ('{"prompt": "a"}', "line 2 is not of a record: it has no 'record'"),
        ('{"record": 2}', "line 2 has a wrong 'record', which should be 1"),
        ("[1]", "line 2 is wrong"),
        ("\xff", "line 2"),
    ],
)
def test_bad_lines_are_named(line: str, said: str) -> None:
    good = request().line()
    with pytest.raises(BadInputError) as caught:
        load(good + line.encode("latin-1") + b"\n" + good)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"arrival_s": -1}, "'arrival_s'"),
        ({"completion_tokens": [1, 2]}, "'completion_tokens' should have 1 entries"),
        ({"prompt_tokens": [0]}, "at least one token"),
        ({"prompts": ["a", "b"]}, "'prompts' should have 1 entries"),
        ({"messages": [{"role": "user", "content": "a"}], "prompts": ["a"]}, "exclude 'prompts'"),
        ({"messages": [{"role": "poet", "content": "a"}]}, "'role'"),
        ({"answers": []}, "'answers' should have 1 entries"),
        ({"nonsense": 1}, "it has 'nonsense'"),
        ({"duration_ms": None}, "'duration_ms'"),
    ],
)
def test_wrong_fields_are_named_with_their_line(fields: dict[str, Any], said: str) -> None:
    wrong = json.dumps(json.loads(request().line()) | fields).encode()
    with pytest.raises(BadInputError, match=r"r\.jsonl can't be used: line 2 ") as caught:
        load(request().line() + wrong)
    assert said in str(caught.value)


def test_files_of_ones_own_can_say_when_prompts_came(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text("".join(f'{{"prompt": "q{n % 5}", "arrival_s": {9 - n}}}\n' for n in range(10)), encoding="utf-8")
    trace = everything(workloads.load(str(path), trace=True))
    assert [prompt.prompt for prompt in trace] == [f"q{n % 5}" for n in reversed(range(10))]
    assert [prompt.arrival_s for prompt in trace] == list(range(10))
    assert len(everything(workloads.load(str(path)))) == 5
    path.write_text('{"prompt": "a", "arrival_s": 1}\n{"prompt": "b"}\n{"prompt": "c"}\n', encoding="utf-8")
    with pytest.raises(BadInputError, match=r"'line-2' of w\.jsonl has no 'arrival_s'"):
        workloads.load(str(path), trace=True)
    for spec in (f"{PREFIX}20x5", "hotpotqa"):
        with pytest.raises(BadInputError, match="has no arrival times"):
            workloads.load(spec, trace=True)


@pytest.mark.parametrize("value", ["-1", '"1"', "true", "1e10", "1" + "0" * 400])
def test_moments_that_are_none_are_refused(value: str) -> None:
    with pytest.raises(BadInputError, match=r"line 1 has .*'arrival_s'"):
        jsonl.parse(f'{{"prompt": "a", "arrival_s": {value}}}'.encode(), "w.jsonl")
