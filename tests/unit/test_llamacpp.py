"""The llama.cpp engine without llama.cpp: arguments, types of tensors, conversion, refusals, explanations."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver import environments
from quicksilver.build import plan as planning
from quicksilver.engines import find
from quicksilver.engines.llamacpp import LlamaCpp, arguments, convert, explain, files, pinned
from quicksilver.engines.llamacpp.quantize import tensor_types
from quicksilver.errors import BadInputError, EngineError, IllegalRecipeError, NotEnoughError
from quicksilver.nouns import Model, Recipe, Settings, Step
from quicksilver.search import space
from quicksilver.sources import gguf, models
from quicksilver.sources.home import HOME_VARIABLE
from quicksilver.techniques import make
from quicksilver.testing.large import SMALL as FACTS
from quicksilver.testing.tiny import make_tiny_gguf, make_tiny_model


def compiled(**fields: Any) -> dict[str, str | bool]:
    """Compile settings, and read the arguments back: name → value, or whether a switch is on."""
    free = fields.pop("free_bytes", None)
    words = arguments.compile_arguments(
        Path("/a"),
        Settings.model_validate(fields),
        FACTS,
        name="m",
        host="127.0.0.1",
        port=7,
        cores=2,
        free_bytes=free,
    )
    found: dict[str, str | bool] = {}
    key = ""
    for word in words:
        if word.startswith("--"):
            key = word[2:]
            found[key] = True
        else:
            found[key] = word
    return found


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "python", lambda _: Path("/env/bin/python"))
    monkeypatch.setattr(environments, "native", lambda _: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as the as-is step leaves it."""
    base = tmp_path_factory.mktemp("llamacpp")
    target = base / "as-is"
    target.mkdir()
    source = make_tiny_model(base / "tiny")
    facts = models.resolve(str(source)).facts
    files.export(Step(source=source, target=target, format="gguf", facts=facts), make("as-is"))
    return target


# Arguments


def test_the_defaults_as_they_were_when_they_were_looked_at() -> None:
    golden = Path(__file__).parents[1] / "golden" / "llamacpp-arguments.json"
    techniques = [["prompt-lookup", "prefix-caching"], ["kv-cache", "chunked-prefill"]]
    recipes = [Recipe("m", [make(name) for name in stack], engine="llamacpp") for stack in [[], *techniques]]
    found = {r.label: compiled(**r.effective_settings().model_dump()) for r in recipes}
    assert found == json.loads(golden.read_text(encoding="utf-8"))


def test_a_draft_is_found_beside_the_model() -> None:
    found = compiled(speculation={"kind": "draft", "tokens": 3, "draft": "draft"})
    assert found["spec-draft-model"] == "/a/draft/model.gguf"
    assert found["spec-draft-n-max"] == "3"


@given(
    st.integers(1, 256),
    st.sampled_from(["default", "f16", "u8", "u4"]),
    st.floats(0, 8),
    st.none() | st.integers(10**6, 10**11),
)
def test_the_cache_is_as_large_as_was_asked_for(
    streams: int, precision: str, limit_gb: float, free_bytes: int | None
) -> None:
    settings = Settings(max_streams=streams, kv_precision=precision, kv_cache_gb=limit_gb)
    tokens = arguments.context_tokens(settings, FACTS, 2, free_bytes)
    taken = tokens * arguments.kv_bytes(settings, FACTS)
    assert tokens % 256 == 0
    assert 256 <= tokens <= arguments.slots(settings, 2) * FACTS.max_positions
    if tokens > 256 and limit_gb:
        assert taken <= limit_gb * 1e9
    elif tokens > 256 and free_bytes is not None:
        assert taken <= free_bytes / 2


def test_a_search_counts_the_cache_that_is_served_with() -> None:
    settings = Settings(kv_cache_gb=0.5)
    tokens = LlamaCpp().cache_tokens(settings, FACTS, 100)
    assert 0.4e9 < tokens * arguments.kv_bytes(settings, FACTS) <= 0.5e9


def test_cached_bytes_are_those_of_ggml_s_blocks() -> None:
    assert arguments.kv_bytes(Settings(), FACTS) == 2 * 30 * 3 * 64 * 2
    assert arguments.kv_bytes(Settings(kv_precision="u8"), FACTS) == 2 * 30 * 3 * 64 * 34 / 32


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"properties": {"ubatch": 3}}, "'ubatch-size'"),
        ({"kv_precision": "u3"}, "'u3'"),
        ({"properties": {"cache-type-k": "q9"}}, "'q9'"),
        ({"properties": {"ctx-size": "much"}}, "whole number"),
    ],
)
def test_what_it_does_not_know_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError, match=said) as caught:
        compiled(**fields)
    assert "\n" not in str(caught.value)


