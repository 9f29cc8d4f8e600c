"""A Hugging Face directory to GGUF, as llama.cpp's own converter does it: metadata, tokenizer, weights in its order.

The inverse of `quicksilver.sources.gguf`, for the same architectures. The layout is that of llama.cpp's `conversion` package and of
ggml's docs/gguf.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quicksilver.errors import BadInputError
from quicksilver.sources import gguf as reading
from quicksilver.sources.gguf_tokenizer import LLAMA3, QWEN2, Kind
from quicksilver.sources.gguf_tokenizer import tokenizer as rebuilt

if TYPE_CHECKING:
    import numpy as np

ARCHITECTURES = {"llama": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""The name in a GGUF, by config.json's model_type."""
TYPES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
SAMPLE = "In 1984, naïve  cafés sold 12345 things\n\n for £3.50 — don't ask!  你好 🎉\tif (x == 10) return;"


def convert(source: Path, target: Path, precision: str) -> None:
    """Write a Hugging Face directory as a GGUF file, its matrices as fp16, bf16 or fp32 and its vectors as fp32.

    Raises BadInputError for an architecture or a tokenizer that can't be converted faithfully.
    """
    import gguf
    import numpy as np

    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise BadInputError(
            f"A model of the type {kind!r} can't be converted to GGUF here ({', '.join(ARCHITECTURES)} can); "
            "give a GGUF file that llama.cpp's converter made of it."
        )
    writer = gguf.GGUFWriter(target, ARCHITECTURES[kind])
    tensors = dict(_tensors(source, config))
    if factors := _llama3_factors(config):
        tensors["rope_freqs.weight"] = (len(factors),), lambda: np.array(factors, dtype=np.float32)
    _describe(writer, config, source)
    _write_tokenizer(writer, source, config)
    wanted = gguf.GGMLQuantizationType[TYPES[precision]]
    kinds = {}
    for name, (shape, _) in tensors.items():
        kinds[name] = wanted if len(shape) > 1 and "ffn_gate_inp" not in name else gguf.GGMLQuantizationType.F32
        size = gguf.quants.quant_shape_to_byte_shape(shape, kinds[name])
        writer.add_tensor_info(name, size, np.dtype(np.uint8), math.prod(size), kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, (_, read) in tensors.items():
        # One at a time: a large model doesn't fit into memory twice.
        writer.write_tensor_data(np.ascontiguousarray(gguf.quants.quantize(read(), kinds[name])).view(np.uint8))
    writer.close()


def _describe(writer: Any, config: Mapping[str, Any], source: Path) -> None:
    import gguf

    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name(source.name)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    parameters = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(float(config.get("rope_theta") or parameters.get("rope_theta") or 10_000.0))
    if config.get("num_local_experts"):
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
    scaling = _scaling(config)
    if scaling.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["rope_type"]))
        writer.add_rope_scaling_factor(float(scaling["factor"]))
        if original := scaling.get("original_max_position_embeddings"):
            writer.add_rope_scaling_orig_ctx_len(int(original))
    elif scaling.get("rope_type") not in (None, "default", "llama3"):
        raise BadInputError(
            f"{source} stretches positions by the method {scaling['rope_type']!r}, which can't be converted to GGUF."
        )


def _scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    if "type" in found:
        found.setdefault("rope_type", found["type"])
    return found


def _llama3_factors(config: Mapping[str, Any]) -> list[float]:
    """Return the table by which Llama 3.1 slows rotary frequencies (`_compute_llama3_parameters` of transformers), inverted."""
    scaling = _scaling(config)
    if scaling.get("rope_type") != "llama3":
        return []
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    theta = float(config.get("rope_theta") or scaling.get("rope_theta") or 10_000.0)
    low, high, factor = (float(scaling[name]) for name in ("low_freq_factor", "high_freq_factor", "factor"))
    original = float(scaling["original_max_position_embeddings"])
    found = []
    for index in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * index / head_dim)
        smooth = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found


Tensor = tuple[tuple[int, ...], "Callable[[], np.ndarray]"]
"""A tensor's shape, and what reads it as float32."""


