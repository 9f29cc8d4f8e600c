"""Workloads: by name and by file, their splits, their hashes, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from quicksilver.errors import BadInputError
from quicksilver.nouns.workload import Message, Prompt, Workload
from quicksilver.sources import workloads
from quicksilver.sources.splits import Item, assemble, content_key, divide, sizes

EXAMPLE = Path(__file__).parents[2] / "examples" / "workloads" / "support.jsonl"
TINY: list[dict[str, object]] = [
    {"prompt": f"Question {i}?", "reference": f"answer {i}", "group": "ab"[i % 2]} for i in range(5)
]


def write(path: Path, records: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def everything(workload: Workload) -> list[Prompt]:
    return [*workload.calibration, *workload.search, *workload.evaluation]


def text(prompt: Prompt) -> str:
    return prompt.messages[-1].content if prompt.messages else prompt.prompt or ""


def make(items: list[Item], prompts: int | None = None, seed: int = 0) -> Workload:
    return assemble("w", items, prompts=prompts, seed=seed, task="none", max_tokens=9, licence="-")


def plain(count: int) -> list[Item]:
    return [Item(Prompt(id=str(i), prompt=f"p{i}")) for i in range(count)]


@given(count=st.integers(3, 400), prompts=st.none() | st.integers(3, 400), seed=st.integers(-5, 5))
def test_splits_share_nothing_and_none_is_empty(count: int, prompts: int | None, seed: int) -> None:
    workload = make(plain(count), prompts, seed)
    splits = [{p.id for p in s} for s in (workload.calibration, workload.search, workload.evaluation)]
    assert all(splits)
    assert len(set.union(*splits)) == sum(map(len, splits)) == min(count, prompts or 160)


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (3, (1, 1, 1)),
        (4, (1, 1, 2)),
        (6, (2, 2, 2)),
        (80, (16, 32, 32)),
        (120, (24, 48, 48)),
        (160, (64, 48, 48)),
        (400, (64, 168, 168)),
    ],
)
def test_sizes_of_splits(total: int, expected: tuple[int, int, int]) -> None:
    assert tuple(sizes(total).values()) == expected


@given(
    topics=st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=3), min_size=3, max_size=60),
    seed=st.integers(0, 9),
)
def test_what_is_shared_stays_in_one_split(topics: list[list[int]], seed: int) -> None:
    items = [
        Item(Prompt(id=str(i), prompt=f"p{i}", references=tuple(map(str, keys))), frozenset(map(str, keys)))
        for i, keys in enumerate(topics)
    ]
    taken = divide(items, len(items), seed)
    topics_of = [{key for p in split for key in p.references} for split in taken.values()]
    assert len(set.union(*topics_of)) == sum(map(len, topics_of))


def test_groups_are_spread_over_the_splits() -> None:
    items = [Item(Prompt(id=str(i), prompt=f"p{i}", group="abcde"[i % 5])) for i in range(80)]
    workload = make(items)
    for split, share in ((workload.calibration, 16 / 5), (workload.search, 32 / 5), (workload.evaluation, 32 / 5)):
        counts = Counter(p.group for p in split)
        assert all(abs(counts[group] - share) < 1.5 for group in "abcde"), counts


def test_a_part_of_the_prompts_holds_the_groups_in_proportion() -> None:
    items = [Item(Prompt(id=str(i), prompt=f"p{i}", group="rare" if i % 10 == 0 else "usual")) for i in range(200)]
    counts = Counter(p.group for p in everything(make(items, prompts=50)))
    assert counts == {"usual": 45, "rare": 5}


def test_the_order_of_the_lines_does_not_change_the_splits(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"prompt": f"p{i}", "id": str(i)} for i in range(30)]
    one = workloads.load(write(tmp_path / "a.jsonl", records))
    other = workloads.load(write(tmp_path / "a.jsonl", records[::-1]))
    assert one.hash == other.hash


def test_an_arrival_is_of_a_workloads_identity_where_there_is_one() -> None:
    """The golden hash of one without is what it was before arrivals were."""
    plain, timed = (
        Workload(name="w", search=(Prompt(id="0", prompt="q", arrival_s=when),), seed=1) for when in (None, 0.0)
    )
    assert "arrival_s" not in plain.identity()["search"][0]
    assert plain.hash == "54d4f2abff42cd50"
    assert timed.hash != plain.hash and timed.search[0].hash != plain.search[0].hash
    with pytest.raises(ValidationError):
        Prompt(id="0", prompt="q", arrival_s=-0.1)


def test_a_seed_gives_the_same_workload_and_another_seed_another() -> None:
    items = plain(40)
    assert make(items, 20, 1) == make(items, 20, 1)
    assert {p.id for p in make(items, 20, 1).evaluation} != {p.id for p in make(items, 20, 2).evaluation}


def test_the_same_content_is_taken_once(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"prompt": f"p{i}"} for i in range(4)]
    records += [{"prompt": " p1\n"}, {"messages": [{"role": "user", "content": "p2"}]}]
    workload = workloads.load(write(tmp_path / "w.jsonl", records))
    assert sorted(text(p) for p in everything(workload)) == ["p0", "p1", "p2", "p3"]
    assert workload.remark == "2 of its 6 prompts repeat another and were left out"


def test_content_tells_conversations_apart() -> None:
    def talk(*turns: tuple[str, str]) -> str:
        messages = tuple(Message.model_validate({"role": role, "content": content}) for role, content in turns)
        return content_key(Prompt(id="x", messages=messages))

    assert talk(("user", "a"), ("user", "b")) != talk(("user", "a b"))
    assert talk(("system", "a"), ("user", "b")) != talk(("user", "a"), ("user", "b"))


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_prompts_are_refused(tmp_path: Path, count: int) -> None:
    path = write(tmp_path / "few.jsonl", TINY[:count] * 3)
    with pytest.raises(BadInputError, match=rf"few\.jsonl has {count} different prompts?, and .* at least 3: one each"):
        workloads.load(path)


@pytest.mark.parametrize("prompts", [-1, 0, 2])
def test_too_few_prompts_asked_for_are_refused(prompts: int) -> None:
    for spec in (str(EXAMPLE), "synthetic:8x8"):
        with pytest.raises(BadInputError, match=rf"^{prompts} prompts are too few: a workload needs at least 3"):
            workloads.load(spec, prompts=prompts)


def test_more_prompts_than_there_are() -> None:
    workload = workloads.load(str(EXAMPLE), prompts=1000)
    assert len(everything(workload)) == 12
    assert workload.remark == "1000 prompts were asked for, and it gives 12"


def test_the_hash_is_the_same_in_another_process_and_folder(tmp_path: Path) -> None:
    """The golden hash: a change of it makes every kept result look like another workload's."""
    here = workloads.load(write(tmp_path / "tiny.jsonl", TINY))
    (tmp_path / "elsewhere").mkdir()
    path = write(tmp_path / "elsewhere" / "tiny.jsonl", TINY)
    code = f"from quicksilver.sources import workloads; print(workloads.load({path!r}).hash)"
    there = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert here.hash == there.stdout.strip() == "2ddd440f4038b3d3"
    assert workloads.load("synthetic:20x5", prompts=6).hash == "9b14b2bd60ffdec0"


