"""K-quants: which type each tensor of a GGUF gets, and the process with llama.cpp's own rounding that writes them.

The mixtures are those of llama.cpp's `llama_tensor_get_type_impl` (src/llama-quant.cpp) for Llama-like models; what rounds is
ggml's `ggml_quantize_chunk`, out of the library that the environment's package ships.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quicksilver.errors import BuildError

QUANTIZER = Path(__file__).with_name("quantizer.py")
OUTPUT = ("output.weight", "token_embd.weight")
BASE = {
    "q3_k_m": "Q3_K", "q4_0": "Q4_0", "q4_k_m": "Q4_K", "q5_k_m": "Q5_K", "q6_k": "Q6_K", "q8_0": "Q8_0", "iq4_nl": "IQ4_NL",
}  # fmt: skip
FALLBACK = {"Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What takes the place of a type in blocks of 256 where a row isn't a multiple of that: types in blocks of 32."""
BLOCK, SUPER_BLOCK = 32, 256


def tensor_types(shapes: Mapping[str, tuple[int, ...]], kind: str) -> dict[str, str]:
    """Return ggml's type for each matrix that is rounded, by its name; `shapes` are in numpy's order, a row's width last."""
    numbers = (re.match(r"blk\.(\d+)\.", name) for name in shapes)
    layers = 1 + max((int(number[1]) for number in numbers if number), default=0)
    tied = "output.weight" not in shapes
    found = {}
    for name, shape in shapes.items():
        if len(shape) < 2 or not name.endswith(".weight") or name.endswith("_norm.weight") or "ffn_gate_inp" in name:
            continue
        wanted = _wanted(name, kind, layers, tied=tied)
        if wanted in FALLBACK and shape[-1] % SUPER_BLOCK:
            wanted = FALLBACK[wanted]
        if shape[-1] % BLOCK == 0:
            found[name] = wanted
    return found


def _wanted(name: str, kind: str, layers: int, *, tied: bool) -> str:
    """Return the type that a tensor gets if its rows allow it."""
    base = BASE[kind]
    if name == "output.weight" or (name == "token_embd.weight" and tied):
        return "Q8_0" if kind == "q8_0" else "Q6_K"
    found = re.match(r"blk\.(\d+)\.(attn_v|attn_output|ffn_down)", name)
    if found is None:
        return base
    layer, part = int(found[1]), found[2]
    # The first and last eighth of the layers, and every third between them.
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    if kind in ("q4_k_m", "q5_k_m") and part in ("attn_v", "ffn_down"):
        return "Q6_K" if more else base
    if kind == "q3_k_m":
        if part == "attn_v":
            return "Q5_K" if layer < 2 else "Q4_K"
        if part == "ffn_down":
            return "Q5_K" if layer < layers // 16 else "Q4_K"
        return "Q4_K"
    return base


def quantize(
    source: Path,
    target: Path,
    kind: str,
    *,
    importance: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Write a GGUF again with its matrices rounded, by llama.cpp in a process of its own.

    `importance` is an .npz with the mean square of each input of a matrix, by the matrix's name (`imatrix.measure`). Raises
    BuildError with what the process said, EngineError if llama.cpp isn't installed.
    """
    from quicksilver import environments
    from quicksilver.sources.gguf import Gguf

    shapes = {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in Gguf(source).tensors.items()}
    job: dict[str, Any] = {
        "source": str(source),
        "target": str(target),
        "types": tensor_types(shapes, kind),
        "importance": str(importance) if importance else None,
    }
    with subprocess.Popen(
        [environments.python("llamacpp"), "-I", str(QUANTIZER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.close()
        last = ""
        for line in process.stdout:
            last = line.strip()
            if last.startswith("done "):
                say(f"{last.removeprefix('done ')} tensors")
    if process.returncode != 0:
        why = last.removeprefix("error: ").rstrip(".") or f"exit code {process.returncode}"
        raise BuildError(f"llama.cpp could not round the weights: {why}.")
