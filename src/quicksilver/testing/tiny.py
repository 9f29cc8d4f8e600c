"""Tiny models with random weights, made in a moment: whole Hugging Face directories and GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

Architecture = Literal["llama", "mistral", "mixtral", "qwen2"]

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Enough different words for the merges of a vocabulary of 512.
_TEXT = """
The question is which of these answers is right, and the answer is that some of them are and others are not. Every model
reads the words before it and predicts the word that comes next; what it has learned stands in its weights. In the city
there were many people who had never seen the river, though it ran behind their houses and under the old stone bridge.
She wrote a letter to her brother, who lived in another country, and told him about the winter, the market and the school.
When a system answers quickly, people use it more often, and so its speed matters as much as what each request costs.
A context holds several paragraphs: two of them support the answer, three were chosen because they look much the same.
Between nineteen hundred and two thousand the number of books, films and records grew faster than anyone had expected.
Please explain in one or two sentences why the first statement follows from the second, using only what the text says.
Water flows down the mountain through the forest into the lake, where ships carry wood, bread, glass and paper to the town.
def measure(values): return sum(values) / len(values) if values else None  # import json, print(result), for i in range(10)
"""


def make_tiny_model(
    path: Path,
    architecture: Architecture = "llama",
    *,
    seed: int = 0,
    hidden_size: int = 64,
    intermediate_size: int = 128,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    vocab_size: int = 512,
    max_positions: int = 2048,
    experts: int = 4,
    tied_embeddings: bool = False,
    chat_template: bool = True,
) -> Path:
    """Write a Hugging Face directory with random float32 weights, and return it.

    The weights depend on the seed and the shape alone. The tokenizer is the same for every seed of one vocabulary size: it
    is a byte-level BPE that encodes every text, with `<|im_end|>` (2) for its end.
    """
    from safetensors.numpy import save_file

    path.mkdir(parents=True, exist_ok=True)
    config = _config(
        architecture,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        vocab_size=vocab_size,
        max_positions=max_positions,
        experts=experts,
        tied_embeddings=tied_embeddings,
    )
    save_file(_weights(config, seed), path / "model.safetensors", metadata={"format": "pt"})
    make_tiny_tokenizer(vocab_size).save(str(path / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": _SPECIAL[1],
        "eos_token": _SPECIAL[2],
        "pad_token": _SPECIAL[2],
        "unk_token": _SPECIAL[0],
        "model_max_length": max_positions,
    }
    documents = {
        "tokenizer_config.json": tokenizer_config,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        "config.json": config,
    }
    for name, document in documents.items():
        (path / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if chat_template:
        (path / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return path


def make_tiny_tokenizer(vocab_size: int = 512) -> Tokenizer:
    """Train a byte-level BPE tokenizer of exactly this many tokens (260 to 680) on a fixed text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_TEXT.splitlines(), trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"A tiny tokenizer has 260 to 680 tokens, not {vocab_size}.")
    return tokenizer


def make_tiny_gguf(
    path: Path,
    architecture: Literal["llama", "mixtral", "qwen2"] = "llama",
    *,
    seed: int = 0,
    weights: str = "F16",
    tied_embeddings: bool = False,
    metadata: dict[str, str | bool | int | float] | None = None,
) -> Path:
    """Write a GGUF file that holds `make_tiny_model`'s default weights for the same seed, and return it.

    `weights` is the format of its matrices: F32, F16, BF16, Q8_0, Q4_0 or Q4_1. `metadata` is written last, as further entries.
    """
    import gguf
    import numpy as np

    config = _config(architecture, tied_embeddings=tied_embeddings)
    kind = gguf.GGMLQuantizationType[weights]
    writer = gguf.GGUFWriter(path, "qwen2" if architecture == "qwen2" else "llama")
    _describe(writer, config)
    for key, value in (metadata or {}).items():
        {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}[type(value)](
            key, value
        )
    for name, array in _gguf_tensors(config, _weights(config, seed)).items():
        if array.ndim == 1:
            writer.add_tensor(name, array.astype(np.float32))
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _config(
    architecture: str,
    *,
    hidden_size: int = 64,
    intermediate_size: int = 128,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    vocab_size: int = 512,
    max_positions: int = 2048,
    experts: int = 4,
    tied_embeddings: bool = False,
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": [_CLASSES[architecture]],
        "model_type": architecture,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden_size // heads,
        "vocab_size": vocab_size,
        "max_position_embeddings": max_positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "sliding_window": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": tied_embeddings,
        "dtype": "float32",
    }
    return config | ({"num_local_experts": experts, "num_experts_per_tok": 2} if architecture == "mixtral" else {})


