"""Rounding weights for vLLM: what llm-compressor is asked for, and the process that asks it."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver import environments, techniques
from quicksilver.engines.vllm import compress, quantise
from quicksilver.errors import BuildError, EngineError, IllegalRecipeError, NotEnoughError
from quicksilver.nouns import Step, Technique
from quicksilver.testing.large import LARGE, SMALL
from quicksilver.testing.tiny import make_tiny_model


def modifiers(technique: Technique) -> dict[str, Any]:
    stages = quantise.rounded(technique)
    assert list(stages) == ["default_stage"]
    found: dict[str, Any] = stages["default_stage"]["default_modifiers"]
    return found


def weights_of(modifier: dict[str, Any]) -> dict[str, Any]:
    assert modifier["ignore"] == ["lm_head"]
    (group,) = modifier["config_groups"].values()
    assert group["targets"] == ["Linear"]
    found: dict[str, Any] = group["weights"]
    return found


# What is asked for


@given(
    name=st.sampled_from(["int4", "awq", "gptq"]),
    group_size=st.sampled_from([-1, 32, 64, 128]),
    mode=st.sampled_from(["symmetric", "asymmetric"]),
)
def test_the_grid_of_four_bits_is_what_the_fields_say(name: str, group_size: int, mode: str) -> None:
    found = modifiers(techniques.make({"name": name, "group_size": group_size, "mode": mode}))
    weights = weights_of(list(found.values())[-1])
    assert (weights["num_bits"], weights["type"], weights["symmetric"]) == (4, "int", mode == "symmetric")
    if group_size == -1:
        assert weights["strategy"] == "channel"
        assert "group_size" not in weights
    else:
        assert (weights["strategy"], weights["group_size"]) == ("group", group_size)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("int4", ["QuantizationModifier"]),
        ("awq", ["AWQModifier", "QuantizationModifier"]),
        ("gptq", ["GPTQModifier"]),
        ("w8a8", ["SmoothQuantModifier", "QuantizationModifier"]),
        ("fp8", ["QuantizationModifier"]),
    ],
)
def test_each_technique_is_the_modifiers_that_stand_for_it_in_order(name: str, steps: list[str]) -> None:
    assert list(modifiers(techniques.make(name))) == steps


def test_scales_are_fitted_to_activations_where_awq_says_so() -> None:
    fitted, plain = (
        weights_of(modifiers(techniques.make({"name": "awq", "scale_estimation": yes}))["QuantizationModifier"])
        for yes in (True, False)
    )
    assert fitted == plain | {"observer": "imatrix_mse"}


@pytest.mark.parametrize(("name", "kind"), [("w8a8", "int"), ("fp8", "float")])
def test_eight_bits_have_a_scale_a_row_and_a_token(name: str, kind: str) -> None:
    modifier = modifiers(techniques.make(name))["QuantizationModifier"]
    activations = modifier["config_groups"]["group_0"]["input_activations"]
    assert (weights_of(modifier)["type"], weights_of(modifier)["strategy"]) == (kind, "channel")
    assert (activations["type"], activations["strategy"], activations["dynamic"]) == (kind, "token", True)


def test_smoothquants_strength_is_the_field() -> None:
    assert modifiers(techniques.make({"name": "w8a8", "alpha": 0.5}))["SmoothQuantModifier"] == {
        "smoothing_strength": 0.5
    }


@pytest.mark.parametrize("name", ["mixed", "gguf-grid", "as-is", "kv-cache"])
def test_what_it_has_nothing_for_is_refused_with_what_it_has(name: str) -> None:
    with pytest.raises(
        IllegalRecipeError, match=rf"^{name} isn't built for vLLM; .* awq, fp8, gptq, int4, int8, w8a8\.$"
    ):
        quantise.rounded(techniques.make(name))


def test_int8_weights_have_no_zero_points() -> None:
    with pytest.raises(IllegalRecipeError, match=r"set int8\.mode=symmetric"):
        quantise.rounded(techniques.make({"name": "int8", "mode": "asymmetric"}))
    assert weights_of(modifiers(techniques.make({"name": "int8", "mode": "symmetric"}))["QuantizationModifier"])


@pytest.mark.parametrize("name", sorted(quantise.GPU_ONLY))
def test_a_cpu_gets_no_weights_that_it_has_no_kernel_for(name: str, installed: Path) -> None:
    technique = techniques.make({"name": name} | ({"mode": "symmetric"} if name == "int8" else {}))
    with pytest.raises(IllegalRecipeError, match=rf"no kernel on a CPU for the weights of {name}; w8a8"):
        quantise.check(technique, on_cpu=True)
    quantise.check(technique, on_cpu=False)


def test_the_command_that_adds_what_rounds_is_said_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "home", lambda: tmp_path)
    with pytest.raises(IllegalRecipeError, match=r"isn't installed; quicksilver engine add llmcompressor adds it\.$"):
        quantise.check(techniques.make("awq"), on_cpu=True)


def test_its_versions_are_those_that_its_lock_pins() -> None:
    found = quantise.tools()
    assert set(found) == {
        f"llmcompressor: {n}" for n in ("llmcompressor", "compressed-tensors", "torch", "transformers")
    }
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in found.values())


def test_the_estimate_of_memory_grows_with_the_model_and_with_calibration() -> None:
    for name in quantise.RECIPES:
        technique = techniques.make(name)
        memory_mb, disk_mb = quantise.needs_mb(technique, SMALL)
        # Measured on this model with 8 prompts: 1.3 to 1.5 GB; 118 MB with 4 bits, 163 with 8.
        assert 1500 < memory_mb < 4000, name
        assert disk_mb == pytest.approx(163 if "8" in name else 123, abs=6), name
        assert quantise.needs_mb(technique, LARGE)[0] > memory_mb
        if technique.calibrated:
            assert memory_mb > quantise.needs_mb(techniques.make("int4"), SMALL)[0]


# The process


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let this interpreter stand in for the environment's."""
    monkeypatch.setattr(environments, "python", lambda *_: Path(sys.executable))
    return Path(sys.executable)


