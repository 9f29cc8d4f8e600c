"""Rotation of a Hugging Face directory's weights: other numbers, the same function.

With an orthogonal R, RMSNorm(x R) = RMSNorm(x) R where the norm's own scales have been moved into the matrices that read
it. So the residual stream can be kept in rotated coordinates: the embeddings and what writes into the stream are multiplied by
R, what reads from it by its inverse (Ashkboos et al., SliceGPT, arXiv 2401.15024, and QuaRot, arXiv 2404.00456). A second
rotation, one for each layer's value heads, sits between v_proj and o_proj.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quicksilver.errors import BuildError
from quicksilver.sources.directory import inspect, safetensors_shapes

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURES = ("llama", "mistral", "mixtral", "qwen2", "qwen3")
SHARD_BYTES = 4_000_000_000
INDEX = "model.safetensors.index.json"

_EMBEDDINGS = re.compile(r"model\.embed_tokens\.weight")
_NORM = re.compile(r"model\.(norm|layers\.\d+\.(input|post_attention)_layernorm)\.weight")
_READS_ATTENTION = re.compile(r"(model\.layers\.\d+\.)self_attn\.[qkv]_proj\.weight")
_READS_MLP = re.compile(
    r"(model\.layers\.\d+\.)(mlp\.(gate|up)_proj|block_sparse_moe\.(gate|experts\.\d+\.w[13]))\.weight"
)
_WRITES = re.compile(
    r"model\.layers\.\d+\.(self_attn\.o_proj|mlp\.down_proj|block_sparse_moe\.experts\.\d+\.w2)\.(weight|bias)"
)
_KEPT = re.compile(
    r"model\.layers\.\d+\.(self_attn\.([qk]_norm\.weight|[qk]_proj\.bias|rotary_emb\.inv_freq)|mlp\.(gate|up)_proj\.bias)"
)
_VALUES = re.compile(r"model\.layers\.(\d+)\.self_attn\.v_proj\.(weight|bias)")
_VALUE_READER = re.compile(r"model\.layers\.(\d+)\.self_attn\.o_proj\.weight")
HEAD = "lm_head.weight"


def orthogonal(size: int, seed: int) -> NDArray[np.float64]:
    """Return an orthogonal matrix, size x size, whose entries are all small, with the signs of its rows drawn at random.

    For a power of two that is Sylvester's Hadamard matrix; an odd factor of the size is filled by the matrix of the discrete
    Hartley transform (Bracewell 1983), whose entries are at most sqrt(2) times the least that is possible.
    """
    from scipy.linalg import hadamard

    power = size & -size
    odd = size // power
    angles = 2 * np.pi * np.outer(np.arange(odd), np.arange(odd)) / odd
    hartley = (np.cos(angles) + np.sin(angles)) / np.sqrt(odd)
    matrix = np.kron(hadamard(power) / np.sqrt(power), hartley)
    signed: NDArray[np.float64] = matrix * np.random.default_rng(seed).choice([-1.0, 1.0], size)[:, None]
    return signed


def rotate(source: Path, target: Path, *, seed: int = 0) -> None:
    """Write a Hugging Face directory with rotated weights, in float16 (float32 where they were).

    Embeddings that were tied are so no longer, since only the output reads the last norm's scales. Raises BuildError for
    a tensor that it doesn't know.
    """
    found = inspect(source)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for path in found.small:
        shutil.copyfile(path, target / path.name)
    (target / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}, indent=1), encoding="utf-8")
    _write(target, _Rotation(_Weights(found.weights), config, seed).tensors())


class _Weights:
    """The tensors of a directory, read one at a time."""

    def __init__(self, files: Iterable[Path]) -> None:
        from safetensors import safe_open

        self._files: dict[str, Any] = {}
        for path in files:
            self._files |= dict.fromkeys(safetensors_shapes(path), safe_open(path, framework="pt"))

    def names(self) -> list[str]:
        return list(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


class _Rotation:
    """What becomes of each tensor of a model."""

    def __init__(self, weights: _Weights, config: dict[str, Any], seed: int) -> None:
        import torch

        self._weights = weights
        self._seed = seed
        self._width = int(config["hidden_size"])
        self._head = int(config.get("head_dim") or self._width // config["num_attention_heads"])
        self._tied = HEAD not in weights or bool(config.get("tie_word_embeddings", False))
        self._stream = torch.from_numpy(orthogonal(self._width, seed)).float()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the rotated model's tensors."""
        for name in self._weights.names():
            if name == HEAD and self._tied:
                continue
            yield name, self._stored(name, self._rotated(name))
            if _EMBEDDINGS.fullmatch(name) and self._tied:
                yield HEAD, self._stored(name, self._read(self._weights[name].float(), "model.norm.weight"))

    def _stored(self, name: str, rotated: Tensor) -> Tensor:
        import torch

        whole = self._weights[name].dtype == torch.float32
        return rotated.to(torch.float32 if whole else torch.float16).contiguous()

    def _rotated(self, name: str) -> Tensor:
        tensor = self._weights[name].float()
        if found := _VALUES.fullmatch(name):
            # Rows, and the bias, are the values' channels, head by head.
            heads = tensor.reshape(-1, self._head, tensor.shape[1] if found[2] == "weight" else 1)
            turned = (self._values(found[1]).T @ heads).reshape(tensor.shape)
            norm = f"model.layers.{found[1]}.input_layernorm.weight"
            return self._read(turned, norm) if found[2] == "weight" else turned
        if found := _READS_ATTENTION.fullmatch(name):
            return self._read(tensor, f"{found[1]}input_layernorm.weight")
        if found := _READS_MLP.fullmatch(name):
            return self._read(tensor, f"{found[1]}post_attention_layernorm.weight")
        if name == HEAD:
            return self._read(tensor, "model.norm.weight")
        if _EMBEDDINGS.fullmatch(name):
            return tensor @ self._stream
        if _WRITES.fullmatch(name):
            if found := _VALUE_READER.fullmatch(name):
                tensor = (tensor.reshape(len(tensor), -1, self._head) @ self._values(found[1])).reshape(tensor.shape)
            return self._stream.T @ tensor
        if _NORM.fullmatch(name):
            return tensor.new_ones(tensor.shape)
        if _KEPT.fullmatch(name):
            return tensor
        raise BuildError(f"rotate doesn't know what to do with the tensor {name}.")

    def _read(self, matrix: Tensor, norm: str) -> Tensor:
        """Turn the columns of a matrix that reads the stream, after it has taken in its norm's scales."""
        return (matrix * self._weights[norm].float()) @ self._stream

    def _values(self, layer: str) -> Tensor:
        import torch

        return torch.from_numpy(orthogonal(self._head, self._seed + 1 + int(layer))).float()


def _write(target: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Write tensors in files of at most SHARD_BYTES, one of which is in memory at a time, and their index."""
    from safetensors.torch import save_file

    places: dict[str, str] = {}
    held: dict[str, Tensor] = {}
    size = shard = 0

    def flush() -> None:
        nonlocal size, shard
        shard += 1
        name = f"model-{shard:05}.safetensors"
        save_file(held, target / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(held, name))
        held.clear()
        size = 0

    for name, tensor in tensors:
        added = tensor.numel() * tensor.element_size()
        if held and size + added > SHARD_BYTES:
            flush()
        held[name] = tensor
        size += added
    flush()
    if shard == 1:
        (target / "model-00001.safetensors").rename(target / "model.safetensors")
    else:
        (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
