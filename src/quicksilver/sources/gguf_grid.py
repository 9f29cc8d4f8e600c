"""The 4-bit grid that a GGUF's weights lie on, under the names of a Hugging Face directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from quicksilver.sources import gguf as source
from quicksilver.sources.models import remembered

if TYPE_CHECKING:
    import numpy as np

FILE = "gguf_grid.safetensors"
FORMATS = ("Q4_0", "Q4_1")
GROUP = 32
LARGEST_ZERO = 65_000.0
"""Float16 ends a little above."""


def has_grid(path: Path) -> bool:
    """Say whether most of a GGUF's weights lie on a 4-bit grid that an engine can keep. Raises BadInputError."""

    def look() -> dict[str, bool]:
        opened = source.Gguf(path)
        return {"grid": opened.weight_format in FORMATS and opened.model_type == "llama"}

    # Opening takes seconds with a large vocabulary, and every plan asks.
    return bool(remembered(path, "grid", look)["grid"])


def extract(path: Path, target: Path) -> int:
    """Write the grid of a GGUF's 4-bit matrices to `target`/gguf_grid.safetensors; return how many there are.

    For each matrix of [rows, columns]: `.q` uint8 [rows, columns / 2], two levels a byte, low half first; `.scale`
    and `.zero` float16 [rows, columns / 32], so that w = scale · (q - zero). Blocks are laid out as ggml-common.h
    has them: Q4_0 is scale (f16) and 16 bytes with w = scale · (q - 8), Q4_1 is scale, minimum (f16) and 16 bytes
    with w = scale · q + minimum; the low halves of the bytes are the first 16 levels.
    """
    import numpy as np
    from safetensors.numpy import save_file

    opened = source.Gguf(path)
    made = source.config(opened)
    tensors: dict[str, np.ndarray] = {}
    count = 0
    for name, tensor in opened.tensors.items():
        match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        kind = tensor.tensor_type.name
        if match is None or kind not in FORMATS:
            continue
        columns, rows = (int(n) for n in tensor.shape)
        ours = f"model.layers.{match[1]}.{source.block_name(made['model_type'], match[2])}"
        levels, scale, zero = _levels(np.asarray(tensor.data).reshape(rows, columns // GROUP, -1), kind)
        if match[2] in ("attn_q.weight", "attn_k.weight"):
            heads = made["num_attention_heads" if match[2] == "attn_q.weight" else "num_key_value_heads"]
            levels, scale, zero = (source.unpermuted(part, heads) for part in (levels, scale, zero))
        tensors[f"{ours}.q"] = np.ascontiguousarray(levels[:, ::2] | levels[:, 1::2] << 4)
        tensors[f"{ours}.scale"] = np.ascontiguousarray(scale)
        tensors[f"{ours}.zero"] = np.ascontiguousarray(zero)
        count += 1
    save_file(tensors, target / FILE)
    return count


def _levels(blocks: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split blocks [rows, groups, bytes] into levels uint8 [rows, columns], scale and zero float16 [rows, groups]."""
    import numpy as np

    head = 2 if kind == "Q4_0" else 4
    scale = blocks[..., :2].copy().view(np.float16)[..., 0]
    packed = blocks[..., head:]
    levels = np.concatenate([packed & 15, packed >> 4], axis=-1).reshape(blocks.shape[0], -1)
    if kind == "Q4_0":
        return levels, scale, np.full_like(scale, 8)
    minimum = blocks[..., 2:4].copy().view(np.float16)[..., 0].astype(np.float32)
    step = scale.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = -minimum / step
    # A group whose steps are nothing beside its offset is constant, to within float16's rounding: it is one level, taken as
    # scale = its middle, q - zero = 1.
    flat = ~(np.abs(zero) < LARGEST_ZERO)
    middle = minimum + step * np.float32(7.5)
    levels = np.where(np.repeat(flat, GROUP, axis=1), 0, levels).astype(np.uint8)
    return levels, np.where(flat, middle, step).astype(np.float16), np.where(flat, -1, zero).astype(np.float16)
