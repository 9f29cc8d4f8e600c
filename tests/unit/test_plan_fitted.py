"""The model of a CPU's steps: it finds a machine's rates again, carries over to models and loads never measured, and says what it can't."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver.errors import BadInputError
from quicksilver.hardware import detect
from quicksilver.machine import Measured
from quicksilver.nouns.instance import Instance
from quicksilver.nouns.model import ModelFacts
from quicksilver.nouns.prediction import Guessing, Layout, Precision
from quicksilver.nouns.steps import StepShape
from quicksilver.planner import fitted
from quicksilver.sources import instances
from quicksilver.testing.large import BILLION, LARGE, SMALL
from quicksilver.testing.machine import READ_MS, TOKEN_MS, made_up_ms, made_up_steps

EXACT = fitted.fit(made_up_steps())
PRECISIONS = st.sampled_from(["bf16", "int8", "int4"])
SHAPES = st.one_of(
    st.builds(StepShape, streams=st.integers(1, 64), context=st.integers(1, 4000), ahead=st.integers(1, 9)),
    st.builds(StepShape, prompt=st.integers(1, 2048), streams=st.integers(0, 16), context=st.integers(1, 2000)),
)


@given(SHAPES, PRECISIONS, st.sampled_from([SMALL, BILLION, LARGE]), st.booleans())
def test_a_machine_that_is_a_roofline_is_found_again(
    shape: StepShape, weights: Precision, facts: ModelFacts, new: bool
) -> None:
    assert EXACT.ms(facts, weights, shape, new=new) == pytest.approx(
        made_up_ms(facts, weights, shape, new=new), rel=0.06
    )


def test_its_rates_are_those_of_the_machine() -> None:
    sizes: dict[Precision, float] = {"bf16": 2, "int8": 1, "int4": 0.5}
    for weights, size in sizes.items():
        assert EXACT.bandwidth_gb_s(weights) == pytest.approx(1000 * size / READ_MS[weights], rel=0.1)
        assert EXACT.gflops(weights) == pytest.approx(2000 / TOKEN_MS[weights], rel=0.1)
    assert EXACT.error_percent < 1


def noisy(seed: int) -> fitted.Fit:
    """Return a fit to steps of 135M in all weights and 1.1B in int8, each off by a tenth, and a tenth held up to twice their time."""
    rng = random.Random(seed)
    known = [
        *made_up_steps([SMALL], noise=lambda: rng.lognormvariate(0, 0.1)),
        *made_up_steps([BILLION], ["int8"], noise=lambda: rng.lognormvariate(0, 0.1)),
    ]
    spoilt = [
        one.model_copy(
            update={
                "steps": tuple(
                    step.model_copy(update={"new_ms": step.new_ms * 2}) if step.new_ms and rng.random() < 0.1 else step
                    for step in one.steps
                )
            }
        )
        for one in known
    ]
    return fitted.fit(spoilt)


def test_a_model_never_measured_is_predicted_from_noisy_steps_of_others() -> None:
    shapes = (StepShape(streams=6, context=700), StepShape(prompt=600), StepShape(streams=12, context=300))
    errors = sorted(
        abs(found.ms(BILLION, "int4", shape) / made_up_ms(BILLION, "int4", shape) - 1)
        for found in map(noisy, range(100))
        for shape in shapes
    )
    assert errors[len(errors) // 2] < 0.05
    assert errors[int(0.95 * len(errors))] < 0.14


@pytest.mark.parametrize("seed", [823, 258, 164, 494])
def test_a_prompt_that_was_held_up_does_not_bend_what_lies_between(seed: int) -> None:
    """One step in these weights has a prompt of that length, and it took twice its time."""
    shape = StepShape(prompt=600)
    assert noisy(seed).ms(BILLION, "int4", shape) == pytest.approx(made_up_ms(BILLION, "int4", shape), rel=0.35)


@given(PRECISIONS, st.integers(1, 63), st.integers(1, 4000), st.integers(1, 2047))
def test_more_work_never_takes_less_time(weights: Precision, streams: int, context: int, prompt: int) -> None:
    def ms(shape: StepShape) -> float:
        return EXACT.ms(SMALL, weights, shape)

    assert ms(StepShape(streams=streams + 1, context=context)) >= ms(StepShape(streams=streams, context=context)) > 0
    assert ms(StepShape(streams=streams, context=context + 1)) >= ms(StepShape(streams=streams, context=context))
    assert ms(StepShape(prompt=prompt + 1)) >= ms(StepShape(prompt=prompt))


def test_fewer_threads_slow_down_all_but_the_overheads() -> None:
    found = fitted.fit([*made_up_steps(), *made_up_steps(threads=1)])
    shape = StepShape(streams=4, context=500)
    assert found.ms(SMALL, "int8", shape, threads=1) == pytest.approx(
        made_up_ms(SMALL, "int8", shape, share=0.5), rel=0.05
    )
    assert found.ms(SMALL, "int8", shape) == pytest.approx(made_up_ms(SMALL, "int8", shape), rel=0.05)


def test_tables_are_of_this_machine_and_say_from_what() -> None:
    times = fitted.step_times(SMALL, detect(), Layout(weights="int8"), made_up_steps())
    assert times.basis == "fitted"
    assert "135M" in times.origin and "made up" in times.origin and "2026-11-28" in times.origin
    shape = StepShape(streams=4, context=512)
    row = times.decode_ms[times.streams.index(4)]
    assert row[times.contexts.index(512)] == pytest.approx(made_up_ms(SMALL, "int8", shape), rel=0.03)
    # The step of a prompt, and what the change of shape costs the step after it.
    new = made_up_ms(SMALL, "int8", StepShape(streams=1, context=512), new=True) - made_up_ms(
        SMALL, "int8", StepShape(streams=1, context=512)
    )
    prompt = made_up_ms(SMALL, "int8", StepShape(prompt=512), new=True)
    assert times.prefill_ms[times.prompts.index(512)][0] == pytest.approx(prompt + new, rel=0.03)


def test_guesses_cost_what_their_tokens_do_padded_as_the_engine_pads() -> None:
    guessing = Guessing(tokens=3, accepted=1.5)
    times = fitted.step_times(SMALL, detect(), Layout(weights="int8", guessing=guessing), made_up_steps())
    shape = StepShape(streams=4, context=512, ahead=4)
    assert times.decode_ms[times.streams.index(4)][1] == pytest.approx(made_up_ms(SMALL, "int8", shape), rel=0.03)
    padded = StepShape(streams=1, context=512, ahead=4, padding=4)
    assert times.decode_ms[0][1] == pytest.approx(made_up_ms(SMALL, "int8", padded), rel=0.03)


def of_cores(cores: int) -> Measured:
    """A machine of whose cores each gives 20 GB/s and 100 GFLOP/s in fp32."""
    return Measured(
        bandwidth_gb_s=20.0 * cores, fp32_gflop_s=100.0 * cores, when="2026-11-28T00:00:00+00:00", numpy="2"
    )


def instance(name: str = "c7i.4xlarge", cores: int = 8) -> Instance:
    return Instance(name=name, cpu="Xeon", vcpus=2 * cores, cores=cores, memory_gb=32, source="its page")


def test_another_machine_is_scaled_by_what_is_known_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quicksilver.machine.kept", lambda: of_cores(2))
    known = instance().model_copy(update={"bandwidth_gb_s": 400.0, "tflops": {"bf16": 9.0, "fp32": 0.4}})
    there = fitted.step_times(SMALL, known, Layout(), made_up_steps())
    assert "400 GFLOP/s in fp32 against 200 and 400 GB/s against 40" in there.origin
    here = fitted.step_times(SMALL, instance("local", 2), Layout(), made_up_steps())
    # Prompts go by FLOP/s, and a single token by reading the weights and by overheads that no machine spares.
    assert there.prefill_ms[-1][0] == pytest.approx(here.prefill_ms[-1][0] / 2, rel=0.1)
    read, overhead = READ_MS["bf16"] * SMALL.parameters / 1e9, 0.2 * SMALL.layers
    assert there.decode_ms[0][0] == pytest.approx(read / 10 + overhead, rel=0.1)


def test_another_machine_is_scaled_and_never_called_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quicksilver.machine.kept", lambda: None)
    here = fitted.step_times(SMALL, instance("local", 2), Layout(), made_up_steps())
    there = fitted.step_times(SMALL, instance(), Layout(), made_up_steps())
    assert (here.basis, there.basis) == ("fitted", "roofline")
    assert "8 cores against 2" in there.origin
    assert here.prefill_ms[-1][0] / 4 < there.prefill_ms[-1][0] < here.prefill_ms[-1][0] / 2


def test_this_machine_is_an_instance_by_name_without_a_price() -> None:
    here = instances.find("local")
    assert (here.cores, here.accelerator, here.rates) == (detect().cores, None, ())
    assert fitted.step_times(SMALL, here, Layout(), made_up_steps()).basis == "fitted"


@pytest.mark.parametrize(
    ("facts", "layout", "words"),
    [
        (SMALL, Layout(weights="int3"), "int3"),
        (SMALL, Layout(tensor_parallel=2), "parallelism"),
        (SMALL, Layout(cache="fp8"), "fp8"),
        (SMALL.model_copy(update={"experts": 8}), Layout(), "experts"),
        (SMALL, Layout(guessing=Guessing(tokens=3, accepted=1, draft_parameters=10)), "draft"),
    ],
)
def test_what_was_never_measured_is_refused_in_a_sentence(facts: ModelFacts, layout: Layout, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        fitted.step_times(facts, detect(), layout, made_up_steps())


def test_without_steps_the_command_that_measures_them_is_named() -> None:
    with pytest.raises(BadInputError, match="quicksilver calibrate"):
        fitted.step_times(SMALL, detect(), Layout(), [])


def test_steps_of_two_machines_make_no_fit() -> None:
    with pytest.raises(BadInputError, match="one machine"):
        fitted.fit([*made_up_steps([SMALL]), *made_up_steps([SMALL], machine="another")])