def test_the_example_is_valid_and_mixed() -> None:
    workload = workloads.load(str(EXAMPLE))
    prompts = everything(workload)
    assert (len(prompts), workload.name, workload.task) == (12, "support.jsonl", "qa")
    assert {p.group for p in prompts} == {"policy", "extraction", "writing", "conversation"}
    assert any(p.messages for p in prompts)
    assert any(p.prompt for p in prompts)


@pytest.mark.parametrize(
    ("reference", "task"), [(None, "none"), ("Paris", "qa"), ("A summary of more than ten words " * 3, "summary")]
)
def test_references_decide_how_answers_are_scored(tmp_path: Path, reference: str | None, task: str) -> None:
    records: list[dict[str, object]] = [{"prompt": f"p{i}", "reference": reference} for i in range(3)]
    assert workloads.load(write(tmp_path / "w.jsonl", records)).task == task


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hotpoqa", r"no workload or file 'hotpoqa'; did you mean 'hotpotqa'\?"),
        ("mtbench", r"did you mean 'mt-bench'\?"),
        ("./nothing/here.jsonl", "no file './nothing/here.jsonl'; built-in workloads: hotpotqa, .*, synthetic:622x250"),
        ("", "no workload or file ''; built-in workloads"),
        ("a\0b.jsonl", "no file"),
        ("x" * 5000, "no workload or file"),
        ("/dev/null", "is a device"),
    ],
)
def test_unknown_names(spec: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        workloads.load(spec)


def test_a_misspelt_file_gets_the_near_one(tmp_path: Path) -> None:
    write(tmp_path / "prompts.jsonl", [])
    with pytest.raises(BadInputError, match=r"no file '.*/promtps.jsonl'; did you mean '.*/prompts.jsonl'\?"):
        workloads.load(str(tmp_path / "promtps.jsonl"))


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="is a directory; give a JSON Lines file"):
        workloads.load(str(tmp_path))