def step_of(tmp_path: Path, calibration: tuple[tuple[int, ...], ...] = ((1, 2),)) -> tuple[Step, list[str]]:
    said: list[str] = []
    target = tmp_path / "target"
    target.mkdir()
    source = make_tiny_model(tmp_path / "source")
    return Step(source, target, "hf", LARGE, calibration, said.append), said


def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    script = tmp_path / "script.py"
    script.write_text("import json, os, signal, sys\njob = json.loads(sys.stdin.readline())\n" + text, encoding="utf-8")
    monkeypatch.setattr(quantise, "SCRIPT", script)


def test_it_is_given_the_job_and_what_it_leaves_is_made_whole(
    installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(
        monkeypatch,
        tmp_path,
        "from pathlib import Path\ntarget = Path(job['target'])\nprint(json.dumps({'say': 'layer 1 of 2'}), flush=True)\n"
        "(target / 'config.json').write_text('{\"rounded\": true}')\n(target / 'model.safetensors').write_text('new')\n"
        "print(json.dumps({'memory_mb': 123.5}))\n"
        "(target / 'job.json').write_text(json.dumps(job | {'path': os.environ['PYTHONPATH']}))\n",
    )
    step, said = step_of(tmp_path)
    quantise.build(techniques.make("awq"), step)
    job = json.loads((step.target / "job.json").read_text(encoding="utf-8"))
    assert job["recipe"] == quantise.rounded(techniques.make("awq"))
    assert job["calibration"] == [[1, 2]]
    assert job["path"] == ""
    assert said == ["layer 1 of 2"]
    assert step.apart_mb == 123.5
    assert (step.target / "config.json").read_text(encoding="utf-8") == '{"rounded": true}'
    assert (step.target / "model.safetensors").read_text(encoding="utf-8") == "new"
    assert (step.target / "tokenizer.json").read_bytes() == (step.source / "tokenizer.json").read_bytes()


def test_the_weights_before_rounding_do_not_go_along(
    installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    step, _ = step_of(tmp_path)
    (step.source / "model.safetensors").rename(step.source / "model-00001-of-00001.safetensors")
    (step.source / "model.safetensors.index.json").write_text("{}", encoding="utf-8")
    stand_in(
        monkeypatch,
        tmp_path,
        "open(job['target'] + '/model.safetensors', 'w').write('new')\nprint('{\"memory_mb\": 1}')\n",
    )
    quantise.build(techniques.make("int4"), step)
    assert [path.name for path in step.target.glob("*.safetensors*")] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        (
            "print(json.dumps({'error': 'ValueError: no such layer'})); sys.exit(1)",
            BuildError,
            r"ValueError: no such layer\.$",
        ),
        ("print(json.dumps({'memory': 'x'})); sys.exit(1)", NotEnoughError, r"^llm-compressor ran out of memory\.$"),
        ("os.kill(os.getpid(), signal.SIGKILL)", NotEnoughError, r"most likely because memory ran out\.$"),
        ("sys.exit(3)", BuildError, "exit code 3"),
    ],
)
@pytest.mark.usefixtures("installed")
def test_its_end_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, kind: type[Exception], sentence: str
) -> None:
    stand_in(monkeypatch, tmp_path, text + "\n")
    with pytest.raises(kind, match=sentence):
        quantise.build(techniques.make("int4"), step_of(tmp_path)[0])


def test_the_script_says_itself_what_is_wrong(installed: Path, tmp_path: Path) -> None:
    # This interpreter has no llm-compressor.
    with pytest.raises(BuildError, match=r"^llm-compressor failed: ModuleNotFoundError: .*llmcompressor"):
        quantise.build(techniques.make("int4"), step_of(tmp_path)[0])


def test_nothing_is_calibrated_on_nothing(installed: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no calibration prompts"):
        quantise.build(techniques.make("gptq"), step_of(tmp_path, ())[0])


def test_an_environment_that_is_gone_is_said_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "home", lambda: tmp_path)
    with pytest.raises(EngineError, match="quicksilver engine add llmcompressor"):
        quantise.build(techniques.make("int4"), step_of(tmp_path)[0])


# The script's own parts


def test_progress_counts_layers_once_and_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    said: list[str] = []
    progress = compress.Progress(4, said.append)
    layers = [object() for _ in range(4)]
    for layer in layers:
        for _ in range(3):  # one forward pass a prompt
            progress.reached(layer, ())
        now += 5
    assert said == [
        "layer 2 of 4, about 15 s left",
        "layer 3 of 4, about 10 s left",
        "layer 4 of 4, about 5 s left",
    ]


def test_progress_is_not_said_more_often_than_it_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    said: list[str] = []
    progress = compress.Progress(100, said.append)
    for layer in [object() for _ in range(100)]:
        progress.reached(layer, ())
        now += 0.1
    assert len(said) <= 100 * 0.1 / compress.SAY_EVERY_S


def test_the_script_needs_nothing_of_ours() -> None:
    text = Path(compress.__file__).read_text(encoding="utf-8")
    assert "quicksilver" not in re.sub(r'""".*?"""', "", text, flags=re.DOTALL).lower()
    assert Path(compress.__file__) == quantise.SCRIPT
