"""GGUF files: checked, described, and converted to a Hugging Face directory without torch or transformers.

Weights are written as float16, two bytes a weight. A dequantised weight (for Q4_1: step x code + minimum) is not always a
float16 number; rounding it is off by at most 2^-11 of its size, against steps of 1/15 of a group's range. A tensor that
float16 can't hold stays float32.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quicksilver.errors import BadInputError
from quicksilver.sources.gguf_tokenizer import tokenizer, tokenizer_config
from quicksilver.sources.home import need_disk, writing

if TYPE_CHECKING:
    import numpy as np

MAGIC = b"GGUF"
NEWEST, OTHER_ENDIAN = 3, 1 << 16
SHARD_BYTES = 4_000_000_000

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_ATTENTION = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
}
_MLP = {f"ffn_{part}.weight": f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
_EXPERTS = {"ffn_gate_exps.weight": "w1", "ffn_down_exps.weight": "w2", "ffn_up_exps.weight": "w3"}
_BLOCK = {
    "llama": _ATTENTION | _MLP,
    "mixtral": _ATTENTION
    | {"ffn_gate_inp.weight": "block_sparse_moe.gate.weight"}
    | {name: f"block_sparse_moe.experts.*.{part}.weight" for name, part in _EXPERTS.items()},
    "qwen2": _ATTENTION | _MLP | {f"attn_{part}.bias": f"self_attn.{part}_proj.bias" for part in "qkv"},
    "qwen3": _ATTENTION | _MLP | {f"attn_{part}_norm.weight": f"self_attn.{part}_norm.weight" for part in "qk"},
}
"""The tensors of one layer, by the model type that they make: the name in the GGUF, the name in a Hugging Face directory."""


class Gguf:
    """An open GGUF file whose header and tensor extents have been checked. Raises BadInputError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise BadInputError(f"{path} is not a GGUF file: it doesn't begin with the bytes 'GGUF'.")
            version = int.from_bytes(file.read(4), "little")
            if NEWEST < version < OTHER_ENDIAN:
                raise BadInputError(
                    f"{path} is a GGUF of version {version}, which is newer than what can be read here (up to {NEWEST})."
                )
        from gguf import GGUFReader

        try:
            # The reader maps every tensor into the file, and so fails on one that reaches beyond its end.
            self.reader = GGUFReader(path)
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            raise BadInputError(
                f"{path} is a GGUF file that is cut off or damaged ({path.stat().st_size:,} bytes are there); download it again."
            ) from error
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        self._values: dict[str, Any] = {}

    def value(self, key: str) -> Any:
        """Return a metadata value, or None when the file doesn't have it."""
        if key not in self._values:
            field = self.reader.fields.get(key)
            try:
                self._values[key] = None if field is None else field.contents()
            except UnicodeDecodeError as error:
                raise BadInputError(f"{self.path} is damaged: its entry {key} is not text.") from error
        return self._values[key]

    @property
    def model_type(self) -> str:
        """The Hugging Face model type that it makes. Raises BadInputError for an architecture that can't be converted."""
        architecture = self.value("general.architecture")
        if architecture == "llama" and self.value("llama.expert_count"):
            return "mixtral"
        if architecture not in _BLOCK:
            raise BadInputError(
                f"{self.path} is of the architecture {architecture!r}, which can't be converted from GGUF; "
                f"{', '.join(sorted(_BLOCK))} can (or give the model's Hugging Face directory)."
            )
        return str(architecture)

    @property
    def weight_format(self) -> str:
        """The format that most of its weights are in, such as Q4_1."""
        elements: Counter[str] = Counter()
        for tensor in self.tensors.values():
            elements[tensor.tensor_type.name] += int(tensor.n_elements)
        return elements.most_common(1)[0][0] if elements else "none"

    @property
    def parameters(self) -> int:
        """The number of weights; the table of rotary factors is not one."""
        return sum(int(t.n_elements) for name, t in self.tensors.items() if name != "rope_freqs.weight")