def test_properties_come_last_and_may_be_switches() -> None:
    found = compiled(properties={"repack": False, "flash-attn": "off", "ubatch-size": 64})
    assert found["no-repack"] is True
    assert found["flash-attn"] == "off"
    assert found["ubatch-size"] == "64"


# Before anything starts


def test_an_engine_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    with pytest.raises(EngineError, match="quicksilver engine add llamacpp"):
        find("llamacpp").version()


@pytest.mark.usefixtures("installed")
def test_its_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = LlamaCpp().command(folder, Settings(), host="127.0.0.1", port=81, api_keys=["a", "b"])
    assert command.words[0] == "/env/bin/python"
    assert command.words[-2:] == ["--api-key", "a,b"]
    assert "as-is" in command.words
    with pytest.raises(EngineError, match="--native"):
        LlamaCpp().command(folder, Settings(properties={"build": "native"}), host="127.0.0.1", port=81)
    monkeypatch.setattr(environments, "native", lambda _: tmp_path)
    command = LlamaCpp().command(folder, Settings(), host="127.0.0.1", port=81)
    assert command.words[0] == str(tmp_path / "llama-server")
    prebuilt = LlamaCpp().command(folder, Settings(properties={"build": "prebuilt"}), host="127.0.0.1", port=81)
    assert prebuilt.words[0] == "/env/bin/python"
    assert "--build" not in prebuilt.words


@pytest.mark.usefixtures("installed")
def test_a_file_that_is_cut_off(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInputError, match="cut off or damaged"):
        LlamaCpp().command(tmp_path, Settings(), host="127.0.0.1", port=81)


def test_a_file_of_a_version_to_come(tmp_path: Path) -> None:
    path = make_tiny_gguf(tmp_path / "new.gguf")
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", 9)
    path.write_bytes(data)
    with pytest.raises(BadInputError, match=r"version 9, which is newer"):
        gguf.Gguf(path)


@pytest.mark.usefixtures("installed")
def test_no_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotEnoughError, match="of KV cache") as caught:
        LlamaCpp().command(folder, Settings(properties={"ctx-size": 10**9}), host="127.0.0.1", port=81)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("E llama_model_load: error loading model: unknown model architecture: 'kraken'", "'kraken'"),
        ("error: invalid argument: --spec-thing", "--spec-thing"),
        ("E gguf_init_from_file: tensor 'a' of type 99 (unknown type)", "too old"),
        ("E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 9", "no room"),
        ("0.00.1 E srv load_model: failed to load the thing", "failed to load the thing"),
    ],
)
def test_it_says_why_the_server_ended(line: str, said: str) -> None:
    sentence = explain(["first", line, "E main: exiting due to model loading error"])
    assert sentence is not None
    assert said in sentence
    assert sentence.endswith(".")


def test_its_versions_are_the_lock_s() -> None:
    assert pinned("xllamacpp").startswith("2026.")
    assert pinned("llama-cpp-python")
    with pytest.raises(EngineError):
        pinned("llama")


# Techniques


@pytest.mark.usefixtures("installed")
def test_what_is_for_openvino_is_not_for_it_and_the_other_way_round(tmp_path: Path) -> None:
    model = models.resolve(str(make_tiny_model(tmp_path / "tiny")))
    for name, engine in (("int8", "llamacpp"), ("compile", "llamacpp"), ("k-quant", "fake"), ("imatrix", "fake")):
        with pytest.raises(IllegalRecipeError, match=name):
            planning.make(Recipe(str(model.path), [make(name)], engine=engine), model)
    ways, _ = space.weights(model, find("llamacpp"))
    assert {way.name() for way in ways} == {"k-quant", "imatrix"}
    assert len({way.label for way in ways}) == len(ways) > 4
    served = {technique.name() for technique in space.serving(find("llamacpp"))}
    assert served == {"chunked-prefill", "kv-cache", "prefix-caching", "prompt-lookup"}


@pytest.mark.usefixtures("installed")
def test_a_gguf_is_not_converted_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    model = models.resolve(str(make_tiny_gguf(tmp_path / "tiny.gguf")))
    plan = planning.make(Recipe(str(model.path), engine="llamacpp"), model)
    assert [step.label for step in plan.steps] == ["as-is"]


