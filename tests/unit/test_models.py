"""What a user names becomes a model, or one sentence that says why not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import read_only
from hypothesis import given
from hypothesis import strategies as st

from quicksilver.errors import BadInputError
from quicksilver.sources import catalogue, models
from quicksilver.sources.directory import safetensors_shapes
from quicksilver.sources.models import resolve
from quicksilver.testing.tiny import Architecture, make_tiny_gguf, make_tiny_model


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICKSILVER_HOME", str(tmp_path / "home"))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "tiny")


def edit(path: Path, **changes: object) -> None:
    document = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}), encoding="utf-8")


@pytest.mark.parametrize("architecture", ["llama", "mistral", "mixtral", "qwen2"])
def test_the_facts_are_those_of_the_loaded_model(tmp_path: Path, architecture: Architecture) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    path = make_tiny_model(tmp_path / "m", architecture, tied_embeddings=architecture == "qwen2")
    model = resolve(str(path))
    loaded, report = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), "every weight is named as transformers expects it"
    facts = model.facts
    assert facts.parameters == sum(p.numel() for p in loaded.parameters())
    assert (facts.architecture, facts.layers, facts.hidden_size, facts.intermediate_size) == (architecture, 2, 64, 128)
    assert (facts.heads, facts.kv_heads, facts.head_dim, facts.vocab_size, facts.max_positions) == (4, 2, 16, 512, 2048)
    assert facts.experts == (4 if architecture == "mixtral" else 0)
    assert facts.tied_embeddings == (architecture == "qwen2")
    assert facts.instruct
    assert (model.kind, model.name, model.path) == ("hf", "m", path)
    ids = torch.tensor([[1, 40, 41, 42]])
    assert loaded.generate(ids, max_new_tokens=4, do_sample=False).shape == (1, 8)


def test_a_gguf_has_the_facts_of_the_directory_it_was_made_of(tmp_path: Path, tiny: Path) -> None:
    model = resolve(str(make_tiny_gguf(tmp_path / "tiny.gguf", weights="Q8_0")))
    assert model.facts == resolve(str(tiny)).facts
    assert (model.kind, model.name) == ("gguf", "tiny")
    assert "dequantised from Q8_0" in model.remark
    assert resolve(str(make_tiny_gguf(tmp_path / "f16.gguf", weights="F16"))).remark == ""


def test_a_model_without_a_chat_template_is_no_instruct_model(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path / "base", chat_template=False)
    assert not resolve(str(path)).facts.instruct
    edit(path / "tokenizer_config.json", chat_template="{{ messages }}")
    assert resolve(str(path)).facts.instruct


def test_the_fingerprint_follows_the_bytes_not_the_path(tmp_path: Path, tiny: Path) -> None:
    shutil.copytree(tiny, tmp_path / "copy")
    same, other = resolve(str(tmp_path / "copy")), resolve(str(make_tiny_model(tmp_path / "other", seed=1)))
    assert resolve(str(tiny)).hash == same.hash
    assert other.hash != same.hash
    edit(tmp_path / "copy" / "config.json", rope_theta=20000.0)
    assert resolve(str(tmp_path / "copy")).hash != same.hash


def test_a_file_is_hashed_once_while_it_stays_as_it_is(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in tiny.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    first = resolve(str(tiny))
    real = models.hashlib.file_digest  # type: ignore[attr-defined]
    hashed: list[str] = []
    monkeypatch.setattr(models.hashlib, "file_digest", lambda f, kind: (hashed.append(f.name), real(f, kind))[1])  # type: ignore[attr-defined,func-returns-value]
    assert resolve(str(tiny)) == first
    assert hashed == []
    weights = tiny / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert resolve(str(tiny)).fingerprint != first.fingerprint
    assert hashed == [str(weights)]


def test_a_damaged_memory_is_computed_again(tiny: Path, tmp_path: Path) -> None:
    for path in tiny.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    first = resolve(str(tiny))
    kept = list((tmp_path / "home" / "fingerprints").glob("*.json"))
    assert kept
    for number, path in enumerate(kept):
        path.write_text(["", "[]", '{"version": 1}'][number % 3], encoding="utf-8")
    assert resolve(str(tiny)) == first


def test_a_model_is_read_where_nothing_can_be_remembered(tiny: Path, tmp_path: Path) -> None:
    for path in tiny.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    with read_only(home):
        assert resolve(str(tiny)).fingerprint
    assert not list(home.iterdir())


def test_the_licence_comes_from_the_model_card(tiny: Path) -> None:
    assert resolve(str(tiny)).licence == "not stated"
    (tiny / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n", encoding="utf-8")
    assert resolve(str(tiny)).licence == "apache-2.0"
    (tiny / "README.md").write_text("---\nlicense: [\n---\n", encoding="utf-8")
    assert resolve(str(tiny)).licence == "not stated"


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def halved(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def header_cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def shard_missing(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors", "lm_head.weight": "model-00002-of-00002.safetensors"}}  # fmt: skip
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def tensor_missing(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.nothing": "a.safetensors"}}), encoding="utf-8"
    )


def shard_outside(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "a.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"lm_head.weight": "../a.safetensors"}}),
        encoding="utf-8",
    )


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / "config.json").write_text("{", encoding="utf-8"), "not valid JSON"),
        (lambda d: (d / "config.json").write_text("[]", encoding="utf-8"), "no JSON object"),
        (lambda d: edit(d / "config.json", num_hidden_layers=None), "doesn't say num_hidden_layers"),
        (lambda d: edit(d / "config.json", num_attention_heads=0, head_dim=None), "something that can't be"),
        (
            lambda d: edit(d / "config.json", auto_map={"AutoModel": "x.Y"}),
            "brings code of its own (auto_map in config",
        ),
        (lambda d: edit(d / "tokenizer_config.json", auto_map={}), "brings code of its own (auto_map in tokenizer"),
        (lambda d: (d / "modeling_x.py").write_text("", encoding="utf-8"), "brings code of its own (modeling_x.py)"),
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda d: (d / "tokenizer.json").rename(d / "tokenizer.model"), "only in an old form"),
        (lambda d: (d / "model.safetensors").unlink(), "holds no weights"),
        (pickled, "only as pickle files (pytorch_model.bin)"),
        (halved, "cut off or damaged"),
        (header_cut, "its header doesn't end"),
        (shard_missing, "names model-00002-of-00002.safetensors, which is missing"),
        (tensor_missing, "no file holds model.nothing"),
        (shard_outside, "names ../a.safetensors, which is missing"),
    ],
)
def test_a_spoilt_directory_gives_one_sentence(tiny: Path, spoil: Callable[[Path], object], sentence: str) -> None:
    spoil(tiny)
    with pytest.raises(BadInputError, match=re.escape(sentence)) as caught:
        resolve(str(tiny))
    assert "\n" not in str(caught.value)


def test_shards_are_read_as_one_model(tiny: Path) -> None:
    from safetensors.numpy import load_file, save_file

    whole = resolve(str(tiny)).facts
    tensors = load_file(tiny / "model.safetensors")
    names = sorted(tensors)
    files = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, tiny / file)
    (tiny / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (tiny / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert resolve(str(tiny)).facts == whole


@given(st.binary(max_size=80))
def test_no_bytes_crash_the_safetensors_check(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "x.safetensors"
    for content in (data, len(data).to_bytes(8, "little") + data):
        path.write_bytes(content)
        try:
            assert isinstance(safetensors_shapes(path), dict)
        except BadInputError:
            continue


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("smollm2-135m-instuct", "did you mean 'smollm2-135m-instruct'?"),
        ("zzz", "known: llama-3-70b-instruct"),
        ("./nothing", "There is no model at ./nothing."),
        ("nothing.gguf", "There is no model at nothing.gguf."),
    ],
)
def test_an_unknown_name_gives_a_suggestion(source: str, sentence: str) -> None:
    with pytest.raises(BadInputError, match=re.escape(sentence)):
        resolve(source)


def test_single_files_that_are_no_model(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("{}", encoding="utf-8")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    for path, sentence in {
        tmp_path / "prompts.jsonl": "is not a GGUF file",
        tmp_path / "pytorch_model.bin": "is one file of a model",
        tiny / "model.safetensors": "is one file of a model",
    }.items():
        with pytest.raises(BadInputError, match=sentence):
            resolve(str(path))


def test_a_directory_with_only_a_gguf_says_to_give_the_file(tmp_path: Path) -> None:
    make_tiny_gguf(tmp_path / "x.gguf")
    with pytest.raises(BadInputError, match=r"it holds x\.gguf: give that file"):
        resolve(str(tmp_path))


def test_a_gguf_cut_in_half(tmp_path: Path) -> None:
    path = make_tiny_gguf(tmp_path / "x.gguf")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadInputError, match="cut off or damaged"):
        resolve(str(path))


@pytest.mark.parametrize("source", ["llama-3-8b-instruct", "meta-llama/Llama-3.1-70B-Instruct"])
def test_a_licence_has_to_be_accepted_first(source: str) -> None:
    with pytest.raises(BadInputError, match=r"Community License; .* --accept-licence"):
        resolve(source)


def test_the_catalogue_names_the_headline_models() -> None:
    assert len(set(catalogue.names())) == len(catalogue.names()) == 8
    assert all((entry.hub is None) != (entry.package is None) for entry in catalogue.ENTRIES)
    assert {entry.name for entry in catalogue.ENTRIES if entry.needs_acceptance} == {
        name for name in catalogue.names() if name.startswith("llama")
    }


@pytest.mark.real
def test_smollm2_comes_from_its_package(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICKSILVER_HOME", str(shared_home))
    model = resolve("smollm2-135m-instruct")
    assert (model.facts.parameters, model.facts.max_positions, model.facts.instruct) == (134_515_008, 8192, True)
    assert model.licence == "Apache-2.0"
    assert "4-bit" in model.remark
    assert model.fingerprint.startswith("b179c952")


def test_a_tiny_model_is_the_same_in_every_process(tmp_path: Path, tiny: Path) -> None:
    script = (
        "import sys, pathlib; from quicksilver.testing.tiny import make_tiny_model as m; m(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "again")], check=True)
    assert resolve(str(tmp_path / "again")).fingerprint == resolve(str(tiny)).fingerprint
    assert resolve(str(make_tiny_model(tmp_path / "other", seed=1))).fingerprint != resolve(str(tiny)).fingerprint