def test_what_fits_the_context() -> None:
    workload = make([Item(Prompt(id=i, prompt=i, max_tokens=n)) for i, n in (("a", 10), ("b", None), ("c", 50))])
    workloads.fits(workload, {"a": 90, "b": 91, "c": 50}, 100)
    with pytest.raises(BadInputError, match=r"prompt 'b' of w is 2,001 tokens long, and the model's context is 100"):
        workloads.fits(workload, {"a": 300, "b": 2001, "c": 1}, 100)
    with pytest.raises(BadInputError, match=r"prompt 'a' of w is 100 tokens long, and the model's context is 100"):
        workloads.fits(workload, {"a": 100, "b": 1, "c": 99}, 100)
    with pytest.raises(BadInputError, match=r"'c' of w is 51 tokens long and its answer may take 50 more, .* of 100"):
        workloads.fits(workload, {"a": 90, "b": 1, "c": 51}, 100)


def test_names_are_described_in_one_line() -> None:
    assert {"hotpotqa", "hotpotqa-short", "squad", "mt-bench", "humaneval"} < set(workloads.names())
    for name in workloads.names():
        assert "tokens" in workloads.describe(name)
        assert "\n" not in workloads.describe(name)
    with pytest.raises(BadInputError, match="did you mean 'squad'"):
        workloads.describe("sqad")


@pytest.mark.parametrize("shape", ["4x1", "622x250", "1000x16"])
def test_synthetic_prompts_have_their_length_in_words_and_marks(shape: str) -> None:
    workload = workloads.load(f"synthetic:{shape}", prompts=9)
    tokens, answer = map(int, shape.split("x"))
    for prompt in everything(workload):
        assert len(text(prompt).replace(".", " .").replace(",", " ,").split()) == tokens
        assert (prompt.max_tokens, prompt.ignore_eos) == (answer, True)


def test_synthetic_prompts_differ_from_their_first_words_on() -> None:
    starts = Counter(text(p)[:30] for p in everything(workloads.load("synthetic:100x10")))
    assert starts.most_common(1)[0][1] <= 2  # prefix caching has nothing to find
    assert workloads.load("synthetic:100x10", seed=1).hash != workloads.load("synthetic:100x10", seed=2).hash


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("synthetic", "is not a synthetic shape; write synthetic:INPUTxOUTPUT in tokens, such as synthetic:622x250"),
        ("synthetic:abc", "is not a synthetic shape"),
        ("synthetic:5", "is not a synthetic shape"),
        ("synthetic:1.5x2", "is not a synthetic shape"),
        ("synthetic:-5x5", "is not a synthetic shape"),
        ("synthetic:٣٢x5", "is not a synthetic shape"),
        ("synthetic:0x5", "has 0 input tokens; give 4 to 131,072"),
        ("synthetic:5x0", "has 0 output tokens; give 1 to 131,072"),
        ("synthetic:999999999x5", "has 999,999,999 input tokens"),
    ],
)
def test_bad_shapes(spec: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        workloads.load(spec)


def test_too_many_synthetic_tokens_are_refused() -> None:
    with pytest.raises(
        BadInputError, match="100,000 prompts of 100,000 tokens are too many to make; at most 40 can be"
    ):
        workloads.load("synthetic:100000x5", prompts=100_000)
