"""Step times come from the best source that knows the chip, and say which; what aiconfigurator said is recorded in tests/golden/planner."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from quicksilver import environments
from quicksilver.errors import BadInputError, EngineError
from quicksilver.nouns.instance import Accelerator, Instance
from quicksilver.nouns.prediction import Guessing, Layout, StepTimes
from quicksilver.planner import aiconfigurator, models, step_times
from quicksilver.planner.layouts import layouts

RECORDED = Path(__file__).parent.parent / "golden" / "planner" / "operators.json"


def chip(name: str, system: str = "", bandwidth: float = 3350, **tflops: float) -> Accelerator:
    return Accelerator(
        name=name,
        memory_gb=24 if bandwidth < 1000 else 85,
        bandwidth_gb_s=bandwidth,
        tflops=tflops or {"bf16": 989, "fp8": 1979},
        link_gb_s=450,
        system=system,
        source="made up",
    )


H100 = chip("H100 SXM", "h100_sxm")
A100 = chip("A100 80GB SXM", "a100_sxm", 2039, bf16=312, int8=624)
A100_40 = chip("A100 40GB SXM", "a100_sxm", 1555, bf16=312, int8=624)
A10G = chip("A10G", "", 600, bf16=70, int8=140)
L4 = chip("L4", "l4", 300, bf16=121, fp8=242)


def instance(accelerator: Accelerator | None, count: int = 8) -> Instance:
    return Instance(
        name="made.up",
        accelerator=accelerator,
        accelerators=count,
        cpu="some",
        vcpus=96,
        cores=48,
        memory_gb=1000,
        source="made up",
    )


def worker(tmp_path: Path, answers: str) -> Path:
    """A worker that counts its questions in a file and answers each in its own way."""
    path = tmp_path / "worker.py"
    path.write_text(
        "import json, sys\n"
        f"count = {str(tmp_path / 'asked')!r}\n"
        "for line in sys.stdin:\n"
        "    q = json.loads(line)\n"
        "    open(count, 'a').write(line)\n"
        f"    {answers}\n",
        encoding="utf-8",
    )
    return path


PLAIN = (
    "print(json.dumps({'backend': 'vllm', 'backend_version': '1.0', 'mode': 'SILICON', 'estimated': [],"
    " 'decode_ms': [[s * q['queries'] + c / 1e6 for c in q['contexts']] for s in q['streams']],"
    " 'prefill_ms': [[p + b * q['queries'] for b in q['beside']] for p in q['prompts']]}), flush=True)"
)


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("QUICKSILVER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(step_times, "_said", {})
    monkeypatch.setattr(aiconfigurator, "_running", {})
    kept = (aiconfigurator.python, aiconfigurator._worker_hash)
    for each in kept:
        each.cache_clear()
    yield
    for one in aiconfigurator._running.values():
        with suppress(BrokenPipeError):
            one.said.close()
        one.process.wait(timeout=10)
    for each in kept:
        each.cache_clear()


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[[], list[dict[str, Any]]]]:
    """Put another worker in aiconfigurator's place; what it gives back is what the worker was asked."""

    def use(text: str) -> Callable[[], list[dict[str, Any]]]:
        monkeypatch.setattr(aiconfigurator, "_WORKER", worker(tmp_path, text))
        monkeypatch.setattr(aiconfigurator, "python", lambda: Path(sys.executable))
        asked = tmp_path / "asked"
        return lambda: [json.loads(line) for line in asked.read_text().splitlines()] if asked.exists() else []

    return use