def _weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Draw the weights so that activations keep their size and the logits are clearly apart."""
    import numpy as np

    random = np.random.default_rng(seed)
    width, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]

    def matrix(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
        return np.asarray(random.standard_normal((rows, columns)) * gain / np.sqrt(columns), dtype=np.float32)

    def norm() -> np.ndarray:
        return np.asarray(random.uniform(0.8, 1.2, width), dtype=np.float32)

    tensors = {"model.embed_tokens.weight": matrix(vocab, width, gain=4.0)}
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        tensors[f"{block}.input_layernorm.weight"] = norm()
        for part, rows in (("q", queries), ("k", keys), ("v", keys)):
            tensors[f"{block}.self_attn.{part}_proj.weight"] = matrix(rows, width)
            if config["model_type"] == "qwen2":
                tensors[f"{block}.self_attn.{part}_proj.bias"] = random.standard_normal(rows).astype(
                    np.float32
                ) * np.float32(0.1)
        tensors[f"{block}.self_attn.o_proj.weight"] = matrix(width, queries)
        tensors[f"{block}.post_attention_layernorm.weight"] = norm()
        if config["model_type"] == "mixtral":
            tensors[f"{block}.block_sparse_moe.gate.weight"] = matrix(config["num_local_experts"], width)
            for expert in range(config["num_local_experts"]):
                for part, shape in {"w1": (inner, width), "w2": (width, inner), "w3": (inner, width)}.items():
                    tensors[f"{block}.block_sparse_moe.experts.{expert}.{part}.weight"] = matrix(*shape)
        else:
            for part, shape in {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}.items():
                tensors[f"{block}.mlp.{part}_proj.weight"] = matrix(*shape)
    tensors["model.norm.weight"] = norm()
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(vocab, width, gain=4.0)
    return tensors


def _describe(writer: Any, config: dict[str, Any]) -> None:
    """Write the metadata as llama.cpp's converter does."""
    tokenizer = json.loads(make_tiny_tokenizer(config["vocab_size"]).to_str())
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if "num_local_experts" in config:
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocab, key=lambda token: vocab[token]))
    writer.add_token_types([3 if number < len(_SPECIAL) else 1 for number in range(len(vocab))])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)


def _gguf_tensors(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename, reorder and stack the weights as llama.cpp's converter does."""
    import gguf
    import numpy as np

    kind = gguf.MODEL_ARCH.QWEN2 if config["model_type"] == "qwen2" else gguf.MODEL_ARCH.LLAMA
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    result: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if ".experts." in name:
            before, after = name.split(".experts.")
            expert, part = after.split(".", 1)
            if expert == "0":
                stack = [tensors[f"{before}.experts.{n}.{part}"] for n in range(config["num_local_experts"])]
                result[names.get_name(f"{before}.experts.{part}", (".weight",))] = np.stack(stack)
            continue
        heads = {"q_proj.weight": config["num_attention_heads"], "k_proj.weight": config["num_key_value_heads"]}
        part = name.rsplit("self_attn.", 1)[-1]
        if config["model_type"] != "qwen2" and part in heads:
            rows, width = array.shape
            array = array.reshape(heads[part], 2, rows // heads[part] // 2, width).swapaxes(1, 2).reshape(rows, width)  # noqa: PLW2901
        result[names.get_name(name, (".weight", ".bias"))] = array
    return result
