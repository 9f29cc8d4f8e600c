"""The roofline does what bytes and operations say, whatever it is asked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver.errors import BadInputError
from quicksilver.nouns.instance import Accelerator
from quicksilver.nouns.prediction import Precision
from quicksilver.planner import models, roofline

A10G = Accelerator(
    name="A10G", memory_gb=24, bandwidth_gb_s=600, tflops={"bf16": 70, "int8": 140}, link_gb_s=32, source="made up"
)
MODELS = [models.facts(name) for name in ("llama-3.1-8b", "llama-3.1-70b", "mixtral-8x7b-v0.1", "smollm2-135m")]
sizes = st.integers(1, 512)


def took(index: int, weights: Precision, parts: int, tokens: int, cached: int, *, prompt: int = 0) -> float:
    return roofline.step_ms(
        MODELS[index],
        A10G,
        weights=weights,
        cache="bf16",
        tensor_parallel=parts,
        tokens=tokens,
        cached_tokens=cached,
        prompt=prompt,
    )


@given(
    st.integers(0, 3),
    st.sampled_from([1, 2, 4, 8]),
    st.tuples(sizes, sizes).map(sorted),
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)).map(sorted),
)
def test_more_streams_longer_contexts_and_more_bytes_never_take_less(
    index: int, parts: int, streams: list[int], contexts: list[int]
) -> None:
    (fewer, more), (short, long) = streams, contexts
    assert took(index, "bf16", parts, fewer, short) <= took(index, "bf16", parts, more, short)
    assert took(index, "bf16", parts, fewer, short) <= took(index, "bf16", parts, fewer, long)
    assert took(index, "int3", parts, fewer, short) <= took(index, "int4", parts, fewer, short)
    assert took(index, "int4", parts, fewer, short) <= took(index, "bf16", parts, fewer, short)
    assert took(index, "int8", parts, fewer, short) <= took(index, "bf16", parts, fewer, short)


@given(st.integers(0, 3), st.integers(1, 8192), st.integers(1, 8192))
def test_a_longer_prompt_takes_longer(index: int, short: int, long: int) -> None:
    short, long = sorted((short, long))
    assert took(index, "bf16", 1, short, 0, prompt=short) <= took(index, "bf16", 1, long, 0, prompt=long)


def test_one_stream_reads_the_weights_once() -> None:
    ideal = roofline.Reached(bandwidth=1.0, peak=1.0, layer_us=0.0)
    facts = models.facts("llama-3.1-8b")
    ms = roofline.step_ms(
        facts, A10G, weights="bf16", cache="bf16", tensor_parallel=1, tokens=1, cached_tokens=0, reached=ideal
    )
    assert ms == pytest.approx(1000 * 2 * (facts.parameters - facts.vocab_size * facts.hidden_size) / 600e9)


def test_of_a_mixture_one_stream_reads_two_experts_and_many_read_all() -> None:
    ideal = roofline.Reached(bandwidth=1.0, peak=1e3, layer_us=0.0)
    mixtral = models.facts("mixtral-8x7b-v0.1")

    def read(tokens: int) -> float:
        return roofline.step_ms(
            mixtral,
            A10G,
            weights="bf16",
            cache="bf16",
            tensor_parallel=1,
            tokens=tokens,
            cached_tokens=0,
            reached=ideal,
        )

    assert read(1) == pytest.approx(1000 * 2 * models.active_parameters(mixtral) / 600e9)
    assert read(200) == pytest.approx(
        1000 * 2 * (mixtral.parameters - mixtral.vocab_size * mixtral.hidden_size) / 600e9
    )


def test_through_a_host_devices_share_what_a_ring_has_for_each() -> None:
    facts = models.facts("llama-3.1-8b")
    joined = A10G.model_copy(update={"link_gb_s": 300.0})

    def reduces(chip: Accelerator, parts: int) -> float:
        free = roofline.Reached(link=1.0, host=1.0, reduce_us=0.0, host_us=0.0)
        return roofline._reduces(facts, chip, parts, 1000, free)

    moved = 2 * facts.layers * 1000 * facts.hidden_size * 2
    assert reduces(joined, 8) == pytest.approx(1000 * moved * 2 * 7 / 8 / 300e9)
    assert reduces(A10G, 8) == pytest.approx(1000 * moved * 2 * 7 / 32e9)
    assert reduces(A10G, 2) == pytest.approx(1000 * moved / 32e9)
    assert reduces(A10G, 1) == 0


def test_a_pipelines_stages_send_activations_once_each() -> None:
    facts = models.facts("llama-3.1-8b")

    def ms(tensor: int, stages: int, tokens: int) -> float:
        return roofline.step_ms(
            facts,
            A10G,
            weights="bf16",
            cache="bf16",
            tensor_parallel=tensor,
            pipeline_parallel=stages,
            tokens=tokens,
            cached_tokens=0,
        )

    sent = 1000 * 1000 * facts.hidden_size * 2 / (A10G.link_gb_s * 1e9 * roofline.REACHED.host)
    assert ms(1, 4, 1000) - ms(1, 1, 1000) == pytest.approx(3 * (sent + roofline.REACHED.host_us / 1e3))
    # Four batches of prompts are under way at once, and no all-reduce goes through the host.
    assert ms(1, 4, 2000) / 4 < ms(4, 1, 2000) / 2
    assert ms(1, 4, 1) > ms(4, 1, 1)


def test_times_are_labelled_and_a_precision_that_the_chip_lacks_is_refused() -> None:
    facts = models.facts("llama-3.1-8b")
    times = roofline.step_times(facts, A10G, weights="int4", cache="bf16", tensor_parallel=1, why="nobody measured it")
    assert (times.basis, times.remarks) == ("roofline", ("nobody measured it", roofline.OFF))
    assert "A10G" in times.origin
    with pytest.raises(BadInputError, match="A10G doesn't compute in fp8"):
        roofline.step_times(facts, A10G, weights="fp8", cache="bf16", tensor_parallel=1)


def test_the_error_that_is_stated_is_that_of_the_benchmark() -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "roofline.json"
    document = json.loads(results.read_text(encoding="utf-8"))
    medians = [
        {what: chip["left out"][what][0] for what in ("decode", "prefill")} for chip in document["chips"].values()
    ]
    stated = [int(number) for number in re.findall(r"[0-9]+", roofline.OFF)]
    found = [round(end(one[what] for one in medians)) for what in ("decode", "prefill") for end in (min, max)]
    assert all(abs(a - b) <= 1 for a, b in zip(stated, found, strict=True))
    for field, value in document["reached"].items():
        assert getattr(roofline.REACHED, field) == pytest.approx(value, abs=0.01, rel=0.01)