def test_a_question_is_asked_once_and_kept(answers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(PLAIN)
    facts, layout = models.facts("llama-3.1-70b"), Layout(tensor_parallel=8)
    first = step_times.step_times(facts, instance(H100), layout)
    monkeypatch.setattr(step_times, "_said", {})
    assert step_times.step_times(facts, instance(H100), layout) == first
    assert len(asked()) == 1
    assert first.basis == "operators"
    assert first.origin == "aiconfigurator 0.12.0: operators measured with vLLM 1.0 on h100_sxm"
    step_times.step_times(facts, instance(H100), Layout(tensor_parallel=4))
    assert [question["tensor_parallel"] for question in asked()] == [8, 4], "one process answers both"


def test_an_llm_of_any_name_is_asked_for_by_its_shape(answers: Any) -> None:
    asked = answers(PLAIN)
    step_times.step_times(models.facts("mixtral-8x7b-v0.1"), instance(H100), Layout(tensor_parallel=2))
    config = asked()[0]["config"]
    assert config["architectures"] == ["MixtralForCausalLM"]
    assert (config["num_local_experts"], config["num_experts_per_tok"], config["hidden_size"]) == (8, 2, 4096)


def test_a_step_that_guesses_holds_the_drafts_steps_and_the_check(answers: Any) -> None:
    asked = answers(PLAIN)
    facts = models.facts("llama-3.1-70b")
    draft = models.facts("llama-3.2-1b")
    guessing = Guessing(tokens=3, accepted=2, draft_parameters=draft.parameters)
    times = step_times.step_times(facts, instance(H100), Layout(tensor_parallel=8, guessing=guessing))
    assert [(q["queries"], q["config"]["num_hidden_layers"]) for q in asked()] == [(4, 80), (1, 16)]
    column = times.contexts.index(1024)
    at = times.streams.index(16)
    assert times.decode_ms[at][column] == pytest.approx(16 * 4 + 3 * 16, abs=0.01)
    prompt, beside = times.prompts.index(512), times.beside.index(16)
    assert times.prefill_ms[prompt][0] == pytest.approx(512 * 2)
    assert times.prefill_ms[prompt][beside] == pytest.approx((512 + 16 * 4) + (512 + 16) + 2 * 16, abs=0.01)
    assert "3 of the guessing model of 1.24B parameters" in times.remarks[0]


def test_a_draft_with_a_longer_context_than_its_target_goes_as_far_as_that(answers: Any) -> None:
    answers(PLAIN)
    facts = models.facts("llama-3-70b")
    guessing = Guessing(tokens=3, accepted=2, draft_parameters=models.facts("llama-3.2-1b").parameters)
    times = step_times.step_times(facts, instance(H100), Layout(tensor_parallel=8, guessing=guessing))
    assert times.contexts[-1] == 8192


def test_prompt_lookup_only_checks(answers: Any) -> None:
    asked = answers(PLAIN)
    step_times.step_times(
        models.facts("llama-3.1-70b"),
        instance(H100),
        Layout(tensor_parallel=8, guessing=Guessing(tokens=4, accepted=0.6)),
    )
    assert [q["queries"] for q in asked()] == [5]


def test_the_slower_memory_of_a_variant_is_asked_for_and_said(answers: Any) -> None:
    asked = answers(PLAIN)
    facts, layout = models.facts("llama-3.1-70b"), Layout(tensor_parallel=8)
    assert step_times.step_times(facts, instance(A100), layout).remarks == ()
    (remark,) = step_times.step_times(facts, instance(A100_40), layout).remarks
    assert [q["bandwidth_gb_s"] for q in asked()] == [None, 1555]
    assert "scaled to 1,555 GB/s" in remark


@pytest.mark.parametrize("accelerator", [A10G, L4])
def test_a_chip_that_nobody_measured_gets_a_roofline_that_says_so(accelerator: Accelerator) -> None:
    times = step_times.step_times(models.facts("llama-3.1-8b"), instance(accelerator), Layout(weights="int4"))
    assert times.basis == "roofline"
    assert times.remarks[0] == f"nobody measured operators of {accelerator.name}"


def test_what_no_table_has_gets_a_roofline_that_says_why(answers: Any) -> None:
    answers("print(json.dumps({'error': 'no rows for this'}), flush=True)")
    times = step_times.step_times(models.facts("llama-3.1-8b"), instance(H100), Layout())
    assert times.basis == "roofline"
    assert "no rows for this" in times.remarks[0]
    odd = step_times.step_times(models.facts("llama-3.1-8b"), instance(H100), Layout(weights="int3"))
    assert "no operators for int3 weights" in odd.remarks[0]


def test_an_estimate_that_is_far_from_the_roofline_is_not_believed(answers: Any) -> None:
    slow = PLAIN.replace("'SILICON', 'estimated': []", "'HYBRID', 'estimated': ['qkv_gemm']").replace(
        "s * q", "900 + s * q"
    )
    answers(slow)
    for guessing in (None, Guessing(tokens=4, accepted=0.6)):
        layout = Layout(weights="int4", tensor_parallel=8, guessing=guessing)
        times = step_times.step_times(models.facts("llama-3.1-70b"), instance(H100), layout)
        assert times.basis == "roofline"
        assert "times the roofline's, which is not believed" in times.remarks[0]


def test_what_is_estimated_is_named(answers: Any) -> None:
    answers(PLAIN.replace("'SILICON', 'estimated': []", "'HYBRID', 'estimated': ['qkv_gemm']"))
    times = step_times.step_times(
        models.facts("llama-3.1-70b"), instance(H100), Layout(weights="int4", tensor_parallel=8)
    )
    assert times.basis == "operators"
    assert times.remarks == ("no table has these operators in int4, they are estimated (HYBRID mode): qkv_gemm",)


def test_heads_that_cant_be_shared_out_are_refused(answers: Any) -> None:
    answers(PLAIN)
    with pytest.raises(BadInputError, match="9 attention heads can't be shared out evenly over 8"):
        step_times.step_times(models.facts("smollm2-135m"), instance(H100), Layout(tensor_parallel=8))


def test_what_cant_be_said_is_refused(answers: Any) -> None:
    answers(PLAIN)
    facts = models.facts("llama-3.1-70b")
    with pytest.raises(BadInputError, match=r"over 16 accelerators can't run on made\.up, which has 8"):
        step_times.step_times(facts, instance(H100), Layout(tensor_parallel=16))
    with pytest.raises(BadInputError, match="80 layers can't be shared out over 128 stages"):
        step_times.step_times(facts, instance(A10G, 128), Layout(pipeline_parallel=128))
    with pytest.raises(BadInputError, match="doesn't compute in fp8"):
        step_times.step_times(facts, instance(A10G), Layout(weights="fp8", tensor_parallel=8))


def test_without_it_one_sentence_says_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiconfigurator, "PACKAGE", "a-package-that-nobody-has")
    with pytest.raises(EngineError, match="isn't installed; quicksilver engine add planner adds it"):
        step_times.step_times(models.facts("llama-3.1-70b"), instance(H100), Layout(tensor_parallel=8))