def config(gguf: Gguf) -> dict[str, Any]:
    """Return config.json of the model in a GGUF file. Raises BadInputError for what can't be converted faithfully."""
    kind = gguf.model_type
    architecture = gguf.value("general.architecture")

    def number(key: str, default: float | None = None) -> Any:
        found = gguf.value(f"{architecture}.{key}")
        if found is None and default is None:
            raise BadInputError(f"{gguf.path} is damaged: it doesn't say {architecture}.{key}.")
        if isinstance(found, list):
            raise BadInputError(f"{gguf.path} has layers that differ in {key}, which can't be converted.")
        return default if found is None else found

    if "token_embd.weight" not in gguf.tensors:
        raise BadInputError(f"{gguf.path} is damaged or no language model: it has no tensor token_embd.weight.")
    heads = int(number("attention.head_count"))
    width = int(number("embedding_length"))
    head_dim = int(number("attention.key_length", width // heads))
    theta = float(number("rope.freq_base", 10_000.0))
    if int(number("rope.dimension_count", head_dim)) != head_dim:
        raise BadInputError(f"{gguf.path} turns only a part of each head's positions, which can't be converted.")
    result: dict[str, Any] = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": int(number("feed_forward_length")),
        "num_hidden_layers": int(number("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(number("attention.head_count_kv", heads)),
        "head_dim": head_dim,
        "vocab_size": int(gguf.tensors["token_embd.weight"].shape[1]),
        "max_position_embeddings": int(number("context_length")),
        "rms_norm_eps": float(f"{number('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "dtype": "float16",
    }
    if kind == "mixtral":
        result["num_local_experts"] = int(number("expert_count"))
        result["num_experts_per_tok"] = int(number("expert_used_count"))
    if scaling := _rope_scaling(gguf, theta, head_dim):
        result["rope_scaling"] = scaling
    for name in ("bos", "eos"):
        result[f"{name}_token_id"] = gguf.value(f"tokenizer.ggml.{name}_token_id")
    result["pad_token_id"] = gguf.value("tokenizer.ggml.padding_token_id")
    return result


def convert(gguf: Path, target: Path) -> None:
    """Write the model in a GGUF file as a Hugging Face directory into an existing or new folder.

    config.json is written last: a folder without it is not finished. Raises BadInputError for a file that is damaged or
    can't be converted faithfully, NotEnoughError for a full disk.
    """
    source = Gguf(gguf)
    made = config(source)
    _check_tensors(source, made)
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        need_disk(target, 2 * source.parameters, f"Converting {gguf.name}")
        _write_tokenizer(source, target)
        _write_weights(source, made, target)
        _write_json(target / "config.json", made)


def describe(gguf: Path, target: Path) -> None:
    """Write all of a Hugging Face directory but the weights for the model in a GGUF file. Raises as `convert` does."""
    source = Gguf(gguf)
    made = config(source)
    with writing(target):
        _write_tokenizer(source, target)
        _write_json(target / "config.json", made)


def _write_tokenizer(source: Gguf, target: Path) -> None:
    tokenizer(source.value).save(str(target / "tokenizer.json"))
    _write_json(target / "tokenizer_config.json", tokenizer_config(source.value))
    if template := source.value("tokenizer.chat_template"):
        (target / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write_json(target / "generation_config.json", _generation_config(source))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _generation_config(gguf: Gguf) -> dict[str, Any]:
    ids = {name: gguf.value(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "padding")}
    ends = list(dict.fromkeys(n for n in (ids["eos"], ids["eot"]) if n is not None))
    values = {
        "bos_token_id": ids["bos"],
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": ids["padding"],
    }
    return {name: value for name, value in values.items() if value is not None}


def _rope_scaling(gguf: Gguf, theta: float, head_dim: int) -> dict[str, Any] | None:
    """Return how rotary positions are stretched, in config.json's words."""
    prefix = f"{gguf.value('general.architecture')}.rope.scaling"
    kind = gguf.value(f"{prefix}.type")
    if "rope_freqs.weight" in gguf.tensors:
        return _llama3_scaling(gguf, theta, head_dim)
    if kind in (None, "none"):
        return None
    factor = gguf.value(f"{prefix}.factor")
    original = gguf.value(f"{prefix}.original_context_length")
    if kind == "linear" and factor:
        return {"rope_type": "linear", "factor": float(factor)}
    if kind == "yarn" and factor and original:
        return {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": int(original)}
    raise BadInputError(f"{gguf.path} stretches positions by the method {kind!r}, which can't be converted.")


def _llama3_scaling(gguf: Gguf, theta: float, head_dim: int) -> dict[str, Any]:
    """Recover Llama 3.1's parameters from the table of factors that llama.cpp's converter computes of them.

    The formula is `_compute_llama3_parameters` of transformers' modeling_rope_utils.
    """
    factors = [float(x) for x in _dequantised(gguf, "rope_freqs.weight")]
    low, high, original, factor = 1.0, 4.0, 8192, max(factors)
    expected = []
    for index in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * index / head_dim)
        smooth = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        expected.append(1 / ((1 - smooth) / factor + smooth))
    if len(factors) != len(expected) or any(abs(a / b - 1) > 1e-3 for a, b in zip(factors, expected, strict=True)):
        raise BadInputError(
            f"{gguf.path} stretches positions by a table that is not Llama 3's, which can't be converted."
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _check_tensors(gguf: Gguf, made: dict[str, Any]) -> None:
    """Compare the tensors by name with those the architecture has: a missing or unknown one would change the model."""
    block = _BLOCK[made["model_type"]]
    wanted = {f"blk.{layer}.{name}" for layer in range(made["num_hidden_layers"]) for name in block}
    wanted |= {"token_embd.weight", "output_norm.weight"}
    have = gguf.tensors.keys() - {"rope_freqs.weight", "output.weight"}
    for names, what in ((wanted - have, "lacks the tensor"), (have - wanted, "holds an unknown tensor")):
        if names:
            raise BadInputError(f"{gguf.path} {what} {min(names)} ({len(names)} such in all); it can't be converted.")


def _dequantised(gguf: Gguf, name: str) -> np.ndarray:
    from gguf.quants import dequantize

    tensor = gguf.tensors[name]
    try:
        weights: np.ndarray = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise BadInputError(
            f"{gguf.path} holds weights as {tensor.tensor_type.name}, which can't be converted."
        ) from error
    return weights


def _converted(gguf: Gguf, made: dict[str, Any], name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a GGUF tensor under its Hugging Face name; a stack of experts becomes one tensor for each."""
    weights = _half(gguf, name)
    if name in _TOP:
        yield _TOP[name], weights
        return
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    if match is None:  # pragma: no cover - _check_tensors has seen every name
        raise BadInputError(f"{gguf.path} holds an unknown tensor {name}.")
    layer, part = match.groups()
    ours = f"model.layers.{layer}.{_BLOCK[made['model_type']][part]}"
    if made["model_type"] in ("llama", "mixtral") and part in ("attn_q.weight", "attn_k.weight"):
        heads = made["num_attention_heads"] if part == "attn_q.weight" else made["num_key_value_heads"]
        weights = unpermuted(weights, heads)
    if part in _EXPERTS:
        for expert, matrix in enumerate(weights):
            yield ours.replace("*", str(expert)), matrix
    else:
        yield ours, weights


def block_name(model_type: str, part: str) -> str:
    """Return the Hugging Face name, below its layer, of a tensor of a GGUF's block."""
    return _BLOCK[model_type][part]


def tensor_names(model_type: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the names of tensors in a GGUF and in a Hugging Face directory: outside of the layers, and below each layer.

    Raises KeyError for a model type that isn't converted.
    """
    return dict(_TOP), dict(_BLOCK[model_type])


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Put a head's rows into llama.cpp's order (rotary pairs side by side): [heads x dim, width], the same."""
    rows, width = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def unpermuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of a head's rows (rotary pairs side by side) back to halves: [heads x dim, width], the same."""
    rows, width = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _half(gguf: Gguf, name: str) -> np.ndarray:
    import numpy as np

    weights = _dequantised(gguf, name)
    with np.errstate(over="ignore"):
        half: np.ndarray = weights.astype(np.float16)
    if np.isfinite(half).all():
        return half
    if not np.isfinite(weights).all():
        raise BadInputError(f"{gguf.path} is damaged: {name} holds values that are not numbers.")
    return weights.astype(np.float32)


def _write_weights(gguf: Gguf, made: dict[str, Any], target: Path) -> None:
    """Write the weights in files of at most SHARD_BYTES, one of which is in memory at a time."""
    import numpy as np
    from safetensors.numpy import save_file

    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in gguf.tensors.items():
        if name == "rope_freqs.weight":
            continue
        added = 2 * int(tensor.n_elements)
        if shards[-1] and size + added > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += added
    index: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        arrays = {ours: np.ascontiguousarray(array) for name in names for ours, array in _converted(gguf, made, name)}
        save_file(arrays, target / file, metadata={"format": "pt"})
        index |= dict.fromkeys(arrays, file)
    if len(shards) > 1:
        _write_json(target / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