def _tensors(source: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors by their names in a GGUF, a stack of experts as one."""
    top, block = reading.tensor_names(config["model_type"])
    weights = _Weights(source)
    heads: dict[str, int] = {}
    if config["model_type"] in ("llama", "mixtral"):
        heads["attn_q.weight"] = config["num_attention_heads"]
        heads["attn_k.weight"] = config.get("num_key_value_heads") or config["num_attention_heads"]
    for ours, theirs in top.items():
        if ours == "output.weight" and (config.get("tie_word_embeddings") or theirs not in weights.files):
            continue
        yield ours, weights.tensor(theirs)
    for layer in range(config["num_hidden_layers"]):
        for part, theirs in block.items():
            name = f"model.layers.{layer}.{theirs}"
            if "*" in name:
                tensor = weights.stack([name.replace("*", str(n)) for n in range(config["num_local_experts"])])
            else:
                tensor = weights.tensor(name, heads.get(part))
            yield f"blk.{layer}.{part}", tensor


class _Weights:
    """Reads tensors out of a directory's safetensors files. Raises BadInputError for one that is missing."""

    def __init__(self, source: Path) -> None:
        from safetensors import safe_open

        self.files: dict[str, Any] = {}
        for file in sorted(source.glob("*.safetensors")):
            opened: Any = safe_open(file, framework="pt")
            self.files |= dict.fromkeys(opened.keys(), opened)

    def tensor(self, name: str, heads: int | None = None) -> Tensor:
        """Return a tensor, with the rows of so many heads in llama.cpp's order."""
        if name not in self.files:
            raise BadInputError(f"The model lacks the tensor {name}, so it can't be converted to GGUF.")
        shape = tuple(self.files[name].get_slice(name).get_shape())
        return shape, lambda: reading.permuted(self._read(name), heads) if heads else self._read(name)

    def stack(self, names: Sequence[str]) -> Tensor:
        """Return several tensors of one shape as one."""
        import numpy as np

        tensors = [self.tensor(name) for name in names]
        return (len(names), *tensors[0][0]), lambda: np.stack([read() for _, read in tensors])

    def _read(self, name: str) -> np.ndarray:
        import torch

        found: np.ndarray = self.files[name].get_tensor(name).to(torch.float32).numpy()
        return found


def _write_tokenizer(writer: Any, source: Path, config: Mapping[str, Any]) -> None:
    """Write the tokenizer's tokens, rules and template, and prove on a sample that they split text as the original does."""
    from tokenizers import Tokenizer

    path = source / "tokenizer.json"
    if not path.is_file():
        raise BadInputError(f"{source} has no tokenizer.json, so its tokenizer can't be converted to GGUF.")
    original = Tokenizer.from_file(str(path))
    document = json.loads(path.read_text(encoding="utf-8"))
    values = _tokenizer_values(document, original, config, source)
    if template := _template(source):
        values["tokenizer.chat_template"] = template
    made = rebuilt(values.get)
    if made.encode(SAMPLE).ids != original.encode(SAMPLE).ids:
        raise BadInputError(f"The tokenizer of {source} splits text by rules that can't be converted to GGUF.")
    for key, value in values.items():
        _write_value(writer, key, value)


def _tokenizer_values(
    document: Mapping[str, Any], original: Any, config: Mapping[str, Any], source: Path
) -> dict[str, Any]:
    """Return the tokenizer's metadata by GGUF's keys. Raises BadInputError for a tokenizer that can't be told in them."""
    vocab: dict[str, int] = original.get_vocab(with_added_tokens=True)
    # The matrix of embeddings may have more rows than there are tokens.
    tokens = [f"[PAD{number}]" for number in range(max(config["vocab_size"], max(vocab.values()) + 1))]
    kinds = [int(Kind.UNUSED)] * len(tokens)
    for token, number in vocab.items():
        tokens[number], kinds[number] = token, int(Kind.NORMAL)
    for added in document.get("added_tokens", ()):
        kinds[added["id"]] = int(Kind.CONTROL if added["special"] else Kind.USER_DEFINED)
    model = document["model"]
    if model.get("type") != "BPE":
        raise BadInputError(
            f"The tokenizer of {source} is of the kind {model.get('type')!r}, which can't be converted to GGUF."
        )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    values: dict[str, Any] = {"tokenizer.ggml.tokens": tokens}
    if model.get("byte_fallback"):
        # SentencePiece's scores are not in the file; the order of the merges is, and it is all that they are used for.
        scores = [0.0] * len(tokens)
        for rank, merge in reversed(list(enumerate(merges, start=1))):
            if (made := vocab.get(merge.replace(" ", "", 1))) is not None:
                scores[made] = -float(rank)
        for number, token in enumerate(tokens):
            if len(token) == 6 and token.startswith("<0x"):
                kinds[number] = int(Kind.BYTE)
        unknown = model.get("unk_token")
        if unknown in vocab:
            kinds[vocab[unknown]] = int(Kind.UNKNOWN)
            values["tokenizer.ggml.unknown_token_id"] = vocab[unknown]
        values |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": scores}
        values["tokenizer.ggml.add_space_prefix"] = "Prepend" in json.dumps(document.get("normalizer") or {})
    else:
        values |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": _rule(document, source)}
        values["tokenizer.ggml.merges"] = merges
    values["tokenizer.ggml.token_type"] = kinds
    return values | _special_tokens(original, config, source)


def _rule(document: Mapping[str, Any], source: Path) -> str:
    """Return llama.cpp's name of the rule by which a byte-level tokenizer splits text first."""
    first = document.get("pre_tokenizer") or {}
    parts = first.get("pretokenizers", [first])
    names = [part.get("type") for part in parts]
    patterns = [part["pattern"].get("Regex") for part in parts if part.get("type") == "Split"]
    if names == ["ByteLevel"]:
        return "gpt-2"
    if names == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    for known, name in ((LLAMA3, "llama-bpe"), (QWEN2, "qwen2")):
        if patterns == [known]:
            return name
    raise BadInputError(f"The tokenizer of {source} splits text by a rule that llama.cpp has no name for here.")


def _special_tokens(original: Any, config: Mapping[str, Any], source: Path) -> dict[str, Any]:
    generation = source / "generation_config.json"
    told = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
    values: dict[str, Any] = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        number = told.get(f"{name}_token_id", config.get(f"{name}_token_id"))
        numbers = [number] if isinstance(number, int) else list(number or ())
        if numbers:
            values[f"tokenizer.ggml.{key}_token_id"] = numbers[0]
        if name == "eos" and len(numbers) > 1:
            values["tokenizer.ggml.eot_token_id"] = numbers[1]
    framed, plain = original.encode("a").ids, original.encode("a", add_special_tokens=False).ids
    bos = values.get("tokenizer.ggml.bos_token_id")
    values["tokenizer.ggml.add_bos_token"] = bool(framed and framed != plain and framed[0] == bos)
    return values


def _template(source: Path) -> str | None:
    file = source / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = source / "tokenizer_config.json"
    found = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    return found if isinstance(found, str) else None


def _write_value(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_array(key, value)