def test_a_worker_that_dies_is_one_sentence_and_the_next_question_starts_another(answers: Any) -> None:
    answers("sys.exit(3)")
    facts = models.facts("llama-3.1-70b")
    for _ in range(2):
        with pytest.raises(EngineError, match="ended with 3 before it answered"):
            step_times.step_times(facts, instance(H100), Layout(tensor_parallel=8))


def test_layouts_are_about_twenty_and_only_what_the_chip_has() -> None:
    facts = models.facts("llama-3.1-70b")
    for accelerator in (H100, A100, A10G):
        found = layouts(facts, instance(accelerator))
        assert 12 <= len(found) <= 30
        assert len(set(found)) == len(found)
        for layout in found:
            assert layout.devices <= 8
            needs = {"int4": "bf16"}.get(layout.weights, layout.weights)
            assert needs in accelerator.tflops
            assert layout.guessing is None or layout.guessing.origin.startswith("stated (")
    assert {(one.weights, one.tensor_parallel) for one in layouts(facts, instance(H100))} == {
        ("bf16", 4), ("bf16", 8), ("fp8", 2), ("fp8", 8), ("int4", 1), ("int4", 8),
    }  # fmt: skip
    # Pipelines only where devices are joined over PCIe: over NVLink all-reduces cost little.
    assert not any(one.pipeline_parallel > 1 for one in layouts(facts, instance(H100)))
    apart = A10G.model_copy(update={"link_gb_s": 32.0})
    staged = [one for one in layouts(facts, instance(apart)) if one.pipeline_parallel > 1]
    assert {(one.tensor_parallel, one.pipeline_parallel) for one in staged} == {
        (1, 2), (1, 4), (2, 2), (1, 8), (2, 4),
    }  # fmt: skip
    assert all(one.guessing is None and facts.layers % one.pipeline_parallel == 0 for one in staged)
    eight = [one for one in layouts(models.facts("llama-3.1-8b"), instance(apart)) if one.weights == "int8"]
    assert {(one.tensor_parallel, one.pipeline_parallel) for one in eight} == {
        (1, 1),
        (2, 1),
        (8, 1),
        (1, 2),
        (1, 8),
        (2, 4),
    }
    assert {layout.tensor_parallel for layout in layouts(facts, instance(A10G, 1))} == {1}
    small = layouts(models.facts("smollm2-135m"), instance(H100, 1))
    assert all(layout.guessing is None or layout.guessing.draft_parameters == 0 for layout in small)
    assert {layout.weights for layout in layouts(facts, instance(None, 0))} == {"bf16", "int8", "int4"}


def recorded() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("case", recorded(), ids=lambda case: case["name"])
def test_what_aiconfigurator_said_becomes_step_times(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded questions are still the ones that are asked, and their answers still the step times that they became."""

    def answer(question: dict[str, Any]) -> Any:
        plain = json.loads(json.dumps(question))
        return next(one["answer"] for one in case["asked"] if one["question"] == plain)

    monkeypatch.setattr(aiconfigurator, "ask", answer)
    layout = Layout.model_validate(case["layout"])
    accelerator = Accelerator.model_validate(case["chip"])
    times = step_times.step_times(models.facts(case["model"]), instance(accelerator), layout)
    assert times == StepTimes.model_validate(case["times"])


def test_a_70b_on_eight_h100_is_in_the_region_of_what_is_measured_elsewhere() -> None:
    """The bf16 weights of one device, 17.6 GB, take 5.3 ms at its 3,350 GB/s; served ones take about twice that."""
    times = StepTimes.model_validate(next(case["times"] for case in recorded() if case["name"] == "70b bf16 h100"))
    assert 5.3 < times.decode_ms[0][times.contexts.index(1024)] < 15


@pytest.mark.slow
def test_the_recorded_answers_are_aiconfigurators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the environment is in the home of whoever runs this
    aiconfigurator.python.cache_clear()
    try:
        aiconfigurator.python()
    except EngineError as error:
        pytest.skip(str(error))
    assert environments.names()
    for case in recorded():
        for one in case["asked"]:
            assert aiconfigurator.ask(one["question"]) == one["answer"]
