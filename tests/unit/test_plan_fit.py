"""What a layout takes of a device's memory: each line against real models' shapes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver.errors import BadInputError
from quicksilver.nouns import ModelFacts
from quicksilver.nouns.prediction import Guessing, Layout, MemoryFit, PlannedLoad
from quicksilver.planner import models
from quicksilver.planner.fit import fit, replicas
from quicksilver.sources.instances import find
from quicksilver.testing.large import LARGE

LOAD = PlannedLoad(input_tokens=622, output_tokens=250, streams=16)
LLAMA_8B = LARGE.model_copy(update={"parameters": 8_030_261_248})
LLAMA_70B = LARGE.model_copy(
    update={"layers": 80, "hidden_size": 8192, "intermediate_size": 28_672, "heads": 64, "parameters": 70_553_706_496}
)


def line(found: MemoryFit, what: str) -> float:
    (gb,) = (each.gb for each in found.lines if each.what.startswith(what))
    return gb


def on(name: str, layout: Layout, facts: ModelFacts = LLAMA_70B, load: PlannedLoad = LOAD) -> MemoryFit:
    return fit(facts, layout, find(name), load)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.1-70B", 70_553_706_496),
        ("mistralai/Mistral-7B-v0.3", 7_248_023_552),
        ("mistralai/Mixtral-8x7B-v0.1", 46_702_792_704),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008),
    ],
)
def test_all_parameters_of_real_models_are_in_the_lines(name: str, parameters: int) -> None:
    facts = models.facts(name)
    assert facts.parameters == parameters
    whole = on("p5.48xlarge", Layout(), facts)
    assert line(whole, "weights") + line(whole, "embedding") == pytest.approx(2 * parameters / 1e9)
    eighth = on("p5.48xlarge", Layout(tensor_parallel=8), facts)
    assert 8 * (line(eighth, "weights") + line(eighth, "embedding")) == pytest.approx(2 * parameters / 1e9)


def test_70b_in_4_bits_is_as_large_as_published_checkpoints() -> None:
    # hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4: 39.77 GB of safetensors.
    found = on("g5.12xlarge", Layout(weights="int4", tensor_parallel=4))
    assert 4 * (line(found, "weights") + line(found, "embedding")) == pytest.approx(39.77, rel=0.01)


def test_the_headline_machines() -> None:
    assert on("p5.48xlarge", Layout(tensor_parallel=8)).fits
    assert on("g5.12xlarge", Layout(weights="int4", tensor_parallel=4)).fits
    assert not on("g5.12xlarge", Layout(tensor_parallel=4)).fits
    assert on("p4d.24xlarge", Layout(tensor_parallel=8)).fits
    assert not on("p4d.24xlarge", Layout(tensor_parallel=2)).fits
    assert not on("p5.48xlarge", Layout(tensor_parallel=1)).fits


def test_the_cache_is_the_configs_arithmetic() -> None:
    found = on("p5.48xlarge", Layout(tensor_parallel=8))
    # 880 tokens in blocks of 16; of eight heads each device has one.
    assert line(found, "KV cache") == pytest.approx(16 * 880 * 2 * 80 * 1 * 128 * 2 / 1e9)
    assert line(on("p5.48xlarge", Layout(tensor_parallel=8, cache="fp8")), "KV cache") == pytest.approx(
        line(found, "KV cache") / 2
    )


def test_more_devices_than_heads_keep_copies_of_them() -> None:
    few = LLAMA_70B.model_copy(update={"kv_heads": 2})
    two = on("p5.48xlarge", Layout(tensor_parallel=2), few)
    eight = on("p5.48xlarge", Layout(tensor_parallel=8), few)
    # Four copies of the model share the 16 streams, so one of them has a quarter.
    assert line(eight, "KV cache") == pytest.approx(4 * line(two, "KV cache"))


def test_streams_are_spread_over_copies() -> None:
    assert replicas(Layout(tensor_parallel=2), find("p5.48xlarge")) == 4
    one = on("g6e.48xlarge", Layout(), LLAMA_8B)
    assert "2 streams" in next(each.how for each in one.lines if each.what.startswith("KV cache"))


def test_a_draft_is_counted_with_its_cache() -> None:
    guess = Guessing(tokens=3, accepted=2, draft_parameters=1_235_814_400)
    without, found = (
        on("p5.48xlarge", Layout(tensor_parallel=8)),
        on("p5.48xlarge", Layout(tensor_parallel=8, guessing=guess)),
    )
    assert line(found, "draft, 16 bits") == pytest.approx(2 * 1.2358144 / 8)
    assert line(found, "draft's KV cache") == pytest.approx(16 * 880 * 2 * 16 * 8 * 64 * 2 / 8 / 1e9)
    assert found.total_gb > without.total_gb
    lookup = on("p5.48xlarge", Layout(tensor_parallel=8, guessing=Guessing(tokens=3, accepted=1)))
    assert not [each for each in lookup.lines if each.what.startswith("draft")]


def test_the_capacity_says_what_it_is() -> None:
    found = on("p5.48xlarge", Layout(tensor_parallel=8))
    assert found.capacity_gb == pytest.approx(0.9 * 85.52)
    assert found.capacity_how == "0.9 x 85.52 GB of one H100 SXM (vLLM's gpu_memory_utilization)"
    cpu = on("c7i.4xlarge", Layout(weights="int8"), LLAMA_8B)
    assert cpu.capacity_gb == pytest.approx(0.9 * 32 * 2**30 / 1e9, rel=1e-3)
    assert not [each for each in cpu.lines if "NCCL" in each.how]


def test_on_a_cpu_the_weights_are_laid_out_beside_the_file() -> None:
    one = on("c7i.4xlarge", Layout(), LLAMA_8B, LOAD.model_copy(update={"streams": 1}))
    many = on("c7i.4xlarge", Layout(), LLAMA_8B)
    assert line(one, "weights, laid out") == pytest.approx(2 * LLAMA_8B.parameters / 1e9)
    body = LLAMA_8B.parameters - LLAMA_8B.embedding_parameters
    assert line(many, "weights, laid out") == pytest.approx(2 * (LLAMA_8B.parameters + body) / 1e9)


@pytest.mark.parametrize(
    ("name", "layout", "words"),
    [
        ("g5.xlarge", Layout(tensor_parallel=2), r"TP2 takes 2 devices; g5.xlarge has 1 A10G"),
        ("c7i.xlarge", Layout(tensor_parallel=2), r"c7i.xlarge computes on its CPU"),
    ],
)
def test_a_layout_that_the_machine_has_no_devices_for(name: str, layout: Layout, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        on(name, layout)


@given(
    tensor=st.sampled_from([1, 2, 4, 8]),
    streams=st.integers(1, 256),
    tokens=st.integers(1, 8000),
    weights=st.sampled_from(["bf16", "fp8", "int4"]),
)
def test_more_of_the_load_takes_more_and_fewer_bits_less(tensor: int, streams: int, tokens: int, weights: str) -> None:
    machine = find("p5.48xlarge")

    def total(**changes: object) -> float:
        asked = {"tensor": tensor, "streams": streams, "tokens": tokens, "weights": weights} | changes
        layout = Layout.model_validate({"weights": asked["weights"], "tensor_parallel": asked["tensor"]})
        load = PlannedLoad.model_validate(
            {"input_tokens": asked["tokens"], "output_tokens": 100, "streams": asked["streams"]}
        )
        return fit(LLAMA_70B, layout, machine, load).total_gb

    here = total()
    assert total(streams=2 * streams) >= here
    assert total(tokens=tokens + 16) > here
    assert total(weights="int3") < here
    found = fit(LLAMA_70B, Layout(tensor_parallel=tensor), machine, LOAD)
    assert found.total_gb == pytest.approx(sum(each.gb for each in found.lines))
    assert all(each.gb >= 0 and each.how for each in found.lines)


@given(stages=st.sampled_from([1, 2, 4]), tensor=st.sampled_from([1, 2]))
def test_stages_and_slices_hold_the_whole_model(stages: int, tensor: int) -> None:
    layout = Layout(tensor_parallel=tensor, pipeline_parallel=stages)
    found = fit(LLAMA_70B, layout, find("p5.48xlarge"), LOAD)
    body = LLAMA_70B.parameters - LLAMA_70B.embedding_parameters
    assert line(found, "weights") * stages * tensor == pytest.approx(2 * body / 1e9)
