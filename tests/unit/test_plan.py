"""Plan: legal orders, sentences for illegal ones, keys, and whether the machine has room."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver import hardware
from quicksilver.build import plan as planning
from quicksilver.build import store
from quicksilver.errors import BadInputError, IllegalRecipeError, NotEnoughError
from quicksilver.nouns import Model, Prompt, Recipe, Technique
from quicksilver.sources import models
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.techniques import find, make
from quicksilver.techniques import names as technique_names
from quicksilver.testing.tiny import make_tiny_gguf, make_tiny_model

CALIBRATION = (Prompt(id="a", prompt="The river ran behind the houses."), Prompt(id="b", prompt="She wrote a letter."))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("plan") / "tiny")


@pytest.fixture
def model(tiny: Path) -> Model:
    return models.resolve(str(tiny))


def plan(
    model: Model, stack: Sequence[Any] = (), calibration: Sequence[Prompt] = CALIBRATION, **fields: Any
) -> planning.Plan:
    return planning.make(Recipe(str(model.path), [make(t) for t in stack], engine="fake", **fields), model, calibration)


# Orders


def holds(order: list[Technique], start: frozenset[str] = planning.START) -> bool:
    """Whether what each step needs is there when its turn comes."""
    state = start
    for technique in order:
        if not technique.needs <= state:
            return False
        state = (state - technique.takes) | technique.gives
    return True


def has_legal_order(stack: list[Technique], start: frozenset[str] = planning.START) -> bool:
    return any(holds(list(order), start) for order in itertools.permutations(stack))


def whole(stack: list[Technique]) -> list[Technique]:
    return stack if any(t.name() == "as-is" for t in stack) else [make("as-is"), *stack]


@pytest.fixture(scope="module")
def everything(tiny: Path) -> list[Technique]:
    given_fields = {name: {"name": name, "model": str(tiny)} for name in ("draft", "eagle")}
    return [make(given_fields.get(name, name)) for name in technique_names()]


def stacks(everything: list[Technique]) -> st.SearchStrategy[list[Technique]]:
    return st.lists(st.sampled_from(everything), max_size=5)


@given(data=st.data())
def test_finds_an_order_exactly_where_there_is_one(everything: list[Technique], data: st.DataObject) -> None:
    stack = data.draw(stacks(everything))
    start = planning.START | data.draw(st.sampled_from([frozenset(), frozenset({"gguf grid"})]))
    if has_legal_order(whole(stack), start):
        found = planning.order(stack, start)
        assert holds(found, start)
        assert sorted(t.hash for t in found) == sorted(t.hash for t in whole(stack))
    else:
        with pytest.raises(IllegalRecipeError):
            planning.order(stack, start)


@given(data=st.data())
def test_any_permutation_of_a_legal_stack_has_a_legal_order_of_the_same_steps(
    everything: list[Technique], data: st.DataObject
) -> None:
    stack = data.draw(stacks(everything).filter(lambda s: has_legal_order(whole(s))))
    shuffled = data.draw(st.permutations(stack))
    found = planning.order(shuffled)
    assert holds(found)
    assert sorted(t.hash for t in found) == sorted(t.hash for t in planning.order(stack))
    assert planning.order(shuffled) == found


@given(data=st.data())
def test_an_illegal_stack_gets_one_sentence_that_names_its_steps(
    everything: list[Technique], data: st.DataObject
) -> None:
    stack = data.draw(stacks(everything).filter(lambda s: not has_legal_order(whole(s))))
    with pytest.raises(IllegalRecipeError) as caught:
        planning.order(stack)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    named = [t.name() for t in whole(stack) if t.name() in sentence]
    assert len(set(named)) >= 2 or "stands twice" in sentence or "which neither the model nor another step" in sentence
    with pytest.raises(IllegalRecipeError) as again:
        planning.order(stack)
    assert str(again.value) == sentence


def test_a_legal_order_given_is_kept(everything: list[Technique]) -> None:
    by_name = {t.name(): t for t in everything}
    stack = [by_name[n] for n in ("as-is", "int8", "draft", "kv-cache", "activations", "prefix-caching", "compile")]
    assert planning.order(stack) == stack


def test_what_compiles_comes_after_what_changes_weights() -> None:
    assert [t.name() for t in planning.order([make("compile"), make("int8")])] == ["as-is", "int8", "compile"]


@pytest.mark.parametrize(
    ("stack", "sentence"),
    [
        (["int8", "awq"], "awq can't be stacked on int8: both need float weights, which the first uses up."),
        (
            ["w8a8", "gptq", "compile"],
            "gptq can't be stacked on w8a8: both need float weights, which the first uses up.",
        ),
        (["int8", "int8"], "int8 stands twice in the recipe: it can be applied once."),
        (["as-is", "as-is"], "as-is stands twice in the recipe: it can be applied once."),
        (["kv-cache", "kv-cache"], "kv-cache stands twice in the recipe: it can be applied once."),
        (["gguf-grid"], "gguf-grid needs gguf grid, which neither the model nor another step of the recipe gives."),
        (
            ["w8a8", "activations"],
            "activations needs integer weights, which neither the model nor another step of the recipe gives.",
        ),
    ],
)
def test_sentences(stack: list[str], sentence: str) -> None:
    with pytest.raises(IllegalRecipeError) as caught:
        planning.order([make(t) for t in stack])
    assert str(caught.value) == sentence


class _Named(Technique):
    called: str

    @classmethod
    def name(cls) -> str:
        return cls.__name__.lower()


def _technique(name: str, needs: str = "", takes: str = "", gives: str = "") -> Technique:
    sets = {key: frozenset(text.split()) for key, text in {"needs": needs, "takes": takes, "gives": gives}.items()}
    made: Technique = type(name, (_Named,), {**sets, "__module__": __name__})(called=name)
    return made


@given(
    rules=st.lists(st.tuples(*[st.frozensets(st.sampled_from("abc"), max_size=2)] * 3), max_size=4),
    start=st.frozensets(st.sampled_from("abc")),
)
def test_finds_an_order_for_techniques_of_any_kind(
    rules: list[tuple[frozenset[str], frozenset[str], frozenset[str]]], start: frozenset[str]
) -> None:
    stack = [make("as-is")]
    for number, (needs, takes, gives) in enumerate(rules):
        stack.append(_technique(f"T{number}", *(" ".join(words) for words in (needs, takes, gives))))
    if has_legal_order(stack, start | {"hf"}):
        assert holds(planning.order(stack, start | {"hf"}), start | {"hf"})
    else:
        with pytest.raises(IllegalRecipeError, match=r"^t\d .*\.$"):
            planning.order(stack, start | {"hf"})


def test_a_step_after_one_that_uses_up_what_it_needs() -> None:
    burn = _technique("Burn", needs="hf", takes="plain", gives="ash")
    warm = _technique("Warm", needs="plain ash")
    with pytest.raises(
        IllegalRecipeError, match=r"^warm can't be stacked on burn: it needs plain, which that uses up.$"
    ):
        planning.order([warm, burn], frozenset({"hf", "plain"}))


def test_two_steps_that_wait_for_each_other() -> None:
    hen, egg = _technique("Hen", needs="egg", gives="hen"), _technique("Egg", needs="hen", gives="egg")
    with pytest.raises(IllegalRecipeError, match=r"^hen and egg can't be stacked"):
        planning.order([hen, egg], frozenset({"hf"}))


def test_a_long_stack_without_an_order_is_refused_at_once() -> None:
    many = [_technique(f"T{n}", needs="hf", gives=f"g{n}") for n in range(12)]
    with pytest.raises(IllegalRecipeError, match=r"^late needs nothing-gives-it"):
        planning.order([*many, _technique("Late", needs="nothing-gives-it")], frozenset({"hf"}))


# Keys


def keys(made: planning.Plan) -> list[str]:
    return [step.key for step in made.steps]


def test_the_same_inputs_have_the_same_keys_in_another_process(model: Model, tiny: Path) -> None:
    made = plan(model, ["awq", "prompt-lookup"])
    script = (
        "import json, sys\nfrom quicksilver.build import plan\nfrom quicksilver.nouns import Prompt, Recipe\n"
        "from quicksilver.sources import models\nfrom quicksilver.techniques import make\n"
        "m = models.resolve(sys.argv[1])\nprompts = [Prompt.model_validate(p) for p in json.loads(sys.argv[2])]\n"
        "p = plan.make(Recipe(sys.argv[1], [make('awq'), make('prompt-lookup')], engine='fake'), m, prompts)\n"
        "print(json.dumps([p.key, [s.key for s in p.steps]]))"
    )
    prompts = json.dumps([p.model_dump(mode="json") for p in CALIBRATION])
    for seed in ("1", "2"):
        shown = subprocess.run(
            [sys.executable, "-c", script, str(tiny), prompts],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(shown.stdout) == [made.key, keys(made)]


def test_settings_change_the_artefact_and_not_its_weights(model: Model) -> None:
    made = [
        plan(model, ["int8"]),
        plan(model, ["int8", "prompt-lookup"]),
        plan(model, ["int8", {"name": "kv-cache", "precision": "u8"}]),
        plan(model, ["int8", "prefix-caching"], settings={"threads": 1}),
    ]
    assert len({tuple(keys(p)) for p in made}) == 1
    assert len({p.key for p in made}) == len(made)


def test_the_order_of_settings_changes_nothing_but_words(model: Model) -> None:
    one, other = plan(model, ["kv-cache", "prompt-lookup"]), plan(model, ["prompt-lookup", "kv-cache"])
    assert keys(one) == keys(other)


def test_fields_change_the_keys_of_their_step_and_what_follows(model: Model, tiny: Path) -> None:
    draft = {"name": "draft", "model": str(tiny)}
    one, other = plan(model, ["int8", draft]), plan(model, [{"name": "int8", "mode": "symmetric"}, draft])
    assert [a == b for a, b in zip(keys(one), keys(other), strict=True)] == [True, False, False]


def test_calibration_changes_the_keys_of_what_is_calibrated(model: Model) -> None:
    others = (CALIBRATION[0], Prompt(id="b", prompt="Another letter."))
    assert keys(plan(model, ["int8"])) == keys(plan(model, ["int8"], others))
    one, other = keys(plan(model, ["gptq"])), keys(plan(model, ["gptq"], others))
    assert one[0] == other[0]
    assert one[1] != other[1]


def test_what_a_calibration_prompt_is_called_changes_nothing(model: Model) -> None:
    renamed = tuple(p.model_copy(update={"id": f"x{p.id}", "references": ("answer",)}) for p in CALIBRATION)
    assert keys(plan(model, ["gptq"])) == keys(plan(model, ["gptq"], renamed))


def test_another_version_of_a_tool_is_another_build(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan(model, ["int8"])
    monkeypatch.setattr("quicksilver.engines.fake.Fake.tools", lambda self: {"rounder": "2.0"})
    assert not set(keys(before)) & set(keys(plan(model, ["int8"])))


def test_a_technique_for_another_engines_format_is_refused(model: Model) -> None:
    class Grouse(Technique):
        formats = frozenset({"gguf"})

        @classmethod
        def name(cls) -> str:
            return "grouse"

    with pytest.raises(IllegalRecipeError) as caught:
        planning.make(Recipe(str(model.path), [make("int8"), Grouse()], engine="fake"), model)
    assert str(caught.value) == "grouse is for gguf, and the engine fake serves fake."


def test_as_is_in_the_users_own_list_is_not_doubled(model: Model) -> None:
    assert keys(plan(model, ["as-is"])) == keys(plan(model))
    assert keys(plan(model, ["int8", "as-is"])) == keys(plan(model, ["int8"]))
    assert [s.label for s in plan(model, ["int8", {"name": "as-is", "precision": "bf16"}]).steps] == [
        "as-is(precision=bf16)",
        "int8",
    ]


def test_a_copy_of_the_draft_is_the_same_draft_and_a_changed_one_is_not(
    model: Model, tiny: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    original = plan(model, [{"name": "draft", "model": str(tiny)}])
    assert keys(plan(model, [{"name": "draft", "model": str(copy)}])) == keys(original)
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": 20_000.0}), encoding="utf-8")
    assert keys(plan(model, [{"name": "draft", "model": str(copy)}])) != keys(original)


# What doesn't fit the model


@pytest.mark.parametrize("name", ["int4", "awq", "gptq", "mixed"])
@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (128, "128 doesn't divide its hidden size of 64"),
        (48, "48 doesn't divide its hidden size of 64"),
        (0, "a group size is positive, or -1"),
        (-2, "a group size is positive, or -1"),
    ],
)
def test_a_group_size_that_does_not_fit_is_refused_with_the_reason(
    model: Model, name: str, size: int, reason: str
) -> None:
    with pytest.raises(IllegalRecipeError, match=reason):
        plan(model, [{"name": name, "group_size": size}])


def test_group_sizes_are_held_against_every_width(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "odd", hidden_size=64, intermediate_size=96)
    with pytest.raises(IllegalRecipeError, match="64 doesn't divide its intermediate size of 96"):
        plan(models.resolve(str(folder)), [{"name": "int4", "group_size": 64}])
    facts = models.resolve(str(folder)).facts.model_copy(update={"intermediate_size": 128, "head_dim": 24})
    with pytest.raises(IllegalRecipeError, match="64 doesn't divide its attention width of 96"):
        make({"name": "int4", "group_size": 64}).check(facts)


def test_whole_rows_always_fit(model: Model) -> None:
    assert plan(model, [{"name": "int4", "group_size": -1}]).steps


def test_only_a_gguf_with_a_grid_has_one_to_keep(model: Model, tmp_path: Path) -> None:
    with_grid = models.resolve(str(make_tiny_gguf(tmp_path / "q4.gguf", weights="Q4_0")))
    without = models.resolve(str(make_tiny_gguf(tmp_path / "f16.gguf", weights="F16")))
    assert [s.label for s in plan(with_grid, ["gguf-grid"]).steps] == ["convert GGUF", "as-is", "gguf-grid"]
    for other in (model, without):
        with pytest.raises(IllegalRecipeError, match=r"^gguf-grid needs gguf grid"):
            plan(other, ["gguf-grid"])


@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_a_draft_with_another_vocabulary_is_refused(kind: str, tiny: Path, tmp_path: Path) -> None:
    target = tiny if kind == "hf" else make_tiny_gguf(tmp_path / "target.gguf")
    model = models.resolve(str(target))
    same = make_tiny_model(tmp_path / "same", layers=1)
    other = make_tiny_model(tmp_path / "other", layers=1, vocab_size=480)
    assert plan(model, [{"name": "draft", "model": str(same)}]).steps[-1].label == "draft(model=same)"
    with pytest.raises(
        IllegalRecipeError, match=r"^The draft other can't guess for .* 32 tokens \(of 480 and 512\)\.$"
    ):
        plan(model, [{"name": "draft", "model": str(other)}])


def test_a_draft_that_is_not_there_or_not_safe_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"config\.json is missing"):
        plan(model, [{"name": "draft", "model": str(tmp_path / "nowhere")}])
    pickled = make_tiny_model(tmp_path / "pickled", layers=1)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(BadInputError, match="pickle"):
        plan(model, [{"name": "draft", "model": str(pickled)}])


# Room


def test_says_that_memory_is_short_before_anything_starts(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=300_000_000, total=8_000_000_000))
    with pytest.raises(NotEnoughError, match=r"^The step as-is needs about \d+ MB of memory and 300 MB are free\.$"):
        planning.check_room(plan(model), store.root())


def test_says_that_the_disk_is_short_before_anything_starts(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, used=10**9, free=100_000))
    with pytest.raises(
        NotEnoughError, match=r"^Building int8 needs about \d+ MB of disk and 0 MB are free at .*store\.$"
    ):
        planning.check_room(plan(model, ["int8"]), store.root())


def test_counts_what_was_measured_last_time(model: Model) -> None:
    made = plan(model, ["int8"])
    planning.remember(made.steps[1], made, seconds=12.0, memory_mb=10**9)
    again = plan(model, ["int8"])
    assert (again.steps[1].last_s, again.steps[1].memory_mb) == (12.0, 10**9)
    assert again.expected_s is None
    with pytest.raises(NotEnoughError, match="int8 needs about 1,000,000,000 MB"):
        planning.check_room(again, store.root())


def _cgroup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, membership: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (tmp_path / "membership").write_text(membership, encoding="utf-8")
    monkeypatch.setattr(hardware, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(hardware, "PROC_CGROUP", tmp_path / "membership")


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        (
            "0::/app/worker\n",
            {
                "app/memory.max": "500000000\n",
                "app/memory.current": "480000000\n",
                "app/memory.stat": "anon 1\ninactive_file 80000000\n",
                "app/worker/memory.max": "max\n",
                "app/worker/memory.current": "1\n",
            },
        ),
        (
            "4:memory:/docker/abc\n0::/\n",
            {
                "memory/memory.limit_in_bytes": "500000000\n",
                "memory/memory.usage_in_bytes": "480000000\n",
                "memory/memory.stat": "total_inactive_file 80000000\n",
            },
        ),
    ],
)
def test_counts_a_containers_limit(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, membership: str, files: dict[str, str]
) -> None:
    _cgroup(monkeypatch, tmp_path, membership, files)
    assert hardware.available_memory() == 100_000_000
    with pytest.raises(NotEnoughError, match="100 MB are free"):
        planning.check_room(plan(model), store.root())


def test_a_container_without_a_limit_has_the_machines_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _cgroup(monkeypatch, tmp_path, "4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9223372036854771712\n"})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=123, total=456))
    assert hardware.available_memory() == 123


def test_techniques_found_here_are_all_in_the_order_tests(everything: list[Technique]) -> None:
    assert {type(t) for t in everything} == {find(name) for name in technique_names()}