def test_a_gguf_is_served_as_it_comes(tmp_path: Path) -> None:
    source = make_tiny_gguf(tmp_path / "tiny.gguf", weights="Q4_1")
    model = models.resolve(str(source))
    target = tmp_path / "out"
    target.mkdir()
    files.export(Step(source=source, target=target, format="gguf", facts=model.facts), make("as-is"))
    assert (target / "model.gguf").read_bytes() == source.read_bytes()
    assert files.facts(target).vocab_size == model.facts.vocab_size
    with pytest.raises(IllegalRecipeError, match="as it comes"):
        files.export(
            Step(source=source, target=target, format="gguf", facts=model.facts),
            make({"name": "as-is", "precision": "bf16"}),
        )


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "qwen2"])
def test_there_and_back_gives_the_same_model(
    architecture: Literal["llama", "mixtral", "qwen2"], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    source = make_tiny_model(tmp_path / "hf", architecture)
    convert.convert(source, tmp_path / "a.gguf", "fp32")
    gguf.convert(tmp_path / "a.gguf", tmp_path / "back")
    want, have = (load_file(path / "model.safetensors") for path in (source, tmp_path / "back"))
    assert want.keys() == have.keys()
    for name, array in want.items():
        # What is read back is float16.
        np.testing.assert_allclose(have[name].astype(np.float32), array, rtol=2e-3, atol=1e-6)
    first, second = (Tokenizer.from_file(str(path / "tokenizer.json")) for path in (source, tmp_path / "back"))
    assert first.encode(convert.SAMPLE).ids == second.encode(convert.SAMPLE).ids
    config = json.loads((tmp_path / "back" / "config.json").read_text(encoding="utf-8"))
    told = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for key in ("rope_theta", "rms_norm_eps", "num_key_value_heads", "max_position_embeddings"):
        assert config[key] == pytest.approx(told[key])
    assert (tmp_path / "back" / "chat_template.jinja").is_file()


def test_a_type_of_model_that_can_not_be_converted(tmp_path: Path) -> None:
    source = make_tiny_model(tmp_path / "hf")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (source / "config.json").write_text(json.dumps(config | {"model_type": "gemma9"}), encoding="utf-8")
    with pytest.raises(BadInputError, match="'gemma9'"):
        convert.convert(source, tmp_path / "a.gguf", "fp16")


def test_a_tokenizer_that_can_not_be_told_is_refused(tmp_path: Path) -> None:
    source = make_tiny_model(tmp_path / "hf")
    document = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    document["pre_tokenizer"] = {"type": "Whitespace"}
    (source / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(BadInputError, match="rule"):
        convert.convert(source, tmp_path / "a.gguf", "fp16")


def shapes(width: int, layers: int, *, tied: bool) -> dict[str, tuple[int, ...]]:
    parts = {f"{part}.weight": (width, width) for part in ("attn_q", "attn_v", "attn_output", "ffn_down", "ffn_up")}
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (512, width), "output_norm.weight": (width,)}
    for layer in range(layers):
        found |= {f"blk.{layer}.{part}": shape for part, shape in parts.items()}
        found[f"blk.{layer}.attn_norm.weight"] = (width,)
    return found if tied else found | {"output.weight": (512, width)}


def test_the_mixture_is_llama_cpp_s() -> None:
    found = tensor_types(shapes(256, 32, tied=False), "q4_k_m")
    assert found["token_embd.weight"] == "Q4_K"
    assert found["output.weight"] == "Q6_K"
    more = [layer for layer in range(32) if found[f"blk.{layer}.ffn_down.weight"] == "Q6_K"]
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert found["blk.5.attn_q.weight"] == found["blk.5.attn_output.weight"] == "Q4_K"
    assert "blk.0.attn_norm.weight" not in found


@pytest.mark.parametrize("kind", ["q3_k_m", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "iq4_nl"])
def test_rows_that_are_no_multiple_of_256_take_blocks_of_32(kind: str) -> None:
    found = tensor_types(shapes(576, 8, tied=True), kind)
    assert {value for value in found.values() if value.endswith("_K")} == set()
    assert found["token_embd.weight"] in ("Q8_0", "Q6_K", "Q8_0")
    assert tensor_types(shapes(40, 2, tied=True), kind) == {}


def test_a_model_whose_rows_do_not_fit_any_block_is_refused() -> None:
    facts = FACTS.model_copy(update={"hidden_size": 40})
    for name in ("k-quant", "imatrix"):
        with pytest.raises(IllegalRecipeError, match="40"):
            make(name).check(facts)


def test_a_model_has_a_name(folder: Path) -> None:
    assert isinstance(models.resolve(str(folder / "model.gguf")), Model)
