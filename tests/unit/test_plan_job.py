"""What an optimisation job needs of a machine: the arithmetic, and which instance is cheapest."""

from __future__ import annotations

import pytest

from quicksilver.errors import BadInputError
from quicksilver.nouns import ModelFacts
from quicksilver.nouns.instance import Instance
from quicksilver.planner.job import JOBS, Sized, draft_parameters, size
from quicksilver.sources.instances import find, instances
from quicksilver.testing.large import LARGE

LLAMA_70B = LARGE.model_copy(
    update={"layers": 80, "hidden_size": 8192, "intermediate_size": 28_672, "heads": 64, "parameters": 70_553_706_496}
)
OPT_175B = ModelFacts(
    architecture="opt", layers=96, hidden_size=12_288, intermediate_size=49_152, heads=96, kv_heads=96, head_dim=128,
    vocab_size=50_272, max_positions=2048, parameters=175_000_000_000, tied_embeddings=True,
)  # fmt: skip


def one(
    job: str, name: str, facts: ModelFacts = LLAMA_70B, *, samples: int | None = None, tokens: int | None = None
) -> Sized:
    (found,) = size(facts, job, [find(name)], samples=samples, tokens=tokens)
    return found


def test_gptq_takes_about_as_long_as_its_paper_says() -> None:
    # arXiv 2210.17323, table 3: one A100 80 GB, 128 prompts of 2,048 tokens, 4.2 h.
    found = one("gptq", "p4de.24xlarge", OPT_175B, samples=128, tokens=2048)
    assert 4.2 / 2 < found.hours < 4.2 * 2


def test_quantising_70b_needs_one_device_and_the_whole_model_in_the_machine() -> None:
    found = one("awq", "g5.48xlarge")
    assert not found.why_not
    assert sum(line.gb for line in found.device) < 24
    assert sum(line.gb for line in found.host) > 141
    small = one("awq", "g5.xlarge")
    assert small.why_not.startswith("the machine needs")


def test_a_device_that_is_too_small_is_said() -> None:
    found = one("train-draft", "g5.12xlarge")
    assert found.why_not.startswith("a device needs")
    assert not one("train-draft", "p5.48xlarge").why_not


def test_what_does_not_run_cuda_is_said() -> None:
    assert "CUDA" in one("gptq", "inf2.48xlarge").why_not


@pytest.mark.parametrize("job", JOBS)
def test_the_cheapest_that_fits_comes_first(job: str) -> None:
    found = size(LLAMA_70B, job, instances().values())
    fitting = [s for s in found if not s.why_not]
    assert fitting
    assert found[: len(fitting)] == fitting, "what doesn't fit comes last"
    priced = [s.usd for s in fitting if s.usd is not None]
    assert priced == sorted(priced)
    assert all(s.usd is None for s in fitting[len(priced) :]), "without a price comes after"
    for sized in found:
        assert sized.source == "predicted"
        assert all(line.how for line in (*sized.device, *sized.host))
        assert all(line.how and line.hours > 0 for line in sized.time)


def test_more_samples_take_longer_and_a_better_device_less() -> None:
    assert one("gptq", "g6e.12xlarge", samples=512).hours > one("gptq", "g6e.12xlarge", samples=128).hours
    assert one("awq", "p5.48xlarge").hours < one("awq", "g5.48xlarge").hours
    assert one("train-draft", "p5.48xlarge").hours < one("train-draft", "p4de.24xlarge").hours


def test_a_head_for_8b_has_as_many_parameters_as_published() -> None:
    # yuhuili/EAGLE3-LLaMA3.1-Instruct-8B: about 0.4 x 10^9 trained parameters.
    assert 0.35e9 < draft_parameters(LARGE) < 0.5e9


def test_an_instance_without_price_has_no_cost() -> None:
    found = one("fp8", "ml.p5en.48xlarge")
    assert found.usd is None
    assert found.hours > 0


@pytest.mark.parametrize(
    ("job", "numbers", "words"),
    [
        ("awk", {}, "no job named 'awk'; did you mean 'awq'"),
        ("gptq", {"samples": 0}, "at least 1 sample"),
        ("fp8", {"samples": 16}, "neither samples nor tokens"),
        ("gptq", {"tokens": 200_000}, "longer than the 8,192"),
    ],
)
def test_what_makes_no_sense_is_refused(job: str, numbers: dict[str, int], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        size(LLAMA_70B, job, [find("p5.48xlarge")], samples=numbers.get("samples"), tokens=numbers.get("tokens"))


def test_cpu_instances_are_left_out() -> None:
    cpu: list[Instance] = [find("c7i.48xlarge")]
    assert size(LLAMA_70B, "awq", cpu) == []
