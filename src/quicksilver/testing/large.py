"""The facts of models of 8B, 1.1B and 135M, where estimates are proved and no weights are needed; and a maker of random ones."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from quicksilver.nouns import ModelFacts

LARGE = ModelFacts(
    architecture="llama",
    layers=32,
    hidden_size=4096,
    intermediate_size=14_336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab_size=128_256,
    max_positions=8192,
    parameters=8_000_000_000,
)

SMALL = ModelFacts(
    architecture="llama",
    layers=30,
    hidden_size=576,
    intermediate_size=1536,
    heads=9,
    kv_heads=3,
    head_dim=64,
    vocab_size=49152,
    max_positions=8192,
    parameters=134_515_008,
    tied_embeddings=True,
)
"""Those of SmolLM2-135M."""

BILLION = ModelFacts(
    architecture="llama",
    layers=22,
    hidden_size=2048,
    intermediate_size=5632,
    heads=32,
    kv_heads=4,
    head_dim=64,
    vocab_size=32_000,
    max_positions=4096,
    parameters=1_100_048_384,
    instruct=True,
)
"""The shape of TinyLlama 1.1B."""


def make_random_model(path: Path, facts: ModelFacts = BILLION, *, seed: int = 0) -> Path:
    """Write a Hugging Face directory of a Llama with random 16-bit weights, for measuring speed, and return it.

    Its tokenizer knows every token: those that its fixed text doesn't give are words of their own. Made whole or not at all.
    """
    import numpy as np
    from safetensors.numpy import save_file

    from quicksilver.testing.tiny import CHAT_TEMPLATE, make_tiny_tokenizer

    if path.is_dir():
        return path
    random = np.random.default_rng(seed)
    width, inner = facts.hidden_size, facts.intermediate_size
    queries, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim

    def matrix(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
        values = random.standard_normal((rows, columns), dtype=np.float32)
        return np.asarray(values * np.float32(gain / columns**0.5), dtype=np.float16)

    ones = np.ones(width, dtype=np.float16)
    tensors = {"model.embed_tokens.weight": matrix(facts.vocab_size, width), "model.norm.weight": ones.copy()}
    for layer in range(facts.layers):
        block = f"model.layers.{layer}"
        sizes = {
            "self_attn.q_proj": (queries, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, queries),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }
        tensors |= {f"{block}.{name}.weight": matrix(*size) for name, size in sizes.items()}
        tensors |= {f"{block}.{name}_layernorm.weight": ones.copy() for name in ("input", "post_attention")}
    if not facts.tied_embeddings:
        tensors["lm_head.weight"] = matrix(facts.vocab_size, width, gain=4.0)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": facts.layers,
        "num_attention_heads": facts.heads,
        "num_key_value_heads": facts.kv_heads,
        "head_dim": facts.head_dim,
        "vocab_size": facts.vocab_size,
        "max_position_embeddings": facts.max_positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": facts.tied_embeddings,
        "dtype": "float16",
    }
    tokenizer = json.loads(make_tiny_tokenizer().to_str())
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    vocabulary |= {f"Ġw{number}": number for number in range(len(vocabulary), facts.vocab_size)}
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    documents = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<|endoftext|>", **names},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for name, document in documents.items():
            (folder / name).write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
        folder.rename(path)
    return path
